"""Regions a second from the emulated storage: ours in both modes, and other loaders, in turn.

A region is a decoded base box. Every loader reads the same stored volumes, draws k boxes a volume
and makes no views. Peers run in an environment of their own, see ``benchmarks/peers``.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stream_data import BUCKET
from benchmarks.stream_protocol import Subject, process_cpu_s
from coralbay.recipes import small
from shards.dataset import Dataset
from shards.testing.emulator import Emulator, emulator

SIDE = small().views.box_side
WARM_S = 4.0
"""Long enough to use up what a loader had made ready while the others had their turn."""
MEASURE_S = 5.0
SETTLE_S = 20.0
GATE = 1.5
"""Ours over webdataset with 16 workers."""
PEERS = Path(__file__).parent / "peers"
OURS = ("ours stream", "ours range")
RIVAL = "webdataset 16"


@dataclass(frozen=True)
class Case:
    """How a loader is started."""

    command: Callable[[Path], list[str]]
    """Takes a scratch folder."""
    fresh: bool = False
    """A new process for each turn."""


def cases(bucket: Path, k: int, peers_python: Path | None) -> dict[str, Case]:
    """All loaders, by name; ours alone where the peers are not installed."""
    shards = [f"{BUCKET}/wide/{path.name}" for path in sorted((bucket / "wide").glob("*.tar"))]
    found = {f"ours {mode}": Case(_ours(mode, k)) for mode in ("stream", "range")}
    if peers_python is None:
        return found

    def peer(script: str, *arguments: str) -> Callable[[Path], list[str]]:
        asked = ("--side", str(SIDE), "--k", str(k))
        start = [str(peers_python), str(PEERS / script), *asked]
        return lambda scratch: [*start, *(a.format(scratch=scratch) for a in arguments)]

    for workers in (1, 16):
        found[f"webdataset {workers}"] = Case(
            peer("peer_webdataset.py", "--workers", str(workers), *shards)
        )
    found["DALI s3 reader"] = Case(peer("peer_dali.py", "--workers", "1", *shards))
    found["DALI, 8 readers"] = Case(peer("peer_dali.py", "--workers", "8", *shards))
    # More than 2 workers were no faster here, and items came back empty from 8 on.
    where = ("--workers", "2", "--cache", "{scratch}/litdata", f"s3://{BUCKET}/litdata")
    found["litdata"] = Case(peer("peer_litdata.py", *where), fresh=True)
    return found


def _ours(mode: str, k: int) -> Callable[[Path], list[str]]:
    command = [sys.executable, "-m", "benchmarks.stream_ours", "regions"]
    return lambda scratch: [*command, "--mode", mode, "--k", str(k), f"s3://{BUCKET}/wide"]


def make_litdata(bucket: Path, peers_python: Path) -> None:
    """The peer's own form of the volumes, written once."""
    if not (bucket / "litdata").exists():
        command = [peers_python, PEERS / "write_litdata.py", bucket / "wide", bucket / "litdata"]
        subprocess.run(command, check=True)


def measure(bucket: Path, rounds: int, k: int, peers_python: Path | None) -> dict[str, Any]:
    """All loaders, in turn, ``rounds`` times."""
    if peers_python is not None:
        make_litdata(bucket, peers_python)
    wanted = cases(bucket, k, peers_python)
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
    checked: dict[str, int] = {}
    with emulator(bucket.parent) as server, ExitStack() as stack:
        lasting: dict[str, Subject] = {}
        for name, case in wanted.items():
            checked[name] = check(server, bucket, name, case)
            if not case.fresh:
                lasting[name] = stack.enter_context(_started(server, name, case))
                lasting[name].run(0.0, 0.1)
        for number in range(rounds):
            for name, case in wanted.items():
                if case.fresh:
                    with _started(server, name, case) as subject:
                        turns[name].append(one_turn(server, subject))
                else:
                    turns[name].append(one_turn(server, lasting[name]))
                print(f"regions round {number + 1} {name}: {turns[name][-1]}", file=sys.stderr)
    return summarise(turns) | {"k": k, "checked_boxes": checked}


@contextmanager
def _started(server: Emulator, name: str, case: Case, *more: str) -> Iterator[Subject]:
    with tempfile.TemporaryDirectory(prefix="coralbay-bench-") as scratch:
        command = [*case.command(Path(scratch)), *more]
        log = Path(scratch) / "log"
        with Subject(name, command, server.environment, log) as subject:
            yield subject


