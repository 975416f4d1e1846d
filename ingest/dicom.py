"""A DICOM series to HU: one slice decoded at a time, into one volume.

Everything is per slice (compression, signedness, rescale): of 270,830 public series 281 mix
PixelRepresentation and 53 mix transfer syntaxes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Num
from numpy import ndarray
from pydicom.pixels import apply_modality_lut

from ingest.decode import decode_frame
from ingest.errors import Reason, SeriesError
from ingest.frames import Frame
from ingest.headers import quiet_pydicom, read_dataset
from ingest.regrid import TISSUE_ABOVE_HU
from ingest.regridded import regridded
from ingest.series import Series
from ingest.slices import check_slices
from ingest.sources import FileRef, read_files
from ingest.volume import Volume
from shards.schema import FILL_HU, HU_MAX

_EXACT_INTERCEPT = 1 << 23
"""A whole number up to here and a 16-bit one add up within the 24 bits of a float32."""
_HU_TYPES = {"", "HU", "US"}
"""RescaleType: absent means HU for CT (PS3.3 C.8.2.1), and some scanners write "unspecified"."""


def read_dicom(series: Series) -> Volume:
    """Decode an accepted series.

    Slices that are tilted or unevenly spaced are put on a regular grid.

    Raises:
        SeriesError: a slice cannot be decoded, is not in HU, does not belong to the others, or
            differs from another at its place.
    """
    assert series.shape_zyx is not None
    assert series.affine is not None
    regridding = series.regridding
    shape = series.shape_zyx if regridding is None else regridding.stored_shape_zyx
    flags: set[str] = set()
    hu, padded = _read_slices(series, shape, flags)
    check_slices(hu)
    padding_fraction, error = padded / hu.size, None
    if regridding is not None:
        hu, padding_fraction, error = regridded(hu, padding_fraction, regridding)
    return Volume(
        hu=hu,
        affine=np.array(series.affine),
        geometry=series.geometry,
        flags=tuple(sorted(flags)),
        padding_fraction=padding_fraction,
        regrid_error_hu=error,
    )


def _read_slices(
    series: Series, shape: tuple[int, int, int], flags: set[str]
) -> tuple[Float32[ndarray, "z y x"], int]:
    """HU of all slices as stored, and how many pixels were padding."""
    hu: Float32[ndarray, "z y x"] | None = None
    filled: set[int] = set()
    padded = 0
    planes: dict[FileRef, list[tuple[int, int]]] = {}
    places = zip(series.refs, series.frame_of_ref, series.slice_of_ref, strict=True)
    for ref, frame, number in places:
        planes.setdefault(ref, []).append((frame, number))
    with quiet_pydicom():
        for ref, data in read_files(planes):
            frames, numbers = zip(*planes[ref], strict=True)
            decoded = decode_file(data, frames, shape[1:], flags)
            for number, (plane, padding) in zip(numbers, decoded, strict=True):
                if hu is None:  # not before: a header may claim what no decoder finds
                    hu = np.empty(shape, np.float32)
                if number not in filled:
                    filled.add(number)
                    hu[number] = plane
                    padded += padding
                elif np.array_equal(hu[number], plane):
                    flags.add("duplicates_dropped")
                else:
                    detail = "different images at the same position"
                    raise SeriesError(Reason.DUPLICATE_POSITIONS, detail)
    assert hu is not None
    return hu, padded


def decode_slice(
    data: bytes, shape: tuple[int, ...], flags: set[str]
) -> tuple[Float32[ndarray, "y x"], int]:
    """HU of the one frame of a file, and how many pixels were padding; see `decode_file`."""
    [decoded] = decode_file(data, (0,), shape, flags)
    return decoded


def decode_file(
    data: bytes, frames: Sequence[int], shape: tuple[int, ...], flags: set[str]
) -> Iterator[tuple[Float32[ndarray, "y x"], int]]:
    """HU of each of ``frames``, padding already -1024, and how many pixels were padding.

    Args:
        data: the file, which is parsed once.
        frames: counted from 0.
        shape: what a frame must decode to.
        flags: what is noticed is added here.

    Raises:
        SeriesError: the file cannot be decoded, or not to HU.
    """
    try:
        dataset = read_dataset(io.BytesIO(data), header_only=False)
        for frame in frames:
            yield _decode_frame(dataset, frame, shape, flags)
    except (SeriesError, MemoryError):
        raise
    except Exception as exc:  # pydicom and the decoders raise an open family of errors on garbage
        detail = f"a slice cannot be decoded ({type(exc.__cause__ or exc).__name__})"
        raise SeriesError(Reason.DECODE_FAILED, detail) from exc


def _decode_frame(
    dataset: Any, frame: int, shape: tuple[int, ...], flags: set[str]
) -> tuple[Float32[ndarray, "y x"], int]:
    facts = Frame(dataset, frame)
    stored = decode_frame(dataset, frame, flags)
    if stored.shape != shape:
        raise SeriesError(Reason.DECODE_FAILED, f"a slice decodes to shape {stored.shape}")
    hu = _rescale(facts, stored, flags)
    padding = _padding_mask(facts, stored)
    count = 0 if padding is None else int(np.count_nonzero(padding))
    if padding is not None and count:
        values = hu[padding]
        # Between this and the stored maximum it could be anatomy, and is left as it is.
        if ((values > TISSUE_ABOVE_HU) & (values <= HU_MAX)).any():
            flags.add("padding_in_tissue_range")
            count = 0
        else:
            np.copyto(hu, FILL_HU, where=padding)
    return np.ascontiguousarray(hu, np.float32), count


def _rescale(facts: Frame, stored: ndarray, flags: set[str]) -> Float[ndarray, "y x"]:
    """Stored values to HU by the slice's own Modality LUT or slope and intercept (PS3.3 C.11.1)."""
    if str(facts.get("RescaleType") or "").strip().upper() not in _HU_TYPES:
        raise SeriesError(Reason.NOT_HU, "the rescale type is not HU")
    if facts.dataset.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(stored, facts.dataset), np.float64)
    slope, intercept = facts.get("RescaleSlope"), facts.get("RescaleIntercept")
    if slope is None or intercept is None:
        flags.add("rescale_missing")
    slope = 1.0 if slope is None else float(slope)
    intercept = 0.0 if intercept is None else float(intercept)
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0:
        raise SeriesError(Reason.NOT_HU, "rescale slope or intercept is not usable")
    return rescaled(stored, slope, intercept)


