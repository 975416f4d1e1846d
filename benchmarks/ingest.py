"""How fast ingest is: against reading and decoding alone, and against dcm2niix + MONAI.

One real chest CT as several series of plain files, raw and as JPEG lossless; the same files and
cores for everybody, in turn. A table for people, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.ingest_inputs import KINDS, file_bytes, make_inputs
from benchmarks.ingest_runs import Timing, run_ingest, run_limit, run_peer, run_pydicom
from ingest.phantom import Torso
from ingest.testing import SeriesSpec, write_dicom_series

CT_DATA = Path(__file__).parents[2] / "shared" / "data" / "ct"
PACKAGES = (
    *("coralbay", "numpy", "scipy", "numcodecs", "pydicom", "imagecodecs", "python-gdcm"),
    *("dask", "distributed", "dcm2niix", "monai", "torch", "nibabel"),
)
TARGETS = {"raw": {"limit": 0.3, "peer": 1.2}, "jpeg_lossless": {"limit": 0.6, "peer": 1.0}}
"""Least speed of ingest, as a multiple of the limit's and of the peer's."""


def main(args: Sequence[str] | None = None) -> int:
    """Measure, print, record; 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__)
    parser.add_argument("--series", type=int, default=6, help="series of each kind")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; medians are compared")
    parser.add_argument("--cores", type=int, default=2, help="cores and processes for everybody")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--no-peer", action="store_true", help="leave the slow peer out")
    parser.add_argument("--ct-data", type=Path, default=CT_DATA, help="folder of real CT")
    parser.add_argument("--folder", type=Path, help="keep the inputs here, for the next run")
    parser.add_argument("--out", type=Path, help="file to write the JSON to")
    options = parser.parse_args(args)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(options, Path(scratch))
    print(table(result))
    line = json.dumps(result)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(line + "\n")
    print(line)
    return 0 if result["passed"] else 1


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All runs, in turn, so that what disturbs the machine disturbs everybody."""
    inputs = make_inputs(options.ct_data, options.folder or scratch, options.series)
    spec = SeriesSpec(patient=1, slices=8, side=64, pixel_mm=6.0, gap_mm=5.0)
    write_dicom_series(scratch / "tiny-a", spec)
    write_dicom_series(scratch / "tiny-b", replace(spec, patient=2, torso=Torso(seed=2)))
    tiny = [scratch / "tiny-a", scratch / "tiny-b"]
    runs: dict[str, dict[str, list[Timing]]] = {kind: {} for kind in options.kinds}
    startups = []
    for turn in range(options.repeats):
        # A shard each, so that workers are started for them.
        flags = ("--shard-mib", "1")
        startup = run_ingest(tiny, scratch / "out", options.cores, flags=flags)
        startups.append(startup)
        for kind in options.kinds:
            done = _one_round(inputs[kind], scratch, options, startup)
            for name, timing in done.items():
                runs[kind].setdefault(name, []).append(timing)
            walls = ", ".join(f"{name} {timing.work_s:.1f} s" for name, timing in done.items())
            print(f"round {turn + 1}, {kind}: {walls}", file=sys.stderr)
    result: dict[str, Any] = {
        "machine": machine(options.cores),
        "series": options.series,
        "slices": sum(1 for folder in inputs["raw"] for _ in folder.iterdir()),
        "repeats": options.repeats,
        "startup_s": round(statistics.median(startup.wall_s for startup in startups), 3),
        "startup_cpu_s": round(statistics.median(startup.cpu_s for startup in startups), 3),
        "kinds": {k: summarise(runs[k], file_bytes(inputs[k]), TARGETS[k]) for k in runs},
    }
    result["passed"] = all(kind["passed"] for kind in result["kinds"].values())
    return result


def _one_round(
    folders: list[Path], scratch: Path, options: argparse.Namespace, startup: Timing
) -> dict[str, Timing]:
    cores = options.cores
    done = {
        "limit": run_limit(folders, cores),
        "ingest": run_ingest(folders, scratch / "out", cores, startup),
        "pydicom": run_pydicom(folders, cores),
    }
    if not options.no_peer:
        done["peer"] = run_peer(folders, scratch / "peer", cores)
    return done


def summarise(
    runs: dict[str, list[Timing]], nbytes: int, targets: dict[str, float]
) -> dict[str, Any]:
    """Medians, and how fast ingest is as a multiple of each of the others."""
    medians = {
        name: {
            field: round(statistics.median(getattr(timing, field) for timing in timings), 3)
            for field in ("wall_s", "work_s", "cpu_s", "work_cpu_s", "stored_bytes")
        }
        for name, timings in runs.items()
    }
    ratios = {
        field: {
            name: round(other[field] / medians["ingest"][field], 3)
            for name, other in medians.items()
            if name != "ingest"
        }
        for field in ("work_s", "work_cpu_s", "wall_s")
    }
    return {
        "input_bytes": nbytes,
        "medians": medians,
        "all_work_s": {name: [round(t.work_s, 3) for t in ts] for name, ts in runs.items()},
        "ratios": ratios,
        "targets": targets,
        "passed": all(ratios["work_s"].get(name, 0.0) >= least for name, least in targets.items()),
    }


def machine(cores: int) -> dict[str, Any]:
    """Where the numbers come from."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores_used": cores,
        "cores": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def table(result: dict[str, Any]) -> str:
    """What a person reads."""
    place = result["machine"]
    lines = [
        f"{result['series']} series, {result['slices']} slices; {place['cores_used']} cores of "
        f"{place['cpu']}, load {place['load_average'][0]}; medians of {result['repeats']} rounds",
        f"without start-up: ingest and its workers take {result['startup_s']:.1f} s of wall and "
        f"{result['startup_cpu_s']:.1f} s of processor time for it",
        f"{'':24}{'wall s':>8}{'cpu s':>8}{'slices/s':>10}{'ingest is':>11}{'by cpu':>9}",
    ]
    for kind, found in result["kinds"].items():
        wall, cpu = found["ratios"]["work_s"], found["ratios"]["work_cpu_s"]
        for name, median in found["medians"].items():
            line = f"{kind:14}{name:10}{median['work_s']:8.2f}{median['work_cpu_s']:8.2f}"
            line += f"{result['slices'] / median['work_s']:10.0f}"
            if name in wall:
                line += f"{wall[name]:9.2f} x{cpu[name]:7.2f} x"
            if name in found["targets"]:
                line += f"  (target {found['targets'][name]})"
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
