"""Measures the loader: how fast it is, what each stage could do alone, and what holds it back.

Every rate stands beside a limit measured in the same run on the same bytes: the rates of a shared
machine move by tens of percent, while ratios of turns taken next to each other stay.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table

from coralbay.views import ViewRecipe
from shards.quality import Shuffle, measure_shuffle
from train.loader.base import QUEUED_BATCHES, CTLoader
from train.loader.settings import LoaderConfig
from train.loader.stages import N_SETS, Counts, StageBench

STAGES = ("plan", "fetch", "decode", "graph")
MIN_ROUNDS = 3
"""Turns that each stage and limit takes; medians are reported."""
KEEPS_UP = 0.05
"""Waiting for less than this share of its time, a consumer is not held back by the loader."""
VOXEL_BYTES = 2

ADVICE = {
    "plan": "lower the number of views, or report it: planning should never be the slowest stage",
    "fetch": "more --threads hide latency; otherwise the storage or the network is the limit",
    "decode": "give it more --threads if cores are idle, or build shards with `--profile balanced`",
    "graph": "make the views on a GPU (--device cuda), or give it more cores",
}


@dataclass(frozen=True, kw_only=True)
class StageRate:
    """One stage alone, with everything it needs at hand."""

    sets_per_s: float
    gb_per_s: float | None
    """Bytes read for ``fetch``, bytes of voxels for ``decode``, None for the others."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the machine gives for the same bytes and threads with nothing around it, GB/s."""

    read: float
    """The same byte ranges from the same storage, thrown away."""
    memcpy: float
    """Memory to memory, bytes of voxels."""
    codec: float
    """The bare decompressor on the same chunks, bytes of voxels."""


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """Measured over possible."""

    fetch_of_read: float
    decode_of_memcpy: float
    decode_of_codec: float
    loader_of_slowest_stage: float
    """Sets a second end to end, over those of the slowest stage alone."""


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """What to improve first: a stage, or ``consumer`` when the loader keeps up."""

    name: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class ProfileResult:
    """How a loader performs. A set is all views of one base box."""

    sets_per_s: float
    """End to end, as the consumer saw it."""
    sets: int
    seconds: float
    data_wait: float
    """Share of the consumer's time spent waiting for a batch."""
    stages: dict[str, StageRate]
    limits: Limits
    ratios: Ratios
    decode_amplification: float
    """Voxels decoded over voxels that some view of their set reads."""
    read_amplification: float
    """Bytes read over stored bytes of the touched chunks; below 1 where visits share what is read.
    """
    mode: str
    """The way in, and why."""
    requests_per_set: float
    bytes_per_set: float
    shuffle: Shuffle
    """Of the first two epochs."""
    bottleneck: Bottleneck
    batch_size: int
    threads: int
    device: str
    loader: str
    resampler: str
    cpu_count: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        return asdict(self)


def profile_loader(
    url: str | Path,
    views: ViewRecipe,
    config: LoaderConfig,
    seconds: float = 10.0,
    consumer_sets_per_s: float | None = None,
) -> ProfileResult:
    """Measure the loader on a dataset.

    Args:
        url: dataset.
        views: what a set is.
        config: how to load.
        seconds: how long to run end to end; stages and limits together take about as long again.
        consumer_sets_per_s: pretend to train at this rate; None takes batches as fast as they come.

    Raises:
        ShardError, UsageError: as ``CTLoader``.
    """
    with CTLoader(url, views, config) as loader:
        flow = _measure_flow(loader, seconds, consumer_sets_per_s)
        loader.close()
        with StageBench(loader) as bench:
            times = _take_turns(bench.tasks(), seconds / 2)
            with bench.graph() as graph:
                times |= _take_turns({"graph": graph}, seconds / 2)
            counts = bench.counts
        way = getattr(loader.inputs.choice, loader.inputs.choice.mode)
    stages = _stage_rates(counts, times, {"graph": config.batch_size})
    slowest = min(stages, key=lambda name: stages[name].sets_per_s)
    return ProfileResult(
        sets_per_s=flow.sets_per_s,
        sets=flow.sets,
        seconds=flow.seconds,
        data_wait=flow.data_wait,
        stages=stages,
        limits=_limits(counts, times),
        ratios=_ratios(times, flow.sets_per_s / stages[slowest].sets_per_s),
        decode_amplification=counts.voxels_decoded / counts.voxels_viewed,
        mode=loader.inputs.choice.sentence,
        read_amplification=way.bytes * N_SETS / max(1, counts.bytes_ideal),
        requests_per_set=way.requests,
        bytes_per_set=way.bytes,
        shuffle=measure_shuffle(loader.plan, loader.inputs.samples),
        bottleneck=_bottleneck(flow, stages, slowest),
        batch_size=config.batch_size,
        threads=config.threads,
        device=config.device,
        loader=config.loader,
        resampler=loader.resampler,
        cpu_count=os.cpu_count() or 1,
    )


