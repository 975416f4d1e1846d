"""The feed in a subprocess: the batches, errors and counts of threads, and nobody left behind."""

import gc
import itertools
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.loader_feed import measure
from coralbay.recipes import tiny
from coralbay.views import ViewRecipe, ViewSpec
from shards.errors import ShardError
from shards.stats import Stats
from shards.testing import write_toy_dataset
from tests.train.test_loader import assert_same, corrupt
from train.data import StreamConfig
from train.errors import BadDataError, FeedDiedError, TrainError
from train.loader import process
from train.loader.base import QUEUED_BATCHES, CTLoader
from train.loader.messages import Failed
from train.loader.ring import GARBAGE_HU
from train.loader.settings import LoaderConfig
from train.loader.supply import FeedSettings
from train.loader.waits import LATE
from train.presets import configure

VIEWS = ViewRecipe(
    global_=ViewSpec(size=64, extent=(48.0, 65.0), count=1),
    local=ViewSpec(size=33, extent=(20.0, 40.0), count=2),
    box_side=65,
)
BAD = "toy-0003"
FEEDS = ("threads", "subprocess")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    return write_toy_dataset(folder, 6, shape=(70, 80, 90), per_shard=3)


@pytest.fixture(scope="module")
def broken(dataset, tmp_path_factory):
    folder = shutil.copytree(dataset, tmp_path_factory.mktemp("broken") / "data")
    corrupt(folder, BAD)
    return folder


def make(url, feed="subprocess", mode="auto", **changes):
    options = {"batch_size": 2, "threads": 2, "prefetch": 3, "loader": "reference"} | changes
    return CTLoader(url, VIEWS, LoaderConfig(stream=StreamConfig(mode=mode, feed=feed), **options))


def take(loader, n):
    with loader:
        return list(itertools.islice(loader, n))


