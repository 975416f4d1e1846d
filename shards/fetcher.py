"""Asks for ranges from any thread, most urgent first, a bounded number at once.

`Fetcher` runs a `RangeReader` in a thread with an event loop of its own. `FolderFetcher` reads a
local folder by a few threads instead: the page cache is several times faster than an event loop.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Protocol, runtime_checkable

from shards.bucket import settle
from shards.errors import ShardError
from shards.requests import FreshReader, RangeReader

IN_FLIGHT = 32
Ask = tuple[int, int, Future[memoryview], bool, str, int, int]
"""(priority, order of asking, answer, fresh, path, offset, bytes)"""


@runtime_checkable
class RangeFetcher(Protocol):
    """Gives ranges of objects, in the background."""

    def submit(
        self, path: str, offset: int, nbytes: int, priority: int = 0, *, fresh: bool = False
    ) -> Future[memoryview]:
        """Ask for ``nbytes`` bytes, at least 1, of object ``path`` from ``offset`` on.

        Args:
            path: of the object.
            offset: of the first byte.
            nbytes: how many.
            priority: the lowest number is read first; equal ones in the order of asking.
            fresh: from the storage itself, not from a cache in between.

        Returns:
            A future with the bytes, or the error of the reader. One that is cancelled before its
            turn is not asked for.

        Raises:
            ShardError: the fetcher is closed, or this process is a fork of the one that made it.
        """

    def close(self) -> None:
        """Cancel what is not answered, and free threads and connections. Again: nothing."""


@runtime_checkable
class Worker(Protocol):
    """What the threads of a fetcher hold: never the fetcher itself, which they would keep alive."""

    def put(self, ask: Ask) -> None:
        """Read it in its turn.

        Raises:
            ShardError: stopped, or in another process than it was made in.
        """

    def stop(self) -> None:
        """Cancel what is not answered, and end the threads. Again, or in a fork: nothing."""


class WorkerFetcher:
    """Hands what is asked for to a worker; see `RangeFetcher`.

    The worker ends with `close`, when the fetcher is dropped, or at the end of the program.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._order = itertools.count()
        # Also at the end of the program, and never with a reference to the fetcher.
        self._close = weakref.finalize(self, worker.stop)

    def submit(
        self, path: str, offset: int, nbytes: int, priority: int = 0, *, fresh: bool = False
    ) -> Future[memoryview]:
        """See `RangeFetcher`."""
        answer: Future[memoryview] = Future()
        self._worker.put((priority, next(self._order), answer, fresh, path, offset, nbytes))
        return answer

    def close(self) -> None:
        """See `RangeFetcher`."""
        self._close()


class Fetcher(WorkerFetcher):
    """A thread with an event loop that runs a reader; see `RangeFetcher`.

    The thread starts with the first `submit`.

    Args:
        reader: gives the ranges; it is closed with the fetcher.
        in_flight: ranges under way at once.
        new_loop: makes the event loop.
    """

    def __init__(
        self,
        reader: RangeReader,
        in_flight: int = IN_FLIGHT,
        *,
        new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        super().__init__(_LoopWorker(reader, in_flight, new_loop))


class _LoopWorker:
    """The `Worker` of a `Fetcher`."""

    def __init__(
        self,
        reader: RangeReader,
        in_flight: int,
        new_loop: Callable[[], asyncio.AbstractEventLoop],
    ) -> None:
        self._reader = reader
        self._fresh = reader.get_fresh if isinstance(reader, FreshReader) else reader.get_range
        self._in_flight = in_flight
        self._new_loop = new_loop
        self._lock = threading.Lock()
        self._heap: list[Ask] = []
        self._busy = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._woken = False
        self._pid = os.getpid()

    def put(self, ask: Ask) -> None:
        check_process(self._pid)
        with self._lock:
            if self._closed:
                raise ShardError("the fetcher is closed")
            heapq.heappush(self._heap, ask)
            if self._loop is None:
                self._start()
            if not self._woken:
                self._woken = True
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._begin)

    def stop(self) -> None:
        if os.getpid() != self._pid:
            return
        with self._lock:
            first, self._closed = not self._closed, True
            loop, thread = self._loop, self._thread
        if first and loop is not None:
            loop.call_soon_threadsafe(loop.stop)
        # The last reference may be dropped by the thread itself.
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _start(self) -> None:
        self._loop = self._new_loop()
        self._thread = threading.Thread(target=self._run, name="fetcher", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        assert self._loop is not None
        while not self._closed:
            try:
                self._loop.run_forever()
            except BaseException:
                # KeyboardInterrupt and SystemExit of a reader come through here. The request has
                # them too, and its caller gets them; the other requests go on.
                continue
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        with self._lock:
            waiting, self._heap = self._heap, []
        for ask in waiting:
            ask[2].cancel()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self._reader.close()
        await settle()
        await asyncio.get_running_loop().shutdown_default_executor()

    def _begin(self) -> None:
        """Start the most urgent of what is asked for, as far as there is room."""
        assert self._loop is not None
        self._woken = False
        while self._busy < self._in_flight:
            with self._lock:
                if not self._heap:
                    return
                _, _, answer, fresh, path, offset, nbytes = heapq.heappop(self._heap)
            if answer.set_running_or_notify_cancel():
                self._busy += 1
                get = self._fresh if fresh else self._reader.get_range
                task: asyncio.Task[memoryview] = self._loop.create_task(get(path, offset, nbytes))
                task.add_done_callback(partial(self._done, answer))

    def _done(self, answer: Future[memoryview], task: asyncio.Task[memoryview]) -> None:
        self._busy -= 1
        if task.cancelled():
            answer.set_exception(CancelledError())
        elif error := task.exception():
            answer.set_exception(error)
        else:
            answer.set_result(task.result())
        self._begin()


def check_process(pid: int) -> None:
    """Refuse to work in a fork of process ``pid``.

    Raises:
        ShardError: this is another process.
    """
    if os.getpid() != pid:
        raise ShardError(
            "a fetcher was used after a fork, which its threads do not survive; start processes "
            'with multiprocessing.get_context("spawn"), or open the dataset in each of them'
        )
