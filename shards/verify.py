"""Checks a dataset: every byte against its digest, every index against the tars, every voxel."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from shards.digest import sha256
from shards.errors import CorruptShardError, ShardError
from shards.opening import file_entry, read_generation
from shards.schema import (
    CHUNKS,
    CHUNKS_SCHEMA,
    INDEX,
    MANIFEST,
    SERIES,
    SERIES_SCHEMA,
    FileEntry,
    Manifest,
)
from shards.store import Store, get, names, open_store
from shards.tables import Row, check_schema, read_table
from shards.verify_shard import ShardRows, verify_shard
from shards.versions import read_index

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was checked, and everything that is wrong."""

    problems: list[str]
    """One line each: which file, where in it, what."""
    shards: int
    samples: int
    """Samples that are whole: decoded, and equal to their digest."""
    bytes: int
    """Bytes of shards that were read."""

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.problems


@dataclass
class _Check:
    """One run: the storage, what the manifest says, and the problems so far."""

    store: Store
    manifest: Manifest
    tables: str
    """Put before the names of the files in ``manifest.files``."""
    problems: list[str] = field(default_factory=list)

    def file(self, entry: FileEntry) -> bytes | None:
        """A whole file; a wrong one is still returned, so that one problem does not hide others."""
        place = self.tables if entry in self.manifest.files else ""
        try:
            data = get(self.store, place + entry.name)
        except FileNotFoundError:
            self.problems.append(f"{entry.name}: missing")
            return None
        except ShardError as exc:
            self.problems.append(str(exc))
            return None
        if len(data) != entry.bytes or sha256(data) != entry.sha256:
            self.problems.append(f"{entry.name}: size or SHA-256 is not that in {MANIFEST}")
        return data

    def parsed(self, name: str, parse: Callable[[bytes], T]) -> T | None:
        """One of the Parquet tables, if it can be read."""
        try:
            data = self.file(file_entry(self.manifest, name))
            return None if data is None else parse(data)
        except ShardError as exc:
            self.problems.append(str(exc))
            return None


def verify(url: str | Path, progress: Callable[[str], None] | None = None) -> VerifyReport:
    """Read a whole dataset and compare everything that is stated twice.

    Args:
        url: folder or URL of the dataset.
        progress: called with the name of each shard once it has been checked.

    Raises:
        NotADatasetError: no dataset there.
        FormatVersionError: another format or version.
        CorruptShardError: the manifest itself cannot be read.
    """
    store = open_store(url)
    found = read_generation(store, url)
    check = _Check(store, found.manifest, found.tables)
    check.problems += _manifest_problems(check.manifest)
    check.problems += _stray_files(check)
    _check_report(check)
    rows = _shard_rows(check)
    withdrawn = set(check.manifest.tombstones)
    samples, nbytes = 0, 0
    for entry, shard_rows in zip(check.manifest.shards, rows, strict=True):
        result = verify_shard(
            store,
            entry,
            shard_rows,
            idx=check.file(entry.idx),
            refs=check.file(entry.refs),
            withdrawn=frozenset(check.manifest.tombstones),
        )
        check.problems += [f"{entry.name}: {problem}" for problem in result.problems]
        samples += result.samples
        nbytes += result.nbytes
        withdrawn -= result.withdrawn
        logger.debug("verified %s", entry.name)
        if progress is not None:
            progress(entry.name)
    check.problems += [f"{MANIFEST}: tombstone {key} is in no shard" for key in sorted(withdrawn)]
    return VerifyReport(
        problems=check.problems, shards=len(check.manifest.shards), samples=samples, bytes=nbytes
    )


def _manifest_problems(manifest: Manifest) -> list[str]:
    """Where the manifest contradicts itself."""
    totals = manifest.totals
    shard_names = [shard.name for shard in manifest.shards]
    stated = {
        "contract_sha256": (manifest.contract_sha256, manifest.contract.sha256),
        "order of shards": (shard_names, sorted(set(shard_names))),
        "order of tombstones": (manifest.tombstones, sorted(set(manifest.tombstones))),
        "totals.samples": (
            totals.samples + len(manifest.tombstones),
            sum(shard.samples for shard in manifest.shards),
        ),
        "totals.shard_bytes": (totals.shard_bytes, sum(shard.bytes for shard in manifest.shards)),
        "totals.files_in": (totals.files_in, totals.files_used + totals.files_refused),
    }
    return [
        f"{MANIFEST}: {what} does not agree with the rest of it"
        for what, (found, expected) in stated.items()
        if found != expected
    ]


