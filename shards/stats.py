"""Counters of a pipeline's stages: what each did, and for what it waited."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

Clock = Literal["busy_s", "wait_up_s", "wait_down_s"]


@dataclass(frozen=True, kw_only=True)
class StageStats:
    """Totals of one stage, summed over its threads."""

    items: int = 0
    bytes: int = 0
    busy_s: float = 0.0
    wait_up_s: float = 0.0
    """Waiting for the stage before: that one is slower."""
    wait_down_s: float = 0.0
    """Waiting for room after: the next one is slower."""


class Stats:
    """Thread-safe totals by stage, and plain counters by name.

    Counters in use: ``requests``, ``chunks``, ``bytes_wire``, ``bytes_ideal``, ``voxels_decoded``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stages: dict[str, StageStats] = {}
        self._counters: Counter[str] = Counter()

    def add(self, stage: str, *, items: int = 0, nbytes: int = 0) -> None:
        """Count work that ``stage`` finished."""
        with self._lock:
            old = self._stages.get(stage, StageStats())
            self._stages[stage] = replace(old, items=old.items + items, bytes=old.bytes + nbytes)

    @contextmanager
    def timed(self, stage: str, clock: Clock) -> Iterator[None]:
        """Add the time spent inside to one of the clocks of ``stage``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            with self._lock:
                old = self._stages.get(stage, StageStats())
                self._stages[stage] = replace(old, **{clock: getattr(old, clock) + spent})

    def count(self, **amounts: int) -> None:
        """Add to counters, e.g. ``count(requests=1, bytes_wire=n)``."""
        with self._lock:
            self._counters.update(amounts)

    def stages(self) -> dict[str, StageStats]:
        """Totals so far, by stage."""
        with self._lock:
            return dict(self._stages)

    def counters(self) -> dict[str, int]:
        """Counters so far."""
        with self._lock:
            return dict(self._counters)

    def reset(self) -> None:
        """Start from zero: after a warm-up, for instance."""
        with self._lock:
            self._stages.clear()
            self._counters.clear()
