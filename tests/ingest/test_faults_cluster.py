"""Worker processes that die, here and on a cluster: real `dask scheduler` and `dask worker`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ingest.cluster import worker_complaint
from shards.failpoints import VARIABLE

ROOT = Path(__file__).parents[2]
INTERRUPT, KILL = int(signal.SIGINT), int(signal.SIGKILL)


class Cluster:
    """A scheduler, and workers without nannies: a dead one stays dead."""

    def __init__(self, folder):
        self.file = folder / "scheduler.json"
        self.log = folder / "log"
        self.processes = []
        self.scheduler = self.start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"
        )
        self.workers = []

    def start(self, *args, path=(), **environment):
        python_path = os.pathsep.join([*map(str, path), str(ROOT)])
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *args, "--scheduler-file", str(self.file)],
                env={
                    **os.environ,
                    "PYTHONPATH": python_path,
                    "OMP_NUM_THREADS": "1",
                    **environment,
                },
                stdout=log,
                stderr=log,
                cwd=self.file.parent,
            )
        self.processes.append(process)
        return process

    def worker(self, **options):
        process = self.start(
            "worker", "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1",
            "--local-directory", str(self.file.parent), **options,
        )  # fmt: skip
        self.workers.append(process)
        return process

    @property
    def address(self):
        import json

        while not self.file.exists():
            assert self.scheduler.poll() is None, self.log.read_text()
            time.sleep(0.02)
        return json.loads(self.file.read_text())["address"]

    def wait_for_workers(self, count):
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=60)

    def stop_workers(self):
        from distributed import Client

        for process in self.workers:
            process.kill()
            process.wait()
        self.workers = []
        if self.scheduler.poll() is None:
            with Client(self.address, set_as_default=False) as client:
                while client.nthreads():
                    time.sleep(0.02)

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def _cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("dask"))
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(_cluster):
    yield _cluster
    _cluster.stop_workers()


def test_a_worker_killed_in_the_middle_changes_no_byte(
    cluster, three_volumes, three_built, tmp_path, complete
):
    doomed = cluster.worker(**{VARIABLE: "tar_written"})
    cluster.worker()
    cluster.wait_for_workers(2)
    # Both have tasks from the start: the doomed one dies with its first shard almost done.
    complete(three_volumes, tmp_path / "out", three_built[0], "--dask-scheduler", cluster.address)
    assert doomed.wait(10) == -9


def test_a_cluster_whose_workers_are_all_gone_is_given_up(
    cluster, three_volumes, three_built, tmp_path, ingest_run, flags, complete
):
    out, over = tmp_path / "out", ("--dask-scheduler", cluster.address)
    cluster.worker(**{VARIABLE: "result_saved:2"})
    cluster.wait_for_workers(1)
    settings = {"ingest.workers.GONE_S": 0.5, "ingest.workers.LOOK_S": 0.1}
    lost = ingest_run("build-shards", three_volumes, out, *flags, *over, settings=settings)
    assert lost.status == 1
    assert lost.output.splitlines()[-1].startswith("ingest: the cluster has had no worker for")
    assert "Traceback" not in lost.output
    cluster.worker()
    complete(three_volumes, out, three_built[0], *over)


def test_a_cluster_without_workers_is_not_waited_for_for_ever(
    cluster, three_volumes, tmp_path, ingest_run, flags
):
    settings = {"ingest.cluster.FIRST_WORKER_S": 0.2}
    over = ("--dask-scheduler", cluster.address)
    empty = ingest_run(
        "build-shards", three_volumes, tmp_path / "out", *flags, *over, settings=settings
    )
    assert empty.status == 1
    assert "no worker joined it" in empty.output.splitlines()[-1]


def test_interrupting_a_run_leaves_the_cluster_usable(
    cluster, three_volumes, three_built, tmp_path, ingest_run, flags, complete
):
    from distributed import Client

    out, over = tmp_path / "out", ("--dask-scheduler", cluster.address)
    cluster.worker()
    cluster.wait_for_workers(1)
    when = {"folder": str(out), "glob": "shard-*.tar", "signal": INTERRUPT}
    stopped = ingest_run("build-shards", three_volumes, out, *flags, *over, when=when)
    assert stopped.status == 1
    assert stopped.output.splitlines()[-1] == "ingest: stopped; the same command goes on from here"
    with Client(cluster.address, set_as_default=False) as client:
        assert client.submit(sum, (1, 2)).result(timeout=60) == 3
        assert len(client.nthreads()) == 1
    assert len(list(out.glob("shard-*.tar"))) < 3  # what waited was taken back
    complete(three_volumes, out, three_built[0], *over)


def test_workers_with_other_packages_are_refused(
    cluster, three_volumes, tmp_path, ingest_run, flags
):
    old = tmp_path / "old/numcodecs-0.0.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: numcodecs\nVersion: 0.0.1\n")
    cluster.worker(path=[old.parent])
    cluster.wait_for_workers(1)
    out = tmp_path / "out"
    refused = ingest_run(
        "build-shards", three_volumes, out, *flags, "--dask-scheduler", cluster.address
    )
    assert refused.status == 2
    assert "numcodecs 0.0.1 (here " in refused.output.splitlines()[-1]
    assert "Traceback" not in refused.output
    assert not list(tmp_path.rglob("*.tar"))


def test_workers_without_this_package_are_refused(
    cluster, three_volumes, tmp_path, ingest_run, flags
):
    (tmp_path / "ingest").mkdir()
    (tmp_path / "ingest/__init__.py").touch()  # another package of that name hides ours
    cluster.worker(path=[tmp_path])
    cluster.wait_for_workers(1)
    refused = ingest_run(
        "build-shards", three_volumes, tmp_path / "out", *flags, "--dask-scheduler", cluster.address
    )
    assert refused.status == 2
    assert "no working installation of coralbay" in refused.output.splitlines()[-1]


def test_the_scheduler_dies(tmp_path, three_volumes, three_built, ingest_run, flags, complete):
    own = Cluster(tmp_path)
    try:
        own.worker()
        out, over = tmp_path / "out", ("--dask-scheduler", own.address)
        when = {
            "folder": str(out), "glob": "shard-*.tar", "signal": KILL, "pid": own.scheduler.pid
        }  # fmt: skip
        lost = ingest_run("build-shards", three_volumes, out, *flags, *over, when=when)
        assert lost.status == 1
        assert "lost the connection to the Dask scheduler" in lost.output.splitlines()[-1]
        assert "Traceback" not in lost.output, lost.output
        complete(three_volumes, out, three_built[0])
    finally:
        own.stop()


def test_what_a_worker_may_lack_is_named(tmp_path):
    here = {"numpy": "0.1", "nonexistent-package": "2"}
    words = worker_complaint(here, (2, 7), str(tmp_path), [])
    for part in ("numpy ", "(here 0.1)", "nonexistent-package missing (here 2)", "(here 2.7)"):
        assert part in words
    now = sys.version_info[:2]
    assert "does not see OUT at" in worker_complaint({}, now, str(tmp_path), [])
    (tmp_path / ".build").mkdir()
    (tmp_path / ".build/build.json").touch()
    gone = str(tmp_path / "raw")
    assert f"RAW at {gone}" in worker_complaint({}, now, str(tmp_path), [gone])
    assert worker_complaint({}, now, str(tmp_path), [str(tmp_path)]) == ""


def children(pid):
    """Processes below ``pid``, at any depth."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *children(int(child))]
    return found


BUSY = """
import sys, pathlib
from ingest.workers import run_tasks
sys.path.insert(0, sys.argv[1])
import busy
for _ in run_tasks(busy.never_ends, [sys.argv[1]] * 2, 2):
    pass
"""
TASK = """
import os, pathlib, re
def never_ends(folder):
    pathlib.Path(folder, f"worker-{os.getpid()}").touch()
    re.match(r"(a+)+$", "a" * 60 + "b")  # one call that keeps the interpreter lock
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_workers_die_with_their_run_even_while_nothing_else_can_run_in_them(tmp_path):
    (tmp_path / "busy.py").write_text(TASK)
    (tmp_path / "run.py").write_text(f"if __name__ == '__main__':\n{_indented(BUSY)}")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )
    try:
        while len(workers := list(tmp_path.glob("worker-*"))) < 2:
            assert run.poll() is None
            time.sleep(0.02)
        pids = [int(path.name.split("-")[1]) for path in workers]
        assert set(pids) <= set(children(run.pid))
    finally:
        run.kill()
        run.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "workers outlive their run"
        time.sleep(0.02)


def _indented(code):
    return "".join(f"    {line}\n" for line in code.strip().splitlines())
