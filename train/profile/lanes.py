"""Pieces of time by lane, and lengths of queues: what timelines are drawn from."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from shards.stats import Clock, Span

DECODE_THREADS = "coralbay-feed_"
"""How their names begin."""

QUEUES: dict[tuple[str, Clock], str] = {
    ("fetch", "busy_s"): "their bytes",
    ("fetch", "wait_down_s"): "a slot and a thread",
    ("decode", "wait_up_s"): "their bytes, in a slot",
    ("decode", "wait_down_s"): "the graph, decoded",
}
"""Times of sets, not of threads."""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """Pieces that never overlap, except one inside another."""

    process: int
    name: str
    spans: tuple[Span, ...]
    """By start; of two that start together the longer one first."""


def lanes(spans: Iterable[Span]) -> list[Lane]:
    """One lane a thread; sets on their way are laid side by side, as many lanes as it takes."""
    by_thread: dict[tuple[int, str], list[Span]] = defaultdict(list)
    on_their_way: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start_s, -span.stop_s)):
        if span.thread:
            by_thread[span.process, span.thread].append(span)
        elif (span.stage, span.clock) == ("fetch", "busy_s"):
            on_their_way.append(span)
    threads = [
        Lane(process=process, name=_label(thread, found), spans=tuple(found))
        for (process, thread), found in sorted(by_thread.items(), key=_in_order)
    ]
    fetches = [
        Lane(process=found[0].process, name=f"fetch {number}", spans=tuple(found))
        for number, found in enumerate(_side_by_side(on_their_way), start=1)
    ]
    return [*fetches, *threads]


def queues(spans: Iterable[Span]) -> dict[str, list[tuple[float, int]]]:
    """How many sets were in each queue, by time: (seconds, number from then on)."""
    changes: dict[str, Counter[float]] = {name: Counter() for name in QUEUES.values()}
    for span in spans:
        if not span.thread and (span.stage, span.clock) in QUEUES:
            name = QUEUES[span.stage, span.clock]
            changes[name][span.start_s] += 1
            changes[name][span.stop_s] -= 1
    lengths: dict[str, list[tuple[float, int]]] = {}
    for name, found in changes.items():
        length, lengths[name] = 0, []
        for at, change in sorted(found.items()):
            length += change
            lengths[name].append((at, length))
    return lengths


def _label(thread: str, spans: Iterable[Span]) -> str:
    """What a thread does; plans are made beside the graph, or in another process."""
    if thread.startswith(DECODE_THREADS):
        return f"decode {int(thread.removeprefix(DECODE_THREADS)) + 1}"
    stages = {span.stage for span in spans}
    return ", ".join((["consumer"] if "graph" in stages else []) + sorted(stages)) or thread


def _in_order(lane: tuple[tuple[int, str], object]) -> tuple[bool, int, int, str]:
    """Decoders by number, and the thread of the consumer after them, as sets go."""
    (process, thread), _ = lane
    decodes = thread.startswith(DECODE_THREADS)
    number = int(thread.removeprefix(DECODE_THREADS)) if decodes else 0
    return (not decodes, process, number, thread)


def _side_by_side(spans: list[Span]) -> list[list[Span]]:
    """Each span in the first lane that is free when it begins; ``spans`` are by start."""
    found: list[list[Span]] = []
    free: list[int] = []
    taken: list[tuple[float, int]] = []
    for span in spans:
        while taken and taken[0][0] <= span.start_s:
            heapq.heappush(free, heapq.heappop(taken)[1])
        if not free:
            heapq.heappush(free, len(found))
            found.append([])
        number = heapq.heappop(free)
        found[number].append(span)
        heapq.heappush(taken, (span.stop_s, number))
    return found
