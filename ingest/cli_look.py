"""``ingest verify``, ``ingest inspect`` and ``ingest demo-archive``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.commands import DemoArchive, Inspect, Verify
from ingest.errors import UsageError
from ingest.exits import DONE, FAILED, emit

if TYPE_CHECKING:
    from shards.dataset import Dataset

MONTAGE_VOLUMES = 12
"""Volumes on a montage."""


def run_verify(command: Verify) -> int:
    """``ingest verify``."""
    from shards.verify import verify

    report = verify(command.url)
    for problem in report.problems:
        print(problem, file=sys.stderr)
    if command.json:
        emit(asdict(report))
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
        if (label := dataset.label(command.key)) is not None:
            record["label"] = converter.unstructure(label.meta)
    else:
        record = converter.unstructure(dataset.manifest.totals)
        record["labelled"] = labelled_count(dataset)
    if command.json:
        emit(record)
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
        f"{totals.shard_bytes:,} bytes, {totals.voxels:,} voxels, "
        f"{labelled_count(dataset)} with labels"
    )
    for row in dataset.index.to_pylist():
        shape = " x ".join(map(str, row["shape_zyx"]))
        spacing = " x ".join(f"{mm:.3g}" for mm in row["spacing_zyx_mm"])
        label = "  labels" if row["labelled"] else ""
        print(f"{row['key']}  {row['shard']}  {shape:<16} {spacing} mm  {row['kernel']}{label}")


def labelled_count(dataset: Dataset) -> int:
    """Samples that have a label volume."""
    return sum(dataset.index["labelled"].to_pylist())


def _write_montage(dataset: Dataset, keys: Sequence[str], path: Path) -> None:
    """Three planes of each volume as one PNG, with the outlines of its labels."""
    from ingest.montage import montage, png_bytes

    samples = (dataset.sample(key) for key in keys)
    sheet = montage(
        (s.meta.key, s.hu, s.meta.spacing_zyx_mm, None if label is None else label.values)
        for s, label in ((s, dataset.label(s.meta.key)) for s in samples)
    )
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
