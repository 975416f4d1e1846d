"""What a store of objects does, one attempt a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from shards.errors import CorruptShardError
from shards.policy import RequestPolicy
from shards.stats import Stats

PART_BYTES = 8 * 2**20
"""Larger objects are written and read in pieces of this: hides the latency of a bucket."""


@dataclass(frozen=True)
class Head:
    """What a storage says of an object."""

    path: str
    size: int
    etag: str | None = None


@dataclass(frozen=True)
class Part:
    """A range of an object."""

    data: memoryview = field(repr=False)
    whole: Head


@runtime_checkable
class Store(Protocol):
    """Objects by path, to read. Each call is one attempt, and raises what the storage raises.

    `shards.store` has the functions that try again; they and `RetryingReader` are what to call.
    """

    name: str
    """URL for messages: no secrets."""
    folder: Path | None
    """Where it is, if it is a local folder."""
    policy: RequestPolicy
    stats: Stats
    """Counts ``requests``, ``retries``, ``timeouts``, ``throttled`` of the calls that wait."""

    def open(self, path: str) -> Part:
        """The first bytes of an object: all of them up to ``PART_BYTES``, then at least so many."""

    def read(self, path: str, start: int, stop: int) -> Part:
        """Bytes ``start`` to ``stop``; fewer, or an error, where the object ends before."""

    async def get_range(self, path: str, offset: int, nbytes: int) -> memoryview:
        """``nbytes`` bytes from ``offset`` on, or fewer where the object ends before."""

    def names(self) -> Sequence[str]:
        """Names of the objects directly under the root, in no order."""

    def renew(self) -> None:
        """Read the credentials again."""


class StoreReader:
    """Ranges of a store, one request each: what other readers wrap."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def get_range(self, path: str, offset: int, nbytes: int) -> memoryview:
        """See `shards.requests.RangeReader`; raises what the storage raises."""
        data = await self.store.get_range(path, offset, nbytes)
        if len(data) != nbytes:
            raise CorruptShardError(f"{path}: ends before byte {offset + nbytes}")
        return data

    async def close(self) -> None:
        """Nothing is held."""
