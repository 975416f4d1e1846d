"""dev stub"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from shards.dataset import Dataset
from shards.stats import Stats
from shards.store import get_range


class PoolFetcher:
    def __init__(self, dataset: Dataset, n: int, stats: Stats) -> None:
        self._store = dataset.store
        self._pool = ThreadPoolExecutor(n)
        self._stats = stats

    def submit(
        self, path: str, offset: int, nbytes: int, priority: int, *, fresh: bool = False
    ) -> Future[memoryview]:
        self._stats.count(requests=1)
        return self._pool.submit(get_range, self._store, path, offset, nbytes)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def open_fetcher(
    dataset: Dataset, *, in_flight: int, cache_dir: Path | None, cache_bytes: int, stats: Stats
) -> PoolFetcher:
    return PoolFetcher(dataset, in_flight, stats)
