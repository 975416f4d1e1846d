"""Opens a published dataset: manifest, index, chunk tables, single samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int16
from numpy import ndarray

from shards.chunk_groups import ChunkGroups
from shards.chunk_tables import CACHE_BYTES, ChunkTables
from shards.codec import decode_volume
from shards.digest import sha256
from shards.errors import CorruptShardError
from shards.index_file import IndexFile, Strings
from shards.labels import LabelVolume, parse_label
from shards.opening import check_same, checked_index, file_entry, get_if_there, read_generation
from shards.plan import PlanSamples
from shards.planning import Selection, plan_samples
from shards.profiles import get_profile
from shards.schema import (
    CHUNKS,
    CHUNKS_SCHEMA,
    INDEX,
    LABEL_SUFFIXES,
    MANIFEST,
    SUFFIXES,
    Manifest,
    SampleMeta,
    idx_name,
    load_json,
)
from shards.sidecars import parse_idx
from shards.split import Split
from shards.stats import Stats
from shards.store import Store, get, get_range, open_store
from shards.tar import Member


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One volume with its provenance."""

    meta: SampleMeta
    hu: Int16[ndarray, "z y x"]
    """HU, axes toward S, P, L."""
    affine: Float64[ndarray, "4 4"]
    """(z, y, x, 1) to RAS mm."""


