"""``ingest fingerprint``: a list for ``--exclude`` from raw data."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ingest.commands import Fingerprint
from ingest.errors import IngestError, Reason, UsageError
from ingest.exits import DONE

if TYPE_CHECKING:
    from ingest.scan import ScanResult

MIN_SLICES = 2
"""Evaluation cases count whatever their size."""


def run_fingerprint(command: Fingerprint) -> int:
    """Print UIDs and pixel hashes, sorted; what could not be hashed is said on stderr."""
    from ingest.duplicates import HashTask, hash_series
    from ingest.ids import IdKey
    from ingest.output import check_sources
    from ingest.scan import ScanConfig, scan
    from ingest.terminal import Terminal, where
    from ingest.workers import run_tasks

    check_sources(command.raw)
    workers = (os.cpu_count() or 1) if command.workers is None else command.workers
    if workers < 1:
        raise UsageError(f"--workers {workers}: give 1 or more")
    with Terminal() as terminal:
        options = ScanConfig(min_slices=MIN_SLICES, keep_uids=True)
        # The ids made here leave with nobody, so that no key of the user's is needed.
        found = scan(command.raw, IdKey(key=bytes(32)), options, terminal.files)
        if found.n_files == 0:
            raise IngestError(f"{', '.join(command.raw)}: no file found")
        volumes = {row.key: row for row in found.series if row.reason is Reason.OK}
        tasks = [HashTask(series=row, whole=True) for row in volumes.values()]
        hashes: dict[str, str] = {}
        for key, value in run_tasks(hash_series, tasks, workers, command.dask_scheduler):
            hashes[key] = value
            if not value:
                terminal.say(f"no pixel hash, cannot be read: {where(volumes[key].refs)}")
    for line in entries(found, hashes.values(), patients=command.patients):
        print(line)
    print(f"{len(found.series)} series, {len(hashes)} volumes hashed", file=sys.stderr)
    return DONE


def entries(found: ScanResult, hashes: Iterable[str], *, patients: bool) -> list[str]:
    """Lines of the list: a comment, then UIDs, patients and hashes, each once."""
    from ingest.exclude import uid_line

    uids = {uid for row in found.series for uid in row.uids}
    ids = {row.patient for row in found.series if row.patient} if patients else set()
    return [
        "# Made by `ingest fingerprint`: it identifies these cases; keep it as private as they.",
        *sorted(uid_line(uid) for uid in uids if uid.isprintable()),
        *(f"patient:{one}" for one in sorted(ids) if one.isprintable()),
        *(f"pixels:{one}" for one in sorted(set(hashes) - {""})),
    ]
