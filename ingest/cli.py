"""Command line ``ingest``: parse, call one function, map errors to exit codes 0, 1 and 2.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from ingest.commands import BuildShards, Command, DemoArchive, Inspect, Scan, Verify
from ingest.errors import IngestError, Reason, UsageError

if TYPE_CHECKING:
    from ingest.pipeline import Plan
    from shards.dataset import Dataset
    from shards.schema import Manifest

DONE, FAILED, USAGE = 0, 1, 2
"""Exit codes."""
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""What a disk does to a sound program."""
RESUME_HINT = "the same command goes on from here"
MONTAGE_VOLUMES = 12
"""Volumes on a montage."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    command: Any = tyro.cli(
        Command,
        args=args,
        prog="ingest",
        description="CT archives in, shards of volumes out.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # What they warn of becomes a verdict, or is handled.
    for name in ("pydicom", "nibabel"):
        logging.getLogger(name).setLevel(logging.ERROR)
    run = {
        Scan: run_scan,
        BuildShards: run_build,
        Verify: run_verify,
        Inspect: run_inspect,
        DemoArchive: run_demo_archive,
    }[type(command)]
    from shards.errors import NotADatasetError, ShardError

    try:
        return int(run(command))  # type: ignore[operator]
    except (UsageError, NotADatasetError) as exc:
        return _fail(str(exc), USAGE)
    except (IngestError, ShardError) as exc:
        return _fail(str(exc), FAILED)
    except OSError as exc:
        if exc.errno not in STORAGE_ERRORS:
            raise
        return _fail(f"{exc.filename or 'storage'}: {exc.strerror}; {RESUME_HINT}", FAILED)
    except KeyboardInterrupt:
        return _fail(f"stopped; {RESUME_HINT}", FAILED)


def _fail(message: str, code: int) -> int:
    print(f"ingest: {message}", file=sys.stderr)
    return code


def _emit(record: dict[str, Any]) -> None:
    print(json.dumps(record, sort_keys=True))


def run_scan(command: Scan) -> int:
    """``ingest scan``."""
    from ingest.ids import load_id_key
    from ingest.output import check_sources
    from ingest.scan import ScanConfig, scan
    from ingest.terminal import Terminal, where

    check_sources(command.raw)
    with Terminal() as terminal:
        found = scan(
            command.raw,
            load_id_key(command.id_key),
            ScanConfig(min_slices=command.min_slices),
            terminal.files,
        )
    reasons = Counter(str(series.reason) for series in found.series)
    if command.json:
        _emit({"files": found.n_files, "series": len(found.series), "reasons": dict(reasons)})
        return DONE
    for series in found.series:
        shape = "" if series.shape_zyx is None else " x ".join(map(str, series.shape_zyx))
        detail = f" ({series.detail})" if series.detail else ""
        print(f"{series.reason:<28} {series.n_files:>5} {shape:<16} {where(series.refs)}{detail}")
    accepted = reasons[Reason.OK]
    refused = len(found.series) - accepted
    print(f"{found.n_files} files: {accepted} series to take, {refused} refused")
    return DONE


def run_build(command: BuildShards) -> int:
    """``ingest build-shards``."""
    from ingest.config import BuildConfig, parse_spacing
    from ingest.ids import load_id_key
    from ingest.output import check_paths
    from ingest.pipeline import Job, build, plan_build
    from ingest.terminal import Terminal
    from shards.schema import MANIFEST

    if len(command.paths) < 2:
        raise UsageError("give one RAW or more, then OUT: ingest build-shards RAW... OUT")
    raw = command.paths[:-1]
    out = check_paths(raw, command.paths[-1])
    try:
        config = BuildConfig(
            spacing_zyx_mm=parse_spacing(command.spacing_mm),
            body_crop=command.body_crop,
            resample=command.resample,
            profile=command.profile,
            shard_mib=command.shard_mib,
            min_slices=command.min_slices,
            source=command.source,
        )
        workers = (os.cpu_count() or 1) if command.workers is None else command.workers
        job = Job(
            out=out,
            workers=workers,
            dask_scheduler=command.dask_scheduler,
            max_failures=command.max_failures,
        )
    except ValueError as exc:
        raise UsageError(str(exc)) from exc
    id_key = load_id_key(command.id_key)
    with Terminal() as terminal:
        plan = plan_build(raw, config, id_key, terminal)
        if command.dry_run:
            return _end_dry_run(plan, command.json)
        already = (out / MANIFEST).exists()
        manifest = build(plan, config, id_key, job, terminal)
        seconds = time.monotonic() - terminal.started
    reasons = refused_reasons(out)
    if command.json:
        _emit(
            {
                "out": str(out),
                "already_complete": already,
                "build_sha256": manifest.build_sha256,
                "generation_id": manifest.generation_id,
                "shards": len(manifest.shards),
                "reasons": reasons,
                "seconds": round(seconds, 3),
                **asdict(manifest.totals),
            }
        )
    else:
        print(f"{out}: already complete, nothing to do" if already else f"{out}: complete")
        print(closing_line(manifest, reasons, seconds))
    return DONE


def refused_reasons(out: Path) -> dict[str, int]:
    """Refused series by reason, from the dataset's own table."""
    import pyarrow.parquet as pq

    from shards.schema import SERIES

    table = pq.read_table(out / SERIES, columns=["verdict", "reason"]).to_pylist()
    counts = Counter(row["reason"] for row in table if row["verdict"] == "refused")
    return dict(sorted(counts.items()))


