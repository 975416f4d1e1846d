"""Pure geometry: slice positions to a verdict and an affine, affines to axes. No files, no pixels.

DICOM gives positions in LPS mm (PS3.3 C.7.6.2.1.1); every affine here maps (z, y, x, 1) to RAS mm,
with z across slices, y down the rows of the image and x along its columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from ingest.errors import Reason

UNIT_TOLERANCE = 1e-3
"""How far direction cosines may be from orthonormal; real headers round them to 4-6 digits."""
AXIS_TOLERANCE = 1e-4
"""Direction cosines this near to an axis are that axis: 0.05 mm over a 500 mm field of view."""
MIN_POSITION_STEP_MM = 0.01
"""Slices nearer than this share a position, and spacings within this are equal."""
RELATIVE_STEP_TOLERANCE = 0.01
GRID_TOLERANCE = 0.25
"""Slices may be this share of a slice spacing off the regular grid they are put on (drift adds up
where each single step is within tolerance)."""
IN_PLANE_TOLERANCE = 0.25
"""Slice origins may wander this share of a pixel off the normal through the first one."""
SPACING_RANGE_MM = (0.05, 20.0)
"""No whole-body CT has voxels outside this: a header in metres or micrometres gives itself away."""
SPL_IN_RAS = np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
"""Rows are the unit vectors S, P, L in RAS."""
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Verdict on slices of one orientation.

    Attributes:
        reason: OK, or why these slices are no volume.
        detail: for a person.
        slice_of: slice number of each input, ascending along the normal; repeats share a number.
        n_slices: distinct positions.
        spacing_mm: mean distance between neighbours along the normal; None for one position.
        affine: (z, y, x, 1) to RAS mm; None unless ``reason`` is OK.
    """

    reason: Reason
    detail: str
    slice_of: Int64[ndarray, " n"]
    n_slices: int
    spacing_mm: float | None
    affine: Float64[ndarray, "4 4"] | None

    @property
    def repeated(self) -> bool:
        """Whether some position holds more than one slice."""
        return self.n_slices < len(self.slice_of)


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


def measure_stack(
    positions: Float64[ndarray, "n 3"],
    orientation: Float64[ndarray, " 6"],
    pixel_spacing: tuple[float, float],
) -> Stack:
    """Order slices along their normal and judge whether they are a regular volume.

    Args:
        positions: ImagePositionPatient of each slice, LPS mm, in any order.
        orientation: ImageOrientationPatient they share.
        pixel_spacing: between rows, between columns, mm.

    Raises:
        ValueError: the orientation is no orientation.
    """
    axes = unit_axes(orientation)
    along = positions @ axes[0]
    slice_of, first_of = _number_slices(along)
    order = positions[first_of]
    t = along[first_of]
    n = len(t)
    spacing = float((t[-1] - t[0]) / (n - 1)) if n > 1 else None
    reason, detail = _verdict(order, t, axes, min(pixel_spacing))
    affine = None
    if reason is Reason.OK and spacing is not None:
        affine = grid_affine(order[0], axes, (spacing, *pixel_spacing))
    return Stack(
        reason=reason,
        detail=detail,
        slice_of=slice_of,
        n_slices=n,
        spacing_mm=spacing,
        affine=affine,
    )


def _number_slices(along: Float64[ndarray, " n"]) -> tuple[Int64[ndarray, " n"], list[int]]:
    """Slice number of each position, and for each number the input that has it first."""
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order]) > MIN_POSITION_STEP_MM
    number = np.concatenate([[0], np.cumsum(steps)]).astype(np.int64)
    slice_of = np.empty_like(number)
    slice_of[order] = number
    firsts = np.flatnonzero(np.concatenate([[True], steps]))
    return slice_of, [int(order[i]) for i in firsts]


def _verdict(
    positions: Float64[ndarray, "n 3"],
    along: Float64[ndarray, " n"],
    axes: Float64[ndarray, "3 3"],
    pixel_mm: float,
) -> tuple[Reason, str]:
    """Judge distinct positions in order. Tilt is seen first: it is seen at any slice spacing."""
    n = len(along)
    if n < 2:
        return Reason.TOO_FEW_SLICES, "all images are at one position"
    travel = along - along[0]
    # Position of each slice's origin within the image plane, relative to the first one's.
    in_plane = (positions - positions[0]) @ axes[1:].T
    tolerance = max(MIN_POSITION_STEP_MM, IN_PLANE_TOLERANCE * pixel_mm)
    if np.abs(in_plane).max() > tolerance:
        slope = in_plane[-1] / travel[-1]
        if np.abs(in_plane - travel[:, None] * slope).max() > tolerance:
            return Reason.VARIABLE_SPACING, "slice origins move irregularly within the plane"
        degrees = float(np.degrees(np.arctan(np.linalg.norm(slope))))
        return Reason.TILTED, f"slices are sheared by {degrees:.1f} degrees (gantry tilt)"
    return _step_verdict(travel)


def _step_verdict(travel: Float64[ndarray, " n"]) -> tuple[Reason, str]:
    """Judge the distances between neighbours."""
    steps = np.diff(travel)
    n = len(travel)
    mean = travel[-1] / (n - 1)
    uneven = np.abs(steps - mean).max() > max(MIN_POSITION_STEP_MM, RELATIVE_STEP_TOLERANCE * mean)
    drift = np.abs(travel - mean * np.arange(n)).max()
    if not uneven and drift <= GRID_TOLERANCE * mean:
        return Reason.OK, ""
    smallest = steps.min()
    multiples = np.rint(steps / smallest)
    off_grid = np.abs(steps - multiples * smallest)
    if (off_grid <= np.maximum(MIN_POSITION_STEP_MM, RELATIVE_STEP_TOLERANCE * steps)).all():
        missing = int(multiples.sum()) - len(steps)
        if missing > 0:
            return (
                Reason.MISSING_SLICES,
                f"{missing} slice(s) missing at a spacing of {smallest:.3f} mm",
            )
    return (
        Reason.VARIABLE_SPACING,
        f"slice spacing varies from {smallest:.3f} to {steps.max():.3f} mm",
    )


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


def spacing_of(affine: Float64[ndarray, "4 4"]) -> tuple[float, float, float]:
    """Distances between neighbours along the three stored axes, mm."""
    z, y, x = np.linalg.norm(affine[:3, :3], axis=0)
    return float(z), float(y), float(x)


def plausible_spacing(spacing_mm: tuple[float, ...]) -> bool:
    """Whether every spacing is one that CT has."""
    low, high = SPACING_RANGE_MM
    return all(low <= spacing <= high for spacing in spacing_mm)


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
