"""Checks one shard: digest, tar, sidecars, and every sample against what is stated of it."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int16
from numpy import ndarray

from shards.codec import (
    any_in_chunk,
    chunk_grid,
    decode_padded,
    morton_order,
    parse_zarr_metadata,
    read_chunk_index,
)
from shards.digest import content_sha256
from shards.errors import CorruptShardError, ShardError
from shards.schema import (
    AIR_BELOW_HU,
    CHUNKS,
    HU_MAX,
    HU_MIN,
    INDEX,
    LABEL_SUFFIXES,
    MANIFEST,
    META_SUFFIX,
    SUFFIXES,
    SampleMeta,
    ShardEntry,
    dump_json,
    load_json,
)
from shards.sidecars import dali_idx, kerchunk_refs, split_member
from shards.store import Store, stream
from shards.tables import Row, chunk_row, index_row
from shards.tar import Member, read_members
from shards.verify_array import fill_problems, order_problems, stored_label_problems

ALL_SUFFIXES = (*SUFFIXES, *LABEL_SUFFIXES)
RowPair = tuple[Row, Row]
"""A sample's rows in the index and in the chunk table."""


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """What the tables say of a shard, one row a sample."""

    index: list[Row]
    chunks: list[Row]


@dataclass(kw_only=True)
class ShardVerdict:
    """What is wrong with a shard, and how much of it was checked."""

    problems: list[str] = field(default_factory=list)
    samples: int = 0
    withdrawn: set[str] = field(default_factory=set)
    """Tombstoned keys that were met."""
    nbytes: int = 0


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """A sample's members as they lie in the tar."""

    key: str
    meta: bytes
    zarr_json: bytes
    zshard: bytes
    data: Member
    """Where ``zshard`` is."""
    label: tuple[bytes, ...]
    """Record, metadata and zshard of its labels; empty where it has none."""


