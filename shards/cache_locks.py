"""What the processes that share a cache agree on: bytes in use, and who fetches which block.

Both are locks of the kernel, which end with their process, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_WAIT_S = 10.0
"""A process that is stopped while it holds the lock does not stop the others."""
SAFE = os.O_CLOEXEC | os.O_NOFOLLOW
_NOTE = struct.Struct("<8sQI")
_MAGIC = b"cbcache1"
_LOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid


class Ledger:
    """Bytes in use, in a small file; open while no other process or thread has it."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def read(self) -> int | None:
        """Bytes in use as noted, or None if the note is not a whole one."""
        data = os.pread(self._handle, _NOTE.size + 1, 0)
        if len(data) != _NOTE.size:
            return None
        magic, used, crc = _NOTE.unpack(data)
        whole: bool = magic == _MAGIC and crc == zlib.crc32(data[:-4])
        return int(used) if whole else None

    def write(self, used: int) -> None:
        """Note the bytes in use."""
        data = _MAGIC + struct.pack("<Q", used)
        os.ftruncate(self._handle, _NOTE.size)
        os.pwrite(self._handle, data + struct.pack("<I", zlib.crc32(data)), 0)


@contextmanager
def locked(path: Path) -> Iterator[Ledger]:
    """The ledger in file ``path``, which is made if it is not there.

    Raises:
        TimeoutError: another process has it and does not go on.
    """
    end = time.monotonic() + LOCK_WAIT_S
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | SAFE, 0o600)
        try:
            _lock_until(handle, end)
            if os.fstat(handle).st_nlink:  # else somebody deleted it: take the new one
                yield Ledger(handle)
                return
        finally:
            os.close(handle)


def _lock_until(handle: int, end: float) -> None:
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError(f"the lock was not free for {LOCK_WAIT_S:g} s") from None
            time.sleep(0.001)


class Claims:
    """Who fetches what: one byte of a file is locked for each block of each shard.

    Two blocks that share a byte by chance wait in vain for each other, no more. The locks are the
    open file's, not the process's, which would lose them all with the first file that it closes.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | SAFE, 0o600)

    def take(self, place: int) -> bool:
        """Claim a place among all processes; False while another has it."""
        try:
            self._set(fcntl.F_WRLCK, place)
        except BlockingIOError:
            return False
        return True

    def give_back(self, place: int) -> None:
        """Give up a claim."""
        self._set(fcntl.F_UNLCK, place)

    def close(self) -> None:
        """Give up all claims."""
        os.close(self._handle)

    def _set(self, kind: int, place: int) -> None:
        lock = _LOCK.pack(kind, os.SEEK_SET, place % 2**62, 1, 0)
        fcntl.fcntl(self._handle, fcntl.F_OFD_SETLK, lock)
