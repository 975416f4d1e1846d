"""Writes shards, and publishes a folder of them as a dataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
from jaxtyping import Int16
from numpy import ndarray

from shards.codec import encode_labels, encode_volume
from shards.digest import content_sha256
from shards.failpoints import failpoint
from shards.files import sync_folder, temporary, write_atomic
from shards.labels import LabelVolume, label_problems
from shards.profiles import get_profile
from shards.schema import (
    CHUNKS,
    CHUNKS_SCHEMA,
    DATA_SUFFIX,
    FORMAT,
    HU_MAX,
    HU_MIN,
    INDEX,
    KEY_PATTERN,
    LABEL_SUFFIXES,
    MANIFEST,
    REPORT,
    SERIES,
    SERIES_SCHEMA,
    SUFFIXES,
    Contract,
    FileEntry,
    Manifest,
    SampleMeta,
    ShardEntry,
    Totals,
    dump_json,
    idx_name,
    refs_name,
    shard_name,
)
from shards.sidecars import dali_idx, kerchunk_refs
from shards.tables import Row, chunk_row, index_row, parquet_bytes
from shards.tar import Member, TarWriter
from shards.versions import index_schema, lowest_version, manifest_bytes


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """A finished shard: what the manifest and the tables say of it. Plain values only."""

    entry: ShardEntry
    index_rows: list[Row]
    chunk_rows: list[Row]


@dataclass(frozen=True, kw_only=True)
class KeptShard:
    """A shard of an earlier generation, or of another dataset, as it is published again."""

    entry: ShardEntry
    index_rows: list[Row]
    read_chunks: Callable[[], pa.Table]
    """Gives its rows of the chunk table, which are read one shard at a time."""


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """A sample as stored, before it has a place in a shard."""

    members: list[tuple[str, bytes]]
    """Names and data, in their order."""
    index_row: Row
    """Shard and offset are not known yet: empty and 0."""
    chunk_row: Row


def encode_sample(
    meta: SampleMeta,
    hu: Int16[ndarray, "z y x"],
    profile: str,
    label: LabelVolume | None = None,
) -> EncodedSample:
    """Encode a sample, with its labels if it has any; ``ShardWriter.add_stored`` takes it.

    Raises:
        ValueError: ``meta`` does not describe ``hu``, the key cannot be used, or the label's record
            does not describe its values.
    """
    _check_sample(meta, hu)
    encoded = encode_volume(hu, profile)
    contents = [dump_json(meta), encoded.zarr_json, encoded.zshard]
    if label is not None:
        for problem in label_problems(label, meta):
            raise ValueError(f"{meta.key}: label: {problem}")
        stored = encode_labels(label.values, profile)
        contents += [dump_json(label.meta), stored.zarr_json, stored.zshard]
    names = [f"{meta.key}.{suffix}" for suffix in (*SUFFIXES, *LABEL_SUFFIXES)][: len(contents)]
    data = Member(name=names[2], offset=0, nbytes=len(encoded.zshard))
    return EncodedSample(
        members=list(zip(names, contents, strict=True)),
        index_row=index_row(meta, "", data, labelled=label is not None),
        chunk_row=chunk_row(
            meta.key, encoded.chunk_offsets, encoded.chunk_nbytes, encoded.air_mask
        ),
    )


def _check_sample(meta: SampleMeta, hu: Int16[ndarray, "z y x"]) -> None:
    if not KEY_PATTERN.fullmatch(meta.key):
        raise ValueError(f"key {meta.key!r} is not {KEY_PATTERN.pattern}")
    if tuple(meta.shape_zyx) != hu.shape:
        raise ValueError(f"{meta.key}: shape {hu.shape}, but its record says {meta.shape_zyx}")
    if hu.min() < HU_MIN or hu.max() > HU_MAX:
        raise ValueError(f"{meta.key}: HU {hu.min()}..{hu.max()} leave {HU_MIN}..{HU_MAX}")
    if content_sha256(hu, np.array(meta.affine, dtype=np.float64)) != meta.content_sha256:
        raise ValueError(f"{meta.key}: content_sha256 is not that of its voxels and affine")


class ShardWriter:
    """Writes one shard and its sidecars; nothing has its final name before ``close``.

    Leaving the ``with`` block without ``close`` discards what was written. A shard of the same
    number that is already there is replaced.
    """

    def __init__(self, folder: Path, number: int, profile: str) -> None:
        get_profile(profile)
        self._folder = folder
        self._name = shard_name(number)
        self._profile = profile
        self._partial = temporary(folder / self._name)
        self._file = self._partial.open("wb")
        self._tar = TarWriter(self._file)
        self._index_rows: list[Row] = []
        self._chunk_rows: list[Row] = []
        self._keys: set[str] = set()

    @property
    def samples(self) -> int:
        """Samples added so far."""
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        """Bytes written so far."""
        return self._tar.nbytes

    def add(
        self, meta: SampleMeta, hu: Int16[ndarray, "z y x"], label: LabelVolume | None = None
    ) -> None:
        """Append a sample.

        Args:
            meta: its ``KEY.json``; nothing is filled in or changed.
            hu: HU, (z, y, x), within the stored range.
            label: its labels on the same grid, if it has any.

        Raises:
            ValueError: ``meta`` does not describe ``hu``, the key cannot be used, or the label's
                record does not describe its values.
        """
        sample = encode_sample(meta, hu, self._profile, label)
        self.add_stored(sample.members, sample.index_row, sample.chunk_row)

    def add_stored(self, members: Sequence[tuple[str, bytes]], index_row: Row, chunks: Row) -> None:
        """Append a sample that is encoded already, byte for byte.

        Args:
            members: names and data of its members, in their order.
            index_row: its row in the index; shard and offset are made anew.
            chunks: its row in the chunk table.

        Raises:
            ValueError: the key is in this shard already.
        """
        key = index_row["key"]
        if key in self._keys:
            raise ValueError(f"key {key!r} is already in {self._name}")
        written = {name: self._tar.add(name, data) for name, data in members}
        offset = written[f"{key}.{DATA_SUFFIX}"].offset
        self._index_rows.append(index_row | {"shard": self._name, "offset": offset})
        self._chunk_rows.append(chunks)
        self._keys.add(key)
        failpoint("sample_added")

    def close(self) -> ShardResult:
        """Finish the tar, write the sidecars, give all three their names.

        Raises:
            ValueError: no sample was added: an empty shard cannot be read by anyone.
        """
        if not self._keys:
            raise ValueError(f"{self._name}: a shard needs at least one sample")
        digest = self._tar.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        failpoint("tar_written")
        idx = write_atomic(self._folder / idx_name(self._name), dali_idx(self._tar.members))
        failpoint("idx_written")
        refs_data = kerchunk_refs(self._name, self._tar.members)
        refs = write_atomic(self._folder / refs_name(self._name), refs_data)
        failpoint("refs_written")
        self._partial.replace(self._folder / self._name)
        sync_folder(self._folder)
        failpoint("tar_renamed")
        entry = ShardEntry(
            name=self._name,
            bytes=self._tar.nbytes,
            sha256=digest,
            samples=len(self._keys),
            idx=idx,
            refs=refs,
        )
        return ShardResult(entry=entry, index_rows=self._index_rows, chunk_rows=self._chunk_rows)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)


def publish(
    folder: Path,
    results: Sequence[ShardResult | KeptShard],
    series_rows: Sequence[Row],
    report_html: bytes,
    contract: Contract,
    build_sha256: str,
    id_key_fingerprint: str,
    totals: Totals,
    *,
    generation: int = 1,
    tombstones: Sequence[str] = (),
) -> Manifest:
    """Turn finished shards into a dataset: tables and report, then the manifest.

    The manifest comes last, so its presence means that everything it names is there.

    Args:
        folder: where the shards were written.
        results: the shards, in any order; they are published by name.
        series_rows: rows of ``series.parquet``, in the order in which they are to be stored.
        report_html: the report, UTF-8.
        contract: what the preprocessing was.
        build_sha256: digest of inputs, id key and configuration.
        id_key_fingerprint: names the id key without giving it away.
        totals: sums for the manifest.
        generation: 1 for a first build, one more with every later change.
        tombstones: withdrawn keys whose bytes are still in a shard; in no table any more.

    Raises:
        ValueError: a key or a shard occurs twice, or a withdrawn key is in the index.
    """
    ordered = sorted(results, key=lambda result: result.entry.name)
    index_rows = [row for result in ordered for row in result.index_rows]
    _check_unique([result.entry.name for result in ordered], "shard")
    _check_unique([*(row["key"] for row in index_rows), *tombstones], "key")
    version = lowest_version(
        tombstones=tombstones, labelled=any(row["labelled"] for row in index_rows)
    )
    tables = {
        INDEX: parquet_bytes([index_rows], index_schema(version)),
        CHUNKS: parquet_bytes(map(_chunk_rows, ordered), CHUNKS_SCHEMA),
        SERIES: parquet_bytes([series_rows], SERIES_SCHEMA),
        REPORT: report_html,
    }
    manifest = Manifest(
        format=FORMAT,
        format_version=version,
        generation=generation,
        contract=contract,
        contract_sha256=contract.sha256,
        build_sha256=build_sha256,
        id_key_fingerprint=id_key_fingerprint,
        levels=["ct"],
        shards=[result.entry for result in ordered],
        files=[_write_table(folder / name, data) for name, data in tables.items()],
        totals=totals,
        tombstones=sorted(tombstones),
    )
    sync_folder(folder)
    failpoint("before_manifest")
    write_atomic(folder / MANIFEST, manifest_bytes(manifest))
    sync_folder(folder)
    failpoint("after_manifest")
    return manifest


def _write_table(path: Path, data: bytes) -> FileEntry:
    entry = write_atomic(path, data)
    failpoint("table_written")
    return entry


def _chunk_rows(result: ShardResult | KeptShard) -> Sequence[Row] | pa.Table:
    return result.chunk_rows if isinstance(result, ShardResult) else result.read_chunks()


def _check_unique(names: Sequence[str], what: str) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{what} {twice!r} occurs twice")
