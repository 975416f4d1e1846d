"""The chunk table of a dataset's own generation, a shard's part at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from shards.chunk_file import WHOLE_BYTES, ChunkFile, ranges, slices
from shards.errors import CorruptShardError
from shards.index_file import IndexFile, one_piece
from shards.schema import CHUNKS, INDEX
from shards.stats import Stats
from shards.store import Store


class ChunkGroups:
    """Row groups of ``chunks.parquet``, which are shards, with the keys of the index.

    Args:
        store: the dataset's.
        paths: where the table may lie.
        size: of the table, bytes.
        whole: gives all of it, with its digest checked.
        index: has the keys.
        check_unchanged: raises if the dataset is in another generation by now.
        stats: where to count ``table_requests`` and ``table_bytes``.

    Raises:
        CorruptShardError: it is not as described, or of another generation.
    """

    def __init__(
        self,
        store: Store,
        paths: Sequence[str],
        *,
        size: int,
        whole: Callable[[], bytes],
        index: IndexFile,
        check_unchanged: Callable[[], None],
        stats: Stats,
    ) -> None:
        self._index = index
        self._check_unchanged = check_unchanged
        if size <= WHOLE_BYTES:
            read = slices(whole())
            stats.count(table_requests=1, table_bytes=size)
        else:
            read = ranges(store, paths, stats)
        with self._sound():
            self._file = ChunkFile(read, size, len(index.shards))

    def table(self, shard: int) -> pa.Table:
        """Rows of a shard, by its position in the manifest.

        Raises:
            CorruptShardError: they are not as described, or of another generation than the index.
        """
        with self._sound():
            table = self._file.table(shard)
        # A row of a key never changes, so equal keys are enough to know the generation's own table.
        first, stop = self._index.shard_starts[shard : shard + 2].tolist()
        if not one_piece(table["key"]).equals(self._index.keys[first:stop]):
            self._check_unchanged()
            raise CorruptShardError(f"{CHUNKS}: its keys are not those of {INDEX}")
        return table

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """What goes wrong inside is the chunk table's fault, or another generation's."""
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, CorruptShardError) as exc:
            self._check_unchanged()
            raise CorruptShardError(f"{CHUNKS}: not a readable chunk table ({exc})") from exc
