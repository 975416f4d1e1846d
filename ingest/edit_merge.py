"""``ingest merge``: several datasets into a new one, sample by sample as they are.

What is withdrawn in any of them is in none of the output: neither bytes nor tombstones are carried
over, and the list of withdrawn subjects is. Sources are read only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from ingest.config import BuildConfig
from ingest.edit import (
    AnyShard,
    Base,
    Next,
    known_histogram,
    open_base,
    publish_in,
    withdrawn_row,
    without,
)
from ingest.edit_append import FREE_SETTINGS, join_versions
from ingest.edit_parts import Part, all_forgotten, check_alike, check_apart, cut_parts
from ingest.errors import Reason
from ingest.lock import locked
from ingest.output import complete_build, end_build, start_build
from ingest.output_folder import FolderOutput
from ingest.record import BuildRecord, ExclusionList, Origin, one_way
from shards.copying import copy_samples, kept_shards
from shards.dataset import Sample
from shards.errors import CorruptShardError
from shards.files import write_atomic, write_atomically
from shards.schema import (
    MANIFEST,
    Contract,
    Manifest,
    ShardEntry,
    canonical_json,
    idx_name,
    refs_name,
    shard_name,
)
from shards.sidecars import kerchunk_refs, parse_idx
from shards.store import get, stream
from shards.tables import Row
from shards.writer import KeptShard


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What a merge came to."""

    manifest: Manifest
    changed: bool
    """False when this very merge was complete already."""
    duplicates: int
    """Samples that several sources hold; one copy of each is in the output."""
    withdrawn: int
    """Samples of a source that another source has withdrawn."""


def merge(
    sources: Sequence[Path], out: Path, progress: Callable[[str], None] | None = None
) -> Merged:
    """Make a dataset of all samples of the sources.

    Args:
        sources: two datasets or more, in the order of their shards in the output.
        out: a new or empty folder; a merge that was stopped there goes on.
        progress: called with the name of each finished shard.

    Raises:
        UsageError: the sources do not go together, or ``out`` cannot be used.
        ShardError: a source cannot be read.
    """
    bases = [open_base(source) for source in sources]
    check_alike(bases)
    check_apart(sources, out)
    parts = cut_parts(bases)
    digest = hashlib.sha256(
        canonical_json({"merge": [base.manifest.build_sha256 for base in bases]})
    ).hexdigest()
    summary = {
        "duplicates": sum(len(part.duplicates) for part in parts),
        "withdrawn": sum(len(part.withdrawn) for part in parts),
    }
    with locked(out):
        output = FolderOutput(out)
        if (done := complete_build(output, digest)) is not None:
            return Merged(manifest=done, changed=False, **summary)
        start_build(output, digest, {})
        shards = _gather(parts, out, progress)
        manifest = _publish(parts, out, shards, digest)
        end_build(output)
    return Merged(manifest=manifest, changed=True, **summary)


def _gather(
    parts: Sequence[Part], out: Path, progress: Callable[[str], None] | None
) -> list[AnyShard]:
    """Bring the shards to ``out`` under new numbers."""
    shards: list[AnyShard] = []
    for part in parts:
        for shard in kept_shards(part.base.dataset, part.left_out):
            if not shard.index_rows:
                continue
            if len(shard.index_rows) == shard.entry.samples:
                shards.append(_take_whole(part.base, shard, out, len(shards)))
            else:
                dataset = part.base.dataset
                profile = dataset.manifest.contract.recorded.profile
                shards.append(copy_samples(dataset.store, shard, out, len(shards), profile))
            if progress is not None:
                progress(shards[-1].entry.name)
    return shards


def _take_whole(base: Base, shard: KeptShard, out: Path, number: int) -> KeptShard:
    """A shard under a new number: linked where the file system can, copied elsewhere."""
    entry, name = shard.entry, shard_name(number)
    _link_or_copy(base, entry, out / name)
    idx = get(base.dataset.store, entry.idx.name)
    samples = parse_idx(idx, entry.idx.name)
    members = [member for sample in samples.values() for member in sample.values()]
    return KeptShard(
        entry=replace(
            entry,
            name=name,
            idx=write_atomic(out / idx_name(name), idx),
            refs=write_atomic(out / refs_name(name), kerchunk_refs(name, members)),
        ),
        index_rows=[row | {"shard": name} for row in shard.index_rows],
        read_chunks=shard.read_chunks,
    )