def running(pid):
    """Whether a process is there and not just waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.02)


def everything_of(loader):
    """Take in what the subprocess sends until it has filled every slot that it was given."""
    supply, size = loader._running.supply, loader.config.batch_size
    n_slots = QUEUED_BATCHES * size + loader.config.prefetch
    expected = loader._step * size + n_slots

    def filled():
        while supply._connection.poll(0):
            supply._receive()
        stages = loader.stats.stages()
        return "decode" in stages and stages["decode"].items == expected

    wait_until(filled)
    return expected


# The same batches.


@pytest.mark.parametrize("mode", ["range", "stream"])
def test_both_feeds_give_the_same_batches(broken, mode):
    """With a sample that cannot be read, and from any point of one to any point of the other."""
    with make(broken, "threads", mode) as loader:
        expected = list(itertools.islice(loader, 10))
        end = loader.state_dict()
    assert end["quarantine"]
    with make(broken, "subprocess", mode) as loader:
        found = list(itertools.islice(loader, 4))
        state = loader.state_dict()
        found += itertools.islice(loader, 6)
        assert loader.state_dict() == end
    assert loader.stats.counters()["bad_samples"] >= len(end["quarantine"])
    assert_same(expected, found)
    with make(broken, "threads", mode) as loader:
        list(itertools.islice(loader, 4))
        assert loader.state_dict() == state
        loader.load_state_dict(state)
        assert_same(expected[4:7], list(itertools.islice(loader, 3)))
        later = loader.state_dict()
    other = make(broken, "subprocess", mode)
    other.load_state_dict(later)
    assert_same(expected[7:], take(other, 3))


@pytest.mark.parametrize("loader", ["dali", "reference"])
def test_shared_slots_that_are_reused_change_nothing(dataset, loader):
    """Freed slots are filled with garbage at once, and the ring turns many times."""
    clean = take(make(dataset, "threads", loader=loader), 20)
    poisoned = take(make(dataset, "subprocess", loader=loader, poison=True, prefetch=1), 20)
    assert_same(clean, poisoned)


class LateEvent:
    def __init__(self):
        self.passed = False

    def query(self):
        return self.passed

    def synchronize(self):
        raise AssertionError("an item may come before the event has passed")


@contextmanager
def feeding(dataset, n_slots, stats=None):
    """A subprocess without a loader around it."""
    with make(dataset) as loader:
        settings = FeedSettings(
            views=VIEWS,
            config=loader.config,
            resampler="resize",
            decode_on="cpu",
            step=0,
            quarantine=(),
        )
        supply = process.ProcessSupply(settings, loader.inputs, n_slots, stats or Stats())
        try:
            yield supply
        finally:
            supply.close()


def test_a_slot_stays_as_it_is_until_its_event_has_passed(dataset):
    with feeding(dataset, 4) as supply:
        first = supply.next()
        kept, event = first.slot.chunks.copy(), LateEvent()
        supply.release([first.slot], event)
        numbers = set()
        for _ in range(20):  # all others turn several times
            item = supply.next()
            numbers.add(item.slot.number)
            supply.release([item.slot])
        assert first.slot.number not in numbers
        assert len(numbers) == 3
        np.testing.assert_array_equal(first.slot.chunks, kept)
        event.passed = True
        while item.slot.number != first.slot.number:
            item = supply.next()
            supply.release([item.slot])
        assert not np.array_equal(first.slot.chunks, kept)


def test_poison_reaches_the_slots_that_are_shared(dataset):
    """Else the test of reused slots would see nothing."""
    with make(dataset, poison=True, prefetch=1) as loader:
        next(loader)
        os.kill(loader._running.supply.pid, signal.SIGSTOP)
        supply = loader._running.supply
        item = supply.next()
        supply.release([item.slot])
        assert (item.slot.chunks == GARBAGE_HU).all()
        os.kill(supply.pid, signal.SIGCONT)


def test_counts_are_those_of_both_processes(dataset):
    with make(dataset, prefetch=2, whole_boxes=True) as loader:
        list(itertools.islice(loader, 3))
        decoded = everything_of(loader)
        loader.close()
        stages, counters = loader.stats.stages(), loader.stats.counters()
        table, shapes = loader.dataset.chunk_tables(), loader.dataset.index["shape_zyx"]
        chunks = ideal = 0
        for index in range(decoded):
            item = loader.plan.item(index)
            grid = [-(-n // 64) for n in shapes[item.sample].as_py()]
            starts = item.box_start_zyx
            nbytes = table.nbytes[item.sample].reshape(grid)[
                tuple(slice(max(0, s) // 64, (s + 64) // 64 + 1) for s in starts)
            ]
            chunks, ideal = chunks + np.count_nonzero(nbytes), ideal + nbytes.sum()
    assert stages["decode"].items == decoded
    assert stages["graph"].items == 6
    assert stages["plan"].items >= decoded
    assert (counters["chunks"], counters["bytes_ideal"]) == (chunks, ideal)
    assert counters["bytes_wire"] == counters["bytes_asked"] >= ideal


def test_spans_of_the_subprocess_are_kept_where_spans_are(dataset):
    with make(dataset) as loader:
        loader.stats.keep_spans(1000)
        began = time.perf_counter()
        next(loader)
        loader.close()
        spans = loader.stats.spans()
    assert {"plan", "decode", "graph"} <= {span.stage for span in spans}
    assert all(began < span.start_s <= span.stop_s < time.perf_counter() for span in spans)


class SlowEvent:
    """Passes when it has been asked about a hundred times, a millisecond apart."""

    def __init__(self):
        self.asked = 0

    def query(self):
        self.asked += 1
        return self.asked > 100

    def synchronize(self):
        raise AssertionError("an item may come before the event has passed")


def late_us(stats):
    return sum(stats.counters()[name] for name in LATE)


def test_waiting_is_what_the_loader_waited_for(dataset):
    """The subprocess itself always waits for something: that it does so far ahead is no delay."""
    stats = Stats()
    with feeding(dataset, 4, stats) as supply:
        items = [supply.next() for _ in range(4)]
        before = late_us(stats)
        supply.release([items[0].slot], SlowEvent())
        supply.next()
        waited = late_us(stats) - before
        assert waited > 0.09e6
        supply.close()
        assert late_us(stats) == before + waited
        assert stats.stages()["decode"].wait_down_s > 0


# Errors.


def test_too_many_bad_samples_are_the_same_error(broken):
    messages = []
    for feed in FEEDS:
        with (
            make(broken, feed, max_bad_samples=0) as loader,
            pytest.raises(BadDataError, match="1 samples cannot be read, more") as caught,
        ):
            list(itertools.islice(loader, 50))
        messages.append((type(caught.value), str(caught.value), loader.state_dict()))
    assert messages[0] == messages[1]
    assert "in _quarantine" in caught.value.__notes__[0]  # where it was raised


class OddError(Exception):
    def __init__(self, what, where):
        super().__init__(f"{what} at {where}")
        self.guard = threading.Lock()  # cannot be pickled


def test_an_error_that_cannot_travel_says_what_it_was():
    failed = Failed.of(OddError("fire", "sea"), [])
    assert type(failed.error) is TrainError
    assert str(failed.error) == "OddError: fire at sea"
    kept = Failed.of(ShardError("s3://x: gone"), [])
    assert type(kept.error) is ShardError
    assert str(kept.error) == "s3://x: gone"


def test_a_dataset_that_changed_after_opening_is_an_error(dataset, tmp_path):
    folder = shutil.copytree(dataset, tmp_path / "copy")
    with make(folder) as loader:
        shutil.rmtree(folder)
        write_toy_dataset(folder, 6, shape=(70, 80, 90), per_shard=3, seed=5)
        with pytest.raises(ShardError, match="has changed since it was opened, and with it"):
            next(loader)


def test_warnings_of_the_subprocess_come_out_here(broken, caplog):
    with caplog.at_level(logging.INFO):
        take(make(broken), 6)
    assert f"sample {BAD} cannot be read and is replaced" in caplog.text
    # Both open the dataset, and one says how it is read.
    assert sum("the cheaper way" in line for line in caplog.messages) == 1


# Ends.


@pytest.mark.parametrize("renderer", ["dali", "reference"])
def test_a_killed_subprocess_is_named_and_the_loader_goes_on(dataset, renderer):
    expected = take(make(dataset, "threads", loader=renderer), 8)
    with make(dataset, loader=renderer) as loader:
        found = list(itertools.islice(loader, 2))
        os.kill(loader._running.supply.pid, signal.SIGKILL)
        with pytest.raises(FeedDiedError, match=r"was killed \(SIGKILL\), perhaps.*memory"):
            found.extend(loader)
        assert loader.state_dict()["next_index"] == 2 * len(found)
        with pytest.raises(FeedDiedError):
            next(loader)
        loader.close()
        found += itertools.islice(loader, 8 - len(found))
    assert_same(expected, found)


def test_a_subprocess_that_does_not_start_is_said(dataset, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with make(dataset) as loader, pytest.raises(FeedDiedError, match="ended with exit code 1"):
        next(loader)


def test_closing_does_not_wait_for_one_that_hangs(dataset, monkeypatch):
    monkeypatch.setattr(process, "CLOSE_S", 0.3)
    loader = make(dataset)
    next(loader)
    pid = loader._running.supply.pid
    os.kill(pid, signal.SIGSTOP)
    loader.close()
    assert not running(pid)


def test_nothing_is_left_when_it_ends(dataset):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for end in ("close", "drop"):
        loader = make(dataset)
        next(loader)
        pid = loader._running.supply.pid
        assert running(pid)
        if end == "close":
            loader.close()
            loader.close()
        del loader
        gc.collect()
        assert not running(pid)
        assert len(os.listdir("/proc/self/fd")) == before


def test_the_subprocess_is_light_and_signals_are_for_the_loader(dataset):
    with make(dataset, loader="dali") as loader:
        next(loader)
        pid = loader._running.supply.pid
        assert os.getsid(pid) != os.getsid(0)
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "numpy" in mapped
        assert "torch" not in mapped
        assert "dali" not in mapped
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)
        list(itertools.islice(loader, 20))
        assert running(pid)


def test_what_the_subprocess_imports_is_neither_torch_nor_dali():
    code = "import sys, train.loader.child; print({'torch', 'nvidia', 'monai'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


PROGRAM = """
import os, sys, time
from tests.train.test_loader_process import make

