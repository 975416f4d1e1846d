"""The loader's stages one by one, and the machine's limits for the same bytes, to be timed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from queue import SimpleQueue
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Int16
from numpy import ndarray

from coralbay.views import ViewRecipe
from shards.codec import CRC_BYTES
from shards.decoding import ChunkDecoder
from shards.fetched import Bytes, Fetched
from shards.profiles import get_profile
from shards.stats import Stats
from shards.store import Store, get_range
from train.loader.base import QUEUED_BATCHES, CTLoader
from train.loader.feed import Loaded, Loader, Visit
from train.loader.filling import make_filler
from train.loader.ring import SlotRing

N_SETS = 16
"""Sets that stages and limits work on: enough to occupy the threads of a workstation."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What ``N_SETS`` sets take, exactly: the same on every machine."""

    requests: int
    bytes_wire: int
    bytes_ideal: int
    voxels_decoded: int
    voxels_viewed: int
    """Voxels that at least one view of their set reads."""


class StageBench:
    """Stages and limits over the first sets of a loader's plan. A context manager.

    Args:
        loader: what to take apart; it need not be running.

    Attributes:
        counts: what the sets take.
    """

    def __init__(self, loader: CTLoader) -> None:
        self._loader = loader
        self._visits = [loader.inputs.scheduler.visit(index, 0) for index in range(N_SETS)]
        self._profile = get_profile(loader.inputs.profile)
        stats = Stats()
        self._decoder = ChunkDecoder(loader.inputs.profile, stats)
        self._fetcher = loader.inputs.open_fetcher()
        config = loader.config
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="coralbay-bench")
        self._readers = ThreadPoolExecutor(
            config.stream.in_flight, thread_name_prefix="coralbay-read"
        )
        self._scratch: SimpleQueue[Int16[ndarray, "nz ny nx c c c"]] = SimpleQueue()
        for _ in range(config.threads):
            self._scratch.put(np.zeros(loader.inputs.chunks_shape, dtype=np.int16))
        self._fetched = self._fetch()
        self._decode()
        self._asked = _Recorder()
        source = loader.inputs.source(self._asked, stats)
        for visit in self._visits:
            source.fetch(visit.item, visit.region)
        self.counts = _counts(stats, loader.views, self._visits)

    def tasks(self) -> dict[str, Callable[[], object]]:
        """By name; stages stand next to their limits, so that both see the same weather."""
        return {
            "plan": self._plan,
            "read": self._read,
            "fetch": self._fetch,
            "memcpy": self._memcpy,
            "codec": self._codec,
            "decode": self._decode,
        }

    @contextmanager
    def graph(self) -> Iterator[Callable[[], None]]:
        """A task that makes one batch of views.

        Apart from the others, because it works ahead: right after a pause its batches seem free.
        """
        views, on_gpu = self._loader.views, self._loader.config.device == "gpu"
        renderer = self._loader.renderer(self._decoded_batches().__next__)

        def render() -> None:
            renderer.render((views.global_.count, views.local.count))
            if on_gpu:
                torch.cuda.synchronize()

        try:
            yield render
        finally:
            renderer.close()

    def __enter__(self) -> StageBench:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._fetcher.close()
        self._pool.shutdown()
        self._readers.shutdown()

    def _plan(self) -> None:
        for index in range(N_SETS):
            self._loader.inputs.scheduler.visit(index, 0)

    def _read(self) -> None:
        """Ask for the same ranges, as many at a time, and throw them away."""
        store = self._loader.dataset.store
        list(self._readers.map(lambda asked: _raw_read(store, *asked), self._asked.ranges))

    def _fetch(self) -> list[Fetched]:
        source = self._loader.inputs.source(self._fetcher, Stats())
        fetched = [source.fetch(visit.item, visit.region) for visit in self._visits]
        for one in fetched:
            one.wait()
        return fetched

    def _memcpy(self) -> None:
        """Copy as many bytes as decoding writes, from memory that no cache holds whole."""
        shape = self._loader.inputs.chunks_shape
        source = np.ones(shape, dtype=np.int16).reshape(-1, *shape[3:])

        def one(number: int) -> None:
            with self._slot() as slot:
                for place, _ in self._stored(number):
                    np.copyto(slot[place], source[place])

        self._each_number(one)

    def _codec(self) -> None:
        """Decompress without checksum, index or fill."""

        def one(number: int) -> None:
            with self._slot() as slot:
                for place, stored in self._stored(number):
                    self._profile.decompress(stored[:-CRC_BYTES], slot[place])

        self._each_number(one)

    def _decode(self) -> None:
        def one(number: int) -> None:
            with self._slot() as slot:
                out = slot.reshape(self._loader.inputs.chunks_shape)
                self._decoder.decode(self._fetched[number], out)

        self._each_number(one)

    def _each_number(self, one: Callable[[int], object]) -> None:
        list(self._pool.map(one, range(N_SETS)))

    def _stored(self, number: int) -> Iterator[tuple[int, memoryview]]:
        """Places in the slot and stored bytes of one set's chunks."""
        yield from self._fetched[number].stored()

    @contextmanager
    def _slot(self) -> Iterator[Int16[ndarray, "n c c c"]]:
        """Memory to write to, one a thread, as the ring would give."""
        slot = self._scratch.get()
        try:
            yield slot.reshape(-1, *slot.shape[3:])
        finally:
            self._scratch.put(slot)

    def _decoded_batches(self) -> Iterator[list[Loaded]]:
        """Decoded sets without end, at no cost: the graph must not wait for anything."""
        size = self._loader.config.batch_size
        ring = SlotRing(
            n_slots=size * QUEUED_BATCHES,
            layout=self._loader.inputs.slot_layout,
            pinned=self._loader.config.device == "gpu",
        )
        source = self._loader.inputs.source(self._fetcher, Stats())
        filler = make_filler(self._loader.decode_on, self._decoder, Stats())
        loader = Loader(source, filler, self._loader.views, self._loader.resampler)
        loaded = []
        for n in range(size * QUEUED_BATCHES):
            visit, slot = self._visits[n % N_SETS], ring.wait()
            loader.load(visit, self._fetched[n % N_SETS], slot)
            loaded.append(Loaded(visit=visit, slot=slot))
        ends = range(0, len(loaded) + 1, size)
        while True:
            yield from (loaded[start:stop] for start, stop in pairwise(ends))


