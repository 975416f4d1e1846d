"""Stored slices onto their regular grid, checked before and measured after."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from ingest.intensity import check_air, check_range
from ingest.regrid import Regridding, measured_slices, regrid, regrid_error
from shards.schema import FILL_HU


def regridded(
    hu: Float32[ndarray, "n rows columns"], padding_fraction: float, regridding: Regridding
) -> tuple[Float32[ndarray, "z y x"], float, float]:
    """The volume, the share of it that no scanner measured, and what regridding cost in HU.

    What lies below -1024 HU is air here already, or -3024 would spread between slices, and the grid
    is filled with air around them: what that could hide is checked first, on the slices as stored.

    Raises:
        SeriesError: the stored slices are no HU.
    """
    check_range(hu)
    check_air(hu, padding_fraction)
    below_range = np.count_nonzero(hu < FILL_HU) / hu.size
    np.maximum(hu, np.float32(FILL_HU), out=hu)
    measured = (1 - padding_fraction - below_range) * regridding.covered
    kept = measured_slices(hu)
    volume = regrid(hu, regridding, consume=True)
    return volume, 1 - measured, regrid_error(kept, volume, regridding)


def cost_in_words(detail: str, error_hu: float | None) -> str:
    """What is said of an accepted series: why it was regridded, and what that cost.

    >>> cost_in_words("slices are sheared by 18.5 degrees", 4.32)
    'slices are sheared by 18.5 degrees; regridded, mean 4.3 HU off at the true slice positions'
    """
    if error_hu is None:
        return ""
    return f"{detail}; regridded, mean {error_hu:.1f} HU off at the true slice positions"