def render(result: ProfileResult) -> RenderableType:
    """The result for people: a table, then what to do."""
    table = Table(title=f"{result.sets_per_s:.1f} sets/s end to end", title_justify="left")
    for heading in ("", "sets/s", "GB/s", "of its limit"):
        table.add_column(heading, justify="left" if not heading else "right")
    ratios, limits, shuffle = result.ratios, result.limits, result.shuffle
    against = {
        "fetch": f"{ratios.fetch_of_read:.0%} of read {limits.read:.2f}",
        "decode": f"{ratios.decode_of_codec:.0%} of codec {limits.codec:.2f}, "
        f"{ratios.decode_of_memcpy:.0%} of memcpy {limits.memcpy:.2f}",
    }
    for name, rate in result.stages.items():
        gb_per_s = "" if rate.gb_per_s is None else f"{rate.gb_per_s:.2f}"
        table.add_row(f"{name} alone", f"{rate.sets_per_s:.1f}", gb_per_s, against.get(name, ""))
    facts = (
        f"{result.loader} loader, {result.resampler}, {result.device}, batch {result.batch_size}, "
        f"{result.threads} threads on {result.cpu_count} cores\n"
        f"data wait {result.data_wait:.0%} of the consumer's time; "
        f"{result.requests_per_set:.1f} requests and {result.bytes_per_set / 1e6:.2f} MB a set; "
        f"{result.mode}; read amplification {result.read_amplification:.2f}, "
        f"decode amplification {result.decode_amplification:.2f}\n"
        f"shuffle: {shuffle.repeated_subjects} subjects twice in one of {shuffle.batches} batches; "
        f"a batch draws from {shuffle.shards_per_batch:.0%} of the shards that it could; order in "
        f"the dataset and in the epoch correlate by {shuffle.file_order:.2f}; "
        f"{shuffle.neighbours_again:.0%} follow the same volume in the next epoch; visits of a "
        f"volume are {shuffle.visit_distance} steps apart"
    )
    return Group(table, facts, f"Bottleneck: {result.bottleneck.sentence}")


@dataclass(frozen=True, kw_only=True)
class _Flow:
    """The loader end to end."""

    sets: int
    seconds: float
    waited: float

    @property
    def sets_per_s(self) -> float:
        return self.sets / self.seconds

    @property
    def data_wait(self) -> float:
        return self.waited / self.seconds


def _measure_flow(loader: CTLoader, seconds: float, consumer_sets_per_s: float | None) -> _Flow:
    """Take batches for some time, once the queues have filled."""
    pause = loader.config.batch_size / consumer_sets_per_s if consumer_sets_per_s else 0.0
    for _ in range(QUEUED_BATCHES):
        _next(loader)
    sets, waited, elapsed, began = 0, 0.0, 0.0, time.perf_counter()
    while elapsed < seconds or not sets:
        asked = time.perf_counter()
        sets += _next(loader)
        waited += time.perf_counter() - asked
        time.sleep(pause)
        elapsed = time.perf_counter() - began
    return _Flow(sets=sets, seconds=elapsed, waited=waited)


def _next(loader: CTLoader) -> int:
    """Take a batch, all of it, and count its sets."""
    batch = next(loader)
    if loader.config.device == "gpu":
        torch.cuda.synchronize()
    return len(batch.keys)


def _take_turns(tasks: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Run all tasks in turns; the seconds of each turn. The first rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    began = time.perf_counter()
    rounds = 0
    while rounds < QUEUED_BATCHES + MIN_ROUNDS or time.perf_counter() - began < seconds:
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if rounds >= QUEUED_BATCHES:
                times[name].append(time.perf_counter() - start)
        rounds += 1
    return times


def _stage_rates(
    counts: Counts, times: dict[str, list[float]], sets: dict[str, int]
) -> dict[str, StageRate]:
    """Medians; ``sets`` that a turn works on, where they are not ``N_SETS``."""
    nbytes = {"fetch": counts.bytes_wire, "decode": counts.voxels_decoded * VOXEL_BYTES}
    rates = {}
    for name in STAGES:
        spent = statistics.median(times[name])
        gb_per_s = nbytes[name] / spent / 1e9 if name in nbytes else None
        rates[name] = StageRate(sets_per_s=sets.get(name, N_SETS) / spent, gb_per_s=gb_per_s)
    return rates


def _limits(counts: Counts, times: dict[str, list[float]]) -> Limits:
    voxel_bytes = counts.voxels_decoded * VOXEL_BYTES
    return Limits(
        read=counts.bytes_wire / statistics.median(times["read"]) / 1e9,
        memcpy=voxel_bytes / statistics.median(times["memcpy"]) / 1e9,
        codec=voxel_bytes / statistics.median(times["codec"]) / 1e9,
    )


def _ratios(times: dict[str, list[float]], loader_of_slowest_stage: float) -> Ratios:
    def of(stage: str, limit: str) -> float:
        pairs = zip(times[limit], times[stage], strict=True)
        return statistics.median(best / spent for best, spent in pairs)

    return Ratios(
        fetch_of_read=of("fetch", "read"),
        decode_of_memcpy=of("decode", "memcpy"),
        decode_of_codec=of("decode", "codec"),
        loader_of_slowest_stage=loader_of_slowest_stage,
    )


def _bottleneck(flow: _Flow, stages: dict[str, StageRate], slowest: str) -> Bottleneck:
    if flow.data_wait < KEEPS_UP:
        sentence = f"the consumer: the loader keeps up, {flow.data_wait:.1%} of its time is waiting"
        return Bottleneck(name="consumer", sentence=sentence)
    rate = stages[slowest].sets_per_s
    return Bottleneck(
        name=slowest,
        sentence=f"{slowest}, {rate:.1f} sets/s alone, is the slowest stage; {ADVICE[slowest]}",
    )
