"""The main job: raw archives to a published dataset. Scan, cut into groups, build each, publish."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ingest.budget import Budget, nothing_accepted
from ingest.choice import Choice
from ingest.cluster import source_roots, worker_complaint
from ingest.config import BuildConfig, build_digest, package_versions
from ingest.duplicates import HashTask, find_copies, hash_series
from ingest.errors import IngestError, Reason
from ingest.exclude import EXCLUSIONS, NO_EXCLUSIONS, Exclusions, exclusion_record
from ingest.groups import Group, cut_groups
from ingest.ids import IdKey
from ingest.labels import LabelSources
from ingest.listener import Listener
from ingest.output import (
    STATE_FOLDER,
    Hold,
    Output,
    complete_build,
    end_build,
    open_output,
    start_build,
    untouched_build,
)
from ingest.record import BUILD_RECORD, BuildRecord, ExclusionList, refused_subjects
from ingest.report import MAX_PREVIEWS, ReportData, render_report
from ingest.rows import count_totals, series_rows
from ingest.scan import ScanConfig, ScanResult, scan
from ingest.scratch import GIB, SCRATCH, with_scratch
from ingest.series import Series
from ingest.spool import Outcome
from ingest.work import (
    GroupResult,
    GroupTask,
    build_group,
    files_of,
    finished_results,
    shared_parts,
    spool_series,
)
from ingest.workers import Split, run_tasks
from shards.failpoints import failpoint
from shards.files import write_atomic
from shards.schema import (
    Contract,
    Manifest,
    MustMatch,
    Recorded,
    canonical_json,
    dump_json,
    generation_id,
)
from shards.writer import publish

T = TypeVar("T")
R = TypeVar("R")
_COPIES = f"{STATE_FOLDER}/copies.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a build would do, known from headers alone."""

    found: ScanResult
    groups: list[Group]
    build_sha256: str
    exclusions: Exclusions = NO_EXCLUSIONS

    @property
    def estimated_bytes(self) -> int:
        """Rough size of all shards."""
        return sum(group.estimated_bytes for group in self.groups)


def plan_build(
    raw: Sequence[str],
    config: BuildConfig,
    id_key: IdKey,
    listener: Listener,
    exclusions: Exclusions = NO_EXCLUSIONS,
    labels: LabelSources | None = None,
    workers: int = 1,
) -> Plan:
    """Scan ``raw`` and cut what can be taken, and is not excluded, into groups.

    Args:
        raw: folders, archives, single files, URLs.
        config: every setting that shapes the dataset.
        id_key: turns UIDs into ids.
        listener: told how it goes on.
        exclusions: what must not be taken.
        labels: where segmentations are.
        workers: processes that read headers where there are many.

    Raises:
        IngestError: nothing was found.
    """
    choice = Choice(
        min_coverage_mm=config.min_coverage_mm, select=config.select, exclusions=exclusions
    )
    options = ScanConfig(min_slices=config.min_slices, source=config.source, choice=choice)
    found = scan(raw, id_key, options, listener.files, labels, workers)
    failpoint("scanned")
    if found.n_files == 0:
        raise IngestError(f"{', '.join(raw)}: no file found; is this the folder you meant?")
    taken = [s for s in found.series if s.reason == Reason.OK]
    groups = cut_groups(taken, config.spacing_zyx_mm, config.shard_mib << 20)
    listener.planned(found, len(groups))
    for series in found.series:
        if series.reason != Reason.OK:
            listener.refused(series, Outcome(reason=str(series.reason), detail=series.detail))
    digest = build_digest(config, id_key.fingerprint, found.series, exclusions.sha256)
    return Plan(found=found, groups=groups, build_sha256=digest, exclusions=exclusions)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Where and how a plan is carried out; none of it changes a byte of the dataset."""

    out: str | Path
    """A folder, or the URL of a prefix of a bucket."""
    workers: int = 1
    dask_scheduler: str | None = None
    """Address of a running scheduler, whose workers see sources and ``out`` at the same paths."""
    take_lock: bool = False
    """Take over the lock of a run that the user knows to be dead, in a bucket."""
    say: Callable[[str], None] = lambda line: None
    """Told what the user should know, in a line."""
    built: Callable[[GroupResult], None] | None = None
    """Told of every group that this run built."""
    max_failures: float = 0.1
    """Share of broken series (unreadable, truncated, undecodable) above which a run fails."""
    scratch_gib: float = 0.0
    """Temporary disk space of each worker, for what compressed archives hold."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers}: give 1 or more")
        if not 0 <= self.scratch_gib < math.inf:
            raise ValueError(f"--scratch-gib {self.scratch_gib:g}: give 0 or more")
        if not 0 <= self.max_failures <= 1:
            raise ValueError(f"--max-failures {self.max_failures:g}: give a share from 0 to 1")


