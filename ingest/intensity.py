"""Are these numbers HU? Pure checks and statistics on voxel arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int16, Int64
from numpy import ndarray

from ingest.errors import Reason, SeriesError
from ingest.inner_body import is_inner_body
from shards.schema import AIR_BELOW_HU, FILL_HU, HU_MAX, HU_MIN, HuStats

DENSE_FROM_HU = -200
"""Matter: below all fat, above air and lung."""
NO_AIR = "no_air"
"""Flag: a small field inside the body; its tissues show that it is HU."""
MIN_SHARE = 0.001
"""Least share of voxels in air and in matter: whole scans measured 0.38 to 0.91 air, a wrist in a
wide field 0.009 matter, and images that are not HU no air at all."""
PLAUSIBLE_HU = (-3024, 6000)
"""Scanners write down to -3024 outside the circle; the densest voxel in the data is 3382."""
MAX_IMPLAUSIBLE_SHARE = 0.01
"""Metal is far rarer: above 3071 HU lay at most 0.00008 of a scan. Values scaled twice are not."""


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Facts of a volume, found in one pass, plane by plane while each is in the cache."""

    low: float
    high: float
    dense_share: float
    """Of voxels at or above ``DENSE_FROM_HU``."""
    air_share: float
    """Of voxels below ``AIR_BELOW_HU``."""
    below_share: float
    """Of voxels below -1024."""


def fill_low(hu: Float32[ndarray, "z y x"]) -> Float32[ndarray, "z y x"]:
    """A C-ordered copy in which everything below -1024 HU, which only padding is, became air.

    Before resampling, or -3024 would spread into the patient.
    """
    filled = np.empty(hu.shape, np.float32)
    np.maximum(hu, np.float32(FILL_HU), out=filled)
    return filled


def check_hu(hu: Float32[ndarray, "z y x"], padding_fraction: float) -> tuple[str, ...]:
    """Refuse voxels that cannot be HU. Call before `fill_low`.

    Args:
        hu: as read, padding at -1024.
        padding_fraction: share of voxels that are padding, which counts as no air.

    Returns:
        Flags.

    Raises:
        SeriesError: blank, not HU, or implausible.
    """
    found = _measure(hu)
    if found.low == found.high:
        raise SeriesError(Reason.BLANK, "all voxels are equal")
    _check_range(hu, found)
    if found.dense_share < MIN_SHARE:
        raise SeriesError(Reason.BLANK, f"nothing but air: all below {DENSE_FROM_HU} HU")
    return () if _check_air(hu, found, padding_fraction) else (NO_AIR,)


def check_range(hu: Float32[ndarray, "z y x"]) -> None:
    """Refuse voxels far outside what a scanner writes.

    Raises:
        SeriesError: implausible.
    """
    _check_range(hu, _measure(hu))


def check_air(hu: Float32[ndarray, "z y x"], padding_fraction: float) -> bool:
    """Whether air was measured; refuse voxels without it, unless they are HU beyond doubt.

    Raises:
        SeriesError: not HU.
    """
    return _check_air(hu, _measure(hu), padding_fraction)


def _measure(hu: Float32[ndarray, "z y x"]) -> _Measured:
    dense = air = below = 0
    lows, highs = [], []
    for plane in hu:
        lows.append(float(plane.min()))
        highs.append(float(plane.max()))
        dense += int(np.count_nonzero(plane >= DENSE_FROM_HU))
        air += int(np.count_nonzero(plane < AIR_BELOW_HU))
        if lows[-1] < FILL_HU:
            below += int(np.count_nonzero(plane < FILL_HU))
    return _Measured(
        low=float(np.min(lows)),
        high=float(np.max(highs)),
        dense_share=dense / hu.size,
        air_share=air / hu.size,
        below_share=below / hu.size,
    )


def _check_range(hu: Float32[ndarray, "z y x"], found: _Measured) -> None:
    share = _share_outside(hu, found.low, found.high)
    if share > MAX_IMPLAUSIBLE_SHARE:
        raise SeriesError(
            Reason.IMPLAUSIBLE_HU, f"{share:.1%} of the voxels are outside {PLAUSIBLE_HU} HU"
        )


def implausible_share(hu: Float32[ndarray, ...]) -> float:
    """Share of voxels outside ``PLAUSIBLE_HU``; one single low value is padding."""
    return _share_outside(hu, float(hu.min()), float(hu.max()))


def _share_outside(hu: Float32[ndarray, ...], low: float, high: float) -> float:
    bottom, top = PLAUSIBLE_HU
    count = 0
    if high > top:
        count += int(np.count_nonzero(hu > top))
    if low < bottom:
        below = hu[hu < bottom]
        # That nobody declared, e.g. -32768.
        if below.max() > low:
            count += below.size
    return count / hu.size


def _check_air(hu: Float32[ndarray, "z y x"], found: _Measured, padding_fraction: float) -> bool:
    # Any patient lies in air; doubled or normalised values of a body reach -200, not this low.
    if found.air_share - found.below_share - padding_fraction >= MIN_SHARE:
        return True
    if is_inner_body(hu):
        return False
    raise SeriesError(
        Reason.NOT_HU, f"no air: values from {found.low:.0f} to {found.high:.0f} are not HU"
    )


def to_stored(
    hu: Float32[ndarray, "z y x"], least: float = -np.inf
) -> tuple[Int16[ndarray, "z y x"], float]:
    """Round to 1 HU and clip to the stored range; also the share of voxels that this clipped.

    Args:
        hu: the volume, as its strides may be.
        least: what is below this becomes this before, and does not count as clipped.
    """
    stored: Int16[ndarray, "z y x"] = np.empty(hu.shape, np.int16)
    clipped = 0
    for plane, out in zip(hu, stored, strict=True):  # what is in the cache is dealt with at once
        rounded = np.rint(np.maximum(plane, np.float32(least)))
        within = np.clip(rounded, HU_MIN, HU_MAX)
        clipped += int(np.count_nonzero(within != rounded))
        out[:] = within
    return stored, clipped / hu.size


def hu_counts(hu: Int16[ndarray, "z y x"]) -> Int64[ndarray, " values"]:
    """How many voxels have each value from ``HU_MIN`` to ``HU_MAX``."""
    counts = np.zeros(HU_MAX - HU_MIN + 1, np.int64)
    for plane in hu:
        counts += np.bincount(plane.ravel().astype(np.intp) - HU_MIN, minlength=len(counts))
    return counts


def hu_stats(hu: Int16[ndarray, "z y x"], clipped_fraction: float) -> HuStats:
    """Statistics of stored voxels, exact: 4096 values are counted, not sorted."""
    counts = hu_counts(hu)
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
