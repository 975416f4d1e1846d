"""Which chunks a base box touches, their places in a slot, and the byte ranges that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64
from numpy import ndarray

MAX_GAP = 256 * 1024
"""Unwanted bytes read rather than asked around: at 90 MB/s they take 3 ms, a request 25."""
MAX_RANGE = 8 * 1024 * 1024
"""Longest range: beyond it, more connections are faster than longer answers."""

OUTSIDE = -1
"""Chunk number of a chunk outside the volume's grid."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """The covering chunks of one base box.

    Attributes:
        origin_zyx: where the box starts in the region, voxels.
        places: position in the slot (C order) of each touched chunk, at least one.
        chunks: its number in the volume's chunk grid (C order), or ``OUTSIDE``.
    """

    origin_zyx: Float64[ndarray, " 3"]
    places: Int64[ndarray, " n"]
    chunks: Int64[ndarray, " n"]

    def only(self, seen: Bool[ndarray, " _slot"]) -> Region:
        """The same region with those of its chunks that are seen, by position in the slot."""
        kept = seen[self.places]
        return Region(
            origin_zyx=self.origin_zyx, places=self.places[kept], chunks=self.chunks[kept]
        )


@dataclass(frozen=True, kw_only=True)
class ByteRange:
    """One request: ``[start, stop)`` of a file, and which of the wanted pieces lie in it."""

    start: int
    stop: int
    pieces: tuple[int, ...]


def chunks_per_axis(box_side: int, chunk_side: int) -> int:
    """Chunks that a box can touch along an axis, wherever it starts.

    >>> chunks_per_axis(129, 64), chunks_per_axis(65, 64), chunks_per_axis(129, 32)
    (3, 2, 5)
    """
    return -(-(box_side - 1) // chunk_side) + 1


def cover(
    box_start_zyx: tuple[int, int, int],
    box_side: int,
    shape_zyx: tuple[int, int, int],
    chunk_side: int,
) -> Region:
    """The chunks that a box touches; the box may reach outside the volume.

    Args:
        box_start_zyx: first voxel of the box in the volume; negative where it reaches outside.
        box_side: voxels.
        shape_zyx: of the volume, voxels.
        chunk_side: voxels.
    """
    start = np.asarray(box_start_zyx, dtype=np.int64)
    first, last = start // chunk_side, (start + box_side - 1) // chunk_side
    grid = -(-np.asarray(shape_zyx, dtype=np.int64) // chunk_side)
    per_axis = chunks_per_axis(box_side, chunk_side)
    place = np.indices(tuple(last - first + 1)).reshape(3, -1)
    chunk = place + first[:, None]
    inside = np.all((chunk >= 0) & (chunk < grid[:, None]), axis=0)
    return Region(
        origin_zyx=(start - first * chunk_side).astype(np.float64),
        places=np.ravel_multi_index(tuple(place), (per_axis,) * 3),
        chunks=np.where(inside, _c_order(chunk, grid), OUTSIDE),
    )


def coalesce(
    offsets: Int64[ndarray, " n"],
    nbytes: Int32[ndarray, " n"],
    max_gap: int = MAX_GAP,
    max_range: int = MAX_RANGE,
) -> list[ByteRange]:
    """Few byte ranges that hold all pieces, each piece whole in one of them.

    Args:
        offsets: start of each piece in the file; any order.
        nbytes: its length, more than 0.
        max_gap: neighbours at most this far apart share a range.
        max_range: a range grows no longer than this, unless one piece is.
    """
    order = np.argsort(offsets, kind="stable")
    starts = offsets[order]
    stops = np.maximum.accumulate(starts + nbytes[order])
    breaks = np.flatnonzero(starts[1:] - stops[:-1] > max_gap) + 1
    ranges: list[ByteRange] = []
    for first, last in pairwise([0, *breaks.tolist(), len(order)]):
        # Close together all along: only the length ends a range. One step a range, not a piece.
        at = first
        while at < last:
            within = np.searchsorted(stops[at:last], starts[at] + max_range, side="right")
            end = at + max(1, int(within))
            pieces = tuple(order[at:end].tolist())
            ranges.append(ByteRange(start=int(starts[at]), stop=int(stops[end - 1]), pieces=pieces))
            at = end
    return ranges


def _c_order(position: Int64[ndarray, "3 n"], grid: Int64[ndarray, " 3"]) -> Int64[ndarray, " n"]:
    number: Int64[ndarray, " n"] = (position[0] * grid[1] + position[1]) * grid[2] + position[2]
    return number
