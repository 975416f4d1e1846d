"""Where a visit's base box lies in its volume."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, Int32
from numpy import ndarray

from shards.rng import BOX, uniforms

BOX_DRAWS = 8
"""Boxes drawn anywhere, before one is drawn around a chunk that is not air."""

Triple: TypeAlias = tuple[int, int, int]


def draw_box(
    *,
    shape: Int32[ndarray, " 3"],
    side: int,
    air: Bool[ndarray, "gz gy gx"],
    chunk_side: int,
    at: tuple[int, int, int],
) -> Triple:
    """First voxel of a box (z, y, x) that touches a chunk which is not air, if there is one.

    Args:
        shape: of the volume, voxels.
        side: of the box, voxels; a shorter axis is padded, with the volume in the middle.
        air: which chunks hold no voxel above -500 HU.
        chunk_side: voxels.
        at: (seed, position, attempt) of the draw.
    """
    seed, index, attempt = at
    words = uniforms(seed, BOX, index, attempt, 3 * BOX_DRAWS + 4)
    draws = words[: 3 * BOX_DRAWS].reshape(-1, 3)
    for draw in draws:
        start = _anywhere(shape, side, draw)
        if not _all_air(start, side, air, chunk_side):
            return start
    solid = np.argwhere(~air)
    if not len(solid):
        return start
    chunk = solid[int(words[-4] * len(solid))]
    return _around(shape, side, chunk, chunk_side, words[-3:])


def _anywhere(shape: Int32[ndarray, " 3"], side: int, draw: Float64[ndarray, " 3"]) -> Triple:
    """Uniform over the places where the box fits."""
    starts = (
        int(u * (length - side + 1)) if length >= side else _centred(length, side)
        for length, u in zip(shape.tolist(), draw.tolist(), strict=True)
    )
    z, y, x = starts
    return z, y, x


def _around(
    shape: Int32[ndarray, " 3"],
    side: int,
    chunk: ndarray,
    chunk_side: int,
    draw: Float64[ndarray, " 3"],
) -> Triple:
    """Uniform over the places where the box fits and touches a chunk."""

    def start(length: int, number: int, u: float) -> int:
        if length < side:
            return _centred(length, side)
        first = max(0, number * chunk_side - side + 1)
        last = min(length - side, (number + 1) * chunk_side - 1)
        return first + int(u * (last - first + 1))

    z, y, x = map(start, shape.tolist(), chunk.tolist(), draw.tolist())
    return z, y, x


def _centred(length: int, side: int) -> int:
    return -((side - length) // 2)


def _all_air(start: Triple, side: int, air: Bool[ndarray, "gz gy gx"], chunk_side: int) -> bool:
    covering = tuple(slice(max(0, s) // chunk_side, -(-(s + side) // chunk_side)) for s in start)
    return bool(air[covering].all())
