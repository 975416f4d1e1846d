"""Opens a published dataset: manifest, index, chunk tables, single samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float64, Int16, Int32, Int64
from numpy import ndarray

from shards.codec import decode_volume
from shards.digest import sha256
from shards.errors import CorruptShardError
from shards.labels import LabelVolume, parse_label
from shards.opening import Generation, file_entry, get_if_there, read_generation
from shards.plan import PlanSamples
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
from shards.store import RangeFile, Store, get, get_range, open_store
from shards.tables import check_schema
from shards.tar import Member
from shards.versions import read_index

Array = TypeVar("Array", bound="ndarray[Any, Any]")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One volume with its provenance."""

    meta: SampleMeta
    hu: Int16[ndarray, "z y x"]
    """HU, axes toward S, P, L."""
    affine: Float64[ndarray, "4 4"]
    """(z, y, x, 1) to RAS mm."""


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


@dataclass(frozen=True, kw_only=True)
class ChunkTable:
    """Chunks of samples, one row a sample in index order; chunks in C order of the grid."""

    keys: list[str]
    offsets: Ragged[Int64[ndarray, " _n"]]
    """From the start of the sample's zshard."""
    nbytes: Ragged[Int32[ndarray, " _n"]]
    """0: absent, every voxel is -1024."""
    air_mask: Ragged[Bool[ndarray, " _n"]]
    """No voxel above -500 HU."""


class Dataset:
    """A published dataset. Iterating gives every sample, in index order.

    Attributes:
        url: where it was opened.
        store: the storage it is read from.
        manifest: what it says of itself.
        index: ``index.parquet``, one row a sample, with the columns of the newest version.
        tables: put before the names of tables and report, which lie elsewhere during a change.
    """

    def __init__(
        self, url: str, store: Store, manifest: Manifest, index: pa.Table, tables: str = ""
    ) -> None:
        self.tables = tables
        self.url = url
        self.store = store
        self.manifest = manifest
        self.index = index
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
        manifest, where = found.manifest, f"{url}: {INDEX}"
        index = read_index(_checked_index(found, where), manifest.format_version, where)
        return cls(str(url), store, manifest, index, found.tables)

    def __len__(self) -> int:
        return int(self.index.num_rows)

    def __iter__(self) -> Iterator[Sample]:
        return (self.sample(key) for key in self.keys())

    @property
    def chunk_side(self) -> int:
        """Side of a chunk, voxels."""
        return get_profile(self.manifest.contract.recorded.profile).chunk_side

    def keys(self) -> list[str]:
        """Sample keys, in index order."""
        keys: list[str] = self.index["key"].to_pylist()
        return keys

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

    def chunk_rows(self, shards: Sequence[int] | None = None) -> ChunkTable:
        """Chunk tables of some shards (positions in the manifest), or of all; read when asked for.

        Raises:
            CorruptShardError: ``chunks.parquet`` is not as described.
        """
        table = self.chunk_table(shards)
        return ChunkTable(
            keys=table["key"].to_pylist(),
            offsets=_ragged(table["chunk_offsets"]),
            nbytes=_ragged(table["chunk_nbytes"]),
            air_mask=_ragged(table["air_mask"]),
        )

    def chunk_table(self, shards: Sequence[int] | None = None) -> pa.Table:
        """Rows of ``chunks.parquet`` of some shards (positions in the manifest), or of all.

        Raises:
            CorruptShardError: it is not as described, or of another generation than the index.
        """
        wanted = list(range(len(self.manifest.shards)) if shards is None else shards)
        try:
            parquet = pq.ParquetFile(self._chunk_file())
            check_schema(parquet.schema_arrow, CHUNKS_SCHEMA, CHUNKS)
            table = parquet.read_row_groups(wanted)
        except (pa.ArrowException, OSError, IndexError) as exc:
            self._check_unchanged()
            raise CorruptShardError(f"{CHUNKS}: not a readable chunk table ({exc})") from exc
        # A row of a key never changes, so equal keys are enough to know the generation's own table.
        expected = [key for shard in wanted for key in self._keys_of[shard]]
        if table["key"].to_pylist() != expected:
            self._check_unchanged()
            raise CorruptShardError(f"{CHUNKS}: its keys are not those of {INDEX}")
        return table

    def plan_samples(self, chunks: ChunkTable | None = None) -> PlanSamples:
        """What planning needs of every sample, in index order.

        Args:
            chunks: ``chunk_rows()`` of all shards where it has been read; None reads it.
        """
        chunks = self.chunk_rows() if chunks is None else chunks
        keys = self.keys()
        numbers = {shard.name: n for n, shard in enumerate(self.manifest.shards)}
        shard_number = [numbers[name] for name in self.index["shard"].to_pylist()]
        shapes = self.index["shape_zyx"].combine_chunks().flatten().to_numpy()
        source = self.index["source"].combine_chunks().dictionary_encode()
        subject = self.index["subject_id"].combine_chunks().dictionary_encode()
        return PlanSamples(
            keys=keys,
            trainable=self.index["trainable"].to_numpy(),
            shard_number=np.array(shard_number, dtype=np.int32),
            offset=self.index["offset"].to_numpy(),
            source=source.indices.to_numpy(),
            source_names=tuple(source.dictionary.to_pylist()),
            subject=subject.indices.to_numpy(),
            shapes=shapes.reshape(-1, 3),
            air_mask=chunks.air_mask,
            chunk_side=self.chunk_side,
        )

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys())}

    @cached_property
    def _keys_of(self) -> list[list[str]]:
        """Keys of each shard, by its position in the manifest."""
        by_name: dict[str, list[str]] = {shard.name: [] for shard in self.manifest.shards}
        for key, shard in zip(self.keys(), self.index["shard"].to_pylist(), strict=True):
            by_name[shard].append(key)
        return list(by_name.values())

    def _check_unchanged(self) -> None:
        """Raise CorruptShardError if the dataset is in another generation by now."""
        now = read_generation(self.store, self.url).manifest
        if now != self.manifest:
            raise CorruptShardError(
                f"{self.url}: was opened as generation {self.manifest.generation} and is "
                f"generation {now.generation} now; open it again"
            )

    def _chunk_file(self) -> RangeFile:
        try:
            return RangeFile(self.store, self.tables + CHUNKS)
        except FileNotFoundError:
            # The change that was going on when this was opened is complete by now.
            return RangeFile(self.store, CHUNKS)

    def _read_idx(self, shard: str) -> dict[str, dict[str, Member]]:
        name = idx_name(shard)
        try:
            return parse_idx(get(self.store, name), name)
        except FileNotFoundError as exc:
            raise CorruptShardError(f"{name}: missing") from exc


def _checked_index(found: Generation, where: str) -> bytes:
    """The index's bytes: planning from another dataset's index would read garbage."""
    data = found.index
    if data is None:
        raise CorruptShardError(f"{where}: missing; copy the dataset again")
    if sha256(data) != file_entry(found.manifest, INDEX).sha256:
        raise CorruptShardError(
            f"{where}: SHA-256 is not that in {MANIFEST}; copy the dataset again, "
            "or run `ingest verify` to see what else differs"
        )
    return data


def _ragged(column: pa.ChunkedArray) -> Ragged[Any]:
    merged = column.combine_chunks()
    # flatten() drops what slicing hid, so the splits are counted again from the lengths.
    lengths = merged.value_lengths().to_numpy()
    splits = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return Ragged(merged.flatten().to_numpy(zero_copy_only=False), splits)
