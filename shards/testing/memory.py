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

    def head(self, path: str) -> Head:
        """See `Store`."""
        return self._found(path)[1]

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

    def list_objects(self, prefix: str, recursive: bool) -> list[Head]:
        """See `Store`."""
        below = f"{prefix}/" if prefix else ""
        with self._lock:
            paths = [path for path in self._objects if path.startswith(below)]
        shown = [path for path in paths if recursive or "/" not in path[len(below) :]]
        return [self.head(path) for path in shown]

    def put(self, path: str, data: bytes | Path, create: bool) -> None:
        """See `Store`."""
        content = data.read_bytes() if isinstance(data, Path) else bytes(data)
        with self._lock:
            if create and path in self._objects:
                raise FileExistsError(path)
            self._writes += 1
            self._objects[path] = (content, f'"{self._writes}"')

    def delete(self, path: str) -> None:
        """See `Store`."""
        with self._lock:
            self._objects.pop(path, None)

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
