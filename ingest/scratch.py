"""Members of compressed archives, kept unpacked on disk: several series need one pass, not several.

A compressed tar has no index: to read one series, all before it must be unpacked. So a worker that
unpacks it keeps its members in a temporary file without a name, which the system frees even where
the worker is killed.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, TypeVar

T = TypeVar("T")
R = TypeVar("R")

GIB = 1 << 30
BLOCK_BYTES = 1 << 20


@dataclass
class _Kept:
    """Members of one archive: place and length in ``file`` by number."""

    file: IO[bytes]
    places: dict[int, tuple[int, int]] = field(default_factory=dict)
    nbytes: int = 0


class Scratch:
    """Unpacked members, up to ``limit`` bytes; the archive that came first makes room."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.owner = ""
        self._archives: dict[str, _Kept] = {}

    def start(self, owner: str, limit: int) -> None:
        """Serve ``owner``; what was kept for another is dropped."""
        if owner != self.owner:
            self.close()
        self.owner, self.limit = owner, limit

    def close(self) -> None:
        """Drop everything, and keep nothing until the next `start`."""
        self.limit, self.owner = 0, ""
        for path in list(self._archives):
            self._drop(path)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(kept.nbytes for kept in self._archives.values())

    def keep(self, path: str, index: int, member: IO[bytes], nbytes: int) -> bool:
        """Keep a member of ``nbytes`` bytes; False where there is no room for it."""
        kept = self._archives.get(path)
        if kept is not None and index in kept.places:
            return True
        for other in [name for name in self._archives if name != path]:
            if self.nbytes + nbytes <= self.limit:
                break
            self._drop(other)
        if self.nbytes + nbytes > self.limit:
            return False
        try:
            if kept is None:
                kept = self._archives[path] = _Kept(tempfile.TemporaryFile())  # noqa: SIM115
            at = kept.file.seek(0, 2)
            while block := member.read(BLOCK_BYTES):
                kept.file.write(block)
            kept.file.flush()
        except OSError as exc:
            self._drop(path)
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            return False  # a full disk: the archive is unpacked again instead
        kept.places[index] = (at, nbytes)
        kept.nbytes = at + nbytes
        return True

    def get(self, path: str, index: int) -> bytes | None:
        """A member's bytes, if they are kept."""
        kept = self._archives.get(path)
        place = None if kept is None else kept.places.get(index)
        if kept is None or place is None:
            return None
        kept.file.seek(place[0])
        data = kept.file.read(place[1])
        return data if len(data) == place[1] else None

    def _drop(self, path: str) -> None:
        kept = self._archives.pop(path, None)
        if kept is not None:
            kept.file.close()


SCRATCH = Scratch(limit=0)
"""This process's own; off until a build turns it on."""


def with_scratch(owner: str, limit: int, task: Callable[[T], R], item: T) -> R:
    """Do a task with this process's scratch serving ``owner``, up to ``limit`` bytes."""
    SCRATCH.start(owner, limit)
    return task(item)
