"""Draws the README's figure from the recorded results: nothing is measured here, nothing made up.

    python -m benchmarks.figure            # docs/images/throughput.svg, anew
    python -m benchmarks.figure --check    # 1 if it is not drawn from the results in the repository

The same results give the same bytes. The file names the digest of the numbers that it shows, so
that one drawn by another version of matplotlib can be checked too.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FIGURE = ROOT / "docs" / "images" / "throughput.svg"
OURS, PALE, OTHERS, EVEN = "#1f6fab", "#a9c9e2", "#7f8b94", "#444444"
WIDTH_IN, ROW_IN = 9.0, 0.24
TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100)
INSIDE = 0.2
"""A bar of this share of the longest holds its number."""
PARTS = ("ours", "our decoder", "bare codec")
"""Rows of the loaders' comparison that are this project, or a part of it."""
LOADERS = {
    "ours stream": "ours, stream",
    "ours range": "ours, range",
    "webdataset 1": "webdataset, 1 worker",
    "webdataset 16": "webdataset, 16 workers",
    "DALI s3 reader": "DALI s3 reader",
    "DALI, 8 readers": "DALI s3, 8 readers",
    "litdata": "litdata, 2 workers",
}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Some bars."""

    title: str
    axis: str
    """What the numbers are."""
    bars: tuple[tuple[str, float], ...]
    note: str
    """Where and when they were measured."""
    log: bool = False
    """On a logarithmic axis, from 1 on: ratios."""
    even: float | None = None
    """Where a line says what would be as good as the other."""
    pale: tuple[str, ...] = ()
    """Bars that belong to the one above."""


def main(args: Sequence[str] | None = None) -> int:
    """Draw, or check; 0 when all is well."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figure", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--out", type=Path, default=FIGURE, help="the figure")
    options = parser.parse_args(args)
    drawn = panels(options.results)
    if options.check:
        if not options.out.exists() or digest(drawn) not in options.out.read_text():
            print(f"{options.out}: not drawn from these results; run python -m benchmarks.figure")
            return 1
        return 0
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(draw(drawn))
    print(f"{options.out}: {len(drawn)} panels")
    return 0


def panels(results: Path) -> list[Panel]:
    """What the records have to show."""
    stream = json.loads((results / "stream.json").read_text())
    found = [_regions(stream), _wire(stream)]
    loader = results / "loader.json"
    return ([_peers(json.loads(loader.read_text()))] if loader.exists() else []) + found


def _peers(loader: dict[str, Any]) -> Panel:
    """Crops from RAM or the page cache: ours over each peer, as usual and at its best, one core."""
    run = loader["runs"]["1.5mm"]
    forms: dict[str, list[tuple[float, str]]] = {}
    for case in run["cases"].values():
        if case["loader"] not in PARTS:
            found = (case["ours_over_it"], case["form"])
            forms.setdefault(case["loader"], []).append(found)
    bars, pale = [], []
    for name, found in sorted(forms.items(), key=lambda item: -_usual(item[1])):
        bars.append((name, _usual(found)))
        ratio, form = min(found)
        pale.append(f"its best: {form}")
        bars.append((pale[-1], ratio))
    where = f"{loader['machine']['cpu']}, 1 core, page cache, {run['rounds']} rounds"
    return Panel(
        title="Sets of 2 + 8 crops a second: ours over peers as their manuals have it, and at best",
        axis="times as many",
        bars=tuple(bars),
        pale=tuple(pale),
        note=f"{where}{_dated(run)}",
        log=True,
        even=1.0,
    )


def _usual(forms: Sequence[tuple[float, str]]) -> float:
    """The ratio to a peer as its manual has it."""
    return next(ratio for ratio, form in forms if form == "ordinary")


def _regions(stream: dict[str, Any]) -> Panel:
    found = stream["regions"]["medians"]
    rates = [(LOADERS.get(name, name), row["regions_per_s"]) for name, row in found.items()]
    run = stream["runs"]["regions"]
    return Panel(
        title="Regions of 129³ a second from a bucket",
        axis="regions/s",
        bars=tuple(sorted(rates, key=lambda bar: -bar[1])),
        note=f"emulated S3 (25 ms, 90 MB/s a connection), server and loader on\n"
        f"{_cpu(stream)}, {run['rounds']} rounds{_dated(run)}",
    )


