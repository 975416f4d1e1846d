"""What goes wrong in an emulated store, and when: the same for the same seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, fields
from typing import Literal, get_args

Fault = Literal["slow_down", "expired", "reset", "stall", "short_body"]
"""``slow_down``: 503 SlowDown. ``expired``: 403 ExpiredToken. ``reset``: the connection is reset in
the middle of the body. ``stall``: nothing more comes after the first half. ``short_body``: the
connection is closed in order after the first half."""
FAULTS: tuple[Fault, ...] = get_args(Fault)


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Which requests for objects fail.

    The draw is by seed, method, object, range and attempt, so that it does not depend on the order
    in which a client's threads happen to ask.
    """

    seed: int = 0
    slow_down: float = 0.0
    """Share of the attempts that end so; the shares add up to 1 at most."""
    expired: float = 0.0
    reset: float = 0.0
    stall: float = 0.0
    short_body: float = 0.0
    in_a_row: int = 2
    """Attempts of one request that may fail one after the other; the next succeeds."""
    first: tuple[Fault, ...] = ()
    """What the first attempts of every request meet, before any draw."""
    stall_s: float = 3600.0
    """How long a stalled body waits before it goes on."""

    def __post_init__(self) -> None:
        if sum(self._shares()) > 1 or min(self._shares()) < 0:
            raise ValueError("the shares of faults are not shares of one whole")

    def draw(self, request: str, attempt: int) -> Fault | None:
        """What attempt number ``attempt``, from 0, of a request meets."""
        if attempt < len(self.first):
            return self.first[attempt]
        if (attempt - len(self.first)) % (self.in_a_row + 1) == self.in_a_row:
            return None
        digest = hashlib.sha256(f"{self.seed} {attempt} {request}".encode()).digest()
        place = int.from_bytes(digest[:8], "little") / 2**64
        for fault, share in zip(FAULTS, self._shares(), strict=True):
            if place < share:
                return fault
            place -= share
        return None

    def _shares(self) -> tuple[float, ...]:
        return (self.slow_down, self.expired, self.reset, self.stall, self.short_body)


class FaultSchedule:
    """Faults by request; counts the attempts of each."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self._attempts: Counter[str] = Counter()

    def next(self, request: str) -> Fault | None:
        """What this attempt of ``request`` meets."""
        attempt = self._attempts[request]
        self._attempts[request] += 1
        return self.faults.draw(request, attempt)


assert {field.name for field in fields(Faults)} >= set(FAULTS)
