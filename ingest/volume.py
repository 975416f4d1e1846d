"""A CT volume in memory: HU on a grid, with the affine that places it in the patient."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One volume as read, before any resampling.

    Attributes:
        hu: Hounsfield units, (z, y, x) as stored: slices in spatial order, then rows, then columns.
            Padding is already -1024; nothing else is clipped or rounded.
        affine: (z, y, x, 1) to RAS mm. Any orthogonal axes, in any order and direction.
        geometry: verdict of the geometry check, e.g. ``uniform`` or ``oblique``.
        flags: stable codes of what was noticed and handled on the way.
        padding_fraction: share of voxels that were padding.
        regrid_error_hu: mean |dHU| over tissue at the true places of slices that were put on a
            regular grid; None where the slices are the grid.
    """

    hu: Float32[ndarray, "z y x"]
    affine: Float64[ndarray, "4 4"]
    geometry: str = "uniform"
    flags: tuple[str, ...] = field(default=())
    padding_fraction: float = 0.0
    regrid_error_hu: float | None = None

    @property
    def spacing_mm(self) -> Float64[ndarray, " 3"]:
        """Distance between neighbours along each stored axis, mm."""
        spacing: Float64[ndarray, " 3"] = np.linalg.norm(self.affine[:3, :3], axis=0)
        return spacing
