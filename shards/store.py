"""Reads and writes objects of a `Store`, each request as patiently as its policy says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from shards.attempts import Attempts, patiently
from shards.backends import PART_BYTES, Head, Part, Store, StoreReader
from shards.errors import CorruptShardError
from shards.prefetch import prefetch
from shards.seekable import Seekable
from shards.urls import open_store

__all__ = [
    "Head",
    "RangeFile",
    "Store",
    "StoreReader",
    "delete",
    "get",
    "get_range",
    "head",
    "list_all",
    "names",
    "open_store",
    "put",
    "put_if_absent",
    "stream",
]

DELETES_AT_ONCE = 8
PARTS_AT_ONCE = 4
"""Pieces of an object that are asked for at once while it is read in order."""

T = TypeVar("T")


def head(store: Store, path: str) -> Head:
    """Size of an object.

    Raises:
        FileNotFoundError: no such object.
        ShardError: the storage cannot be used.
    """
    return _call(store, path, lambda: store.head(path))


def get(store: Store, path: str) -> bytes:
    """A whole object.

    Raises:
        FileNotFoundError: no such object.
        ShardError: it cannot be read.
    """
    return b"".join(_parts(store, path))


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
    listed = _call(store, "", lambda: store.list_objects("", False))
    return sorted(entry.path for entry in listed)


def list_all(store: Store, prefix: str = "") -> list[Head]:
    """Objects in a folder and the folders below it, sorted by path.

    Args:
        store: where.
        prefix: path of the folder, the root by default; ``a`` lists ``a/b``, not ``ab``.

    Raises:
        ShardError: the storage cannot be listed.
    """
    listed = _call(store, prefix, lambda: store.list_objects(prefix, True))
    return sorted(listed, key=lambda entry: entry.path)


def put(store: Store, path: str, data: bytes | Path) -> None:
    """Write an object, in place of one that is there: at once, or not at all.

    Raises:
        ShardError: it cannot be written.
    """
    _call(store, path, lambda: store.put(path, data, False))


def put_if_absent(store: Store, path: str, data: bytes) -> bool:
    """Write an object unless there is one; whether it was written.

    Of several writers one succeeds, where the storage knows conditional puts (S3, Google, Azure,
    folders). Some servers that speak S3 do not, and say nothing: looking before and after makes a
    lost race unlikely there, not impossible.

    Args:
        store: where.
        path: of the object.
        data: what no other writer writes, such as a random token. An attempt may succeed and its
            answer be lost: the object that the next one finds is known by these bytes.

    Raises:
        ShardError: it cannot be written.
    """
    with suppress(FileNotFoundError):
        head(store, path)
        return False
    with suppress(FileExistsError):
        _call(store, path, lambda: store.put(path, data, True))
    with suppress(FileNotFoundError):
        return get(store, path) == data
    return False


def delete(store: Store, paths: Iterable[str]) -> None:
    """Delete objects; one that is not there is no error.

    Raises:
        ShardError: the storage refuses, or does not answer.
    """

    def one(path: str) -> None:
        with suppress(FileNotFoundError):
            _call(store, path, partial(store.delete, path))

    for _ in prefetch(one, paths, DELETES_AT_ONCE):
        pass


class RangeFile(Seekable):
    """An object as a file that seeks: each read is one ranged request."""

    def __init__(self, store: Store, path: str) -> None:
        super().__init__(head(store, path).size)
        self._store = store
        self._path = path

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` as far as the object goes; bytes read."""
        view = memoryview(buffer).cast("B")
        nbytes = self.left(len(view))
        if nbytes:
            view[:nbytes] = get_range(self._store, self._path, self._at, nbytes)
        self._at += nbytes
        return nbytes


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

    def counted() -> T:
        store.stats.count(requests=1)
        found = operation()
        store.stats.count(answers=1)
        return found

    # Jitter must differ between processes, so it is no part of any seed.
    jitter = Random(os.urandom(8))
    where = f"{store.name}/{path}" if path else store.name
    attempts = Attempts(store.policy, where, store.stats, jitter)
    return patiently(counted, attempts, renew=store.renew)
