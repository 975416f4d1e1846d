"""``--png``: a second of the run by thread, and each stage against its limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import StrMethodFormatter

from shards.stats import Span
from train.files import write_durably
from train.profile.lanes import Lane, lanes, queues
from train.profile.render import LIMITS, short, unit
from train.profile.result import STAGES, ProfileResult

_GREY, _PALE, _INK = "#6b7280", "#e5e7eb", "#111827"
_COLOURS = {
    "plan": "#8b5fbf",
    "fetch": "#2563a8",
    "decode": "#c9731c",
    "graph": "#2f8559",
    "consumer": "#9ca3af",
}
_WAITS = "#f3d9d9"
"""A thread that waits for the stage before."""
_WINDOW_S = 1.0
_EARLY = 0.25
"""Share of the run before the second that is drawn."""
_LIMITS = {
    "fetch": ("read",),
    "decode": ("codec", "memcpy"),
    "graph": ("h2d",),
    "consumer": ("cached_batches",),
}


def plot_profile(result: ProfileResult, path: Path, *, title: str) -> None:
    """Draw a profile.

    Args:
        result: with spans.
        path: where the PNG goes; written whole or not at all.
        title: the heading, e.g. dataset and preset.
    """
    start, drawn = _window(result.spans)
    threads = [lane for lane in lanes(drawn) if not lane.name.startswith("fetch ")]
    # A Figure of its own, not pyplot: no display is looked for and no global state is left behind.
    height = 5.6 + 0.26 * len(threads)
    figure = Figure(figsize=(10.0, height), layout="constrained", facecolor="white")
    head = f"{title}: {result.sets_per_s:.1f} sets/s, {result.bottleneck.name}-bound"
    figure.suptitle(head, x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes = figure.subplot_mosaic(
        [["time"], ["threads"], ["queues"], ["rates"]],
        height_ratios=[0.35, 0.5 + 0.26 * len(threads), 1.3, 2.3],
    )
    _time(axes["time"], result)
    _threads(axes["threads"], threads, start)
    _queues(axes["queues"], drawn, start)
    axes["queues"].sharex(axes["threads"])
    _rates(axes["rates"], result)
    write_durably(path, lambda file: figure.savefig(file, format="png", dpi=150))


def _window(spans: Sequence[Span]) -> tuple[float, list[Span]]:
    """Where a second of the run starts, and the pieces that touch it, cut to it."""
    in_threads = [span for span in spans if span.thread]
    if not in_threads:
        return 0.0, []
    first = min(span.start_s for span in in_threads)
    last = max(span.stop_s for span in in_threads)
    # Early in the run: what a set waited for is known only once it has been taken.
    start = first + max(0.0, min(_EARLY * (last - first), last - first - _WINDOW_S))
    stop = start + _WINDOW_S
    return start, [
        Span(
            span.stage,
            span.clock,
            span.thread,
            max(start, span.start_s),
            min(stop, span.stop_s),
            span.process,
        )
        for span in spans
        if span.start_s < stop and span.stop_s > start
    ]


def _time(axis: Axes, result: ProfileResult) -> None:
    """One bar: what the consumer's time went to."""
    left = 0.0
    for name, share in result.time.items():
        axis.barh(0, share, left=left, color=_COLOURS[name], height=0.8)
        if share >= 0.06:
            text = f"{name} {share:.0%}"
            axis.text(left + share / 2, 0, text, ha="center", va="center", color="white", size=8)
        left += share
    axis.set_xlim(0.0, 1.0)
    axis.axis("off")
    _head(axis, "The consumer's time: its own, and waiting for each stage")


