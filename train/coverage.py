"""How evenly views see a volume: whether its ends are seen as its middle is.

A voxel at the end of a long axis is in a view only if a box starts there and a view starts there in
the box. Drawn uniformly both are rare, and what lies at the ends of scans would hardly be seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from train.loader.visits import Scheduler, Visit

N_VISITS = 1000
"""Enough for two digits."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Views that see a voxel, counted along one axis at a time.

    Attributes:
        ends: views of a visit that reach the outermost voxel of an axis, mean over both ends.
        average: the same for the average voxel of that axis.
    """

    ends: tuple[float, float, float]
    average: tuple[float, float, float]

    @property
    def evenness(self) -> float:
        """Ends over average, of the axis where it is smallest; 0 where an end is never seen."""
        return min(end / mean for end, mean in zip(self.ends, self.average, strict=True))


def coverage_of(scheduler: Scheduler) -> Coverage:
    """Of the first visits of a plan; pure numbers, no data is read."""
    visits = (scheduler.visit(index, 0) for index in range(N_VISITS))
    shapes = scheduler.samples.shapes.astype(np.float64)
    return measure_coverage((visit, shapes[visit.item.sample]) for visit in visits)


def measure_coverage(visits: Iterable[tuple[Visit, Float64[ndarray, " 3"]]]) -> Coverage:
    """Count over some visits, each with the shape of its volume (z, y, x)."""
    ends, average, n = np.zeros(3), np.zeros(3), 0
    for visit, shape in visits:
        draws = visit.draws
        first = draws.start_zyx + np.asarray(visit.item.box_start_zyx)
        last = first + draws.extent_zyx
        # A voxel is seen when its centre is.
        ends += ((first <= 0.5) & (last >= 0.5)).sum(axis=0) / 2
        ends += ((first <= shape - 0.5) & (last >= shape - 0.5)).sum(axis=0) / 2
        inside = np.clip(last, 0, shape) - np.clip(first, 0, shape)
        average += inside.sum(axis=0) / shape
        n += 1
    z, y, x = (ends / n).tolist()
    mz, my, mx = (average / n).tolist()
    return Coverage(ends=(z, y, x), average=(mz, my, mx))
