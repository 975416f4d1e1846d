"""The plain reference of every augmentation: what the fast loader is compared with.

Written to be read, in NumPy and float32, one view at a time. The order: resample (crop, zoom,
mirror and turn in one pass), HU window to [0, 1], gamma, contrast and brightness, blur, noise, and
at the end a clip to [0, 1].
"""

from __future__ import annotations

from typing import SupportsFloat

import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64, Int16, Int64
from numpy import ndarray
from scipy import ndimage

from coralbay.draws import ViewDraws
from coralbay.noise import bank_side, noise_bank
from coralbay.rotation import rotation_matrices


def render_set(
    box: Int16[ndarray, "s s s"], sizes: tuple[int, ...], draws: ViewDraws
) -> list[Float32[ndarray, "_size _size _size"]]:
    """Render every view of a set, in the order of ``draws``."""
    bank = noise_bank(bank_side(sizes)) if draws.noise_sd.any() else None
    return [render_view(box, size, draws, view, bank) for view, size in enumerate(sizes)]


def render_view(
    box: Int16[ndarray, "s s s"],
    size: int,
    draws: ViewDraws,
    view: int,
    bank: Float16[ndarray, "n n n"] | None = None,
) -> Float32[ndarray, "size size size"]:
    """Make one view of its base box.

    Args:
        box: base box, HU, (z, y, x).
        size: side of the view, voxels.
        draws: parameters of the set.
        view: which of its rows.
        bank: the noise bank, if the view has noise.

    Returns:
        The view, (z, y, x), in [0, 1].
    """
    start, extent, flip = draws.start_zyx[view], draws.extent_zyx[view], draws.flip_zyx[view]
    if draws.turned[view]:
        rotation = rotation_matrices(draws.angles_zyx[view : view + 1])[0]
        hu = resample_turned(box, size, start, extent, flip, rotation)
    else:
        hu = resample(box, size, start, extent, flip)
    value = window(hu, draws.low_hu[view], draws.high_hu[view])
    value = jitter(value, draws.gamma[view], draws.gain[view], draws.offset[view])
    if draws.blur_sigma[view] > 0:
        value = blur(value, draws.blur_sigma[view])
    if draws.noise_sd[view] > 0:
        assert bank is not None, "a view with noise needs the bank"
        z, y, x = draws.noise_start_zyx[view].tolist()
        noise = bank[z : z + size, y : y + size, x : x + size].astype(np.float32)
        value = value + noise * np.float32(draws.noise_sd[view])
    clipped: Float32[ndarray, "size size size"] = np.clip(value, 0, 1)
    return clipped


def resample(
    box: Int16[ndarray, "s s s"],
    size: int,
    start: Float64[ndarray, " 3"],
    extent: Float64[ndarray, " 3"],
    flip: Bool[ndarray, " 3"],
) -> Float32[ndarray, "size size size"]:
    """Cut a source window out of the box and zoom it to a cube, HU.

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
    return hu


def resample_turned(
    box: Int16[ndarray, "s s s"],
    size: int,
    start: Float64[ndarray, " 3"],
    extent: Float64[ndarray, " 3"],
    flip: Bool[ndarray, " 3"],
    rotation: Float64[ndarray, "3 3"],
) -> Float32[ndarray, "size size size"]:
    """As ``resample``, from the source window turned about its centre: trilinear interpolation.

    An output voxel has an offset from the window's centre, as in ``resample``; it is taken at the
    centre plus ``rotation`` times that offset.
    """
    steps = (np.arange(size) + 0.5) / size - 0.5
    offsets = [
        (steps[::-1] if flip[axis] else steps).reshape([-1 if a == axis else 1 for a in range(3)])
        * extent[axis]
        for axis in range(3)
    ]
    centre = start + extent / 2 - 0.5
    places = np.stack(
        [
            centre[axis] + sum(rotation[axis, other] * offsets[other] for other in range(3))
            for axis in range(3)
        ]
    )
    hu: Float32[ndarray, "z y x"] = ndimage.map_coordinates(
        box, places, output=np.float32, order=1, mode="nearest"
    )
    return hu


def window(
    hu: Float32[ndarray, "z y x"], low: SupportsFloat, high: SupportsFloat
) -> Float32[ndarray, "z y x"]:
    """Map [low, high] HU to [0, 1]; what lies outside is clipped."""
    low32, high32 = np.float32(float(low)), np.float32(float(high))
    windowed: Float32[ndarray, "z y x"] = np.clip((hu - low32) / (high32 - low32), 0, 1)
    return windowed


def jitter(
    value: Float32[ndarray, "z y x"],
    gamma: SupportsFloat,
    gain: SupportsFloat,
    offset: SupportsFloat,
) -> Float32[ndarray, "z y x"]:
    """``value ** gamma * gain + offset``: the curve, then contrast and brightness."""
    curved = value ** np.float32(float(gamma))
    return curved * np.float32(float(gain)) + np.float32(float(offset))


def blur(value: Float32[ndarray, "z y x"], sigma: SupportsFloat) -> Float32[ndarray, "z y x"]:
    """Gaussian blur as DALI's ``gaussian_blur`` does it.

    The kernel, ``exp(-x² / 2 sigma²)`` at whole voxels, ends at ``ceil(3 sigma)`` and sums to 1.
    Beyond the border the view goes on mirrored about its outermost voxels (d c b | a b c d), which
    are not repeated.
    """
    sigma32 = np.float32(float(sigma))
    blurred: Float32[ndarray, "z y x"] = ndimage.gaussian_filter(
        value, float(sigma32), mode="mirror", radius=int(np.ceil(3 * sigma32))
    )
    return blurred


def _taps(
    size: int, side: int, start: float, extent: float, flip: bool
) -> tuple[Int64[ndarray, " size"], Int64[ndarray, " size"], Float32[ndarray, " size"]]:
    """For each output voxel of one axis: the two source voxels and the weight of the second."""
    at = start + (np.arange(size) + 0.5) * (extent / size) - 0.5
    at = np.clip(at[::-1] if flip else at, 0, side - 1)
    below = np.floor(at).astype(np.int64)
    above = np.minimum(below + 1, side - 1)
    return below, above, (at - below).astype(np.float32)
