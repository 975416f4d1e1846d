"""Where the chunks of samples lie, read a shard at a time when first asked for.

All chunks of a million volumes are 3 GB of numbers; training needs those of the few shards that it
is in. The tables of the shards used last are kept, within a bound in bytes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar, cast, overload

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int32, Int64
from numpy import ndarray

from shards.errors import CorruptShardError
from shards.index_file import IndexFile, Strings, one_piece
from shards.schema import CHUNKS

CACHE_BYTES = 32 * 2**20
"""Of tables that are kept: 300 shards of 30 volumes of 250 chunks."""
PREFETCH_THREADS = 4

Array = TypeVar("Array", bound="ndarray[Any, Any]")


@dataclass(frozen=True)
class Ragged(Sequence[Array], Generic[Array]):
    """Rows of unequal length as one flat array: a million rows cost no million objects."""

    flat: Array
    splits: Int64[ndarray, " ends"]
    """One more than there are rows: row ``i`` is ``flat[splits[i]:splits[i + 1]]``."""

    def __len__(self) -> int:
        return len(self.splits) - 1

    @overload
    def __getitem__(self, row: int) -> Array: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Array]: ...
    def __getitem__(self, row: int | slice) -> Array | Sequence[Array]:
        """One row as a view, or a list of them."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        at = range(len(self))[row]
        return cast("Array", self.flat[self.splits[at] : self.splits[at + 1]])

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Ragged[Any]:
        """Rows of a column of lists."""
        lists = one_piece(column)
        # flatten() drops what slicing hid, so the splits are counted again from the lengths.
        lengths = lists.value_lengths().to_numpy()
        splits = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return cls(lists.flatten().to_numpy(zero_copy_only=False), splits)


@dataclass(frozen=True, kw_only=True)
class ChunkRow:
    """Chunks of one sample, in C order of its chunk grid."""

    offsets: Int64[ndarray, " n"]
    """From the start of the sample's zshard."""
    nbytes: Int32[ndarray, " n"]
    """0: absent, every voxel is -1024."""
    air_mask: Bool[ndarray, " n"]
    """No voxel above -500 HU."""


@dataclass(frozen=True, kw_only=True)
class _Group:
    """The samples of one shard."""

    offsets: Ragged[Int64[ndarray, " _n"]]
    nbytes: Ragged[Int32[ndarray, " _n"]]
    air_mask: Ragged[Bool[ndarray, " _n"]]

    @property
    def size(self) -> int:
        """Bytes in memory."""
        parts = (self.offsets, self.nbytes, self.air_mask)
        return sum(part.flat.nbytes + part.splits.nbytes for part in parts)


class Field(Generic[Array]):
    """One part of the rows of all samples: ``field[sample]``."""

    def __init__(self, tables: ChunkTables, name: str) -> None:
        self._tables = tables
        self._name = name

    def __getitem__(self, sample: int) -> Array:
        """Of the sample in row ``sample`` of the index.

        Raises:
            ShardError: see ``ChunkTables.row``.
        """
        return cast("Array", getattr(self._tables.row(sample), self._name))


class ChunkTables:
    """Chunks of every sample of a dataset. A context manager; thread-safe.

    Args:
        read: gives the rows of a shard, checked to be those of its samples.
        index: of the same dataset.
        chunk_side: voxels.
        cache_bytes: tables beyond this are dropped, the least recently used first.

    Attributes:
        offsets, nbytes, air_mask: parts of ``row(sample)``, as ``offsets[sample]``.
    """

    def __init__(
        self,
        read: Callable[[int], pa.Table],
        index: IndexFile,
        chunk_side: int,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.offsets: Field[Int64[ndarray, " _n"]] = Field(self, "offsets")
        self.nbytes: Field[Int32[ndarray, " _n"]] = Field(self, "nbytes")
        self.air_mask: Field[Bool[ndarray, " _n"]] = Field(self, "air_mask")
        self._read = read
        self._index = index
        self._chunk_side = chunk_side
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, _Group] = OrderedDict()
        self._kept_bytes = 0
        self._flying: dict[int, Future[_Group]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return self._index.num_rows

    @property
    def keys(self) -> Strings:
        """Of all samples, as ``keys[sample]``."""
        return Strings(self._index.keys)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the tables that are in memory."""
        return self._kept_bytes

    def row(self, sample: int) -> ChunkRow:
        """Chunks of row ``sample`` of the index. The first of a shard costs one request.

        Raises:
            CorruptShardError: the chunk table is not as described, or of another generation.
            ShardError: it cannot be read.
        """
        sample = range(len(self))[sample]
        shard = self._shard_of(sample)
        group, place = self._group(shard), sample - int(self._index.shard_starts[shard])
        return ChunkRow(
            offsets=group.offsets[place],
            nbytes=group.nbytes[place],
            air_mask=group.air_mask[place],
        )

    def prefetch(self, shards: Iterable[int]) -> None:
        """Read the tables of some shards (positions in the manifest) in the background.

        What goes wrong is raised when one of their samples is asked for.
        """
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(PREFETCH_THREADS, "chunk-table")
            for shard in shards:
                if shard not in self._kept and shard not in self._flying:
                    self._pool.submit(self._group, shard)

    def close(self) -> None:
        """End prefetching, and wait for what is at work. Rows can be asked for as before."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def __enter__(self) -> ChunkTables:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _shard_of(self, sample: int) -> int:
        return int(np.searchsorted(self._index.shard_starts, sample, side="right")) - 1

    def _group(self, shard: int) -> _Group:
        """The table of a shard: kept, being read by another thread, or read now."""
        with self._lock:
            if (kept := self._kept.get(shard)) is not None:
                self._kept.move_to_end(shard)
                return kept
            flying = self._flying.get(shard)
            if flying is None:
                mine = self._flying[shard] = Future()
        if flying is not None:
            return flying.result()
        try:
            group = self._parse(shard)
        except BaseException as exc:
            with self._lock:
                del self._flying[shard]
            mine.set_exception(exc)
            raise
        with self._lock:
            del self._flying[shard]
            self._keep(shard, group)
        mine.set_result(group)
        return group

    def _keep(self, shard: int, group: _Group) -> None:
        self._kept[shard] = group
        self._kept_bytes += group.size
        while self._kept_bytes > self._cache_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= dropped.size

    def _parse(self, shard: int) -> _Group:
        table = self._read(shard)
        group = _Group(
            offsets=Ragged.of(table["chunk_offsets"]),
            nbytes=Ragged.of(table["chunk_nbytes"]),
            air_mask=Ragged.of(table["air_mask"]),
        )
        first, stop = self._index.shard_starts[shard : shard + 2].tolist()
        expected = (-(-self._index.shapes[first:stop] // self._chunk_side)).prod(axis=1)
        for part in (group.offsets, group.nbytes, group.air_mask):
            listed = np.diff(part.splits)
            for wrong in np.flatnonzero(listed != expected)[:1].tolist():
                raise CorruptShardError(
                    f"{CHUNKS}: {self.keys[first + wrong]}: its shape has {expected[wrong]} "
                    f"chunks, but {listed[wrong]} are listed; check the dataset with "
                    "`ingest verify`"
                )
        return group
