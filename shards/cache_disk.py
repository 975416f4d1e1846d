"""The cache's folder as the event loop sees it: disk work in threads, trouble said once.

Whatever fails here only costs speed: a block that cannot be read is fetched, one that cannot be
written is not kept.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from shards.cache_files import CacheFolder
from shards.cache_layout import ShardFile
from shards.errors import ShardError
from shards.stats import Stats

READ_THREADS = 4
WAITING_WRITES = 16
"""Blocks that may wait in memory for the disk. More are not kept: training is not slowed down."""
POLL_S = 0.01
PATIENCE_S = 5.0
"""How long to wait for a block that another process fetches, before fetching it as well."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_Result = TypeVar("_Result")
logger = logging.getLogger(__name__)


class CacheDisk:
    """Reads and keeps blocks. ``usable`` is False where there can be no cache."""

    def __init__(self, folder: Path, limit_bytes: int, least_bytes: int, stats: Stats) -> None:
        """Open the folder.

        Args:
            folder: made if it is not there.
            limit_bytes: for all files in it.
            least_bytes: a smaller limit is of no use.
            stats: takes the counters.

        Raises:
            ShardError: the folder cannot be used.
        """
        self._where = folder
        self._stats = stats
        self._warned = False
        self._keeping = True
        self._writing = 0
        self._folder: CacheFolder | None = None
        if limit_bytes < least_bytes:
            self._warn(f"a limit of {limit_bytes} bytes is below the {least_bytes} of one block")
        else:
            self._folder = self._open(limit_bytes)
        self._readers = ThreadPoolExecutor(READ_THREADS, "cache-read")
        # Of its own, for reads shall not wait behind writes to a slow disk; and one, for of two
        # versions of a block the later one is to stay.
        self._writer = ThreadPoolExecutor(1, "cache-write")

    def _open(self, limit_bytes: int) -> CacheFolder | None:
        try:
            return CacheFolder(self._where, limit_bytes)
        except OSError as exc:
            if exc.errno in _FULL:
                self._warn(_brief(exc))
                return None
            raise ShardError(
                f"{self._where}: cannot be used as a cache ({_brief(exc)}); give a folder on a "
                "local disk that you may write to"
            ) from exc

    @property
    def usable(self) -> bool:
        """Whether there is a folder to look into."""
        return self._folder is not None

    def close(self) -> None:
        """End the threads, after what they are at work on, and give up all claims."""
        self._readers.shutdown()
        self._writer.shutdown()
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    async def read(self, file: ShardFile, offset: int, nbytes: int) -> memoryview | None:
        """A range, or None unless all of it is here."""
        assert self._folder is not None
        try:
            held = await _in(self._readers, self._folder.read, file, offset, nbytes)
        except OSError as exc:
            self._warn(f"cannot be read ({_brief(exc)})")
            return None
        if held is None:
            return None
        self._stats.count(cache_bytes_read=nbytes)
        return memoryview(held)

    async def drop(self, file: ShardFile, block: int) -> None:
        """Forget a block whose bytes are wrong."""
        assert self._folder is not None
        try:
            await _in(self._readers, self._folder.drop, file, block)
        except OSError as exc:
            self._warn(f"a damaged block cannot be dropped ({_brief(exc)})")

    async def keep(self, file: ShardFile, block: int, data: memoryview) -> None:
        """Write a block, unless the disk is full or too slow."""
        if not self._keeping or self._writing >= WAITING_WRITES:
            self._stats.count(cache_not_kept=1)
            return
        assert self._folder is not None
        self._writing += 1
        try:
            evicted = await _in(self._writer, self._folder.store, file, block, data)
        except OSError as exc:
            self._stats.count(cache_not_kept=1)
            if not isinstance(exc, TimeoutError):
                self._keeping = False
                self._warn(f"cannot be written ({_brief(exc)})")
        else:
            self._stats.count(cache_evictions=evicted)
        finally:
            self._writing -= 1

    async def claim(self, file: ShardFile, block: int) -> bool:
        """Wait until no other process fetches this block, but not for ever; whether it is ours."""
        assert self._folder is not None
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE_S
        try:
            while not self._folder.claim(file, block):
                if loop.time() >= end:
                    return False
                await asyncio.sleep(POLL_S)
        except OSError as exc:
            self._warn(f"blocks cannot be locked ({_brief(exc)})")
            return False
        return True

    def give_back(self, file: ShardFile, block: int) -> None:
        """Let other processes have the block."""
        if self._folder is not None:
            self._folder.give_back(file, block)

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("cache in %s: %s; reading goes on without it", self._where, what)


async def _in(pool: ThreadPoolExecutor, call: Callable[..., _Result], *args: object) -> _Result:
    work = asyncio.get_running_loop().run_in_executor(pool, call, *args)
    # What has begun is finished, and waited for when the pool is closed.
    return await asyncio.shield(work)


def _brief(exc: OSError) -> str:
    return exc.strerror or str(exc)
