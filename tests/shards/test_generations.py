"""A changing dataset opens as the old generation or the new one, wherever the change is stopped."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards.copying import copy_samples, kept_shards
from shards.dataset import Dataset
from shards.errors import CorruptShardError
from shards.failpoints import COMMIT_FAILPOINTS, VARIABLE
from shards.generations import COMMITTED, commit, finish_commit, shard_files
from shards.schema import MANIFEST
from shards.store import open_store
from shards.tables import parquet_bytes
from shards.testing import withdraw, write_toy_dataset
from shards.verify import verify

SHAPE = (34, 40, 66)
COMMIT = "import sys; from pathlib import Path; from shards.generations import commit; " + (
    "commit(*map(Path, sys.argv[1:]))"
)


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A dataset of three shards, and its next generation: a sample less, in shards 1 and 3."""
    root = tmp_path_factory.mktemp("two")
    old = write_toy_dataset(root / "old", 5, SHAPE, per_shard=2)
    new = root / "new"
    shutil.copytree(old, new)
    withdraw(new, ["toy-0000", "toy-0004"])
    return old, new


def compacted(new, staged):
    """Stage the generation after ``new``, without what it withdrew."""
    from shards.writer import publish

    dataset = Dataset.open(new)
    one, two, _ = kept_shards(dataset)
    staged.mkdir()
    copied = copy_samples(dataset.store, one, staged, 3, "balanced")
    before = dataset.manifest
    totals = before.totals
    bytes_left = copied.entry.bytes + two.entry.bytes
    return publish(
        staged,
        [copied, two],
        series_rows=pq.read_table(new / "series.parquet").to_pylist(),
        report_html=b"<p>new",
        contract=before.contract,
        build_sha256=before.build_sha256,
        id_key_fingerprint=before.id_key_fingerprint,
        totals=type(totals)(**{**totals.__dict__, "shard_bytes": bytes_left}),
        generation=before.generation + 1,
    )


def test_a_commit_replaces_everything(two, tmp_path):
    _, new = two
    out = shutil.copytree(new, tmp_path / "out")
    before = {sample.meta.key: sample.hu for sample in Dataset.open(out)}
    manifest = compacted(out, out / ".edit")
    kept = out / "shard-000001.tar"
    inode = kept.stat().st_ino
    commit(out, out / ".edit")
    assert sorted(p.name for p in out.iterdir()) == sorted(
        {*shard_files(manifest), *(f.name for f in manifest.files), MANIFEST}
    )
    assert kept.stat().st_ino == inode
    dataset = Dataset.open(out)
    assert dataset.manifest == manifest
    assert (manifest.format_version, manifest.generation) == (1, 3)
    # Rewritten shards are new ones, so they come last.
    assert dataset.keys() == ["toy-0002", "toy-0003", "toy-0001"]
    for key, hu in before.items():
        np.testing.assert_array_equal(dataset.sample(key).hu, hu)
    assert verify(out).problems == []
    assert not finish_commit(out)


@pytest.mark.parametrize(
    "place", [*COMMIT_FAILPOINTS, "shard_moved:2", *(f"file_replaced:{n}" for n in (2, 3, 4))]
)
def test_killed_anywhere_it_opens_as_old_or_new(two, tmp_path, place):
    _, new = two
    out = shutil.copytree(new, tmp_path / "out")
    old = Dataset.open(out)
    manifest = compacted(out, out / ".edit")
    environment = {**os.environ, VARIABLE: place}
    command = [sys.executable, "-c", COMMIT, str(out), str(out / ".edit")]
    killed = subprocess.run(command, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    found = Dataset.open(out)
    assert found.manifest in (old.manifest, manifest)
    is_new = found.manifest == manifest
    assert is_new == (place not in ("staged", "decided", "shard_moved", "shard_moved:2"))
    assert [sample.meta.key for sample in found] == found.keys()
    assert list(found.plan_samples().keys) == found.keys()
    if place == "staged":
        shutil.rmtree(out / ".edit")
        assert verify(out).problems == []
        return
    assert finish_commit(out)
    assert Dataset.open(out).manifest == manifest
    assert verify(out).problems == []
    assert not (out / COMMITTED).exists()
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []


def test_while_tables_are_replaced_the_new_ones_verify(two, tmp_path):
    _, new = two
    out = shutil.copytree(new, tmp_path / "out")
    manifest = compacted(out, out / ".edit")
    command = [sys.executable, "-c", COMMIT, str(out), str(out / ".edit")]
    subprocess.run(command, env={**os.environ, VARIABLE: "file_replaced:2"}, check=False)
    problems = verify(out).problems
    assert all("not named in manifest.json" in line for line in problems)
    assert {line.split(".tar")[0] for line in problems} == {"shard-000000", "shard-000002"}
    assert Dataset.open(out).manifest == manifest


def test_tables_of_another_generation_are_never_mixed(two, tmp_path):
    _, new = two
    out = shutil.copytree(new, tmp_path / "out")
    old = Dataset.open(out)
    compacted(out, out / ".edit")
    commit(out, out / ".edit")
    for read in (old.chunk_table, lambda: old.chunk_table([0]), old.chunk_tables):
        with pytest.raises(CorruptShardError, match="generation 2 and is generation 3 now"):
            read()


def test_a_dataset_opened_in_the_window_reads_on_after_it(two, tmp_path):
    _, new = two
    out = shutil.copytree(new, tmp_path / "out")
    compacted(out, out / ".edit")
    command = [sys.executable, "-c", COMMIT, str(out), str(out / ".edit")]
    subprocess.run(command, env={**os.environ, VARIABLE: "file_replaced"}, check=False)
    dataset = Dataset.open(out)
    finish_commit(out)
    assert dataset.chunk_table()["key"].to_pylist() == dataset.keys()
    assert len(list(dataset)) == 3


def test_copied_samples_are_the_same_bytes(two, tmp_path):
    _, new = two
    dataset = Dataset.open(new)
    copied = copy_samples(dataset.store, kept_shards(dataset)[0], tmp_path, 7, "balanced")
    row = copied.index_rows[0]
    assert (row["key"], row["shard"]) == ("toy-0001", "shard-000007.tar")
    [source] = [r for r in dataset.index.to_pylist() if r["key"] == "toy-0001"]
    found = (tmp_path / "shard-000007.tar").read_bytes()
    original = (new / source["shard"]).read_bytes()
    end = row["offset"] + row["nbytes"]
    assert found[row["offset"] : end] == original[source["offset"] :][: source["nbytes"]]
    assert found[:end] == original[source["offset"] - row["offset"] :][:end]


def test_a_damaged_shard_is_not_copied(two, tmp_path):
    old, _ = two
    folder = shutil.copytree(old, tmp_path / "damaged")
    dataset = Dataset.open(folder)
    shard = folder / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptShardError, match=r"shard-000000\.tar: SHA-256"):
        copy_samples(open_store(folder), kept_shards(dataset)[0], tmp_path, 9, "balanced")
    assert list(tmp_path.glob("*shard-000009*")) == []


def test_a_table_gives_the_bytes_of_its_rows(two):
    old, _ = two
    table = pq.read_table(old / "chunks.parquet")
    pieces = [table.slice(0, 2), table.slice(2)]
    rows = [piece.to_pylist() for piece in pieces]
    assert parquet_bytes(pieces, table.schema) == parquet_bytes(rows, table.schema)


def test_a_record_is_read_alone(two):
    dataset = Dataset.open(two[0])
    assert dataset.meta("toy-0003") == dataset.sample("toy-0003").meta
    with pytest.raises(KeyError):
        dataset.meta("nobody")
