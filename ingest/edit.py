"""What every change of a dataset shares: how it begins, and how its next generation is published.

A change is staged in ``.edit`` inside the dataset and takes its place at once
(``shards.generations``). Until then the dataset is as it was; killed afterwards, the next command
that changes it completes the step.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.errors import Reason
from ingest.exclude import EXCLUSIONS, count_excluded
from ingest.lock import locked
from ingest.output import STATE_FOLDER
from ingest.record import BUILD_RECORD, BuildRecord, ExclusionList, one_way, read_record
from ingest.report import MAX_PREVIEWS, ReportData, render_report
from ingest.rows import count_totals
from ingest.sample import hu_histogram, preview
from shards.dataset import Dataset, Sample
from shards.errors import NotADatasetError, ShardError
from shards.files import sync_folder, write_atomic
from shards.generations import commit, finish_commit
from shards.schema import (
    MANIFEST,
    SERIES,
    Contract,
    Manifest,
    canonical_json,
    dump_json,
    generation_id,
    shard_number,
)
from shards.tables import Row
from shards.writer import KeptShard, ShardResult, publish

EDIT_FOLDER = ".edit"
"""Inside a dataset while a change of it is made: nothing in it counts yet."""
AnyShard: TypeAlias = ShardResult | KeptShard


@dataclass(frozen=True, kw_only=True)
class Base:
    """A dataset as it is before a change."""

    folder: Path
    dataset: Dataset
    record: BuildRecord
    series: list[Row]
    """Rows of ``series.parquet``."""

    @property
    def manifest(self) -> Manifest:
        """The manifest of the generation that is changed."""
        return self.dataset.manifest

    @property
    def next_number(self) -> int:
        """Of the first new shard."""
        return 1 + max((shard_number(shard.name) for shard in self.manifest.shards), default=-1)

    @property
    def work(self) -> Path:
        """Where the next generation is staged."""
        return self.folder / EDIT_FOLDER


@dataclass(frozen=True, kw_only=True)
class Next:
    """What the next generation holds, and what a reader of its report is told."""

    change: dict[str, Any]
    """Names the change, with plain values; its digest becomes part of ``build_sha256``."""
    shards: Sequence[AnyShard]
    series: Sequence[Row]
    contract: Contract
    record: BuildRecord
    """Its ``generation_id`` is filled in."""
    tombstones: Sequence[str] = ()
    previews: Mapping[str, str] = field(default_factory=dict)
    """Pictures that are there already, by key; the others are made from the stored volumes."""


@contextmanager
def editing(out: Path) -> Iterator[Base]:
    """Hold the dataset in ``out`` for a change; a step that was cut short is completed first.

    Raises:
        UsageError: another process writes there.
        NotADatasetError: no dataset there.
    """
    if not (out / MANIFEST).exists():
        raise NotADatasetError(f"{out}: no {MANIFEST} there; give the output of `build-shards`")
    with locked(out):
        finish_commit(out)
        # Of a build that was stopped right after its manifest.
        shutil.rmtree(out / STATE_FOLDER, ignore_errors=True)
        yield open_base(out)


def open_base(out: Path) -> Base:
    """A dataset with all that a change of it needs to know."""
    dataset = Dataset.open(out)
    series = pq.read_table(pa.BufferReader(read_series(dataset))).to_pylist()
    return Base(folder=out, dataset=dataset, record=read_record(dataset), series=series)


def read_series(dataset: Dataset) -> bytes:
    """The bytes of ``series.parquet``, checked against the manifest."""
    return dataset.file(SERIES)


def clear_work(base: Base) -> Path:
    """An empty folder to stage in; what an unfinished change of another kind left is dropped."""
    shutil.rmtree(base.work, ignore_errors=True)
    base.work.mkdir()
    return base.work


def publish_next(base: Base, following: Next) -> Manifest:
    """Stage the tables, the report, the record and the manifest, and make them take their place."""
    build = {"before": base.manifest.build_sha256, **following.change}
    manifest = publish_in(
        base.work,
        following,
        build_sha256=hashlib.sha256(canonical_json(build)).hexdigest(),
        id_key_fingerprint=base.manifest.id_key_fingerprint,
        generation=base.manifest.generation + 1,
        picture=base.dataset.sample,
    )
    shutil.rmtree(base.work / STATE_FOLDER, ignore_errors=True)
    commit(base.folder, base.work)
    return manifest


def publish_in(
    folder: Path,
    following: Next,
    *,
    build_sha256: str,
    id_key_fingerprint: str,
    generation: int,
    picture: Callable[[str], Sample],
) -> Manifest:
    """Write everything but the shards into ``folder``, the manifest last.

    Args:
        folder: where new shards lie already.
        following: what is to be published.
        build_sha256: of the manifest.
        id_key_fingerprint: of the manifest.
        generation: of the manifest.
        picture: reads a sample that has no preview yet.
    """
    shards = sorted(following.shards, key=lambda shard: shard.entry.name)
    series = sorted(following.series, key=_series_order)
    totals = count_totals(series, shards)
    samples = [row for shard in shards for row in shard.index_rows]
    report = ReportData(
        rows=series,
        samples=samples,
        previews=_previews(samples, following.previews, picture),
        hu_histogram=following.record.hu_histogram or [],
        totals=totals,
        contract=following.contract,
        generation=generation,
        withdrawn=len(following.tombstones),
        exclude_sha256=following.record.exclusions.sha256,
    )
    _write_exclusions(folder, following.record.exclusions, series)
    names = generation_id([shard.entry for shard in shards], sorted(following.tombstones))
    record = {**following.record.__dict__, "generation_id": names}
    write_atomic(folder / BUILD_RECORD, dump_json(BuildRecord(**record)))
    return publish(
        folder,
        shards,
        series,
        render_report(report).encode(),
        following.contract,
        build_sha256,
        id_key_fingerprint,
        totals,
        generation=generation,
        tombstones=following.tombstones,
    )


def _write_exclusions(folder: Path, listed: ExclusionList, series: Sequence[Row]) -> None:
    """The file on the exclusion list, where there is one, with what it excludes by now."""
    if listed.sha256:
        said = {"sha256": listed.sha256, "entries": listed.entries}
        data = canonical_json({**said, "excluded": count_excluded(series)})
        write_atomic(folder / EXCLUSIONS, data)


def _series_order(row: Row) -> tuple[Any, ...]:
    """The scan's own order of rows."""
    return row["series_id"], row["reason"], row["key"] or "", row["n_files"], row["detail"]


