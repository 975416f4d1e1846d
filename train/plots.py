"""``loss.png``: the run at a glance, for a person."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy import ndarray

from train.files import write_durably
from train.metrics import StepRecord

_BLUE, _AMBER, _GREEN, _GREY = "#2563a8", "#c9731c", "#2f8559", "#6b7280"
_LEVEL_SHADES = ("#a8c8e8", "#7aa9d6", "#4c88bf", "#2563a8", "#123c6b", "#0a1f3a")
"""Levels of the multi-scale vector, shallow (light) to deep (dark)."""
_SMOOTHED_SHARE = 0.05
"""Share of the run that the smoothed loss averages over."""


def plot_run(records: Sequence[StepRecord], path: Path, *, title: str) -> None:
    """Draw loss, data wait, teacher entropy and level variance over the steps.

    Args:
        records: at least one, in order.
        path: where the PNG goes; written whole or not at all.
        title: the heading, e.g. the preset and the number of steps.
    """
    # A Figure of its own, not pyplot: no display is looked for and no global state is left behind.
    figure = Figure(figsize=(9.0, 6.4), layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes = figure.subplot_mosaic(
        [["loss"] * 3, ["wait", "entropy", "variance"]], height_ratios=[1.6, 1.0]
    )
    step = np.array([record.step for record in records])
    _loss(axes["loss"], step, np.array([record.loss for record in records]))
    _line(axes["wait"], step, [record.data_wait for record in records], "Data wait", _AMBER)
    axes["wait"].yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    _line(
        axes["entropy"],
        step,
        [r.teacher_entropy for r in records],
        "Teacher entropy (1 is uniform)",
        _GREEN,
    )
    # Below a tenth of the entropy of a uniform target, the teacher names one prototype for all.
    axes["entropy"].axhline(0.1, color=_GREY, linewidth=0.8, linestyle=":")
    axes["entropy"].annotate(
        "collapse", (step[0], 0.1), (0, 2), textcoords="offset points", fontsize=7, color=_GREY
    )
    for name in ("wait", "entropy"):
        axes[name].set_ylim(0.0, 1.03)
    _variance(axes["variance"], step, np.array([record.level_variance for record in records]))
    for axis in axes.values():
        _tidy(axis)
    write_durably(path, lambda file: figure.savefig(file, format="png", dpi=150))


def smooth(values: Float64[ndarray, " n"], window: int) -> Float64[ndarray, " n"]:
    """Mean of each value and the up to ``window - 1`` values before it."""
    sums = np.cumsum(values)
    sums[window:] -= sums[:-window].copy()
    mean: Float64[ndarray, " n"] = sums / np.minimum(np.arange(1, len(values) + 1), window)
    return mean


def _loss(axis: Axes, step: ndarray, loss: Float64[ndarray, " n"]) -> None:
    window = max(1, round(_SMOOTHED_SHARE * len(loss)))
    if window > 1:
        axis.plot(step, loss, color=_BLUE, alpha=0.3, linewidth=0.9, label="each step")
        label = f"mean of {window} steps"
        axis.plot(step, smooth(loss, window), color=_BLUE, linewidth=1.8, label=label)
        axis.legend(frameon=False, fontsize=8, loc="upper right")
    else:
        axis.plot(step, loss, color=_BLUE, linewidth=1.8, marker="o", markersize=3)
    axis.set_title("Loss (DINO cross-entropy, nats)", fontsize=9, loc="left", color="#111827")


def _line(axis: Axes, step: ndarray, values: list[float], title: str, colour: str) -> None:
    marker = "o" if len(step) == 1 else None
    axis.plot(step, values, color=colour, linewidth=1.3, marker=marker, markersize=3)
    axis.set_title(title, fontsize=9, loc="left", color="#111827")


def _variance(axis: Axes, step: ndarray, levels: Float64[ndarray, "n levels"]) -> None:
    marker = "o" if len(step) == 1 else None
    for number, values in enumerate(levels.T):
        colour = _LEVEL_SHADES[number % len(_LEVEL_SHADES)]
        label = str(number)
        axis.plot(
            step, values, color=colour, linewidth=1.2, label=label, marker=marker, markersize=3
        )
    if (levels > 0).any():
        axis.set_yscale("log")
    axis.set_title("Variance, 0 shallow to deep", fontsize=9, loc="left", color="#111827")
    # Beside the lines, deepest on top as the lines mostly are: levels may lie anywhere.
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(
        handles[::-1],
        labels[::-1],
        frameon=False,
        fontsize=7,
        title="level",
        title_fontsize=7,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        handlelength=1.2,
        borderaxespad=0.0,
    )


def _tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e5e7eb", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8, colors=_GREY)
    axis.set_xlabel("step", fontsize=8, color=_GREY)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
