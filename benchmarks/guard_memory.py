"""What memory the hot path takes for a set, and what it copies: exact, on every machine.

Two measures, neither of which knows the code: `Steps` sees every line of ours that takes new memory
from Python or numpy, also if it gives it back at once; `Writes` sees every operator of torch that
writes new memory. What neither sees is a copy between two arrays that both last, made by numpy.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.guard_flow import BATCH, VIEWS, VISITS, Way
from coralbay.views import ViewRecipe, ViewSpec
from shards.folder import read_file
from shards.stats import Stats
from shards.store import StoreReader, open_store
from train.data import StreamConfig
from train.loader.base import QUEUED_BATCHES, CTLoader
from train.loader.feed import Loaded, Loader
from train.loader.filling import DecodedFiller
from train.loader.ring import SlotRing
from train.loader.settings import LoaderConfig
from train.loader.stages import Recorder

LARGE = 64 * 1024
SLACK = 1024
"""Less than ``LARGE`` is bookkeeping, whose size differs between versions of Python; what a line
gives back of that in the same moment must not hide a large block."""
SETS = 8
BATCHES = 2
"""Batches of views handed over, after as many as fill the graph."""
OURS = tuple(
    f"{Path(__file__).parents[1] / name}{os.sep}" for name in ("shards", "coralbay", "train")
)
SMALL_VIEWS = ViewRecipe(
    global_=ViewSpec(size=64, extent=(48.0, 65.0), count=2),
    local=ViewSpec(size=40, extent=(24.0, 44.0), count=8),
    box_side=65,
)
"""Frozen, and small: what is handed over is a matter of counts, not of sizes."""


@contextmanager
def tracing() -> Iterator[None]:
    """Around everything that is followed by `Steps`.

    Not in `Steps` itself: Python 3.11 crashes when tracing stops while a thread of a library, such
    as one of DALI's, begins to call Python. So it starts before those threads and stops after them.
    """
    tracemalloc.start(1)
    try:
        yield
    finally:
        tracemalloc.stop()


class Steps:
    """Counts the lines of ours that take `LARGE` bytes or more, inside `tracing`.

    Between two lines, the most memory that was held at a time says what the line took, even if
    nothing of it is left. Only the thread that entered is followed line by line; others must rest.

    Attributes:
        count: such lines.
        nbytes: what they took, all together.
    """

    def __init__(self) -> None:
        self.count = self.nbytes = 0
        self._held = 0

    def __enter__(self) -> Steps:
        self._before = sys.gettrace()
        tracemalloc.reset_peak()
        self._held = tracemalloc.get_traced_memory()[0]
        sys.settrace(self._call)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.settrace(self._before)
        self._look()

    @property
    def units(self) -> int:
        """What was taken, in units of `LARGE`."""
        return round(self.nbytes / LARGE)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        self._look()
        return self._line if frame.f_code.co_filename.startswith(OURS) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        self._look()
        return self._line

    def _look(self) -> None:
        now, peak = tracemalloc.get_traced_memory()
        grown = peak - self._held
        if grown >= LARGE - SLACK:
            self.count += 1
            self.nbytes += grown
        tracemalloc.reset_peak()
        self._held = now


class Writes(TorchDispatchMode):
    """Counts what torch's operators write into memory that none of their inputs shares.

    Attributes:
        count: such operators.
        nbytes: what they wrote.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See torch."""
        result = func(*args, **(kwargs or {}))
        old = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            # An operator whose name ends in _ writes into its first input: a copy as well.
            inplace = func._schema.name.endswith("_")
            if inplace or tensor.untyped_storage().data_ptr() not in old:
                self.count += 1
                self.nbytes += tensor.nbytes
        return result


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def count_memory(way: Way) -> dict[str, int]:
    """New memory to plan, ask for, read and decode ``SETS`` sets, one after another."""
    with tracing(), _loader(way, VIEWS) as loader:
        asks = Recorder()
        planned = Steps()
        with planned:
            source = loader.inputs.source(asks, Stats())  # type: ignore[arg-type]
            visits = [loader.inputs.scheduler.visit(index, 0) for index in range(SETS)]
            for visit in visits:
                source.fetch(visit.item, visit.region)
        reading = _read(way, asks.ranges)
        decoding = _decode(loader, visits)
    read = sum(nbytes for _, _, nbytes in asks.ranges)
    return {
        "sets": SETS,
        "plan_blocks": planned.count,
        # What is read has to be somewhere; only what is taken beyond it counts.
        "read_extra_kib": max(0, round((reading.nbytes - read) / LARGE)) * LARGE // 1024
        if way.server is None
        else reading.units * LARGE // 1024,
        "decode_blocks": decoding.count,
        "decode_kib": decoding.units * LARGE // 1024,
    }


def _read(way: Way, ranges: list[tuple[str, int, int]]) -> Steps:
    """Read ranges, one after another, by what threads of the loader call."""
    store = open_store(str(way.url))
    steps = Steps()
    if store.folder is not None:
        for path, offset, nbytes in ranges:
            with steps:
                read_file(store.folder / path, offset, nbytes, path)
        return steps
    reader = StoreReader(store)

    async def read() -> None:
        for ask in ranges:
            await reader.get_range(*ask)
        await reader.close()

    with steps:
        asyncio.run(read())
    return steps


def _decode(loader: CTLoader, visits: list[Any]) -> Steps:
    steps = Steps()
    ring = SlotRing(n_slots=1, layout=loader.inputs.slot_layout)
    slot = ring.wait()
    with closing(loader.inputs.open_fetcher()) as fetcher:
        source = loader.inputs.source(fetcher, Stats())
        turn = Loader(source, DecodedFiller(loader.decoder), loader.views, loader.resampler)
        for number, visit in enumerate(visits):
            fetched = source.fetch(visit.item, visit.region)
            fetched.wait()
            if number == 0:
                turn.load(visit, fetched, slot)  # what is made once, on first use
            with steps:
                turn.load(visit, fetched, slot)
            fetched.release()
            source.done(visit.item)
    return steps


def count_views(way: Way) -> dict[str, int]:
    """New memory and copies to hand over batches of views that DALI makes on the CPU."""
    import train.loader.graph  # noqa: F401  # imports of megabytes are not traced

    with (
        tracing(),
        _loader(way, SMALL_VIEWS, "dali") as loader,
        closing(loader.inputs.open_fetcher()) as fetcher,
    ):
        renderer = loader.renderer(_decoded(loader, fetcher).__next__)
        counts = (SMALL_VIEWS.global_.count, SMALL_VIEWS.local.count)
        try:
            for _ in range(BATCHES):
                with Writes(), Steps():  # what is made once, on first use
                    renderer.render(counts)
            joined = loader.stats.counters().get("bytes_joined", 0)
            steps, writes = Steps(), Writes()
            for _ in range(BATCHES):
                with writes:
                    renderer.render(counts)
            joined = loader.stats.counters().get("bytes_joined", 0) - joined
            for _ in range(BATCHES):
                with steps:
                    renderer.render(counts)
        finally:
            renderer.close()
    return {
        "sets": BATCHES * BATCH,
        "handed_over_blocks": steps.count,
        "torch_writes": writes.count,
        "torch_bytes_written": writes.nbytes,
        "bytes_joined": joined,
    }


def _decoded(loader: CTLoader, fetcher: Any) -> Iterator[list[Loaded]]:
    """Decoded batches without end, at no cost."""
    ring = SlotRing(n_slots=QUEUED_BATCHES * BATCH, layout=loader.inputs.slot_layout)
    source = loader.inputs.source(fetcher, Stats())
    turn = Loader(source, DecodedFiller(loader.decoder), loader.views, loader.resampler)
    loaded = []
    for index in range(QUEUED_BATCHES * BATCH):
        visit, slot = loader.inputs.scheduler.visit(index, 0), ring.wait()
        turn.load(visit, source.fetch(visit.item, visit.region), slot)
        loaded.append(Loaded(visit=visit, slot=slot))
    batches = [loaded[a:b] for a, b in pairwise(range(0, len(loaded) + 1, BATCH))]
    while True:
        yield from batches


def _loader(way: Way, views: ViewRecipe, loader: Any = "reference") -> CTLoader:
    config = LoaderConfig(
        batch_size=BATCH,
        visits=VISITS,
        threads=2,
        loader=loader,
        stream=StreamConfig(mode=way.mode, feed="threads"),  # type: ignore[arg-type]
    )
    return CTLoader(way.url, views, config)
