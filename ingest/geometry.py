"""Pure geometry: orientations to axes, axes to affines, affines to axes. No files, no pixels.

DICOM gives positions in LPS mm (PS3.3 C.7.6.2.1.1); every affine here maps (z, y, x, 1) to RAS mm,
with z across slices, y down the rows of the image and x along its columns.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

UNIT_TOLERANCE = 1e-3
"""How far direction cosines may be from orthonormal; real headers round them to 4-6 digits."""
AXIS_TOLERANCE = 1e-4
"""Direction cosines this near to an axis are that axis: 0.05 mm over a 500 mm field of view."""
SPACING_RANGE_MM = (0.05, 20.0)
"""No whole-body CT has voxels outside this: a header in metres or micrometres gives itself away."""
MAX_SIDE_MM = 3000.0
"""No CT table moves further, and no field of view is near it: what is longer has wrong spacings,
and resampling it would take all memory."""
SPL_IN_RAS = np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
"""Rows are the unit vectors S, P, L in RAS."""
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def unit_axes(orientation: Float64[ndarray, " 6"]) -> Float64[ndarray, "3 3"]:
    """LPS unit vectors (normal, down the rows, along the columns) of an ImageOrientationPatient.

    Raises:
        ValueError: the six numbers are no pair of orthogonal unit vectors.
    """
    along, down = orientation[:3], orientation[3:]
    lengths = np.array([np.linalg.norm(along), np.linalg.norm(down)])
    if not (np.abs(lengths - 1) < UNIT_TOLERANCE).all() or abs(along @ down) > UNIT_TOLERANCE:
        raise ValueError("direction cosines are not orthonormal")
    along = along / lengths[0]
    down = down - (down @ along) * along
    down = down / np.linalg.norm(down)
    return np.stack([np.cross(along, down), down, along])


def grid_affine(
    origin_lps: Float64[ndarray, " 3"],
    axes_lps: Float64[ndarray, "3 3"],
    spacing_zyx_mm: tuple[float, float, float],
) -> Float64[ndarray, "4 4"]:
    """Affine of a grid from its first voxel's centre, unit axes (rows) and spacings."""
    affine = np.eye(4)
    affine[:3, :3] = (axes_lps * np.asarray(spacing_zyx_mm)[:, None]).T
    affine[:3, 3] = origin_lps
    affine[:3] *= _LPS_TO_RAS[:, None]
    return affine + 0.0  # no negative zeros: equal affines are equal bytes


def shifted(affine: Float64[ndarray, "4 4"], start: tuple[int, ...]) -> Float64[ndarray, "4 4"]:
    """The affine of a sub-volume that begins at voxel ``start``."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.array(start, np.float64)
    return moved


def spacing_of(affine: Float64[ndarray, "4 4"]) -> tuple[float, float, float]:
    """Distances between neighbours along the three stored axes, mm."""
    z, y, x = np.linalg.norm(affine[:3, :3], axis=0)
    return float(z), float(y), float(x)


def plausible_spacing(spacing_mm: tuple[float, ...]) -> bool:
    """Whether every spacing is one that CT has."""
    low, high = SPACING_RANGE_MM
    return all(low <= spacing <= high for spacing in spacing_mm)


def plausible_extent(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> bool:
    """Whether a person, or a part of one, can have these sides."""
    sides = (n * spacing for n, spacing in zip(shape, spacing_mm, strict=True))
    return all(side <= MAX_SIDE_MM for side in sides)


def is_orthogonal(affine: Float64[ndarray, "4 4"]) -> bool:
    """Whether the axes are at right angles: the grid is neither sheared nor degenerate."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (lengths == 0).any():
        return False
    unit = affine[:3, :3] / lengths
    return bool(np.abs(unit.T @ unit - np.eye(3)).max() < UNIT_TOLERANCE)


def spl_axes(affine: Float64[ndarray, "4 4"]) -> tuple[tuple[int, int, int], tuple[bool, ...]]:
    """Which stored axis is nearest to S, P and L, and whether it runs the other way."""
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = SPL_IN_RAS @ unit  # row: S, P, L; column: stored axis
    best = max(
        ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)),
        key=lambda order: sum(abs(cosines[row, order[row]]) for row in range(3)),
    )
    return best, tuple(bool(cosines[row, best[row]] < 0) for row in range(3))


def orientation_code(affine: Float64[ndarray, "4 4"]) -> str:
    """Directions in which the stored axes increase, e.g. ``SPL``; the nearest ones if oblique.

    >>> orientation_code(np.diag([1.0, 2.0, 3.0, 1.0]))
    'RAS'
    """
    order, flips = spl_axes(affine)
    letters = [""] * 3
    for row, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        letters[axis] = ("SI", "PA", "LR")[row][flip]
    return "".join(letters)


def is_oblique(affine: Float64[ndarray, "4 4"]) -> bool:
    """Whether an axis is off the patient's axes by more than rounding."""
    unit = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    return bool(np.minimum(unit, np.abs(unit - 1)).max() > AXIS_TOLERANCE)
