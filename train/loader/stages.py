"""The loader's stages one by one, to be timed alone, each at any concurrency.

Every stage is run in a closed loop for some time: so many at work at once, each beginning the next
set as soon as it has done one. ``limits.py`` runs the machine's limits in the same way.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from queue import Empty, SimpleQueue
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Int16
from numpy import ndarray

from coralbay.views import ViewRecipe
from shards.decoding import ChunkDecoder
from shards.fetched import Bytes, Fetched
from shards.fetcher import RangeFetcher
from shards.folder_fetcher import THREADS as FOLDER_THREADS
from shards.folder_fetcher import FolderFetcher
from shards.regions import MAX_RANGE
from shards.stats import Stats
from train.loader.base import QUEUED_BATCHES, CTLoader
from train.loader.feed import Loaded, Loader
from train.loader.filling import make_filler
from train.loader.pace import Pace, in_this_thread, in_threads
from train.loader.ring import SlotRing
from train.loader.visits import Visit

N_SETS = 16
"""Sets that are counted, decoded and rendered: enough to occupy the threads of a workstation."""
N_VISITS = 512
"""Visits that are fetched before the first come again, if they are planned in time."""
PLANNING_S = 0.5
"""What planning them may take."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What ``N_SETS`` sets take, exactly: the same on every machine."""

    requests: int
    requests_ideal: int
    """One a set, and one more for each further 8 MiB of its touched chunks."""
    bytes_wire: int
    bytes_ideal: int
    voxels_decoded: int
    voxels_viewed: int
    """Voxels that at least one view of their set reads."""


class StageBench:
    """The stages over the first visits of a loader's plan. A context manager.

    Args:
        loader: what to take apart; it need not be running.

    Attributes:
        counts: what ``N_SETS`` sets take.
        fetched: the stored chunks of ``N_SETS`` sets.
        asked: the ranges that they are in: object, offset, bytes.
        in_flight: requests at a time that the loader is set to.
    """

    def __init__(self, loader: CTLoader) -> None:
        self.loader = loader
        self._visits = _plan_visits(loader)
        stats = Stats()
        self._decoder = ChunkDecoder(loader.inputs.profile, stats)
        self._slots: SimpleQueue[Int16[ndarray, "nz ny nx c c c"]] = SimpleQueue()
        self._folder = loader.dataset.store.folder
        remote = self._folder is None
        self.in_flight = loader.config.stream.in_flight if remote else FOLDER_THREADS
        self._fetcher = self._open_fetcher(self.in_flight)
        self._source = loader.inputs.source(self._fetcher, Stats())
        first = self._visits[:N_SETS]
        self.fetched = [self._source.fetch(visit.item, visit.region) for visit in first]
        for fetched in self.fetched:
            with self.slot() as slot:
                self._decoder.decode(fetched, slot)
        recorder = Recorder()
        source = loader.inputs.source(recorder, stats)
        for visit in first:
            source.fetch(visit.item, visit.region)
        self.asked = recorder.ranges
        self.counts = _counts(stats, loader.views, first, self.fetched)

    @property
    def slot_bytes(self) -> int:
        """What a set takes on the way to the GPU."""
        return 2 * math.prod(self.loader.inputs.chunks_shape)

    def plan(self, seconds: float) -> Pace:
        """Plan visits, in one thread, as the feed does."""
        return in_threads(1, seconds, lambda n: self.loader.inputs.scheduler.visit(n, 0))

    def fetch(self, seconds: float, in_flight: int) -> Pace:
        """Fetch visits in order and throw them away, with so many requests at a time.

        As many sets are asked for ahead as keep the requests under way. The first of them are not
        counted: the line has to fill.
        """
        ahead = 1 + int(in_flight / max(0.25, self.counts.requests / N_SETS))
        with closing(self._open_fetcher(in_flight)) as fetcher:
            line = self._fetched_in_order(fetcher, ahead)
            for _ in range(ahead):
                next(line)
            return in_this_thread(seconds, line.__next__)

    def _fetched_in_order(self, fetcher: RangeFetcher, ahead: int) -> Iterator[None]:
        """One set after the other, asked for as far ahead."""
        held_bytes = self.loader.config.stream.held_mib << 20
        waiting: deque[tuple[Visit, Fetched]] = deque()
        for number in itertools.count():
            visit = self._visits[number % len(self._visits)]
            if visit is self._visits[0]:
                # Volumes of the round before that have visits left would be there already.
                source = self.loader.inputs.source(fetcher, Stats())
            waiting.append((visit, source.fetch(visit.item, visit.region)))
            while len(waiting) > ahead or (waiting and source.held_bytes >= held_bytes):
                visit, fetched = waiting.popleft()
                fetched.wait()
                source.done(visit.item)
                yield

    def decode(self, seconds: float, threads: int) -> Pace:
        """Decode sets whose bytes are there, in so many threads."""

        def one(number: int) -> None:
            with self.slot() as slot:
                self._decoder.decode(self.fetched[number % N_SETS], slot)

        return in_threads(threads, seconds, one)

    @contextmanager
    def graph(self, threads: int | None = None) -> Iterator[Callable[[float], Pace]]:
        """What makes batches of views of decoded sets for some time.

        It works ahead, and right after a pause its batches seem free: they are not counted.

        Args:
            threads: of the graph on the CPU; None: as the settings say.
        """
        config, views = self.loader.config, self.loader.views
        renderer = self.loader.renderer(self._decoded_batches().__next__, threads=threads)

        def render() -> None:
            renderer.render((views.global_.count, views.local.count))
            if config.device == "gpu":
                torch.cuda.synchronize()

        def run(seconds: float) -> Pace:
            for _ in range(QUEUED_BATCHES):
                render()
            pace = in_this_thread(seconds, render)
            return Pace(sets=pace.sets * config.batch_size, seconds=pace.seconds)

        try:
            yield run
        finally:
            renderer.close()

    @contextmanager
    def slot(self) -> Iterator[Int16[ndarray, "nz ny nx c c c"]]:
        """Memory to decode to, one a thread, as the ring would give."""
        try:
            slot = self._slots.get_nowait()
        except Empty:
            slot = np.zeros(self.loader.inputs.chunks_shape, dtype=np.int16)
        try:
            yield slot
        finally:
            self._slots.put(slot)

    def __enter__(self) -> StageBench:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._fetcher.close()

    def _open_fetcher(self, in_flight: int) -> RangeFetcher:
        if self._folder is not None:
            return FolderFetcher(self._folder, in_flight, self.loader.dataset.store.policy)
        return self.loader.inputs.open_fetcher(in_flight)

    def _decoded_batches(self) -> Iterator[list[Loaded]]:
        """Decoded sets without end, at no cost: the graph must not wait for anything."""
        size = self.loader.config.batch_size
        ring = SlotRing(
            n_slots=size * QUEUED_BATCHES,
            layout=self.loader.inputs.slot_layout,
            pinned=self.loader.config.device == "gpu",
        )
        filler = make_filler(self.loader.decode_on, self._decoder, Stats())
        loader = Loader(self._source, filler, self.loader.views, self.loader.resampler)
        loaded = []
        for n in range(size * QUEUED_BATCHES):
            visit, slot = self._visits[n % N_SETS], ring.wait()
            loader.load(visit, self.fetched[n % N_SETS], slot)
            loaded.append(Loaded(visit=visit, slot=slot))
        ends = range(0, len(loaded) + 1, size)
        while True:
            yield from (loaded[start:stop] for start, stop in pairwise(ends))


