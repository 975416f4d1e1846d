"""One file of the local cache: where the blocks of a shard lie in it, and which are there."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass

BLOCK_BYTES = 8 * 2**20
"""What is fetched and kept at once: the size of a request that hides a bucket's latency."""
PAGE = 4096
ABSENT, COUNTED, PRESENT = 0, 1, 2
"""States of a block: nothing of it, room is taken for it, all of it is there."""
FILE_BYTES = 4 * PAGE
"""Counted for each file besides its blocks and flags: where the file system notes its extents."""
_NAME = re.compile(r"([0-9a-f]{64})\.([1-9]\d{0,17})\.([1-9]\d{0,17})\.shard")


@dataclass(frozen=True)
class ShardFile:
    """Where the blocks of one shard lie in its file."""

    sha256: str
    nbytes: int
    block_bytes: int = BLOCK_BYTES

    @classmethod
    def named(cls, name: str) -> ShardFile | None:
        """The file that has this name, if it is one of ours."""
        if match := _NAME.fullmatch(name):
            return cls(match[1], int(match[2]), int(match[3]))
        return None

    @property
    def name(self) -> str:
        """The file's name in the folder."""
        return f"{self.sha256}.{self.nbytes}.{self.block_bytes}.shard"

    @property
    def blocks(self) -> int:
        """How many blocks the shard has; the last may be short."""
        return -(-self.nbytes // self.block_bytes)

    @property
    def flags_at(self) -> int:
        """Offset of the flags."""
        return _pages(self.nbytes)

    @property
    def length(self) -> int:
        """Length of the sparse file."""
        return self.flags_at + self.blocks

    @property
    def overhead(self) -> int:
        """Bytes counted for the file itself."""
        return FILE_BYTES + _pages(self.blocks)

    def span(self, block: int) -> tuple[int, int]:
        """Offset and size of a block."""
        start = block * self.block_bytes
        return start, min(self.block_bytes, self.nbytes - start)

    def covering(self, offset: int, nbytes: int) -> range:
        """The blocks that a range touches."""
        return range(offset // self.block_bytes, (offset + nbytes - 1) // self.block_bytes + 1)

    def cost(self, block: int) -> int:
        """Bytes counted for a block."""
        return _pages(self.span(block)[1])


def flag_of(handle: int, file: ShardFile, block: int) -> int:
    """State of a block in an open file."""
    flag = os.pread(handle, 1, file.flags_at + block)
    return flag[0] if flag else ABSENT  # evicted meanwhile


def set_flag(handle: int, file: ShardFile, block: int, flag: int) -> None:
    """Change the state of a block."""
    os.pwrite(handle, bytes([flag]), file.flags_at + block)
    touch(handle)


def touch(handle: int) -> None:
    """Note the use: the time of the last change is what eviction goes by."""
    now = time.time_ns()
    os.utime(handle, ns=(now, now))


def cost_of(handle: int, file: ShardFile) -> int:
    """Bytes counted for an open file: whole blocks, though some may not be written yet."""
    status = os.fstat(handle)
    if status.st_size != file.length:
        return max(status.st_blocks * 512, file.overhead)
    flags = os.pread(handle, file.blocks, file.flags_at)
    return file.overhead + sum(file.cost(n) for n, flag in enumerate(flags) if flag != ABSENT)


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE
