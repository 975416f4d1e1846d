"""A dataset as a Zarr store: ``zarr.open_array(ZarrStore.open_url(url), path=KEY)`` on any URL.

The root is a group; a volume is the array ``KEY``, its labels are the array ``KEY.seg``. Only what
is asked for is read, in ranges of the shards:

    metadata of a volume     no request: it follows from ``index.parquet``
    metadata of labels       one range, and once for each shard its ``.idx``
    a region                 the array's chunk index, once, and a range for each stored chunk
    a whole array            its zshard in parts of 8 MiB, side by side

zarr-python 3.1 asks for the chunks of one region one after another; several regions (the threads of
dask) are read side by side. Samples that were withdrawn are not there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from weakref import WeakValueDictionary

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from shards.dataset import Dataset
from shards.errors import ShardError
from shards.fetcher import RangeFetcher
from shards.reading import open_fetcher
from shards.sidecars import CHUNK_KEY, ROOT_GROUP
from shards.zarr_arrays import ArrayPlace, ArrayReader

METADATA = "zarr.json"
"""Key of a group's or an array's metadata, below its path (Zarr v3)."""
_OPEN: WeakValueDictionary[tuple[str, str], ZarrStore] = WeakValueDictionary()
"""Open stores by URL and generation id: one that is unpickled beside them is one of them."""
_UNPICKLED: deque[ZarrStore] = deque(maxlen=8)
"""Kept open: a worker that gets one task after the other opens the dataset once."""


class ZarrStore(Store):
    """A read-only Zarr store over the shards of a dataset.

    It holds the threads of its fetcher until it is closed or dropped. It can be pickled: it is
    opened anew where it is unpickled, once for each process, and refuses another generation of the
    dataset. After a fork it refuses to work.

    Attributes:
        dataset: what it shows.
    """

    def __init__(self, dataset: Dataset, fetcher: RangeFetcher) -> None:
        """Show ``dataset``, whose shards ``fetcher`` reads, which is closed with the store."""
        super().__init__(read_only=True)
        self.dataset = dataset
        self._arrays = ArrayReader(dataset, fetcher)
        _OPEN.setdefault(self._identity(), self)

    @classmethod
    def open_url(cls, url: str | Path) -> ZarrStore:
        """Open a dataset by its folder or URL.

        Raises:
            ShardError: as ``Dataset.open``.
        """
        dataset = Dataset.open(url)
        return cls(dataset, open_fetcher(dataset.store))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZarrStore) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __str__(self) -> str:
        return f"shards at {self.dataset.url}"

    def __reduce__(self) -> tuple[Callable[..., ZarrStore], tuple[str, str]]:
        return _unpickle, self._identity()

    def _identity(self) -> tuple[str, str]:
        return self.dataset.url, self.dataset.manifest.generation_id

    def close(self) -> None:
        """End its threads and connections."""
        super().close()
        if _OPEN.get(self._identity()) is self:
            del _OPEN[self._identity()]
        self._arrays.close()

    def with_read_only(self, read_only: bool = False) -> ZarrStore:
        """The store itself; ValueError when it is to be written."""
        if not read_only:
            raise ValueError("shards never change: this store is read-only")
        return self

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """A value, or a part of it; None when there is no such key.

        Raises:
            ShardError: its bytes cannot be read. A missing shard is not a missing key, which zarr
                takes for air.
        """
        if key == METADATA:
            return _cut(ROOT_GROUP.encode(), prototype, byte_range)
        array, rest = self._split(key)
        if array is None or rest not in (METADATA, CHUNK_KEY):
            return None
        if rest == METADATA:
            return _cut(await self._arrays.metadata(array), prototype, byte_range)
        start, stop = _bounds(byte_range, (await self._arrays.place(array))[1])
        return prototype.buffer.from_bytes(await self._arrays.zshard(array, start, stop))

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Several values or parts, read side by side, in the order in which they were named."""
        asked = (self.get(key, prototype, byte_range) for key, byte_range in key_ranges)
        return list(await asyncio.gather(*asked))

    async def exists(self, key: str) -> bool:
        """Whether the dataset has such a key; no request."""
        array, rest = self._split(key)
        return key == METADATA or (array is not None and rest in (METADATA, CHUNK_KEY))

    async def getsize(self, key: str) -> int:
        """Length of a value; of a volume without a request.

        Raises:
            FileNotFoundError: no such key.
        """
        array, rest = self._split(key)
        if key == METADATA:
            return len(ROOT_GROUP)
        if array is None or rest not in (METADATA, CHUNK_KEY):
            raise FileNotFoundError(key)
        if rest == METADATA:
            return len(await self._arrays.metadata(array))
        return (await self._arrays.place(array))[1]

    async def list(self) -> AsyncIterator[str]:
        """Every key; no request."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every key that begins with ``prefix``; no request."""
        for key in self._keys(prefix):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly under ``prefix``; no request."""
        start = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        # A dict keeps the order and takes each name once.
        for name in dict.fromkeys(key[len(start) :].split("/")[0] for key in self._keys(start)):
            yield name

    @property
    def supports_writes(self) -> bool:
        """Never."""
        return False

    @property
    def supports_deletes(self) -> bool:
        """Never."""
        return False

    @property
    def supports_listing(self) -> bool:
        """Always: the index names every array."""
        return True

    @property
    def supports_consolidated_metadata(self) -> bool:
        """Not needed: metadata of volumes cost no request."""
        return False

    async def set(self, key: str, value: Buffer) -> None:
        """Always refused, with ValueError."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Always refused, with ValueError."""
        self._check_writable()

    def _keys(self, prefix: str) -> Iterator[str]:
        if METADATA.startswith(prefix):
            yield METADATA
        for name in self._names(prefix):
            for rest in (METADATA, CHUNK_KEY):
                if (key := f"{name}/{rest}").startswith(prefix):
                    yield key

    def _names(self, prefix: str) -> Iterator[str]:
        """Arrays that keys of ``prefix`` may belong to."""
        name, slash, _ = prefix.partition("/")
        if slash:
            yield from [name] * (self._arrays.find(name) is not None)
            return
        yield from self._arrays.names()

    def _split(self, key: str) -> tuple[ArrayPlace | None, str]:
        name, _, rest = key.partition("/")
        return self._arrays.find(name), rest


def _unpickle(url: str, generation_id: str) -> ZarrStore:
    store = _OPEN.get((url, generation_id))
    if store is None:
        store = ZarrStore.open_url(url)
        if store._identity() != (url, generation_id):
            raise ShardError(f"{url}: has changed since it was opened; open it again where it was")
        _UNPICKLED.append(store)
    return store


def _bounds(byte_range: ByteRequest | None, size: int) -> tuple[int, int]:
    """First byte and the one after the last of what is asked of a value of ``size`` bytes."""
    match byte_range:
        case None:
            return 0, size
        case RangeByteRequest(start, end):
            return min(start, size), min(end, size)
        case OffsetByteRequest(offset):
            return min(offset, size), size
        case SuffixByteRequest(suffix):
            return max(0, size - suffix), size


def _cut(data: bytes, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer:
    start, stop = _bounds(byte_range, len(data))
    return prototype.buffer.from_bytes(data[start:stop])
