"""Trouble on the way: the same batches where it passes, a clear end where it does not."""

import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import shards.dataset
from coralbay.views import ViewRecipe, ViewSpec
from shards.errors import AccessDeniedError, StorageUnavailableError
from shards.policy import RequestPolicy
from shards.testing import write_toy_dataset
from shards.testing.faults import PASSING, FaultyStore, Schedule, Trouble
from shards.testing.memory import MemoryStore
from tests.train.test_sequence import NoViews
from train.data import StreamConfig
from train.errors import BadDataError
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig

VIEWS = ViewRecipe(
    box_side=65,
    global_=ViewSpec(count=1, size=64, extent=(48.0, 65.0)),
    local=ViewSpec(count=1, size=33, extent=(20.0, 40.0)),
)
HASTY = RequestPolicy(
    deadline_s=0.1, first_backoff_s=0.001, max_backoff_s=0.01, patience_s=3.0, hedge_share=0.0
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("toy"), 12, shape=(40, 50, 70), per_shard=4)


@pytest.fixture
def opened(folder, monkeypatch):
    """Open the dataset in a store that follows a schedule once the loader is made."""
    monkeypatch.setattr(CTLoader, "renderer", lambda self, pull: NoViews(pull))

    def open_faulty(schedule, mode="range", **changes):
        store = MemoryStore(policy=HASTY)
        for path in folder.iterdir():
            store.put(path.name, path.read_bytes())
        faulty = FaultyStore(store, Schedule())
        monkeypatch.setattr(shards.dataset, "open_store", lambda url: faulty)
        config = LoaderConfig(
            batch_size=2, threads=2, prefetch=4, loader="reference",
            stream=StreamConfig(mode=mode), **changes,
        )  # fmt: skip
        loader = CTLoader("memory://toy", VIEWS, config)
        faulty._schedule, faulty.requests = schedule, 0
        return loader, faulty

    return open_faulty


def take(loader, n):
    with loader:
        return [
            pair
            for batch in itertools.islice(loader, n)
            for pair in zip(batch.indices, batch.keys, strict=True)
        ]


@pytest.mark.parametrize("mode", ["range", "stream"])
def test_passing_trouble_changes_no_batch(opened, mode):
    calm, _ = opened(Schedule(), mode)
    expected = take(calm, 60)
    loader, store = opened(Schedule(rate=0.5, troubles=(*PASSING, Trouble.SHORT_BODY)), mode)
    assert take(loader, 60) == expected
    counters = loader.stats.counters()
    assert len(store.injected) >= (5 if mode == "stream" else 50)
    assert counters["retries"] >= len(store.injected) - 32  # those under way when it ended
    assert "bad_samples" not in counters


@pytest.mark.parametrize("mode", ["range", "stream"])
def test_bytes_that_are_damaged_on_the_way_are_asked_for_again(opened, mode):
    expected = take(opened(Schedule(), mode)[0], 20)
    damaged = dict.fromkeys([1] if mode == "stream" else [1, 20, 40], Trouble.WRONG_BYTES)
    loader, store = opened(Schedule(at=damaged), mode)
    found = take(loader, 20)
    assert store.injected
    # A flipped bit in bytes that nobody decodes is not seen; one that is decoded is mended.
    assert found == expected
    assert "bad_samples" not in loader.stats.counters()


def test_a_missing_shard_is_named_counted_and_replaced(opened, caplog):
    loader, _ = opened(Schedule(paths={"shard-000001.tar": Trouble.MISSING}))
    gone = {f"toy-{n:04d}" for n in range(4, 8)}
    with caplog.at_level(logging.WARNING):
        found = take(loader, 30)
    assert not gone & {key for _, key in found}
    named = {key for key in gone if f"sample {key} cannot be read and is replaced" in caplog.text}
    assert named
    assert {key for _, key in loader.state_dict()["quarantine"]} == named
    assert [index for index, _ in found] == list(range(60))


def test_too_many_bad_samples_stop_the_run(opened):
    loader, _ = opened(Schedule(paths={"shard-000001.tar": Trouble.MISSING}), max_bad_samples=2)
    with loader, pytest.raises(BadDataError, match="3 samples cannot be read, more than the 2"):
        list(itertools.islice(loader, 40))


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        (Schedule(expired=range(20, 10**6)), AccessDeniedError, "expired"),
        (Schedule(at=dict.fromkeys(range(20, 10**4), Trouble.SLOW_DOWN)),
         StorageUnavailableError, "SlowDown"),
    ],
)  # fmt: skip
def test_a_storage_that_stops_serving_stops_the_run_which_can_be_resumed(
    opened, schedule, error, message
):
    expected = take(opened(Schedule())[0], 30)
    loader, _ = opened(schedule)
    found = []

    def collect():
        for batch in loader:
            found.extend(zip(batch.indices, batch.keys, strict=True))

    with loader, pytest.raises(error, match=message):
        collect()
    state = loader.state_dict()
    assert 0 < len(found) == state["next_index"] < 60
    assert state["quarantine"] == []  # no verdict on a sample
    resumed, _ = opened(Schedule())
    resumed.load_state_dict(state)
    assert found + take(resumed, 30 - len(found) // 2) == expected


def test_nothing_is_left_after_an_exception(opened):
    before = set(threading.enumerate())
    loader, _ = opened(Schedule())

    def fail():
        with loader:
            next(loader)
            raise RuntimeError("of the training step")

    with pytest.raises(RuntimeError, match="of the training step"):
        fail()
    assert set(threading.enumerate()) == before


PROGRAM = """
import itertools, os, sys
from tests.train.test_loader_faults import VIEWS
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig

if __name__ == "__main__":
    config = LoaderConfig(batch_size=2, threads=2, loader="dali")
    with CTLoader(sys.argv[1], VIEWS, config) as loader:
        for number in itertools.count():
            next(loader)
            if number == 2:
                print("going", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_program_that_is_stopped_leaves_nothing(folder, number, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    home = tmp_path / "tmp"
    home.mkdir()
    with subprocess.Popen(
        [sys.executable, str(program), str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "TMPDIR": str(home)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "going\n"
        # Not what lies in /dev/shm: other programs use it too.
        maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        process.send_signal(number)
        began = time.monotonic()
        _, err = process.communicate(timeout=60)
    assert process.returncode == -number or (number == signal.SIGINT and process.returncode == 1)
    assert number == signal.SIGKILL or err.rstrip().endswith("KeyboardInterrupt")
    assert time.monotonic() - began < 60
    assert list(home.iterdir()) == []
    shared = [line for line in maps if "/dev/shm" in line]
    assert all(line.endswith("(deleted)") for line in shared)
