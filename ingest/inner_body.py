"""HU without air: a small field inside the body, known by its fat and its muscle.

Two peaks at their places fix a scale and an offset: fat near -100 HU, muscle and organs near 50.
Values in another unit, shifted by 1024, doubled, windowed to a picture or normalised to a mean of 0
do not have them. Measured on boxes cut out of real series (below): abdomen and pelvis pass if their
fat has a peak of its own; heads and livers without fat in the field do not, and are refused.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

_BIN_HU = 10
_FAT_HU, _SOFT_HU = (-125, -75), (0, 100)
"""Measured: fat -105 to -85, soft tissue 5 to 75 (95 with contrast)."""
_MIN_FAT, _MIN_SOFT = 0.02, 0.03
"""Share of the voxels within 10 HU of the peak. Measured: 0.024 to 0.095, and 0.05 to 0.14."""
_MAX_VALLEY = 0.7
"""Between the peaks, as a share of the lower one. Measured where fat shows: 0.11 to 0.66."""
_MIN_TISSUE = 0.8
"""Share within -200 to 300 HU. Measured: 0.82 and more."""
_MAX_AT_LIMIT = 0.002
"""Share at the least or the greatest value: a picture's window cuts off more. Measured: 0.0003."""


def is_inner_body(hu: Float32[ndarray, "z y x"]) -> bool:
    """Whether voxels without air are HU beyond doubt."""
    for limit in (hu.min(), hu.max()):
        if np.count_nonzero(hu == limit) > _MAX_AT_LIMIT * hu.size:
            return False
    edges = np.arange(-200, 300 + _BIN_HU, _BIN_HU)
    counts = np.histogram(hu, edges)[0] / hu.size
    if counts.sum() < _MIN_TISSUE:
        return False
    smooth = np.convolve(counts, np.full(3, 1 / 3), mode="same")
    fat, soft = (_peak(smooth, edges[:-1], *limits) for limits in (_FAT_HU, _SOFT_HU))
    valley = smooth[fat : soft + 1].min()
    return bool(
        smooth[fat] >= max(_MIN_FAT, smooth[fat - 1], smooth[fat + 1])
        and smooth[soft] >= _MIN_SOFT
        and valley <= _MAX_VALLEY * min(smooth[fat], smooth[soft])
    )


def _peak(counts: ndarray, lower_edges: ndarray, low: int, high: int) -> int:
    """The fullest bin between ``low`` and ``high``."""
    inside = np.flatnonzero((lower_edges >= low) & (lower_edges < high))
    return int(inside[counts[inside].argmax()])
