"""Each bottleneck is planted in turn, ten times slower than the rest, and named."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

import shards.dataset
from coralbay.views import ViewRecipe, ViewSpec
from shards.decoding import ChunkDecoder
from shards.policy import RequestPolicy
from shards.stats import StageStats
from shards.testing import write_toy_dataset
from shards.testing.faults import FaultyStore, Schedule
from shards.testing.memory import MemoryStore
from train.data import StreamConfig
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig
from train.loader.visits import Scheduler
from train.profile import profile_loader
from train.profile.flow import Flow
from train.profile.result import Consumer, Point, Ratios, StageRate, StageUse
from train.profile.verdict import Setting, find_bottleneck

VIEWS = ViewRecipe(
    global_=ViewSpec(count=1, size=64, extent=(48.0, 65.0)),
    local=ViewSpec(count=1, size=33, extent=(20.0, 40.0)),
    box_side=65,
)
CONFIG = LoaderConfig(
    batch_size=2,
    threads=2,
    prefetch=2,
    loader="reference",
    stream=StreamConfig(mode="range", in_flight=2),
)
SLOW_S = 0.1
"""What a planted stage takes for a set; everything else takes some milliseconds."""


class Views:
    """A graph that makes nothing, at a pace."""

    def __init__(self, pull, seconds):
        self._pull, self._seconds = pull, seconds

    def render(self, counts):
        time.sleep(self._seconds * len(self._pull()))
        return [torch.zeros(1, 1, 1, 1, 1) for _ in counts], None

    def close(self):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("toy"), 12, shape=(40, 50, 70), per_shard=4)


@pytest.fixture
def profiled(folder, monkeypatch):
    """Profile a dataset in memory with some of its stages made slow."""

    def profile(*, fetch=0.0, graph=0.0, consumer=None, seconds=0.8):
        store = MemoryStore(policy=RequestPolicy(hedge_share=0.0))
        for path in folder.iterdir():
            store.put(path.name, path.read_bytes())
        slow = FaultyStore(store, Schedule(), answer_s=lambda nbytes: fetch)
        monkeypatch.setattr(shards.dataset, "open_store", lambda url: slow)
        monkeypatch.setattr(
            CTLoader, "renderer", lambda self, pull, threads=None: Views(pull, graph)
        )
        return profile_loader("memory://toy", VIEWS, CONFIG, seconds, consumer)

    return profile


def slowed(method, seconds):
    def slow(*args, **more):
        time.sleep(seconds)
        return method(*args, **more)

    return slow


def test_a_slow_storage(profiled):
    result = profiled(fetch=2 * SLOW_S)
    found = result.bottleneck
    assert found.name == "fetch", found
    # Twice as many requests at a time take twice as many sets from a storage that is far away.
    assert "--in-flight 4" in found.sentence
    assert found.gain > 1.3
    assert result.stages["decode"].run.wait_up > result.stages["decode"].run.wait_down


def test_a_slow_codec(profiled, monkeypatch):
    monkeypatch.setattr(ChunkDecoder, "decode", slowed(ChunkDecoder.decode, SLOW_S))
    result = profiled()
    found = result.bottleneck
    assert found.name == "decode", found
    # A codec that sleeps leaves the cores to others.
    assert "2 more threads (--threads 4)" in found.sentence
    assert found.gain > 1.3


def test_a_slow_graph(profiled):
    result = profiled(graph=SLOW_S)
    assert result.bottleneck.name == "graph", result.bottleneck
    assert "--loader dali" in result.bottleneck.sentence


def test_a_slow_plan(profiled, monkeypatch):
    monkeypatch.setattr(Scheduler, "visit", slowed(Scheduler.visit, SLOW_S / 2))
    result = profiled()
    assert result.bottleneck.name == "plan", result.bottleneck


def test_a_slow_consumer(profiled):
    # A batch every 4 seconds: what the loader takes for one does not count, on any machine.
    result = profiled(consumer=0.5)
    assert result.bottleneck.name == "consumer", result.bottleneck
    assert result.sets_per_s <= 0.5
    assert result.consumer.headspace == result.sets_per_s / 0.5
    assert result.consumer.loader_sets_per_s > 0.5
    assert "headroom" in result.bottleneck.sentence


# The words follow from the numbers.

RATIOS = Ratios(
    fetch_of_read=0.95,
    decode_of_memcpy=0.1,
    decode_of_codec=0.8,
    loader_of_slowest_stage=0.9,
    loader_of={},
)
SETTING = Setting(
    threads=2,
    in_flight=32,
    device="cpu",
    loader="dali",
    profile="balanced",
    remote=True,
    cached=False,
    cheaper_mode=None,
    held_mib=2048,
    held_full=0.0,
    cores=16,
    cores_used=8.0,
    cuda=False,
)
IN_RUN = StageUse(busy=0.5, wait_up=0.0, wait_down=0.0)


def stage(at, **sweep):
    points = tuple(Point(at=int(n[1:]), sets_per_s=rate) for n, rate in sweep.items())
    now = next(point.sets_per_s for point in points if point.at == at)
    return StageRate(sets_per_s=now, gb_per_s=None, at=at, sweep=points, run=IN_RUN)


STAGES = {
    "plan": stage(1, n1=5000.0),
    "fetch": stage(32, n16=300.0, n32=310.0, n64=305.0),
    "decode": stage(2, n1=20.0, n2=38.0, n4=61.0, n8=62.0),
    "graph": stage(2, n2=200.0),
}


def flow(*, fetch=0.0, decode=0.0, graph=0.0, plan=0.0, sets_per_s=36.0):
    waiting = fetch + decode + plan
    return Flow(
        sets=int(sets_per_s * 10),
        seconds=10.0,
        waited=(waiting + graph) * 10,
        stages={
            "graph": StageStats(wait_up_s=10 * waiting),
            "plan": StageStats(busy_s=10 * plan),
        },
        counters={"late_fetch_us": int(1e7 * fetch), "late_decode_us": int(1e7 * decode)},
        cpu_s=80.0,
    )


def verdict(run, **changes):
    return find_bottleneck(run, STAGES, RATIOS, replace(SETTING, **changes))


def test_more_threads_as_measured():
    found = verdict(flow(decode=0.9))
    assert found.name == "decode"
    expected = "2 more threads (--threads 4) give about 1.6 x (measured 38.0 -> 61.0 sets/s alone"
    assert expected in found.sentence
    assert "8.0 of 16 cores are left unused" in found.sentence
    assert "the next limit is graph, 200.0 sets/s alone" in found.sentence
    assert found.gain == pytest.approx(1 / (0.1 + 0.9 * 38 / 61))


def test_no_more_threads_where_all_cores_are_busy():
    found = verdict(flow(decode=0.9), cores_used=15.8)
    assert "all 16 cores are busy" in found.sentence
    assert "--threads" not in found.sentence
    assert "80% of the bare codec" in found.sentence
    assert found.gain is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "95% of what raw ranged GETs give at 32 in flight"),
        ({}, "more in flight give nothing; use --cache-dir or a closer bucket"),
        ({"cached": True}, "; use a closer bucket"),
        ({"held_full": 0.9}, "2048 MiB of stored bytes are held"),
        ({"cheaper_mode": "stream"}, "--mode stream costs less"),
    ],
)
def test_a_storage_that_gives_no_more(changes, words):
    assert words in verdict(flow(fetch=0.8, sets_per_s=280.0), **changes).sentence


def test_a_cache_that_answers_the_second_time_is_seen():
    found = verdict(flow(fetch=0.8, sets_per_s=30.0), remote=False)
    assert "the first reading sets the pace; use a faster disk" in found.sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "gpu"}, "the GPU makes views of 200.0 sets/s alone"),
        ({"cuda": True}, "it has a thread for each core"),
        ({"cuda": True}, "make the views on a GPU (--device cuda)"),
    ],
)
def test_a_graph_that_gives_no_more(changes, words):
    assert words in verdict(flow(graph=0.9), **changes).sentence


def test_the_stage_waited_for_longest_is_named_not_the_slowest_alone():
    assert verdict(flow(fetch=0.1, decode=0.2, graph=0.3)).name == "graph"
    assert verdict(flow(fetch=0.1, decode=0.2, plan=0.3)).name == "plan"


def test_a_consumer_that_hardly_waits_sets_the_pace():
    consumer = Consumer(sets_per_s=40.0, headspace=0.98, loader_sets_per_s=60.0)
    found = find_bottleneck(
        flow(decode=0.02, sets_per_s=40.0), STAGES, RATIOS, SETTING, consumer=consumer
    )
    assert found.name == "consumer"
    assert "50% headroom over the 40.0" in found.sentence
