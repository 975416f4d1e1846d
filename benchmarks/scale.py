"""A million series in 33,000 shards: what loading them for planning takes, in time and memory.

The dataset is simulated (``benchmarks.scale_data``): manifest, index and chunk table of the size
and kind that a build of 50 TB writes, without the shards. Each step runs in a fresh process,
several times; the least time counts, as the machine may be shared, and the most memory. Time on the
clock is judged only on a machine that is not busy, time of the processor always. Planning is also
measured from an emulated bucket (25 ms to the first byte, 90 MB/s a connection).

    python -m benchmarks.scale [--rounds 5] [--folder KEEP] [--out FILE]
    python -m benchmarks.scale --paper   # the table of docs/scale.md, from the recorded results
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.scale_paper import RESULTS, table
from shards.schema import CHUNKS, INDEX, MANIFEST

MAX_S = 2.0
MAX_PEAK_MB = 400.0
"""Of planning, with the interpreter and all imports."""
LOCAL = ("manifest", "plan", "plan_filtered", "items", "footer", "footer_by_pyarrow")
REMOTE = ("plan", "items")
LIMITED = ("plan", "plan_filtered", "plan s3")
"""Steps whose memory is limited; ``items`` draws the order of an epoch too."""


def main() -> int:
    """Measure, print what was found and one JSON line; 1 when a limit is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--series", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=33_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the simulated dataset here, or reuse it")
    parser.add_argument("--paper", action="store_true", help="only print the table of the docs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.paper:
        print(table(json.loads(RESULTS.read_text())))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch) / "dataset"
        if not (folder / MANIFEST).exists():
            _simulate(folder, args.series, args.shards)
        result = measure(folder, args.rounds)
    for limit, kept in result["kept"].items():
        print(f"{'kept  ' if kept else 'BROKEN'} {limit}")
    line = json.dumps(result)
    print(line)
    if args.out is not None:
        args.out.write_text(line + "\n")
    return 0 if all(result["kept"].values()) else 1


def _simulate(folder: Path, series: int, shards: int) -> None:
    # In a process of its own: it takes more memory than all that is measured.
    code = (
        "import sys; from pathlib import Path; from benchmarks.scale_data import simulate; "
        "simulate(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"
    )
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, folder, str(series), str(shards)], check=True)
    print(f"{series} series in {shards} shards simulated in {time.perf_counter() - start:.0f} s")


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """All steps on the dataset in ``folder``."""
    from shards.testing.emulator import emulator

    load = os.getloadavg()[0]
    found = {step: best(step, str(folder), rounds) for step in LOCAL}
    with emulator(folder.parent) as server:
        url = f"s3://{folder.name}"
        for step in REMOTE:
            found[f"{step} s3"] = best(step, url, rounds, server.environment)
    totals = json.loads((folder / MANIFEST).read_text())["totals"]
    return {
        "machine": {
            "cores": os.cpu_count(),
            "load_average": load,
            "python": platform.python_version(),
            "pyarrow": version("pyarrow"),
        },
        "dataset": {
            "series": totals["samples"],
            "shards": found["manifest"]["shards"],
            "shard_bytes": totals["shard_bytes"],
            "voxels": totals["voxels"],
            **{
                f"{name}_bytes": (folder / name).stat().st_size
                for name in (MANIFEST, INDEX, CHUNKS)
            },
        },
        "rounds": rounds,
        "steps": found,
        "kept": limits(found, load, os.cpu_count() or 1),
    }


def best(
    step: str, url: str, rounds: int, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """What a step took: the round of least time, with the most memory of all rounds."""
    command = [sys.executable, "-m", "benchmarks.scale_child", step, url]
    runs = [
        json.loads(
            subprocess.run(
                command,
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, **(environment or {})},
            ).stdout
        )
        for _ in range(rounds)
    ]
    least = min(runs, key=lambda run: float(run["wall_s"]))
    least |= {key: max(run[key] for run in runs) for key in ("peak_mb", "imports_mb", "bare_mb")}
    least["own_mb"] = least["peak_mb"] - least["imports_mb"]
    least["all_wall_s"] = sorted(run["wall_s"] for run in runs)
    print(
        f"{step:18s} {url[:8]:8s} {least['wall_s']:6.2f} s  {least['cpu_s']:6.2f} s CPU  "
        f"{least['peak_mb']:5.0f} MB, {least['own_mb']:4.0f} of them its own",
        flush=True,
    )
    return {key: _rounded(value) for key, value in least.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def limits(found: dict[str, dict[str, Any]], load: float, cores: int) -> dict[str, bool]:
    """Which limits are kept.

    Args:
        found: what each step took.
        load: average at the start. Where others use the cores too, the clock says nothing of us.
        cores: of the machine.
    """
    kept = {f"plan: at most {MAX_S:g} s of CPU": found["plan"]["cpu_s"] <= MAX_S}
    if load < cores / 2:
        kept[f"plan: at most {MAX_S:g} s"] = found["plan"]["wall_s"] <= MAX_S
    for step in LIMITED:
        kept[f"{step}: at most {MAX_PEAK_MB:g} MB"] = found[step]["peak_mb"] <= MAX_PEAK_MB
    return kept


if __name__ == "__main__":
    sys.exit(main())
