"""The layers between a store and those who ask for ranges, put together."""

from __future__ import annotations

from collections.abc import Callable

from shards.fetcher import Fetcher, RangeFetcher
from shards.folder_fetcher import FolderFetcher
from shards.policy import RequestPolicy
from shards.requests import RangeReader
from shards.retrying import RetryingReader
from shards.stats import Stats
from shards.store import Store, StoreReader

Wrap = Callable[[RangeReader], RangeReader]


def open_reader(
    store: Store, policy: RequestPolicy | None = None, stats: Stats | None = None
) -> RetryingReader:
    """Ranges of a store, with deadlines, retries and hedging.

    Args:
        store: where the objects are.
        policy: the store's own by default.
        stats: where requests are counted; a `Stats` of its own by default.
    """
    return RetryingReader(
        StoreReader(store),
        policy or store.policy,
        stats=stats,
        where=f"{store.name}/",
        renew=store.renew,
    )


def open_fetcher(
    store: Store,
    policy: RequestPolicy | None = None,
    *,
    stats: Stats | None = None,
    wrap: Wrap | None = None,
) -> RangeFetcher:
    """The quickest way to ranges of a store, in the background.

    Args:
        store: where the objects are.
        policy: the store's own by default.
        stats: where requests are counted.
        wrap: puts a layer, such as a cache, around the reader; a local folder then is read like
            any other store.
    """
    policy = policy or store.policy
    if store.folder is not None and wrap is None:
        return FolderFetcher(store.folder, policy=policy, stats=stats)
    reader: RangeReader = open_reader(store, policy, stats)
    return Fetcher(wrap(reader) if wrap else reader, policy.in_flight)
