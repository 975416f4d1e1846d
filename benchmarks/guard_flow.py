"""What the loader asks for, decodes and keeps while it runs: exact, whatever the machine does.

The loader works ahead in threads, so what it has done at some moment depends on the machine. What
it *will* have done when it has come to rest after so many batches does not: that is counted, twice,
and the difference is what the sets between took.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from coralbay.views import ViewRecipe, ViewSpec
from shards import folder_fetcher
from shards.policy import RequestPolicy
from shards.store import StoreReader
from shards.testing.emulator import Emulator
from train.data import StreamConfig
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig

VIEWS = ViewRecipe(
    global_=ViewSpec(size=96, extent=(72.0, 128.0), count=2),
    local=ViewSpec(size=48, extent=(32.0, 64.0), count=8),
    box_side=129,
)
"""Frozen: the recipes of training may change, and the guard's counters not with them."""
BATCH, VISITS = 4, 2
WARM, MEASURED = 6, 18
"""Batches: 24 sets an epoch, so that three epochs end among those measured."""
REST_S = 60.0
"""After so long without coming to rest, what there is is counted."""
COUNTED = (
    *("ranges", "bytes_asked", "chunks", "bytes_ideal", "voxels_decoded"),
    *("bytes_copied", "hedges", "retries"),
)
"""Counters of the loader that are taken as they are; 0 where nobody counts."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A loader to be counted."""

    mode: str
    url: str | Path
    server: Emulator | None = None
    """Counts what is asked of a bucket; a folder has no server."""


class GuardLoader(CTLoader):
    """Everything of the loader except the views, and no second request for a slow one."""

    def __init__(self, way: Way) -> None:
        config = LoaderConfig(
            batch_size=BATCH,
            visits=VISITS,
            loader="reference",
            stream=StreamConfig(mode=way.mode, feed="threads"),  # type: ignore[arg-type]
        )
        super().__init__(way.url, VIEWS, config)
        store = self.dataset.store
        store.policy = quiet(store.policy)
        open_source = self.inputs.source

        def source(*args: Any) -> Any:
            self.source = open_source(*args)
            return self.source

        self.inputs.source = source  # type: ignore[method-assign]

    def renderer(self, pull: Callable[[], list[Any]]) -> Any:
        """Takes batches, and makes nothing of them."""
        return _NoViews(pull)


def quiet(policy: RequestPolicy) -> RequestPolicy:
    """Without second requests for slow ones: how many there are depends on the machine."""
    return replace(policy, hedge_share=0.0)


class _NoViews:
    def __init__(self, pull: Callable[[], list[Any]]) -> None:
        self._pull = pull

    def render(self, counts: Sequence[int]) -> tuple[list[Any], None]:
        self._pull()
        return [], None

    def close(self) -> None:
        pass


def count(way: Way) -> dict[str, int]:
    """What ``MEASURED`` batches take, after some that fill the queues."""
    with GuardLoader(way) as loader:
        opening = loader.stats.counters().get("table_requests", 0)
        held = _take(loader, WARM)
        before = _totals(loader, way, WARM * BATCH)
        held = max(held, _take(loader, MEASURED))
        delivered = (WARM + MEASURED) * BATCH
        after = _totals(loader, way, delivered)
        fetched, decoded = (loader.stats.stages()[name].items for name in ("fetch", "decode"))
        found = {name: after[name] - before[name] for name in after}
    return {
        "sets": MEASURED * BATCH,
        **found,
        "table_requests": opening,
        "sets_asked_ahead": fetched - delivered,
        "sets_decoded_ahead": decoded - delivered,
        "bytes_held_peak": held,
    }


def _take(loader: GuardLoader, batches: int) -> int:
    """Take batches; the most stored bytes that were asked for ahead and kept after one."""
    most = 0
    for _ in range(batches):
        next(loader)
        most = max(most, loader.source.held_bytes)
    return most


def _totals(loader: CTLoader, way: Way, delivered: int) -> dict[str, int]:
    """Counters at rest: all that was asked for has come, and is decoded as far as there is room."""
    ready = delivered + loader.config.prefetch + loader.config.batch_size - 1

    def resting() -> bool:
        counted, stages = loader.stats.counters(), loader.stats.stages()
        return counted["answers"] >= counted["ranges"] and stages["decode"].items >= ready

    deadline = time.monotonic() + REST_S
    while not resting() and time.monotonic() < deadline:
        time.sleep(0.005)
    counted = loader.stats.counters()
    if way.server is None:
        gets, wire = counted["requests"], counted["bytes_wire"]
    else:
        sent = way.server.counters()
        gets, wire = sent.get, sent.bytes_sent
    return {"gets": gets, "bytes_on_wire": wire} | {name: counted.get(name, 0) for name in COUNTED}


class Gate:
    """Holds requests back until it is opened, and counts those that wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened = threading.Event()
        self._now = 0
        self.peak = 0

    def open(self) -> None:
        """Let everything through from now on."""
        self._opened.set()

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        with self._lock:
            self._now += 1
            self.peak = max(self.peak, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    @contextmanager
    def installed(self) -> Iterator[None]:
        """In front of every read of a folder, and of every request to a bucket."""
        read_file, get_range = folder_fetcher.read_file, StoreReader.get_range

        def read(*args: Any) -> Any:
            with self._one_more():
                self._opened.wait()
                return read_file(*args)

        async def get(*args: Any) -> Any:
            with self._one_more():
                while not self._opened.is_set():
                    await asyncio.sleep(0.005)
                return await get_range(*args)

        with (
            patch.object(folder_fetcher, "read_file", read),
            patch.object(StoreReader, "get_range", get),
        ):
            yield


SETTLED_S = 0.3
PATIENCE_S = 10.0


def peak_in_flight(way: Way, recorded: int | None) -> int:
    """Most requests under way at once, when none is answered before all have been sent.

    Args:
        way: which loader.
        recorded: what to wait for; with more, or none of it, what has come after some seconds.
    """
    gate = Gate()
    with gate.installed(), GuardLoader(way) as loader:
        waiting = threading.Thread(target=_next, args=(loader,), daemon=True)
        waiting.start()
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and gate.peak != recorded:
            seen = gate.peak
            time.sleep(2.0 if recorded is None else 0.005)
            if recorded is None and gate.peak == seen > 0:
                break
        time.sleep(SETTLED_S)  # one too many would come now
        peak = gate.peak
        gate.open()
        waiting.join()
    return peak


def _next(loader: CTLoader) -> None:
    with suppress(StopIteration):
        next(loader)
