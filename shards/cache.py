"""A local cache between the stream and a slow or costly storage.

Whole blocks of compressed shards are kept on a local disk, the least recently used shards go first,
and the processes of a node share one folder; `shards.cache_files` says how. Objects that are no
shards (tables) are not kept.

The cache changes no verdict and no byte: where it cannot help it stands aside. A block that cannot
be fetched whole, because the object ends early, is asked for as the caller asked. Bytes that rot on
the disk are found by the chunks' checksums above, which ask again by `CachingReader.get_fresh`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from shards.cache_disk import CacheDisk
from shards.cache_layout import BLOCK_BYTES, ShardFile
from shards.errors import ServiceError, ShardError
from shards.requests import RangeReader
from shards.stats import Stats

_Result = TypeVar("_Result")


@runtime_checkable
class ShardLike(Protocol):
    """What the cache wants to know of a shard; `shards.schema.ShardEntry` is one."""

    @property
    def bytes(self) -> int:
        """Size of the object."""

    @property
    def sha256(self) -> str:
        """Its digest in hexadecimal."""


class _Flight:
    """A block on its way, and how many calls wait for it."""

    def __init__(self, path: str, file: ShardFile, block: int, *, fresh: bool) -> None:
        self.path = path
        self.file = file
        self.block = block
        self.fresh = fresh
        """From the storage, whatever the folder holds."""
        self.requested = False
        self.waiting = 0
        self.data: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Stop, unless the bytes are there: then they are kept."""
        if self.task is not None and self.data.cancel():
            self.task.cancel()


