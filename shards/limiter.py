"""How many requests may be under way: fewer for a while when the storage is asked too fast."""

from __future__ import annotations

import asyncio
from collections import deque

CUT_EVERY_S = 1.0
"""Refusals of one burst are one sign, not many: the limit is cut once in this time."""


class Limiter:
    """Counts what is under way.

    The limit halves when the storage is overwhelmed, and grows by one with each full round of
    answers after that (additive increase, multiplicative decrease).

    Args:
        most: the limit while all is well.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._cut_at = float("-inf")

    @property
    def limit(self) -> int:
        """Requests that may be under way now."""
        return int(self._limit)

    @property
    def is_cut(self) -> bool:
        """The storage was overwhelmed not long ago."""
        return self._limit < self._most

    async def acquire(self) -> None:
        """Wait for a place; first come, first served."""
        if self._busy < self.limit and not self._waiting:
            self._busy += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Give the place back."""
        self._busy -= 1
        while self._waiting and self._busy < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._busy += 1
                turn.set_result(None)

    def succeeded(self) -> None:
        """An answer came."""
        if self.is_cut:
            self._limit = min(self._most, self._limit + 1 / self._limit)

    def overwhelmed(self, now: float) -> None:
        """The storage said that it is asked too fast, or did not answer in time."""
        if now - self._cut_at >= CUT_EVERY_S:
            self._cut_at = now
            self._limit = max(1.0, self._limit / 2)
