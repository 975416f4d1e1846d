"""Which way in costs less: stream or range, counted on the first visits of the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from shards.plan import Plan, PlanSamples
from shards.regions import MAX_GAP, ByteRange, Region, cover
from shards.sources import ChunkRows, Mode, spans_of_box, spans_of_run

N_RUNS = 8
"""Runs that are counted."""
REQUEST_BYTES = MAX_GAP
"""What a request costs, in bytes that could have been read instead: the rule that joins ranges.
With many requests in flight its latency is hidden, but its price and the storage's limit stay."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """What a set takes, on average."""

    requests: float
    bytes: float

    @property
    def cost(self) -> float:
        """In bytes."""
        return self.bytes + REQUEST_BYTES * self.requests

    def __str__(self) -> str:
        return f"{self.bytes / 1e6:.2f} MB in {self.requests:.2f} requests a set"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way in, and why."""

    mode: Mode
    stream: Way
    range: Way
    asked: bool
    """By the user, not counted."""

    @property
    def sentence(self) -> str:
        """For people."""
        other: Mode = "range" if self.mode == "stream" else "stream"
        ways = {"stream": self.stream, "range": self.range}
        why = "as asked" if self.asked else "the cheaper way"
        return f"{self.mode}, {why}: {ways[self.mode]}; {other} would take {ways[other]}"


def choose(
    asked: Literal["auto", "stream", "range"],
    plan: Plan,
    rows: ChunkRows,
    region: Callable[[int], Region],
) -> Choice:
    """Count both ways over the first runs; the same for every rank.

    Args:
        asked: ``auto``, or the way to take whatever it costs.
        plan: says which volumes come.
        rows: where their chunks are.
        region: what is wanted at a position of the plan.

    Raises:
        ShardError: a chunk table cannot be read.
    """
    stream, by_range = _count(plan, rows, region)
    mode: Mode = "stream" if stream.cost <= by_range.cost else "range"
    if asked != "auto":
        mode = asked
    return Choice(mode=mode, stream=stream, range=by_range, asked=asked != "auto")


def _count(plan: Plan, rows: ChunkRows, region: Callable[[int], Region]) -> tuple[Way, Way]:
    config = plan.config
    streamed: list[ByteRange] = []
    ranged: list[ByteRange] = []
    sets = volumes = 0
    for lane in range(min(N_RUNS, config.global_batch)):
        run = plan.run_ahead(lane)
        volumes += len(run)
        streamed += spans_of_run(rows, run)
        # Turn t of a lane, and its visits, lie B and m * B positions further on.
        for turn in range(min(len(run), config.spread)):
            for visit in range(config.visits):
                index = (turn + visit * config.spread) * config.global_batch + lane
                sample = plan.item(index).sample
                ranged += spans_of_box(rows, sample, region(index))
                sets += 1
    # A run is streamed once for all visits of all its volumes.
    return _way(streamed, volumes * config.visits), _way(ranged, sets)


def _way(spans: list[ByteRange], sets: int) -> Way:
    return Way(
        requests=len(spans) / sets, bytes=sum(span.stop - span.start for span in spans) / sets
    )


def whole_boxes(plan: Plan, samples: PlanSamples) -> Callable[[int], Region]:
    """All chunks of the base box at a position, as ``choose`` takes it."""

    def region(index: int) -> Region:
        item = plan.item(index)
        z, y, x = samples.shapes[item.sample].tolist()
        return cover(item.box_start_zyx, plan.config.box_side, (z, y, x), samples.chunk_side)

    return region
