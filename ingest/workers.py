"""Runs tasks here, on local processes or on a Dask cluster; results come as they are ready."""

from __future__ import annotations

import itertools
import logging
import queue
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ingest.errors import IngestError

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")

WAITING_TASKS = 2
"""Tasks handed out per worker, one at work and one in wait: a large archive is not all queued."""
SPLIT_BELOW = 4
"""Tasks per worker below which they are split: with more, few workers are idle at the end."""
LOOK_S = 2.0
"""How often a run that waits for a result looks whether anyone is still at work on it."""
GONE_S = 60.0
"""A cluster without any worker for this long is given up: batch systems may restart them."""


@dataclass(frozen=True, kw_only=True)
class Split(Generic[T, P]):
    """How several workers share an item: its parts are done first, each wherever there is room."""

    task: Callable[[P], None]
    """Does a part and keeps the result where the item's own task finds it."""
    parts: Callable[[T], Sequence[P]]
    """None where an item is too little to be shared."""


def run_tasks(
    task: Callable[[T], R],
    items: Sequence[T],
    workers: int,
    scheduler: str | None = None,
    complaint: Callable[[], str] | None = None,
    split: Split[T, Any] | None = None,
) -> Generator[R, None, None]:
    """Apply ``task`` to every item; results come as they are ready.

    Close the iterator (``contextlib.closing``) where it may not be used up: local workers end, and
    what waits on a cluster is cancelled.

    Args:
        task: a function that worker processes can import.
        items: what to apply it to.
        workers: local processes to start; with one of them, or one item, the work is done here.
        scheduler: address of a running Dask scheduler, whose workers are used instead.
        complaint: run on each worker of that cluster first; says why it cannot do the work, or "".
        split: how to share out items that are too few for the workers.

    Raises:
        UsageError: no scheduler answers at that address, or its workers cannot do the work.
        IngestError: workers died, most likely for want of memory, or the scheduler did.
    """
    if not items:
        return
    shares = [len(split.parts(item)) if split else 0 for item in items]
    workers = min(workers, sum(max(1, share) for share in shares))
    if scheduler is not None:
        from ingest.cluster import join_cluster

        with join_cluster(scheduler, complaint) as client:
            yield from _spread(client, task, items, split)
    elif workers <= 1:
        yield from map(task, items)
    else:
        with _local_cluster(workers) as client:
            yield from _spread(client, task, items, split)


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
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        try:
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=0,
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                    preload=["ingest.deathwatch"],
                )
            )
            client = stack.enter_context(Client(cluster))
        except (RuntimeError, OSError) as exc:
            raise IngestError(
                f"the {workers} worker processes could not be started, or one died at once "
                "(see --workers); the same command goes on from here"
            ) from exc
        yield client


def _spread(
    client: Client, task: Callable[[T], R], items: Sequence[T], split: Split[T, Any] | None
) -> Iterator[R]:
    """Hand out a few tasks per worker of the cluster, and one more for each that comes back."""
    done: queue.SimpleQueue[Future] = queue.SimpleQueue()
    running: set[Future] = set()
    waiting = iter(items)
    workers = max(1, len(client.nthreads()))
    if len(items) >= SPLIT_BELOW * workers:
        split = None

    def hand_out(count: int) -> None:
        for item in itertools.islice(waiting, count):
            # Dask keeps the parts as long as the item's own task waits for them.
            parts = split.parts(item) if split else ()
            done_parts = [client.submit(split.task, p, pure=False) for p in parts] if split else []
            future = client.submit(_after, done_parts, task, item, pure=False)
            running.add(future)
            future.add_done_callback(done.put)

    try:
        hand_out(WAITING_TASKS * workers)
        while running:
            future = _next_done(client, done)
            running.discard(future)
            result = _result_of(future)
            hand_out(1)
            future.release()
            yield result
    finally:
        # On a cluster that others use, what nobody waits for any more is taken back. A task that
        # has begun cannot be: it ends with its shard, which the next run finds done.
        if running and client.status == "running":
            with suppress(Exception):
                client.cancel(list(running), force=True)


def _after(parts: Sequence[None], task: Callable[[T], R], item: T) -> R:
    """``task``, once Dask has all its parts done."""
    return task(item)


def _next_done(client: Client, done: queue.SimpleQueue[Future]) -> Future:
    """Wait for a task to end, as long as there is someone to end it.

    Raises:
        IngestError: there is not.
    """
    idle_since = None
    while True:
        with suppress(queue.Empty):
            return done.get(timeout=LOOK_S)
        if client.status != "running":
            raise _lost_scheduler()
        if _has_workers(client):
            idle_since = None
        elif idle_since is None:
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since > GONE_S:
            raise IngestError(
                f"the cluster has had no worker for {GONE_S:.0f} s; start workers, then run the "
                "same command again: finished shards are kept"
            )


def _has_workers(client: Client) -> bool:
    try:
        return bool(client.nthreads())
    except Exception as exc:  # whatever a connection that breaks just now raises
        raise _lost_scheduler() from exc


def _result_of(future: Future) -> Any:
    """What the task returned; what it raised is raised here.

    Raises:
        IngestError: its worker died, or the scheduler.
    """
    from asyncio import CancelledError as Cancelled
    from concurrent.futures import CancelledError

    from distributed.scheduler import KilledWorker

    try:
        return future.result()
    except KilledWorker as exc:
        raise IngestError(
            "a worker process died, most likely for want of memory; "
            "run again with fewer workers: finished shards are kept"
        ) from exc
    except (CancelledError, Cancelled) as exc:
        raise _lost_scheduler() from exc


def _lost_scheduler() -> IngestError:
    return IngestError(
        "lost the connection to the Dask scheduler; once it runs, the same command goes on from "
        "here: finished shards are kept"
    )
