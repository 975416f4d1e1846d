"""Stages and limits in turns, so that all see the same weather."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

from train.loader.limits import LimitBench
from train.loader.pace import Pace
from train.loader.stages import StageBench
from train.profile.cores import cores

MIN_ROUNDS = 3
"""Turns that each stage and limit takes, after one to warm up; medians are reported."""
PATIENCE = 2.0
"""After so many times what was planned, one measured round is enough."""

Key = tuple[str, int]
"""A stage or limit, and how many at a time."""
Task = Callable[[float], Pace]


class Paces:
    """What the turns gave, a rate a round for each key."""

    def __init__(self, rates: dict[Key, list[float]]) -> None:
        self.rates = rates

    def median(self, key: Key) -> float:
        """Sets a second."""
        return statistics.median(self.rates[key])

    def ratio(self, key: Key, limit: Key) -> float:
        """Median of what ``key`` gave over what ``limit`` gave, round by round."""
        pairs = zip(self.rates[key], self.rates[limit], strict=True)
        return statistics.median(rate / best for rate, best in pairs)


def doublings(now: int, most: int | None = None) -> list[int]:
    """1, 2, 4, ... and the present setting, and twice as many.

    >>> doublings(6), doublings(2, most=2), doublings(1)
    ([1, 2, 4, 6, 12], [1, 2], [1, 2])
    """
    powers = [2**n for n in range(now.bit_length()) if 2**n < now]
    return [n for n in [*powers, now, 2 * now] if n == now or most is None or n <= most]


def take_turns(tasks: dict[Key, Task], seconds: float) -> Paces:
    """Run all tasks in turns, about so long in all; the first round warms up."""
    each = seconds / (len(tasks) * (1 + MIN_ROUNDS))
    rates: dict[Key, list[float]] = {key: [] for key in tasks}
    began, rounds = time.perf_counter(), 0
    while True:
        for key, task in tasks.items():
            rate = task(each).sets_per_s
            if rounds:
                rates[key].append(rate)
        rounds += 1
        elapsed = time.perf_counter() - began
        if elapsed >= (seconds if rounds > MIN_ROUNDS else PATIENCE * seconds) and rounds > 1:
            return Paces(rates)


def stage_tasks(bench: StageBench) -> dict[Key, Task]:
    """All stages but the graph, and the limits; those that are compared stand side by side."""
    limits, threads, in_flight = LimitBench(bench), bench.loader.config.threads, bench.in_flight
    tasks: dict[Key, Task] = {("plan", 1): bench.plan}
    for n in doublings(in_flight):
        tasks["fetch", n] = partial(bench.fetch, in_flight=n)
        if n == in_flight:
            tasks["read", n] = partial(limits.read, in_flight=n)
    for n in doublings(threads):
        tasks["decode", n] = partial(bench.decode, threads=n)
        if n == threads:
            tasks["codec", n] = partial(limits.codec, threads=n)
            tasks["memcpy", n] = partial(limits.memcpy, threads=n)
    if bench.loader.config.device == "gpu":
        tasks["h2d", 1] = limits.h2d
    return tasks


def measure_graph(bench: StageBench, seconds: float) -> Paces:
    """The graph alone; on the CPU with as many threads as the cores allow.

    One setting after another: it works ahead, so turns would find batches that seem free.
    """
    config, most = bench.loader.config, cores()
    scales = config.device == "cpu" and config.loader == "dali"
    points = doublings(min(config.threads, most), most) if scales else [1]
    rates: dict[Key, list[float]] = {}
    for threads in points:
        each = seconds / (len(points) * MIN_ROUNDS)
        with bench.graph(threads if scales else None) as run:
            rates["graph", threads] = [run(each).sets_per_s for _ in range(MIN_ROUNDS)]
    return Paces(rates)
