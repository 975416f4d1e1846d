"""How patient requests are: how many at once, how long each, when again, when to give up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RequestPolicy:
    """Limits of the requests to a storage; the defaults suit S3 and servers like it."""

    in_flight: int = 32
    """Requests under way at once; hedges come on top, see ``hedges_in_flight``."""
    deadline_s: float = 30.0
    """A request without its whole answer by then is dropped and sent again."""
    upload_deadline_s: float = 120.0
    """The same for a piece of an upload."""
    attempts: int = 40
    """A request is sent so often at most."""
    patience_s: float = 300.0
    """After so long without success the storage counts as unavailable."""
    first_patience_s: float = 15.0
    """The same where nothing has ever answered at the address: most often it is misspelt."""
    first_backoff_s: float = 0.2
    """The wait before the second attempt is drawn from 0 to this, and to twice as much each time
    after that (exponential backoff with full jitter)."""
    max_backoff_s: float = 20.0
    hedge_floor_s: float = 0.25
    """No second request is sent before this."""
    hedge_cold_s: float = 2.0
    """Before this while few requests of that size have been seen."""
    hedge_quantile: float = 0.9
    hedge_factor: float = 3.0
    """A second request goes out after this multiple of that quantile of recent times."""
    hedge_share: float = 0.05
    """Second requests per request, at most; 0 sends none."""
    hedges_in_flight: int = 2

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ValueError: a limit is out of range.
        """
        if min(self.in_flight, self.attempts) < 1:
            raise ValueError("in_flight and attempts: at least 1")
        if min(self.deadline_s, self.upload_deadline_s) <= 0:
            raise ValueError("deadline_s and upload_deadline_s: more than 0")
        if not 0 <= self.hedge_share < 1 or not 0 < self.hedge_quantile < 1:
            raise ValueError("hedge_share in [0, 1), hedge_quantile in (0, 1)")

    def backoff_s(self, failures: int, draw: float) -> float:
        """Seconds to wait after ``failures`` failures, ``draw`` uniform in [0, 1)."""
        doubled = self.first_backoff_s * 2.0 ** min(failures - 1, 60)
        return draw * min(self.max_backoff_s, doubled)


DEFAULT_POLICY = RequestPolicy()
