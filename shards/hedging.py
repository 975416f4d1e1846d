"""When a slow request gets a rival: the first answer of the two counts (Dean, Barroso 2013)."""

from __future__ import annotations

from collections import deque

from shards.policy import RequestPolicy

RECENT = 128
"""Times that are remembered, for each size of requests (powers of two)."""
ENOUGH = 16
"""With fewer, nothing is known of that size."""
BURST = 5.0
"""Rivals that may have been saved up."""


class Hedging:
    """Learns how long requests take, and keeps rivals few."""

    def __init__(self, policy: RequestPolicy) -> None:
        self._policy = policy
        self._times: dict[int, deque[float]] = {}
        self._delays: dict[int, float] = {}
        self._seen = 0
        self._saved = 1.0
        self._under_way = 0

    def delay_s(self, nbytes: int) -> float:
        """Seconds after which a request of ``nbytes`` is slow."""
        policy = self._policy
        return self._delays.get(nbytes.bit_length(), max(policy.hedge_floor_s, policy.hedge_cold_s))

    def sent(self) -> None:
        """A request was sent that is no rival."""
        self._saved = min(BURST, self._saved + self._policy.hedge_share)

    def took(self, nbytes: int, seconds: float) -> None:
        """A request was answered."""
        size = nbytes.bit_length()
        times = self._times.setdefault(size, deque(maxlen=RECENT))
        times.append(seconds)
        self._seen += 1
        if len(times) >= ENOUGH and (self._seen % ENOUGH == 0 or size not in self._delays):
            policy = self._policy
            usual = sorted(times)[int(len(times) * policy.hedge_quantile)]
            self._delays[size] = max(policy.hedge_floor_s, policy.hedge_factor * usual)

    def begin(self) -> bool:
        """Whether a rival may be sent now; if so, it counts until `end`."""
        allowed = self._policy.hedge_share > 0 and self._saved >= 1
        if not allowed or self._under_way >= self._policy.hedges_in_flight:
            return False
        self._saved -= 1
        self._under_way += 1
        return True

    def end(self) -> None:
        """The rival is answered or dropped."""
        self._under_way -= 1
