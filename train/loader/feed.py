"""The plan, made real: fetches and decodes the next items in plan order, ahead of the graph.

Bad samples are handled in plan order too. A sample that could not be read at position i is
quarantined in its lane, and every later visit of that lane to it is replaced; whatever the threads'
timing and the number of ranks, the same data give the same sequence.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float64
from numpy import ndarray

from coralbay.views import N_UNIFORMS, ViewDraws, ViewRecipe, draw_views
from shards.errors import ShardError
from shards.plan import Item, Plan, PlanSamples
from shards.rng import VIEWS, uniforms
from shards.stats import Stats
from train.errors import BadDataError
from train.loader.chunks import ChunkReader
from train.loader.params import Resampler, pack_params
from train.loader.regions import Region, cover
from train.loader.ring import Slot, SlotRing

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 16
"""Samples tried for one position before the run stops."""

Quarantined = tuple[int, str]
"""Lane and key of a sample that could not be read there."""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """Everything about one item except its voxels."""

    item: Item
    key: str
    region: Region
    draws: ViewDraws


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A visit whose chunks lie decoded in a slot."""

    visit: Visit
    slot: Slot


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """From a position in the plan to the visit it stands for. Pure; any position, in any order."""

    plan: Plan
    samples: PlanSamples
    views: ViewRecipe

    def visit(self, index: int, attempt: int) -> Visit:
        """The visit at a position; ``attempt`` counts the samples found unreadable there."""
        item = self.plan.item(index, attempt)
        shape = self.samples.shapes[item.sample].tolist()
        return Visit(
            item=item,
            key=self.samples.keys[item.sample],
            region=cover(
                item.box_start_zyx, self.views.box_side, tuple(shape), self.samples.chunk_side
            ),
            draws=draw_views(self.views, self._uniforms(item)),
        )

    def _uniforms(self, item: Item) -> Float64[ndarray, "v u"]:
        n = self.views.n_views
        flat = uniforms(self.plan.config.seed, VIEWS, item.index, item.attempt, n * N_UNIFORMS)
        return flat.reshape(n, N_UNIFORMS)


@dataclass(frozen=True, kw_only=True)
class _Pending:
    visit: Visit
    slot: Slot
    done: Future[None]


def load(
    reader: ChunkReader, sizes: tuple[int, ...], resampler: Resampler, visit: Visit, slot: Slot
) -> None:
    """Fetch and decode one visit into a slot, and put its view parameters beside it.

    Raises:
        ShardError, OSError: its sample cannot be read.
    """
    fetched = reader.fetch(visit.item.sample, visit.region)
    reader.decode(visit.region, fetched, slot.chunks)
    slot.params[:] = pack_params(visit.draws, visit.region.origin_zyx, sizes, resampler)


class Feed:
    """Loads the items of some positions, in order, a few ahead. Used from one thread.

    Args:
        scheduler: what stands at each position.
        reader: where voxels come from.
        ring: where they go; it bounds how far ahead the feed runs.
        indices: positions to load, without end.
        resampler: how view parameters are packed.
        threads: items fetched and decoded at a time.
        ahead: items in preparation at a time.
        quarantine: samples known to be bad.
        max_bad_samples: distinct samples that may turn out bad before the run stops.
        stats: where to count ``bad_samples`` and time the stage ``plan``.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        reader: ChunkReader,
        ring: SlotRing,
        indices: Iterable[int],
        resampler: Resampler,
        threads: int,
        ahead: int,
        quarantine: Iterable[Quarantined],
        max_bad_samples: int,
        stats: Stats,
    ) -> None:
        self._scheduler = scheduler
        self._ring = ring
        self._indices = iter(indices)
        self._ahead = ahead
        self._max_bad = max_bad_samples
        self._stats = stats
        self._pending: deque[_Pending] = deque()
        self._load = partial(load, reader, scheduler.views.sizes, resampler)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="coralbay-feed")
        self.quarantine: dict[Quarantined, int] = dict.fromkeys(quarantine, -1)
        """Bad samples, and the position at which each was found (-1: known before)."""

    def next(self) -> Loaded:
        """The next item, waiting for it if need be.

        Raises:
            BadDataError: more samples are unreadable than the budget allows.
        """
        self._fill()
        if not self._pending:
            self._submit(next(self._indices), self._ring.wait())
        pending = self._pending.popleft()
        while not self._succeeded(pending):
            visit = self._first_allowed(pending.visit.item.index, pending.visit.item.attempt + 1)
            pending = self._start(visit, pending.slot)
        return Loaded(visit=pending.visit, slot=pending.slot)

    def close(self) -> None:
        """Stop the threads; what is being prepared is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def _fill(self) -> None:
        while len(self._pending) < self._ahead:
            slot = self._ring.acquire()
            if slot is None:
                return
            self._submit(next(self._indices), slot)

    def _submit(self, index: int, slot: Slot) -> None:
        self._pending.append(self._start(self._first_allowed(index, 0), slot))

    def _first_allowed(self, index: int, attempt: int) -> Visit:
        """The visit at a position, replaced until its sample is not quarantined in its lane."""
        for tried in range(attempt, MAX_ATTEMPTS):
            with self._stats.timed("plan", "busy_s"):
                visit = self._scheduler.visit(index, tried)
            self._stats.add("plan", items=1)
            if (visit.item.lane, visit.key) not in self.quarantine:
                return visit
        raise BadDataError(
            f"position {index} of the plan: {MAX_ATTEMPTS} samples in a row are unreadable; "
            "check the dataset with `ingest verify`"
        )

    def _start(self, visit: Visit, slot: Slot) -> _Pending:
        return _Pending(visit=visit, slot=slot, done=self._pool.submit(self._load, visit, slot))

    def _succeeded(self, pending: _Pending) -> bool:
        """Wait for a load. False if its sample is bad, or was found so after the load began."""
        error = pending.done.exception()
        where = (pending.visit.item.lane, pending.visit.key)
        if where in self.quarantine:
            return False
        if error is None:
            return True
        if not isinstance(error, ShardError | OSError):
            raise error
        self._quarantine(where, pending.visit, error)
        return False

    def _quarantine(self, where: Quarantined, visit: Visit, error: BaseException) -> None:
        bad = {key for _, key in self.quarantine} | {visit.key}
        self.quarantine[where] = visit.item.index
        self._stats.count(bad_samples=1)
        logger.warning("sample %s cannot be read and is replaced: %s", visit.key, error)
        if len(bad) > self._max_bad:
            raise BadDataError(
                f"{len(bad)} samples cannot be read, more than the {self._max_bad} allowed; "
                f"the last: {visit.key} ({error}); check the dataset with `ingest verify`"
            ) from error
