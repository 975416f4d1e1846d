"""Where a visit's base box lies in its volume.

Boxes are weighted by foreground: one drawn anywhere is taken with a probability that is its share
of chunks that are not air. They are drawn beyond the ends of the volume too, by a third of their
side, and pushed back inside: a voxel at an end would otherwise be in a box only when the box starts
at that very voxel. How far a box was pushed is its *lean*; the views inside it are moved by as
much, so that ends of volumes are seen by views and not by boxes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Int32
from numpy import ndarray

from shards.rng import BOX, uniforms

BOX_DRAWS = 8
"""Boxes drawn anywhere, before one is drawn around a chunk that is not air."""
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
    lengths = shape.tolist()
    words = uniforms(seed, BOX, index, attempt, 4 * (BOX_DRAWS + 1)).tolist()
    for n in range(0, 4 * BOX_DRAWS, 4):
        box = _anywhere(lengths, side, words[n : n + 3])
        if words[n + 3] < _foreground(box.start_zyx, side, air, chunk_side):
            return box
    solid = np.argwhere(~air)
    if not len(solid):
        return box
    chunk = solid[int(words[-1] * len(solid))].tolist()
    return _around(lengths, side, chunk, chunk_side, words[-4:-1])


def _anywhere(lengths: list[int], side: int, draw: list[float]) -> Box:
    """Uniform over the places where a box fits, and beyond them at both ends; then pushed inside.

    An axis shorter than the box has one place. The more it is padded there, the less a box lies
    beyond it: padding lets views reach the ends already.
    """
    starts, leans = [], []
    for length, u in zip(lengths, draw, strict=True):
        padding, room = max(0, side - length), max(0, length - side)
        beyond = max(0, side // BEYOND - padding)
        drawn = int(u * (room + 2 * beyond + 1)) - beyond
        inside = min(max(drawn, 0), room)
        starts.append(inside - padding // 2)
        leans.append(drawn - inside)
    return _box(starts, leans)


def _foreground(start: Triple, side: int, air: Bool[ndarray, "gz gy gx"], chunk_side: int) -> float:
    """Share of the chunks touched that is not air."""
    z, y, x = (slice(max(0, s) // chunk_side, -(-(s + side) // chunk_side)) for s in start)
    touched = air[z, y, x]
    return 1.0 - np.count_nonzero(touched) / touched.size


def _around(
    lengths: list[int], side: int, chunk: list[int], chunk_side: int, draw: list[float]
) -> Box:
    """Uniform over the places where the box fits and touches a chunk."""

    def start(length: int, number: int, u: float) -> int:
        if length < side:
            return -((side - length) // 2)
        first = max(0, number * chunk_side - side + 1)
        last = min(length - side, (number + 1) * chunk_side - 1)
        return first + int(u * (last - first + 1))

    return _box(list(map(start, lengths, chunk, draw)), [0, 0, 0])


def _box(start: list[int], lean: list[int]) -> Box:
    z, y, x = start
    dz, dy, dx = lean
    return Box(start_zyx=(z, y, x), lean_zyx=(dz, dy, dx))
