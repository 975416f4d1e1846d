"""Where a visit's base box lies in its volume.

Boxes are weighted by foreground: of some drawn anywhere, one is taken with a probability that grows
with its share of chunks that are not air. They are drawn beyond the ends of the volume too, by a
third of their side, and pushed back inside: a voxel at an end would otherwise be in a box only when
the box starts at that very voxel. How far a box was pushed is its *lean*; the views inside it are
moved by as much, so that ends of volumes are seen by views and not by boxes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64
from numpy import ndarray

from shards.rng import BOX, uniforms

BOX_DRAWS = 8
"""Boxes drawn anywhere, of which one is taken."""
BEYOND = 3
"""A box is drawn up to its side divided by this beyond the ends of the volume."""

Triple: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Box:
    """A base box in its volume."""

    start_zyx: Triple
    """First voxel; negative where a short axis is padded."""
    lean_zyx: Triple
    """How far beyond that place it was drawn: negative before the volume, positive behind it."""


def draw_box(
    *,
    shape: Int32[ndarray, " 3"],
    side: int,
    air: Bool[ndarray, "gz gy gx"],
    chunk_side: int,
    at: tuple[int, int, int],
) -> Box:
    """Draw a box that touches a chunk which is not air, if there is one.

    Args:
        shape: of the volume, voxels.
        side: of the box, voxels; a shorter axis is padded, with the volume in the middle.
        air: which chunks hold no voxel above -500 HU.
        chunk_side: voxels.
        at: (seed, position, attempt) of the draw.
    """
    seed, index, attempt = at
    words = uniforms(seed, BOX, index, attempt, 3 * BOX_DRAWS + 4)
    drawn = _anywhere(shape, side, words[: 3 * BOX_DRAWS].reshape(-1, 3))
    start = _pushed_inside(drawn, shape, side)
    weights = np.cumsum(_foreground(start, side, air, chunk_side))
    if weights[-1]:
        chosen = int(np.searchsorted(weights, words[-4] * weights[-1], side="right"))
        return _box(start[chosen], drawn[chosen] - start[chosen])
    solid = np.argwhere(~air)
    if not len(solid):
        return _box(start[0], drawn[0] - start[0])
    chunk = solid[int(words[-4] * len(solid))]
    around = _around(shape, side, chunk, chunk_side, words[-3:])
    return _box(around, np.zeros(3, dtype=np.int64))


def _box(start: Int64[ndarray, " 3"], lean: Int64[ndarray, " 3"]) -> Box:
    z, y, x = start.tolist()
    dz, dy, dx = lean.tolist()
    return Box(start_zyx=(z, y, x), lean_zyx=(dz, dy, dx))


def _anywhere(
    shape: Int32[ndarray, " 3"], side: int, draws: Float64[ndarray, "n 3"]
) -> Int64[ndarray, "n 3"]:
    """Uniform over the places where the box fits, and beyond them at both ends.

    An axis shorter than the box has one place. The more it is padded there, the less a box lies
    beyond it: padding lets views reach the ends already.
    """
    room = np.maximum(shape - side, 0)
    padded = np.maximum(side - shape, 0)
    beyond = np.maximum(side // BEYOND - padded, 0)
    places: Int64[ndarray, "n 3"] = (draws * (room + 2 * beyond + 1)).astype(np.int64)
    places -= beyond + padded // 2
    return places


def _pushed_inside(
    drawn: Int64[ndarray, "n 3"], shape: Int32[ndarray, " 3"], side: int
) -> Int64[ndarray, "n 3"]:
    padding = np.maximum(side - shape, 0) // 2
    inside: Int64[ndarray, "n 3"] = np.clip(drawn, -padding, np.maximum(shape - side, -padding))
    return inside


def _foreground(
    start: Int64[ndarray, "n 3"], side: int, air: Bool[ndarray, "gz gy gx"], chunk_side: int
) -> Float64[ndarray, " n"]:
    """Share of the chunks that each box touches which is not air."""
    # Sums over all chunks before a corner, so that eight of them give the sum over a box.
    sums = np.zeros([n + 1 for n in air.shape], dtype=np.int64)
    sums[1:, 1:, 1:] = (~air).cumsum(0).cumsum(1).cumsum(2)
    first = np.maximum(start, 0) // chunk_side
    end = np.minimum(-(-(start + side) // chunk_side), air.shape)
    solid = np.zeros(len(start), dtype=np.int64)
    for corner in np.ndindex(2, 2, 2):
        z, y, x = np.where(corner, end, first).T
        solid += (-1) ** (3 - sum(corner)) * sums[z, y, x]
    share: Float64[ndarray, " n"] = solid / (end - first).prod(axis=1)
    return share


def _around(
    shape: Int32[ndarray, " 3"],
    side: int,
    chunk: ndarray,
    chunk_side: int,
    draw: Float64[ndarray, " 3"],
) -> Int64[ndarray, " 3"]:
    """Uniform over the places where the box fits and touches a chunk."""

    def start(length: int, number: int, u: float) -> int:
        if length < side:
            return -((side - length) // 2)
        first = max(0, number * chunk_side - side + 1)
        last = min(length - side, (number + 1) * chunk_side - 1)
        return first + int(u * (last - first + 1))

    return np.array(list(map(start, shape.tolist(), chunk.tolist(), draw.tolist())))
