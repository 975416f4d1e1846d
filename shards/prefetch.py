"""Results in order, made by a few threads ahead of their use: hides the latency of file servers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetch(
    function: Callable[[T], R], items: Iterable[T], threads: int, ahead: int | None = None
) -> Iterator[R]:
    """``function`` of each item, in the items' order.

    Args:
        function: runs in a thread; what it raises is raised here, at its item's turn.
        items: are taken as they are needed.
        threads: at work at once.
        ahead: results made or under way at most; twice the threads by default.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
    yield from in_order(pool, function, items, 2 * threads if ahead is None else ahead)


def in_order(
    pool: Executor, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """As `prefetch`, by an executor, which is shut down at the end."""
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
