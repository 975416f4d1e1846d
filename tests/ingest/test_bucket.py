"""Built straight into a bucket: the objects are the files of a local build."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shards.verify import verify
from tests.s3_conditional import ConditionalServer, serving_conditional


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConditionalServer]:
    folder = tmp_path_factory.mktemp("s3") / "buckets"
    with serving_conditional(folder, "data") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def out(server: ConditionalServer, tmp_path: Path) -> Iterator[str]:
    """An empty prefix of its own; nothing goes wrong there yet."""
    yield f"s3://data/{tmp_path.name}/ct"
    server.refuse()


@pytest.fixture
def run(ingest_run: Any, server: ConditionalServer) -> Callable[..., Any]:
    """A command in a process that can reach the server."""

    def go(*args: object, **order: Any) -> Any:
        return ingest_run(*args, env=server.environment | order.pop("env", {}), **order)

    return go


def objects(server: ConditionalServer, url: str) -> dict[str, str]:
    """Digests of all objects below a prefix, as the server keeps them."""
    folder = server.folder / url.removeprefix("s3://")
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def said(done: Any) -> dict[str, Any]:
    """The line for machines."""
    [line] = [line for line in done.output.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(line)
    return found


def last_line(done: Any) -> str:
    assert "Traceback" not in done.output, done.output
    line: str = done.output.splitlines()[-1]
    return line


def test_the_objects_are_the_files_of_a_local_build_and_each_request_is_known(
    run: Any, out: str, server: ConditionalServer, three_volumes: Path, three_built: Any, flags: Any
) -> None:
    server.requests()
    done = run("build-shards", three_volumes, out, *flags)
    assert done.status == 0, done.output
    assert objects(server, out) == three_built[0]
    shards, tables = 3, 6
    assert server.requests() == {
        # Each shard with two sidecars and its result; tables; the lock, once more to see that
        # conditions hold; whether writing is allowed; the build's name; which series are copies.
        "put": 4 * shards + tables + 2 + 1 + 1 + 1,
        # A worker looks for the build and for an earlier result of its group. Before: the lock
        # twice, and once it is ours; the manifest three times; the build's name; the copies. At
        # the end: the lock, and two tables for the closing line. Uploads in progress, twice.
        "get": 2 * shards + 3 + 3 + 1 + 1 + 1 + 2 + 2,
        # What is there, at first and under the lock (twice); earlier results; each group's series
        # prepared apart; all, before the manifest; the state, to be removed.
        "list": 3 + 1 + shards + 1 + 1,
        "post": 3,  # deletes: the trial, the state, the lock
    }
    again = run("build-shards", three_volumes, out, *flags)
    assert "already complete, nothing to do" in again.output
    assert server.requests() == {"get": 5, "list": 3}


def test_verify_and_inspect_read_there(
    run: Any, out: str, server: ConditionalServer, three_volumes: Path, flags: Any, tmp_path: Path
) -> None:
    assert run("build-shards", three_volumes, out, *flags).status == 0
    server.requests()
    checked = run("verify", out, "--json")
    assert (checked.status, said(checked)["samples"]) == (0, 3), checked.output
    # The manifest, the index to know it, three tables and the report; of each shard three files.
    assert server.requests() == Counter({"get": 1 + 1 + 4 + 3 * 3, "list": 1})
    listed = run("inspect", out)
    assert listed.output.count("shard-0000") == 3
    assert server.requests() == {"get": 2}
    key = next(line for line in listed.output.splitlines() if "shard-000001" in line).split()[0]
    shown = run("inspect", out, key, "--png", tmp_path / "one.png")
    assert json.loads(shown.output)["key"] == key
    # The index of its shard, and its members; once for the picture, once for the record.
    assert server.requests() == {"get": 2 + 1 + 2}
    assert (tmp_path / "one.png").stat().st_size > 1000


def test_damage_is_found_as_in_a_folder(
    run: Any, out: str, server: ConditionalServer, three_volumes: Path, flags: Any, tmp_path: Path
) -> None:
    assert run("build-shards", three_volumes, out, *flags).status == 0
    folder = server.folder / out.removeprefix("s3://")
    (folder / "shard-000001.tar").unlink()
    data = bytearray((folder / "shard-000000.tar").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "shard-000000.tar").write_bytes(data)
    (folder / "shard-000009.tar").write_bytes(b"foreign")
    here = verify(folder)
    there = run("verify", out, "--json")
    assert there.status == 1
    found = said(there)["problems"]
    assert found == here.problems
    assert "shard-000001.tar: missing" in found
    assert "shard-000009.tar: not named in manifest.json" in found
    assert any("shard-000000.tar: SHA-256" in line for line in found)
