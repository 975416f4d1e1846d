"""How well shards stream: wire efficiency, regions a second, the first batch, exact counters.

Everything runs on this machine: real CT volumes from an emulated object storage (25 ms to the first
byte, 90 MB/s a connection) and from nginx. A table for people, then one line of JSON; the exit code
is 1 when a gate is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import stream_counters, stream_first, stream_regions, stream_wire
from benchmarks.stream_data import describe, make_data

ROOT = Path(__file__).parents[1]
CT_DATA = ROOT.parent / "shared" / "data" / "ct"
SCENARIOS = ("wire", "regions", "first-batch", "counters")
PACKAGES = (
    *("coralbay", "obstore", "numpy", "numcodecs", "google-crc32c", "torch"),
    "nvidia-dali-cuda130",
)
PEER_PACKAGES = ("webdataset", "litdata", "nvidia-dali-cuda130", "torch", "numpy", "obstore")


def main(args: Sequence[str] | None = None) -> int:
    """Measure, print, record; 0 when no gate is missed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__)
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS), help=", ".join(SCENARIOS))
    parser.add_argument("--rounds", type=int, default=7, help="turns of everybody")
    parser.add_argument("--visits", type=int, default=4, help="k: boxes a volume, for everybody")
    parser.add_argument("--ct-data", type=Path, default=CT_DATA, help="folder of real CT")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/stream", help="of the datasets")
    parser.add_argument("--peers", type=Path, help="Python of the peers' environment")
    parser.add_argument("--out", type=Path, help="file to write the JSON to")
    options = parser.parse_args(args)
    if unknown := set(options.scenarios) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    bucket = make_data(options.ct_data, options.folder)
    result = measure(options, bucket)
    print("\n".join(table(result)))
    line = json.dumps(result)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        result = merged(options.out, result)
        line = json.dumps(result)
        options.out.write_text(line + "\n")
    print(line)
    return 1 if result["missed"] else 0


def measure(options: argparse.Namespace, bucket: Path) -> dict[str, Any]:
    """The scenarios asked for, and where and on what they ran."""
    result: dict[str, Any] = {
        "machine": machine(options.peers),
        "data": describe(bucket),
        "runs": {},
    }
    rounds, k = options.rounds, options.visits
    for name in options.scenarios:
        before = os.getloadavg()[0]
        match name:
            case "wire":
                found = stream_wire.measure(bucket, rounds, k)
            case "regions":
                found = stream_regions.measure(bucket, rounds, k, options.peers)
            case "first-batch":
                found = stream_first.measure(bucket, rounds)
            case _:
                found = stream_counters.measure(bucket)
        result[name] = found
        load = [round(before, 1), round(os.getloadavg()[0], 1)]
        today = time.strftime("%Y-%m-%d", time.gmtime())
        result["runs"][name] = {"rounds": rounds, "load_before_and_after": load, "date": today}
    result["missed"] = missed(result)
    return result


def merged(out: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The record with what is new; scenarios that did not run keep what was recorded before."""
    before: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    both = before | result | {"runs": before.get("runs", {}) | result["runs"]}
    return both | {"missed": missed({name: both[name] for name in SCENARIOS if name in both})}


def missed(result: dict[str, Any], where: str = "") -> list[str]:
    """Names of the gates that were missed."""
    found = [] if result.get("passed", True) else [where]
    for name, part in result.items():
        if isinstance(part, dict):
            found += missed(part, f"{where} {name}".strip())
    return found


def machine(peers: Path | None) -> dict[str, Any]:
    """Where the numbers come from."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    found: dict[str, Any] = {
        "cpu": f"{os.cpu_count()} vCPU, {model[1] if model else platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    if peers is not None:
        ask = f"import importlib.metadata as m; print([m.version(n) for n in {PEER_PACKAGES!r}])"
        answer = subprocess.run([peers, "-c", ask], check=True, capture_output=True, text=True)
        versions = re.findall(r"'([^']+)'", answer.stdout)
        found["peers"] = dict(zip(PEER_PACKAGES, versions, strict=True))
    return found


def table(result: dict[str, Any]) -> list[str]:
    """What a person reads."""
    wide, big = result["data"]["wide"], result["data"]["big"]
    lines = [
        f"{result['machine']['cpu']}; medians of rounds in turn; volumes of "
        f"{wide['bytes'] / wide['volumes'] / 1e6:.0f} MB, shards of "
        f"{wide['shard_bytes'] / 1e6:.0f} and {big['shard_bytes'] / 1e6:.0f} MB"
    ]
    parts = {
        "wire": stream_wire,
        "regions": stream_regions,
        "first-batch": stream_first,
        "counters": stream_counters,
    }
    for name, part in parts.items():
        if name in result:
            run = result["runs"][name]
            before, after = run["load_before_and_after"]
            lines += ["", *part.table(result[name])]
            lines.append(f"  {run['rounds']} rounds; load {before} before, {after} after")
    for gate in result["missed"]:
        lines.append(f"MISSED: {gate}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