class _Recorder:
    """Stands for a fetcher: notes what is asked for, and gives nothing."""

    def __init__(self) -> None:
        self.ranges: list[tuple[str, int, int]] = []

    def submit(
        self, path: str, offset: int, nbytes: int, priority: int = 0, *, fresh: bool = False
    ) -> Bytes:
        self.ranges.append((path, offset, nbytes))
        return Bytes()

    def close(self) -> None:
        pass


def voxels_viewed(views: ViewRecipe, visit: Visit) -> int:
    """Voxels of the base box in the bounds of the source window of at least one view."""
    seen = np.zeros((views.box_side,) * 3, dtype=np.bool_)
    lower, upper = visit.draws.bounds_zyx()
    first, last = np.maximum(0, np.floor(lower)).astype(int), np.ceil(upper).astype(int)
    for (z0, y0, x0), (z1, y1, x1) in zip(first.tolist(), last.tolist(), strict=True):
        seen[z0:z1, y0:y1, x0:x1] = True
    return int(seen.sum())


def _counts(stats: Stats, views: ViewRecipe, visits: list[Visit]) -> Counts:
    counted = stats.counters()
    return Counts(
        requests=counted["ranges"],
        bytes_wire=counted["bytes_asked"],
        bytes_ideal=counted["bytes_ideal"],
        voxels_decoded=counted["voxels_decoded"],
        voxels_viewed=sum(voxels_viewed(views, visit) for visit in visits),
    )


def _raw_read(store: Store, path: str, offset: int, nbytes: int) -> None:
    """The cheapest way to these bytes: the file system where there is one."""
    if store.folder is None:
        get_range(store, path, offset, nbytes)
        return
    with open(store.folder / path, "rb", buffering=0) as file:
        os.pread(file.fileno(), nbytes, offset)
