"""A file that seeks, made of ranges that are fetched when they are needed."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO, Any, cast

from shards.seekable import Seekable

GROWTH = 4
"""Each range that follows on the one before is this many times as long."""

BUFFER_BYTES = 1 << 14
"""Read at once by those who read a little."""

Fetch = Callable[[int, int], bytes]
"""(start, number of bytes) to these bytes, all of them."""


def open_ranges(fetch: Fetch, size: int, head: bytes, least: int, most: int) -> IO[bytes]:
    """A buffered file of ``size`` bytes that begins with ``head``.

    Args:
        fetch: gives the bytes beyond ``head``.
        size: of the file.
        head: its first bytes; may be empty.
        least: bytes of a range, as far as there are so many.
        most: bytes to which ranges grow while the file is read in order.
    """
    raw = _Ranges(fetch, size, head, least, most)
    return cast("IO[bytes]", io.BufferedReader(raw, BUFFER_BYTES))


class _Ranges(Seekable):
    """Holds one range at a time, the head at first."""

    name = ""
    """Asked for by pydicom; it has none."""

    def __init__(self, fetch: Fetch, size: int, head: bytes, least: int, most: int) -> None:
        super().__init__(size)
        self._fetch = fetch
        self._start, self._data = 0, head
        self._next, self._most = least, most

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` from the range at hand, or from the next one; bytes read."""
        view = memoryview(buffer).cast("B")
        if self._at >= self._size or not view:
            return 0
        if not self._start <= self._at < self._start + len(self._data):
            self._read_range(len(view))
        i = self._at - self._start
        nbytes = min(len(view), len(self._data) - i)
        view[:nbytes] = self._data[i : i + nbytes]
        self._at += nbytes
        return nbytes

    def _read_range(self, asked: int) -> None:
        if self._data and self._at == self._start + len(self._data):
            self._next = min(self._most, self._next * GROWTH)
        nbytes = min(max(self._next, min(asked, self._most)), self._size - self._at)
        self._start, self._data = self._at, self._fetch(self._at, nbytes)
