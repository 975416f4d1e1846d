"""``ingest append``, ``forget``, ``compact``, ``merge``: a dataset changes, one step at a time."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.commands import Append, Compact, Forget, Merge
from ingest.errors import UsageError
from ingest.exits import DONE, emit

if TYPE_CHECKING:
    from shards.schema import Manifest


def run_append(command: Append) -> int:
    """``ingest append``."""
    from ingest.edit_append import append
    from ingest.exclude import read_exclusions
    from ingest.ids import load_id_key
    from ingest.output import check_folder, check_paths
    from ingest.pipeline import Job
    from ingest.terminal import Terminal

    if len(command.paths) < 2:
        raise UsageError("give one RAW or more, then OUT: ingest append RAW... OUT")
    raw = command.paths[:-1]
    out = check_folder(command.paths[-1])
    check_paths(raw, command.paths[-1])
    try:
        given = _given_settings(command)
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
        done = append(raw, given, id_key, job, terminal, read_exclusions(command.exclude))
        seconds = time.monotonic() - terminal.started
    if command.json:
        counts = {
            "added_samples": done.samples,
            "files_found": done.files,
            "files_known": done.known_files,
            "new_reasons": done.reasons,
            "seconds": round(seconds, 3),
        }
        emit(_summary(out, done.manifest, done.changed) | counts)
        return DONE
    refused = ", ".join(f"{count} {reason}" for reason, count in done.reasons.items()) or "none"
    new = done.files - done.known_files
    print(
        f"{out}: {done.samples} samples added; {done.files} files found = "
        f"{done.known_files} known + {new} new or judged anew; of these refused: {refused}; "
        f"{seconds:.1f} s"
    )
    _print_generation(done.manifest, done.changed)
    return DONE


def _given_settings(command: Append) -> dict[str, Any]:
    """The settings that were named on the command line."""
    from ingest.config import parse_spacing

    names = (
        *("body_crop", "resample", "profile", "min_slices", "min_coverage_mm", "select", "heads"),
        *("shard_mib", "source"),
    )
    given = {name: getattr(command, name) for name in names if getattr(command, name) is not None}
    if command.spacing_mm is not None:
        given["spacing_zyx_mm"] = parse_spacing(command.spacing_mm)
    return given


def run_forget(command: Forget) -> int:
    """``ingest forget``."""
    from ingest.edit_forget import forget, keyed_subjects
    from ingest.ids import load_id_key
    from ingest.output import check_folder
    from shards.dataset import Dataset

    if not command.subject and not command.patient_id:
        raise UsageError("name whom to forget: --subject ID..., or --patient-id ID...")
    out, shown = check_folder(command.out), {}
    if command.patient_id:
        fingerprint = Dataset.open(out).manifest.id_key_fingerprint
        id_key = load_id_key(command.id_key)
        shown = keyed_subjects(out, command.patient_id, command.issuer, id_key, fingerprint)
    done = forget(out, [*command.subject, *shown], shown)
    if command.json:
        counts = {"forgotten_samples": done.samples, "withdrawn_rows": done.series}
        emit(_summary(out, done.manifest, done.changed) | counts)
        return DONE
    print(f"{out}: {done.samples} samples withdrawn")
    _print_generation(done.manifest, done.changed)
    if waiting := len(done.manifest.tombstones):
        print(
            f"the bytes of {waiting} withdrawn samples are still in the shards, where plain tar "
            f"readers see them, until `ingest compact {out}`"
        )
    return DONE


def run_compact(command: Compact) -> int:
    """``ingest compact``."""
    from ingest.edit_forget import compact
    from ingest.output import check_folder

    out = check_folder(command.out)
    done = compact(out, lambda name: print(f"rewrote {name}", file=sys.stderr))
    changed = done.samples > 0
    if command.json:
        counts = {
            "removed_samples": done.samples,
            "rewritten_shards": done.rewritten,
            "dropped_shards": done.dropped,
            "bytes_freed": done.bytes_freed,
        }
        emit(_summary(out, done.manifest, changed) | counts)
        return DONE
    print(
        f"{out}: {done.samples} withdrawn samples removed, {done.rewritten} shards rewritten, "
        f"{done.dropped} dropped, {done.bytes_freed:,} bytes freed"
    )
    _print_generation(done.manifest, changed)
    return DONE


def run_merge(command: Merge) -> int:
    """``ingest merge``."""
    from ingest.edit_merge import merge
    from ingest.output import check_folder

    if len(command.paths) < 3:
        raise UsageError("give two datasets or more, then OUT: ingest merge A B... OUT")
    *sources, out = (check_folder(path) for path in command.paths)
    done = merge(sources, out, lambda name: print(f"wrote {name}", file=sys.stderr))
    if command.json:
        counts = {"duplicates": done.duplicates, "withdrawn": done.withdrawn}
        emit(_summary(out, done.manifest, done.changed) | counts)
        return DONE
    totals = done.manifest.totals
    print(
        f"{out}: {totals.samples} samples of {len(sources)} datasets in "
        f"{len(done.manifest.shards)} shards; {done.duplicates} duplicates and {done.withdrawn} "
        "withdrawn samples left out"
    )
    _print_generation(done.manifest, done.changed)
    return DONE


def _summary(out: Path, manifest: Manifest, changed: bool) -> dict[str, Any]:
    """What every change says of the dataset, for machines."""
    return {
        "out": str(out),
        "changed": changed,
        "generation": manifest.generation,
        "generation_id": manifest.generation_id,
        "format_version": manifest.format_version,
        "shards": len(manifest.shards),
        "tombstones": len(manifest.tombstones),
        **asdict(manifest.totals),
    }


def _print_generation(manifest: Manifest, changed: bool) -> None:
    totals = manifest.totals
    print(
        f"{'now' if changed else 'nothing to do: still'} generation {manifest.generation}: "
        f"{totals.samples} samples in {len(manifest.shards)} shards; files: {totals.files_in} in = "
        f"{totals.files_used} used + {totals.files_refused} refused"
    )
