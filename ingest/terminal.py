"""What a person sees while a build runs, on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ingest.paths import place
from ingest.scan import ScanResult
from ingest.series import Series
from ingest.sources import FileRef
from ingest.spool import Outcome
from ingest.work import GroupResult

MAX_PATHS = 3
"""Files named for a refused series; the rest is counted."""
FILES_PER_UPDATE = 50
"""How often the scan moves the bar."""
SECONDS_PER_LINE = 30.0
"""How often the plain form says how far a run is."""
TOLD_PER_REASON = 10
"""Refusals of one reason that are named; the rest is counted, unless ``--verbose`` asks."""


class Terminal:
    """A ``Listener`` that talks to a person. Paths appear here and nowhere else."""

    def __init__(self, console: Console | None = None, *, verbose: bool = False) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.verbose = verbose
        self.started = time.monotonic()
        self.peak_bytes = 0
        """Most memory that any worker of this run had."""
        self._refused: Counter[str] = Counter()
        self._built_from = self.started
        self._groups = self._series = self._bytes = 0
        self._next_line = self.started + SECONDS_PER_LINE
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._scanning = self._bar.add_task("scanning files", total=None, rate="")
        self._building = self._bar.add_task("building shards", total=None, visible=False, rate="")

    def __enter__(self) -> Terminal:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        for reason, count in sorted(self._refused.items()):
            if not self.verbose and count > TOLD_PER_REASON:
                more = count - TOLD_PER_REASON
                self.say(f"refused {reason}: {more:,} more like these (--verbose names them)")

    def files(self, count: int) -> None:
        """Files seen so far."""
        if count % FILES_PER_UPDATE == 0:
            rate = f"{count / self._since(self.started):,.0f} files/s"
            self._bar.update(self._scanning, completed=count, rate=rate)
            if self._line_is_due():
                self.say(f"scanned {count:,} files, {rate}")

    def planned(self, found: ScanResult, groups: int) -> None:
        """The scan is over."""
        rate = found.n_files / self._since(self.started)
        self._bar.update(self._scanning, visible=False)
        self._bar.update(self._building, total=groups, visible=True)
        self._bar.reset(self._building)  # time left counts from here
        self.say(
            f"scanned {found.n_files} files: {len(found.series)} series and stray files, "
            f"{rate:,.0f} files/s"
        )
        self._built_from = time.monotonic()

    def built(self, result: GroupResult) -> None:
        """What one more shard was made of; comes before its `group_done`."""
        self._groups += 1
        self._series += len(result.outcomes)
        self._bytes += 0 if result.shard is None else result.shard.entry.bytes
        self.peak_bytes = max(self.peak_bytes, result.peak_bytes)

    def group_done(self, done: int, groups: int) -> None:
        """One more shard is there."""
        seconds = self._since(self._built_from)
        rate = f"{self._series / seconds:.2f} series/s, {self._bytes / 1e6 / seconds:.1f} MB/s"
        self._bar.update(self._building, completed=done, rate=rate)
        if done == groups or self._line_is_due():
            left = seconds / max(1, self._groups) * (groups - done)
            self.say_plain(f"built {done} of {groups} shards, {rate}, about {left:.0f} s left")

    def refused(self, series: Series, outcome: Outcome) -> None:
        """Name what is not taken, where it lies, and why; of one reason, not without end."""
        self._refused[outcome.reason] += 1
        if self.verbose or self._refused[outcome.reason] <= TOLD_PER_REASON:
            detail = f" ({outcome.detail})" if outcome.detail else ""
            self.say(f"refused {outcome.reason}: {where(series.refs)}{detail}")

    def say(self, line: str) -> None:
        """One line, above the bar; nothing in it is markup."""
        self.console.print(line, markup=False, emoji=False)

    def say_plain(self, line: str) -> None:
        """One line where there is no bar to show it."""
        if not self.console.is_terminal:
            self.say(line)

    def _line_is_due(self) -> bool:
        """Whether it is time for the plain form to say how far it is."""
        if self.console.is_terminal or time.monotonic() < self._next_line:
            return False
        self._next_line = time.monotonic() + SECONDS_PER_LINE
        return True

    def _since(self, moment: float) -> float:
        return max(time.monotonic() - moment, 1e-3)


def where(refs: Sequence[FileRef]) -> str:
    """The first few files of a series, for a person."""
    files = list(dict.fromkeys(refs))  # a multi-frame file is there once a frame
    names = [place(ref) for ref in files[:MAX_PATHS]]
    more = len(files) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def describe(series: Series) -> str:
    """One line on a series: verdict, files, shape, tags, where it lies."""
    shape = "" if series.shape_zyx is None else " x ".join(map(str, series.shape_zyx))
    detail = f" ({series.detail})" if series.detail else ""
    return (
        f"{series.reason:<28} {series.n_files:>5} {shape:<16} {tags(series):<32} "
        f"{where(series.refs)}{detail}"
    )


def tags(series: Series) -> str:
    """What tells reconstructions apart: kernel and its class, thickness, voltage, contrast."""
    if not series.key:
        return ""
    classes = [flag.removeprefix("kernel_") for flag in series.flags if flag.startswith("kernel_")]
    contrast = {True: "contrast", False: "no contrast", None: ""}[series.contrast]
    facts = (
        series.kernel,
        *classes,
        "" if series.slice_mm is None else f"{series.slice_mm:g} mm",
        "" if series.kvp is None else f"{series.kvp:g} kV",
        contrast,
    )
    return " ".join(fact for fact in facts if fact)
