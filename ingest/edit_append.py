"""``ingest append``: new series of raw archives into new shards of a dataset.

Shards that are there keep every byte. A series that is stored stays as it is, one that was refused
is judged anew, and one of a withdrawn subject is refused, so that each file still counts once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ingest.budget import Budget
from ingest.config import BuildConfig, build_digest, package_versions
from ingest.edit import Base, Next, drop_work, editing, known_histogram, publish_next
from ingest.edit_arrivals import Arrivals, sort_out
from ingest.errors import Reason, UsageError
from ingest.exclude import NO_EXCLUSIONS, Exclusions
from ingest.groups import cut_groups
from ingest.ids import IdKey
from ingest.listener import Listener
from ingest.output import STATE_FOLDER, start_build
from ingest.output_folder import FolderOutput
from ingest.pipeline import Job, Plan, build_groups, plan_build
from ingest.record import BUILD_RECORD, refused_subjects
from ingest.rows import series_row
from ingest.scan import ScanResult
from ingest.series import Series
from ingest.spool import Outcome
from ingest.work import GroupResult
from shards.copying import kept_shards
from shards.schema import Contract, Manifest, canonical_json
from shards.tables import Row

FREE_SETTINGS = ("shard_mib", "source")
"""May differ from those of the dataset: samples of several collections and shards of several sizes
go together."""


@dataclass(frozen=True, kw_only=True)
class Appended:
    """What an append came to."""

    manifest: Manifest
    changed: bool
    """Whether there is a new generation."""
    files: int
    """Found in the archives."""
    known_files: int
    """Of them: of rows that were in the dataset already, as they are."""
    samples: int
    """Added."""
    reasons: dict[str, int]
    """Refusals that are new, or were looked at again."""


def append(
    raw: Sequence[str],
    given: Mapping[str, Any],
    id_key: IdKey,
    job: Job,
    listener: Listener,
    exclusions: Exclusions = NO_EXCLUSIONS,
) -> Appended:
    """Add what is new in ``raw`` to the dataset in ``job.out``.

    Args:
        raw: folders, archives, files.
        given: settings of ``BuildConfig`` that the user named; the others are the dataset's own.
        id_key: has to be the dataset's.
        job: where and how.
        listener: told how it goes on.
        exclusions: has to be the list that the dataset was built with.

    Raises:
        UsageError: the dataset is made with another key or other settings, or cannot be changed.
        IngestError: as for a build.
    """
    with editing(Path(job.out)) as base:
        config = append_config(base, given, id_key)
        _check_exclusions(base, exclusions)
        scanned = plan_build(
            raw, config, id_key, _ScanOnly(listener), exclusions, workers=job.workers
        )
        arrivals = sort_out(scanned.found.series, base)
        plan = _plan_new(base, scanned, arrivals, config)
        listener.planned(plan.found, len(plan.groups))
        for one in plan.found.series:
            if one.reason != Reason.OK:
                listener.refused(one, Outcome(reason=str(one.reason), detail=one.detail))
        results = _build(base, plan, config, job, listener)
        return _publish(base, plan, scanned.found.n_files, arrivals, results)


def append_config(base: Base, given: Mapping[str, Any], id_key: IdKey) -> BuildConfig:
    """The settings to append with.

    Raises:
        UsageError: they are not known, or ``given`` contradicts them, or another id key.
    """
    where, config = base.folder, base.record.config
    if base.manifest.id_key_fingerprint != id_key.fingerprint:
        raise UsageError(
            f"{where}: was made with another id key; give its file with --id-key, "
            "or its series would get other names"
        )
    if config is None:
        raise UsageError(
            f"{where}: its {BUILD_RECORD} does not say how it was built (lost, or merged from "
            "datasets of different settings); build the new series apart, then `ingest merge`"
        )
    for name, value in given.items():
        if name not in FREE_SETTINGS and getattr(config, name) != value:
            flag = "--" + name.replace("_zyx", "").replace("_", "-")
            raise UsageError(
                f"{where}: was built with {flag} {getattr(config, name)}, not {value}; leave the "
                "flag out, or build another dataset"
            )
    return replace(config, **given)


def _check_exclusions(base: Base, exclusions: Exclusions) -> None:
    """Raise UsageError unless the list is the one that all stored samples were held against."""
    listed = base.record.exclusions.sha256
    if listed != exclusions.sha256:
        built = f"with the exclusion list with SHA-256 {listed}" if listed else "without a list"
        raise UsageError(
            f"{base.folder}: was built {built}; give --exclude as then (another list needs another "
            "build: what is stored was not held against it)"
        )


def _plan_new(base: Base, scanned: Plan, arrivals: Arrivals, config: BuildConfig) -> Plan:
    """Groups of the new series, numbered after the shards that are there."""
    first = base.next_number
    taken = [one for one in arrivals.new if one.reason == Reason.OK]
    groups = cut_groups(taken, config.spacing_zyx_mm, config.shard_mib << 20)
    key = base.manifest.id_key_fingerprint
    digest = build_digest(config, key, arrivals.new, scanned.exclusions.sha256)
    identity = {"append": digest, "to": base.manifest.build_sha256}
    found = ScanResult(series=tuple(arrivals.new), n_files=sum(one.n_files for one in arrivals.new))
    return replace(
        scanned,
        found=found,
        groups=[replace(group, number=first + group.number) for group in groups],
        build_sha256=hashlib.sha256(canonical_json(identity)).hexdigest(),
    )


def _build(
    base: Base, plan: Plan, config: BuildConfig, job: Job, listener: Listener
) -> list[GroupResult]:
    """Build the new shards in the work folder; a run that was stopped goes on there."""
    budget = Budget(plan.found.series, job.max_failures)
    versions = package_versions()
    output = FolderOutput(base.work)
    try:
        if base.work.exists() and not (base.work / STATE_FOLDER).exists():
            drop_work(base)
        start_build(output, plan.build_sha256, versions)
    except UsageError:
        # What is there belongs to a change that nobody completed, of other series or packages.
        drop_work(base)
        start_build(output, plan.build_sha256, versions)
    if not plan.groups:
        return []
    try:
        return build_groups(plan, config, replace(job, out=base.work), budget, listener)
    except BaseException:
        output.clear_partials()
        raise


def _publish(
    base: Base, plan: Plan, n_files: int, arrivals: Arrivals, results: Sequence[GroupResult]
) -> Appended:
    """The next generation, unless nothing has changed."""
    outcomes = {key: outcome for r in results for key, outcome in r.outcomes.items()}
    rows = [series_row(one, outcomes.get(one.key)) for one in plan.found.series]
    shards = [result.shard for result in results if result.shard is not None]
    series = [*arrivals.kept, *rows]
    changed = bool(shards) or _as_set(series) != _as_set(base.series)
    manifest = base.manifest
    if changed:
        manifest = publish_next(base, _following(base, plan, series, rows, results))
    else:
        drop_work(base)
    refused = [row["reason"] for row in rows if changed and row["verdict"] == "refused"]
    return Appended(
        manifest=manifest,
        changed=changed,
        files=n_files,
        known_files=arrivals.known_files if changed else n_files,
        samples=sum(shard.entry.samples for shard in shards),
        reasons={reason: refused.count(reason) for reason in sorted(set(refused))},
    )


def _following(
    base: Base,
    plan: Plan,
    series: Sequence[Row],
    rows: Sequence[Row],
    results: Sequence[GroupResult],
) -> Next:
    histogram = known_histogram(base)
    if histogram is not None:
        counted = [histogram, *(result.hu_histogram for result in results)]
        histogram = [sum(bins) for bins in zip(*(bins for bins in counted if bins), strict=True)]
    named = refused_subjects(plan.found.series, rows)
    return Next(
        change={"append": plan.build_sha256},
        shards=[
            *kept_shards(base.dataset),
            *(result.shard for result in results if result.shard is not None),
        ],
        series=series,
        contract=_with_versions(base.manifest.contract, package_versions() if results else {}),
        record=replace(
            base.record,
            hu_histogram=histogram,
            refused_subjects=base.record.refused_subjects | named,
        ),
        tombstones=base.manifest.tombstones,
        previews={key: png for result in results for key, png in result.previews.items()},
    )


def _with_versions(contract: Contract, versions: Mapping[str, str]) -> Contract:
    """``contract`` with the versions that made the new shards named beside the old ones."""
    return replace(
        contract,
        recorded=replace(
            contract.recorded, versions=join_versions(contract.recorded.versions, versions)
        ),
    )


def join_versions(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """Versions by package; several are listed, in order and each once."""
    joined: dict[str, str] = {}
    for name in sorted({*one, *other}):
        listed = f"{one.get(name, '')}, {other.get(name, '')}".split(", ")
        joined[name] = ", ".join(sorted({version for version in listed if version}))
    return joined


def _as_set(rows: Sequence[Row]) -> list[bytes]:
    return sorted(canonical_json(row) for row in rows)


class _ScanOnly:
    """Passes on how far the scan is; what is new and what is refused is known later."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def files(self, count: int) -> None:
        self._listener.files(count)

    def planned(self, found: ScanResult, groups: int) -> None:
        pass

    def group_done(self, done: int, groups: int) -> None:
        pass

    def refused(self, series: Series, outcome: Outcome) -> None:
        pass