def closing_line(manifest: Manifest, reasons: dict[str, int], seconds: float) -> str:
    """What a build came to, in one line."""
    totals = manifest.totals
    refused = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "none"
    return (
        f"{totals.samples} samples ({totals.trainable} trainable) in "
        f"{len(manifest.shards)} shards, "
        f"{totals.shard_bytes:,} bytes; series: {totals.series_accepted} accepted, "
        f"{totals.series_refused} refused ({refused}); files: {totals.files_in} in = "
        f"{totals.files_used} used + {totals.files_refused} refused; {seconds:.1f} s"
    )


def _end_dry_run(plan: Plan, as_json: bool) -> int:
    """Say what a build would do."""
    volumes = sum(len(group.series) for group in plan.groups)
    refused = len(plan.found.series) - volumes
    if as_json:
        _emit(
            {
                "dry_run": True,
                "files": plan.found.n_files,
                "volumes": volumes,
                "refused": refused,
                "shards": len(plan.groups),
                "estimated_bytes": plan.estimated_bytes,
                "build_sha256": plan.build_sha256,
            }
        )
    else:
        print(
            f"would build {volumes} volumes into {len(plan.groups)} shards, about "
            f"{plan.estimated_bytes / 2**20:.0f} MiB; {refused} series and stray files refused; "
            "nothing was written"
        )
    return DONE


def run_verify(command: Verify) -> int:
    """``ingest verify``."""
    from shards.verify import verify

    report = verify(command.url)
    for problem in report.problems:
        print(problem, file=sys.stderr)
    if command.json:
        _emit(asdict(report))
    else:
        verdict = f"{len(report.problems)} problems" if report.problems else "all well"
        print(
            f"{command.url}: {report.shards} shards, {report.samples} samples, "
            f"{report.bytes:,} bytes read: {verdict}"
        )
    return FAILED if report.problems else DONE


def run_inspect(command: Inspect) -> int:
    """``ingest inspect``."""
    from shards.dataset import Dataset
    from shards.schema import converter

    dataset = Dataset.open(command.url)
    keys = dataset.keys()
    if command.key is not None and command.key not in keys:
        raise UsageError(
            f"{command.key}: no such key in {command.url}; `ingest inspect` lists them"
        )
    keys = keys[:MONTAGE_VOLUMES] if command.key is None else [command.key]
    if command.png is not None:
        _write_montage(dataset, keys, command.png)
    if command.key is not None:
        record = converter.unstructure(dataset.sample(command.key).meta)
    else:
        record = converter.unstructure(dataset.manifest.totals)
    if command.json:
        _emit(record)
    elif command.key is not None:
        print(json.dumps(record, indent=2))
    else:
        _print_dataset(dataset)
    return DONE


def _print_dataset(dataset: Dataset) -> None:
    """Totals, then a line a sample."""
    totals = dataset.manifest.totals
    print(
        f"{totals.samples} samples ({totals.trainable} trainable) in "
        f"{len(dataset.manifest.shards)} shards, "
        f"{totals.shard_bytes:,} bytes, {totals.voxels:,} voxels"
    )
    for row in dataset.index.to_pylist():
        shape = " x ".join(map(str, row["shape_zyx"]))
        spacing = " x ".join(f"{mm:.3g}" for mm in row["spacing_zyx_mm"])
        print(f"{row['key']}  {row['shard']}  {shape:<16} {spacing} mm  {row['kernel']}")


def _write_montage(dataset: Dataset, keys: Sequence[str], path: Path) -> None:
    """Three planes of each volume as one PNG."""
    from ingest.montage import montage, png_bytes

    samples = (dataset.sample(key) for key in keys)
    sheet = montage((s.meta.key, s.hu, s.meta.spacing_zyx_mm) for s in samples)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(sheet))
    except OSError as exc:
        raise UsageError(f"{path}: cannot write the montage ({exc.strerror})") from exc


def run_demo_archive(command: DemoArchive) -> int:
    """``ingest demo-archive``."""
    from ingest.testing import write_demo_archive

    if command.out.exists() and (not command.out.is_dir() or any(command.out.iterdir())):
        raise UsageError(f"{command.out}: is there already; give a new or empty folder")
    try:
        write_demo_archive(command.out)
    except OSError as exc:
        raise UsageError(f"{command.out}: cannot write there ({exc.strerror})") from exc
    count = sum(path.is_file() for path in command.out.rglob("*"))
    print(f"{command.out}: a computed torso phantom in {count} files")
    return DONE
