"""How well a plan shuffles, in numbers that can be compared between settings and loaders."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64
from numpy import ndarray

from shards.order import repeated_in_groups
from shards.plan import Plan, PlanSamples


@dataclass(frozen=True, kw_only=True)
class Shuffle:
    """What two epochs of a plan, one after the other, are like.

    A perfect shuffle has no repeated subjects, ``file_order`` 0, ``neighbours_again`` near 0 and
    ``shards_per_batch`` 1.
    """

    batches: int
    """Of volumes, in the two epochs."""
    repeated_subjects: int
    """Volumes in a batch that already had one of their subject."""
    shards_per_batch: float
    """Mean number of shards that a batch draws from, over the most that it could."""
    file_order: float
    """|Correlation| of a volume's place in the dataset with its place in the first epoch."""
    neighbours_again: float
    """Share of volumes that follow the same volume in their lane in both epochs."""
    visit_distance: int
    """Steps between two visits of a volume; 0 when there is one."""
    epoch_distance_min: int
    """Fewest steps between the comings of a volume in the two epochs, its visits left out."""
    epoch_distance_median: float


def measure_shuffle(plan: Plan, samples: PlanSamples, epoch: int = 0) -> Shuffle:
    """Measure epochs ``epoch`` and the next; pure numbers, no data is read."""
    config, n = plan.config, plan.samples_per_epoch
    lanes, first = config.global_batch, epoch * n
    rows = np.concatenate([plan.epoch_rows(epoch), plan.epoch_rows(epoch + 1)])
    group = (first % lanes + np.arange(2 * n)) // lanes
    again = repeated_in_groups(samples.subject[rows], lanes, first % lanes)
    near, median = _epoch_distances(rows, n, lanes)
    return Shuffle(
        batches=int(group[-1]) + 1,
        repeated_subjects=int(again.sum()),
        shards_per_batch=_shards_per_batch(samples.shard_number[rows], group),
        file_order=_correlation(rows[:n]),
        neighbours_again=_neighbours_again(rows, n, lanes),
        visit_distance=config.spread if config.visits > 1 else 0,
        epoch_distance_min=near * config.visits,
        epoch_distance_median=median * config.visits,
    )


def _shards_per_batch(shard: Int32[ndarray, " n"], group: Int64[ndarray, " n"]) -> float:
    n_shards = int(shard.max()) + 1
    found = np.bincount(np.unique(group * n_shards + shard) // n_shards)
    most = np.minimum(np.bincount(group), len(np.unique(shard)))
    return float((found / most).mean())


def _correlation(rows: Int32[ndarray, " n"]) -> float:
    if len(rows) < 3 or np.all(rows == rows[0]):
        return 0.0
    return float(abs(np.corrcoef(np.arange(len(rows)), rows)[0, 1]))


def _neighbours_again(rows: Int32[ndarray, " n2"], n: int, lanes: int) -> float:
    """Compares the pairs (volume, the next of its lane) of both epochs."""
    first, second = (
        np.unique(part[:-lanes].astype(np.int64) << 32 | part[lanes:])
        for part in (rows[:n], rows[n:])
    )
    return len(np.intersect1d(first, second, assume_unique=True)) / max(1, len(first))


def _epoch_distances(rows: Int32[ndarray, " n2"], n: int, lanes: int) -> tuple[int, float]:
    """Groups between a volume's place in the one epoch and in the other: least and median."""
    last, place = np.full(int(rows.max()) + 1, -1), np.arange(n)
    last[rows[:n]] = place
    seen = last[rows[n:]]
    distance = (place + n - seen)[seen >= 0] // lanes
    if not len(distance):
        return 0, 0.0
    return int(distance.min()), float(np.median(distance))
