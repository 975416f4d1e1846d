"""Opening datasets, whole ones and every kind of wrong one."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards.dataset import Dataset
from shards.errors import CorruptShardError, FormatVersionError, NotADatasetError, ShardError
from shards.profiles import PROFILES
from shards.store import get, get_range, open_store, stream
from shards.testing import toy_affine, toy_volume, write_dataset, write_toy_dataset

SHAPE = (34, 40, 66)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("toy"), 5, SHAPE, per_shard=2)


@pytest.fixture
def folder(built, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(built, tmp_path / "copy")


@pytest.mark.parametrize("profile", PROFILES)
def test_samples_are_what_was_put_in(tmp_path, profile):
    volumes = {f"k{n}": toy_volume((20 + 30 * n, 40, 66), n) for n in range(3)}
    dataset = Dataset.open(write_dataset(tmp_path, volumes, per_shard=2, profile=profile))
    assert dataset.keys() == list(volumes)
    assert len(dataset) == 3
    assert dataset.chunk_side == {"gpu": 32}.get(profile, 64)
    for sample, (key, hu) in zip(dataset, volumes.items(), strict=True):
        assert sample.meta.key == key
        assert np.array_equal(sample.hu, hu)
        assert np.array_equal(sample.affine, toy_affine(hu.shape))


def test_urls_and_paths_open_the_same(built):
    for url in (built, str(built), f"file://{built}"):
        dataset = Dataset.open(url)
        assert dataset.url == str(url)
        assert dataset.sample("toy-0003").meta.key == "toy-0003"


def test_chunk_table_of_all_and_of_some_shards(built):
    dataset = Dataset.open(built)
    rows = pq.read_table(built / "chunks.parquet").to_pylist()
    for shards, wanted in [(None, rows), ([1], rows[2:4]), ([2, 0], rows[4:] + rows[:2]), ([], [])]:
        assert dataset.chunk_table(shards).to_pylist() == wanted


def test_plan_samples_are_the_index(built):
    samples = Dataset.open(built).plan_samples()
    assert list(samples.keys) == [f"toy-{n:04d}" for n in range(5)]
    assert samples.shard_number.tolist() == [0, 0, 1, 1, 2]
    assert samples.shapes.tolist() == [list(SHAPE)] * 5
    assert samples.trainable.all()
    assert samples.source_names == ("toy",)
    assert samples.source.tolist() == [0] * 5
    assert sorted(samples.subject.tolist()) == [0, 1, 2, 3, 4]
    assert samples.offset.tolist() == Dataset.open(built).index["offset"].to_pylist()
    assert samples.air_mask[4].shape == (2,)


def test_an_unknown_key_is_a_key_error(built):
    with pytest.raises(KeyError):
        Dataset.open(built).sample("nobody")


def one_line(excinfo):
    message = str(excinfo.value)
    assert "\n" not in message
    return message


def test_a_missing_path(tmp_path):
    for url in (tmp_path / "no", f"file://{tmp_path}/no"):
        with pytest.raises(NotADatasetError) as excinfo:
            Dataset.open(url)
        assert one_line(excinfo).startswith(f"{tmp_path}/no: no such folder; give the folder")


def test_a_file(built):
    with pytest.raises(NotADatasetError) as excinfo:
        Dataset.open(built / "shard-000000.tar")
    assert "a file; give the folder that holds manifest.json" in one_line(excinfo)


def test_a_folder_without_manifest(tmp_path):
    with pytest.raises(NotADatasetError) as excinfo:
        Dataset.open(tmp_path)
    assert one_line(excinfo).startswith(f"{tmp_path}: no manifest.json there; give the output of")


@pytest.mark.parametrize("url", ["ftp://host/data", "s4://bucket/x", "s3://", "x://"])
def test_a_wrong_url(url):
    with pytest.raises(ShardError) as excinfo:
        Dataset.open(url)
    assert one_line(excinfo).startswith(url)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"format": "coralbay-shards"}', "\xff\x00", '"format"']
)
def test_a_malformed_manifest(folder, text):
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptShardError) as excinfo:
        Dataset.open(folder)
    assert one_line(excinfo).startswith(f"{folder}: manifest.json: not a coralbay-shards manifest")


def test_a_manifest_with_a_field_too_many_or_too_few(folder):
    path = folder / "manifest.json"
    good = json.loads(path.read_text())
    for change in (lambda m: m.update(extra=1), lambda m: m.pop("shards")):
        manifest = dict(good)
        change(manifest)
        path.write_text(json.dumps(manifest))
        with pytest.raises(CorruptShardError) as excinfo:
            Dataset.open(folder)
        assert "not a valid Manifest" in one_line(excinfo)


@pytest.mark.parametrize(
    "change", [{"format_version": 3}, {"format_version": "1-draft"}, {"format": "zarr"}]
)
def test_another_version(folder, change):
    path = folder / "manifest.json"
    # A later version may well have other fields: only these two are looked at.
    path.write_text(json.dumps({"format": "coralbay-shards", "format_version": 1} | change))
    with pytest.raises(FormatVersionError) as excinfo:
        Dataset.open(folder)
    message = one_line(excinfo)
    assert message.startswith(f"{folder}: manifest.json: format ")
    assert "this reader knows 'coralbay-shards' versions 1 and 2; use a matching" in message


def test_an_index_that_is_not_the_manifests(folder):
    table = pq.read_table(folder / "index.parquet")
    pq.write_table(table.slice(1), folder / "index.parquet")
    with pytest.raises(CorruptShardError, match=r"copy: index\.parquet: SHA-256 is not"):
        Dataset.open(folder)
    (folder / "index.parquet").unlink()
    with pytest.raises(CorruptShardError, match=r"copy: index\.parquet: missing"):
        Dataset.open(folder)


def test_a_sample_of_a_damaged_shard(folder):
    dataset = Dataset.open(folder)
    row = dataset.index.slice(1, 1).to_pylist()[0]
    path = folder / row["shard"]
    shard = bytearray(path.read_bytes())
    shard[row["offset"] + 60] ^= 4
    path.write_bytes(shard)
    with pytest.raises(CorruptShardError, match=r"shard-000000\.tar: toy-0001: chunk fails"):
        dataset.sample("toy-0001")
    assert dataset.sample("toy-0000").meta.key == "toy-0000"
    path.write_bytes(shard[: row["offset"] + 100])
    with pytest.raises(ShardError, match=r"shard-000000\.tar"):
        dataset.sample("toy-0001")
    (folder / "shard-000001.tar.idx").write_text("v1.1 2\n")
    with pytest.raises(CorruptShardError, match=r"not a DALI v1\.2 index"):
        dataset.sample("toy-0002")
    (folder / "shard-000002.tar.idx").unlink()
    with pytest.raises(CorruptShardError, match=r"shard-000002\.tar\.idx: missing"):
        dataset.sample("toy-0004")


def test_store_reads_what_is_there(tmp_path):
    data = bytes(range(256)) * 100
    (tmp_path / "object").write_bytes(data)
    store = open_store(tmp_path)
    assert get(store, "object") == data
    assert bytes(get_range(store, "object", 100, 50)) == data[100:150]
    assert b"".join(stream(store, "object")) == data
    with pytest.raises(ShardError, match="object: "):
        get_range(store, "object", len(data) - 10, 20)
    for missing in (get, lambda *a: get_range(*a, 0, 1), lambda *a: list(stream(*a))):
        with pytest.raises(FileNotFoundError):
            missing(store, "absent")
