"""Blocks of shards in a local folder that several processes share, within a limit.

A shard is one sparse file: its bytes at their own offsets, then, from the next page on, one byte a
block that says whether the block is there. The name holds the shard's digest, its size and the size
of a block, so that other bytes never mix with these, and a listing tells the place of everything.

No process needs another to be alive or well:

- a block's flag is written after its bytes, and two that write the same block write the same bytes;
- a block is counted before it is written, under ``flock``, which ends with its process;
- the least recently used files go first. The name goes before the bytes, so a read whose file still
  has its name afterwards read bytes, not what eviction left of them;
- the count is a note. Whenever room is short, the files are counted again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shards.cache_layout import (
    ABSENT,
    COUNTED,
    PRESENT,
    ShardFile,
    cost_of,
    flag_of,
    set_flag,
    touch,
)
from shards.cache_locks import SAFE, Claims, Ledger, locked

LEDGER = "usage"
CLAIMS = "claims"


@dataclass(frozen=True)
class _Held:
    """A file in the folder: when it was last used, and what is counted for it."""

    used_ns: int
    name: str
    cost: int


class CacheFolder:
    """The files in one folder. Methods may block on the disk; any thread may call them."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Make the folder if it is not there, and count what it holds.

        Raises:
            OSError: it cannot be made or written.
        """
        self._folder = folder
        self._limit = limit_bytes
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._claims = Claims(folder / CLAIMS)
        try:
            with locked(self._folder / LEDGER) as ledger:
                ledger.write(self._count())
        except BaseException:
            self._claims.close()
            raise

    def close(self) -> None:
        """Close the one file that stays open, and so free the blocks that are locked."""
        self._claims.close()

    def read(self, file: ShardFile, offset: int, nbytes: int) -> bytes | None:
        """A range of a shard, or None unless all of it is here.

        Raises:
            OSError: the disk fails.
        """
        try:
            handle = os.open(self._folder / file.name, os.O_RDONLY | SAFE)
        except FileNotFoundError:
            return None
        try:
            blocks = file.covering(offset, nbytes)
            flags = os.pread(handle, len(blocks), file.flags_at + blocks.start)
            if flags != bytes([PRESENT]) * len(blocks):
                return None
            data = os.pread(handle, nbytes, offset)
            status = os.fstat(handle)
            # Evicted meanwhile: what was read may be a hole.
            if status.st_nlink != 1 or status.st_size != file.length or len(data) != nbytes:
                return None
            touch(handle)
            return data
        finally:
            os.close(handle)

    def drop(self, file: ShardFile, block: int) -> None:
        """Forget a block whose bytes are wrong; its room stays counted.

        Raises:
            OSError: the disk fails.
        """
        with suppress(FileNotFoundError):
            handle = os.open(self._folder / file.name, os.O_RDWR | SAFE)
            try:
                if flag_of(handle, file, block) == PRESENT:
                    set_flag(handle, file, block, COUNTED)
            finally:
                os.close(handle)

    def store(self, file: ShardFile, block: int, data: memoryview) -> int:
        """Keep a block, and evict the files used longest ago where room is short.

        Returns:
            How many files were evicted.

        Raises:
            TimeoutError: another process holds the folder's lock and does not go on.
            OSError: the disk is full, or fails.
        """
        start, nbytes = file.span(block)
        if len(data) != nbytes:
            raise ValueError(f"block {block} has {nbytes} bytes, not {len(data)}")
        if file.overhead + file.cost(block) > self._limit:
            return 0
        handle, evicted = self._take_room(file, block)
        try:
            while data:
                written = os.pwrite(handle, data, start)
                start, data = start + written, data[written:]
            set_flag(handle, file, block, PRESENT)
        finally:
            os.close(handle)
        return evicted

    def claim(self, file: ShardFile, block: int) -> bool:
        """Claim a block's download among all processes; False while another has it."""
        return self._claims.take(_place(file, block))

    def give_back(self, file: ShardFile, block: int) -> None:
        """Give up the claim."""
        self._claims.give_back(_place(file, block))

    def _take_room(self, file: ShardFile, block: int) -> tuple[int, int]:
        """Count a block; the open file to write it to, and how many others had to go."""
        path = self._folder / file.name
        with locked(self._folder / LEDGER) as ledger:
            handle = self._open(path, file, ledger)
            if handle is not None and flag_of(handle, file, block) != ABSENT:
                return handle, 0
            if handle is not None:
                os.close(handle)
            cost = file.cost(block)
            used, evicted = self._make_room(ledger, file.overhead + cost)
            new = not path.exists()  # it may be among those that went
            # Noted first: a kill in between counts too much until the next count, never too little.
            ledger.write(used + cost + (file.overhead if new else 0))
            handle = os.open(path, os.O_RDWR | os.O_CREAT | SAFE, 0o600)
            try:
                os.ftruncate(handle, file.length)
                set_flag(handle, file, block, COUNTED)
            except BaseException:
                os.close(handle)
                raise
            return handle, evicted

    def _open(self, path: Path, file: ShardFile, ledger: Ledger) -> int | None:
        """The shard's file; what has its name and not its length is removed."""
        try:
            handle = os.open(path, os.O_RDWR | SAFE)
        except FileNotFoundError:
            return None
        if os.fstat(handle).st_size == file.length:
            return handle
        os.close(handle)
        _evict(path)
        ledger.write(self._count())
        return None

    def _make_room(self, ledger: Ledger, nbytes: int) -> tuple[int, int]:
        """Bytes in use once ``nbytes`` more fit, and how many files had to go."""
        used = ledger.read()
        if used is not None and used + nbytes <= self._limit:
            return used, 0
        files = sorted(self._files(), key=lambda held: (held.used_ns, held.name))
        used = sum(held.cost for held in files)
        if used + nbytes <= self._limit:
            return used, 0
        # A little more than needed: with very many files, counting them is dear.
        goal = self._limit - nbytes - self._limit // 64
        evicted = 0
        for held in files:
            if used <= max(goal, 0):
                break
            _evict(self._folder / held.name)
            used -= held.cost
            evicted += 1
        return used, evicted

    def _count(self) -> int:
        return sum(held.cost for held in self._files())

    def _files(self) -> Iterator[_Held]:
        """Our files in the folder; others are not looked at."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                file = ShardFile.named(entry.name)
                if file is None or not entry.is_file(follow_symlinks=False):
                    continue
                with suppress(FileNotFoundError):
                    handle = os.open(entry.path, os.O_RDONLY | SAFE)
                    try:
                        cost = cost_of(handle, file)
                        used_ns = os.fstat(handle).st_mtime_ns
                    finally:
                        os.close(handle)
                    yield _Held(used_ns, entry.name, cost)


def _place(file: ShardFile, block: int) -> int:
    return int(file.sha256[:14], 16) + block


def _evict(path: Path) -> None:
    """Remove a file and free its room at once, though others may have it open."""
    try:
        handle = os.open(path, os.O_RDWR | SAFE)
    except FileNotFoundError:
        return
    try:
        path.unlink()
        os.ftruncate(handle, 0)
    finally:
        os.close(handle)
