"""Runs tasks here or on local worker processes; results come back as they are ready."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ingest.errors import IngestError

T = TypeVar("T")
R = TypeVar("R")

WAITING_TASKS = 2
"""Tasks handed out per worker, one at work and one in wait: a large archive is not all queued."""


def run_tasks(task: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """Apply ``task`` to every item, on ``workers`` processes when there is more than one of both.

    Raises:
        IngestError: a worker process died, most likely for want of memory.
    """
    if min(workers, len(items)) <= 1:
        yield from map(task, items)
        return
    yield from _on_processes(task, items, min(workers, len(items)))


def _on_processes(task: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """Dask workers, one thread each: decoding holds the interpreter lock."""
    import dask
    from distributed import Client, LocalCluster, as_completed
    from distributed.scheduler import KilledWorker

    # Its account of every connection is nothing to a person who waits for shards.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    settings: dict[str, Any] = {
        # Forked children of a process with threads may deadlock.
        "distributed.worker.multiprocessing-method": "spawn",
        # A death for want of memory repeats itself: once more is enough.
        "distributed.scheduler.allowed-failures": 1,
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        waiting = iter(items)
        first = itertools.islice(waiting, WAITING_TASKS * workers)
        running = as_completed([client.submit(task, item, pure=False) for item in first])
        for future in running:
            try:
                result = future.result()
            except KilledWorker as exc:
                raise IngestError(
                    "a worker process died, most likely for want of memory; "
                    "run again with fewer --workers: finished shards are kept"
                ) from exc
            for item in itertools.islice(waiting, 1):
                running.add(client.submit(task, item, pure=False))
            future.release()
            yield result
