"""Time from ``CTLoader()`` to the first batch, with shards of 512 MB on the emulated storage."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.stream_data import BUCKET
from benchmarks.stream_protocol import Subject
from shards.testing.emulator import emulator

GATE_S = 2.0
BATCH = 4
MODES = ("auto", "stream", "range")
K = 2
"""The loader's default."""


def measure(bucket: Path, rounds: int) -> dict[str, Any]:
    """A new process each time; the modes in turn."""
    runs: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    start = [sys.executable, "-m", "benchmarks.stream_ours", "first", "--k", str(K)]
    with emulator(bucket.parent) as server, tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            for mode in MODES:
                asked = ["--mode", mode, "--batch", str(BATCH), f"s3://{BUCKET}/big"]
                log = Path(scratch) / "log"
                with Subject("first", [*start, *asked], server.environment, log) as subject:
                    runs[mode].append(subject.facts)
                first = runs[mode][-1]["first_batch_s"]
                print(f"first batch round {number + 1} {mode}: {first:.2f} s", file=sys.stderr)
    return {mode: summarise(done) for mode, done in runs.items()}


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians; the counters of the run with the median time."""
    middle = sorted(runs, key=lambda run: run["first_batch_s"])[len(runs) // 2]
    result = {
        field: round(statistics.median(run[field] for run in runs), 3)
        for field in ("first_batch_s", "open_s", "import_s")
    }
    return result | {
        "all_s": [round(run["first_batch_s"], 3) for run in runs],
        "mode": middle["mode"],
        "batch": BATCH,
        "shapes": middle["shapes"],
        "fetched_till_then": middle["counters"],
        "gate_s": GATE_S,
        "passed": result["first_batch_s"] <= GATE_S,
    }


def table(result: dict[str, Any]) -> list[str]:
    """Lines for people."""
    lines = [
        "first batch".ljust(22) + f"{'seconds':>10}{'of it open':>12}{'imports':>9}"
        f"{'MB read':>9}{'asked':>8}{'GETs':>6}   till then"
    ]
    for asked, found in result.items():
        counters = found["fetched_till_then"]
        name = asked if asked == found["mode"] else f"{asked} ({found['mode']})"
        lines.append(
            f"  {name:20}{found['first_batch_s']:10.2f}{found['open_s']:12.2f}"
            f"{found['import_s']:9.2f}{counters.get('bytes_wire', 0) / 1e6:9.0f}"
            f"{counters.get('bytes_asked', 0) / 1e6:8.0f}{counters.get('requests', 0):6d}"
            f"   (gate {found['gate_s']:.0f} s)"
        )
    return lines