def _plan_visits(loader: CTLoader) -> list[Visit]:
    """The first visits of the plan, as many as there is time for."""
    visits: list[Visit] = []
    began = time.perf_counter()
    while len(visits) < N_SETS or (
        len(visits) < N_VISITS and time.perf_counter() - began < PLANNING_S
    ):
        visits.append(loader.inputs.scheduler.visit(len(visits), 0))
    return visits


class Recorder:
    """Stands for a fetcher: notes what is asked for, and gives nothing."""

    def __init__(self) -> None:
        self.ranges: list[tuple[str, int, int]] = []

    def submit(
        self, path: str, offset: int, nbytes: int, priority: int = 0, *, fresh: bool = False
    ) -> Bytes:
        """See ``RangeFetcher``; the answer never comes."""
        self.ranges.append((path, offset, nbytes))
        return Bytes()

    def close(self) -> None:
        """Nothing to free."""


def voxels_viewed(views: ViewRecipe, visit: Visit) -> int:
    """Voxels of the base box in the bounds of the source window of at least one view."""
    seen = np.zeros((views.box_side,) * 3, dtype=np.bool_)
    lower, upper = visit.draws.bounds_zyx()
    first, last = np.maximum(0, np.floor(lower)).astype(int), np.ceil(upper).astype(int)
    for (z0, y0, x0), (z1, y1, x1) in zip(first.tolist(), last.tolist(), strict=True):
        seen[z0:z1, y0:y1, x0:x1] = True
    return int(seen.sum())


def _counts(stats: Stats, views: ViewRecipe, visits: list[Visit], fetched: list[Fetched]) -> Counts:
    counted = stats.counters()
    touched = [sum(len(chunk) for _, chunk in one.stored()) for one in fetched]
    return Counts(
        requests=counted["ranges"],
        requests_ideal=sum(max(1, -(-nbytes // MAX_RANGE)) for nbytes in touched),
        bytes_wire=counted["bytes_asked"],
        bytes_ideal=counted["bytes_ideal"],
        voxels_decoded=counted["voxels_decoded"],
        voxels_viewed=sum(voxels_viewed(views, visit) for visit in visits),
    )
