"""Where the stored chunks of each sample of a dataset are."""

from __future__ import annotations

from jaxtyping import Int32, Int64
from numpy import ndarray

from shards.chunk_tables import ChunkTables
from shards.dataset import Dataset
from shards.plan import PlanSamples


class DatasetChunks:
    """``shards.sources.ChunkRows`` of a dataset. Thread-safe.

    Args:
        dataset: what is read.
        samples: of the dataset.
        tables: of the dataset.
    """

    def __init__(self, dataset: Dataset, samples: PlanSamples, tables: ChunkTables) -> None:
        self._tables = tables
        self._names = [shard.name for shard in dataset.manifest.shards]
        self._samples = samples

    def chunks(self, sample: int) -> tuple[Int64[ndarray, " _n"], Int32[ndarray, " _n"]]:
        """Offsets in the shard, and bytes (0: absent), of a sample's chunks in C order."""
        row = self._tables.row(sample)
        return row.offsets + self._samples.offset[sample], row.nbytes

    def shard(self, sample: int) -> str:
        """Name of the sample's shard."""
        return self._names[int(self._samples.shard_number[sample])]
