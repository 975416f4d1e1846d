"""Our loader beside others: sets of crops a second and core, on the same volumes, in turn.

A set is 2 crops of 96³ and 8 of 48³ of one real CT at random whole voxels, delivered as CPU tensors
in batches of 4, from a warm page cache or RAM. Every loader is a process of its own in its own
environment, held to the same cores; what it delivers is compared with the volumes before anything
is timed. A table for people, then one line of JSON; the exit code is 1 when an aim is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loader_cases import CODEC, DECODE, DECODE_GATE, GATES, OURS, Case, taking_part
from benchmarks.loader_check import Volumes, WrongCropError, check_sets
from benchmarks.loader_data import describe, make_data, make_form, volumes, warm
from benchmarks.stream_protocol import Subject

ROOT = Path(__file__).parents[1]
CT_DATA = ROOT.parent / "shared" / "data" / "ct"
WARM_S, MEASURE_S = 0.15, 0.7
WIDE_WARM_S = 0.5
"""Workers have batches ready from while the others had their turn."""
CHECKED_SETS = 4
PACKAGES = {
    "": ("coralbay", "torch", "numpy", "numcodecs", "nvidia-dali-cuda130", "monai"),
    "torchio": ("torchio", "torch", "numpy", "simpleitk"),
    "nnunet": ("nnunetv2", "blosc2", "torch", "numpy"),
    "webdataset": ("webdataset", "torch", "numpy"),
    "litdata": ("litdata", "torch", "numpy"),
    "zarr": ("zarr", "numcodecs", "numpy"),
}


@dataclass(frozen=True)
class Run:
    """On which volumes and how many cores the loaders take turns."""

    spacing_mm: float
    cores: int


RUNS = {"1.5mm": Run(1.5, 1), "1mm": Run(1.0, 1), "1.5mm-2-cores": Run(1.5, 2)}


def main(args: Sequence[str] | None = None) -> int:
    """Measure, print, record; 0 when no aim is missed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument("only", nargs="*", help="loaders to take part beside ours; all if none")
    parser.add_argument("--rounds", type=int, default=7, help="turns of everybody")
    parser.add_argument("--runs", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument("--ct-data", type=Path, default=CT_DATA, help="folder of real CT")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/loader", help="of the volumes")
    parser.add_argument("--envs", type=Path, help="folder of the peers' environments")
    parser.add_argument("--out", type=Path, help="file to write the JSON to")
    options = parser.parse_args(args)
    only = {*options.only, OURS.loader, DECODE.loader, CODEC.loader} if options.only else ()
    envs = options.envs.resolve() if options.envs else None
    result: dict[str, Any] = {"scenario": "loader", "runs": {}}
    for name in options.runs:
        run = RUNS[name]
        data = make_data(options.ct_data, options.folder, run.spacing_mm)
        cases = taking_part(envs, run.cores, only)
        make_forms(data, envs, cases)
        warm(data)
        result["runs"][name] = measure(data, envs, cases, run.cores, options.rounds)
    result |= {"machine": machine(envs), "missed": missed(result)}
    print("\n".join(table(result)))
    line = json.dumps(result)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(line + "\n")
    print(line)
    return 1 if result["missed"] else 0


def make_forms(data: Path, envs: Path | None, cases: Sequence[Case]) -> None:
    """Each peer's own form of the volumes, written once."""
    for case in cases:
        if case.env and case.disk == case.env:
            assert envs is not None
            make_form(data, envs / case.env / "bin/python", f"loader_{case.env}.py", case.disk)


def measure(
    data: Path, envs: Path | None, cases: Sequence[Case], cores: int, rounds: int
) -> dict[str, Any]:
    """All cases on some cores: checked, then in turn ``rounds`` times."""
    load, began = os.getloadavg()[0], time.time()
    stored = Volumes(volumes(data))
    turns: dict[str, list[dict[str, float]]] = {case.name: [] for case in cases}
    checked: dict[str, int] = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coralbay-bench-")))
        subjects = {}
        for case in cases:
            subject = started(data, envs, case, cores, scratch)
            subjects[case.name] = stack.enter_context(subject)
            checked[case.name] = check(stored, case, subject, scratch)
        for number in range(rounds):
            # Each comes first in turn, so that nobody always follows the same one.
            for case in np.roll(np.array(cases, dtype=object), number).tolist():
                turns[case.name].append(one_turn(subjects[case.name], cores))
            fastest = {name: done[-1]["sets_per_s"] for name, done in turns.items()}
            print(f"{cores} cores, round {number + 1}: {fastest}", file=sys.stderr)
    return {
        "cores": cores,
        "data": describe(data),
        "rounds": rounds,
        "seconds": round(time.time() - began),
        "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
        "load_before_and_after": [round(load, 1), round(os.getloadavg()[0], 1)],
        "checked_boxes": checked,
        **summarise(cases, turns),
    }


def started(data: Path, envs: Path | None, case: Case, cores: int, scratch: Path) -> Subject:
    """A case as a process of its own on the first cores."""
    threads = {name: str(cores) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    log = scratch / f"{re.sub(r'[^a-z0-9]+', '-', case.name.lower())}.log"
    # Where a peer writes what it keeps goes with this folder.
    environment = {**threads, "TMPDIR": str(scratch)}
    return Subject(case.name, case.start(data.resolve(), envs, cores), environment, log)


def check(stored: Volumes, case: Case, subject: Subject, scratch: Path) -> int:
    """Compare what a case delivers with the volumes; how many boxes were equal.

    Raises:
        WrongCropError: one was not.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        found = subject.check(CHECKED_SETS, Path(folder))
        try:
            return check_sets(found, stored, case.kinds)
        except WrongCropError as exc:
            raise WrongCropError(f"{case.name}: {exc}") from exc


def one_turn(subject: Subject, cores: int) -> dict[str, float]:
    """One loader alone."""
    cpu = subject.cpu_s()
    found = subject.run(WARM_S if cores == 1 else WIDE_WARM_S, MEASURE_S)
    cpu = subject.cpu_s() - cpu
    return {
        "sets_per_s": round(found["units"] / found["seconds"], 3),
        "cpu_ms_per_set": round(1e3 * cpu / found["units_all"], 3),
    }


def summarise(cases: Sequence[Case], turns: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians, and the medians of the rounds' ratios of ours to each other case."""
    rows = {}
    for case in cases:
        done = turns[case.name]
        rows[case.name] = {
            "loader": case.loader,
            "form": case.form,
            "values": case.values,
            "sets_per_s": statistics.median(turn["sets_per_s"] for turn in done),
            "cpu_ms_per_set": statistics.median(turn["cpu_ms_per_set"] for turn in done),
            "ours_over_it": _ratio(turns[OURS.name], done, "sets_per_s"),
            "ours_over_it_by_cpu_time": _ratio(done, turns[OURS.name], "cpu_ms_per_set"),
            "turns": [turn["sets_per_s"] for turn in done],
        }
    result: dict[str, Any] = {"cases": rows, "gates": {}}
    for loader, gate in GATES.items():
        for row in [row for row in rows.values() if row["loader"] == loader]:
            passed = row["ours_over_it"] >= gate
            result["gates"][f"{loader}, {row['form']}"] = {
                "gate": gate,
                "ratio": row["ours_over_it"],
                "passed": passed,
            }
    if DECODE.name in turns:
        ratio = _ratio(turns[DECODE.name], turns[CODEC.name], "sets_per_s")
        passed = ratio >= DECODE_GATE
        found = {"gate": DECODE_GATE, "ratio": ratio, "passed": passed}
        result["gates"][f"{DECODE.name} over {CODEC.name}"] = found
    return result


def _ratio(
    above: Sequence[dict[str, float]], below: Sequence[dict[str, float]], field: str
) -> float:
    pairs = zip(above, below, strict=True)
    return round(statistics.median(a[field] / b[field] for a, b in pairs), 3)


def missed(result: dict[str, Any]) -> list[str]:
    """The aims that were missed, on one core: they are a core's."""
    return [
        f"{run}: {name}"
        for run, found in result["runs"].items()
        for name, gate in found["gates"].items()
        if found["cores"] == 1 and not gate["passed"]
    ]


def machine(envs: Path | None) -> dict[str, Any]:
    """Where the numbers come from."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    memory = re.search(r"MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "kernel": platform.release(),
        "versions": {
            env or "ours": _versions(
                sys.executable if not env else str(envs / env / "bin/python"), names
            )
            for env, names in PACKAGES.items()
            if not env or (envs and (envs / env / ".ready").exists())
        },
    }


def _versions(python: str, names: Sequence[str]) -> dict[str, str]:
    ask = (
        "import importlib.metadata as m, json, platform; print(json.dumps("
        f"{{'python': platform.python_version(), **{{n: m.version(n) for n in {names!r}}}}}))"
    )
    answer = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(answer.stdout)
    return found


def table(result: dict[str, Any]) -> list[str]:
    """What a person reads."""
    where = result["machine"]
    lines = [f"{where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB"]
    for name, run in result["runs"].items():
        shapes = ", ".join("x".join(map(str, shape)) for shape in run["data"]["shapes_zyx"])
        lines += [
            "",
            f"{name}: {run['data']['volumes']} volumes ({shapes}), {run['cores']} core(s)",
        ]
        lines.append(
            f"  {'':48}{'values':18}{'sets/s':>8}{'cpu ms':>8}  ours over it (by CPU time)"
        )
        lines += [_row(case, row, run) for case, row in run["cases"].items()]
        before, after = run["load_before_and_after"]
        lines.append(f"  {run['rounds']} rounds, {run['seconds']} s; load {before}, then {after}")
        if found := run["gates"].get(f"{DECODE.name} over {CODEC.name}"):
            line = f"  our decoder over the bare codec: {found['ratio']} (aim {found['gate']})"
            lines.append(line)
    return lines


def _row(name: str, row: dict[str, Any], run: dict[str, Any]) -> str:
    line = f"  {name:48}{row['values']:18}{row['sets_per_s']:8.1f}{row['cpu_ms_per_set']:8.2f}"
    line += f"{row['ours_over_it']:9.2f} x{row['ours_over_it_by_cpu_time']:8.2f} x"
    if run["cores"] == 1 and name in run["gates"]:
        found = run["gates"][name]
        line += f"  aim {found['gate']}{'' if found['passed'] else ': missed'}"
    return line


if __name__ == "__main__":
    sys.exit(main())