def _threads(axis: Axes, threads: list[Lane], origin: float) -> None:
    """A row a thread."""
    for row, lane in enumerate(threads):
        # Longer pieces first: what happens inside of one is drawn over it.
        for span in sorted(lane.spans, key=lambda span: span.start_s - span.stop_s):
            colour = _COLOURS[span.stage]
            if span.clock == "wait_up_s":
                colour = _WAITS
            elif span.clock == "wait_down_s":
                colour = _COLOURS["consumer"]
            at = (span.start_s - origin, span.stop_s - span.start_s)
            axis.broken_barh([at], (row - 0.4, 0.8), facecolor=colour, linewidth=0)
    axis.set_yticks(range(len(threads)), [lane.name for lane in threads])
    axis.set_ylim(len(threads) - 0.4, -0.6)
    axis.set_xlim(0.0, _WINDOW_S)
    axis.tick_params(labelbottom=False)
    _tidy(axis)
    names = ("plan", "decode", "graph", "consumer")
    handles = [Patch(color=_COLOURS[name], label=name) for name in names]
    handles.append(Patch(color=_WAITS, label="waits for sets"))
    axis.legend(
        handles=handles,
        frameon=False,
        fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.05),
        handlelength=1.2,
    )
    _head(axis, "A second of the run by thread")


def _queues(axis: Axes, spans: list[Span], origin: float) -> None:
    """How many sets wait where."""
    colours = (_COLOURS["fetch"], _COLOURS["decode"], _GREY, _COLOURS["graph"])
    for (name, lengths), colour in zip(queues(spans).items(), colours, strict=True):
        # Pieces are cut to the window, so at its end all lengths would fall to 0.
        inside = [(at - origin, n) for at, n in lengths if at - origin < _WINDOW_S]
        at, count = zip(*inside, strict=True) if inside else ((0.0,), (0,))
        axis.step(
            [*at, _WINDOW_S],
            [*count, count[-1]],
            where="post",
            color=colour,
            linewidth=1.3,
            label=name,
        )
    axis.set_ylim(bottom=0.0)
    axis.set_xlabel("seconds", fontsize=8, color=_GREY)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.05))
    _tidy(axis)
    axis.grid(axis="y", color=_PALE, linewidth=0.7)
    _head(axis, "Sets, by what they wait for")


def _rates(axis: Axes, result: ProfileResult) -> None:
    """A bar a stage, its limits under it; other settings as dots."""
    row, ticks = 0.0, []
    most = max(_all_rates(result))
    least = min(_all_rates(result)) / 2.0
    for name in (*STAGES, "consumer"):
        if name != "consumer":
            stage = result.stages[name]
            others = [point.sets_per_s for point in stage.sweep if point.at != stage.at]
            _bar(axis, row, stage.sets_per_s, _COLOURS[name], least, beyond=others)
            axis.plot(
                others, [row] * len(others), "o", color="white", mec=_INK, ms=4, mew=0.8, ls=""
            )
            ticks.append((row, f"{name}, {stage.at} {unit(name, stage)}"))
            row += 1.0
        for limit in _LIMITS.get(name, ()):
            if limit in result.limits_sets_per_s:
                _bar(axis, row, result.limits_sets_per_s[limit], _PALE, least, height=0.5)
                ticks.append((row, LIMITS[limit]))
                row += 1.0
    axis.axvline(result.sets_per_s, color=_INK, linewidth=1.0, linestyle=":")
    text = f" end to end {short(result.sets_per_s)}"
    axis.text(result.sets_per_s, -0.75, text, fontsize=8, color=_INK, va="center")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_xlim(least, most * 2.0)
    axis.set_ylim(row - 0.5, -1.1)
    axis.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
    axis.set_xlabel("sets/s", fontsize=8, color=_GREY)
    _tidy(axis)
    _head(axis, "Each stage alone, limits in grey; dots: at other settings")


def _all_rates(result: ProfileResult) -> list[float]:
    points = [point.sets_per_s for stage in result.stages.values() for point in stage.sweep]
    return [*points, *result.limits_sets_per_s.values(), result.sets_per_s]


def _bar(
    axis: Axes,
    row: float,
    rate: float,
    colour: str,
    least: float,
    *,
    height: float = 0.8,
    beyond: Sequence[float] = (),
) -> None:
    """A bar and its rate, written where it covers none of the rates ``beyond``."""
    axis.barh(row, rate - least, left=least, color=colour, height=height)
    axis.annotate(
        short(rate),
        (max(rate, *beyond, 0.0), row),
        (6, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=_INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
    )


def _head(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=9, loc="left", color=_INK)


def _tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", color=_PALE, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8, colors=_GREY)