def rescaled(stored: Num[ndarray, "y x"], slope: float, intercept: float) -> Float[ndarray, "y x"]:
    """HU of stored values: in float32 where that is exact, which is nearly always, else float64."""
    exact = slope == 1 and intercept == round(intercept) and abs(intercept) <= _EXACT_INTERCEPT
    if exact and stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2:
        hu: Float[ndarray, "y x"] = np.add(stored, np.float32(intercept), dtype=np.float32)
        return hu
    return stored.astype(np.float64) * slope + intercept


def _padding_mask(facts: Frame, stored: ndarray) -> Bool[ndarray, "y x"] | None:
    """Pixels outside the reconstructed circle (PS3.3 C.7.5.1.1.2), None where none are declared."""
    bits = int(facts.dataset.BitsAllocated)
    signed = int(facts.get("PixelRepresentation") or 0) == 1
    first = _as_stored(facts.get("PixelPaddingValue"), bits, signed)
    if first is None:
        return None
    last = _as_stored(facts.get("PixelPaddingRangeLimit"), bits, signed)
    low, high = sorted((first, first if last is None else last))
    return stored == low if low == high else (stored >= low) & (stored <= high)


def _as_stored(value: Any, bits: int, signed: bool) -> int | None:
    """A padding value as the pixels hold it: 63536 is often written for a signed -2000."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        return None
    if signed and number >= 1 << (bits - 1):
        return number - (1 << bits)
    if not signed and number < 0:
        return number + (1 << bits)
    return number
