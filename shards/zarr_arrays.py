"""Where the Zarr arrays of a dataset lie, and their bytes, in few ranges of the shards."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from shards.codec import chunk_grid, index_nbytes, zarr_metadata
from shards.dataset import Dataset
from shards.digest import sha256
from shards.errors import CorruptShardError
from shards.fetcher import RangeFetcher
from shards.schema import LABEL_DATA_SUFFIX, LABEL_ZARR_SUFFIX, idx_name
from shards.sidecars import parse_idx
from shards.tar import Member

PART_BYTES = 8 * 2**20
"""A longer range is read in such parts, side by side: one connection to a bucket is slow."""
KEPT = 4096
"""Arrays whose chunk index and metadata are kept in memory: kilobytes each."""
KEPT_SHARDS = 64
"""Shards whose ``.idx`` is kept in memory."""
LABELS = ".seg"
"""After the key of a sample: the array of its labels."""


@dataclass(frozen=True, kw_only=True)
class ArrayPlace:
    """The array of a volume, or of its labels."""

    name: str
    key: str
    shard: str
    n_chunks: int
    metadata: bytes
    """Empty for labels: it has to be read."""
    zshard: tuple[int, int]
    """Offset and length in the shard; zeros for labels."""


T = TypeVar("T")


class _Recent(Generic[T]):
    """What was used last, by name."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[str, T] = OrderedDict()

    def take(self, name: str) -> T | None:
        """What has this name: no longer here, so put it back."""
        return self._held.pop(name, None)

    def put(self, name: str, value: T) -> T:
        """Keep ``value``, and drop what was not used for longest; ``value`` again."""
        self._held[name] = value
        if len(self._held) > self._most:
            self._held.popitem(last=False)
        return value


class ArrayReader:
    """Finds arrays by name, ``KEY`` or ``KEY.seg``, and reads them."""

    def __init__(self, dataset: Dataset, fetcher: RangeFetcher) -> None:
        self._dataset = dataset
        self._fetcher = fetcher
        self._arrays: _Recent[ArrayPlace] = _Recent(KEPT)
        self._reads: _Recent[Future[memoryview]] = _Recent(KEPT)
        self._idx: _Recent[dict[str, dict[str, Member]]] = _Recent(KEPT_SHARDS)

    def close(self) -> None:
        """Close the fetcher."""
        self._fetcher.close()

    @cached_property
    def _index(self) -> pa.Table:
        names = ["key", "shard", "shape_zyx", "offset", "nbytes", "labelled"]
        return pa.table(self._dataset.index_file.columns(*names), names)

    def names(self) -> Iterator[str]:
        """Names of all arrays, in index order."""
        for rows in self._index.select(["key", "labelled"]).to_batches(max_chunksize=10_000):
            for key, labelled in zip(*(column.to_pylist() for column in rows), strict=True):
                yield key
                if labelled:
                    yield key + LABELS

    def find(self, name: str) -> ArrayPlace | None:
        """What the index says of an array; None when there is none of that name."""
        found = self._arrays.take(name) or self._look_up(name)
        return found and self._arrays.put(name, found)

    def _look_up(self, name: str) -> ArrayPlace | None:
        index = self._index
        key = name.removesuffix(LABELS)
        at = pc.index(index["key"], pa.scalar(key, index["key"].type)).as_py()
        row = index.slice(at, 1).to_pylist()[0] if at >= 0 else None
        if row is None or (name != key and not row["labelled"]):
            return None
        profile = self._dataset.manifest.contract.recorded.profile
        shape = tuple(row["shape_zyx"])
        return ArrayPlace(
            name=name,
            key=key,
            shard=row["shard"],
            n_chunks=math.prod(chunk_grid(shape, self._dataset.chunk_side)),
            metadata=zarr_metadata(shape, profile) if name == key else b"",
            zshard=(row["offset"], row["nbytes"]) if name == key else (0, 0),
        )

    async def metadata(self, array: ArrayPlace) -> bytes:
        """Its ``zarr.json``: of a volume without a request.

        Raises:
            ShardError: it cannot be read.
        """
        if array.metadata:
            return array.metadata
        member = await self._member(array, LABEL_ZARR_SUFFIX)
        where = array.shard, member.offset, member.nbytes
        return bytes(await self._once(f"{array.name} metadata", *where))

    async def place(self, array: ArrayPlace) -> tuple[int, int]:
        """Offset and length of its zshard in the shard: of a volume without a request.

        Raises:
            ShardError: they cannot be read.
        """
        if array.zshard[1]:
            return array.zshard
        member = await self._member(array, LABEL_DATA_SUFFIX)
        return member.offset, member.nbytes

    async def zshard(self, array: ArrayPlace, start: int, stop: int) -> memoryview:
        """Bytes of its zshard from ``start`` to ``stop``; its chunk index is read once.

        Raises:
            ShardError: they cannot be read.
        """
        offset, _ = await self.place(array)
        if (start, stop) == (0, index_nbytes(array.n_chunks)):
            # Asked for with each region.
            return await self._once(array.name, array.shard, offset, stop)
        return await self._read(array.shard, offset + start, stop - start)

    async def _member(self, array: ArrayPlace, suffix: str) -> Member:
        """A member of the array's sample, which the index does not place."""
        samples = self._idx.take(array.shard) or await self._read_idx(array.shard)
        self._idx.put(array.shard, samples)
        try:
            return samples[array.key][suffix]
        except KeyError as exc:
            raise CorruptShardError(
                f"{idx_name(array.shard)}: lacks {exc} of sample {array.key}"
            ) from exc

    async def _read_idx(self, shard: str) -> dict[str, dict[str, Member]]:
        [idx] = [entry.idx for entry in self._dataset.manifest.shards if entry.name == shard]
        data = bytes(await self._once(idx.name, idx.name, 0, idx.bytes))
        if sha256(data) != idx.sha256:
            raise CorruptShardError(f"{idx.name}: SHA-256 is not that of the manifest")
        return parse_idx(data, idx.name)

    async def _once(self, name: str, path: str, offset: int, nbytes: int) -> memoryview:
        """A short range, read once, also when several ask before it is there."""
        answer = self._reads.take(name)
        if answer is None or (answer.done() and (answer.cancelled() or answer.exception())):
            answer = self._fetcher.submit(path, offset, nbytes)
        self._reads.put(name, answer)
        # One who gives up does not end it for the others.
        return await self._answer(path, [asyncio.shield(asyncio.wrap_future(answer))])

    async def _read(self, path: str, offset: int, nbytes: int) -> memoryview:
        """A range, in parts side by side where it is long."""
        return await self._answer(
            path,
            [
                asyncio.wrap_future(
                    self._fetcher.submit(path, offset + at, min(PART_BYTES, nbytes - at))
                )
                for at in range(0, nbytes, PART_BYTES)
            ],
        )

    async def _answer(self, path: str, asked: Sequence[asyncio.Future[memoryview]]) -> memoryview:
        try:
            parts = await asyncio.gather(*asked)
        except FileNotFoundError as exc:
            raise CorruptShardError(f"{self._dataset.url}: {path}: missing") from exc
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
