"""Version 2: tombstones; and the lowest version that can express a dataset is what is written."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards.dataset import Dataset
from shards.errors import CorruptShardError
from shards.schema import MANIFEST
from shards.testing import withdraw, write_toy_dataset
from shards.verify import verify
from shards.versions import load_manifest, lowest_version, manifest_bytes

SHAPE = (34, 40, 66)


@pytest.fixture
def folder(tmp_path):
    return write_toy_dataset(tmp_path / "toy", 5, SHAPE, per_shard=2)


def test_the_lowest_version_is_written(folder):
    assert lowest_version(tombstones=[], labelled=False) == 1
    assert lowest_version(tombstones=["a"], labelled=False) == 2
    assert lowest_version(tombstones=[], labelled=True) == 2
    assert json.loads((folder / MANIFEST).read_text())["format_version"] == 1
    assert "labelled" not in pq.read_schema(folder / "index.parquet").names
    withdraw(folder, [])
    manifest = json.loads((folder / MANIFEST).read_text())
    assert (manifest["format_version"], manifest["generation"]) == (1, 2)
    assert "tombstones" not in manifest
    withdraw(folder, ["toy-0001"])
    manifest = json.loads((folder / MANIFEST).read_text())
    assert (manifest["format_version"], manifest["generation"]) == (2, 3)
    assert pq.read_schema(folder / "index.parquet").names[-1] == "labelled"


def test_both_versions_look_alike_in_memory(folder):
    first = Dataset.open(folder).index
    withdraw(folder, ["toy-0004"])
    second = Dataset.open(folder).index
    assert second.equals(first.slice(0, 4))
    assert set(second["labelled"].to_pylist()) == {False}


def test_a_tombstoned_sample_is_never_served(folder):
    before = Dataset.open(folder)
    withdraw(folder, ["toy-0001", "toy-0004"])
    dataset = Dataset.open(folder)
    assert dataset.keys() == ["toy-0000", "toy-0002", "toy-0003"]
    with pytest.raises(KeyError):
        dataset.sample("toy-0001")
    assert [sample.meta.key for sample in dataset] == dataset.keys()
    plan = dataset.plan_samples()
    assert list(plan.keys) == dataset.keys()
    assert plan.shard_number.tolist() == [0, 1, 1]
    # The last shard holds none any more: an empty row group keeps the others in their place.
    assert dataset.chunk_table([2]).num_rows == 0
    assert dataset.chunk_table([1])["key"].to_pylist() == ["toy-0002", "toy-0003"]
    old = before.sample("toy-0003")
    np.testing.assert_array_equal(dataset.sample("toy-0003").hu, old.hu)
    report = verify(folder)
    assert report.problems == []
    assert (report.shards, report.samples) == (3, 3)


def test_tombstones_change_the_generation_id(folder):
    before = Dataset.open(folder).manifest
    assert replace(before, tombstones=[]).generation_id == before.generation_id
    withdraw(folder, ["toy-0001"])
    after = Dataset.open(folder).manifest
    assert [s.sha256 for s in after.shards] == [s.sha256 for s in before.shards]
    assert after.generation_id != before.generation_id


def change_manifest(folder, **fields):
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_verify_finds_wrong_tombstones(folder):
    withdraw(folder, ["toy-0001"])
    change_manifest(folder, tombstones=["toy-0001", "toy-0009"])
    problems = "\n".join(verify(folder).problems)
    assert "tombstone toy-0009 is in no shard" in problems
    change_manifest(folder, tombstones=["toy-0000"])
    problems = "\n".join(verify(folder).problems)
    assert "index.parquet: a tombstone of manifest.json has a row" in problems
    assert "shard-000000.tar: its samples are not those of the index" in problems
    change_manifest(folder, tombstones=[])
    assert any("totals.samples" in line for line in verify(folder).problems)


def test_fields_belong_to_their_version(folder):
    change_manifest(folder, tombstones=[])
    with pytest.raises(CorruptShardError, match="unknown in version 1: tombstones"):
        Dataset.open(folder)
    withdrawn = replace(load_manifest(_good(folder), ""), tombstones=["a"])
    with pytest.raises(ValueError, match="version 1 cannot say tombstones"):
        manifest_bytes(withdrawn)


def _good(folder):
    record = json.loads((folder / MANIFEST).read_text())
    del record["tombstones"]
    return json.dumps(record).encode()
