"""What a report says of its series: counted and listed in one pass, in bounded space.

A dataset may hold 10⁶ series. Reasons, flags and histogram bins are few; of the series behind each,
the first by id are kept as examples, and ``series.parquet`` has them all.
"""

from __future__ import annotations

import bisect
import html
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ingest.stack import REGRIDDED
from ingest.words import sentence

EXAMPLES = 20
"""Series listed for a reason, or for a flag."""
MAX_LISTS = 60
"""Reasons, or flags, whose series are listed; the most frequent ones."""
_SPACING_EDGES_MM = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 10.0)


@dataclass(frozen=True, kw_only=True, order=True)
class Example:
    """A series as it is listed; ordered by id, so that any order of rows gives the same list."""

    series_id: str
    detail: str
    n_files: int
    n_slices: int


@dataclass
class Listing:
    """Series that share a reason or a flag: how many, how many files, and the first few."""

    series: int = 0
    files: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, example: Example) -> None:
        """Count a series; keep it if it is among the first by id."""
        self.series += 1
        self.files += example.n_files
        if len(self.examples) < EXAMPLES or example < self.examples[-1]:
            bisect.insort(self.examples, example)
            del self.examples[EXAMPLES:]


@dataclass
class Bins:
    """Counts over the bins of spacings; the last one is open."""

    counts: list[float] = field(default_factory=lambda: [0.0] * len(_SPACING_EDGES_MM))

    def add(self, mm: float) -> None:
        """Count a value."""
        # A hair of tolerance keeps 2.5 mm computed from positions in the bin that 2.5 opens.
        self.counts[max(0, bisect.bisect_right(_SPACING_EDGES_MM, mm + 1e-4) - 1)] += 1

    @property
    def bars(self) -> tuple[list[float], list[str]]:
        """Counts, and the left edge of each bin in mm."""
        return self.counts, [f"{edge:g}" for edge in _SPACING_EDGES_MM]


@dataclass
class Tally:
    """All that the page says of the rows of ``series.parquet``."""

    refused: dict[str, Listing] = field(default_factory=dict)
    """By reason."""
    flagged: dict[str, Listing] = field(default_factory=dict)
    """Accepted series by flag."""
    geometry: Counter[str] = field(default_factory=Counter)
    """Accepted series that were regridded, by geometry."""
    slice_mm: Bins = field(default_factory=Bins)
    pixel_mm: Bins = field(default_factory=Bins)


def tally(rows: Iterable[Mapping[str, Any]]) -> Tally:
    """One pass over the rows, in any order."""
    total = Tally()
    for row in rows:
        example = Example(
            series_id=row["series_id"],
            detail=row["detail"],
            n_files=row["n_files"],
            n_slices=row["n_slices"],
        )
        if row["verdict"] == "refused":
            total.refused.setdefault(row["reason"], Listing()).add(example)
            continue
        for flag in row["flags"]:
            total.flagged.setdefault(flag, Listing()).add(example)
        if row["geometry"] in REGRIDDED:
            total.geometry[row["geometry"]] += 1
        total.slice_mm.add(row["spacing_zyx_mm"][0])
        total.pixel_mm.add(row["spacing_zyx_mm"][2])
    return total


def refused_html(refused: Mapping[str, Listing]) -> str:
    """Table of reasons, the most frequent first, and examples of each."""
    if not refused:
        return "<p>Nothing was refused.</p>"
    ordered = _by_count(refused)
    lines = [
        f"<tr><td>{html.escape(sentence(reason))}</td><td><code>{html.escape(reason)}</code></td>"
        f"<td class=n>{one.series:,}</td><td class=n>{one.files:,}</td></tr>"
        for reason, one in ordered
    ]
    head = "<tr><th>Why</th><th>Code</th><th class=n>Series</th><th class=n>Files</th></tr>"
    lists = "".join(_examples(sentence(reason), one) for reason, one in ordered[:MAX_LISTS])
    return (
        f"<table>{head}{''.join(lines)}</table><details><summary>Examples of each, with what was "
        f"found</summary>{lists}</details>"
    )


def flagged_html(flagged: Mapping[str, Listing]) -> str:
    """Flags of accepted series, the most frequent first, with what was measured of examples."""
    if not flagged:
        return "<p>Nothing was noticed on the series that were taken.</p>"
    lists = "".join(_examples(flag, one) for flag, one in _by_count(flagged)[:MAX_LISTS])
    return f"<p>What was noticed and handled, by flag, and what was measured.</p>{lists}"


def _by_count(listings: Mapping[str, Listing]) -> list[tuple[str, Listing]]:
    return sorted(listings.items(), key=lambda item: (-item[1].series, item[0]))


def _examples(title: str, listing: Listing) -> str:
    """A list that opens with a click."""
    lines = "".join(
        f"<tr><td><code>{html.escape(one.series_id)}</code></td>"
        f"<td>{html.escape(one.detail)}</td>"
        f"<td class=n>{one.n_files:,}</td></tr>"
        for one in listing.examples
    )
    hidden = listing.series - len(listing.examples)
    more = f"<p>and {hidden:,} more in <code>series.parquet</code></p>" if hidden else ""
    head = "<tr><th>Series</th><th>Detail</th><th class=n>Files</th></tr>"
    return (
        f"<details><summary>{html.escape(title)} <span>{listing.series:,} series</span></summary>"
        f"<table>{head}{lines}</table>{more}</details>"
    )
