"""What gives a loader its loaded items: a feed in threads of this process, or one in another.

``ThreadSupply`` is here, ``process.ProcessSupply`` is the other; ``open_feed`` makes the feed of
both, so that they load the same items in the same order. No torch here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from coralbay.views import ViewRecipe
from shards.decoding import ChunkDecoder
from shards.plan import Plan
from shards.stats import Stats
from train.loader.feed import Feed, FeedLimits, Loaded, Loader, Quarantined
from train.loader.filling import DecodeOn, make_filler
from train.loader.inputs import Inputs
from train.loader.params import Resampler
from train.loader.ring import Event, FreeSlots, SlotRing
from train.loader.settings import LoaderConfig
from train.loader.slots import Slot


@runtime_checkable
class Supply(Protocol):
    """Gives loaded items in the order of the plan, ahead of who takes them. For one thread."""

    @property
    def quarantine(self) -> Mapping[Quarantined, int]:
        """Bad samples, and the position at which each was found (-1: known before)."""

    def next(self) -> Loaded:
        """The next item, waiting for it if need be.

        Raises:
            BadDataError, ServiceError: as ``Feed.next``.
            FeedDiedError: the subprocess is gone.
        """

    def release(self, slots: Iterable[Slot], event: Event | None = None) -> None:
        """Give slots back; with an event, once the event has passed."""

    def close(self) -> None:
        """End what works in the background; nothing may read a slot any more. Again: nothing."""


@dataclass(frozen=True, kw_only=True)
class FeedSettings:
    """What a feed loads and from where on; plain values, which another process can be sent."""

    views: ViewRecipe
    config: LoaderConfig
    resampler: Resampler
    decode_on: DecodeOn
    step: int
    """The first one to load."""
    quarantine: tuple[Quarantined, ...]
    """Samples known to be bad."""

    def indices(self, plan: Plan) -> Iterator[int]:
        """Positions in the plan, without end."""
        for step in itertools.count(self.step):
            yield from plan.rank_indices(step, self.config.rank, self.config.world)


def feed_limits(inputs: Inputs, config: LoaderConfig) -> FeedLimits:
    """How far a feed works ahead."""
    if inputs.choice.mode == "stream":
        # As far ahead as a lane's volumes stay: their next run is then on its way.
        plan = inputs.plan.config
        fetch_ahead = plan.spread * plan.visits * config.batch_size
    else:
        # Twice as many as are under way at once: whoever comes back early finds the next one.
        fetch_ahead = 2 * config.stream.in_flight
    return FeedLimits(
        threads=config.threads,
        ahead=config.prefetch + config.batch_size,
        fetch_ahead=fetch_ahead,
        held_bytes=config.stream.held_mib << 20,
        max_bad_samples=config.max_bad_samples,
    )


def open_feed(
    settings: FeedSettings, inputs: Inputs, decoder: ChunkDecoder, slots: FreeSlots, stats: Stats
) -> Feed:
    """A feed, with threads and connections of its own."""
    source = inputs.source(inputs.open_fetcher(), stats)
    return Feed(
        scheduler=inputs.scheduler,
        source=source,
        loader=Loader(
            source,
            make_filler(settings.decode_on, decoder, stats),
            settings.views,
            settings.resampler,
        ),
        ring=slots,
        indices=settings.indices(inputs.plan),
        limits=feed_limits(inputs, settings.config),
        quarantine=settings.quarantine,
        stats=stats,
    )


class ThreadSupply:
    """Fetches and decodes in threads of this process; see ``Supply``.

    Args:
        settings: what to load.
        inputs: from where.
        decoder: of the dataset.
        n_slots: how many items there is room for.
        stats: where to count.
    """

    def __init__(
        self,
        settings: FeedSettings,
        inputs: Inputs,
        decoder: ChunkDecoder,
        n_slots: int,
        stats: Stats,
    ) -> None:
        config = settings.config
        self._ring = SlotRing(
            n_slots=n_slots,
            layout=inputs.slot_layout,
            pinned=config.device == "gpu",
            poison=config.poison,
        )
        self.feed = open_feed(settings, inputs, decoder, self._ring, stats)

    @property
    def quarantine(self) -> Mapping[Quarantined, int]:
        """See ``Supply``."""
        return self.feed.quarantine

    def next(self) -> Loaded:
        """See ``Supply``."""
        return self.feed.next()

    def release(self, slots: Iterable[Slot], event: Event | None = None) -> None:
        """See ``Supply``."""
        self._ring.release(slots, event)

    def close(self) -> None:
        """See ``Supply``."""
        self.feed.close()
