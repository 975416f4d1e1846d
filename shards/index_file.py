"""The index, ``index.parquet``, read a column at a time: a million rows cost no million objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int32
from numpy import ndarray

from shards.errors import CorruptShardError
from shards.schema import MANIFEST
from shards.tables import check_schema
from shards.versions import index_schema, read_index

FEW_VALUES = ("shard", "source", "kernel")
"""Columns that are read as codes and a dictionary: they repeat few values."""


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
    """The bytes of an index, already checked against their digest.

    Args:
        data: the whole file.
        version: of the format.
        where: names it in errors.

    Raises:
        CorruptShardError: not Parquet, or other columns than its version has.
    """

    def __init__(self, data: bytes, version: int, where: str) -> None:
        self._data = data
        self._version = version
        self._where = where
        with self._readable():
            found = pq.ParquetFile(pa.BufferReader(data))
        check_schema(found.schema_arrow, index_schema(version), where)
        self.num_rows = int(found.metadata.num_rows)

    def columns(self, *names: str) -> list[pa.Array]:
        """Some columns, each in one piece; those of ``FEW_VALUES`` as dictionary arrays."""
        stored = [name for name in names if name in index_schema(self._version).names]
        coded = [name for name in stored if name in FEW_VALUES]
        with self._readable():
            table = pq.read_table(
                pa.BufferReader(self._data), columns=stored, read_dictionary=coded
            )
        # What an older version does not have, no sample has.
        no = pa.array(np.zeros(self.num_rows, dtype=bool))
        return [one_piece(table[name]) if name in stored else no for name in names]

    def table(self) -> pa.Table:
        """All of it, with the columns of the newest version."""
        return read_index(self._data, self._version, self._where)

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


def shard_numbers(column: pa.Array, names: Sequence[str], where: str) -> Int32[ndarray, " n"]:
    """Positions in the manifest of the shards that a column of codes names.

    Raises:
        CorruptShardError: a name that is not among ``names``.
    """
    positions = {name: number for number, name in enumerate(names)}
    try:
        known = [positions[name] for name in column.dictionary.to_pylist()]
    except KeyError as exc:
        raise CorruptShardError(f"{where}: names shard {exc}, which {MANIFEST} does not") from exc
    numbers: Int32[ndarray, " n"] = np.array(known, dtype=np.int32)[_codes(column)]
    return numbers


def subject_codes(column: pa.Array) -> Int32[ndarray, " n"]:
    """Equal numbers for equal subject ids; each sample without one has a number of its own."""
    encoded = column.dictionary_encode()
    codes = _codes(encoded).copy()
    unknown = np.flatnonzero(pc.equal(column, "").to_numpy(zero_copy_only=False))
    codes[unknown] = len(encoded.dictionary) + np.arange(len(unknown))
    return codes


def _codes(column: pa.Array) -> Int32[ndarray, " n"]:
    codes: Int32[ndarray, " n"] = column.indices.to_numpy()
    return codes
