"""Who is told how a build goes on."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ingest.scan import ScanResult
from ingest.series import Series
from ingest.spool import Outcome


@runtime_checkable
class Listener(Protocol):
    """Told how a build goes on; paths in a ``Series`` may be shown to a person, never stored."""

    def files(self, count: int) -> None:
        """Files seen so far."""

    def planned(self, found: ScanResult, groups: int) -> None:
        """The scan is over."""

    def group_done(self, done: int, groups: int) -> None:
        """One more shard, or one less to build."""

    def refused(self, series: Series, outcome: Outcome) -> None:
        """A series is not taken."""
