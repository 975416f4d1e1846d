"""Killed, refused or locked out on the way into a bucket: the same command completes the build."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.failpoints import VARIABLE
from shards.schema import canonical_json
from tests.ingest.test_bucket import objects

IN_PARTS = {"shards.upload.PART_BYTES": 200_000}
"""So that the small shards of the tests go in several parts."""
PLACES = [
    *("state_written", "tar_renamed", "publishing", "state_removed"),
    *("bucket_locked", "delivered:3", "delivered:10", "delivered:15", "part_sent", "part_sent:7"),
]
"""Kills before and after each kind of object; number 15 is the manifest. Besides these, tests below
are killed at ``result_saved`` and ``manifest_waits``."""


@pytest.fixture
def complete(bucket: Any, three_volumes: Path, three_built: Any, flags: Any) -> Callable[..., None]:
    """The same command again: to the objects of a local build, with nothing left over."""

    def run(*more: object) -> None:
        done = bucket.run("build-shards", three_volumes, bucket.out, *flags, *more)
        assert done.status == 0, done.output
        assert objects(bucket) == three_built[0]
        assert bucket.left_over() == []

    return run


def last_line(done: Any) -> str:
    assert "Traceback" not in done.output, done.output
    line: str = done.output.splitlines()[-1]
    return line


@pytest.mark.parametrize("place", PLACES)
def test_killed_at_a_failpoint(
    place: str, bucket: Any, three_volumes: Path, flags: Any, complete: Any
) -> None:
    killed = bucket.run(
        "build-shards", three_volumes, bucket.out, *flags,
        env={VARIABLE: place}, settings=IN_PARTS,
    )  # fmt: skip
    assert killed.status == -9, killed.output  # so the place was reached
    if place.startswith("part_sent"):
        assert bucket.server.uploads() != []
    complete()


def test_without_its_manifest_it_is_no_dataset(
    bucket: Any, three_volumes: Path, flags: Any, complete: Any
) -> None:
    env = {VARIABLE: "manifest_waits"}
    assert bucket.run("build-shards", three_volumes, bucket.out, *flags, env=env).status == -9
    for command in ("verify", "inspect"):
        refused = bucket.run(command, bucket.out)
        assert (refused.status, refused.output.count("\n")) == (2, 1)
        assert "no manifest.json there" in refused.output
    complete()


def test_what_is_finished_is_neither_read_nor_sent_again(
    bucket: Any, three_volumes: Path, flags: Any, complete: Any
) -> None:
    env = {VARIABLE: "result_saved:2"}
    assert bucket.run("build-shards", three_volumes, bucket.out, *flags, env=env).status == -9
    before = {path: path.stat().st_mtime_ns for path in bucket.folder.glob("shard-00000[01]*")}
    assert len(before) == 6
    bucket.server.requests()
    complete()
    found = bucket.server.requests()
    # One shard with two sidecars and its result; tables; the lock twice; the trial.
    assert found["put"] == 4 + 6 + 2 + 1
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_finished_shard_that_was_damaged_or_lost_is_made_again(
    bucket: Any, three_volumes: Path, flags: Any, complete: Any
) -> None:
    env = {VARIABLE: "result_saved:3"}
    assert bucket.run("build-shards", three_volumes, bucket.out, *flags, env=env).status == -9
    data = bytearray((bucket.folder / "shard-000000.tar").read_bytes())
    data[1000] ^= 1
    bucket.put("shard-000000.tar", bytes(data))
    (bucket.folder / "shard-000002.tar.idx").unlink()
    complete()


def test_a_shard_that_changes_before_the_manifest_stops_the_run(
    bucket: Any, three_volumes: Path, flags: Any, complete: Any
) -> None:
    """As another writer would, whom no lock can keep from writing."""
    when = {
        "folder": str(bucket.folder), "glob": ".build/group-000001.json",
        "signal": int(signal.SIGSTOP),
    }  # fmt: skip

    over = threading.Event()

    def other_writer() -> None:
        while not (pids := stopped_children(bucket)) and not over.wait(0.01):
            pass
        bucket.put("shard-000000.tar.idx", b"another's")
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=other_writer)
    thread.start()
    done = bucket.run("build-shards", three_volumes, bucket.out, *flags, when=when)
    over.set()
    thread.join()
    assert done.status == 1
    assert "shard-000000.tar.idx is not what this run wrote there" in last_line(done)
    assert not (bucket.folder / "manifest.json").exists()
    complete()


def stopped_children(bucket: Any) -> list[int]:
    """Processes that a signal has stopped."""
    zygote = bucket.zygote.process.pid
    children = Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()
    return [
        int(pid)
        for pid in children
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    ]


REFUSALS = {
    # name: (what goes wrong, exit code, words of the line)
    "nobody may write": (
        {"method": "PUT", "path": "", "status": 403, "code": "AccessDenied"}, 2, "AccessDenied",
    ),
    "nobody may read": (
        {"method": "GET", "path": "", "status": 403, "code": "AccessDenied"}, 2, "AccessDenied",
    ),
    "credentials expire half-way": (
        {"method": "PUT", "path": "shard-", "after": 4, "status": 400, "code": "ExpiredToken"},
        1, "the credentials have expired",
    ),
    "expire before the result": (
        {"method": "PUT", "path": "group-000001", "status": 400, "code": "ExpiredToken"},
        1, "the same command goes on from here",
    ),
    "the bucket goes half-way": (
        {"method": ["PUT", "GET"], "path": "", "after": 25, "status": 404, "code": "NoSuchBucket"},
        1, "no such bucket",
    ),
    "only the manifest is refused": (
        {"method": "PUT", "path": "manifest.json", "status": 403, "code": "AccessDenied"},
        1, "manifest.json: access denied",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_one_line_and_the_build_goes_on_later(
    name: str, bucket: Any, three_volumes: Path, flags: Any, complete: Any
) -> None:
    fault, status, words = REFUSALS[name]
    bucket.server.refuse(fault)
    refused = bucket.run("build-shards", three_volumes, bucket.out, *flags)
    assert refused.status == status, refused.output
    line = last_line(refused)
    assert line.startswith(f"ingest: {bucket.out}")
    assert words in line
    assert not (bucket.folder / "manifest.json").exists()
    bucket.server.refuse()
    if status == 1:
        complete()


def test_a_part_that_is_refused_leaves_no_upload_behind(
    bucket: Any, three_volumes: Path, flags: Any, complete: Any
) -> None:
    fault = {"method": "PUT", "path": "partNumber", "after": 2, "status": 403, "code": "Denied"}
    bucket.server.refuse(fault)
    refused = bucket.run("build-shards", three_volumes, bucket.out, *flags, settings=IN_PARTS)
    assert refused.status == 1
    assert "shard-000000.tar" in last_line(refused)
    assert bucket.left_over() == []
    bucket.server.refuse()
    complete()


def test_a_bucket_that_is_not_there(bucket: Any, three_volumes: Path, flags: Any) -> None:
    refused = bucket.run("build-shards", three_volumes, "s3://nowhere/ct", *flags)
    assert refused.status == 2
    assert refused.output.count("\n") == 1  # before the scan
    assert "s3://nowhere/ct: cannot be used (no such bucket)" in refused.output


def test_another_dataset_and_foreign_objects_are_refused(
    bucket: Any, three_volumes: Path, flags: Any, complete: Any
) -> None:
    bucket.put("notes/thesis.doc", b"mine")
    refused = bucket.run("build-shards", three_volumes, bucket.out, *flags)
    assert refused.status == 2
    assert last_line(refused).endswith(
        "not empty and no dataset of ours; give a new or empty place"
    )
    assert list(objects(bucket)) == ["notes/thesis.doc"]
    shutil.rmtree(bucket.folder / "notes")
    complete()
    before = objects(bucket)
    other = bucket.run("build-shards", three_volumes, bucket.out, *flags, "--profile", "ratio")
    assert other.status == 2
    assert "holds a dataset of other inputs or settings" in last_line(other)
    assert objects(bucket) == before


def test_an_unfinished_build_of_other_settings_is_not_mixed_in(
    bucket: Any, three_volumes: Path, flags: Any, complete: Any
) -> None:
    env = {VARIABLE: "result_saved"}
    assert bucket.run("build-shards", three_volumes, bucket.out, *flags, env=env).status == -9
    other = bucket.run("build-shards", three_volumes, bucket.out, *flags, "--profile", "ratio")
    assert other.status == 2
    assert "holds an unfinished build of other inputs" in last_line(other)
    complete()


def test_a_complete_dataset_may_lie_where_nobody_can_write(
    bucket: Any, three_volumes: Path, flags: Any, complete: Any
) -> None:
    complete()
    bucket.server.refuse({"method": "PUT", "path": "", "status": 403, "code": "AccessDenied"})
    again = bucket.run("build-shards", three_volumes, bucket.out, *flags)
    assert again.status == 0
    assert "already complete, nothing to do" in again.output


def test_ctrl_c_frees_the_lock(bucket: Any, three_volumes: Path, flags: Any, complete: Any) -> None:
    when = {
        "folder": str(bucket.folder), "glob": "shard-000000.tar", "signal": int(signal.SIGINT),
    }  # fmt: skip
    stopped = bucket.run("build-shards", three_volumes, bucket.out, *flags, when=when)
    assert stopped.status == 1
    assert last_line(stopped) == "ingest: stopped; the same command goes on from here"
    assert not (bucket.folder / ".lock").exists()
    assert bucket.left_over() == []
    complete()


def test_a_lock_of_another_machine_is_respected_until_the_user_knows_better(
    bucket: Any, three_volumes: Path, flags: Any, complete: Any
) -> None:
    env = {VARIABLE: "result_saved"}
    assert bucket.run("build-shards", three_volumes, bucket.out, *flags, env=env).status == -9
    owner = json.loads((bucket.folder / ".lock").read_bytes()) | {"machine": "x", "host": "node7"}
    bucket.put(".lock", canonical_json(owner))
    refused = bucket.run("build-shards", three_volumes, bucket.out, *flags)
    assert (refused.status, refused.output.count("\n")) == (2, 1)  # before the scan
    assert f"process {owner['process']} on node7 is writing there since 20" in refused.output
    assert "--take-lock" in refused.output
    assert sorted(path.name for path in bucket.folder.glob(".lock*")) == [".lock"]
    complete("--take-lock")


def test_a_change_of_a_dataset_wants_a_folder(bucket: Any, three_volumes: Path) -> None:
    out = bucket.out
    for args in (
        ("append", three_volumes, out),
        ("forget", out, "--subject", "a"),
        ("forget", out, "--patient-id", "a"),
        ("compact", out),
        ("merge", out, out, "/nowhere"),
    ):
        refused = bucket.run(*args)
        assert (refused.status, refused.output.count("\n")) == (2, 1), args
        assert f"{out}: only datasets in local folders are changed or merged" in refused.output
