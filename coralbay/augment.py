"""The plain reference of every augmentation: what the fast loader is compared with.

Written to be read, in NumPy and float32, one view at a time.
"""

from __future__ import annotations

from typing import SupportsFloat

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int16, Int64
from numpy import ndarray

from coralbay.views import ViewDraws


def render_view(
    box: Int16[ndarray, "s s s"],
    size: int,
    start: Float64[ndarray, " 3"],
    extent: Float64[ndarray, " 3"],
    flip: Bool[ndarray, " 3"],
    low: SupportsFloat,
    high: SupportsFloat,
    gain: SupportsFloat,
    offset: SupportsFloat,
    gamma: SupportsFloat,
) -> Float32[ndarray, "size size size"]:
    """Resample one view from its base box, then window and jitter it.

    Output voxel k of an axis is taken at ``start + (k + 0.5) * extent / size - 0.5``, in
    coordinates where voxel i's centre is i, by linear interpolation, clamped to the box's edge
    voxels; a mirrored axis counts k from its other end. There is no low-pass filter before
    shrinking: the DALI graph has none either.

    Args:
        box: base box, HU, (z, y, x).
        size: side of the view, voxels.
        start: corner of the source window per axis, voxels, where voxel i covers [i, i + 1).
        extent: sides of the source window, voxels.
        flip: axes to mirror.
        low: HU that becomes 0.
        high: HU that becomes 1; what lies outside the two is clipped.
        gain: contrast factor, after gamma.
        offset: brightness term, after gain.
        gamma: exponent on the windowed value.

    Returns:
        The view, (z, y, x), in [0, 1].
    """
    hu: Int16[ndarray, "z y x"] | Float32[ndarray, "z y x"] = box
    for axis in range(3):
        below, above, weight = _taps(
            size, box.shape[axis], float(start[axis]), float(extent[axis]), bool(flip[axis])
        )
        left = hu.take(below, axis=axis).astype(np.float32)
        right = hu.take(above, axis=axis).astype(np.float32)
        # Exactly `left` where the weight is 0, so that whole-voxel crops come through untouched.
        hu = left + np.expand_dims(weight, tuple({0, 1, 2} - {axis})) * (right - left)
    return adjust(hu, low, high, gain, offset, gamma)


def adjust(
    hu: Float32[ndarray, "z y x"],
    low: SupportsFloat,
    high: SupportsFloat,
    gain: SupportsFloat,
    offset: SupportsFloat,
    gamma: SupportsFloat,
) -> Float32[ndarray, "z y x"]:
    """Window HU to [0, 1], then gamma, contrast and brightness; the result is clipped to [0, 1]."""
    low32, high32 = np.float32(float(low)), np.float32(float(high))
    windowed = np.clip((hu - low32) / (high32 - low32), 0, 1)
    curved = windowed ** np.float32(float(gamma))
    adjusted: Float32[ndarray, "z y x"] = np.clip(
        curved * np.float32(float(gain)) + np.float32(float(offset)), 0, 1
    )
    return adjusted


def render_set(
    box: Int16[ndarray, "s s s"], sizes: tuple[int, ...], draws: ViewDraws
) -> list[Float32[ndarray, "_size _size _size"]]:
    """Render every view of a set, in the order of ``draws``."""
    return [
        render_view(
            box,
            size,
            draws.start_zyx[view],
            draws.extent_zyx[view],
            draws.flip_zyx[view],
            draws.low_hu[view],
            draws.high_hu[view],
            draws.gain[view],
            draws.offset[view],
            draws.gamma[view],
        )
        for view, size in enumerate(sizes)
    ]


def _taps(
    size: int, side: int, start: float, extent: float, flip: bool
) -> tuple[Int64[ndarray, " size"], Int64[ndarray, " size"], Float32[ndarray, " size"]]:
    """For each output voxel of one axis: the two source voxels and the weight of the second."""
    at = start + (np.arange(size) + 0.5) * (extent / size) - 0.5
    at = np.clip(at[::-1] if flip else at, 0, side - 1)
    below = np.floor(at).astype(np.int64)
    above = np.minimum(below + 1, side - 1)
    return below, above, (at - below).astype(np.float32)
