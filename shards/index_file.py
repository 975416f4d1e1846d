"""The index, ``index.parquet``, read a column at a time: a million rows cost no million objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int32, Int64
from numpy import ndarray

from shards.errors import CorruptShardError
from shards.memory import release
from shards.schema import INDEX_SCHEMA, MANIFEST
from shards.tables import check_schema
from shards.versions import index_schema, read_index

FEW_VALUES = ("shard", "source", "kernel")
"""Columns that are read as codes and a dictionary: they repeat few values."""
BATCH_ROWS = 2**16
RELEASE_BYTES = 2**20
"""Indexes above this are worth the few ms of giving memory back after each column."""


class Strings(Sequence[str]):
    """An Arrow column of strings; only those that are asked for become Python strings."""

    def __init__(self, column: pa.Array) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[str]: ...
    def __getitem__(self, row: int | slice) -> str | Sequence[str]:
        """One string, or a part of the column."""
        if isinstance(row, slice):
            return Strings(self.column[row])
        value: str = self.column[int(row)].as_py()
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.column.to_pylist())


class IndexFile:
    """The index of a dataset. Thread-safe.

    Args:
        data: the whole file, checked against its digest.
        read: gives it again.
        version: of the format.
        shards: names in the manifest, in order.
        where: names the file in errors.

    Attributes:
        num_rows: samples.
        shards: as given.

    Raises:
        CorruptShardError: not Parquet, or other columns than its version has.
    """

    def __init__(
        self,
        data: bytes,
        read: Callable[[], bytes],
        version: int,
        shards: Sequence[str],
        where: str,
    ) -> None:
        self._data: bytes | None = data
        self._read = read
        self._version = version
        self.shards = shards
        self._where = where
        if len(data) > RELEASE_BYTES:
            release()  # what fetching it took, in pieces
        with self._readable():
            found = pq.ParquetFile(pa.BufferReader(data))
        check_schema(found.schema_arrow, index_schema(version), where)
        self.num_rows = int(found.metadata.num_rows)

    def table(self) -> pa.Table:
        """All of it, with the columns of the newest version."""
        return read_index(self._bytes(), self._version, self._where)

    def columns(self, *names: str) -> list[pa.Array]:
        """Some columns, each in one piece; those of ``FEW_VALUES`` as dictionary arrays."""
        return [one_piece(self._column(name)) for name in names]

    def encoded(self, name: str) -> pa.DictionaryArray:
        """A column of strings as codes and a dictionary, in order of appearance."""
        return one_piece(self._column(name).dictionary_encode())

    def _column(self, name: str) -> pa.ChunkedArray:
        if name not in index_schema(self._version).names:
            # What an older version does not have, no sample has.
            return pa.chunked_array([pa.array(np.zeros(self.num_rows, dtype=bool))])
        coded = [name] if name in FEW_VALUES else []
        with self._readable():
            file = pq.ParquetFile(
                pa.BufferReader(self._bytes()), read_dictionary=coded, pre_buffer=False
            )
            # Whole columns at once would take three times their memory for a moment.
            pieces = file.iter_batches(BATCH_ROWS, columns=[name], use_threads=False)
            found = pa.chunked_array(
                [piece.column(0) for piece in pieces], None if self.num_rows else _empty(name)
            )
        if len(self._bytes()) > RELEASE_BYTES:
            release()
        return found

    @cached_property
    def keys(self) -> pa.Array:
        """Of the samples."""
        return self.columns("key")[0]

    @cached_property
    def shard_numbers(self) -> Int32[ndarray, " n"]:
        """Of each sample, the position of its shard in the manifest.

        Raises:
            CorruptShardError: a shard that is not there, or rows not in the order of the shards.
        """
        [column] = self.columns("shard")
        positions = {name: number for number, name in enumerate(self.shards)}
        try:
            known = [positions[name] for name in column.dictionary.to_pylist()]
        except KeyError as exc:
            raise CorruptShardError(
                f"{self._where}: names shard {exc}, which {MANIFEST} does not"
            ) from exc
        numbers: Int32[ndarray, " n"] = np.array(known, dtype=np.int32)[codes(column)]
        if np.any(np.diff(numbers) < 0):
            raise CorruptShardError(f"{self._where}: its rows are not in the order of the shards")
        return numbers

    @cached_property
    def shard_starts(self) -> Int64[ndarray, " shards1"]:
        """First row of each shard, then the number of rows."""
        return np.searchsorted(self.shard_numbers, np.arange(len(self.shards) + 1))

    @cached_property
    def shapes(self) -> Int32[ndarray, "n 3"]:
        """(z, y, x), voxels."""
        shapes: Int32[ndarray, "n 3"] = self.columns("shape_zyx")[0].flatten().to_numpy()
        return shapes.reshape(-1, 3)

    @cached_property
    def offsets(self) -> Int64[ndarray, " n"]:
        """Of each sample's zshard in its shard."""
        offsets: Int64[ndarray, " n"] = self.columns("offset")[0].to_numpy()
        return offsets

    def forget(self) -> None:
        """Free the file's bytes: they are read again if another column is asked for."""
        self._data = None

    def _bytes(self) -> bytes:
        data = self._data
        if data is None:
            data = self._data = self._read()
        return data

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as exc:
            raise CorruptShardError(f"{self._where}: not a readable Parquet file ({exc})") from exc


def one_piece(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; copied only where it has several pieces."""
    if column.num_chunks == 1:
        return column.chunk(0)
    column = column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column
    return column.combine_chunks()


def codes(column: pa.DictionaryArray) -> Int32[ndarray, " n"]:
    """Of each row, its value's position in the dictionary."""
    found: Int32[ndarray, " n"] = column.indices.to_numpy()
    return found


def _empty(name: str) -> pa.DataType:
    stored = INDEX_SCHEMA.field(name).type
    return pa.dictionary(pa.int32(), stored) if name in FEW_VALUES else stored
