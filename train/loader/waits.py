"""What each set waited for on its way through the feed, and who waited for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from shards.stats import Stats

LATE = ("late_fetch_us", "late_decode_us")
"""Counters of the waiting for sets that were due, in microseconds."""


class Waits:
    """The times of one set, from the moment it is asked for.

    Recorded in seconds of sets, so that over the seconds of a run they are mean numbers of sets:
    ``fetch`` busy: on their way; ``fetch`` down: there, waiting for a slot and a thread; ``decode``
    up: in a slot, waiting for their bytes; ``decode`` down: decoded, waiting for the graph.

    The counters ``late_fetch_us`` and ``late_decode_us`` are the feed's waiting in microseconds,
    laid to what the set that was due still lacked: its bytes, or its decoding.

    Args:
        stats: where to record.
    """

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._asked = time.perf_counter()
        self._came = self._has_slot = self._begun = self._decoded = self._asked

    @property
    def came_s(self) -> float:
        """When all bytes were there."""
        return self._came

    def came(self) -> None:
        """All bytes are there, or known not to come."""
        self._came = time.perf_counter()

    def has_slot(self) -> None:
        """There is room to decode it."""
        self._has_slot = time.perf_counter()

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """While it is decoded."""
        self._begun = time.perf_counter()
        try:
            yield
        finally:
            self._decoded = time.perf_counter()

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """While the feed waits for it as the next in order; then it is decoded, or has failed."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self._record(since, time.perf_counter())

    def _record(self, since: float, taken: float) -> None:
        record = self._stats.record
        record("fetch", "busy_s", self._asked, self._came)
        record("fetch", "wait_down_s", self._came, self._begun)
        record("decode", "wait_up_s", self._has_slot, max(self._has_slot, self._came))
        record("decode", "wait_down_s", self._decoded, max(self._decoded, taken))
        count_late(self._stats, self._came, since, taken)


def count_late(stats: Stats, came_s: float, since_s: float, taken_s: float) -> None:
    """Lay the time for which a set was waited for to its bytes, until they came, and its decoding.

    Args:
        stats: where to count.
        came_s: when its bytes were there.
        since_s: when the waiting began.
        taken_s: when it ended.
    """
    for_bytes = min(max(came_s - since_s, 0.0), taken_s - since_s)
    for_decoding = taken_s - since_s - for_bytes
    stats.count(**dict(zip(LATE, (round(for_bytes * 1e6), round(for_decoding * 1e6)), strict=True)))