def build(plan: Plan, config: BuildConfig, id_key: IdKey, job: Job, listener: Listener) -> Manifest:
    """Carry out ``plan``; one that was stopped goes on where it was, a complete one stays.

    Raises:
        UsageError: OUT cannot be used.
        FailureBudgetError: too large a share of the series is broken.
        IngestError: no series was accepted, or a worker died.
    """
    output = open_output(job.out)
    with output.naming():
        if (done := untouched_build(output, plan.build_sha256)) is not None:
            return done
        with output.locked(take=job.take_lock, say=job.say) as hold:
            return _build(plan, config, id_key, job, listener, output, hold)


def _build(
    plan: Plan,
    config: BuildConfig,
    id_key: IdKey,
    job: Job,
    listener: Listener,
    output: Output,
    hold: Hold,
) -> Manifest:
    if (done := complete_build(output, plan.build_sha256)) is not None:
        return done
    budget = Budget(plan.found.series, job.max_failures)
    if not plan.groups:
        raise nothing_accepted(plan.found)
    versions = package_versions()
    start_build(output, plan.build_sha256, versions)
    try:
        results = build_groups(plan, config, job, budget, listener, hold)
    except BaseException:
        output.clear_partials()
        raise
    if not any(result.shard for result in results):
        end_build(output)
        raise nothing_accepted(plan.found)
    failpoint("publishing")
    output.confirm(*files_of(results))
    with output.workspace() as folder:
        manifest = _publish(plan, config, id_key, folder, results, versions)
        hold.check()
        output.deliver(folder)
    end_build(output)
    return manifest


def build_groups(
    plan: Plan,
    config: BuildConfig,
    job: Job,
    budget: Budget,
    listener: Listener,
    hold: Hold | None = None,
) -> list[GroupResult]:
    """Build the groups that no earlier run finished; all results, by number."""
    keys = sorted(series.key for group in plan.groups for series in group.series)
    previews = frozenset(keys[:MAX_PREVIEWS])
    output = open_output(job.out)
    copies = _copies(plan, job, output)
    tasks = [
        GroupTask(
            group=group,
            out=output.address,
            config=config,
            build_sha256=plan.build_sha256,
            previews=previews.intersection(s.key for s in group.series),
            excluded=plan.exclusions.voxels,
            refused={s.key: copies[s.key] for s in group.series if s.key in copies},
        )
        for group in plan.groups
    ]
    kept = finished_results(output, tasks)
    waiting = [task for task in tasks if task.group.number not in kept]
    by_key = {series.key: series for group in plan.groups for series in group.series}
    results: list[GroupResult] = []
    split = Split(task=spool_series, parts=shared_parts)
    # Closed before the lock is freed, whatever happens: no worker of ours writes after that.
    with closing(_run(build_group, waiting, plan, job, split)) as built, closing(SCRATCH):
        for result in itertools.chain(kept.values(), built):
            if hold is not None:
                hold.check()
            results.append(result)
            if job.built is not None and result.number not in kept:
                job.built(result)
            listener.group_done(len(results), len(tasks))
            for refused, outcome in _refusals(result, by_key):
                listener.refused(refused, outcome)
                budget.count(outcome.reason)
    return sorted(results, key=lambda r: r.number)


