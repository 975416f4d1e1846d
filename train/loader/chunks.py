"""Reads the chunks of one region from storage and decodes them into a slot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16, Int32, Int64
from numpy import ndarray

from shards.codec import decode_chunk
from shards.dataset import ChunkTable, Dataset
from shards.errors import CorruptShardError
from shards.profiles import get_profile
from shards.schema import FILL_HU
from shards.stats import Stats
from shards.store import get_range
from train.loader.regions import OUTSIDE, ByteRange, Region, coalesce


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """Stored bytes of a region's chunks; none of an absent chunk or one outside the volume."""

    stored: list[memoryview | None]


class ChunkReader:
    """Region in, voxels out, with exact counts of what it took. Thread-safe.

    Args:
        dataset: what to read.
        chunks: the dataset's chunk table.
        stats: where to count ``requests``, ``bytes_wire``, ``bytes_ideal`` (stored bytes of the
            touched chunks), ``chunks``, ``voxels_decoded``.
    """

    def __init__(self, dataset: Dataset, chunks: ChunkTable, stats: Stats) -> None:
        self._store = dataset.store
        self._chunks = chunks
        self._shards = dataset.index["shard"].to_pylist()
        self._offsets = dataset.index["offset"].to_numpy()
        self._profile = get_profile(dataset.manifest.contract.recorded.profile)
        self._stats = stats

    def ranges(
        self, sample: int, region: Region
    ) -> tuple[str, list[ByteRange], Int64[ndarray, " n"]]:
        """File, byte ranges to ask for, and which rows of the region their pieces are."""
        wanted, nbytes = self._wanted(sample, region)
        offsets = self._chunks.offsets[sample][region.chunks[wanted]] + self._offsets[sample]
        return self._shards[sample], coalesce(offsets, nbytes), wanted

    def fetch(self, sample: int, region: Region) -> Fetched:
        """Read the stored chunks of a region of row ``sample`` of the index.

        Raises:
            ShardError, OSError: the shard cannot be read.
        """
        path, ranges, wanted = self.ranges(sample, region)
        offsets = self._chunks.offsets[sample] + self._offsets[sample]
        nbytes = self._chunks.nbytes[sample]
        stored: list[memoryview | None] = [None] * len(region.chunks)
        with self._stats.timed("fetch", "busy_s"):
            for span in ranges:
                buf = get_range(self._store, path, span.start, span.stop - span.start)
                for row in wanted[list(span.pieces)].tolist():
                    chunk = region.chunks[row]
                    at = int(offsets[chunk]) - span.start
                    stored[row] = buf[at : at + int(nbytes[chunk])]
        wire = sum(span.stop - span.start for span in ranges)
        self._stats.add("fetch", items=1, nbytes=wire)
        self._stats.count(
            requests=len(ranges), bytes_wire=wire, bytes_ideal=sum(len(s) for s in stored if s)
        )
        return Fetched(stored=stored)

    def decode(
        self, region: Region, fetched: Fetched, out: Int16[ndarray, "nz ny nx c c c"]
    ) -> None:
        """Decode into a slot: touched chunks only, -1024 where nothing is stored.

        Raises:
            CorruptShardError: a chunk is not as written.
        """
        flat = out.reshape(-1, *out.shape[3:])
        decoded = 0
        with self._stats.timed("decode", "busy_s"):
            for place, stored in zip(region.places.tolist(), fetched.stored, strict=True):
                if stored is None:
                    flat[place].fill(FILL_HU)
                else:
                    decode_chunk(stored, flat[place], self._profile)
                    decoded += 1
        voxels = decoded * flat[0].size
        self._stats.add("decode", items=1, nbytes=voxels * out.itemsize)
        self._stats.count(chunks=decoded, voxels_decoded=voxels)

    def _wanted(
        self, sample: int, region: Region
    ) -> tuple[Int64[ndarray, " w"], Int32[ndarray, " w"]]:
        """Rows of the region whose chunk is stored, and the stored bytes of each."""
        nbytes = self._chunks.nbytes[sample]
        if region.chunks.max() >= len(nbytes):
            raise CorruptShardError(
                f"{self._chunks.keys[sample]}: its shape needs more than the {len(nbytes)} chunks "
                "listed; check the dataset with `ingest verify`"
            )
        sizes = np.where(region.chunks == OUTSIDE, 0, nbytes[region.chunks])
        wanted = np.flatnonzero(sizes)
        return wanted, sizes[wanted]