def _wire(stream: dict[str, Any]) -> Panel:
    bars = [
        (f"{way}, {server}", found["efficiency"])
        for server, ways in stream["wire"].items()
        for way, found in ways.items()
        if "efficiency" in found
    ]
    run = stream["runs"]["wire"]
    return Panel(
        title="Bytes a second over raw ranged GETs",
        axis="share of the faster of two raw clients",
        bars=tuple(bars),
        note=f"same bytes, 32 at a time, servers on the same\n"
        f"{_cpu(stream)}, {run['rounds']} rounds{_dated(run)}",
        even=1.0,
    )


def _cpu(record: dict[str, Any]) -> str:
    return str(record["machine"]["cpu"])


def _dated(run: dict[str, Any]) -> str:
    return f", {run['date']}" if "date" in run else ""


def digest(drawn: Sequence[Panel]) -> str:
    """Of everything that the figure says."""
    said = json.dumps([asdict(panel) for panel in drawn], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def draw(drawn: Sequence[Panel]) -> bytes:
    """The figure as SVG: the same panels, the same bytes."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "coralbay", "font.size": 8.5}):
        from matplotlib.figure import Figure

        above, below = list(drawn[:-2]), list(drawn[-2:])
        heights = [_height(panel) for panel in above] + [max(map(_height, below))]
        figure = Figure(figsize=(WIDTH_IN, sum(heights)), layout="constrained", facecolor="white")
        grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
        for row, panel in enumerate(above):
            _draw(figure.add_subplot(grid[row, :]), panel)
        for column, panel in enumerate(below):
            _draw(figure.add_subplot(grid[len(above), column]), panel)
        out = io.BytesIO()
        named = {"Date": None, "Description": f"numbers sha256 {digest(drawn)}"}
        figure.savefig(out, format="svg", metadata=named)
    # Lines end as they are broken, not as the library pads them.
    return re.sub(rb"[ \t]+\n", b"\n", out.getvalue())


def _height(panel: Panel) -> float:
    return 1.25 + ROW_IN * len(panel.bars)


def _draw(axes: Any, panel: Panel) -> None:
    names, values = zip(*panel.bars, strict=True)
    places = range(len(values))
    colours = [
        PALE if name in panel.pale else OURS if _own(panel, name) else OTHERS for name in names
    ]
    start = 1.0 if panel.log else 0.0
    if panel.log:
        axes.set_xscale("log")
    lengths = [value - start for value in values]
    axes.barh(places, lengths, left=start, color=colours, height=0.72)
    for place, value, length in zip(places, values, lengths, strict=True):
        inside = not panel.log and length > INSIDE * max(lengths)
        axes.annotate(
            _number(value, panel),
            (max(value, start), place),
            xytext=(-3 if inside else 3, 0),
            textcoords="offset points",
            va="center",
            ha="right" if inside else "left",
            color="white" if inside else "black",
        )
    if panel.even is not None:
        axes.axvline(panel.even, color=EVEN, linewidth=0.8, linestyle=":")
    if panel.log:
        axes.set_xticks([tick for tick in TICKS if tick <= 1.4 * max(values)], minor=False)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(panel.title, loc="left", fontsize=9.5, fontweight="bold")
    axes.set_xlabel(f"{panel.axis}\n{panel.note}", fontsize=7.5, color=EVEN, loc="left")


def _number(value: float, panel: Panel) -> str:
    if panel.log:
        return f"{value:.1f} x"
    return f"{value:.2f}" if max(number for _, number in panel.bars) < 2 else f"{value:.0f}"


def _own(panel: Panel, name: str) -> bool:
    """A bar of this project: all of them where ratios to others are shown."""
    return panel.even is not None or name.startswith("ours")


if __name__ == "__main__":
    sys.exit(main())
