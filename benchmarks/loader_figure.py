"""Draws the loader benchmark from its JSON: ours over each peer, on one core.

``python -m benchmarks.loader_figure benchmarks/results/loader.json FILE.png``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLOURS = {"ordinary": "#b0b7bf", "one read": "#5b8db8", "int16": "#2f5d82"}


def draw(result: dict[str, Any], target: Path) -> None:
    """A panel for each run on one core; a bar for each peer and form, a line where both are equal.

    Args:
        result: what ``benchmarks.loader`` recorded.
        target: image to write; its suffix says which kind.
    """
    from matplotlib.figure import Figure

    runs = {name: run for name, run in result["runs"].items() if run["cores"] == 1}
    figure = Figure(figsize=(5.2 * len(runs), 5.4), layout="constrained")
    for axes, (name, run) in zip(
        figure.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True
    ):
        _panel(axes, name, run)
    cpu = result["machine"]["cpu"]
    figure.suptitle(f"Sets of crops a second and core:\nours over others ({cpu})", fontsize=11)
    figure.savefig(target, dpi=150)


def _panel(axes: Any, name: str, run: dict[str, Any]) -> None:
    peers = {key: row for key, row in run["cases"].items() if row["form"] in COLOURS}
    rows = list(peers.values())[::-1]
    ratios = [row["ours_over_it"] for row in rows]
    axes.barh(
        [f"{row['loader']}, {row['form']}" for row in rows],
        ratios,
        color=[COLOURS[row["form"]] for row in rows],
    )
    for place, ratio in enumerate(ratios):
        axes.text(ratio * 1.05, place, f"{ratio:.1f}", va="center", fontsize=8)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(right=2 * max(ratios))
    axes.tick_params(axis="y", labelsize=8)
    axes.set_title(f"{name}: {run['data']['volumes']} volumes", fontsize=9)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
