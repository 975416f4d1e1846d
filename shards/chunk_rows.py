"""Where the stored chunks of each sample of a dataset are."""

from __future__ import annotations

from jaxtyping import Int32, Int64
from numpy import ndarray

from shards.dataset import ChunkTable, Dataset


class DatasetChunks:
    """``shards.sources.ChunkRows`` of a dataset.

    Args:
        dataset: what is read.
        table: its chunk table.
    """

    def __init__(self, dataset: Dataset, table: ChunkTable) -> None:
        self._table = table
        self._shards = dataset.index["shard"].to_pylist()
        self._offsets = dataset.index["offset"].to_numpy()

    def chunks(self, sample: int) -> tuple[Int64[ndarray, " _n"], Int32[ndarray, " _n"]]:
        """Offsets in the shard, and bytes (0: absent), of a sample's chunks in C order."""
        offsets: Int64[ndarray, " _n"] = self._table.offsets[sample] + self._offsets[sample]
        return offsets, self._table.nbytes[sample]

    def shard(self, sample: int) -> str:
        """Name of the sample's shard."""
        name: str = self._shards[sample]
        return name
