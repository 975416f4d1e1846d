"""A simulated dataset of any size: manifest, index and chunk table as a build writes them.

There are no voxels. Ids, shapes, chunk sizes and sources are drawn from one seed. The tables go
through the project's own writers, so that their row groups, statistics and footers are what a
reader of a real dataset meets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy import ndarray
from numpy.random import Generator

from shards.codec import ENTRY_BYTES, morton_order
from shards.schema import (
    CHUNKS,
    CHUNKS_SCHEMA,
    FORMAT,
    INDEX,
    INDEX_SCHEMA,
    MANIFEST,
    MIN_TRAINABLE_SIDE,
    Contract,
    FileEntry,
    Manifest,
    MustMatch,
    Recorded,
    ShardEntry,
    Totals,
    idx_name,
    refs_name,
    shard_name,
)
from shards.tables import parquet_bytes, write_parquet
from shards.versions import manifest_bytes

CHUNK = 64
SPACING_MM = 0.9
MEAN_SHAPE = (340, 350, 430)
"""Mean (z, y, x) at 0.9 mm: 51 Mvoxel, 102 MB of int16."""
CODED_FRACTION = 0.45
"""Stored bytes over int16 bytes inside the body: 1 / 2.2, as measured for lz4hc-5 + bitshuffle."""
AIR_FRACTION = 0.2
"""Share of chunks that are air; they are stored in a quarter of the bytes."""
SERIES_A_SUBJECT = 3.3
UNKNOWN_SUBJECTS = 0.01
"""Share of series whose subject id is empty."""
SOURCES = tuple(f"site-{n:02d}" for n in range(12))
KERNELS = ("", *(f"{letter}{n}f" for letter in "BHI" for n in range(10, 80, 5)))
SLICE_MM = np.array([0.5, 0.6, 0.625, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 5.0])


@dataclass(kw_only=True)
class _Columns:
    """Columns of the index, shard by shard."""

    offset: list[ndarray] = field(default_factory=list)
    nbytes: list[ndarray] = field(default_factory=list)


def simulate(folder: Path, n_series: int, n_shards: int, seed: int = 0) -> Manifest:
    """Write a dataset of ``n_series`` in ``n_shards`` to ``folder``, without its shards."""
    rng = np.random.default_rng(seed)
    keys = _ids(rng, n_series)
    shapes = np.maximum(
        20, rng.normal(MEAN_SHAPE, 0.2 * np.array(MEAN_SHAPE), (n_series, 3))
    ).astype(np.int32)
    starts = np.linspace(0, n_series, n_shards + 1).astype(np.int64)
    columns = _Columns()
    with (folder / CHUNKS).open("wb") as file:
        write_parquet(file, _chunk_groups(rng, keys, shapes, starts, columns), CHUNKS_SCHEMA)
    index = _index(rng, keys, shapes, starts, columns)
    (folder / INDEX).write_bytes(parquet_bytes([index], INDEX_SCHEMA))
    manifest = _manifest(folder, index, starts, columns)
    (folder / MANIFEST).write_bytes(manifest_bytes(manifest))
    return manifest


def _ids(rng: Generator, n: int) -> pa.Array:
    """``n`` ids of 24 hex digits, as keyed hashes give."""
    text = rng.bytes(12 * n).hex().encode()
    offsets = np.arange(n + 1, dtype=np.int32) * 24
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(text))


def _chunk_groups(
    rng: Generator, keys: pa.Array, shapes: ndarray, starts: ndarray, columns: _Columns
) -> Iterator[pa.Table]:
    """The chunk table, a table a shard; where the samples lie goes to ``columns``."""
    for first, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        sizes, offsets = [], []
        for shape in shapes[first:stop]:
            grid = -(-shape // CHUNK)
            order = _morton(tuple(grid.tolist()))
            nbytes = _chunk_bytes(rng, len(order))
            at = np.empty(len(order), dtype=np.int64)
            ends = np.cumsum(nbytes[order], dtype=np.int64) + len(order) * ENTRY_BYTES + 4
            at[order] = ends - nbytes[order]
            sizes.append(nbytes)
            offsets.append(at)
        totals = np.array([s.sum() + len(s) * ENTRY_BYTES + 4 for s in sizes])
        # Record and array metadata come first, each with its header, as a build writes them.
        members = -(-totals // 512) * 512 + 4096
        columns.nbytes.append(totals)
        columns.offset.append(np.concatenate([[0], np.cumsum(members)[:-1]]) + 4096)
        splits = np.concatenate([[0], np.cumsum([len(s) for s in sizes])]).astype(np.int32)
        flat = np.concatenate(sizes)
        lists = (np.concatenate(offsets), flat, flat < AIR_BYTES)
        yield pa.table(
            [keys[first:stop], *(pa.ListArray.from_arrays(splits, values) for values in lists)],
            schema=CHUNKS_SCHEMA,
        )


AIR_BYTES = CHUNK**3 * 2 * CODED_FRACTION / 2


def _chunk_bytes(rng: Generator, n: int) -> ndarray:
    body = CHUNK**3 * 2 * CODED_FRACTION * rng.normal(1, 0.08, n)
    return np.where(rng.random(n) < AIR_FRACTION, body / 4, body).astype(np.int32)


@lru_cache(maxsize=4096)
def _morton(grid: tuple[int, int, int]) -> ndarray:
    return np.asarray(morton_order(grid))


def _index(
    rng: Generator, keys: pa.Array, shapes: ndarray, starts: ndarray, columns: _Columns
) -> pa.Table:
    n = len(keys)
    subject = rng.integers(0, int(n / SERIES_A_SUBJECT) + 1, n)
    unknown = rng.random(n) < UNKNOWN_SUBJECTS
    known = _ids(rng, int(subject.max()) + 1).take(pa.array(subject))
    subjects = pc.if_else(pa.array(unknown), "", known)
    shards = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    names = pa.array([shard_name(number) for number in range(len(starts) - 1)])
    contrast = rng.integers(0, 3, n)
    fields = {
        "key": keys,
        "shard": names.take(pa.array(shards)),
        "subject_id": subjects,
        "study_id": _ids(rng, n),
        "source": pa.array(SOURCES).take(pa.array(rng.integers(0, len(SOURCES), n))),
        "shape_zyx": pa.FixedSizeListArray.from_arrays(pa.array(shapes.ravel()), 3),
        "spacing_zyx_mm": pa.FixedSizeListArray.from_arrays(
            pa.array(np.full(3 * n, SPACING_MM)), 3
        ),
        "slice_mm": pa.array(rng.choice(SLICE_MM, n)),
        "kernel": pa.array(KERNELS).take(pa.array(rng.integers(0, len(KERNELS), n))),
        "contrast": pa.array(contrast == 1, mask=contrast == 2),
        "trainable": pa.array(shapes.min(axis=1) >= MIN_TRAINABLE_SIDE),
        "offset": pa.array(np.concatenate(columns.offset)),
        "nbytes": pa.array(np.concatenate(columns.nbytes)),
    }
    return pa.table(fields, schema=INDEX_SCHEMA)


def _manifest(folder: Path, index: pa.Table, starts: ndarray, columns: _Columns) -> Manifest:
    contract = Contract(
        must_match=MustMatch(spacing_zyx_mm=(SPACING_MM,) * 3),
        recorded=Recorded(resampler="antialias", body_crop=True, profile="balanced"),
    )
    shards = [
        ShardEntry(
            name=shard_name(number),
            bytes=int(offset[-1] + -(-nbytes[-1] // 512) * 512 + 1024),
            sha256=_digest(f"shard {number}"),
            samples=len(offset),
            idx=FileEntry(name=idx_name(shard_name(number)), bytes=4000, sha256=_digest("idx")),
            refs=FileEntry(name=refs_name(shard_name(number)), bytes=9000, sha256=_digest("refs")),
        )
        for number, (offset, nbytes) in enumerate(zip(columns.offset, columns.nbytes, strict=True))
    ]
    n = index.num_rows
    voxels = int(
        np.prod(
            index["shape_zyx"].combine_chunks().flatten().to_numpy().reshape(-1, 3),
            axis=1,
            dtype=np.int64,
        ).sum()
    )
    return Manifest(
        format=FORMAT,
        format_version=1,
        generation=1,
        contract=contract,
        contract_sha256=contract.sha256,
        build_sha256=_digest("build"),
        id_key_fingerprint=_digest("key")[:24],
        levels=["ct"],
        shards=shards,
        files=[_entry(folder / name) for name in (INDEX, CHUNKS)],
        totals=Totals(
            samples=n,
            trainable=int(pc.sum(index["trainable"]).as_py()),
            shard_bytes=sum(shard.bytes for shard in shards),
            voxels=voxels,
            files_in=n,
            files_used=n,
            files_refused=0,
            series_accepted=n,
            series_refused=0,
        ),
    )


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(name=path.name, bytes=path.stat().st_size, sha256=digest)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
