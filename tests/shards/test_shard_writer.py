"""Writing: same bytes every time, nothing half done, nothing that is not described."""

import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards.schema import SampleMeta, ShardEntry, converter, shard_name
from shards.tar import MAX_MEMBER_BYTES, header
from shards.testing import toy_meta, toy_volume, write_toy_dataset
from shards.writer import ShardResult, ShardWriter, publish

SHAPE = (34, 40, 66)


@pytest.fixture(scope="module")
def hu():
    return toy_volume(SHAPE, seed=0)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("profile", ["balanced", "ratio", "gpu"])
def test_the_same_input_gives_the_same_bytes(tmp_path, profile):
    first = write_toy_dataset(tmp_path / "a", 3, SHAPE, per_shard=2, profile=profile)
    second = write_toy_dataset(tmp_path / "b", 3, SHAPE, per_shard=2, profile=profile)
    assert contents(first) == contents(second)
    assert sorted(contents(first)) == [
        "chunks.parquet",
        "index.parquet",
        "manifest.json",
        "report.html",
        "series.parquet",
        "shard-000000.tar",
        "shard-000000.tar.idx",
        "shard-000000.tar.refs.json",
        "shard-000001.tar",
        "shard-000001.tar.idx",
        "shard-000001.tar.refs.json",
    ]


def test_results_may_come_in_any_order_and_through_pickle_or_json(tmp_path, hu, monkeypatch):
    import shards.testing.toy

    seen = []
    monkeypatch.setattr(shards.testing.toy, "publish", lambda *a, **k: seen.append((a, k)))
    write_toy_dataset(tmp_path, 5, SHAPE, per_shard=2)
    ((folder, results), keywords) = seen[0]
    expected = publish(folder, results, **keywords)
    written = contents(folder)
    copies = [pickle.loads(pickle.dumps(result)) for result in reversed(results)]
    assert publish(folder, copies, **keywords) == expected
    as_json = json.loads(json.dumps(converter.unstructure(results[::-1])))
    publish(folder, converter.structure(as_json, list[ShardResult]), **keywords)
    assert contents(folder) == written


def test_a_writer_that_is_not_closed_leaves_nothing(tmp_path, hu):
    with ShardWriter(tmp_path, 0, "balanced") as writer:
        writer.add(toy_meta("a", hu), hu)
        assert not (tmp_path / shard_name(0)).exists()
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_nothing(tmp_path, hu):
    def fail():
        with ShardWriter(tmp_path, 0, "balanced") as writer:
            writer.add(toy_meta("a", hu), hu)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_shard_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="at least one sample"),
        ShardWriter(tmp_path, 0, "balanced") as writer,
    ):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_what_the_record_says_must_be_so(tmp_path, hu):
    meta = toy_meta("a", hu)
    cases: list[tuple[SampleMeta, np.ndarray, str]] = [
        (replace(meta, key="A b"), hu, "key 'A b'"),
        (replace(meta, key="a.b"), hu, "key 'a.b'"),
        (replace(meta, key="a" * 65), hu, "key 'aaa"),
        (meta, hu[1:], "shape"),
        (meta, hu[::-1], "content_sha256"),
        (replace(meta, affine=((1.0,) * 4,) * 4), hu, "content_sha256"),
        (meta, hu + np.int16(3072), "leave -1024..3071"),
        (meta, hu - np.int16(1), "leave -1024..3071"),
    ]
    with ShardWriter(tmp_path, 0, "balanced") as writer:
        for wrong, voxels, message in cases:
            with pytest.raises(ValueError, match=message):
                writer.add(wrong, voxels)
        writer.add(meta, hu)
        with pytest.raises(ValueError, match="already in shard-000000"):
            writer.add(meta, hu)
        assert writer.samples == 1


@pytest.mark.usefixtures("unchecked")
def test_a_key_or_a_shard_comes_once_in_a_dataset(tmp_path, hu, monkeypatch):
    results = []
    for number in (0, 1):
        with ShardWriter(tmp_path, number, "balanced") as writer:
            writer.add(toy_meta("same", hu), hu)
            results.append(writer.close())
    rest = dict.fromkeys(
        ["series_rows", "report_html", "contract", "build_sha256", "id_key_fingerprint", "totals"]
    )
    with pytest.raises(ValueError, match="key 'same' occurs twice"):
        publish(tmp_path, results, **rest)
    with pytest.raises(ValueError, match=r"shard 'shard-000000\.tar' occurs twice"):
        publish(tmp_path, results[:1] * 2, **rest)


def test_an_unknown_profile_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="use one of balanced"):
        ShardWriter(tmp_path, 0, "fast")
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_comes_last_and_everything_is_synced(tmp_path, monkeypatch):
    events = []
    real = os.replace
    monkeypatch.setattr("pathlib.Path.replace", lambda a, b: (events.append(b.name), real(a, b))[1])
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}"))
    )
    write_toy_dataset(tmp_path, 3, SHAPE, per_shard=2)
    assert events[-1] == "manifest.json"
    assert set(events) == set(contents(tmp_path))
    assert {f"{tmp_path}/.{name}.tmp" for name in events} <= set(synced)
    assert synced[-1] == str(tmp_path)


def test_index_and_chunk_rows(tmp_path, hu):
    write_toy_dataset(tmp_path, 3, (32, 40, 66), per_shard=2)
    rows = pq.read_table(tmp_path / "index.parquet").to_pylist()
    assert [row["key"] for row in rows] == ["toy-0000", "toy-0001", "toy-0002"]
    assert [row["shard"] for row in rows] == ["shard-000000.tar"] * 2 + ["shard-000001.tar"]
    assert not any(row["trainable"] for row in rows)  # A side of 32.
    for row in rows:
        shard = (tmp_path / row["shard"]).read_bytes()
        header_block = shard[row["offset"] - 512 : row["offset"]]
        assert header_block.startswith(row["key"].encode() + b".ct.zshard\0")
        assert int(header_block[124:135], 8) == row["nbytes"]
    parquet = pq.ParquetFile(tmp_path / "chunks.parquet")
    assert [parquet.metadata.row_group(n).num_rows for n in range(2)] == [2, 1]
    chunks = parquet.read().to_pylist()
    assert [row["key"] for row in chunks] == [row["key"] for row in rows]
    assert all(len(row["chunk_offsets"]) == 2 for row in chunks)
    write_toy_dataset(tmp_path, 1, (33, 33, 33))
    assert pq.read_table(tmp_path / "index.parquet")["trainable"].to_pylist() == [True]


def test_a_member_over_8_gib_is_refused():
    assert header("a.ct.zshard", MAX_MEMBER_BYTES)[124:135] == b"77777777777"
    with pytest.raises(ValueError, match="8 GiB"):
        header("a.ct.zshard", MAX_MEMBER_BYTES + 1)


def test_result_is_plain(tmp_path, hu):
    with ShardWriter(tmp_path, 7, "gpu") as writer:
        writer.add(toy_meta("a", hu), hu)
        result = writer.close()
    assert isinstance(result.entry, ShardEntry)
    assert result.entry.name == "shard-000007.tar"
    assert result.entry.bytes == (tmp_path / "shard-000007.tar").stat().st_size
