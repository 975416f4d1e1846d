"""Reads ranges of files in a local folder by a few threads."""

from __future__ import annotations

import heapq
import os
import threading
from pathlib import Path
from random import Random

from shards.attempts import Attempts, patiently
from shards.errors import ShardError
from shards.fetcher import Ask, WorkerFetcher, check_process
from shards.folder import read_file
from shards.policy import DEFAULT_POLICY, RequestPolicy
from shards.stats import Stats

THREADS = 8
"""Four saturate the page cache; a file server and its latency need more."""


class FolderFetcher(WorkerFetcher):
    """Threads that read files; see `shards.fetcher.RangeFetcher`.

    A read of a file cannot be cancelled, so there are no deadlines and no rivals here.

    Args:
        folder: where the files are.
        threads: at work at once.
        policy: how often a file server that fails is tried again.
        stats: counts ``requests``, ``answers``, ``bytes_wire``, ``retries``.
    """

    def __init__(
        self,
        folder: Path,
        threads: int = THREADS,
        policy: RequestPolicy = DEFAULT_POLICY,
        stats: Stats | None = None,
    ) -> None:
        self.stats = stats or Stats()
        super().__init__(_Threads(folder, threads, policy, self.stats))


class _Threads:
    """The `Worker` of a `FolderFetcher`."""

    def __init__(self, folder: Path, threads: int, policy: RequestPolicy, stats: Stats) -> None:
        self._folder = folder
        self._most = threads
        self._policy = policy
        self._stats = stats
        self._changed = threading.Condition()
        self._ending = threading.Event()
        self._heap: list[Ask] = []
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._pid = os.getpid()

    def put(self, ask: Ask) -> None:
        check_process(self._pid)
        with self._changed:
            if self._ending.is_set():
                raise ShardError("the fetcher is closed")
            heapq.heappush(self._heap, ask)
            if self._idle < len(self._heap) and len(self._threads) < self._most:
                self._start()
            self._changed.notify()

    def stop(self) -> None:
        if os.getpid() != self._pid:
            return
        self._ending.set()
        with self._changed:
            waiting, self._heap = self._heap, []
            self._changed.notify_all()
        for ask in waiting:
            ask[2].cancel()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _start(self) -> None:
        name = f"folder-fetcher-{len(self._threads)}"
        self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))
        self._threads[-1].start()

    def _run(self) -> None:
        while ask := self._next():
            if not ask[2].set_running_or_notify_cancel():
                continue
            try:
                data = self._read(*ask[4:])
            except BaseException as exc:
                ask[2].set_exception(exc)
            else:
                ask[2].set_result(data)

    def _next(self) -> Ask | None:
        with self._changed:
            self._idle += 1
            try:
                while not self._heap:
                    if self._ending.is_set():
                        return None
                    self._changed.wait()
                return heapq.heappop(self._heap)
            finally:
                self._idle -= 1

    def _read(self, path: str, offset: int, nbytes: int) -> memoryview:
        jitter = Random(os.urandom(8))
        attempts = Attempts(self._policy, f"{self._folder}/{path}", self._stats, jitter)

        def attempt() -> memoryview:
            if self._ending.is_set():
                raise ShardError("the fetcher is closed")
            self._stats.count(requests=1)
            return read_file(self._folder / path, offset, nbytes, path)

        data = patiently(attempt, attempts, sleep=self._ending.wait)
        self._stats.count(answers=1, bytes_wire=nbytes)
        return data
