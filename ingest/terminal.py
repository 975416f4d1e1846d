"""What a person sees while a build runs, on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ingest.paths import place
from ingest.scan import ScanResult
from ingest.series import Series
from ingest.sources import FileRef
from ingest.spool import Outcome

MAX_PATHS = 3
"""Files named for a refused series; the rest is counted."""
FILES_PER_LINE = 10_000
"""How often the plain form says how far the scan is."""


class Terminal:
    """A ``Listener`` that talks to a person. Paths appear here and nowhere else."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.started = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._scanning = self._bar.add_task("scanning files", total=None)
        self._building = self._bar.add_task("building shards", total=None, visible=False)

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

    def files(self, count: int) -> None:
        """Files seen so far."""
        self._bar.update(self._scanning, completed=count)
        if not self.console.is_terminal and count % FILES_PER_LINE == 0:
            self.say(f"scanned {count} files")

    def planned(self, found: ScanResult, groups: int) -> None:
        """The scan is over."""
        self._bar.update(self._scanning, visible=False)
        self._bar.update(self._building, total=groups, visible=True)
        self.say(f"scanned {found.n_files} files: {len(found.series)} series and stray files")

    def group_done(self, done: int, groups: int) -> None:
        """One more shard is there."""
        self._bar.update(self._building, completed=done)
        if not self.console.is_terminal:
            self.say(f"built {done} of {groups} shards")

    def refused(self, series: Series, outcome: Outcome) -> None:
        """Name what is not taken, where it lies, and why."""
        detail = f" ({outcome.detail})" if outcome.detail else ""
        self.say(f"refused {outcome.reason}: {where(series.refs)}{detail}")

    def say(self, line: str) -> None:
        """One line, above the bar; nothing in it is markup."""
        self.console.print(line, markup=False, emoji=False)


def where(refs: Sequence[FileRef]) -> str:
    """The first few files of a series, for a person."""
    names = [place(ref) for ref in refs[:MAX_PATHS]]
    more = len(refs) - len(names)
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
