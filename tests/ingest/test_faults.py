"""Killed at any moment, the same command completes the build to the same bytes."""

import os
import random
import subprocess
import sys

import pytest

from ingest.errors import IngestError, UsageError
from ingest.lock import LOCK_FILE, check_free, locked, waiting_lock
from shards.failpoints import BUILD_FAILPOINTS, VARIABLE, failpoint
from shards.verify import verify

KILLS = int(os.environ.get("CORALBAY_KILLS", "5"))
"""Random moments: a few in every test run, 50 in `make soak`."""
WORKERS_START_S = 2.0
"""About how long local workers take to begin; a guess decides only where the moments fall."""
PUBLISHING_S = 0.15
"""About how long tables, report and manifest take."""
MAX_FILE_BYTES = 300_000
"""Less than a shard of these, more than any other file."""


@pytest.fixture(scope="module")
def archive(three_volumes):
    return three_volumes


@pytest.fixture(scope="module")
def whole(three_built):
    return three_built


PLACES = [*BUILD_FAILPOINTS, "sample_added:2", "result_saved:2", "table_written:3"]
PLACES += [f"before_rename:{n}" for n in (2, 3, 4, 12, 15)]


@pytest.mark.parametrize("place", PLACES)
def test_killed_at_a_failpoint(place, archive, whole, tmp_path, ingest_run, complete, flags):
    out = tmp_path / "out"
    killed = ingest_run("build-shards", archive, out, *flags, env={VARIABLE: place})
    assert killed.status == -9, killed.output  # so the place was reached
    complete(archive, out, whole[0])
    assert verify(out).problems == []


def test_killed_twice_in_one_build(archive, whole, tmp_path, ingest_run, complete, flags):
    """A second death, in the run that goes on from the first."""
    out = tmp_path / "out"
    for place in ("result_saved", "tar_renamed", "table_written:2", "after_manifest"):
        killed = ingest_run("build-shards", archive, out, *flags, env={VARIABLE: place})
        assert killed.status == -9, killed.output
    complete(archive, out, whole[0])


def moment(seed, out, seconds, flags):
    """Flags of a run, and when to kill what in it: four kinds of death in turn."""
    draw = random.Random(seed).uniform
    two = (*flags[:-1], "2")
    begun = {"folder": str(out / ".build"), "glob": "build.json", "signal": 9}
    match seed % 4:
        case 0:
            return flags, {"kill_after_s": draw(0, seconds)}
        case 1:  # the main process, with workers of its own
            return two, {"when": begun | {"delay_s": draw(0, seconds + WORKERS_START_S)}}
        case 2:  # a worker, after which the run itself goes on
            delay = WORKERS_START_S + draw(0, seconds)
            return two, {"when": begun | {"delay_s": delay, "victim": "worker"}}
        case _:  # during publication
            last = {"glob": "group-*.json", "count": 3, "delay_s": draw(0, PUBLISHING_S)}
            return flags, {"when": begun | last}


@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_at_a_random_moment(seed, archive, whole, tmp_path, ingest_run, complete, flags):
    files, seconds = whole
    out = tmp_path / "out"
    used, death = moment(seed, out, seconds, flags)
    run = ingest_run("build-shards", archive, out, *used, **death)
    # Where a worker dies the run goes on, or says in a line that workers could not be started.
    assert run.status in ((0, 1) if seed % 4 == 2 else (0, -9)), run.output
    assert "Traceback" not in run.output, run.output
    complete(archive, out, files)
    assert verify(out).problems == []


def test_a_failpoint_has_to_be_known():
    with pytest.raises(ValueError, match="no failpoint"):
        failpoint("nowhere")


