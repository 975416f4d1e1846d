"""How view parameters travel to the graph: one float32 row a view, as DALI computes in float32.

A row is 12 numbers that place the source window in the slot's region (as the chosen resampler takes
them), then the intensity parameters. The arithmetic that needs float64 is done here.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from coralbay.views import ViewDraws

Resampler = Literal["affine", "resize"]
"""DALI's ``warp_affine``, or its ``resize`` with a region of interest; the views are the same."""

N_WINDOW = 12
LOW_HU, WIDTH_HU, GAMMA, GAIN, OFFSET = range(N_WINDOW, N_WINDOW + 5)
N_PARAMS = N_WINDOW + 5


def pack_params(
    draws: ViewDraws,
    origin_zyx: Float64[ndarray, " 3"],
    sizes: tuple[int, ...],
    resampler: Resampler,
) -> Float32[ndarray, "v p"]:
    """Pack the draws of one set.

    Args:
        draws: view parameters in the base box.
        origin_zyx: where the box starts in the slot's region, voxels.
        sizes: side of each view.
        resampler: which operator the graph resamples with.
    """
    start = draws.start_zyx + origin_zyx
    stop = start + draws.extent_zyx
    first, last = np.where(draws.flip_zyx, stop, start), np.where(draws.flip_zyx, start, stop)
    packed = np.zeros((len(sizes), N_PARAMS), dtype=np.float32)
    if resampler == "resize":
        packed[:, 0:3], packed[:, 3:6] = first, last
    else:
        packed[:, :N_WINDOW] = _matrices(first, last, sizes).reshape(-1, N_WINDOW)
    packed[:, LOW_HU] = draws.low_hu
    packed[:, WIDTH_HU] = draws.high_hu - draws.low_hu
    packed[:, GAMMA] = draws.gamma
    packed[:, GAIN] = draws.gain
    packed[:, OFFSET] = draws.offset
    return packed


def _matrices(
    first: Float64[ndarray, "v 3"], last: Float64[ndarray, "v 3"], sizes: tuple[int, ...]
) -> Float64[ndarray, "v 3 4"]:
    """Output (x, y, z) to source (x, y, z), both with voxel i covering [i, i + 1)."""
    scale = (last - first) / np.asarray(sizes, dtype=np.float64)[:, None]
    matrices = np.zeros((len(sizes), 3, 4))
    matrices[:, range(3), range(3)] = scale[:, ::-1]
    matrices[:, :, 3] = first[:, ::-1]
    return matrices
