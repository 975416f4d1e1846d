"""The three Parquet tables: rows in, the same bytes out every time."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int32, Int64
from numpy import ndarray

from shards.errors import CorruptShardError
from shards.schema import INDEX_SCHEMA, MIN_TRAINABLE_SIDE, SampleMeta
from shards.tar import Member

Row = dict[str, Any]


def index_row(meta: SampleMeta, shard: str, data: Member, *, labelled: bool = False) -> Row:
    """Row of ``index.parquet`` for a sample whose zshard is member ``data`` of ``shard``.

    It has the columns of the newest format version; a table of an older one leaves some out.
    """
    copied = {name: getattr(meta, name) for name in INDEX_SCHEMA.names if hasattr(meta, name)}
    return copied | {
        "shard": shard,
        "shape_zyx": list(meta.shape_zyx),
        "spacing_zyx_mm": list(meta.spacing_zyx_mm),
        "trainable": min(meta.shape_zyx) >= MIN_TRAINABLE_SIDE,
        "offset": data.offset,
        "nbytes": data.nbytes,
        "labelled": labelled,
    }


def chunk_row(
    key: str,
    offsets: Int64[ndarray, " n"],
    nbytes: Int32[ndarray, " n"],
    air_mask: Bool[ndarray, " n"],
) -> Row:
    """Row of ``chunks.parquet``: plain lists, so that a row can be kept as JSON."""
    return {
        "key": key,
        "chunk_offsets": offsets.tolist(),
        "chunk_nbytes": nbytes.tolist(),
        "air_mask": air_mask.tolist(),
    }


def parquet_bytes(row_groups: Iterable[Sequence[Row] | pa.Table], schema: pa.Schema) -> bytes:
    """A Parquet file, zstd, one row group for each sequence of rows. No time or host is stored.

    The bytes depend on the rows alone, not on whether they come as a table.
    """
    buffer = io.BytesIO()
    write_parquet(buffer, row_groups, schema)
    return buffer.getvalue()


def write_parquet(
    sink: io.BufferedIOBase, row_groups: Iterable[Sequence[Row] | pa.Table], schema: pa.Schema
) -> None:
    """Write the bytes of ``parquet_bytes`` to ``sink``, a row group at a time."""
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for rows in row_groups:
            if not isinstance(rows, pa.Table):
                rows = pa.Table.from_pylist(list(rows), schema=schema)
            # Whole columns: how a table is cut into pieces would show in its bytes.
            writer.write_table(rows.combine_chunks(), row_group_size=max(1, len(rows)))


def read_table(data: bytes, schema: pa.Schema, where: str) -> pa.Table:
    """Read a whole Parquet file.

    Raises:
        CorruptShardError: not Parquet, or other columns than ``schema``.
    """
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as exc:
        raise CorruptShardError(f"{where}: not a readable Parquet file ({exc})") from exc
    check_schema(table.schema, schema, where)
    return table


def check_schema(found: pa.Schema, expected: pa.Schema, where: str) -> None:
    """Raise CorruptShardError unless names, order and types of the columns are as expected."""
    if not found.equals(expected, check_metadata=False):
        raise CorruptShardError(f"{where}: columns are not those of this format version")