class HashedStream:
    """Reads an object from start to end, piece by piece, taking its size and digest."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self._digest = hashlib.sha256()
        self.nbytes = 0

    def read(self, n: int) -> bytes:
        """The next ``n`` bytes; fewer only at the end."""
        parts, missing = [self._rest], n - len(self._rest)
        while missing > 0 and (piece := next(self._pieces, b"")):
            self._digest.update(piece)
            self.nbytes += len(piece)
            parts.append(piece)
            missing -= len(piece)
        joined = b"".join(parts)
        self._rest = joined[n:]
        return joined[:n]

    def finish(self) -> str:
        """Read what is left; SHA-256 of everything."""
        for piece in self._pieces:
            self._digest.update(piece)
            self.nbytes += len(piece)
        return self._digest.hexdigest()


def verify_shard(
    store: Store,
    entry: ShardEntry,
    rows: ShardRows | None,
    idx: bytes | None,
    refs: bytes | None,
    withdrawn: frozenset[str] = frozenset(),
) -> ShardVerdict:
    """Check a shard in one pass over its bytes.

    Args:
        store: where it is.
        entry: what the manifest says of it.
        rows: what the tables say of it; None when they cannot be read.
        idx: its DALI index; None when it cannot be read.
        refs: its kerchunk references; None when they cannot be read.
        withdrawn: tombstoned keys: checked like others, but without rows and not counted.
    """
    verdict = ShardVerdict()
    members: list[Member] = []
    keys: list[str] = []
    source = HashedStream(stream(store, entry.name))
    try:
        own_rows = _by_sample(rows)
        for sample in _samples(source, members):
            live = sample.key not in withdrawn
            if live:
                keys.append(sample.key)
            else:
                verdict.withdrawn.add(sample.key)
            found = list(_sample_problems(sample, entry.name, next(own_rows) if live else None))
            verdict.problems += [f"{sample.key}: {problem}" for problem in found]
            verdict.samples += live and not found
    except FileNotFoundError:
        verdict.problems.append("missing")
        return verdict
    except ShardError as exc:
        verdict.problems.append(str(exc))
    else:
        verdict.problems += _shard_problems(entry, rows, keys, len(verdict.withdrawn))
        if idx is not None and idx != dali_idx(members):
            verdict.problems.append(f"{entry.idx.name} does not describe this tar")
        if refs is not None and refs != kerchunk_refs(entry.name, members):
            verdict.problems.append(f"{entry.refs.name} does not describe this tar")
    try:
        digest = source.finish()
    except ShardError as exc:
        verdict.problems.append(str(exc))
        return verdict
    verdict.nbytes = source.nbytes
    if source.nbytes != entry.bytes:
        verdict.problems.append(f"{source.nbytes} bytes, but {MANIFEST} says {entry.bytes}")
    elif digest != entry.sha256:
        verdict.problems.append(f"SHA-256 is not that in {MANIFEST}")
    return verdict


def _samples(source: HashedStream, members: list[Member]) -> Iterator[StoredSample]:
    """Samples of a shard in order; every member met is also appended to ``members``."""
    held: list[tuple[Member, bytes]] = []
    found = read_members(source.read)
    while True:
        try:
            item = next(found, None)
        except ShardError:
            if _is_whole(held):
                yield _stored(held)
            raise
        if item is None:
            break
        members.append(item[0])
        if len(held) == len(ALL_SUFFIXES) or (
            len(held) == len(SUFFIXES) and not item[0].name.endswith(f".{LABEL_SUFFIXES[0]}")
        ):
            yield _stored(held)
            held = []
        key = split_member((held[0] if held else item)[0].name)[0]
        expected = f"{key}.{ALL_SUFFIXES[len(held)]}"
        if item[0].name != expected:
            raise CorruptShardError(f"member {item[0].name} where {expected} belongs")
        held.append(item)
    if _is_whole(held):
        yield _stored(held)
    elif held:
        raise CorruptShardError(f"sample {key} lacks members")


def _is_whole(held: Sequence[tuple[Member, bytes]]) -> bool:
    return len(held) in (len(SUFFIXES), len(ALL_SUFFIXES))


def _stored(held: Sequence[tuple[Member, bytes]]) -> StoredSample:
    (_, meta), (_, zarr_json), (data, zshard), *label = held
    return StoredSample(
        key=split_member(data.name)[0],
        meta=meta,
        zarr_json=zarr_json,
        zshard=zshard,
        data=data,
        label=tuple(content for _, content in label),
    )


def _by_sample(rows: ShardRows | None) -> Iterator[RowPair | None]:
    """The rows of each sample in turn, then None for ever."""
    if rows is not None:
        yield from zip(rows.index, rows.chunks, strict=False)
    yield from itertools.repeat(None)


def _shard_problems(
    entry: ShardEntry, rows: ShardRows | None, keys: list[str], withdrawn: int
) -> Iterator[str]:
    if len(keys) + withdrawn != entry.samples:
        yield f"{len(keys) + withdrawn} samples, but {MANIFEST} says {entry.samples}"
    if rows is not None:
        if [row["key"] for row in rows.index] != keys:
            yield "its samples are not those of the index, in their order"
        if [row["key"] for row in rows.chunks] != keys:
            yield "its samples are not those of the chunk table, in their order"


def _sample_problems(sample: StoredSample, shard: str, rows: RowPair | None) -> Iterator[str]:
    """What is wrong with one sample; ``rows`` are its own in the index and the chunk table."""
    try:
        meta = load_json(sample.meta, SampleMeta, META_SUFFIX)
        head = parse_zarr_metadata(sample.zarr_json)
        padded = decode_padded(sample.zarr_json, sample.zshard)
    except ShardError as exc:
        yield str(exc)
        return
    if dump_json(meta) != sample.meta:
        yield "its record is not in canonical JSON"
    shape, side = head.shape_zyx, head.profile.chunk_side
    grid = chunk_grid(shape, side)
    offsets, nbytes = read_chunk_index(sample.zshard, math.prod(grid))
    yield from _voxel_problems(sample.key, meta, padded[tuple(slice(n) for n in shape)])
    yield from order_problems(offsets, nbytes, morton_order(grid), len(sample.zshard))
    yield from fill_problems(padded, head, nbytes)
    if sample.label:
        yield from (f"label: {problem}" for problem in stored_label_problems(sample.label, meta))
    if rows is not None:
        air = ~any_in_chunk(padded > AIR_BELOW_HU, side)
        if rows[0] != index_row(meta, shard, sample.data, labelled=bool(sample.label)):
            yield f"its row of {INDEX} says otherwise"
        if rows[1] != chunk_row(sample.key, offsets, nbytes, air):
            yield f"its row of {CHUNKS} says otherwise"


def _voxel_problems(key: str, meta: SampleMeta, hu: Int16[ndarray, "z y x"]) -> Iterator[str]:
    """Where voxels and record disagree."""
    if meta.key != key:
        yield f"its record is that of {meta.key}"
    if tuple(meta.shape_zyx) != hu.shape:
        yield f"shape {hu.shape}, but its record says {meta.shape_zyx}"
    if content_sha256(hu, np.array(meta.affine, dtype=np.float64)) != meta.content_sha256:
        yield "voxels and affine are not those of its content_sha256"
    low, high = int(hu.min()), int(hu.max())
    if (low, high) != (meta.hu.min, meta.hu.max) or low < HU_MIN or high > HU_MAX:
        yield f"HU {low}..{high}, but its record says {meta.hu.min}..{meta.hu.max}"
