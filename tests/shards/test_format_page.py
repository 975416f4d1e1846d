"""``docs/format.md`` against a reader written from it, and against the code's own lists."""

import hashlib
import itertools
import json
import re
import struct
from dataclasses import fields
from pathlib import Path

import google_crc32c
import numcodecs.blosc
import numcodecs.lz4
import numpy as np
import pyarrow.parquet as pq
import pytest

from shards import schema, versions
from shards.codec import zarr_metadata
from shards.profiles import PROFILES
from shards.testing import toy_volume, write_dataset

PAGE = (Path(__file__).parents[2] / "docs/format.md").read_text()


def checked(data):
    body, crc = data[:-4], data[-4:]
    assert struct.pack("<I", google_crc32c.value(body)) == crc
    return body


def read_chunk(data, profile, side):
    body = checked(data)
    if profile == "gpu":
        assert struct.unpack_from("<I", body) == (65536,)
        shuffled = np.frombuffer(numcodecs.lz4.decompress(body), np.uint8).reshape(2, -1)
        voxels = (shuffled[1].astype(np.uint16) << 8 | shuffled[0]).astype("<u2").view("<i2")
    else:
        assert struct.unpack_from("<I", body, 4) == (524288,)
        assert struct.unpack_from("<I", body, 12) == (len(body),)
        voxels = np.frombuffer(numcodecs.blosc.decompress(body), "<i2")
    return voxels.reshape(side, side, side)


def morton_code(position, grid):
    code, place = 0, 0
    for bit, axis in itertools.product(range(32), range(3)):
        if bit < len(f"{grid[axis] - 1:b}") and grid[axis] > 1:
            code |= (position[axis] >> bit & 1) << place
            place += 1
    return code


def read_zshard(zshard, shape, profile):
    side = 32 if profile == "gpu" else 64
    grid = [-(-length // side) for length in shape]
    n = int(np.prod(grid))
    entries = struct.iter_unpack("<QQ", checked(zshard[: 16 * n + 4]))
    at = {}
    out = np.full([m * side for m in grid], -1024, np.int16)
    for position, (offset, nbytes) in zip(np.ndindex(*grid), entries, strict=True):
        if (offset, nbytes) == (2**64 - 1, 2**64 - 1):
            continue
        at[morton_code(position, grid)] = (offset, nbytes)
        where = tuple(slice(p * side, (p + 1) * side) for p in position)
        out[where] = read_chunk(zshard[offset : offset + nbytes], profile, side)
    expected = 16 * n + 4
    for _, (offset, nbytes) in sorted(at.items()):
        assert offset == expected
        expected += nbytes
    assert expected == len(zshard)
    return out[tuple(slice(length) for length in shape)]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_reader_from_the_page_alone(tmp_path, profile):
    volumes = {"a": toy_volume((70, 80, 290), 0), "b": toy_volume((33, 200, 129), 1)}
    write_dataset(tmp_path, volumes, profile=profile, per_shard=1)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["format"], manifest["format_version"]) == ("coralbay-shards", 1)
    lines = [f"{shard['name']} {shard['sha256']}" for shard in manifest["shards"]]
    generation = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    parsed = versions.load_manifest((tmp_path / "manifest.json").read_bytes(), "")
    assert parsed.generation_id == generation
    for row in pq.read_table(tmp_path / "index.parquet").to_pylist():
        shard = (tmp_path / row["shard"]).read_bytes()
        assert len(shard) % 10240 == 0
        zshard = shard[row["offset"] : row["offset"] + row["nbytes"]]
        hu = read_zshard(zshard, row["shape_zyx"], manifest["contract"]["recorded"]["profile"])
        assert np.array_equal(hu, volumes[row["key"]])
        record = json.loads(shard[512 : 512 + int(shard[124:135], 8)])
        said = hu.astype("<i2").tobytes() + struct.pack("<3q", *hu.shape)
        said += struct.pack("<16d", *itertools.chain(*record["affine"]))
        assert hashlib.sha256(said).hexdigest() == record["content_sha256"]


def test_headers_are_those_of_the_page(tmp_path):
    write_dataset(tmp_path, {"a": toy_volume((40, 40, 40), 0)})
    block = (tmp_path / "shard-000000.tar").read_bytes()[:512]
    size = int(block[124:135], 8)
    expected = b"a.json".ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2
    expected += b"%011o\0" % size + b"00000000000\0" + b"%06o\0 " % checksum(block) + b"0"
    expected += bytes(100) + b"ustar\0" + b"00" + bytes(247)
    assert block == expected


def checksum(block):
    return sum(block[:148]) + 8 * 32 + sum(block[156:])


def test_array_metadata_is_that_of_the_page():
    example = json.loads(re.search(r"```json\n(\{\"attributes.*?)```", PAGE, re.DOTALL)[1])
    assert json.loads(zarr_metadata((70, 80, 90), "balanced")) == example
    assert (
        zarr_metadata((70, 80, 90), "balanced")
        == json.dumps(example, sort_keys=True, separators=(",", ":")).encode()
    )


def described(heading, until):
    """Names in the first column of the tables of a section."""
    section = PAGE.split(heading, 1)[1].split(until, 1)[0]
    cells = re.findall(r"^\| ((?:`[a-z0-9_]+`(?:, )?)+) \|", section, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([a-z0-9_]+)`", cell)]


def names_of(record):
    return sorted(field.name for field in fields(record))


def test_every_field_is_on_the_page():
    since_1 = described("## `manifest.json`", "## A shard")
    since_2 = described("## Version 2", "**Its `generation")
    assert since_2 == [*versions.MANIFEST_SINCE_2, versions.LABELLED.name]
    assert sorted([*since_1, *versions.MANIFEST_SINCE_2]) == names_of(schema.Manifest)
    assert sorted(described("### `KEY.json`", "**`content_sha256`**")) == names_of(
        schema.SampleMeta
    )
    text = PAGE.split("## `manifest.json`", 1)[1].split("## A shard", 1)[0]
    for record in (schema.Totals, schema.MustMatch, schema.Recorded, schema.ShardEntry):
        assert all(f"`{name}`" in text for name in names_of(record))


@pytest.mark.parametrize(
    ("heading", "until", "columns"),
    [
        ("**`index.parquet`**", "The columns stand", schema.INDEX_SCHEMA),
        ("**`chunks.parquet`**", "**`series.parquet`**", schema.CHUNKS_SCHEMA),
        ("**`series.parquet`**", "## What", schema.SERIES_SCHEMA),
    ],
)
def test_every_column_is_on_the_page(heading, until, columns):
    assert sorted(described(heading, until)) == sorted(columns.names)


def test_order_of_the_index_columns_is_that_of_the_page():
    said = re.search(r"in the order `([a-z0-9_,\s]+)`", PAGE)[1]
    assert [name.strip() for name in said.split(",")] == schema.INDEX_SCHEMA.names