def one_turn(server: Emulator, subject: Subject) -> dict[str, float]:
    """Let everybody come to rest, then measure one loader."""
    settle(server)
    cpu, server_cpu = subject.cpu_s(), sum(map(process_cpu_s, server.pids))
    before = server.counters()
    found = subject.run(WARM_S, MEASURE_S)
    settle(server)  # as much is ready now as was before
    after = server.counters() - before
    cpu, server_cpu = subject.cpu_s() - cpu, sum(map(process_cpu_s, server.pids)) - server_cpu
    regions = found["units_all"]
    return {
        "regions_per_s": round(found["units"] / found["seconds"], 2),
        "cpu_ms_per_region": round(1e3 * cpu / regions, 2),
        "server_cpu_ms_per_region": round(1e3 * server_cpu / regions, 2),
        "mb_per_region": round(after.bytes_sent / regions / 1e6, 2),
        "gets_per_region": round(after.get / regions, 2),
    }


def settle(server: Emulator) -> None:
    """Wait until no loader reads ahead any more."""
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        before = server.counters().bytes_sent
        time.sleep(0.5)
        if server.counters().bytes_sent == before:
            return


def check(server: Emulator, bucket: Path, name: str, case: Case) -> int:
    """Compare some boxes of a loader with the volumes themselves; how many were equal.

    Raises:
        RuntimeError: one was not.
    """
    more = ("--copy",) if name in OURS else ()
    with tempfile.TemporaryDirectory(prefix="coralbay-bench-") as scratch:
        with _started(server, name, case, *more) as subject:
            found = subject.check(4, Path(scratch))["boxes"]
        for box in found:
            expected = _box(bucket / "wide", box["key"], tuple(box["start_zyx"]))
            if Path(box["file"]).read_bytes() != expected.tobytes():
                raise RuntimeError(f"{name}: box {box} is not that of the volume")
    return len(found)


def _box(dataset: Path, key: str, start: tuple[int, ...]) -> Any:
    hu = _volume(dataset, key)
    box = np.full((SIDE,) * 3, -1024, dtype=np.int16)
    inside = tuple(slice(max(0, s), min(n, s + SIDE)) for s, n in zip(start, hu.shape, strict=True))
    box[tuple(slice(i.start - s, i.stop - s) for i, s in zip(inside, start, strict=True))] = hu[
        inside
    ]
    return box


@lru_cache(maxsize=4)
def _volume(dataset: Path, key: str) -> Any:
    return Dataset.open(dataset).sample(key).hu


def summarise(turns: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians by loader, and what ours is as a multiple of each other one, round by round."""
    medians = {
        name: {field: statistics.median(turn[field] for turn in done) for field in done[0]}
        for name, done in turns.items()
    }
    ratios: dict[str, dict[str, float]] = {
        ours: {
            other: round(
                statistics.median(
                    a["regions_per_s"] / b["regions_per_s"]
                    for a, b in zip(turns[ours], turns[other], strict=True)
                ),
                3,
            )
            for other in turns
            if other not in OURS
        }
        for ours in OURS
    }
    best = max(OURS, key=lambda name: medians[name]["regions_per_s"])
    result: dict[str, Any] = {
        "medians": medians,
        "rounds": {n: [t["regions_per_s"] for t in done] for n, done in turns.items()},
        "ratios": ratios,
        "gate": GATE,
        "best": best,
    }
    if RIVAL in turns:
        result["passed"] = ratios[best][RIVAL] >= GATE
    return result


def table(result: dict[str, Any]) -> list[str]:
    """Lines for people."""
    lines = [
        f"regions, k = {result['k']}".ljust(22) + f"{'regions/s':>10}{'cpu ms':>8}{'server':>8}"
        f"{'MB':>7}{'GETs':>7}   ours stream, range over it"
    ]
    for name, found in result["medians"].items():
        line = f"  {name:20}{found['regions_per_s']:10.1f}{found['cpu_ms_per_region']:8.1f}"
        line += f"{found['server_cpu_ms_per_region']:8.1f}{found['mb_per_region']:7.2f}"
        line += f"{found['gets_per_region']:7.2f}"
        if name not in OURS:
            stream, by_range = (result["ratios"][ours][name] for ours in OURS)
            line += f"{stream:9.2f} x{by_range:7.2f} x"
        if name == RIVAL:
            line += f"  (gate {result['gate']} x, the faster of ours)"
        lines.append(line)
    if RIVAL not in result["medians"]:
        lines.append("  peers: not installed (make bench-stream installs them); not compared")
    return lines