def _link_or_copy(base: Base, entry: ShardEntry, target: Path) -> None:
    if target.exists() and target.stat().st_size == entry.bytes:
        return  # Of a run that was stopped: it got its name when it was whole.
    target.unlink(missing_ok=True)
    try:
        os.link(base.folder / entry.name, target)
    except OSError:
        write_atomically(target, lambda file: _copy(base, entry, file))


def _copy(base: Base, entry: ShardEntry, file: BinaryIO) -> None:
    """Copy a shard, checking it on the way."""
    digest = hashlib.sha256()
    for piece in stream(base.dataset.store, entry.name):
        digest.update(piece)
        file.write(piece)
    if digest.hexdigest() != entry.sha256:
        raise CorruptShardError(
            f"{base.folder}: {entry.name}: SHA-256 is not that in {MANIFEST}; "
            "`ingest verify` says what is wrong"
        )


def _publish(parts: Sequence[Part], out: Path, shards: Sequence[AnyShard], digest: str) -> Manifest:
    bases = [part.base for part in parts]
    giver = {}
    for part in parts:
        taken = set(part.base.dataset.keys()) - part.left_out
        giver.update(dict.fromkeys(taken, part.base))

    def picture(key: str) -> Sample:
        return giver[key].dataset.sample(key)

    following = Next(
        change={},
        shards=shards,
        series=[row for part in parts for row in _rows(part, all_forgotten(bases))],
        contract=_contract([base.manifest.contract for base in bases]),
        record=_record(parts),
    )
    return publish_in(
        out,
        following,
        build_sha256=digest,
        id_key_fingerprint=bases[0].manifest.id_key_fingerprint,
        generation=1,
        picture=picture,
    )


def _rows(part: Part, forgotten: Collection[str]) -> list[Row]:
    """Rows of ``series.parquet``: each file of each source counts in one of them."""
    named = part.base.record.refused_subjects
    gone = {series for series, subject in named.items() if one_way(subject) in forgotten}
    gone |= {row["series_id"] for row in part.base.series if row["key"] in part.withdrawn}
    rows = []
    for row in part.base.series:
        if row["series_id"] in gone:
            rows.append(withdrawn_row(row))
        elif row["key"] in part.duplicates:
            reason = str(Reason.DUPLICATE_SERIES)
            rows.append(row | {"verdict": "refused", "reason": reason, "key": None})
        else:
            rows.append(row)
    return rows


def _contract(contracts: Sequence[Contract]) -> Contract:
    """The common contract; what is only recorded is listed where it differs."""
    recorded = [contract.recorded for contract in contracts]
    versions: dict[str, str] = {}
    for one in recorded:
        versions = join_versions(versions, one.versions)
    return replace(
        contracts[0],
        recorded=replace(
            recorded[0],
            resampler=", ".join(sorted({r for one in recorded for r in one.resampler.split(", ")})),
            body_crop=all(one.body_crop for one in recorded),
            versions=versions,
        ),
    )


def _record(parts: Sequence[Part]) -> BuildRecord:
    bases = [part.base for part in parts]
    forgotten = all_forgotten(bases)
    refused = {
        series: subject
        for base in bases
        for series, subject in base.record.refused_subjects.items()
        if one_way(subject) not in forgotten
    }
    lists = [base.record.exclusions for base in bases]
    same_list = all(one == lists[0] for one in lists)
    config = _common_config([base.record.config for base in bases])
    return BuildRecord(
        generation_id="",
        config=config if same_list else None,
        exclusions=lists[0] if same_list else ExclusionList(),
        hu_histogram=_histogram(parts),
        forgotten=sorted(forgotten),
        refused_subjects=refused,
        merged_from=[
            Origin(
                generation=base.manifest.generation,
                generation_id=base.manifest.generation_id,
                build_sha256=base.manifest.build_sha256,
            )
            for base in bases
        ],
    )


def _common_config(configs: Sequence[BuildConfig | None]) -> BuildConfig | None:
    """The first source's settings, if the others' differ only where an append may."""
    first = configs[0]
    for config in configs:
        if first is None or config is None:
            return None
        if replace(config, **{name: getattr(first, name) for name in FREE_SETTINGS}) != first:
            return None
    return first


def _histogram(parts: Sequence[Part]) -> list[int] | None:
    total: list[int] = []
    for part in parts:
        dataset = part.base.dataset
        bins = without(known_histogram(part.base), dataset, sorted(part.left_out))
        if bins is None:
            return None
        total = (
            [sum(pair) for pair in zip(total, bins, strict=True)]
            if total and bins
            else (total or bins)
        )
    return total
