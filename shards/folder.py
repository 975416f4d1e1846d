"""A local folder as a store: plain system calls, which a fork survives and no library outruns."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path, PurePosixPath
from typing import Any

from shards.backends import PART_BYTES, Head, Part
from shards.errors import CorruptShardError, ShardError
from shards.policy import DEFAULT_POLICY, RequestPolicy
from shards.stats import Stats


class FolderStore:
    """A `shards.backends.Store` of the files in a folder.

    Args:
        folder: which.
        policy: how often a file server that fails is tried again.
    """

    def __init__(self, folder: Path, policy: RequestPolicy = DEFAULT_POLICY) -> None:
        self.name = str(folder)
        self.folder: Path | None = folder.absolute()
        self.policy = policy
        self.stats = Stats()
        self._root = folder.absolute()

    def __reduce__(self) -> tuple[Any, ...]:
        """Open it again in another process."""
        return FolderStore, (self._root, self.policy)

    def open(self, path: str) -> Part:
        """See `Store`."""
        file = self._file(path)
        whole = _head(file, path)
        return Part(read_file(file, 0, min(whole.size, PART_BYTES), path), whole)

    def read(self, path: str, start: int, stop: int) -> Part:
        """See `Store`."""
        file = self._file(path)
        return Part(read_file(file, start, stop - start, path), _head(file, path))

    async def get_range(self, path: str, offset: int, nbytes: int) -> memoryview:
        """See `Store`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, read_file, self._file(path), offset, nbytes, path)

    def names(self) -> list[str]:
        """See `Store`."""
        if not self._root.is_dir():
            return []
        with os.scandir(self._root) as entries:
            return [entry.name for entry in entries if entry.is_file()]

    def renew(self) -> None:
        """A folder has no credentials."""

    def _file(self, path: str) -> Path:
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or not parts.parts:
            raise ShardError(f"{path!r}: not the path of an object in {self.name}")
        return self._root / parts


def read_file(file: Path, offset: int, nbytes: int, name: str) -> memoryview:
    """A range of a file.

    Raises:
        CorruptShardError: it ends before; the message calls it ``name``.
        OSError: it cannot be read.
    """
    handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(handle, nbytes, offset)
        # One call gives at most 2 GiB, and a file server may give less than is asked for.
        while len(data) < nbytes:
            more = os.pread(handle, nbytes - len(data), offset + len(data))
            if not more:
                raise CorruptShardError(f"{name}: ends before byte {offset + nbytes}")
            data += more
    finally:
        os.close(handle)
    return memoryview(data)


def _head(file: Path, path: str) -> Head:
    found = file.stat()
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder", path)
    return Head(path, found.st_size, f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}")
