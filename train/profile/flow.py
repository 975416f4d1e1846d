"""The loader end to end: how fast its consumer is served, and what the consumer waits for."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from shards.stats import Span, StageStats
from train.loader.base import QUEUED_BATCHES, CTLoader
from train.profile.cores import cpu_seconds
from train.profile.result import STAGES, StageUse


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The loader end to end for some time."""

    sets: int
    seconds: float
    waited: float
    """By the consumer."""
    stages: dict[str, StageStats]
    counters: dict[str, int]
    cpu_s: float
    spans: tuple[Span, ...] = ()

    @property
    def sets_per_s(self) -> float:
        """As the consumer saw it."""
        return self.sets / self.seconds

    @property
    def data_wait(self) -> float:
        """Share of the consumer's time spent waiting for a batch."""
        return self.waited / self.seconds

    @property
    def cores_used(self) -> float:
        """Mean, over the time."""
        return self.cpu_s / self.seconds

    def use(self, stage: str) -> StageUse:
        """How a stage spent the time."""
        spent = self.stages.get(stage, StageStats())
        return StageUse(
            busy=spent.busy_s / self.seconds,
            wait_up=spent.wait_up_s / self.seconds,
            wait_down=spent.wait_down_s / self.seconds,
        )

    def time(self) -> dict[str, float]:
        """Shares of the consumer's time: itself, and the stages that it waited for.

        What it waited is the graph's, except while the graph itself waited for decoded sets. That
        part is divided as the feed spent its time: planning, or waiting for a set that was due and
        still lacked its bytes, or its decoding.
        """
        feeding = min(self.data_wait, self.use("graph").wait_up)
        late = {
            "plan": self.stages.get("plan", StageStats()).busy_s,
            "fetch": self.counters.get("late_fetch_us", 0) / 1e6,
            "decode": self.counters.get("late_decode_us", 0) / 1e6,
        }
        whole = sum(late.values()) or 1.0
        shares = {stage: feeding * seconds / whole for stage, seconds in late.items()}
        shares["graph"] = self.data_wait - sum(shares.values())
        return {"consumer": 1.0 - self.data_wait} | {stage: shares[stage] for stage in STAGES}


def run_flow(loader: CTLoader, seconds: float, consumer_sets_per_s: float | None = None) -> Flow:
    """Take batches for some time, once the queues have filled.

    Args:
        loader: to take them from.
        seconds: how long.
        consumer_sets_per_s: pretend to train at this rate; None takes them as fast as they come.
    """
    pause = loader.config.batch_size / consumer_sets_per_s if consumer_sets_per_s else 0.0
    for _ in range(QUEUED_BATCHES):
        take(loader)
    loader.stats.reset()
    sets, waited, elapsed = 0, 0.0, 0.0
    cpu, began = cpu_seconds(), time.perf_counter()
    while elapsed < seconds or not sets:
        asked = time.perf_counter()
        sets += take(loader)
        waited += time.perf_counter() - asked
        time.sleep(pause)
        elapsed = time.perf_counter() - began
    cpu = cpu_seconds() - cpu
    # All at once: the threads go on.
    taken = loader.stats.take()
    return Flow(
        sets=sets,
        seconds=elapsed,
        waited=waited,
        stages=taken.stages,
        counters=taken.counters,
        cpu_s=cpu,
        spans=taken.spans,
    )


def take(loader: CTLoader) -> int:
    """Take a batch, all of it, and count its sets."""
    batch = next(loader)
    if loader.config.device == "gpu":
        torch.cuda.synchronize()
    return len(batch.keys)
