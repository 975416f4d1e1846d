"""The guard of the hot path: exact counters, compared with the recorded ones. Any change is red.

A counter that changes for the better is red as well, so that it is recorded and cannot be lost
again: ``--record "why"`` writes ``benchmarks/results/guard.json`` anew. No time is measured: the
result is the same on a busy machine. `docs/benchmarks.md` says what each counter is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.guard_data import BUCKET, describe, write_data
from benchmarks.guard_flow import Way, count, peak_in_flight
from benchmarks.guard_memory import count_memory, count_views
from benchmarks.guard_words import cause
from shards.plan import PLAN_VERSION
from shards.testing.emulator import emulator

RECORD = Path(__file__).parent / "results" / "guard.json"
PACKAGES = ("numcodecs", "numpy", "obstore", "torch", "nvidia-dali-cuda130")
Counters = dict[str, int]
Change = tuple[str, str, int | None, int | None, str]
"""(scenario, counter, recorded, now, likely cause)"""


def main(args: Sequence[str] | None = None) -> int:
    """Count and compare; 0 when nothing has changed, 1 when something has, 2 without a record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__)
    parser.add_argument("--record", metavar="WHY", help="take what is found as right, and why")
    parser.add_argument("--file", type=Path, default=RECORD, help="where it is recorded")
    options = parser.parse_args(args)
    if options.record is None and not options.file.exists():
        print(f"guard: {options.file}: nothing is recorded; use --record", file=sys.stderr)
        return 2
    recorded = json.loads(options.file.read_text()) if options.file.exists() else {}
    began = time.perf_counter()
    found = measure(recorded.get("counters", {}) if options.record is None else {})
    seconds = time.perf_counter() - began
    n_counters = sum(map(len, found["counters"].values()))
    if options.record is not None:
        options.file.write_text(json.dumps({"why": options.record} | found, indent=1) + "\n")
        print(f"guard: {n_counters} counters recorded in {seconds:.0f} s; look at the diff")
        return 0
    changes = compare(recorded, found)
    print("\n".join(table(changes, recorded, found)))
    if not changes:
        print(f"guard: {n_counters} counters as recorded ({seconds:.0f} s)")
    return 1 if changes else 0


def measure(recorded: dict[str, Counters]) -> dict[str, Any]:
    """All counters, and what they were counted on."""
    with tempfile.TemporaryDirectory() as scratch, storage(Path(scratch)) as (bucket, server):
        counters = {name: part() for name, part in scenarios(bucket, server, recorded).items()}
        data = describe(bucket)
    return {
        "data": data,
        "plan_version": PLAN_VERSION,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "counters": counters,
    }


@contextmanager
def storage(folder: Path) -> Iterator[tuple[Path, Any]]:
    """The datasets in a bucket folder, and a server of them that has no latency."""
    bucket = write_data(folder)
    with emulator(folder, 0.0, inf) as server, patch.dict(os.environ, server.environment):
        yield bucket, server


def scenarios(
    bucket: Path, server: Any, recorded: dict[str, Counters]
) -> dict[str, Callable[[], Counters]]:
    """What is counted, by name."""
    ways = {
        f"{mode} {where}": Way(mode=mode, url=url, server=counts)
        for where, url, counts in (
            ("folder", bucket / "balanced", None),
            ("s3", f"s3://{BUCKET}/balanced", server),
        )
        for mode in ("range", "stream")
    }
    gpu = Way(mode="range", url=bucket / "gpu")
    parts: dict[str, Callable[[], Counters]] = {}
    for name, way in ways.items():
        parts[name] = partial(flow, way, recorded.get(name, {}))
    for name in ("range folder", "range s3"):
        parts[f"memory {name}"] = partial(count_memory, ways[name])
    parts["memory gpu profile"] = partial(count_memory, gpu)
    parts["views"] = partial(count_views, ways["range folder"])
    return parts


def flow(way: Way, recorded: Counters) -> Counters:
    """What a loader that runs takes, and how much of it at once."""
    return count(way) | {"peak_in_flight": peak_in_flight(way, recorded.get("peak_in_flight"))}


def compare(recorded: dict[str, Any], found: dict[str, Any]) -> list[Change]:
    """All counters that are not as recorded, in both directions."""
    changes: list[Change] = []
    before, after = recorded["counters"], found["counters"]
    for scenario in dict.fromkeys([*before, *after]):
        was, now = before.get(scenario, {}), after.get(scenario, {})
        names = dict.fromkeys([*was, *now])
        differences = {name: now.get(name, 0) - was.get(name, 0) for name in names}
        for name in names:
            if was.get(name) != now.get(name):
                why = cause(name, was.get(name), now.get(name), differences)
                changes.append((scenario, name, was.get(name), now.get(name), why))
    return changes


def table(changes: Sequence[Change], recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What changed, for people."""
    if not changes:
        return []
    lines = [f"{'scenario':20}{'counter':22}{'recorded':>14}{'now':>14}   likely cause"]
    for scenario, name, was, now, why in changes:
        lines.append(f"{scenario:20}{name:22}{_number(was):>14}{_number(now):>14}   {why}")
    if recorded["data"] != found["data"]:
        lines.append("The input is not what was recorded: volumes, writer or codec have changed.")
    if recorded.get("plan_version") != found["plan_version"]:
        lines.append("The plan has another version: visits and boxes lie elsewhere.")
    for name, now_version in found["versions"].items():
        was_version = recorded["versions"].get(name)
        if was_version != now_version:
            lines.append(f"{name} was {was_version} and is {now_version}.")
    lines.append('Right as it is? make bench-guard RECORD="why", and commit the diff.')
    return lines


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


if __name__ == "__main__":
    sys.exit(main())