def test_a_full_disk_is_one_line_and_the_build_goes_on_later(
    archive, whole, tmp_path, ingest_run, complete, flags
):
    out = tmp_path / "out"
    full = ingest_run("build-shards", archive, out, *flags, max_file_bytes=MAX_FILE_BYTES)
    assert full.status == 1
    assert full.output.splitlines()[-1].startswith("ingest: ")
    assert "File too large; the same command goes on from here" in full.output
    assert "Traceback" not in full.output
    assert not list(out.glob("*.tar"))
    assert not list(out.rglob("*.tmp"))
    complete(archive, out, whole[0])


def test_a_full_disk_under_a_worker_process_is_the_same_line(
    archive, whole, tmp_path, ingest_run, complete, flags
):
    out = tmp_path / "out"
    two = (*flags[:-1], "2")
    full = ingest_run("build-shards", archive, out, *two, max_file_bytes=MAX_FILE_BYTES)
    assert full.status == 1
    assert "File too large; the same command goes on from here" in full.output.splitlines()[-1]
    assert "Traceback" not in full.output
    assert "distributed" not in full.output  # its log of workers that come and go
    assert not list(out.rglob("*.tmp"))
    complete(archive, out, whole[0])


HOLD = """
import sys, pathlib
from ingest.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder():
    """Starts a process that holds a lock until it is ended."""
    started = []

    def hold(out):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(out)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_the_second_run_is_refused_and_says_who_is_first(
    archive, whole, tmp_path, ingest_run, holder, complete, flags
):
    out = tmp_path / "out"
    process = holder(out)
    refused = ingest_run("build-shards", archive, out, *flags)
    assert refused.status == 2
    [line] = refused.output.splitlines()
    assert f"process {process.pid} on " in line
    assert "is writing there" in line
    assert sorted(path.name for path in out.iterdir()) == [LOCK_FILE]
    process.kill()
    process.wait()
    complete(archive, out, whole[0])  # a dead holder holds nothing


def test_many_at_once_never_share(tmp_path):
    """Locks are unlinked as they are freed, which a waiting process must notice."""
    script = """
import pathlib, sys, time
from ingest.errors import UsageError
from ingest.lock import locked
out, mark = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
got = 0
while got < 40:
    try:
        with locked(out):
            mark.mkdir()  # fails if another process is in here too
            mark.rmdir()
            got += 1
    except UsageError:
        pass
"""
    command = [sys.executable, "-c", script, str(tmp_path / "out"), str(tmp_path / "mark")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert errors == [""] * 3
    # The folder itself may stay, empty: one run came while another was about to remove it.
    assert not list((tmp_path / "out").glob("*"))


def test_a_lock_leaves_a_folder_as_it_was(tmp_path):
    with locked(tmp_path):
        with pytest.raises(UsageError, match="is writing there"), locked(tmp_path):
            pass
        with pytest.raises(UsageError, match="is writing there"):
            check_free(tmp_path)
    check_free(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is no folder"), locked(tmp_path / "file"):
        pass


def test_a_group_that_another_process_keeps_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("ingest.lock.POLL_S", 0.01)
    path = tmp_path / "group.lock"
    with (
        waiting_lock(path, 1),
        pytest.raises(IngestError, match="still held by process"),
        waiting_lock(path, 0.05),
    ):
        pass
    with waiting_lock(path, 0):
        pass


def test_a_worker_of_a_build_that_is_over_writes_nothing(archive, tmp_path):
    """As one that a cluster starts late, after the run that asked for it is gone."""
    from ingest.config import BuildConfig
    from ingest.groups import Group
    from ingest.output import STATE_FOLDER
    from ingest.work import GroupTask, build_group

    task = GroupTask(
        group=Group(number=0, series=(), estimated_bytes=0), out=str(tmp_path),
        config=BuildConfig(), build_sha256="a", previews=frozenset(),
    )  # fmt: skip
    with pytest.raises(IngestError, match="sees no build there"):
        build_group(task)
    (tmp_path / STATE_FOLDER).mkdir()
    (tmp_path / STATE_FOLDER / "build.json").write_text('{"build_sha256": "b"}')
    with pytest.raises(IngestError, match="another build"):
        build_group(task)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["build.json"]