if __name__ == "__main__":
    with make(sys.argv[1]) as loader:
        next(loader)
        if sys.argv[2] == "forked" and not os.fork():
            time.sleep(600)
        if sys.argv[2] == "used after a fork":
            pid = os.fork()
            try:
                for _ in range(9):
                    next(loader)
            except BaseException as error:
                print(pid, type(error).__name__, str(error), flush=True)
            loader.close()
            if not pid:
                sys.exit()
            os.waitpid(pid, 0)
            next(loader)
        print(loader._running.supply.pid, os.getpid(), flush=True)
        for batch in loader:
            pass
"""


@pytest.fixture
def program(dataset, tmp_path):
    """Start a program that uses a loader; it is killed with all its forks at the end."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    started = []

    def start(how):
        started.append(subprocess.Popen(
            [sys.executable, str(path), str(dataset), how],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        ))  # fmt: skip
        return started[-1]

    yield start
    for process_ in started:
        with process_, suppress(ProcessLookupError):
            os.killpg(process_.pid, signal.SIGKILL)


@pytest.mark.parametrize("how", ["alone", "forked"])
def test_a_loader_that_is_killed_leaves_no_subprocess(program, how):
    """Also where a fork of it lives on and holds the connection open."""
    begun = program(how)
    child, parent = map(int, begun.stdout.readline().split())
    assert running(child)
    for pid in (child, parent):
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "/memfd:coralbay-slots (deleted)" in mapped
        assert not re.search(r"/dev/shm/\S+$", mapped, re.MULTILINE)  # "(deleted)" would follow
    os.kill(parent, signal.SIGKILL)
    wait_until(lambda: not running(child))


