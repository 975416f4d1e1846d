"""What a store of objects does, one attempt a call, and how obstore does it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import obstore

from shards.errors import CorruptShardError
from shards.policy import DEFAULT_POLICY, RequestPolicy
from shards.stats import Stats

PART_BYTES = 8 * 2**20
"""Larger objects are uploaded and read in pieces of this: hides the latency of a bucket."""
UPLOADS = 8
"""Pieces of an object that are uploaded at once."""


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
    """Objects by path. Each call is one attempt, and raises what the storage raises.

    `shards.store` has the functions that try again; they and `RetryingReader` are what to call.
    """

    name: str
    """URL for messages: no secrets."""
    folder: Path | None
    """Where it is, if it is a local folder."""
    policy: RequestPolicy
    stats: Stats
    """Counts ``requests``, ``retries``, ``timeouts``, ``throttled`` of the calls that wait."""

    def head(self, path: str) -> Head:
        """Size of an object."""

    def open(self, path: str) -> Part:
        """The first bytes of an object: all of them up to ``PART_BYTES``, then at least so many."""

    def read(self, path: str, start: int, stop: int) -> Part:
        """Bytes ``start`` to ``stop``; fewer, or an error, where the object ends before."""

    async def get_range(self, path: str, offset: int, nbytes: int) -> memoryview:
        """``nbytes`` bytes from ``offset`` on, or fewer where the object ends before."""

    def list(self, prefix: str, recursive: bool) -> Sequence[Head]:
        """Objects below a prefix that is the root ("") or a folder, in no order."""

    def put(self, path: str, data: bytes | Path, create: bool) -> None:
        """Write an object at once or not at all; with ``create`` only where there is none."""

    def delete(self, path: str) -> None:
        """Delete an object."""

    def renew(self) -> None:
        """Read the credentials again."""


class ObjectStore:
    """A `Store` through obstore.

    Args:
        name: for messages.
        connect: makes the obstore store, with obstore's own retries on or off.
        folder: where it is, if it is a local folder.
        policy: of its requests.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[bool], Any],
        *,
        folder: Path | None = None,
        policy: RequestPolicy = DEFAULT_POLICY,
    ) -> None:
        self.name = name
        self.folder = folder
        self.policy = policy
        self.stats = Stats()
        self._connect = connect
        self._lock = threading.Lock()
        self._store = connect(False)
        self._uploads: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Open it again in another process, which reads credentials of its own."""
        again = partial(ObjectStore, folder=self.folder, policy=self.policy)
        return again, (self.name, self._connect)

    def head(self, path: str) -> Head:
        """See `Store`."""
        return _head(obstore.head(self._store, path))

    def open(self, path: str) -> Part:
        """See `Store`."""
        # No range: some servers refuse one that goes beyond the end.
        answer = obstore.get(self._store, path)
        whole = _head(answer.meta)
        if whole.size <= PART_BYTES:
            return Part(memoryview(answer.bytes()), whole)
        return Part(memoryview(next(iter(answer.stream(PART_BYTES)))), whole)

    def read(self, path: str, start: int, stop: int) -> Part:
        """See `Store`."""
        answer = obstore.get(self._store, path, options={"range": (start, stop)})
        return Part(memoryview(answer.bytes()), _head(answer.meta))

    async def get_range(self, path: str, offset: int, nbytes: int) -> memoryview:
        """See `Store`."""
        return memoryview(
            await obstore.get_range_async(self._store, path, start=offset, length=nbytes)
        )

    def list(self, prefix: str, recursive: bool) -> list[Head]:
        """See `Store`."""
        if not recursive:
            found = obstore.list_with_delimiter(self._store, prefix or None)["objects"]
            return [_head(entry) for entry in found]
        pages = obstore.list(self._store, prefix or None)
        return [_head(entry) for page in pages for entry in page]

    def put(self, path: str, data: bytes | Path, create: bool) -> None:
        """See `Store`."""
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        if create or size <= PART_BYTES:
            mode: Any = "create" if create else "overwrite"
            obstore.put(self._store, path, data, mode=mode, use_multipart=False)
            return
        # Pieces of an upload cannot be tried again from here, so obstore does it.
        with self._lock:
            self._uploads = self._uploads or self._connect(True)
        obstore.put(
            self._uploads, path, data, chunk_size=_part_bytes(size), max_concurrency=UPLOADS
        )

    def delete(self, path: str) -> None:
        """See `Store`."""
        obstore.delete(self._store, path)

    def renew(self) -> None:
        """See `Store`."""
        if self.folder is None:
            with self._lock:
                self._store, self._uploads = self._connect(False), None


def _head(meta: Any) -> Head:
    return Head(meta["path"], int(meta["size"]), meta["e_tag"])


def _part_bytes(size: int) -> int:
    # S3 takes 10,000 pieces.
    return max(PART_BYTES, -(-size // 9000))


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