class Dataset:
    """A published dataset. Iterating gives every sample, in index order.

    Attributes:
        url: where it was opened.
        store: the storage it is read from.
        manifest: what it says of itself.
        index_file: ``index.parquet``, one row a sample; its columns are read when asked for.
        tables: put before the names of tables and report, which lie elsewhere during a change.
    """

    def __init__(
        self, url: str, store: Store, manifest: Manifest, index: bytes, tables: str = ""
    ) -> None:
        self.tables = tables
        self.url = url
        self.store = store
        self.manifest = manifest
        self.index_file = IndexFile(
            index,
            read=lambda: self.file(INDEX),
            version=manifest.format_version,
            shards=[shard.name for shard in manifest.shards],
            where=f"{url}: {INDEX}",
        )
        self._members = lru_cache(maxsize=64)(self._read_idx)

    @classmethod
    def open(cls, url: str | Path) -> Dataset:
        """Open a folder or URL: two requests, for the manifest and the index.

        A dataset that is just changing opens as the old generation or as the new one.

        Raises:
            NotADatasetError: no dataset there.
            FormatVersionError: another format or version.
            CorruptShardError: manifest or index are not as written.
            ShardError: the storage cannot be used.
        """
        store = open_store(url)
        found = read_generation(store, url)
        index = checked_index(found, f"{url}: {INDEX}")
        return cls(str(url), store, found.manifest, index, found.tables)

    def __len__(self) -> int:
        return self.index_file.num_rows

    def __iter__(self) -> Iterator[Sample]:
        return (self.sample(key) for key in self.keys())

    @property
    def chunk_side(self) -> int:
        """Side of a chunk, voxels."""
        return get_profile(self.manifest.contract.recorded.profile).chunk_side

    @cached_property
    def index(self) -> pa.Table:
        """The whole index, with the columns of the newest version."""
        return self.index_file.table()

    def keys(self) -> list[str]:
        """Sample keys, in index order."""
        return list(Strings(self.index_file.keys))

    def meta(self, key: str) -> SampleMeta:
        """The record of one sample alone: a small range.

        Raises:
            KeyError: no such sample.
            CorruptShardError: its bytes are not as written.
        """
        shard = self._shard_of(key)
        [data] = self._read(shard, key, SUFFIXES[:1])
        return load_json(bytes(data), SampleMeta, f"{shard}: {key}.{SUFFIXES[0]}")

    def sample(self, key: str) -> Sample:
        """Read one sample: its shard's index (once), then one range.

        Raises:
            KeyError: no such sample.
            CorruptShardError: its bytes are not as written.
        """
        shard = self._shard_of(key)
        record, array, data = self._read(shard, key, SUFFIXES)
        parsed = load_json(record, SampleMeta, f"{shard}: {key}.{SUFFIXES[0]}")
        try:
            hu = decode_volume(array, data)
            if hu.shape != tuple(parsed.shape_zyx):
                raise CorruptShardError(f"shape {hu.shape}, its record says {parsed.shape_zyx}")
        except CorruptShardError as exc:
            raise CorruptShardError(f"{shard}: {key}: {exc}") from exc
        return Sample(meta=parsed, hu=hu, affine=np.array(parsed.affine, dtype=np.float64))

    def file(self, name: str) -> bytes:
        """A table or the report, whole.

        Raises:
            CorruptShardError: it is not the one that the manifest names.
        """
        expected = file_entry(self.manifest, name).sha256
        for path in (self.tables + name, name):
            data = get_if_there(self.store, path)
            if data is not None and sha256(data) == expected:
                return data
        self._check_unchanged()
        raise CorruptShardError(f"{self.url}: {name}: missing, or not that of {MANIFEST}")

    def label(self, key: str) -> LabelVolume | None:
        """Read a sample's label volume: on the sample's own grid, one range; None if it has none.

        Raises:
            KeyError: no such sample.
            CorruptShardError: its bytes are not as written.
        """
        row = self._row_of[key]
        if not self.index["labelled"][row].as_py():
            return None
        shard = self._shard_of(key)
        shape = tuple(self.index["shape_zyx"][row].as_py())
        try:
            return parse_label(self._read(shard, key, LABEL_SUFFIXES), shape)
        except CorruptShardError as exc:
            raise CorruptShardError(f"{shard}: {key}: {exc}") from exc

    def _shard_of(self, key: str) -> str:
        name: str = self.index["shard"][self._row_of[key]].as_py()
        return name

    def _read(self, shard: str, key: str, suffixes: Sequence[str]) -> list[bytes]:
        """Members of a sample that follow each other, in one range."""
        try:
            found = self._members(shard)[key]
            members = [found[suffix] for suffix in suffixes]
        except KeyError as exc:
            raise CorruptShardError(f"{idx_name(shard)}: lacks {exc} of sample {key}") from exc
        start, last = members[0].offset, members[-1]
        buf = get_range(self.store, shard, start, last.offset + last.nbytes - start)
        return [bytes(buf[m.offset - start : m.offset - start + m.nbytes]) for m in members]

    def chunk_tables(
        self, stats: Stats | None = None, cache_bytes: int = CACHE_BYTES
    ) -> ChunkTables:
        """Where the chunks of all samples lie; read when asked for, to be closed.

        Args:
            stats: where to count ``table_requests`` and ``table_bytes``.
            cache_bytes: see `ChunkTables`.

        Raises:
            CorruptShardError: ``chunks.parquet`` is not as described, or of another generation.
        """
        return ChunkTables(
            read=self._open_chunks(stats or Stats()).table,
            index=self.index_file,
            chunk_side=self.chunk_side,
            cache_bytes=cache_bytes,
        )

    def chunk_table(self, shards: Sequence[int] | None = None) -> pa.Table:
        """Rows of ``chunks.parquet`` of some shards (positions in the manifest), or of all.

        Raises:
            CorruptShardError: it is not as described, or of another generation than the index.
        """
        wanted = range(len(self.manifest.shards)) if shards is None else shards
        groups = [self._chunk_groups.table(shard) for shard in wanted]
        return pa.concat_tables(groups) if groups else CHUNKS_SCHEMA.empty_table()

    @cached_property
    def _chunk_groups(self) -> ChunkGroups:
        return self._open_chunks(Stats())

    def _open_chunks(self, stats: Stats) -> ChunkGroups:
        # Elsewhere only until a change that was going on at opening is completed.
        paths = dict.fromkeys([self.tables + CHUNKS, CHUNKS])
        return ChunkGroups(
            self.store,
            list(paths),
            size=file_entry(self.manifest, CHUNKS).bytes,
            whole=lambda: self.file(CHUNKS),
            index=self.index_file,
            check_unchanged=self._check_unchanged,
            stats=stats,
        )

    @cached_property
    def _own_chunks(self) -> ChunkTables:
        # Never asked to prefetch, so that there is nothing to close.
        return self.chunk_tables()

    def plan_samples(
        self,
        where: str = "",
        holdout: float = 0.0,
        split: Split = "all",
        split_seed: int = 0,
        chunks: ChunkTables | None = None,
    ) -> PlanSamples:
        """What planning needs of every sample, in index order.

        Args:
            where: only samples for which this expression is true take part; see ``shards.where``.
            holdout: share of subjects that is held out, from 0 to 1.
            split: which side of that split takes part.
            split_seed: another one holds out others.
            chunks: where air masks are taken from; None reads the chunk table when it is needed.

        Raises:
            WhereError: ``where`` is no such expression.
            ValueError: ``holdout`` is no share.
        """
        return plan_samples(
            self.index_file,
            Selection(where=where, holdout=holdout, split=split, split_seed=split_seed),
            chunk_side=self.chunk_side,
            air_mask=_AirMasks(self) if chunks is None else chunks.air_mask,
        )

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys())}

    def _check_unchanged(self) -> None:
        """Raise CorruptShardError if the dataset is in another generation by now."""
        check_same(self.manifest, self.store, self.url)

    def _read_idx(self, shard: str) -> dict[str, dict[str, Member]]:
        name = idx_name(shard)
        try:
            return parse_idx(get(self.store, name), name)
        except FileNotFoundError as exc:
            raise CorruptShardError(f"{name}: missing") from exc


class _AirMasks:
    """Of any sample: which chunks are air. The chunk table is opened by the first question."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getitem__(self, sample: int) -> Bool[ndarray, " _chunks"]:
        return self._dataset._own_chunks.air_mask[sample]
