"""``chunks.parquet``, read one row group at a time with one request each.

A million samples in 33,000 shards make a table of 2.5 GB with a footer of 17 MB. Parsed by pyarrow
the footer takes 150 MB, so it stays bytes here: it is cut where its row groups begin, and one row
group's part, between the footer's own head and tail, is again a footer that pyarrow reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import CorruptShardError
from shards.schema import CHUNKS, CHUNKS_SCHEMA
from shards.seekable import Seekable
from shards.stats import Stats
from shards.store import Store, get_range
from shards.tables import check_schema

MAGIC = b"PAR1"
WHOLE_BYTES = 32 * 2**20
"""Tables up to this are read whole, which checks their digest too."""
TAIL_BYTES = 64 * 2**10
"""Read first, from the end: holds the footers of small tables whole."""

# Thrift's compact protocol: a field's header is (how many ids further << 4 | type), a short list's
# (length << 4 | type of its elements); 6 is i64, 8 a string, 9 a list, 12 a struct; 0 ends one.
_COLUMNS = b"\x19\x4c\x26"
"""How each row group begins: field 1, a list of 4 structs, the first with field 2, an i64."""
_GROUP = re.compile(rb"\x00" + re.escape(_COLUMNS))
"""Where one begins after the end of another."""
_TAIL = b"\x19\x1c\x18\x0cARROW:schema"
"""How what follows the row groups begins: a list of one pair, whose key is this string."""


Read: TypeAlias = Callable[[int, int], memoryview]
"""Gives so many bytes (second) from an offset (first) on."""


def slices(data: bytes) -> Read:
    """Reads from memory."""
    view = memoryview(data)
    return lambda offset, nbytes: view[offset : offset + nbytes]


def ranges(store: Store, paths: Sequence[str], stats: Stats) -> Read:
    """Reads from a store, at the first of ``paths`` where there is a file.

    Counts ``table_requests`` and ``table_bytes``.
    """

    def read(offset: int, nbytes: int) -> memoryview:
        for path in paths:
            stats.count(table_requests=1)
            try:
                view = get_range(store, path, offset, nbytes)
            except FileNotFoundError:
                continue
            stats.count(table_bytes=nbytes)
            return view
        raise CorruptShardError(f"{paths[-1]}: missing")

    return read


class ChunkFile:
    """The chunk table of a dataset. Thread-safe as far as ``read`` is.

    Args:
        read: gives ranges of the file.
        size: of the file, bytes.
        n_groups: row groups, which are shards.

    Raises:
        CorruptShardError: not such a file.
    """

    def __init__(self, read: Read, size: int, n_groups: int) -> None:
        self._read = read
        self._size = size
        self._footer = _Footer.cut(_read_footer(read, size), n_groups)
        if n_groups:
            check_schema(
                self._footer.metadata(0)[0].schema.to_arrow_schema(), CHUNKS_SCHEMA, CHUNKS
            )

    def table(self, number: int) -> pa.Table:
        """Row group ``number``, in one read: its columns lie side by side.

        Raises:
            CorruptShardError, pa.ArrowException, OSError, ValueError: it is not as described.
        """
        metadata, group = self._footer.metadata(number)
        file = _File(self._read, self._size)
        parquet = pq.ParquetFile(file, metadata=metadata, pre_buffer=True)
        return parquet.read_row_group(group, use_threads=False)


@dataclass(frozen=True)
class _Footer:
    """A footer in parts: ``head``, row groups from ``starts[n]`` to ``starts[n + 1]``, tail."""

    data: bytes
    head: bytes
    starts: list[int]
    whole: pq.FileMetaData | None = None
    """Parsed at once, where the parts could not be told."""

    @classmethod
    def cut(cls, data: bytes, n_groups: int) -> _Footer:
        """Find the parts.

        Every row group begins with ``_COLUMNS``, so all beginnings are among those found; and when
        there are as many as row groups, each found one is a beginning.
        """
        opening = b"\x19" + _list_header(n_groups)
        head, tail = data.find(opening + _COLUMNS), data.rfind(_TAIL)
        if 0 <= head < tail:
            first = head + len(opening)
            starts = [first, *(m.start() + 1 for m in _GROUP.finditer(data, first, tail)), tail]
            if len(starts) == n_groups + 1:
                return cls(data, data[:head] + b"\x19" + _list_header(1), starts)
        whole = _parse(data)
        if whole.num_row_groups != n_groups:
            raise CorruptShardError(
                f"{CHUNKS}: {whole.num_row_groups} row groups for {n_groups} shards"
            )
        return cls(data, b"", [], whole)

    def metadata(self, number: int) -> tuple[pq.FileMetaData, int]:
        if self.whole is not None:
            return self.whole, number
        group = self.data[self.starts[number] : self.starts[number + 1]]
        return _parse(self.head + group + self.data[self.starts[-1] :]), 0


def _list_header(n: int) -> bytes:
    """Of a list of ``n`` structs."""
    if n < 15:
        return bytes([n << 4 | 12])
    varint = bytearray()
    while n > 127:
        varint.append(n & 127 | 128)
        n >>= 7
    return b"\xfc" + bytes(varint) + bytes([n])


def _parse(footer: bytes) -> pq.FileMetaData:
    """Pyarrow reads a footer out of a file that is nothing else."""
    file = MAGIC + footer + len(footer).to_bytes(4, "little") + MAGIC
    return pq.read_metadata(pa.BufferReader(file))


def _read_footer(read: Read, size: int) -> bytes:
    """The footer, in one request or two."""
    tail = bytes(read(max(0, size - TAIL_BYTES), min(size, TAIL_BYTES)))
    nbytes = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != MAGIC or nbytes > size:
        raise CorruptShardError(f"{CHUNKS}: not a Parquet file")
    if nbytes > len(tail):
        tail = bytes(read(size - nbytes, nbytes - len(tail))) + tail
    return tail[-nbytes:-8]


class _File(Seekable):
    """The table as a file for pyarrow; each of its reads is one of ``read``."""

    def __init__(self, read: Read, size: int) -> None:
        super().__init__(size)
        self._source = read

    def read(self, nbytes: int = -1) -> Any:
        nbytes = self.left(nbytes)
        data = self._source(self._at, nbytes) if nbytes else b""
        self._at += nbytes
        return data