def _previews(
    samples: Sequence[Row], there: Mapping[str, str], picture: Callable[[str], Sample]
) -> dict[str, str]:
    """Pictures of the first volumes by key, as a first build shows them."""
    pictures: dict[str, str] = {}
    for key in sorted(row["key"] for row in samples)[:MAX_PREVIEWS]:
        if key in there:
            pictures[key] = there[key]
            continue
        try:
            sample = picture(key)
        except ShardError:
            continue  # Damaged: `ingest verify` says so; a change must be possible all the same.
        pictures[key] = preview(sample.hu, sample.meta.spacing_zyx_mm)
    return pictures


def histogram_of(dataset: Dataset, keys: Iterable[str]) -> list[int] | None:
    """Stored voxels of some samples by HU, from the shards; None if one cannot be read."""
    total: list[int] | None = None
    try:
        for key in keys:
            bins = hu_histogram(dataset.sample(key).hu)
            total = bins.tolist() if total is None else (np.array(total) + bins).tolist()
    except ShardError:
        return None
    return total or []


def known_histogram(base: Base) -> list[int] | None:
    """The histogram of all samples: recorded, or counted from the shards."""
    if base.record.hu_histogram is not None:
        return base.record.hu_histogram
    return histogram_of(base.dataset, base.dataset.keys())


def without(histogram: list[int] | None, dataset: Dataset, keys: Iterable[str]) -> list[int] | None:
    """``histogram`` less what the samples ``keys`` added to it."""
    gone = histogram_of(dataset, keys)
    if histogram is None or gone is None:
        return None
    return (np.array(histogram) - np.array(gone)).tolist() if gone else histogram


def withdrawn_row(row: Row) -> Row:
    """A row of ``series.parquet`` of which only its files still count."""
    if row["reason"] == Reason.WITHDRAWN:
        return row
    return row | {
        "series_id": one_way(row["series_id"]),
        "verdict": "refused",
        "reason": str(Reason.WITHDRAWN),
        "detail": "",
        "n_slices": 0,
        "key": None,
        "modality": "",
        "geometry": "",
        "shape_zyx": None,
        "spacing_zyx_mm": None,
        "flags": [],
    }


def drop_work(base: Base) -> None:
    """Remove what was staged for nothing."""
    shutil.rmtree(base.work, ignore_errors=True)
    sync_folder(base.folder)