def test_ctrl_c_ends_both(program):
    begun = program("alone")
    child, _ = map(int, begun.stdout.readline().split())
    os.killpg(begun.pid, signal.SIGINT)
    begun.wait(timeout=60)
    assert begun.stderr.read().rstrip().endswith("KeyboardInterrupt")
    assert not running(child)


def test_a_fork_is_told_and_does_not_disturb_the_loader(program):
    begun = program("used after a fork")
    fork, error, *words = begun.stdout.readline().split()
    assert (fork, error) == ("0", "ShardError")
    assert "after a fork" in " ".join(words)
    child, _ = map(int, begun.stdout.readline().split())
    assert running(child)


def test_the_benchmark_of_the_feeds_measures_both(dataset):
    config = replace(configure("tiny", str(dataset), batch_size=1, loader="reference"),
                     recipe=replace(tiny(), views=VIEWS), device="cpu")  # fmt: skip
    found = measure(config, ["python"], rounds=1, seconds=0.1)["consumers"]["python"]
    assert set(found["arms"]) == {"threads", "subprocess", "cached"}
    for turn in (found["arms"][feed] for feed in FEEDS):
        assert turn["steps_per_s"] > 0
        assert 0 <= turn["data_wait"] < 1
    [ratio] = found["subprocess_of_threads_each"]
    rates = [found["arms"][feed]["steps_per_s"] for feed in ("subprocess", "threads")]
    assert ratio == rates[0] / rates[1]
