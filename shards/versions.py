"""Which format versions there are, which one a dataset needs, and how each is read and written.

In memory everything has its newest form: what an older version cannot say is empty. On disk a
dataset has the lowest version that can express it, so that older readers keep reading whatever
they can. ``docs/format.md`` says what each version added.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace

import pyarrow as pa

from shards.errors import CorruptShardError, FormatVersionError
from shards.schema import FORMAT, INDEX_SCHEMA, Manifest, ShardEntry, canonical_json, converter
from shards.tables import read_table

VERSIONS = (1, 2)
"""Known versions, oldest first."""
MANIFEST_SINCE_2 = ("tombstones",)
"""Fields of the manifest that version 1 does not have."""
LABELLED = pa.field("labelled", pa.bool_())
"""Column of the index that version 1 does not have: whether a sample has a label volume."""


def lowest_version(*, tombstones: Sequence[str], labelled: bool) -> int:
    """The version to write.

    Args:
        tombstones: keys whose bytes are in a shard though they are withdrawn.
        labelled: whether any sample has a label volume.
    """
    return 2 if tombstones or labelled else 1


def index_schema(version: int) -> pa.Schema:
    """Columns of ``index.parquet``."""
    return INDEX_SCHEMA if version == 1 else INDEX_SCHEMA.append(LABELLED)


def read_index(data: bytes, version: int, where: str) -> pa.Table:
    """``index.parquet`` of any version, with the columns of the newest.

    Raises:
        CorruptShardError: not Parquet, or other columns than its version has.
    """
    table = read_table(data, index_schema(version), where)
    if version == 1:
        table = table.append_column(LABELLED, pa.array([False] * table.num_rows, pa.bool_()))
    return table


def manifest_bytes(manifest: Manifest) -> bytes:
    """``manifest.json`` in the manifest's own version."""
    record = converter.unstructure(manifest)
    if manifest.format_version == 1:
        for name in MANIFEST_SINCE_2:
            if record.pop(name):
                raise ValueError(f"version 1 cannot say {name}")
    return canonical_json(record)


def load_manifest(data: bytes, where: str) -> Manifest:
    """Parse a manifest, checking format and version before anything else.

    Raises:
        FormatVersionError: another format, or a version this reader does not know.
        CorruptShardError: not JSON, or fields missing or unknown.
    """
    try:
        record = json.loads(data)
        found, version = record["format"], record["format_version"]
    except (ValueError, KeyError, TypeError) as exc:
        raise CorruptShardError(f"{where}: not a {FORMAT} manifest ({exc!r})") from exc
    if found != FORMAT or version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise FormatVersionError(
            f"{where}: format {found!r} version {version!r}, but this reader knows {FORMAT!r} "
            f"versions {known}; use a matching coralbay, or rebuild with `ingest build-shards`"
        )
    expected = {field.name for field in fields(Manifest)}
    if version == 1:
        expected -= set(MANIFEST_SINCE_2)
    if set(record) != expected:
        odd = ", ".join(sorted(set(record) ^ expected))
        raise CorruptShardError(
            f"{where}: not a valid Manifest (missing or unknown in version {version}: {odd})"
        )
    try:
        # One by one, dropping what was parsed: 33,000 shards would be in memory twice.
        shards = record["shards"]
        for number, shard in enumerate(shards):
            shards[number] = converter.structure(shard, ShardEntry)
        return replace(converter.structure(record | {"shards": []}, Manifest), shards=shards)
    except Exception as exc:  # cattrs raises an open family of errors: any means "not our schema"
        raise CorruptShardError(f"{where}: not a valid Manifest ({exc!r})") from exc
