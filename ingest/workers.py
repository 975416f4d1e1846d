"""Runs tasks here, on local processes or on a Dask cluster; results come as they are ready."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ingest.errors import IngestError, UsageError

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
R = TypeVar("R")

WAITING_TASKS = 2
"""Tasks handed out per worker, one at work and one in wait: a large archive is not all queued."""
CONNECT_S = 10
"""How long a scheduler may take to answer."""


def run_tasks(
    task: Callable[[T], R], items: Sequence[T], workers: int, scheduler: str | None = None
) -> Iterator[R]:
    """Apply ``task`` to every item; results come as they are ready.

    Args:
        task: a function that worker processes can import.
        items: what to apply it to.
        workers: local processes to start; with one of them, or one item, the work is done here.
        scheduler: address of a running Dask scheduler, whose workers are used instead.

    Raises:
        UsageError: no scheduler answers at that address, or its workers have several threads.
        IngestError: a worker process died, most likely for want of memory.
    """
    workers = min(workers, len(items))
    if scheduler is not None:
        with _join_cluster(scheduler) as client:
            yield from _spread(client, task, items)
    elif workers <= 1:
        yield from map(task, items)
    else:
        with _local_cluster(workers) as client:
            yield from _spread(client, task, items)


@contextmanager
def _join_cluster(address: str) -> Iterator[Client]:
    """A client of a cluster that someone else runs."""
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as exc:
        raise UsageError(
            f"--dask-scheduler {address}: no scheduler answers there; "
            "start one with `dask scheduler`, or leave the flag out"
        ) from exc
    with client:
        if any(threads != 1 for threads in client.nthreads().values()):
            # pydicom's settings are one a process, and results must not depend on timing.
            raise UsageError(
                f"--dask-scheduler {address}: its workers run several tasks in one process; "
                "start them with `dask worker --nthreads 1`"
            )
        yield client


@contextmanager
def _local_cluster(workers: int) -> Iterator[Client]:
    """Dask workers of our own, one thread each: decoding holds the interpreter lock."""
    import dask
    from distributed import Client, LocalCluster

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
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _spread(client: Client, task: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Hand out a few tasks per worker of the cluster, and one more for each that comes back."""
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    workers = max(1, len(client.nthreads()))
    waiting = iter(items)
    first = itertools.islice(waiting, WAITING_TASKS * workers)
    running = as_completed([client.submit(task, item, pure=False) for item in first])
    for future in running:
        try:
            result = future.result()
        except KilledWorker as exc:
            raise IngestError(
                "a worker process died, most likely for want of memory; "
                "run again with fewer workers: finished shards are kept"
            ) from exc
        for item in itertools.islice(waiting, 1):
            running.add(client.submit(task, item, pure=False))
        future.release()
        yield result
