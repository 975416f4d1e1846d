"""What a run over a million series takes, on paper: every figure with its arithmetic.

Sizes, requests and bytes come from the recorded simulation, ingest's speed from its recorded
benchmark; prices and limits are quoted; what was neither measured nor quoted is called assumed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "scale.json"
INGEST = Path(__file__).parent / "results" / "ingest.json"

GPUS = 64
GPUS_A_NODE = 8
SETS_A_GPU = 20.0
"""Sets a second on one GPU: assumed; no trainer has been timed at this size."""
EPOCHS = 10
VISITS = 2
"""Sets a volume gives each epoch: the default."""
NIC_GBIT = 100.0
"""Of a node: assumed."""
GETS_A_SECOND = 5500.0
"""S3 serves at least so many a prefix: quoted, AWS, Request Rate and Performance Guidelines."""
DOLLARS_A_MILLION_GETS = 0.4
DOLLARS_A_TB_MONTH = 23.0
"""S3 Standard, us-east-1: quoted list prices of November 2026, to be checked before use. Within a
region nothing is charged for the bytes themselves."""
RAW_MB_A_SERIES = 300.0
"""570 slices of 512 x 512 x 2 bytes: assumed."""
INGEST_CORES = 64


@dataclass
class Rows:
    """Lines of the table."""

    lines: list[str] = field(default_factory=list)

    def add(self, what: str, how: str, value: str) -> None:
        """One figure, and where it is from."""
        self.lines.append(f"| {what} | {how} | {value} |")


def table(results: dict[str, Any]) -> str:
    """The table of docs/scale.md, in Markdown."""
    rows = Rows(["| figure | from | is |", "|---|---|---|"])
    _dataset(rows, results)
    _run(rows, results)
    _ingest(rows, results)
    return "\n".join(rows.lines)


def _dataset(rows: Rows, results: dict[str, Any]) -> None:
    data, steps = results["dataset"], results["steps"]
    n, shards = data["series"], data["shards"]
    chunks, parsed = data["chunks.parquet_bytes"], steps["footer_by_pyarrow"]
    rows.add("series, shards", "simulated", f"{n:,}, {shards:,}")
    rows.add("stored", "simulated, sum of the shards", f"{data['shard_bytes'] / 1e12:.1f} TB")
    volume = data["shard_bytes"] / n
    rows.add("a volume", f"{data['shard_bytes'] / 1e12:.1f} TB / {n:,}", f"{volume / 1e6:.1f} MB")
    for name, what in (("manifest.json", "manifest"), ("index.parquet", "index")):
        rows.add(
            f"`{name}`", f"simulated, read by every process: {what}", _mb(data[f"{name}_bytes"])
        )
    rows.add(
        "`chunks.parquet`",
        "simulated, read a shard at a time",
        f"{chunks / 1e9:.2f} GB, {chunks / shards / 1e3:.0f} kB a shard",
    )
    rows.add(
        "its footer",
        "simulated, read once by every process",
        f"{_mb(parsed['footer_bytes'])}; parsed by pyarrow {parsed['added_mb']:.0f} MB of memory",
    )
    load, cores = results["machine"]["load_average"], results["machine"]["cores"]
    for step, what in (
        ("plan", "load for planning"),
        ("plan_filtered", "the same with filter and split"),
        ("items", "the same with the order of an epoch and 1,000 boxes"),
        ("plan s3", "load for planning, emulated S3"),
    ):
        found = steps[step]
        rows.add(
            what,
            f"measured, least of {results['rounds']}, load {load:.0f} on {cores} cores",
            f"{found['cpu_s']:.2f} s CPU, {found['wall_s']:.2f} s, {found['peak_mb']:.0f} MB "
            f"({found['own_mb']:.0f} without imports)",
        )


def _run(rows: Rows, results: dict[str, Any]) -> None:
    n = results["dataset"]["series"]
    sets = GPUS * SETS_A_GPU
    epoch = n * VISITS
    rows.add("sets a second", f"{GPUS} GPUs x {SETS_A_GPU:g} (assumed)", f"{sets:,.0f}")
    rows.add("sets an epoch", f"{n:,} x {VISITS} visits", f"{epoch:,}")
    rows.add("an epoch", f"{epoch:,} / {sets:,.0f}", f"{epoch / sets / 60:.0f} min")
    ways = results["steps"]["items"]["ways"]
    for way in ("stream", "range"):
        gets, nbytes = ways[way]["requests"], ways[way]["bytes"]
        rate, flow = sets * gets, sets * nbytes
        node = flow / (GPUS / GPUS_A_NODE) * 8 / 1e9
        cost = epoch * EPOCHS * gets / 1e6 * DOLLARS_A_MILLION_GETS
        rows.add(f"{way}: a set", "counted on the simulation", f"{gets:.2f} GETs, {_mb(nbytes)}")
        rows.add(
            f"{way}: GETs a second",
            f"{sets:,.0f} x {gets:.2f}; S3 gives {GETS_A_SECOND:,.0f} a prefix (quoted)",
            f"{rate:,.0f}, {rate / GETS_A_SECOND:.1f} prefixes",
        )
        rows.add(
            f"{way}: from S3",
            f"{sets:,.0f} x {_mb(nbytes)}",
            f"{flow / 1e9:.1f} GB/s",
        )
        rows.add(
            f"{way}: a node's network",
            f"{flow / 1e9:.1f} GB/s x 8 bits / {GPUS // GPUS_A_NODE} nodes, "
            f"of {NIC_GBIT:g} Gb/s (assumed)",
            f"{node:.1f} Gb/s, {node / NIC_GBIT:.0%}",
        )
        rows.add(
            f"{way}: GETs of {EPOCHS} epochs",
            f"{epoch:,} x {EPOCHS} x {gets:.2f} at ${DOLLARS_A_MILLION_GETS:g} a million (quoted)",
            f"${cost:,.0f}",
        )
    stored = results["dataset"]["shard_bytes"] / 1e12
    rows.add(
        "storage",
        f"{stored:.1f} TB x ${DOLLARS_A_TB_MONTH:g} a TB-month (quoted)",
        f"${stored * DOLLARS_A_TB_MONTH:,.0f} a month",
    )
    data = results["dataset"]
    start = GPUS * (data["manifest.json_bytes"] + data["index.parquet_bytes"]) / 1e9
    rows.add(
        "start of a run",
        f"{GPUS} processes x (manifest + index)",
        f"{start:.1f} GB",
    )


def _ingest(rows: Rows, results: dict[str, Any]) -> None:
    kind = json.loads(INGEST.read_text())["kinds"]["raw"]
    took = kind["medians"]["ingest"]["work_cpu_s"]
    speed = kind["input_bytes"] / took / 1e6
    n = results["dataset"]["series"]
    rows.add(
        "ingest, a core",
        f"{kind['input_bytes'] / 1e6:.0f} MB / {took:.2f} CPU s, measured (`make bench-ingest`)",
        f"{speed:.0f} MB/s of DICOM",
    )
    hours = n * RAW_MB_A_SERIES / speed / 3600
    rows.add(
        "build",
        f"{n:,} x {RAW_MB_A_SERIES:g} MB (assumed) / {speed:.0f} MB/s",
        f"{hours:,.0f} core hours; {hours / INGEST_CORES:.0f} h on {INGEST_CORES} cores",
    )


def _mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:.1f} MB"
