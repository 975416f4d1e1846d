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
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import pyarrow as pa
import pyarrow.compute as pc
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from shards.codec import chunk_grid, index_nbytes, zarr_metadata
from shards.dataset import Dataset
from shards.digest import sha256
from shards.errors import CorruptShardError, ShardError
from shards.requests import RangeReader
from shards.schema import LABEL_DATA_SUFFIX, LABEL_ZARR_SUFFIX, ShardEntry
from shards.sidecars import CHUNK_KEY, ROOT_GROUP, parse_idx
from shards.store import StoreReader
from shards.tar import Member

PART_BYTES = 8 * 2**20
"""A longer range is read in such parts, side by side: one connection to a bucket is slow."""
CACHED = 4096
"""Chunk indexes, label metadata and ``.idx`` files kept in memory: kilobytes each."""
METADATA = "zarr.json"
LABELS = ".seg"
"""After the key of a sample: the array of its labels."""


_OPEN: WeakValueDictionary[tuple[str, str], ZarrStore] = WeakValueDictionary()
"""By URL and generation id: unpickling in the process that pickled opens nothing."""


@dataclass(frozen=True, kw_only=True)
class _Array:
    """A volume, or its labels."""

    name: str
    key: str
    shard: str
    n_chunks: int
    metadata: bytes
    """Empty for labels: it has to be read."""
    zshard: tuple[int, int]
    """Offset and length in the shard; zeros for labels."""


class ZarrStore(Store):
    """A read-only Zarr store over the shards of a dataset.

    It can be pickled: it is opened anew where it is unpickled, once for each process, and refuses
    another generation of the dataset.
    """

    def __init__(self, dataset: Dataset, reader: RangeReader) -> None:
        """Show ``dataset``, whose shards ``reader`` reads; the caller closes ``reader``."""
        super().__init__(read_only=True)
        self.dataset = dataset
        self._reader = reader
        self._reads: OrderedDict[str, asyncio.Task[Any]] = OrderedDict()
        self._array = lru_cache(maxsize=CACHED)(self._find_array)
        _OPEN.setdefault(self._identity(), self)

    @classmethod
    def open_url(cls, url: str | Path) -> ZarrStore:
        """Open a dataset by its folder or URL.

        Raises:
            ShardError: as ``Dataset.open``.
        """
        dataset = Dataset.open(url)
        return cls(dataset, StoreReader(dataset.store))

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
            return _cut(await self._metadata(array), prototype, byte_range)
        return prototype.buffer.from_bytes(await self._zshard(array, byte_range))

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
            return len(await self._metadata(array))
        return (await self._place(array))[1]

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
            yield from [name] * (self._array(name) is not None)
            return
        index = self.dataset.index
        for batch in index.select(["key", "labelled"]).to_batches():
            for key, labelled in zip(*(column.to_pylist() for column in batch), strict=True):
                yield key
                if labelled:
                    yield key + LABELS

    def _split(self, key: str) -> tuple[_Array | None, str]:
        name, _, rest = key.partition("/")
        return self._array(name), rest

    def _find_array(self, name: str) -> _Array | None:
        index = self.dataset.index
        key = name.removesuffix(LABELS)
        at = pc.index(index["key"], pa.scalar(key, index["key"].type)).as_py()
        row = index.slice(at, 1).to_pylist()[0] if at >= 0 else None
        if row is None or (name != key and not row["labelled"]):
            return None
        profile = self.dataset.manifest.contract.recorded.profile
        shape = tuple(row["shape_zyx"])
        return _Array(
            name=name,
            key=key,
            shard=row["shard"],
            n_chunks=math.prod(chunk_grid(shape, self.dataset.chunk_side)),
            metadata=zarr_metadata(shape, profile) if name == key else b"",
            zshard=(row["offset"], row["nbytes"]) if name == key else (0, 0),
        )

    async def _metadata(self, array: _Array) -> bytes:
        if array.metadata:
            return array.metadata
        member = (await self._members(array))[LABEL_ZARR_SUFFIX]
        where = array.shard, member.offset, member.nbytes
        return bytes(await self._once(f"{array.name}/{METADATA}", lambda: self._read(*where)))

    async def _place(self, array: _Array) -> tuple[int, int]:
        """Offset and length of an array's zshard in its shard."""
        if array.zshard[1]:
            return array.zshard
        member = (await self._members(array))[LABEL_DATA_SUFFIX]
        return member.offset, member.nbytes

    async def _zshard(self, array: _Array, byte_range: ByteRequest | None) -> memoryview:
        offset, size = await self._place(array)
        start, stop = _bounds(byte_range, size)
        if (start, stop) == (0, index_nbytes(array.n_chunks)):
            # Asked for with each region.
            index: memoryview = await self._once(
                array.name, lambda: self._read(array.shard, offset, stop)
            )
            return index
        return await self._read(array.shard, offset + start, stop - start)

    async def _members(self, array: _Array) -> dict[str, Member]:
        """Members of a sample by suffix."""
        samples = await self._once(array.shard, lambda: self._read_idx(array.shard))
        try:
            members: dict[str, Member] = samples[array.key]
            return {suffix: members[suffix] for suffix in (LABEL_ZARR_SUFFIX, LABEL_DATA_SUFFIX)}
        except KeyError as exc:
            raise CorruptShardError(f"{array.shard}.idx: lacks {exc} of {array.key}") from exc

    async def _read_idx(self, shard: str) -> dict[str, dict[str, Member]]:
        entry: ShardEntry
        [entry] = [one for one in self.dataset.manifest.shards if one.name == shard]
        data = bytes(await self._read(entry.idx.name, 0, entry.idx.bytes))
        if sha256(data) != entry.idx.sha256:
            raise CorruptShardError(f"{entry.idx.name}: SHA-256 is not that of the manifest")
        return parse_idx(data, entry.idx.name)

    async def _once(self, name: str, read: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """What ``read`` gives: read once, also when several ask before it is there."""
        task = self._reads.pop(name, None)
        loop = asyncio.get_running_loop()
        if task is None or task.get_loop() is not loop or _failed(task):
            task = loop.create_task(read())
        self._reads[name] = task
        if len(self._reads) > CACHED:
            self._reads.popitem(last=False)
        # One who gives up does not end it for the others.
        return await asyncio.shield(task)

    async def _read(self, path: str, offset: int, nbytes: int) -> memoryview:
        """A range, in parts side by side where it is long."""
        starts = range(0, nbytes, PART_BYTES)
        try:
            parts = await asyncio.gather(
                *(
                    self._reader.get_range(path, offset + at, min(PART_BYTES, nbytes - at))
                    for at in starts
                )
            )
        except FileNotFoundError as exc:
            raise CorruptShardError(f"{self.dataset.url}: {path}: missing") from exc
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _unpickle(url: str, generation_id: str) -> ZarrStore:
    found = _OPEN.get((url, generation_id))
    return _open_again(url, generation_id) if found is None else found


# Kept: a worker that gets one task after the other opens the dataset once.
@lru_cache(maxsize=8)
def _open_again(url: str, generation_id: str) -> ZarrStore:
    store = ZarrStore.open_url(url)
    if store._identity() != (url, generation_id):
        raise ShardError(f"{url}: has changed since it was opened elsewhere; open it again there")
    return store


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


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
