"""Resampling onto a target spacing.

Separable: one small weight matrix an axis, so output spacing and origin are exact, and the triangle
kernel widens with the step (antialiasing) where the grid gets coarser. Measured against trilinear
sampling at 0.7 -> 1.5 mm: a wave above the new Nyquist limit keeps 18 % of its amplitude, not 74 %.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray
from scipy import ndimage, sparse

from ingest.geometry import SPL_IN_RAS, spacing_of
from shards.schema import FILL_HU

GRID_EPSILON = 1e-6
"""Keeps the last voxel where n - 1 steps of one spacing are a whole number of the other's."""


def target_size(n: int, spacing: float, target: float) -> int:
    """Voxels of the new grid: the first centre is kept, none lies beyond the last centre.

    >>> target_size(5, 3.0, 1.5)
    9
    """
    return int(np.floor((n - 1) * spacing / target + GRID_EPSILON)) + 1


def axis_weights(
    n_in: int, n_out: int, step: float, support: float
) -> Float32[ndarray, "n_out n_in"]:
    """Triangle kernel weights; rows sum to 1, also at the edges.

    Args:
        n_in: voxels of the old axis.
        n_out: voxels of the new axis.
        step: new spacing in old voxels.
        support: half width of the triangle in old voxels; 1 is linear interpolation.
    """
    position = np.minimum(np.arange(n_out) * step, n_in - 1)
    distance = np.abs(position[:, None] - np.arange(n_in)[None, :])
    weights = np.maximum(0.0, 1.0 - distance / support)
    weights /= weights.sum(axis=1, keepdims=True)
    out: Float32[ndarray, "n_out n_in"] = weights.astype(np.float32)
    return out


def resample_axes(
    hu: Float32[ndarray, "z y x"],
    spacing_zyx_mm: tuple[float, float, float],
    target_zyx_mm: tuple[float, float, float],
    *,
    antialias: bool,
    least: float = -np.inf,
) -> Float32[ndarray, "z2 y2 x2"]:
    """Resample an axis-aligned volume; the first voxel's centre stays where it is.

    Args:
        hu: the volume, as its strides may be.
        spacing_zyx_mm: of ``hu``.
        target_zyx_mm: of the result.
        antialias: widen the kernel where the grid gets coarser.
        least: what is below this becomes this before.
    """
    weights: list[Float32[ndarray, "n_out n_in"] | None] = []
    for n, spacing, target in zip(hu.shape, spacing_zyx_mm, target_zyx_mm, strict=True):
        step = target / spacing
        if abs(step - 1) * n < GRID_EPSILON:
            weights.append(None)
        else:
            support = max(1.0, step) if antialias else 1.0
            weights.append(axis_weights(n, target_size(n, spacing, target), step, support))
    return _apply(hu, weights, least)


def resample_oblique(
    hu: Float32[ndarray, "z y x"],
    affine: Float64[ndarray, "4 4"],
    target_zyx_mm: tuple[float, float, float],
    *,
    antialias: bool,
) -> tuple[Float32[ndarray, "z2 y2 x2"], Float64[ndarray, "4 4"]]:
    """Resample a rotated volume onto the S, P, L grid that bounds it, and that grid's affine.

    ``hu`` has to be stored with its axes nearest to S, P and L. Outside the volume is -1024.
    """
    spacing = spacing_of(affine)
    if antialias:
        smooth = [
            axis_weights(n, n, 1.0, target / old) if target > old else None
            for n, old, target in zip(hu.shape, spacing, target_zyx_mm, strict=True)
        ]
        hu = _apply(hu, smooth)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in hu.shape], indexing="ij")).reshape(3, -1)
    corners_spl = SPL_IN_RAS @ (affine[:3, :3] @ corners + affine[:3, 3:])
    low, high = corners_spl.min(axis=1), corners_spl.max(axis=1)
    target = np.array(target_zyx_mm)
    shape = np.floor((high - low) / target + GRID_EPSILON).astype(int) + 1
    grid = np.eye(4)
    grid[:3, :3] = SPL_IN_RAS.T * target
    grid[:3, 3] = SPL_IN_RAS.T @ low
    to_old = np.linalg.inv(affine) @ grid
    out = ndimage.affine_transform(
        hu,
        to_old[:3, :3],
        to_old[:3, 3],
        output_shape=tuple(shape.tolist()),
        order=1,
        mode="constant",
        cval=FILL_HU,
    )
    return out, grid + 0.0


def _apply(
    hu: Float32[ndarray, "z y x"],
    weights: list[Float32[ndarray, "_n_out _n_in"] | None],
    least: float = -np.inf,
) -> Float32[ndarray, "z2 y2 x2"]:
    """Multiply each axis by its matrix: within each plane first, as both shrink it, then along z.

    The matrices are sparse, 2 to 5 weights a row: sums run over these alone, in one fixed order.
    """
    along, down, across = [None if m is None else sparse.csr_array(m) for m in weights]
    depth, rows, columns = hu.shape
    rows = rows if down is None else down.shape[0]
    columns = columns if across is None else across.shape[0]
    planes: Float32[ndarray, "z y2 x2"] = np.empty((depth, rows, columns), np.float32)
    for plane, out in zip(hu, planes, strict=True):
        filled = np.maximum(plane, np.float32(least))
        shrunk = filled if down is None else down @ filled
        out[:] = shrunk if across is None else (across @ shrunk.T).T
    if along is None:
        return planes
    volume: Float32[ndarray, "z2 y2 x2"] = (along @ planes.reshape(depth, -1)).reshape(
        -1, rows, columns
    )
    return volume
