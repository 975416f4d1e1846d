"""The same volume under other UIDs, found before anything is built.

A volume is known to be another's copy only when its voxels are read, but a shard that is written is
never written again. So the copies are found first, and cheaply: series whose grids agree (shape,
spacing and place, from headers) are candidates; of those, one slice in the middle is compared; and
only where that agrees too, all voxels are. A copy that lies at another place is not found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from ingest.errors import Reason, SeriesError
from ingest.exclude import BY_PIXELS
from ingest.geometry import shifted, spl_axes
from ingest.pixels import series_sha256
from ingest.series import Series

ORIGIN_TOLERANCE_MM = 0.1
"""Positions that go through NIfTI's float32 or are written with fewer digits still agree."""
SPACING_TOLERANCE = 1e-3
COPY = "the same volume is there under other UIDs; one is used"


@dataclass(frozen=True, kw_only=True)
class HashTask:
    """One series to hash, whole or by one slice; picklable."""

    series: Series
    whole: bool


Hasher = Callable[[Sequence[HashTask]], Iterable[tuple[str, str]]]
"""Runs `hash_series` over tasks, here or on workers; in any order."""


def hash_series(task: HashTask) -> tuple[str, str]:
    """Key and pixel hash of a series; empty where it cannot be read, which the build will say."""
    series = task.series if task.whole else _middle_slice(task.series)
    try:
        return task.series.key, series_sha256(series)
    except SeriesError:
        return task.series.key, ""
    except Exception as exc:
        exc.add_note(f"while hashing series {series.series_id}")
        raise


def find_copies(rows: Sequence[Series], run: Hasher) -> dict[str, tuple[Reason, str]]:
    """Reason and detail by key of the accepted rows that are copies of others.

    Of copies the one with the lowest key stays, whatever the order. A copy of a row that was
    excluded by a UID is excluded as well.
    """
    groups = list(_same_grid(rows))
    sliced = [series for group in groups if all(map(_has_slices, group)) for series in group]
    probes = dict(run([HashTask(series=series, whole=False) for series in sliced]))
    groups = [part for group in groups for part in _split(group, probes)]
    hashes = dict(run([HashTask(series=s, whole=True) for group in groups for s in group]))
    found: dict[str, tuple[Reason, str]] = {}
    for group in groups:
        for same in _split(group, hashes):
            taken = sorted((s for s in same if s.reason is Reason.OK), key=lambda s: s.key)
            if len(taken) < len(same):
                found |= {s.key: (Reason.EXCLUDED, BY_PIXELS) for s in taken}
            else:
                found |= {s.key: (Reason.DUPLICATE_SERIES, COPY) for s in taken[1:]}
    return found


def _split(group: Sequence[Series], hashes: dict[str, str]) -> list[list[Series]]:
    """Parts of two or more with equal hashes; the group as it is where none was hashed."""
    if not any(series.key in hashes for series in group):
        return [list(group)]
    parts: dict[str, list[Series]] = {}
    for series in group:
        if value := hashes.get(series.key, ""):
            parts.setdefault(value, []).append(series)
    return [part for part in parts.values() if len(part) > 1]


def _same_grid(rows: Iterable[Series]) -> Iterator[list[Series]]:
    """Series that are taken, or excluded, and whose grids agree: groups of two or more."""
    by_shape: dict[tuple[int, ...], list[tuple[Float64[ndarray, " 6"], Series]]] = {}
    for row in rows:
        if row.reason in (Reason.OK, Reason.EXCLUDED) and row.affine is not None:
            shape, place = _grid(row)
            by_shape.setdefault(shape, []).append((place, row))
    for same in by_shape.values():
        # Along one axis first: a chain of neighbours, cut where it is wider than the tolerance.
        same.sort(key=lambda item: (item[0][3], item[1].key))
        start = 0
        for end in range(1, len(same) + 1):
            if end < len(same) and same[end][0][3] - same[end - 1][0][3] <= ORIGIN_TOLERANCE_MM:
                continue
            yield from _agreeing(same[start:end])
            start = end


def _agreeing(
    near: Sequence[tuple[Float64[ndarray, " 6"], Series]],
) -> Iterator[list[Series]]:
    """Groups of two or more that agree with their first member on all axes."""
    clusters: list[tuple[Float64[ndarray, " 6"], list[Series]]] = []
    for place, row in near:
        for centre, members in clusters:
            if _close(place, centre):
                members.append(row)
                break
        else:
            clusters.append((place, [row]))
    yield from (members for _, members in clusters if len(members) > 1)


def _close(a: Float64[ndarray, " 6"], b: Float64[ndarray, " 6"]) -> bool:
    spacing = np.abs(a[:3] - b[:3]) <= SPACING_TOLERANCE * b[:3]
    return bool(spacing.all() and (np.abs(a[3:] - b[3:]) <= ORIGIN_TOLERANCE_MM).all())


def _grid(row: Series) -> tuple[tuple[int, ...], Float64[ndarray, " 6"]]:
    """Shape in S, P, L, and spacing and first voxel's place: the order of storage drops out."""
    assert row.shape_zyx is not None
    affine = np.array(row.affine)
    order, flips = spl_axes(affine)
    shape = tuple(row.shape_zyx[axis] for axis in order)
    corner = [0, 0, 0]
    for axis, n, flip in zip(order, shape, flips, strict=True):
        corner[axis] = n - 1 if flip else 0
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[list(order)]
    return shape, np.concatenate([spacing, shifted(affine, tuple(corner))[:3, 3]])


def _has_slices(series: Series) -> bool:
    """Whether single slices can be read: one file or frame each, stacked from feet to head."""
    if series.source_kind != "dicom" or series.slice_of_ref != tuple(range(len(series.refs))):
        return False
    return spl_axes(np.array(series.affine))[0][0] == 0


def _middle_slice(series: Series) -> Series:
    """The slice in the middle, counted from the feet, as a series of its own."""
    _, flips = spl_axes(np.array(series.affine))
    middle = len(series.refs) // 2
    index = len(series.refs) - 1 - middle if flips[0] else middle
    assert series.shape_zyx is not None
    plane = series.shape_zyx[1:] if series.regridding is None else series.regridding.plane_yx
    return replace(
        series,
        refs=(series.refs[index],),
        frame_of_ref=(series.frame_of_ref[index],),
        slice_of_ref=(0,),
        n_slices=1,
        regridding=None,
        shape_zyx=(1, *plane),
    )
