"""``ingest scan`` and ``ingest build-shards``: from flags to a plan, a dataset and its totals."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from ingest.commands import BuildShards, Scan
from ingest.errors import Reason, UsageError
from ingest.exits import DONE, emit

if TYPE_CHECKING:
    from ingest.output import Output
    from ingest.pipeline import Plan
    from shards.schema import Manifest


def run_scan(command: Scan) -> int:
    """``ingest scan``."""
    from ingest.choice import Choice
    from ingest.exclude import count_excluded, read_exclusions
    from ingest.ids import load_id_key
    from ingest.labels import label_sources
    from ingest.output import check_sources
    from ingest.scan import ScanConfig, scan
    from ingest.terminal import Terminal, describe

    check_sources(command.raw)
    labels = label_sources(command.labels, command.raw)
    choice = Choice(
        min_coverage_mm=command.min_coverage_mm,
        select=command.select,
        exclusions=read_exclusions(command.exclude),
    )
    with Terminal() as terminal:
        found = scan(
            command.raw,
            load_id_key(command.id_key),
            ScanConfig(min_slices=command.min_slices, choice=choice),
            terminal.files,
            labels,
            (os.cpu_count() or 1) if command.workers is None else command.workers,
        )
    reasons = Counter(str(series.reason) for series in found.series)
    if command.json:
        record: dict[str, object] = {"files": found.n_files, "series": len(found.series)}
        if choice.exclusions.sha256:
            rows = [{"reason": series.reason, "detail": series.detail} for series in found.series]
            record["excluded"] = count_excluded(rows)
        emit(record | {"reasons": dict(reasons)})
        return DONE
    for series in found.series:
        print(describe(series))
    accepted = reasons[Reason.OK]
    refused = len(found.series) - accepted
    print(f"{found.n_files} files: {accepted} series to take, {refused} refused")
    return DONE


def run_build(command: BuildShards) -> int:
    """``ingest build-shards``."""
    from ingest.config import BuildConfig, parse_spacing
    from ingest.exclude import read_exclusions
    from ingest.ids import load_id_key
    from ingest.labels import label_sources, load_label_names
    from ingest.output import check_paths
    from ingest.paths import check_paths_file, write_paths
    from ingest.pipeline import Job, build, plan_build
    from ingest.terminal import Terminal
    from shards.schema import MANIFEST

    if len(command.paths) < 2:
        raise UsageError("give one RAW or more, then OUT: ingest build-shards RAW... OUT")
    raw = command.paths[:-1]
    output = check_paths([*raw, *command.labels], command.paths[-1])
    labels = label_sources(command.labels, raw)
    label_names = load_label_names(command.label_names)
    if command.keep_paths is not None:
        check_paths_file(command.keep_paths, raw, command.paths[-1])
    exclusions = read_exclusions(command.exclude)
    terminal = Terminal(verbose=command.verbose)
    try:
        config = BuildConfig(
            spacing_zyx_mm=parse_spacing(command.spacing_mm),
            body_crop=command.body_crop,
            resample=command.resample,
            profile=command.profile,
            shard_mib=command.shard_mib,
            min_slices=command.min_slices,
            min_coverage_mm=command.min_coverage_mm,
            select=command.select,
            heads=command.heads,
            source=command.source,
            label_names=label_names,
        )
        workers = (os.cpu_count() or 1) if command.workers is None else command.workers
        job = Job(
            out=output.address,
            workers=workers,
            dask_scheduler=command.dask_scheduler,
            max_failures=command.max_failures,
            built=terminal.built,
            scratch_gib=command.scratch_gib,
            take_lock=command.take_lock,
            say=terminal.say,
        )
    except ValueError as exc:
        raise UsageError(str(exc)) from exc
    output.check(writing=not command.dry_run, take=command.take_lock)
    id_key = load_id_key(command.id_key)
    with terminal:
        plan = plan_build(raw, config, id_key, terminal, exclusions, labels, workers)
        if command.dry_run:
            return _end_dry_run(plan, command.json)
        if command.keep_paths is not None:
            write_paths(command.keep_paths, plan.found.series)
        already = output.read(MANIFEST) is not None
        manifest = build(plan, config, id_key, job, terminal)
        seconds = time.monotonic() - terminal.started
    reasons, excluded = refused_reasons(output)
    labelled = labelled_samples(output, manifest)
    if command.json:
        emit(
            {
                "out": output.name,
                "already_complete": already,
                "build_sha256": manifest.build_sha256,
                "generation_id": manifest.generation_id,
                "shards": len(manifest.shards),
                "reasons": reasons,
                "labelled": labelled,
                **({"excluded": excluded} if exclusions.sha256 else {}),
                "seconds": round(seconds, 3),
                "worker_peak_bytes": terminal.peak_bytes,
                **asdict(manifest.totals),
            }
        )
    else:
        print(
            f"{output.name}: already complete, nothing to do"
            if already
            else f"{output.name}: complete"
        )
        print(closing_line(manifest, reasons, seconds, labelled) + _memory(terminal.peak_bytes))
        if exclusions.sha256:
            kinds = ", ".join(f"{count} by {kind}" for kind, count in excluded.items())
            print(f"excluded: {kinds}; list {exclusions.sha256}")
    return DONE


def refused_reasons(output: Output) -> tuple[dict[str, int], dict[str, int]]:
    """Refused series by reason, and excluded ones by what, from the dataset's own table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ingest.exclude import count_excluded
    from shards.schema import SERIES

    file = pa.BufferReader(output.read(SERIES) or b"")
    table = pq.read_table(file, columns=["verdict", "reason", "detail"]).to_pylist()
    counts = Counter(row["reason"] for row in table if row["verdict"] == "refused")
    return dict(sorted(counts.items())), count_excluded(table)


def labelled_samples(output: Output, manifest: Manifest) -> int:
    """Samples of a dataset that have a label volume."""
    from shards.schema import INDEX
    from shards.versions import read_index

    index = read_index(output.read(INDEX) or b"", manifest.format_version, INDEX)
    return sum(index["labelled"].to_pylist())


def closing_line(
    manifest: Manifest, reasons: dict[str, int], seconds: float, labelled: int = 0
) -> str:
    """What a build came to, in one line."""
    totals = manifest.totals
    refused = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "none"
    labels = f", {labelled} with labels" if labelled else ""
    return (
        f"{totals.samples} samples ({totals.trainable} trainable{labels}) in "
        f"{len(manifest.shards)} shards, "
        f"{totals.shard_bytes:,} bytes; series: {totals.series_accepted} accepted, "
        f"{totals.series_refused} refused ({refused}); files: {totals.files_in} in = "
        f"{totals.files_used} used + {totals.files_refused} refused; {seconds:.1f} s"
    )


def _memory(peak_bytes: int) -> str:
    """Most memory of a worker, where this run built anything."""
    return f"; {peak_bytes / 1e9:.2f} GB a worker at most" if peak_bytes else ""


def _end_dry_run(plan: Plan, as_json: bool) -> int:
    """Say what a build would do."""
    from ingest.terminal import describe

    volumes = sum(len(group.series) for group in plan.groups)
    refused = len(plan.found.series) - volumes
    if as_json:
        emit(
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
        for series in plan.found.series:
            if series.reason is Reason.OK:
                print(describe(series))
        print(
            f"would build {volumes} volumes into {len(plan.groups)} shards, about "
            f"{plan.estimated_bytes / 2**20:.0f} MiB; {refused} series and stray files refused; "
            "nothing was written"
        )
    return DONE
