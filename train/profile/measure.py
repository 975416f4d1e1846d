"""The whole measurement: end to end, each stage alone, the limits, the verdict."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from coralbay.views import ViewRecipe
from shards.quality import measure_shuffle
from train.config import RunConfig
from train.coverage import coverage_of
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig
from train.loader.stages import N_SETS, StageBench
from train.profile.cores import cores
from train.profile.flow import Flow, run_flow
from train.profile.headspace import measure_headspace
from train.profile.result import (
    STAGES,
    Consumer,
    Headspace,
    Limits,
    Point,
    ProfileResult,
    Ratios,
    StageRate,
)
from train.profile.sweep import Key, Paces, measure_graph, stage_tasks, take_turns
from train.profile.verdict import find_bottleneck, setting_of

VOXEL_BYTES = 2
STAGES_SHARE, GRAPH_SHARE, FREE_SHARE = 0.7, 0.3, 0.5
"""Of the seconds of the end-to-end part: what the parts after it take."""


def profile_loader(
    url: str | Path,
    views: ViewRecipe,
    config: LoaderConfig,
    seconds: float = 10.0,
    consumer_sets_per_s: float | None = None,
    *,
    train: RunConfig | None = None,
    keep_spans: bool = False,
) -> ProfileResult:
    """Measure the loader on a dataset.

    Args:
        url: dataset.
        views: what a set is.
        config: how to load.
        seconds: how long to run end to end; stages and limits together take about as long again.
        consumer_sets_per_s: pretend to train at this rate; None takes batches as fast as they come.
        train: for ``headspace``, measure training steps of this run beside the loader.
        keep_spans: keep the pieces of time of the end-to-end part, for timelines.

    Raises:
        ShardError, UsageError: as ``CTLoader``.
    """
    load, began = os.getloadavg()[0], time.perf_counter()
    with CTLoader(url, views, config) as loader:
        if keep_spans:
            loader.stats.keep_spans()
        flow = run_flow(loader, seconds, consumer_sets_per_s)
        free = run_flow(loader, FREE_SHARE * seconds) if consumer_sets_per_s else flow
        loader.close()
        with StageBench(loader) as bench:
            paces = take_turns(stage_tasks(bench), STAGES_SHARE * seconds)
            paces.rates |= measure_graph(bench, GRAPH_SHARE * seconds).rates
            evidence = _Evidence(
                bench=bench,
                flow=flow,
                free=free,
                paces=paces,
                headspace=measure_headspace(url, train, config, seconds) if train else None,
                consumer_sets_per_s=consumer_sets_per_s,
            )
            return evidence.result(load, time.perf_counter() - began)


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """All that was measured, and what follows from it."""

    bench: StageBench
    flow: Flow
    free: Flow
    """With a consumer that does nothing else."""
    paces: Paces
    headspace: Headspace | None
    consumer_sets_per_s: float | None

    @cached_property
    def now(self) -> dict[str, Key]:
        """The present setting of each stage and limit."""
        threads, in_flight = self.bench.loader.config.threads, self.bench.in_flight
        at = {"plan": 1, "fetch": in_flight, "read": in_flight, "h2d": 1}
        at |= dict.fromkeys(("decode", "codec", "memcpy"), threads)
        graph = [n for name, n in self.paces.rates if name == "graph"]
        at["graph"] = min(threads, max(graph))
        return {name: (name, n) for name, n in at.items() if (name, n) in self.paces.rates}

    @cached_property
    def set_bytes(self) -> dict[str, float]:
        """Bytes that a set costs, where rates are given in bytes."""
        counts = self.bench.counts
        voxels = counts.voxels_decoded * VOXEL_BYTES / N_SETS
        wire = counts.bytes_wire / N_SETS
        return {"fetch": wire, "read": wire} | dict.fromkeys(("decode", "codec", "memcpy"), voxels)

    def gb_per_s(self, name: str) -> float | None:
        """Of a stage or limit, where bytes are what it moves."""
        if name not in self.set_bytes:
            return None
        return self.paces.median(self.now[name]) * self.set_bytes[name] / 1e9

    def stage(self, name: str) -> StageRate:
        """A stage alone, and in the run."""
        sweep = sorted(n for stage, n in self.paces.rates if stage == name)
        return StageRate(
            sets_per_s=self.paces.median(self.now[name]),
            gb_per_s=self.gb_per_s(name),
            at=self.now[name][1],
            sweep=tuple(Point(at=n, sets_per_s=self.paces.median((name, n))) for n in sweep),
            run=self.flow.use(name),
        )

    @cached_property
    def limits_sets_per_s(self) -> dict[str, float]:
        """What each limit alone would allow."""
        found: dict[str, float] = {}
        for name in ("read", "memcpy", "codec", "h2d"):
            if name in self.now:
                found[name] = self.paces.median(self.now[name])
        if self.headspace:
            steps = self.headspace.cached_steps_per_s
            found["cached_batches"] = steps * self.headspace.batch_size
        return found

    def limits(self) -> Limits:
        """In the units of each."""
        h2d = self.limits_sets_per_s.get("h2d")
        return Limits(
            read=self.gb_per_s("read") or 0.0,
            memcpy=self.gb_per_s("memcpy") or 0.0,
            codec=self.gb_per_s("codec") or 0.0,
            h2d=None if h2d is None else h2d * self.bench.slot_bytes / 1e9,
            cached_batches=self.limits_sets_per_s.get("cached_batches"),
        )

    def ratios(self, stages: dict[str, StageRate]) -> Ratios:
        """Of what stands beside each other in the same rounds."""
        now, ratio = self.now, self.paces.ratio
        rate = self.flow.sets_per_s
        return Ratios(
            fetch_of_read=ratio(now["fetch"], now["read"]),
            decode_of_memcpy=ratio(now["decode"], now["memcpy"]),
            decode_of_codec=ratio(now["decode"], now["codec"]),
            loader_of_slowest_stage=rate / min(stage.sets_per_s for stage in stages.values()),
            loader_of={name: rate / best for name, best in self.limits_sets_per_s.items()},
        )

    def consumer(self) -> Consumer | None:
        """The pretended one."""
        if self.consumer_sets_per_s is None:
            return None
        return Consumer(
            sets_per_s=self.consumer_sets_per_s,
            headspace=self.flow.sets_per_s / self.consumer_sets_per_s,
            loader_sets_per_s=self.free.sets_per_s,
        )

    def result(self, load_before: float, whole_s: float) -> ProfileResult:
        """Everything, with the verdict."""
        loader, counts, flow = self.bench.loader, self.bench.counts, self.flow
        config, choice = loader.config, loader.inputs.choice
        way = getattr(choice, choice.mode)
        stages = {name: self.stage(name) for name in STAGES}
        ratios, consumer = self.ratios(stages), self.consumer()
        return ProfileResult(
            sets_per_s=flow.sets_per_s,
            sets=flow.sets,
            seconds=flow.seconds,
            data_wait=flow.data_wait,
            time=flow.time(),
            stages=stages,
            limits=self.limits(),
            limits_sets_per_s=self.limits_sets_per_s,
            ratios=ratios,
            decode_amplification=counts.voxels_decoded / counts.voxels_viewed,
            read_amplification=way.bytes * N_SETS / max(1, counts.bytes_ideal),
            request_amplification=way.requests * N_SETS / counts.requests_ideal,
            mode=choice.sentence,
            requests_per_set=way.requests,
            bytes_per_set=way.bytes,
            retries=flow.counters.get("retries", 0),
            hedges=flow.counters.get("hedges", 0),
            shuffle=measure_shuffle(loader.plan, loader.inputs.samples),
            coverage=coverage_of(loader.inputs.scheduler),
            bottleneck=find_bottleneck(
                flow, stages, ratios, setting_of(self.bench, flow), consumer
            ),
            consumer=consumer,
            headspace=self.headspace,
            batch_size=config.batch_size,
            threads=config.threads,
            in_flight=self.bench.in_flight,
            feed=config.stream.feed,
            device=config.device,
            loader=config.loader,
            resampler=loader.resampler,
            cpu_count=cores(),
            cores_used=flow.cores_used,
            load_before=load_before,
            whole_s=whole_s,
            spans=flow.spans,
        )
