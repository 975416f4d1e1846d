"""Runs the named benchmarks in their quick form and compares their ratios with the recorded ones.

Fails when a ratio has lost more than its tolerance. Times are never compared. Where other work has
the cores, a ratio by the clock on the wall that is too low is neither red nor green: exit code 3.
The record is made by the full forms (`make bench-stream` and so on), which take longer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import ratios
from benchmarks.scenarios import SCENARIOS, Scenario, by_name

ROOT = Path(__file__).parents[1]
BUSY = 0.75
"""Load before the start, a core, from which on the machine counts as busy with other work."""
RESULTS = ROOT / "benchmarks" / "results"
CT_DATA = ROOT.parent / "shared" / "data" / "ct"


def main(args: Sequence[str] | None = None) -> int:
    """Run and compare; 0 if nothing regressed, 1 if something did, 2: cannot run, 3: too busy."""
    options = _parser().parse_args(args)
    if options.list:
        print("\n".join(listing()))
        return 0
    try:
        chosen = [by_name(name) for name in options.scenarios] or list(SCENARIOS)
    except ValueError as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 2
    result = {}
    for scenario in chosen:
        result[scenario.name] = run(scenario, options)
        print("\n".join(_lines(scenario, result[scenario.name])), flush=True)
    print(json.dumps(result))
    if options.scenarios and any("not_run" in found for found in result.values()):
        return 2
    if any(found.get("red") for found in result.values()):
        return 1
    return 3 if any(found.get("too_busy") for found in result.values()) else 0


def run(scenario: Scenario, options: argparse.Namespace) -> dict[str, Any]:
    """One scenario: why it was not run, or its ratios."""
    record = options.results / scenario.result
    why = missing(scenario, options)
    if why is None and not record.exists():
        why = f"nothing is recorded in {record.name}"
    if why is not None:
        return {"not_run": why}
    began, load = time.perf_counter(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="coralbay-bench-") as scratch:
        out = Path(scratch) / scenario.result
        code = execute(scenario, options, out)
        if not out.exists():
            return {"red": [f"{scenario.command[0]} ended with {code} and no result"]}
        now = json.loads(out.read_text())
    busy = load > (os.cpu_count() or 1) * BUSY
    rows = ratios.compare(scenario.ratios, json.loads(record.read_text()), now, busy=busy)
    return {
        "seconds": round(time.perf_counter() - began),
        "load_before": round(load, 1),
        "ratios": [asdict(row) for row in rows],
        "red": [row.name for row in rows if row.verdict in ratios.RED],
        "too_busy": [row.name for row in rows if row.verdict == "TOO BUSY"],
    }


def execute(scenario: Scenario, options: argparse.Namespace, out: Path) -> int:
    """Run the quick form; its exit code. What it prints goes to standard error.

    A missed aim is no failure here: the record says which of them a scenario misses.
    """
    values = {
        "out": out,
        "peers": options.peers,
        "envs": options.envs,
        "ct_data": options.ct_data,
        "data": options.data,
    }
    module, *arguments = scenario.command
    options.data.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", module, *(word.format(**values) for word in arguments)]
    return subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode


def missing(scenario: Scenario, options: argparse.Namespace) -> str | None:
    """What a scenario needs and is not there, in words."""
    if "ct-data" in scenario.needs and not options.ct_data.is_dir():
        return f"no real CT at {options.ct_data} (--ct-data)"
    if "peers" in scenario.needs and not shutil.which(str(options.peers)):
        return f"no environment of peers at {options.peers} (`make bench` makes it)"
    if "envs" in scenario.needs and not options.envs.is_dir():
        return f"no environments of peers in {options.envs} (`make bench` makes them)"
    if "gpu" in scenario.needs and not _has_gpu():
        return "this machine has no CUDA GPU"
    return None


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def listing() -> list[str]:
    """What there is, for people."""
    lines = []
    for scenario in SCENARIOS:
        recorded = "recorded" if (RESULTS / scenario.result).exists() else "not recorded"
        needs = f"; needs {', '.join(scenario.needs)}" if scenario.needs else ""
        lines.append(f"{scenario.name}: {scenario.measures}")
        lines.append(f"    {recorded} in {scenario.result}; {scenario.minutes:g} min{needs}")
        for ratio in scenario.ratios:
            room = f"{ratio.tolerance:.0%}" if ratio.tolerance else "exact"
            lines.append(f"    {' '.join(ratio.path)}: {room}, {ratio.better} is right")
    return lines


def _lines(scenario: Scenario, found: dict[str, Any]) -> list[str]:
    if "not_run" in found:
        return [f"{scenario.name}: not run: {found['not_run']}"]
    if "ratios" not in found:
        return [f"{scenario.name}: FAILED: {found['red'][0]}"]
    rows = [ratios.Row(**row) for row in found["ratios"]]
    took = f"{found['seconds']} s, load {found['load_before']} before"
    head = f"{scenario.name}: {scenario.measures} ({took})"
    end = f"  {len(rows)} ratios, {len(found['red'])} red"
    if found["too_busy"]:
        end += f", {len(found['too_busy'])} not judged: run it again on an idle machine"
    return [head, *ratios.table(rows), end]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("scenarios", nargs="*", help="by name; all of them if none is given")
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    parser.add_argument("--peers", default="", help="Python of the peers' environment")
    parser.add_argument(
        "--envs", type=Path, default=ROOT / "runs/loader-peers", help="one environment a peer"
    )
    parser.add_argument("--ct-data", type=Path, default=CT_DATA, help="folder of real CT")
    parser.add_argument("--data", type=Path, default=ROOT / "runs", help="where inputs are made")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    return parser


if __name__ == "__main__":
    sys.exit(main())
