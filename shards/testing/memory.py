"""A store in memory, for tests."""

from __future__ import annotations

import threading
from pathlib import Path

from shards.backends import PART_BYTES, Head, Part
from shards.policy import DEFAULT_POLICY, RequestPolicy
from shards.stats import Stats


class MemoryStore:
    """A `shards.backends.Store` of this process alone; ranges behave like those of S3."""

    def __init__(self, name: str = "memory://test", policy: RequestPolicy = DEFAULT_POLICY) -> None:
        self.name = name
        self.folder: Path | None = None
        self.policy = policy
        self.stats = Stats()
        self.renewed = 0
        """Calls of `renew`."""
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, str]] = {}
        self._writes = 0

    def open(self, path: str) -> Part:
        """See `Store`."""
        data, whole = self._found(path)
        return Part(memoryview(data)[:PART_BYTES], whole)

    def read(self, path: str, start: int, stop: int) -> Part:
        """See `Store`."""
        data, whole = self._found(path)
        if start >= len(data):
            raise out_of_range()
        return Part(memoryview(data)[start:stop], whole)

    async def get_range(self, path: str, offset: int, nbytes: int) -> memoryview:
        """See `Store`."""
        return self.read(path, offset, offset + nbytes).data

    def names(self) -> list[str]:
        """See `Store`."""
        with self._lock:
            return [path for path in self._objects if "/" not in path]

    def put(self, path: str, data: bytes) -> None:
        """Write an object, over one that is there."""
        with self._lock:
            self._writes += 1
            self._objects[path] = (bytes(data), f'"{self._writes}"')

    def renew(self) -> None:
        """See `Store`."""
        self.renewed += 1

    def _found(self, path: str) -> tuple[bytes, Head]:
        with self._lock:
            if path not in self._objects:
                raise FileNotFoundError(path)
            data, etag = self._objects[path]
        return data, Head(path, len(data), etag)


def out_of_range() -> Exception:
    """What obstore raises for a range that begins behind an object's end."""
    from obstore.exceptions import GenericError

    return GenericError(
        "Generic S3 error: Error performing GET http://x in 1ms - Server returned "
        "non-2xx status code: 416 Range Not Satisfiable: <Error><Code>InvalidRange</Code></Error>"
    )