def _refusals(
    result: GroupResult, by_key: Mapping[str, Series]
) -> Iterator[tuple[Series, Outcome]]:
    """Volumes and labels that were refused at the pixel stage."""
    for key, outcome in result.outcomes.items():
        if outcome.reason != Reason.OK:
            yield by_key[key], outcome
    for key, outcome in result.labels.items():
        label = by_key[key].label
        if label is not None and outcome.reason != Reason.OK:
            yield label, outcome


def _run(
    task: Callable[[T], R],
    items: Sequence[T],
    plan: Plan,
    job: Job,
    split: Split[T, Any] | None = None,
) -> Generator[R, None, None]:
    """Do a task for each item where the job says."""
    complaint = None
    if job.dask_scheduler is not None:
        complaint = partial(
            worker_complaint,
            package_versions(),
            sys.version_info[:2],
            open_output(job.out).address,
            source_roots(plan.found.series),
        )
    keep = partial(with_scratch, plan.build_sha256, int(job.scratch_gib * GIB))
    if split is not None:
        split = replace(split, task=partial(keep, split.task))
    task = partial(keep, task)
    return run_tasks(task, items, job.workers, job.dask_scheduler, complaint, split)


def _copies(plan: Plan, job: Job, output: Output) -> dict[str, Outcome]:
    """Series that are others' copies, by key; found once a build, also if it is interrupted."""
    if (data := output.read(_COPIES)) is not None:
        saved = json.loads(data)
    else:

        def run(tasks: Sequence[HashTask]) -> list[tuple[str, str]]:
            if not tasks:
                return []
            with closing(_run(hash_series, tasks, plan, job)) as hashes:
                return list(hashes)

        found = find_copies(plan.found.series, run)
        saved = {key: [str(reason), detail] for key, (reason, detail) in found.items()}
        output.write(_COPIES, canonical_json(saved))
    return {key: Outcome(reason=reason, detail=detail) for key, (reason, detail) in saved.items()}


def _publish(
    plan: Plan,
    config: BuildConfig,
    id_key: IdKey,
    out: Path,
    results: Sequence[GroupResult],
    versions: dict[str, str],
) -> Manifest:
    """Write tables, report and manifest beside the shards."""
    outcomes = {key: outcome for r in results for key, outcome in r.outcomes.items()}
    shards = [r.shard for r in results if r.shard is not None]
    labels = {key: outcome for r in results for key, outcome in r.labels.items()}
    rows = [
        row
        for series in plan.found.series
        for row in series_rows(series, outcomes.get(series.key), labels.get(series.key))
    ]
    contract = Contract(
        must_match=MustMatch(spacing_zyx_mm=config.spacing_zyx_mm),
        recorded=Recorded(
            resampler=config.resample,
            body_crop=config.body_crop,
            profile=config.profile,
            versions=versions,
        ),
    )
    totals = count_totals(rows, shards)
    if plan.exclusions.sha256:
        write_atomic(out / EXCLUSIONS, canonical_json(exclusion_record(plan.exclusions, rows)))
    report = ReportData(
        rows=rows,
        samples=[row for shard in shards for row in shard.index_rows],
        previews={key: png for r in results for key, png in r.previews.items()},
        hu_histogram=[sum(bins) for bins in zip(*(r.hu_histogram for r in results), strict=True)],
        totals=totals,
        contract=contract,
        exclude_sha256=plan.exclusions.sha256,
    )
    shards.sort(key=lambda shard: shard.entry.name)
    record = BuildRecord(
        generation_id=generation_id([shard.entry for shard in shards]),
        config=config,
        hu_histogram=list(report.hu_histogram),
        exclusions=ExclusionList(sha256=plan.exclusions.sha256, entries=plan.exclusions.entries),
        refused_subjects=refused_subjects(plan.found.series, rows),
    )
    write_atomic(out / BUILD_RECORD, dump_json(record))
    return publish(
        out,
        shards,
        rows,
        render_report(report).encode(),
        contract,
        plan.build_sha256,
        id_key.fingerprint,
        totals,
    )
