"""A store that fails as real ones do, by a schedule that a seed fixes.

Errors are those that obstore raises for such an answer, text and all, so that what is tested also
reads them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import Random

from obstore.exceptions import GenericError, PermissionDeniedError

from shards.backends import Part, Store
from shards.policy import RequestPolicy
from shards.stats import Stats


class Trouble(Enum):
    """What can go wrong with a request."""

    SLOW_DOWN = "503 SlowDown"
    SERVER_ERROR = "500"
    RESET = "connection reset"
    STALL = "never an answer"
    SHORT_BODY = "the connection ends within the body"
    TRUNCATED = "fewer bytes than asked for, and no error"
    WRONG_BYTES = "a flipped bit"
    EXPIRED = "expired credentials"
    DENIED = "403"
    MISSING = "no such object"


PASSING = (Trouble.SLOW_DOWN, Trouble.SERVER_ERROR, Trouble.RESET, Trouble.STALL)
"""Troubles of the service that another attempt overcomes; so does ``SHORT_BODY``."""
_ANSWER = "Generic S3 error: Error performing GET http://127.0.0.1/b/x in 1.2ms - "
_STATUS = _ANSWER + "Server returned non-2xx status code: "
_DUMP = "\n\nDebug source:\nGeneric {\n    inner: "
_TEXTS = {
    Trouble.SLOW_DOWN: _STATUS + "503 Service Unavailable: <Error><Code>SlowDown</Code></Error>",
    Trouble.SERVER_ERROR: _STATUS + "500 Internal Server Error: ",
    Trouble.RESET: _ANSWER + "HTTP error: error sending request" + _DUMP + "kind: Request",
    Trouble.STALL: _ANSWER + "HTTP error: error sending request" + _DUMP + "source: TimedOut",
    Trouble.SHORT_BODY: "Generic S3 error: HTTP error: request or response body error",
    Trouble.EXPIRED: _STATUS + "400 Bad Request: <Error><Code>ExpiredToken</Code></Error>",
    Trouble.DENIED: _STATUS + "403 Forbidden: <Error><Code>AccessDenied</Code></Error>",
}


@dataclass(frozen=True)
class Injected:
    """A trouble that was made."""

    request: int
    """Its number, from 0 on."""
    path: str
    trouble: Trouble


@dataclass(kw_only=True)
class Schedule:
    """Which request meets which trouble; the first that applies, in this order."""

    expired: range = range(0)
    """Numbers of the requests that find the credentials expired, unless they were renewed."""
    paths: Mapping[str, Trouble] = field(default_factory=dict)
    """Objects with which every request meets the same."""
    at: Mapping[int, Trouble] = field(default_factory=dict)
    """By number of the request."""
    rate: float = 0.0
    """Share of the others that meet one of ``troubles``."""
    troubles: Sequence[Trouble] = PASSING
    seed: int = 0

    def trouble(self, request: int, path: str, renewed: bool) -> Trouble | None:
        """What happens to a request."""
        if request in self.expired and not renewed:
            return Trouble.EXPIRED
        if path in self.paths:
            return self.paths[path]
        if request in self.at:
            return self.at[request]
        draw = Random(f"{self.seed}/{request}")
        return draw.choice(self.troubles) if draw.random() < self.rate else None


class FaultyStore:
    """A `shards.backends.Store` around another one, that follows a schedule.

    Args:
        store: below.
        schedule: what goes wrong when.
        answer_s: seconds that the answer to a request of so many bytes takes, for `get_range`.
        renewable: `renew` ends the expiry of credentials.

    Attributes:
        requests: how many there were.
        injected: troubles made, in order.
        asked: requests by path, offset and bytes, of `get_range`.
        in_flight: requests of `get_range` under way.
        most_in_flight: the most of them at any time.
    """

    def __init__(
        self,
        store: Store,
        schedule: Schedule,
        *,
        answer_s: Callable[[int], float] | None = None,
        renewable: bool = False,
    ) -> None:
        self.name = store.name
        self.folder: Path | None = None
        self.policy: RequestPolicy = store.policy
        self.stats: Stats = store.stats
        self.requests = 0
        self.injected: list[Injected] = []
        self.asked: Counter[tuple[str, int, int]] = Counter()
        self.in_flight = 0
        self.most_in_flight = 0
        self._store = store
        self._schedule = schedule
        self._answer_s = answer_s
        self._renewable = renewable
        self._renewed = False

    async def get_range(self, path: str, offset: int, nbytes: int) -> memoryview:
        """See `Store`."""
        self.asked[path, offset, nbytes] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            trouble = self._next(path)
            if trouble is Trouble.STALL:
                await asyncio.get_running_loop().create_future()
            if self._answer_s is not None:
                await asyncio.sleep(self._answer_s(nbytes))
            _raise(trouble, path)
            return self._spoilt(await self._store.get_range(path, offset, nbytes), trouble)
        finally:
            self.in_flight -= 1

    def open(self, path: str) -> Part:
        """See `Store`."""
        trouble = self._next(path)
        _raise(trouble, path)
        part = self._store.open(path)
        return Part(self._spoilt(part.data, trouble), part.whole)

    def read(self, path: str, start: int, stop: int) -> Part:
        """See `Store`."""
        trouble = self._next(path)
        _raise(trouble, path)
        part = self._store.read(path, start, stop)
        return Part(self._spoilt(part.data, trouble), part.whole)

    def names(self) -> Sequence[str]:
        """See `Store`."""
        _raise(self._next(""), "")
        return self._store.names()

    def renew(self) -> None:
        """See `Store`."""
        self._renewed = self._renewable
        self._store.renew()

    def _next(self, path: str) -> Trouble | None:
        number, self.requests = self.requests, self.requests + 1
        trouble = self._schedule.trouble(number, path, self._renewed)
        if trouble is not None:
            self.injected.append(Injected(number, path, trouble))
        return trouble

    def _spoilt(self, data: memoryview, trouble: Trouble | None) -> memoryview:
        if trouble is Trouble.TRUNCATED:
            return data[: len(data) // 2]
        if trouble is Trouble.WRONG_BYTES and len(data):
            wrong = bytearray(data)
            bit = Random(f"{self._schedule.seed}/{self.requests}/bit").randrange(8 * len(wrong))
            wrong[bit // 8] ^= 1 << bit % 8
            return memoryview(bytes(wrong))
        return data


def _raise(trouble: Trouble | None, path: str) -> None:
    if trouble is Trouble.MISSING:
        raise FileNotFoundError(f"Object at location {path} not found")
    if trouble is Trouble.DENIED:
        raise PermissionDeniedError(_TEXTS[trouble])
    if trouble in _TEXTS:
        raise GenericError(_TEXTS[trouble])
