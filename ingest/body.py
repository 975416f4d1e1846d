"""The box around the patient: what is outside it is air, and need not be stored."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int16
from numpy import ndarray
from scipy import ndimage

from shards.schema import AIR_BELOW_HU

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""``[start, stop)`` for z, y, x."""

MARGIN_MM = 10.0
STRIDE_MM = 3.0
"""The body is found on a grid at least this fine, or on every voxel where those are larger."""
KEEP_SHARE = 0.1
"""Parts this large compared with the largest belong to the patient too: two legs, raised arms."""


def full_box(shape: tuple[int, ...]) -> Box:
    """The box of a whole volume."""
    z, y, x = shape
    return (0, z), (0, y), (0, x)


def body_box(hu: Int16[ndarray, "z y x"], spacing_zyx_mm: tuple[float, float, float]) -> Box:
    """Box of the patient with a margin; the whole volume if nothing in it is dense."""
    strides = [max(1, int(STRIDE_MM // spacing)) for spacing in spacing_zyx_mm]
    dense = hu[tuple(slice(None, None, stride) for stride in strides)] > AIR_BELOW_HU
    labels, n_parts = ndimage.label(dense)
    if n_parts == 0:
        return full_box(hu.shape)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = np.isin(labels, np.flatnonzero(sizes >= KEEP_SHARE * sizes.max()))
    box = []
    for axis, (stride, spacing) in enumerate(zip(strides, spacing_zyx_mm, strict=True)):
        others = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(kept.any(axis=others))
        # A part may reach up to the next grid point that it does not hold.
        margin = int(np.ceil(MARGIN_MM / spacing)) + stride - 1
        start = max(0, int(inside[0]) * stride - margin)
        stop = min(hu.shape[axis], int(inside[-1]) * stride + 1 + margin)
        box.append((start, stop))
    return box[0], box[1], box[2]