def _stray_files(check: _Check) -> list[str]:
    """Files that look like the dataset's but that the manifest does not name."""
    known = {entry.name for entry in check.manifest.files}
    for shard in check.manifest.shards:
        known |= {shard.name, shard.idx.name, shard.refs.name}
    try:
        found = names(check.store)
    except ShardError:
        # Plain web servers cannot list; every named file is still checked.
        return []
    ours = [name for name in found if name.startswith("shard-") or name.endswith(".parquet")]
    return [f"{name}: not named in {MANIFEST}" for name in ours if name not in known]


def _check_report(check: _Check) -> None:
    for entry in check.manifest.files:
        if entry.name not in (INDEX, CHUNKS, SERIES):
            check.file(entry)


def _shard_rows(check: _Check) -> list[ShardRows | None]:
    """Rows of the index and the chunk table by shard; None where a table cannot be read."""
    manifest = check.manifest
    index = check.parsed(INDEX, lambda data: read_index(data, manifest.format_version, INDEX))
    groups = check.parsed(CHUNKS, lambda data: _read_groups(data, len(manifest.shards)))
    series = check.parsed(SERIES, lambda data: read_table(data, SERIES_SCHEMA, SERIES))
    if index is not None:
        check.problems += _index_problems(manifest, index)
        if series is not None:
            check.problems += _series_problems(manifest, index, series)
    if index is None or groups is None:
        return [None] * len(manifest.shards)
    by_shard: dict[str, list[Row]] = {shard.name: [] for shard in manifest.shards}
    for row in index.to_pylist():
        by_shard.get(row["shard"], []).append(row)
    if [len(group) for group in groups] != [len(rows) for rows in by_shard.values()]:
        check.problems.append(f"{CHUNKS}: its row groups are not one a shard")
        return [None] * len(manifest.shards)
    return [
        ShardRows(index=rows, chunks=chunks)
        for rows, chunks in zip(by_shard.values(), groups, strict=True)
    ]


def _read_groups(data: bytes, shards: int) -> list[list[Row]]:
    """Rows of the chunk table by shard."""
    try:
        parquet = pq.ParquetFile(pa.BufferReader(data))
        check_schema(parquet.schema_arrow, CHUNKS_SCHEMA, CHUNKS)
        groups = [parquet.read_row_group(n).to_pylist() for n in range(parquet.num_row_groups)]
    except (pa.ArrowException, OSError) as exc:
        raise CorruptShardError(f"{CHUNKS}: not a readable Parquet file ({exc})") from exc
    if len(groups) != shards:
        raise CorruptShardError(f"{CHUNKS}: its row groups are not one a shard")
    return groups


def _index_problems(manifest: Manifest, index: pa.Table) -> list[str]:
    order = [shard.name for shard in manifest.shards]
    shards = index["shard"].to_pylist()
    sorted_shards = sorted(shards) == shards and set(shards) <= set(order)
    samples = sum(shard.samples for shard in manifest.shards) - len(manifest.tombstones)
    keys = index["key"].to_pylist()
    trainable = sum(index["trainable"].to_pylist())
    voxels = sum(z * y * x for z, y, x in index["shape_zyx"].to_pylist())
    stated = {
        "its rows are not those of the shards, in their order": sorted_shards
        and len(keys) == samples,
        f"a tombstone of {MANIFEST} has a row": not set(keys) & set(manifest.tombstones),
        "a key occurs twice": len(set(keys)) == len(keys),
        f"totals.trainable of {MANIFEST} differs": trainable == manifest.totals.trainable,
        f"totals.voxels of {MANIFEST} differs": voxels == manifest.totals.voxels,
    }
    return [f"{INDEX}: {problem}" for problem, holds in stated.items() if not holds]


def _series_problems(manifest: Manifest, index: pa.Table, series: pa.Table) -> list[str]:
    rows = series.select(["verdict", "key", "n_files"]).to_pylist()
    accepted = [row for row in rows if row["verdict"] == "accepted"]
    totals = manifest.totals
    stated = {
        "files": sum(row["n_files"] for row in rows) == totals.files_in,
        "accepted files": sum(row["n_files"] for row in accepted) == totals.files_used,
        "accepted series": len(accepted) == totals.series_accepted,
        "refused series": len(rows) - len(accepted) == totals.series_refused,
        "keys": sorted(row["key"] for row in accepted) == sorted(index["key"].to_pylist()),
    }
    return [
        f"{SERIES}: {what} do not agree with {INDEX} and {MANIFEST}"
        for what, holds in stated.items()
        if not holds
    ]
