"""``ingest forget`` and ``ingest compact``: a withdrawn consent, at once and for good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ingest.edit import (
    AnyShard,
    Base,
    Next,
    clear_work,
    editing,
    histogram_of,
    known_histogram,
    publish_next,
    withdrawn_row,
    without,
)
from ingest.errors import UsageError
from ingest.ids import IdKey
from ingest.record import one_way
from shards.copying import copy_samples, kept_shards
from shards.schema import Manifest
from shards.tables import Row


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What was withdrawn."""

    manifest: Manifest
    changed: bool
    """Whether there is a new generation: false when all was withdrawn before."""
    samples: int
    series: int
    """Rows of ``series.parquet`` that say ``withdrawn`` now and did not before."""


def keyed_subjects(
    out: Path, patients: Sequence[str], issuer: str, id_key: IdKey, fingerprint: str
) -> dict[str, str]:
    """Subject ids of patients that are named as the hospital does, with that name.

    Raises:
        UsageError: the dataset was made with another key.
    """
    if patients and id_key.fingerprint != fingerprint:
        raise UsageError(f"{out}: was made with another id key; give its file with --id-key")
    return {id_key.id("subject", issuer.strip(), patient.strip()): patient for patient in patients}


def forget(out: Path, subjects: Sequence[str], shown: dict[str, str] | None = None) -> Forgotten:
    """Withdraw subjects: their samples are served no more, and never taken again.

    Args:
        out: the dataset.
        subjects: their ids.
        shown: what an error calls an id, where that is not the id itself.

    Raises:
        UsageError: a subject that the dataset does not know; nothing is changed then.
    """
    with editing(out) as base:
        wanted, known = set(subjects), set(base.record.forgotten)
        samples = base.dataset.index.select(["key", "subject_id"]).to_pylist()
        keys = {row["key"] for row in samples if row["subject_id"] in wanted}
        refused = {s: who for s, who in base.record.refused_subjects.items() if who in wanted}
        there = {row["subject_id"] for row in samples} | set(refused.values())
        for subject in sorted(wanted):
            if subject not in there and one_way(subject) not in known:
                name = (shown or {}).get(subject, subject)
                raise UsageError(f"{out}: holds no subject {name}; nothing was changed")
        series = _withdraw(base.series, keys, set(refused))
        changed = sum(a != b for a, b in zip(series, base.series, strict=True))
        if not changed and known >= {one_way(subject) for subject in wanted}:
            return Forgotten(manifest=base.manifest, changed=False, samples=0, series=0)
        clear_work(base)
        manifest = publish_next(base, _following(base, wanted, keys, set(refused), series))
    return Forgotten(manifest=manifest, changed=True, samples=len(keys), series=changed)


def _withdraw(rows: Sequence[Row], keys: set[str], series_ids: set[str]) -> list[Row]:
    """The rows, with those of some samples and series withdrawn, other pieces included."""
    series_ids = series_ids | {row["series_id"] for row in rows if row["key"] in keys}
    return [withdrawn_row(row) if row["series_id"] in series_ids else row for row in rows]


def _following(
    base: Base, subjects: set[str], keys: set[str], refused: set[str], series: Sequence[Row]
) -> Next:
    forgotten = sorted({*base.record.forgotten, *map(one_way, subjects)})
    if base.record.hu_histogram is None:
        histogram = histogram_of(base.dataset, sorted(set(base.dataset.keys()) - keys))
    else:
        histogram = without(base.record.hu_histogram, base.dataset, sorted(keys))
    left = {s: who for s, who in base.record.refused_subjects.items() if s not in refused}
    return Next(
        change={"forget": sorted(map(one_way, subjects))},
        shards=kept_shards(base.dataset, keys),
        series=series,
        contract=base.manifest.contract,
        record=replace(
            base.record, hu_histogram=histogram, forgotten=forgotten, refused_subjects=left
        ),
        tombstones=sorted({*base.manifest.tombstones, *keys}),
    )


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """What was removed from the shards."""

    manifest: Manifest
    samples: int
    rewritten: int
    """Shards that were written anew."""
    dropped: int
    """Shards of which nothing was left."""
    bytes_freed: int


def compact(out: Path, progress: Callable[[str], None] | None = None) -> Compacted:
    """Write the shards that hold withdrawn samples anew without them; the rest is not touched.

    Args:
        out: the dataset.
        progress: called with the name of each shard that was rewritten.

    Raises:
        CorruptShardError: a shard to be rewritten is damaged.
    """
    with editing(out) as base:
        before, gone = base.manifest, len(base.manifest.tombstones)
        if not gone:
            return Compacted(manifest=before, samples=0, rewritten=0, dropped=0, bytes_freed=0)
        clear_work(base)
        shards, rewritten, dropped = _rewrite(base, progress)
        record = replace(base.record, hu_histogram=known_histogram(base))
        manifest = publish_next(
            base,
            Next(
                change={"compact": gone},
                shards=shards,
                series=base.series,
                contract=before.contract,
                record=record,
            ),
        )
    return Compacted(
        manifest=manifest,
        samples=gone,
        rewritten=rewritten,
        dropped=dropped,
        bytes_freed=before.totals.shard_bytes - manifest.totals.shard_bytes,
    )


def _rewrite(base: Base, progress: Callable[[str], None] | None) -> tuple[list[AnyShard], int, int]:
    """The shards without withdrawn samples; how many were written anew, and how many are gone."""
    shards: list[AnyShard] = []
    rewritten = dropped = 0
    number = base.next_number
    for shard in kept_shards(base.dataset):
        if len(shard.index_rows) == shard.entry.samples:
            shards.append(shard)
        elif not shard.index_rows:
            dropped += 1
        else:
            # Under a new name: whoever still reads the old generation gets no mixture.
            profile = base.manifest.contract.recorded.profile
            copied = copy_samples(base.dataset.store, shard, base.work, number, profile)
            shards.append(copied)
            number, rewritten = number + 1, rewritten + 1
            if progress is not None:
                progress(shard.entry.name)
    return shards, rewritten, dropped
