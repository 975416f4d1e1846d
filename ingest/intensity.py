"""Are these numbers HU? Pure checks and statistics on voxel arrays."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int16
from numpy import ndarray

from ingest.errors import Reason, SeriesError
from shards.schema import FILL_HU, HU_MAX, HU_MIN, HuStats

AIR_BELOW_HU = -200
"""Any patient lies in air, and skin, lung and bowel have voxels between; -200 is below all fat."""
MIN_SHARE = 0.001
"""Least share of voxels in air and in matter: whole scans measured 0.38 to 0.91 air, a wrist in a
wide field 0.009 matter, and images that are not HU no air at all."""
PLAUSIBLE_HU = (-3024, 6000)
"""Scanners write down to -3024 outside the circle; the densest voxel in the data is 3382."""
MAX_IMPLAUSIBLE_SHARE = 0.01
"""Metal is far rarer: above 3071 HU lay at most 0.00008 of a scan. Values scaled twice are not."""


def fill_low(hu: Float32[ndarray, "z y x"]) -> Float32[ndarray, "z y x"]:
    """A C-ordered copy in which everything below -1024 HU, which only padding is, became air.

    Before resampling, or -3024 would spread into the patient.
    """
    filled = np.empty(hu.shape, np.float32)
    np.maximum(hu, np.float32(FILL_HU), out=filled)
    return filled


def check_hu(hu: Float32[ndarray, "z y x"], padding_fraction: float) -> None:
    """Refuse voxels that cannot be HU. Call before `fill_low`.

    Args:
        hu: as read, padding at -1024.
        padding_fraction: share of voxels that are padding, which counts as no air.

    Raises:
        SeriesError: blank, not HU, or implausible.
    """
    low, high = float(hu.min()), float(hu.max())
    if low == high:
        raise SeriesError(Reason.BLANK, "all voxels are equal")
    check_range(hu)
    if _dense_share(hu) < MIN_SHARE:
        raise SeriesError(Reason.BLANK, f"nothing but air: all below {AIR_BELOW_HU} HU")
    check_air(hu, padding_fraction)


def check_range(hu: Float32[ndarray, "z y x"]) -> None:
    """Refuse voxels far outside what a scanner writes.

    Raises:
        SeriesError: implausible.
    """
    share = _implausible_share(hu)
    if share > MAX_IMPLAUSIBLE_SHARE:
        raise SeriesError(
            Reason.IMPLAUSIBLE_HU, f"{share:.1%} of the voxels are outside {PLAUSIBLE_HU} HU"
        )


def check_air(hu: Float32[ndarray, "z y x"], padding_fraction: float) -> None:
    """Refuse voxels among which no air was measured.

    Raises:
        SeriesError: not HU.
    """
    below_range = np.count_nonzero(hu < FILL_HU) / hu.size
    if 1 - _dense_share(hu) - below_range - padding_fraction < MIN_SHARE:
        low, high = float(hu.min()), float(hu.max())
        raise SeriesError(Reason.NOT_HU, f"no air: values from {low:.0f} to {high:.0f} are not HU")


def _dense_share(hu: Float32[ndarray, "z y x"]) -> float:
    return float(np.count_nonzero(hu >= AIR_BELOW_HU) / hu.size)


def _implausible_share(hu: Float32[ndarray, "z y x"]) -> float:
    bottom, top = PLAUSIBLE_HU
    low, high = float(hu.min()), float(hu.max())
    count = 0
    if high > top:
        count += int(np.count_nonzero(hu > top))
    if low < bottom:
        below = hu[hu < bottom]
        # One single low value is padding that nobody declared, e.g. -32768.
        if below.max() > low:
            count += below.size
    return count / hu.size


def to_stored(hu: Float32[ndarray, "z y x"]) -> tuple[Int16[ndarray, "z y x"], float]:
    """Round to 1 HU and clip to the stored range; also the share of voxels that this clipped."""
    rounded = np.rint(hu)
    clipped = int(np.count_nonzero((rounded < HU_MIN) | (rounded > HU_MAX))) / hu.size
    return np.clip(rounded, HU_MIN, HU_MAX).astype(np.int16), clipped


def hu_stats(hu: Int16[ndarray, "z y x"], clipped_fraction: float) -> HuStats:
    """Statistics of stored voxels, exact: 4096 values are counted, not sorted."""
    counts = np.bincount((hu.ravel().astype(np.int32) - HU_MIN), minlength=HU_MAX - HU_MIN + 1)
    values = np.arange(HU_MIN, HU_MIN + len(counts))
    present = values[counts > 0]
    cumulative = np.cumsum(counts)

    def percentile(percent: float) -> float:
        # Nearest-rank: the least value that at least this share of voxels does not exceed.
        rank = max(1, int(np.ceil(percent / 100 * hu.size)))
        return float(values[np.searchsorted(cumulative, rank)])

    return HuStats(
        min=int(present[0]),
        max=int(present[-1]),
        mean=float((counts * values).sum() / hu.size),
        p01=percentile(1),
        p50=percentile(50),
        p99=percentile(99),
        clipped_fraction=clipped_fraction,
    )
