"""Shards as they are published again: kept whole, or copied sample by sample, byte for byte."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from shards.dataset import Dataset
from shards.errors import CorruptShardError
from shards.schema import MANIFEST, ShardEntry
from shards.sidecars import split_member
from shards.store import Store, stream
from shards.tables import Row
from shards.tar import read_members
from shards.verify_shard import HashedStream
from shards.writer import KeptShard, ShardResult, ShardWriter


def kept_shards(dataset: Dataset, withdrawn: Collection[str] = ()) -> list[KeptShard]:
    """The shards of a dataset, to be published again without the rows of ``withdrawn`` keys."""
    rows: dict[str, list[Row]] = {shard.name: [] for shard in dataset.manifest.shards}
    for row in dataset.index.to_pylist():
        if row["key"] not in withdrawn:
            rows[row["shard"]].append(row)
    return [
        KeptShard(
            entry=entry,
            index_rows=rows[entry.name],
            read_chunks=_chunk_reader(dataset, number, [row["key"] for row in rows[entry.name]]),
        )
        for number, entry in enumerate(dataset.manifest.shards)
    ]


def _chunk_reader(dataset: Dataset, number: int, keys: list[str]) -> Callable[[], pa.Table]:
    """Reads the rows of ``keys`` of one shard when it is called."""

    def read() -> pa.Table:
        table = dataset.chunk_table([number])
        return table.filter(pc.is_in(table["key"], pa.array(keys, pa.string())))

    return read


def copy_samples(
    store: Store, shard: KeptShard, folder: Path, number: int, profile: str
) -> ShardResult:
    """Write those samples of a shard that have rows as a new shard, their members unchanged.

    Args:
        store: where the shard is.
        shard: the shard and the rows of what is to be copied, at least one.
        folder: where the new one is written.
        number: of the new one.
        profile: of both.

    Raises:
        CorruptShardError: the shard's bytes are not those that its manifest names.
        FileNotFoundError: it is not there.
    """
    chunks = {row["key"]: row for row in shard.read_chunks().to_pylist()}
    wanted = {row["key"]: (row, chunks[row["key"]]) for row in shard.index_rows}
    with ShardWriter(folder, number, profile) as writer:
        _copy_into(writer, store, shard.entry, wanted)
        return writer.close()


def _copy_into(
    writer: ShardWriter, store: Store, entry: ShardEntry, wanted: Mapping[str, tuple[Row, Row]]
) -> None:
    source = HashedStream(stream(store, entry.name))
    members = ((member.name, data) for member, data in read_members(source.read))
    for key, sample in itertools.groupby(members, key=lambda member: split_member(member[0])[0]):
        if key in wanted:
            writer.add_stored(list(sample), *wanted[key])
    if source.finish() != entry.sha256:
        raise CorruptShardError(
            f"{entry.name}: SHA-256 is not that in {MANIFEST}; `ingest verify` says what is wrong"
        )
    if writer.samples != len(wanted):
        raise CorruptShardError(f"{entry.name}: lacks samples that the index names")
