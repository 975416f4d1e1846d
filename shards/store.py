"""Reads objects of a `Store`, each request as patiently as its policy says."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TypeVar

from shards.attempts import counted
from shards.backends import PART_BYTES, Part, Store, StoreReader
from shards.errors import CorruptShardError
from shards.prefetch import prefetch
from shards.urls import open_store

__all__ = [
    "Store",
    "StoreReader",
    "get",
    "get_range",
    "names",
    "open_store",
    "stream",
]

PARTS_AT_ONCE = 4
"""Pieces of an object that are asked for at once while it is read in order."""

T = TypeVar("T")


def get(store: Store, path: str) -> bytes:
    """A whole object.

    Raises:
        FileNotFoundError: no such object.
        ShardError: it cannot be read.
    """
    whole = io.BytesIO()
    for part in _parts(store, path):
        whole.write(part)
    # Its own memory, not a copy: the parts of a large index are not there a second time.
    return whole.getvalue()


def get_range(store: Store, path: str, offset: int, nbytes: int) -> memoryview:
    """``nbytes`` bytes of an object from ``offset`` on, without a copy.

    Raises:
        FileNotFoundError: no such object.
        CorruptShardError: it is shorter.
        ShardError: it cannot be read.
    """
    if nbytes == 0:
        return memoryview(b"")
    return _part(store, path, offset, offset + nbytes).data


def stream(store: Store, path: str) -> Iterator[bytes]:
    """An object in pieces, in order.

    Raises:
        FileNotFoundError: no such object.
        CorruptShardError: it was replaced by another one meanwhile.
        ShardError: it cannot be read.
    """
    for piece in _parts(store, path):
        yield bytes(piece)


def names(store: Store) -> list[str]:
    """Names of the objects directly under the store's root, sorted.

    Raises:
        ShardError: the storage cannot be listed.
    """
    return sorted(_call(store, "", store.names))


def _parts(store: Store, path: str) -> Iterator[memoryview]:
    """Pieces of one and the same object, in order; the first one also tells its size."""
    first = _call(store, path, lambda: _opened(store, path))
    whole = first.whole

    def part(start: int) -> memoryview:
        found = _part(store, path, start, min(start + PART_BYTES, whole.size))
        if (found.whole.size, found.whole.etag) != (whole.size, whole.etag):
            raise CorruptShardError(f"{path}: was replaced while it was read; read it again")
        return found.data

    starts = range(len(first.data), whole.size, PART_BYTES)
    # From a disk, reading ahead gains nothing: the kernel does.
    ahead = len(starts) > 1 and store.folder is None
    rest = prefetch(part, starts, PARTS_AT_ONCE) if ahead else map(part, starts)
    return chain([first.data], rest)


def _opened(store: Store, path: str) -> Part:
    part = store.open(path)
    if len(part.data) < min(part.whole.size, PART_BYTES):
        raise CorruptShardError(f"{path}: ends before its {part.whole.size} bytes")
    return part


def _part(store: Store, path: str, start: int, stop: int) -> Part:
    def attempt() -> Part:
        part = store.read(path, start, stop)
        if len(part.data) != stop - start:
            raise CorruptShardError(f"{path}: ends before byte {stop}")
        return part

    return _call(store, path, attempt)


def _call(store: Store, path: str, operation: Callable[[], T]) -> T:
    """What one attempt returns, tried as often as the store's policy allows."""
    where = f"{store.name}/{path}" if path else store.name
    return counted(operation, store.policy, where, store.stats, store.renew)
