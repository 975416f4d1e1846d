"""How many requests may be under way: fewer for a while when the storage is asked too fast."""

from __future__ import annotations

import asyncio
from collections import deque

GROWTH_PER_S = 1.0
"""After a cut the limit grows so much, while answers come."""
FORGIVEN = 0.1
"""So many refusals for each answer tell nothing: large stores refuse a few at any time."""
TOO_MANY = 3.0
"""The limit is cut by so many refusals that are not forgiven."""


class Limiter:
    """Counts what is under way.

    The limit halves when the storage is overwhelmed, and then grows by one a second (additive
    increase, multiplicative decrease).

    Args:
        most: the limit while all is well.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._cuts = 0
        self._refused = 0.0
        self._grown_at = 0.0

    @property
    def limit(self) -> int:
        """Requests that may be under way now."""
        return int(self._limit)

    @property
    def is_cut(self) -> bool:
        """The storage was overwhelmed not long ago."""
        return self._limit < self._most

    async def acquire(self) -> int:
        """Wait for a place, first come, first served; the number of cuts so far."""
        if self._busy < self.limit and not self._waiting:
            self._busy += 1
            return self._cuts
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()
            raise
        return self._cuts

    def release(self) -> None:
        """Give the place back."""
        self._busy -= 1
        while self._waiting and self._busy < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._busy += 1
                turn.set_result(None)

    def succeeded(self, now: float) -> None:
        """An answer came, at so many seconds."""
        self._refused = max(0.0, self._refused - FORGIVEN)
        if self.is_cut:
            grown = self._limit + GROWTH_PER_S * (now - self._grown_at)
            self._limit = min(float(self._most), grown)
            self._grown_at = now

    def overwhelmed(self, now: float, cuts: int) -> None:
        """The storage said that it is asked too fast, or did not answer in time.

        Args:
            now: seconds.
            cuts: what `acquire` gave for this request. One that was sent before the last cut tells
                nothing new.
        """
        self._refused += cuts == self._cuts
        if self._refused >= TOO_MANY:
            self._refused = 0.0
            self._cuts += 1
            self._grown_at = now
            self._limit = max(1.0, self._limit / 2)
