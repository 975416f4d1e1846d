"""Choosing among the reconstructions of one acquisition, from headers alone.

One turn of the scanner is often reconstructed several times: thin and thick, soft and sharp, axial
and coronal. Two volumes are taken for reconstructions of one acquisition when they

- are of one study and one frame of reference, and their tube voltages do not differ;
- have the same AcquisitionUID or, where one lacks it, acquisition times that overlap within 1 s;
- and show much the same region: their boxes overlap by at least half of what both cover together.

Volumes of one series are its phases and never rivals. Where a fact is missing they count as
different: an extra volume does less harm than a lost one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from ingest.errors import Reason
from ingest.geometry import spl_axes
from ingest.headers import Header
from ingest.kernels import SHARP, SOFT
from ingest.series import Series
from ingest.sources import FileRef

MIN_OVERLAP = 0.5
"""Least intersection over union of two boxes that show one region: a full field of 350 mm and one
of 400 mm share 0.77, the body and a zoom on the spine 0.26."""
TIME_SLACK_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """What tells one acquisition of a study from another; empty or None where it is not known."""

    frame_of_reference: str
    uid: str
    seconds: tuple[float, float] | None
    """First and last AcquisitionTime of the slices, seconds of the day."""
    kvp: float | None


def thinnest_soft_tissue(rows: Sequence[Series], headers: Mapping[FileRef, Header]) -> list[Series]:
    """Keep one reconstruction of each acquisition and refuse the others as ``not_selected``.

    The best comes first by, in this order: kernel class (soft, then unknown, then sharp), axial
    before other planes, slice thickness, slice spacing, more slices, kernel name, key. So an
    acquisition without a soft reconstruction keeps its best other one.
    """
    kept: dict[str, list[tuple[str, Acquisition, Float64[ndarray, "2 3"]]]] = {}
    refused: set[str] = set()
    for row in sorted((row for row in rows if row.reason is Reason.OK), key=_rank):
        acquisition = acquisition_of([headers[ref] for ref in row.refs if ref in headers])
        box = _box(row)
        others = kept.setdefault(row.study_id, [])
        if any(
            series != row.series_id and _same(acquisition, one) and _overlap(box, b) >= MIN_OVERLAP
            for series, one, b in others
        ):
            refused.add(row.key)
        else:
            others.append((row.series_id, acquisition, box))
    detail = "another reconstruction of the same acquisition is taken"
    return [
        replace(row, reason=Reason.NOT_SELECTED, detail=detail)
        if row.reason is Reason.OK and row.key in refused
        else row
        for row in rows
    ]


def acquisition_of(headers: Sequence[Header]) -> Acquisition:
    """The acquisition of a series' files; what they do not agree on is not known."""
    times = [_seconds(header.acquisition_time) for header in headers]
    known = [time for time in times if time is not None]
    return Acquisition(
        frame_of_reference=_common([header.frame_of_reference for header in headers]),
        uid=_common([header.acquisition_uid for header in headers]),
        seconds=(min(known), max(known)) if known and len(known) == len(times) else None,
        kvp=headers[0].kvp if headers else None,
    )


def _rank(row: Series) -> tuple[object, ...]:
    classes = {SOFT: 0, SHARP: 2}
    kernel = min((classes[flag] for flag in row.flags if flag in classes), default=1)
    assert row.spacing_zyx_mm is not None
    assert row.slice_mm is not None
    axial = spl_axes(np.array(row.affine))[0][0] == 0
    spacing = row.spacing_zyx_mm[0]
    return (
        kernel, not axial, round(row.slice_mm, 3), round(spacing, 3), -row.n_slices, row.kernel,
        row.key,
    )  # fmt: skip


def _same(a: Acquisition, b: Acquisition) -> bool:
    if not a.frame_of_reference or a.frame_of_reference != b.frame_of_reference:
        return False
    if a.kvp is not None and b.kvp is not None and a.kvp != b.kvp:
        return False
    if a.uid and b.uid:
        return a.uid == b.uid
    if a.seconds is None or b.seconds is None:
        return False
    return a.seconds[0] <= b.seconds[1] + TIME_SLACK_S and b.seconds[0] <= (
        a.seconds[1] + TIME_SLACK_S
    )


def _common(values: Sequence[str]) -> str:
    """The one value that all share, else empty."""
    found = set(values)
    return found.pop() if len(found) == 1 else ""


def _seconds(time: str) -> float | None:
    """A DICOM time, HHMMSS.FFFFFF (PS3.5 6.2), in seconds."""
    try:
        return int(time[:2]) * 3600 + int(time[2:4]) * 60 + float(time[4:] or 0)
    except ValueError:
        return None


def _box(row: Series) -> Float64[ndarray, "2 3"]:
    """Lowest and highest RAS mm of the voxels' centres, half a voxel added on each side."""
    assert row.shape_zyx is not None
    ends = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in row.shape_zyx])).reshape(3, -1)
    corners = np.array(row.affine)[:3] @ np.vstack([ends, np.ones(ends.shape[1])])
    return np.stack([corners.min(axis=1), corners.max(axis=1)])


def _overlap(a: Float64[ndarray, "2 3"], b: Float64[ndarray, "2 3"]) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(a[1], b[1]) - np.maximum(a[0], b[0])
    shared = float(np.prod(np.maximum(sides, 0)))
    return shared / (float(np.prod(a[1] - a[0]) + np.prod(b[1] - b[0])) - shared)
