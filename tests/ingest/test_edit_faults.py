"""Killed at any step of a change, a dataset opens as it was or as it is to be; the command ends it.

The kills are real (SIGKILL); see tests/ingest/test_faults.py for those of a build.
"""

import hashlib
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from ingest.ids import load_id_key
from ingest.phantom import Torso
from ingest.testing import SeriesSpec, write_series_at
from shards.dataset import Dataset
from shards.failpoints import COMMIT_FAILPOINTS, VARIABLE
from shards.verify import verify

SMALL = SeriesSpec(patient=1, slices=12, side=48, pixel_mm=7.0, gap_mm=5.0)
BUILD = ("--spacing-mm", "7", "--min-slices", "8")
PLACES = {
    "append": ["scanned", "state_written", "result_saved", "staged", "decided", "shard_moved:3"],
    "forget": ["table_written", "after_manifest", "staged", "file_replaced", "manifest_replaced"],
    "compact": ["tar_written", "before_rename:9", "file_replaced:3", "stale_removed"],
    "merge": ["state_written", "before_rename:2", "table_written:2", "after_manifest"],
}
"""Every place of a commit is tried in tests/shards/test_generations.py."""
OLD = {"staged", "decided", "shard_moved:3"}
"""Places of a commit up to which readers see the generation before."""


def snapshot(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory, ingest_run):
    """A dataset for each command, what the command is, and what it makes of the dataset."""
    root = tmp_path_factory.mktemp("world")
    load_id_key()
    for n in (1, 2, 3):
        spec = replace(SMALL, patient=n, torso=Torso(seed=n))
        write_series_at(root / ("first" if n < 3 else "second") / f"{n}", spec)

    def run(*args):
        done = ingest_run(*args)
        assert done.status == 0, done.output

    run("build-shards", root / "first", root / "append", *BUILD, "--workers", 1)
    run("build-shards", root / "second", root / "other", *BUILD, "--workers", 1)
    shutil.copytree(root / "append", root / "forget")
    subject = pq.read_table(root / "forget/index.parquet")["subject_id"][0].as_py()
    shutil.copytree(root / "forget", root / "compact")
    run("forget", root / "compact", "--subject", subject)
    commands = {
        "append": lambda out: ("append", root / "second", out, "--workers", 1),
        "forget": lambda out: ("forget", out, "--subject", subject),
        "compact": lambda out: ("compact", out),
        "merge": lambda out: ("merge", root / "append", root / "other", out),
    }
    expected = {}
    for name, command in commands.items():
        out = root / f"{name}-done"
        if name != "merge":
            shutil.copytree(root / name, out)
        run(*command(out))
        expected[name] = snapshot(out)
    return root, commands, expected


@pytest.mark.parametrize(("name", "place"), [(n, place) for n in PLACES for place in PLACES[n]])
def test_killed_anywhere(name, place, world, tmp_path, ingest_run):
    root, commands, expected = world
    out = tmp_path / "out"
    if name != "merge":
        shutil.copytree(root / name, out)
    killed = ingest_run(*commands[name](out), env={VARIABLE: place})
    assert killed.status == -9, killed.output  # so the place was reached
    if name != "merge":
        before, after = (Dataset.open(root / p).manifest for p in (name, f"{name}-done"))
        decided = place.split(":")[0] in COMMIT_FAILPOINTS
        dataset = Dataset.open(out)
        assert dataset.manifest == (after if decided and place not in OLD else before)
        assert len(list(dataset)) == len(dataset)
        assert list(dataset.plan_samples().keys) == dataset.keys()
    again = ingest_run(*commands[name](out))
    assert again.status == 0, again.output
    assert snapshot(out) == expected[name]
    assert verify(out).problems == []
    assert sorted(p.name for p in out.iterdir() if p.name.startswith(".")) == []


def test_a_step_cut_short_is_completed_by_the_next_command(world, tmp_path, ingest_run):
    """Withdrawn, but not yet everywhere: another command on the dataset ends that first."""
    root, commands, _ = world
    out = shutil.copytree(root / "compact", tmp_path / "out")
    ingest_run(*commands["compact"](out), env={VARIABLE: "manifest_replaced"})
    done = ingest_run(*commands["append"](out))
    assert done.status == 0, done.output
    assert verify(out).problems == []
    shards = {shard.name for shard in Dataset.open(out).manifest.shards}
    assert {path.name for path in out.glob("*.tar")} == shards


def test_an_unfinished_append_of_other_series_is_dropped(world, tmp_path, ingest_run):
    root, commands, expected = world
    out = shutil.copytree(root / "append", tmp_path / "out")
    write_series_at(tmp_path / "raw/9", replace(SMALL, patient=9, torso=Torso(seed=9)))
    ingest_run("append", tmp_path / "raw", out, "--workers", 1, env={VARIABLE: "result_saved"})
    assert (out / ".edit").exists()
    assert verify(out).problems == []
    done = ingest_run(*commands["append"](out))
    assert done.status == 0, done.output
    assert snapshot(out) == expected["append"]


def test_a_full_disk_is_one_line_and_leaves_the_dataset_as_it_was(world, tmp_path, ingest_run):
    root, commands, expected = world
    for name in ("append", "forget", "compact"):
        out = shutil.copytree(root / name, tmp_path / name)
        full = ingest_run(*commands[name](out), max_file_bytes=3000)
        assert full.status == 1, full.output
        assert "the same command goes on from here" in full.output.splitlines()[-1]
        assert Dataset.open(out).manifest == Dataset.open(root / name).manifest
        done = ingest_run(*commands[name](out))
        assert done.status == 0, done.output
        assert snapshot(out) == expected[name]
