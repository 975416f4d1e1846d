"""DICOM segmentations (PS3.3 A.51): what their headers say of frames, segments and images.

Of the segments only numbers and public codes are read; SegmentLabel and the descriptions are free
text and stay behind.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Float64, Int64
from numpy import ndarray

from ingest.errors import Reason, SeriesError
from ingest.geometry import grid_affine, plausible_spacing, unit_axes
from ingest.headers import quiet_pydicom
from ingest.labels_grid import Grid
from shards.labels import is_public_code
from shards.schema import MAX_LABEL_VALUES

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
SEGMENTATIONS = frozenset({SEGMENTATION, LABEL_MAP_SEGMENTATION})
"""SOP classes that are read."""
_SAME_PLACE_MM = 0.01
"""Frames nearer than this lie in one plane: each shows another segment."""
SAME_DIRECTION = 1e-3
ON_PLANE = 0.1
"""Frames within this share of a spacing from a plane lie in it."""


@dataclass(frozen=True, kw_only=True)
class SegFrames:
    """What the header of a segmentation says of its frames.

    Attributes:
        planes_yx: rows and columns of a frame.
        positions: LPS mm of the first pixel of each frame.
        orientation: of all frames, as ImageOrientationPatient.
        pixel_mm: between rows, between columns.
        spacing_mm: stated distance of planes; None when unknown.
        segment_of_frame: 0 where a frame holds the segments' numbers itself (a label map).
        codes: (code, scheme) of each segment, both empty when not public.
    """

    planes_yx: tuple[int, int]
    positions: Float64[ndarray, "n 3"]
    orientation: Float64[ndarray, " 6"]
    pixel_mm: tuple[float, float]
    spacing_mm: float | None
    segment_of_frame: tuple[int, ...]
    codes: Mapping[int, tuple[str, str]]

    @property
    def grid(self) -> Grid:
        """The box of all frames as a grid; only roughly where frames are missing or tilted."""
        axes = unit_axes(self.orientation)
        _, first = planes_of(self)
        along = self.positions[first] @ axes[0]
        pitch = even_spacing(along, self.spacing_mm)
        if pitch is None:
            pitch = float(np.median(np.diff(along))) if len(along) > 1 else min(self.pixel_mm)
        count = round((along[-1] - along[0]) / pitch) + 1
        affine = grid_affine(self.positions[first[0]], axes, (pitch, *self.pixel_mm))
        return Grid(affine=affine, shape_zyx=(count, *self.planes_yx))


@dataclass(frozen=True, kw_only=True)
class SegHeader:
    """A segmentation's frames, and which images it says that it segments.

    Attributes:
        frames: where its frames lie.
        instances: SOPInstanceUIDs it refers to.
        series: SeriesInstanceUIDs it refers to.
        frame_of_reference: empty when it states none.
    """

    frames: SegFrames
    instances: frozenset[str] = field(repr=False)
    series: frozenset[str] = field(repr=False)
    frame_of_reference: str = field(repr=False)


def read_seg_header(data: bytes) -> SegHeader:
    """Judge a segmentation by all that comes before its pixels.

    Raises:
        SeriesError: no segmentation that can be labels.
    """
    with quiet_pydicom():
        try:
            dataset = pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=True)
            return SegHeader(
                frames=_frames(dataset),
                instances=frozenset(_referenced(dataset, "ReferencedSOPInstanceUID")),
                series=frozenset(
                    str(item.get("SeriesInstanceUID") or "")
                    for item in dataset.get("ReferencedSeriesSequence") or ()
                )
                - {""},
                frame_of_reference=str(dataset.get("FrameOfReferenceUID") or "").strip(),
            )
        except (SeriesError, MemoryError):
            raise
        except Exception as exc:  # pydicom raises an open family of errors on garbage
            detail = f"the segmentation's header is damaged ({type(exc).__name__})"
            raise SeriesError(Reason.UNREADABLE_FILE, detail) from exc


def _frames(dataset: Any) -> SegFrames:
    """The frames of a data set without its pixels."""
    kind = str(dataset.get("SegmentationType") or "").strip().upper()
    if kind not in ("BINARY", "LABELMAP"):
        detail = "a fractional segmentation" if kind == "FRACTIONAL" else "of an unknown type"
        raise SeriesError(Reason.LABEL_FRACTIONAL, detail)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    own = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    count = int(dataset.get("NumberOfFrames") or 1)
    if count != len(own) or count < 1:
        raise SeriesError(Reason.MISSING_GEOMETRY, f"{count} frames, {len(own)} of them described")

    def group(frame: Any, name: str) -> Any:
        found = frame.get(name) or (shared.get(name) if shared is not None else None)
        if not found:
            raise SeriesError(Reason.MISSING_GEOMETRY, f"no {name} for a frame")
        return found[0]

    orientations = _numbers(
        [group(f, "PlaneOrientationSequence").ImageOrientationPatient for f in own], 6
    )
    if np.abs(orientations - orientations[0]).max() > SAME_DIRECTION:
        raise SeriesError(Reason.LABEL_GEOMETRY, "its frames are turned against each other")
    measures = [group(f, "PixelMeasuresSequence") for f in own]
    spacing = _numbers([m.PixelSpacing for m in measures], 2)
    if not plausible_spacing(tuple(spacing.ravel().tolist())) or (spacing != spacing[0]).any():
        raise SeriesError(Reason.IMPLAUSIBLE_SPACING, "the pixel spacing is none that CT has")
    codes = dict(_segments(dataset))
    numbers = [0] * count
    if kind == "BINARY":
        numbers = [
            int(group(f, "SegmentIdentificationSequence").ReferencedSegmentNumber) for f in own
        ]
        if not set(numbers) <= set(codes):
            raise SeriesError(Reason.LABEL_VALUES, "a frame shows a segment that is not described")
    try:
        unit_axes(orientations[0])
    except ValueError as exc:
        raise SeriesError(Reason.MISSING_GEOMETRY, str(exc)) from exc
    positions = [group(frame, "PlanePositionSequence").ImagePositionPatient for frame in own]
    return SegFrames(
        planes_yx=(int(dataset.Rows), int(dataset.Columns)),
        positions=_numbers(positions, 3),
        orientation=orientations[0],
        pixel_mm=(float(spacing[0, 0]), float(spacing[0, 1])),
        spacing_mm=_stated_spacing(measures[0], one_plane=len(set(map(tuple, positions))) == 1),
        segment_of_frame=tuple(numbers),
        codes=codes,
    )


def _numbers(values: Any, width: int) -> Float64[ndarray, "n k"]:
    numbers = np.array([[float(v) for v in value] for value in values], np.float64)
    if numbers.ndim != 2 or numbers.shape[1] != width or not np.isfinite(numbers).all():
        raise SeriesError(Reason.MISSING_GEOMETRY, "position, orientation or spacing is missing")
    return numbers


def _stated_spacing(measures: Any, *, one_plane: bool) -> float | None:
    """Stated distance of planes where it is one that CT has; of a single plane its thickness too.

    Thickness is not distance: of several planes it says nothing.
    """
    for name in ("SpacingBetweenSlices", "SliceThickness")[: 1 + one_plane]:
        value = measures.get(name)
        if value is not None and plausible_spacing((abs(float(value)),)):
            return abs(float(value))
    return None


def _segments(dataset: Any) -> Iterator[tuple[int, tuple[str, str]]]:
    """Number, code and scheme of each segment; codes that are not public are left out."""
    described = list(dataset.get("SegmentSequence") or ())
    if not 1 <= len(described) <= MAX_LABEL_VALUES:
        raise SeriesError(
            Reason.LABEL_VALUES, f"{len(described)} segments, not 1 to {MAX_LABEL_VALUES}"
        )
    for item in described:
        number = int(item.SegmentNumber)
        kinds = item.get("SegmentedPropertyTypeCodeSequence") or ()
        code = str(kinds[0].get("CodeValue") or "").strip() if kinds else ""
        scheme = str(kinds[0].get("CodingSchemeDesignator") or "").strip() if kinds else ""
        if number > 0:  # 0 is the background of label maps
            yield number, (code, scheme) if is_public_code(code, scheme) else ("", "")


def _referenced(dataset: Any, name: str) -> Iterator[str]:
    """Every value of ``name`` below the references to images, of the file and of its frames."""
    sources = list(dataset.get("ReferencedSeriesSequence") or ())
    for frame in dataset.get("PerFrameFunctionalGroupsSequence") or ():
        sources += list(frame.get("DerivationImageSequence") or ())
    for source in sources:
        for sequence in ("ReferencedInstanceSequence", "SourceImageSequence"):
            for item in source.get(sequence) or ():
                yield str(item.get(name) or "")


def planes_of(frames: SegFrames) -> tuple[Int64[ndarray, " n"], list[int]]:
    """Plane of each frame, ascending along the normal, and the first frame of each plane."""
    along = frames.positions @ unit_axes(frames.orientation)[0]
    order = np.argsort(along, kind="stable")
    new = np.concatenate([[True], np.diff(along[order]) > _SAME_PLACE_MM])
    plane_of = np.empty(len(along), np.int64)
    plane_of[order] = np.cumsum(new) - 1
    return plane_of, [int(index) for index in order[new]]


def even_spacing(along: Float64[ndarray, " n"], stated: float | None) -> float | None:
    """The distance that all planes at ``along`` are whole multiples apart; None if there is none.

    It is the stated one, else the smallest between neighbours, measured over the whole stack.
    """
    if len(along) < 2:
        return stated
    extent = along[-1] - along[0]
    for guess in (stated, float(np.diff(along).min())):
        if guess is None or round(extent / guess) < 1:
            continue
        spacing = float(extent / round(extent / guess))
        place = (along - along[0]) / spacing
        if np.abs(place - np.rint(place)).max() <= ON_PLANE and np.diff(np.rint(place)).min() >= 1:
            return spacing
    return None
