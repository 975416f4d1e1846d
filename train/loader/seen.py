"""Which chunks of a base box its views see; the others need neither be read nor decoded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray

from coralbay.draws import ViewDraws

REACH = 0.5
"""Voxels that interpolation reaches beyond a window: a sample at its face lies between the centres
of the voxels on both sides."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The chunks of a slot: ``count`` an axis, ``side`` voxels each."""

    count: int
    side: int


def seen_chunks(
    draws: ViewDraws, origin_zyx: Float64[ndarray, " 3"], grid: Grid
) -> Bool[ndarray, " n"]:
    """Whether a view takes a voxel of each chunk, by position in the slot (C order).

    Args:
        draws: views in the base box.
        origin_zyx: where the box starts in the slot's region, voxels.
        grid: of the slot.
    """
    lower, upper = draws.bounds_zyx()
    first = np.floor((lower + (origin_zyx - REACH)) / grid.side)
    end = np.ceil((upper + (origin_zyx + REACH)) / grid.side)
    seen = np.zeros((grid.count,) * 3, dtype=np.bool_)
    ends = np.clip([first, end], 0, grid.count).astype(np.int64).tolist()
    for (z0, y0, x0), (z1, y1, x1) in zip(*ends, strict=True):
        seen[z0:z1, y0:y1, x0:x1] = True
    return seen.reshape(-1)
