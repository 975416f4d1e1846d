"""How the stream asks a storage for bytes: one call, which layers wrap.

A reader of a store gives the bytes; a reader around it retries, bounds and hedges; one around that
keeps what was read on a local disk. Tests put faulty ones below. All are asynchronous: a request
that takes too long is cancelled, and a thread that waits in a library cannot be.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class RangeReader(Protocol):
    """Gives ranges of objects."""

    async def get_range(self, path: str, offset: int, nbytes: int) -> memoryview:
        """``nbytes`` bytes, at least 1, of object ``path`` from ``offset`` on.

        Raises:
            FileNotFoundError: no such object.
            ShardError: it cannot be read, or ends before.
        """

    async def close(self) -> None:
        """Free what it holds; requests that are still at work are cancelled before."""


@runtime_checkable
class FreshReader(RangeReader, Protocol):
    """A reader that keeps what it has read, and can be told not to trust it."""

    async def get_fresh(self, path: str, offset: int, nbytes: int) -> memoryview:
        """As ``get_range``, from the storage itself; what is kept of it is mended."""
