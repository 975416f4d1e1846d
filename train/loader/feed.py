"""The plan, made real: fetches and decodes the next items in plan order, ahead of the graph.

Fetching runs ahead of decoding, and decoding ahead of the graph; both are bounded.

Bad samples are handled in plan order too. A sample that could not be read at position i is
quarantined in its lane, and every later visit of that lane to it is replaced; whatever the threads'
timing, the way in and the number of ranks, the same data give the same sequence.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from coralbay.views import ViewRecipe
from shards.errors import CorruptShardError, ServiceError, ShardError
from shards.fetched import Fetched
from shards.sources import ChunkSource
from shards.stats import Stats
from train.errors import BadDataError
from train.loader.filling import SlotFiller
from train.loader.params import Resampler, pack_params
from train.loader.ring import FreeSlots
from train.loader.slots import Slot
from train.loader.visits import Scheduler, Visit
from train.loader.waits import Waits

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 16
"""Samples tried for one position before the run stops."""

Quarantined = tuple[int, str]
"""Lane and key of a sample that could not be read there."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A visit whose chunks lie decoded in a slot."""

    visit: Visit
    slot: Slot
    came_s: float = 0.0
    """When its stored bytes were there, by ``time.perf_counter``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fetching:
    visit: Visit
    fetched: Fetched
    waits: Waits


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pending:
    visit: Visit
    slot: Slot
    waits: Waits
    done: Future[None]


@dataclass(frozen=True, kw_only=True)
class FeedLimits:
    """How far a feed works ahead."""

    threads: int
    """Items decoded at a time."""
    ahead: int
    """Items decoded ahead, or being decoded."""
    fetch_ahead: int
    """Items asked for ahead of those."""
    held_bytes: int
    """Stored bytes asked for and kept, above which nothing more is asked for ahead."""
    max_bad_samples: int
    """Distinct samples that may turn out bad before the run stops."""


class Loader:
    """Turns what was fetched into the content of a slot. Thread-safe.

    Args:
        source: where damaged bytes are asked for again.
        filler: what puts chunks into a slot.
        views: what a set is.
        resampler: how view parameters are packed.
    """

    def __init__(
        self, source: ChunkSource, filler: SlotFiller, views: ViewRecipe, resampler: Resampler
    ) -> None:
        self._source = source
        self._filler = filler
        self._sizes = views.sizes
        self._resampler = resampler

    def load(self, visit: Visit, fetched: Fetched, slot: Slot) -> None:
        """Put one visit's chunks into a slot, and put its view parameters beside it.

        Raises:
            ShardError, OSError: its sample cannot be read.
        """
        try:
            self._filler.fill(fetched, slot)
        except CorruptShardError:
            # Damaged on the way, or in a cache: what the storage itself says now decides.
            again = self._source.fetch_again(visit.item, visit.region)
            self._filler.fill(again, slot)
        origin = visit.region.origin_zyx
        slot.params[:] = pack_params(visit.draws, origin, self._sizes, self._resampler)


class Feed:
    """Loads the items of some positions, in order, a few ahead. Used from one thread.

    Args:
        scheduler: what stands at each position.
        source: where stored chunks come from.
        loader: what makes voxels of them.
        ring: where those go.
        indices: positions to load, without end.
        limits: how far it works ahead.
        quarantine: samples known to be bad.
        stats: where to count ``bad_samples`` and ``held_full`` (times that ``held_bytes`` stopped
            it), and time the stage ``plan`` and what each set waits for (``Waits``).
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        source: ChunkSource,
        loader: Loader,
        ring: FreeSlots,
        indices: Iterable[int],
        limits: FeedLimits,
        quarantine: Iterable[Quarantined],
        stats: Stats,
    ) -> None:
        self._scheduler = scheduler
        self._source = source
        self._loader = loader
        self._ring = ring
        self._indices = iter(indices)
        self._limits = limits
        self._stats = stats
        self._fetching: deque[_Fetching] = deque()
        self._pending: deque[_Pending] = deque()
        self._pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="coralbay-feed")
        self._closed = False
        self.quarantine: dict[Quarantined, int] = dict.fromkeys(quarantine, -1)
        """Bad samples, and the position at which each was found (-1: known before)."""

    def next(self) -> Loaded:
        """The next item, waiting for it if need be.

        Raises:
            BadDataError: more samples are unreadable than the budget allows.
            ServiceError: the storage does not serve, or not us.
        """
        self._fill()
        if not self._pending:
            self._decode(self._ring.wait())
        pending = self._pending.popleft()
        while not self._succeeded(pending):
            self._source.done(pending.visit.item)
            visit = self._first_allowed(pending.visit.item.index, pending.visit.item.attempt + 1)
            pending = self._start(self._ask(visit), pending.slot)
        self._source.done(pending.visit.item)
        return Loaded(visit=pending.visit, slot=pending.slot, came_s=pending.waits.came_s)

    def close(self) -> None:
        """Stop the threads; what is being prepared is dropped."""
        self._closed = True
        self._source.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
        self._fetching.clear()

    def _fill(self) -> None:
        """Ask for more, and give slots to what was asked for, as far as the limits go."""
        while len(self._pending) < self._limits.ahead:
            slot = self._ring.acquire()
            if slot is None:
                break
            self._decode(slot)
        while (
            len(self._fetching) < self._limits.fetch_ahead
            and self._source.held_bytes < self._limits.held_bytes
        ):
            self._ask_next()
        if len(self._fetching) < self._limits.fetch_ahead:
            self._stats.count(held_full=1)

    def _ask_next(self) -> None:
        self._fetching.append(self._ask(self._first_allowed(next(self._indices), 0)))

    def _ask(self, visit: Visit) -> _Fetching:
        waits = Waits(self._stats)
        fetched = self._source.fetch(visit.item, visit.region)
        fetched.when_done(waits.came)
        return _Fetching(visit=visit, fetched=fetched, waits=waits)

    def _decode(self, slot: Slot) -> None:
        """Give a slot to the next item."""
        if not self._fetching:
            self._ask_next()
        self._pending.append(self._start(self._fetching.popleft(), slot))

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

    def _start(self, fetching: _Fetching, slot: Slot) -> _Pending:
        """Decode as soon as everything is there."""
        visit, fetched, done = fetching.visit, fetching.fetched, Future[None]()
        waits = fetching.waits
        waits.has_slot()

        def load() -> None:
            try:
                with waits.decoding():
                    self._loader.load(visit, fetched, slot)
            except BaseException as error:
                fetched.release()
                done.set_exception(error)
            else:
                fetched.release()
                done.set_result(None)

        def submit() -> None:
            # Ranges that are dropped when all ends are done as well; nobody waits for them.
            if not self._closed:
                with suppress(RuntimeError):
                    self._pool.submit(load)

        fetched.when_done(submit)
        return _Pending(visit=visit, slot=slot, waits=waits, done=done)

    def _succeeded(self, pending: _Pending) -> bool:
        """Wait for a load. False if its sample is bad, or was found so after the load began."""
        with pending.waits.awaited():
            error = pending.done.exception()
        where = (pending.visit.item.lane, pending.visit.key)
        if where in self.quarantine:
            return False
        if error is None:
            return True
        if isinstance(error, ServiceError) or not isinstance(error, ShardError | OSError):
            raise error
        self._quarantine(where, pending.visit, error)
        return False

    def _quarantine(self, where: Quarantined, visit: Visit, error: BaseException) -> None:
        bad = {key for _, key in self.quarantine} | {visit.key}
        self.quarantine[where] = visit.item.index
        self._stats.count(bad_samples=1)
        logger.warning("sample %s cannot be read and is replaced: %s", visit.key, error)
        if len(bad) > self._limits.max_bad_samples:
            raise BadDataError(
                f"{len(bad)} samples cannot be read, more than the {self._limits.max_bad_samples} "
                f"allowed; the last: {visit.key} ({error}); check the dataset with `ingest verify`"
            ) from error
