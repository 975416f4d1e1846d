"""Frames of a DICOM segmentation as planes of labels: on its volume's slices or its own grid."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pydicom
from jaxtyping import Float64, Int64, Integer
from numpy import ndarray

from ingest.errors import Reason, SeriesError
from ingest.geometry import unit_axes
from ingest.headers import quiet_pydicom
from ingest.labels_grid import LabelPlanes
from ingest.labels_seg import (
    ON_PLANE,
    SAME_DIRECTION,
    SegFrames,
    even_spacing,
    planes_of,
    read_seg_header,
)
from ingest.series import Series

MAX_VOXELS = 1 << 31
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def read_seg_labels(data: bytes, volume: Series) -> tuple[LabelPlanes, dict[int, tuple[str, str]]]:
    """A segmentation's labels, and the code and scheme of each value.

    Frames that mark slices of ``volume`` belong to those slices, evenly spaced or not; others have
    to lie on a grid of their own.

    Raises:
        SeriesError: frames cannot be decoded, overlap, or lie on no grid.
    """
    frames = read_seg_header(data).frames
    plane_of, places, cells = _place_planes(frames, volume)
    rows, columns = frames.planes_yx
    if len(cells) * rows * columns > MAX_VOXELS:
        raise SeriesError(Reason.LABEL_GEOMETRY, "its frames span more voxels than any CT has")
    dtype = np.uint8 if max(frames.codes) <= np.iinfo(np.uint8).max else np.uint16
    values: Integer[ndarray, "n rows columns"] = np.zeros((len(cells), rows, columns), dtype)
    for plane, frame in zip(plane_of.tolist(), _decoded(data, frames), strict=True):
        drawn = frame != 0
        if np.any((values[plane] != 0) & (values[plane] != frame) & drawn):
            raise SeriesError(Reason.LABEL_OVERLAP, "segments overlap")
        values[plane][drawn] = frame[drawn]
    axes = unit_axes(frames.orientation)
    return LabelPlanes(
        values=values,
        origins=places * _LPS_TO_RAS,
        axes=axes * _LPS_TO_RAS,
        pixel_mm=frames.pixel_mm,
        cells_mm=cells,
    ), dict(frames.codes)


def _decoded(data: bytes, frames: SegFrames) -> Iterator[Integer[ndarray, "rows columns"]]:
    """Segment numbers of each frame in turn, decoded by highdicom; 0 is background."""
    import highdicom

    with quiet_pydicom():
        try:
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
            _check_length(dataset, frames)
            seg = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
            for index, number in enumerate(frames.segment_of_frame):
                frame = seg.get_stored_frame(index, as_index=True)
                if frame.shape != frames.planes_yx:
                    raise SeriesError(Reason.DECODE_FAILED, "a frame has another shape")
                yield _numbered(frame, number, frames)
        except (SeriesError, MemoryError):
            raise
        except Exception as exc:  # decoders raise an open family of errors on garbage
            detail = f"the segmentation cannot be decoded ({type(exc).__name__})"
            raise SeriesError(Reason.DECODE_FAILED, detail) from exc


def _check_length(dataset: pydicom.Dataset, frames: SegFrames) -> None:
    """Too many pixels are as wrong as too few: the frames begin elsewhere than they should."""
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        return
    rows, columns = frames.planes_yx
    bits = rows * columns * len(frames.positions) * int(dataset.BitsAllocated)
    if not 0 <= len(dataset.PixelData) - -(-bits // 8) <= 1:
        raise SeriesError(Reason.DECODE_FAILED, "its pixel data is not as long as its frames")


def _numbered(
    frame: Integer[ndarray, "rows columns"], number: int, frames: SegFrames
) -> Integer[ndarray, "rows columns"]:
    """A binary frame with its segment's number; a label map as it is, if all numbers are known."""
    if number:
        if frame.max() > 1:
            raise SeriesError(Reason.LABEL_VALUES, "a binary frame holds more than 0 and 1")
        return frame.astype(np.uint16) * np.uint16(number)
    if not set(np.unique(frame).tolist()) <= {0, *frames.codes}:
        raise SeriesError(Reason.LABEL_VALUES, "a frame shows a segment that is not described")
    return frame


def _place_planes(
    frames: SegFrames, volume: Series
) -> tuple[Int64[ndarray, " frames"], Float64[ndarray, "n 3"], Float64[ndarray, "n 2"]]:
    """Plane of each frame; of each plane its LPS origin and its cell along the normal."""
    normal = unit_axes(frames.orientation)[0] * _LPS_TO_RAS
    plane_of, first = planes_of(frames)
    origins = frames.positions[first]
    along = origins * _LPS_TO_RAS @ normal
    slices = _slices_along(volume, normal)
    if slices is not None:
        nearest = np.abs(along[:, None] - slices[None, :]).argmin(axis=1)
        off = np.abs(along - slices[nearest]).max() / np.diff(slices).min()
        if off <= ON_PLANE and len(set(nearest.tolist())) == len(nearest):
            places = origins[0] + ((slices - along[0])[:, None] * normal) * _LPS_TO_RAS
            places[nearest] = origins
            return nearest[plane_of].astype(np.int64), places, _cells(slices)
    pitch = even_spacing(along, frames.spacing_mm)
    if pitch is None:
        raise SeriesError(Reason.LABEL_GEOMETRY, "its frames are on no slices and on no even grid")
    return plane_of, origins, np.stack([along - pitch / 2, along + pitch / 2], axis=1)


def _slices_along(volume: Series, normal: Float64[ndarray, " 3"]) -> Float64[ndarray, " n"] | None:
    """Places of a volume's stored slices along ``normal``, ascending; None if not along it."""
    assert volume.affine is not None
    assert volume.shape_zyx is not None
    affine = np.array(volume.affine)
    step = affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    if abs(abs(step @ normal) - 1) > SAME_DIRECTION**2:
        return None
    regridding = volume.regridding
    slice_z = np.arange(volume.shape_zyx[0]) if regridding is None else np.array(regridding.slice_z)
    places = (affine[:3, 3] + slice_z[:, None] * affine[:3, 0]) @ normal
    return np.sort(places) if len(places) > 1 else None


def _cells(along: Float64[ndarray, " n"]) -> Float64[ndarray, "n 2"]:
    """Cells that reach halfway to the neighbours, and as far on the outer sides."""
    middle = (along[1:] + along[:-1]) / 2
    low = np.concatenate([[2 * along[0] - middle[0]], middle])
    high = np.concatenate([middle, [2 * along[-1] - middle[-1]]])
    return np.stack([low, high], axis=1)
