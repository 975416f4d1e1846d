"""How view parameters travel to the graph: one float32 row a view, as DALI computes in float32.

A row is 12 numbers that place the source window in the slot's region (as the chosen resampler takes
them), whether the window is turned, the intensity parameters, the blur, and the noise with its
place in the bank. The arithmetic that needs float64 is done here.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from coralbay.draws import ViewDraws
from coralbay.rotation import rotation_matrices

Resampler = Literal["affine", "resize"]
"""DALI's ``warp_affine`` for every view, or its ``resize`` with a region of interest for those that
are not turned; the views are the same."""

N_WINDOW = 12
TURNED, LOW_HU, WIDTH_HU, GAMMA, GAIN, OFFSET = range(N_WINDOW, N_WINDOW + 6)
BLUR_SIGMA, NOISE_SD, NOISE_START = range(OFFSET + 1, OFFSET + 4)
N_PARAMS = NOISE_START + 3


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
    packed[:, :N_WINDOW] = _matrices(first, last, draws, sizes).reshape(-1, N_WINDOW)
    if resampler == "resize":
        straight = ~draws.turned
        packed[straight, 0:3], packed[straight, 3:6] = first[straight], last[straight]
    packed[:, TURNED] = draws.turned
    packed[:, LOW_HU] = draws.low_hu
    packed[:, WIDTH_HU] = draws.high_hu - draws.low_hu
    packed[:, GAMMA] = draws.gamma
    packed[:, GAIN] = draws.gain
    packed[:, OFFSET] = draws.offset
    packed[:, BLUR_SIGMA] = draws.blur_sigma
    packed[:, NOISE_SD] = draws.noise_sd
    packed[:, NOISE_START:] = draws.noise_start_zyx
    return packed


def _matrices(
    first: Float64[ndarray, "v 3"],
    last: Float64[ndarray, "v 3"],
    draws: ViewDraws,
    sizes: tuple[int, ...],
) -> Float64[ndarray, "v 3 4"]:
    """Output (x, y, z) to source (x, y, z), both with voxel i covering [i, i + 1)."""
    rotation = rotation_matrices(draws.angles_zyx)
    scale = (last - first) / np.asarray(sizes, dtype=np.float64)[:, None]
    from_centre = (first - last) / 2
    matrices = np.zeros((len(sizes), 3, 4))
    matrices[:, :, :3] = (rotation * scale[:, None, :])[:, ::-1, ::-1]
    # The first corner turned about the centre; exactly the corner where nothing is turned.
    moved = np.einsum("vij,vj->vi", rotation - np.eye(3), from_centre)
    matrices[:, :, 3] = (first + moved)[:, ::-1]
    return matrices
