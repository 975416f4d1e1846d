"""Pure geometry of one stack of slices: positions to an order, a verdict and a regular grid.

Tilt is what the positions say, never GantryDetectorTilt: that tag's sign is not to be relied on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from ingest.errors import Reason
from ingest.geometry import grid_affine, is_oblique, unit_axes

MIN_POSITION_STEP_MM = 0.01
"""Slices nearer than this share a position, and spacings within this are equal."""
RELATIVE_STEP_TOLERANCE = 0.01
GRID_TOLERANCE = 0.25
"""Slices may be this share of a slice spacing off the regular grid they are put on (drift adds up
where each single step is within tolerance)."""
IN_PLANE_TOLERANCE = 0.25
"""Slice origins may wander this share of a pixel off the line through the first and the last."""
MAX_GAP_RATIO = 3.0
"""A gap of more median spacings is anatomy that nobody scanned: nothing is made up across it."""
MAX_TILT_DEGREES = 45.0
"""Gantries lean 30 degrees at most; a greater shear is an error in the positions."""
TILTED, TILTED_VARIABLE = "tilted", "tilted_variable"
MISSING_SLICES, VARIABLE_SPACING = "missing_slices", "variable_spacing"
REGRIDDED = frozenset({TILTED, TILTED_VARIABLE, MISSING_SLICES, VARIABLE_SPACING})
"""Geometries of accepted stacks that are put on a regular grid; also the flags that say so."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Verdict on slices of one orientation.

    Attributes:
        reason: OK, or why these slices are no volume.
        detail: for a person; also of an accepted stack that has to be regridded.
        geometry: ``uniform`` or ``oblique`` where the slices are a grid; ``tilted``,
            ``missing_slices``, ``variable_spacing`` or ``tilted_variable`` where they can be put on
            one; else the reason's code, or empty for one position.
        slice_of: slice number of each input, ascending along the normal; repeats share a number.
        n_slices: distinct positions.
        spacing_mm: of the regular grid along the normal: the mean where spacings are equal, else
            the median (the lower one of two); None for one position.
        offsets_mm: (along the normal, down the rows, along the columns) of each slice from the
            first one; None where the slices are the grid, or are refused.
        affine: (z, y, x, 1) to RAS mm of the grid that begins with the first slice; None unless
            ``reason`` is OK.
    """

    reason: Reason
    detail: str
    geometry: str
    slice_of: Int64[ndarray, " n"]
    n_slices: int
    spacing_mm: float | None
    offsets_mm: Float64[ndarray, "n_slices 3"] | None
    affine: Float64[ndarray, "4 4"] | None

    @property
    def repeated(self) -> bool:
        """Whether some position holds more than one slice."""
        return self.n_slices < len(self.slice_of)


def measure_stack(
    positions: Float64[ndarray, "n 3"],
    orientation: Float64[ndarray, " 6"],
    pixel_spacing: tuple[float, float],
) -> Stack:
    """Order slices along their normal and judge whether they are, or can be made, a volume.

    Args:
        positions: ImagePositionPatient of each slice, LPS mm, in any order.
        orientation: ImageOrientationPatient they share.
        pixel_spacing: between rows, between columns, mm.

    Raises:
        ValueError: the orientation is no orientation.
    """
    axes = unit_axes(orientation)
    slice_of, first_of = _number_slices(positions @ axes[0])
    order = positions[first_of]
    offsets = (order - order[0]) @ axes.T
    reason, geometry, detail = _verdict(offsets, min(pixel_spacing))
    spacing = _grid_spacing(offsets[:, 0]) if len(order) > 1 else None
    affine = None
    if reason is Reason.OK and spacing is not None:
        affine = grid_affine(order[0], axes, (spacing, *pixel_spacing))
    regular = affine is not None and not geometry
    if affine is not None and regular:
        geometry = "oblique" if is_oblique(affine) else "uniform"
    if geometry in (MISSING_SLICES, VARIABLE_SPACING):
        offsets[:, 1:] = 0.0  # within tolerance, as on a regular grid: no pixel is interpolated
    return Stack(
        reason=reason,
        detail=detail,
        geometry=geometry,
        slice_of=slice_of,
        n_slices=len(order),
        spacing_mm=spacing,
        offsets_mm=None if affine is None or regular else offsets,
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


def _verdict(offsets: Float64[ndarray, "n 3"], pixel_mm: float) -> tuple[Reason, str, str]:
    """Reason, geometry (empty for a grid as it is) and detail of distinct positions in order."""
    if len(offsets) < 2:
        return Reason.TOO_FEW_SLICES, "", "all images are at one position"
    travel = offsets[:, 0]
    slope = _lean(offsets, pixel_mm)
    if slope is None:
        detail = "slice origins move irregularly within the plane"
        return Reason.VARIABLE_SPACING, str(Reason.VARIABLE_SPACING), detail
    degrees = float(np.degrees(np.arctan(slope)))
    if degrees > MAX_TILT_DEGREES:
        detail = f"slices are sheared by {degrees:.1f} degrees, more than any gantry tilts"
        return Reason.TILTED, str(Reason.TILTED), detail
    steps = np.diff(travel)
    largest, median = float(steps.max()), _median(steps)
    if largest > MAX_GAP_RATIO * median * (1 + RELATIVE_STEP_TOLERANCE):
        detail = f"a gap of {largest:.3f} mm where the median spacing is {median:.3f} mm"
        return Reason.MISSING_SLICES, str(Reason.MISSING_SLICES), detail
    geometry, detail = _spacing_verdict(travel)
    if slope > 0:
        sheared = f"slices are sheared by {degrees:.1f} degrees (gantry tilt)"
        detail = f"{sheared}; {detail}" if detail else sheared
        geometry = TILTED_VARIABLE if geometry else TILTED
    return Reason.OK, geometry, detail


def _lean(offsets: Float64[ndarray, "n 3"], pixel_mm: float) -> float | None:
    """Shift within the plane per mm along the normal; 0 within tolerance, None if irregular."""
    travel, in_plane = offsets[:, 0], offsets[:, 1:]
    tolerance = max(MIN_POSITION_STEP_MM, IN_PLANE_TOLERANCE * pixel_mm)
    if np.abs(in_plane).max() <= tolerance:
        return 0.0
    slope = in_plane[-1] / travel[-1]
    if np.abs(in_plane - travel[:, None] * slope).max() > tolerance:
        return None
    return float(np.linalg.norm(slope))


def _evenly_spaced(travel: Float64[ndarray, " n"]) -> bool:
    """Whether every slice is where the mean spacing puts it, but for rounding."""
    mean = travel[-1] / (len(travel) - 1)
    off = np.abs(np.diff(travel) - mean).max()
    drift = np.abs(travel - mean * np.arange(len(travel))).max()
    tolerance = max(MIN_POSITION_STEP_MM, RELATIVE_STEP_TOLERANCE * mean)
    return bool(off <= tolerance and drift <= GRID_TOLERANCE * mean)


def _spacing_verdict(travel: Float64[ndarray, " n"]) -> tuple[str, str]:
    """Name and detail of what is uneven in the distances between neighbours; empty if nothing."""
    if _evenly_spaced(travel):
        return "", ""
    steps = np.diff(travel)
    smallest = steps.min()
    multiples = np.rint(steps / smallest)
    off_grid = np.abs(steps - multiples * smallest)
    if (off_grid <= np.maximum(MIN_POSITION_STEP_MM, RELATIVE_STEP_TOLERANCE * steps)).all():
        missing = int(multiples.sum()) - len(steps)
        if missing > 0:
            detail = f"{missing} slice(s) missing at a spacing of {smallest:.3f} mm"
            return MISSING_SLICES, detail
    detail = f"slice spacing varies from {smallest:.3f} to {steps.max():.3f} mm"
    return VARIABLE_SPACING, detail


def _grid_spacing(travel: Float64[ndarray, " n"]) -> float:
    """The spacing of the regular grid that begins with the first slice."""
    if _evenly_spaced(travel):
        return float(travel[-1] / (len(travel) - 1))
    return _median(np.diff(travel))


def _median(steps: Float64[ndarray, " n"]) -> float:
    """The lower median: a spacing that is there, where half of the slices are 5 and half 10 mm."""
    return float(np.sort(steps)[(len(steps) - 1) // 2])