class CachingReader:
    """Gives ranges of shards from a local folder, and fetches what is not there.

    Counters: ``cache_hits`` and ``cache_misses`` (blocks asked for, without and with a request of
    their own), ``cache_bytes_read`` (from the folder), ``cache_bytes_fetched`` (from the storage),
    ``cache_evictions`` (files), ``cache_not_kept`` (blocks; the disk was too slow or full).
    """

    def __init__(
        self,
        reader: RangeReader,
        folder: Path,
        limit_bytes: int,
        shards: Mapping[str, ShardLike],
        stats: Stats,
        *,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        """Open the folder, and make it if it is not there.

        Args:
            reader: where the bytes come from; closed with this one.
            folder: on a local disk. Processes may share it, each with its own limit.
            limit_bytes: of disk space, all included.
            shards: size and digest by path.
            stats: takes the counters.
            block_bytes: of one request, and of one unit of the cache.

        Raises:
            ShardError: the folder cannot be used.
        """
        self._reader = reader
        self._stats = stats
        files = {path: ShardFile(s.sha256, s.bytes, block_bytes) for path, s in shards.items()}
        # A digest that is none names no file.
        self._files = {path: file for path, file in files.items() if ShardFile.named(file.name)}
        self._closed = False
        self._flights: dict[tuple[str, int], _Flight] = {}
        self._tasks: dict[asyncio.Task[None], _Flight] = {}
        least = block_bytes + max((file.overhead for file in self._files.values()), default=0)
        self._disk = CacheDisk(folder, limit_bytes, least, stats)

    async def get_range(self, path: str, offset: int, nbytes: int) -> memoryview:
        """``nbytes`` bytes, at least 1, of object ``path`` from ``offset`` on.

        Raises:
            FileNotFoundError: no such object.
            ShardError: it cannot be read, or ends before.
        """
        file = self._kept(path, offset, nbytes)
        if file is None:
            return await self._reader.get_range(path, offset, nbytes)
        blocks = file.covering(offset, nbytes)
        if not any((path, block) in self._flights for block in blocks):
            held = await self._disk.read(file, offset, nbytes)
            if held is not None:
                self._stats.count(cache_hits=len(blocks))
                return held
        return await self._assemble(path, file, offset, nbytes, fresh=False)

    async def get_fresh(self, path: str, offset: int, nbytes: int) -> memoryview:
        """As `get_range`, from the storage: what is cached was wrong, and is replaced.

        Raises:
            FileNotFoundError: no such object.
            ShardError: it cannot be read, or ends before.
        """
        file = self._kept(path, offset, nbytes)
        if file is None:
            return await self._reader.get_range(path, offset, nbytes)
        return await self._assemble(path, file, offset, nbytes, fresh=True)

    async def close(self) -> None:
        """End the requests at work, finish what is being written, close the reader below."""
        self._closed = True
        for flight in list(self._tasks.values()):
            flight.cancel()
        self._flights.clear()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._disk.close()
        await self._reader.close()

    def _kept(self, path: str, offset: int, nbytes: int) -> ShardFile | None:
        """The file for a range, if it is one that the cache keeps."""
        file = self._files.get(path) if self._disk.usable else None
        return file if file is not None and offset + nbytes <= file.nbytes else None

    async def _assemble(
        self, path: str, file: ShardFile, offset: int, nbytes: int, *, fresh: bool
    ) -> memoryview:
        """A range from its blocks, each from wherever it is."""
        pieces = []
        for block in file.covering(offset, nbytes):
            start, size = file.span(block)
            low, high = max(offset, start) - start, min(offset + nbytes - start, size)
            pieces.append(self._piece(path, file, block, slice(low, high), fresh=fresh))
        try:
            parts = await _all(pieces)
        except ServiceError:
            raise
        except ShardError:
            # The fault may lie in a part of a block that the caller did not ask for.
            return await self._reader.get_range(path, offset, nbytes)
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    async def _piece(
        self, path: str, file: ShardFile, block: int, part: slice, *, fresh: bool
    ) -> memoryview:
        """A part of one block."""
        nbytes = part.stop - part.start
        flight = self._flights.get((path, block))
        if flight is None and not fresh:
            held = await self._disk.read(file, file.span(block)[0] + part.start, nbytes)
            if held is not None:
                self._stats.count(cache_hits=1)
                return held
            flight = self._flights.get((path, block))
        ours = flight is None or (fresh and not flight.fresh)
        if flight is None or ours:
            flight = self._start(_Flight(path, file, block, fresh=fresh))
        data = await self._join(flight)
        if not (ours and flight.requested):
            self._stats.count(cache_hits=1)
        # A copy, for a slice would keep the whole block in memory.
        return data if len(data) == nbytes else memoryview(bytes(data[part]))

    def _start(self, flight: _Flight) -> _Flight:
        if self._closed:
            raise RuntimeError("the cache is closed")
        self._flights[flight.path, flight.block] = flight
        flight.task = asyncio.get_running_loop().create_task(self._fly(flight))
        self._tasks[flight.task] = flight
        flight.task.add_done_callback(self._tasks.pop)
        return flight

    async def _join(self, flight: _Flight) -> memoryview:
        """Wait for a block; the last who gives up cancels its request."""
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.data)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.data.done():
                self._forget(flight)
                flight.cancel()

    def _forget(self, flight: _Flight) -> None:
        if self._flights.get((flight.path, flight.block)) is flight:
            del self._flights[flight.path, flight.block]

    async def _fly(self, flight: _Flight) -> None:
        """Bring a block, hand it out, then keep it: nobody waits for the disk."""
        claimed = False
        try:
            claimed = not flight.fresh and await self._disk.claim(flight.file, flight.block)
            flight.data.set_result(await self._bring(flight))
            if flight.requested:
                await self._disk.keep(flight.file, flight.block, flight.data.result())
        except Exception as exc:
            if flight.data.done():
                raise
            flight.data.set_exception(exc)
            flight.data.exception()  # seen, also when nobody waits any more
        finally:
            flight.data.cancel()
            self._forget(flight)
            if claimed:
                self._disk.give_back(flight.file, flight.block)

    async def _bring(self, flight: _Flight) -> memoryview:
        """A whole block, from the folder if another process brought it there meanwhile."""
        start, size = flight.file.span(flight.block)
        if flight.fresh:
            await self._disk.drop(flight.file, flight.block)
        else:
            held = await self._disk.read(flight.file, start, size)
            if held is not None:
                return held
        flight.requested = True
        self._stats.count(cache_misses=1, cache_bytes_fetched=size)
        return await self._reader.get_range(flight.path, start, size)


async def _all(calls: Iterable[Coroutine[None, None, _Result]]) -> list[_Result]:
    """All results; the first error cancels the other calls."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
