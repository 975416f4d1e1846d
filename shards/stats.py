"""Counters of a pipeline's stages: what each did, and for what it waited."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

Clock = Literal["busy_s", "wait_up_s", "wait_down_s"]


@dataclass(frozen=True)
class StageStats:
    """Totals of one stage, summed over its threads, or over the sets that wait in a queue."""

    items: int = 0
    bytes: int = 0
    busy_s: float = 0.0
    wait_up_s: float = 0.0
    """Waiting for the stage before: that one is slower."""
    wait_down_s: float = 0.0
    """Waiting for room after: the next one is slower."""


@dataclass(frozen=True)
class Span:
    """One piece of a stage's time, for timelines."""

    stage: str
    clock: Clock
    thread: str
    """Its name; empty: a set's time in a queue, or on its way from a storage."""
    start_s: float
    """On the clock of ``time.perf_counter``, which all processes of a machine share on Linux."""
    stop_s: float
    process: int
    """Its id."""


@dataclass(frozen=True)
class Snapshot:
    """What was counted in some time, to be sent to another process."""

    stages: dict[str, StageStats]
    counters: dict[str, int]
    spans: tuple[Span, ...] = ()


@dataclass
class _Piece:
    """A time that is being taken."""

    clock: Clock
    start_s: float


class _Running(threading.local):
    """The times that a thread is taking."""

    def __init__(self) -> None:
        self.by_stage: dict[str, _Piece] = {}


class Stats:
    """Thread-safe totals by stage, and plain counters by name.

    Counters in use: ``requests``, ``chunks``, ``bytes_wire``, ``bytes_ideal``, ``voxels_decoded``,
    ``bytes_copied``, ``bytes_joined``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stages: dict[str, dict[str, float]] = {}
        self._counters: Counter[str] = Counter()
        self._spans: deque[Span] | None = None
        self._running = _Running()

    def add(self, stage: str, *, items: int = 0, nbytes: int = 0) -> None:
        """Count work that ``stage`` finished."""
        with self._lock:
            totals = self._totals(stage)
            totals["items"] += items
            totals["bytes"] += nbytes

    @contextmanager
    def timed(self, stage: str, clock: Clock) -> Iterator[None]:
        """Add the time spent inside to one of the clocks of ``stage``.

        Inside another of the same stage and thread it interrupts that one: no time counts twice.
        """
        now, running = time.perf_counter(), self._running.by_stage
        outer, inner = running.get(stage), _Piece(clock, now)
        thread = threading.current_thread().name
        if outer is not None:
            self.record(stage, outer.clock, outer.start_s, now, thread=thread)
        running[stage] = inner
        try:
            yield
        finally:
            now = time.perf_counter()
            self.record(stage, clock, inner.start_s, now, thread=thread)
            if outer is None:
                del running[stage]
            else:
                outer.start_s, running[stage] = now, outer

    def record(
        self, stage: str, clock: Clock, start_s: float, stop_s: float, *, thread: str = ""
    ) -> None:
        """Add a time that was measured elsewhere, by ``time.perf_counter``."""
        with self._lock:
            self._totals(stage)[clock] += stop_s - start_s
            if self._spans is not None:
                self._spans.append(Span(stage, clock, thread, start_s, stop_s, os.getpid()))

    def count(self, **amounts: int) -> None:
        """Add to counters, e.g. ``count(requests=1, bytes_wire=n)``."""
        with self._lock:
            self._counters.update(amounts)

    def keep_spans(self, most: int = 100_000) -> None:
        """From now on keep each piece of time as well, the newest ``most`` of them."""
        with self._lock:
            self._spans = deque(self._spans or (), maxlen=most)

    @property
    def most_spans(self) -> int | None:
        """How many pieces of time are kept; None: none are."""
        with self._lock:
            return None if self._spans is None else self._spans.maxlen

    def spans(self) -> list[Span]:
        """Pieces of time kept so far, in the order in which they ended."""
        with self._lock:
            return list(self._spans or ())

    def stages(self) -> dict[str, StageStats]:
        """Totals so far, by stage."""
        with self._lock:
            return self._frozen()

    def counters(self) -> dict[str, int]:
        """Counters so far."""
        with self._lock:
            return dict(self._counters)

    def take(self) -> Snapshot:
        """Everything so far, for another process to absorb; here it starts from zero."""
        with self._lock:
            taken = Snapshot(self._frozen(), dict(self._counters), tuple(self._spans or ()))
            self._clear()
        return taken

    def absorb(self, taken: Snapshot) -> None:
        """Add what another process has counted."""
        with self._lock:
            for stage, more in taken.stages.items():
                totals = self._totals(stage)
                for name, amount in asdict(more).items():
                    totals[name] += amount
            self._counters.update(taken.counters)
            if self._spans is not None:
                self._spans.extend(taken.spans)

    def reset(self) -> None:
        """Start from zero: after a warm-up, for instance."""
        with self._lock:
            self._clear()

    def _totals(self, stage: str) -> dict[str, float]:
        if stage not in self._stages:
            self._stages[stage] = asdict(StageStats())
        return self._stages[stage]

    def _frozen(self) -> dict[str, StageStats]:
        return {stage: StageStats(**totals) for stage, totals in self._stages.items()}  # type: ignore[arg-type]

    def _clear(self) -> None:
        self._stages.clear()
        self._counters.clear()
        if self._spans is not None:
            self._spans.clear()
