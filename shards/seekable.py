"""Where the next read of something with a size begins: what all files that are no files share."""

from __future__ import annotations

import io


class Seekable(io.RawIOBase):
    """A readable, seekable file of known size; a subclass reads, and moves ``_at``.

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always: reads start anywhere."""
        return True

    def tell(self) -> int:
        """Offset of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the next read; beyond the end it returns nothing.

        Raises:
            OSError: before the start.
        """
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"seek to {base + offset}")
        self._at = base + offset
        return self._at

    def left(self, nbytes: int) -> int:
        """Bytes that a read of ``nbytes`` (below 0: of all) gives."""
        rest = max(0, self._size - self._at)
        return rest if nbytes < 0 else min(nbytes, rest)
