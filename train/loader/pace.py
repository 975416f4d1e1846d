"""Work in a closed loop for some time: as soon as one is done, the next begins."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Sets done in some time."""

    sets: float
    seconds: float

    @property
    def sets_per_s(self) -> float:
        """How fast."""
        return self.sets / self.seconds


def in_threads(n: int, seconds: float, work: Callable[[int], object]) -> Pace:
    """Let ``n`` threads do ``work(0)``, ``work(1)``, ... for some time; each does one at least."""
    numbers = itertools.count()
    began = time.perf_counter()

    def repeat() -> int:
        for done in itertools.count(1):
            work(next(numbers))
            if time.perf_counter() - began >= seconds:
                return done
        raise AssertionError

    with ThreadPoolExecutor(n, thread_name_prefix="coralbay-bench") as pool:
        done = sum(future.result() for future in [pool.submit(repeat) for _ in range(n)])
    return Pace(sets=done, seconds=time.perf_counter() - began)


def in_this_thread(seconds: float, work: Callable[[], object]) -> Pace:
    """Do ``work`` again and again for some time, once at least."""
    began = time.perf_counter()
    for done in itertools.count(1):
        work()
        elapsed = time.perf_counter() - began
        if elapsed >= seconds:
            return Pace(sets=done, seconds=elapsed)
    raise AssertionError
