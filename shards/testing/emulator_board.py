"""Settings and exact counters of an emulated store, in memory that its processes share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from multiprocessing.context import SpawnContext


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The pace of the store."""

    latency_s: float
    """From a request's last byte to the answer's first."""
    bytes_per_s: float
    """Of one connection."""


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What the server did. All counts are exact; subtract two to see what happened between."""

    get: int = 0
    """Requests for objects or ranges of them, answered well or not; lists are apart."""
    head: int = 0
    list: int = 0
    put: int = 0
    post: int = 0
    delete: int = 0
    bytes_sent: int = 0
    """Bytes of objects that the kernel took for sending; no headers."""
    connections: int = 0
    """Connections accepted."""
    slow_down: int = 0
    """Faults played, by kind."""
    expired: int = 0
    reset: int = 0
    stall: int = 0
    short_body: int = 0
    max_concurrent: int = 0
    """Most requests at work at the same time, since the start or ``reset``; not subtracted."""

    @property
    def requests(self) -> int:
        """All requests, of every method."""
        return self.get + self.head + self.list + self.put + self.post + self.delete

    def __sub__(self, before: Counters) -> Counters:
        difference = {name: now - getattr(before, name) for name, now in asdict(self).items()}
        return Counters(**difference | {"max_concurrent": self.max_concurrent})


_NAMES = tuple(field.name for field in fields(Counters))
_PLACE = {name: place for place, name in enumerate((*_NAMES, "concurrent"))}


class Board:
    """Shared by the processes of a server and by the one that started it."""

    def __init__(self, context: SpawnContext, settings: Settings) -> None:
        self._counts = context.Array("q", len(_PLACE))
        self._settings = context.Array("d", [settings.latency_s, settings.bytes_per_s])

    def settings(self) -> Settings:
        """As they are at this moment."""
        latency_s, bytes_per_s = self._settings[:]
        return Settings(latency_s=latency_s, bytes_per_s=bytes_per_s)

    def set(self, settings: Settings) -> None:
        """For the requests that come from now on."""
        self._settings[:] = [settings.latency_s, settings.bytes_per_s]

    def add(self, **amounts: int) -> None:
        """Add to counters by name."""
        with self._counts.get_lock():
            for name, amount in amounts.items():
                self._counts[_PLACE[name]] += amount

    def begin(self, kind: str) -> None:
        """A request of this kind is at work."""
        with self._counts.get_lock():
            if kind in _PLACE:
                self._counts[_PLACE[kind]] += 1
            self._counts[_PLACE["concurrent"]] += 1
            now, most = self._counts[_PLACE["concurrent"]], _PLACE["max_concurrent"]
            self._counts[most] = max(self._counts[most], now)

    def end(self) -> None:
        """A request is answered."""
        self.add(concurrent=-1)

    def counters(self) -> Counters:
        """As they are at this moment."""
        return Counters(**dict(zip(_NAMES, self._counts[: len(_NAMES)], strict=True)))

    def reset(self) -> None:
        """All counters to zero; the most at a time, to those that are at work."""
        with self._counts.get_lock():
            self._counts[: len(_NAMES)] = [0] * len(_NAMES)
            self._counts[_PLACE["max_concurrent"]] = self._counts[_PLACE["concurrent"]]
