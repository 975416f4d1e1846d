"""One group of series to one shard: the work that runs on a worker."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ingest.allocator import keep_freed_memory
from ingest.config import BuildConfig
from ingest.errors import IngestError, Reason, SeriesError
from ingest.exclude import NO_VOXELS, ExcludedVoxels
from ingest.groups import Group
from ingest.memory import peak_bytes
from ingest.output import STATE, STATE_FOLDER, Output, open_output
from ingest.remote import READ_THREADS
from ingest.sample import HISTOGRAM_BIN_HU, hu_histogram, make_sample, preview, with_label
from ingest.series import Series
from ingest.spool import FinishedSeries, Outcome, pack_series, spool_folder, unpack_series
from shards.failpoints import failpoint
from shards.prefetch import prefetch
from shards.schema import HU_MAX, HU_MIN, FileEntry, dump_json, load_json
from shards.writer import ShardResult, ShardWriter, encode_sample

logger = logging.getLogger(__name__)

SHARED_FROM_VOXELS = 100_000_000
"""Of a group, as scanned: two or three seconds of work, about what starting workers takes."""


@dataclass(frozen=True, kw_only=True)
class GroupTask:
    """All that a worker needs; picklable."""

    group: Group
    out: str
    """Address of the output."""
    config: BuildConfig
    build_sha256: str
    previews: frozenset[str]
    """Keys of the volumes that the report shows."""
    excluded: ExcludedVoxels = NO_VOXELS
    refused: dict[str, Outcome] = field(default_factory=dict)
    """Series that are known to be copies of others, by key: they are not read again."""


@dataclass(frozen=True, kw_only=True)
class SeriesTask:
    """One series of a group, prepared apart from the others; picklable."""

    series: Series
    group: int
    out: str
    config: BuildConfig
    build_sha256: str
    preview: bool
    """Whether the report shows it."""
    excluded: ExcludedVoxels = NO_VOXELS
    refused: Outcome | None = None
    """Where it is known to be a copy of another: it is not read again."""


@dataclass(frozen=True, kw_only=True)
class GroupResult:
    """What a group leaves behind; also its file in the state folder."""

    build_sha256: str
    number: int
    shard: ShardResult | None
    """None when every series was refused."""
    outcomes: dict[str, Outcome]
    """By series key."""
    previews: dict[str, str] = field(default_factory=dict)
    """PNG in base64 by key."""
    hu_histogram: list[int] = field(default_factory=list)
    labels: dict[str, Outcome] = field(default_factory=dict)
    """What became of the labels that were tried, by their volume's key."""
    peak_bytes: int = 0
    """Most memory that its worker ever had; told to a person, never part of the dataset."""
    e_tags: dict[str, str] = field(default_factory=dict)
    """Of its files by name, in a bucket."""

    @property
    def files(self) -> list[FileEntry]:
        """Its shard and the sidecars."""
        if self.shard is None:
            return []
        entry = self.shard.entry
        tar = FileEntry(name=entry.name, bytes=entry.bytes, sha256=entry.sha256)
        return [tar, entry.idx, entry.refs]


def build_group(task: GroupTask) -> GroupResult:
    """Build a group unless that is done already; two processes never disturb each other at it.

    A cluster may give a task twice, to a worker it believes lost and to another one, and the tasks
    of a run that was killed may still be at work when the next one starts.

    Raises:
        IngestError: the build is over, or not in sight here, or another worker keeps the group.
    """
    output = open_output(task.out)
    check_build(output, task.build_sha256)
    try:
        with output.group_lock(task.group.number):
            if (done := finished_result(output, task)) is not None:
                return done
            return _build_group(output, task)
    except FileNotFoundError as exc:
        if output.names(STATE_FOLDER):
            raise
        raise IngestError(f"{task.out}: the build ended while a worker was at it") from exc


def check_build(output: Output, build_sha256: str) -> None:
    """Make sure that the build this task belongs to is still going on in ``output``.

    Raises:
        IngestError: it is not, or this machine does not see it.
    """
    data = output.read(STATE)
    if data is None:
        raise IngestError(
            f"{output.name}: worker on {socket.gethostname()} sees no build there; OUT and RAW "
            "must be at the same paths on every worker of the cluster"
        )
    if json.loads(data)["build_sha256"] != build_sha256:
        raise IngestError(f"{output.name}: holds another build by now")


def _build_group(output: Output, task: GroupTask) -> GroupResult:
    """Read, prepare and write every series of a group; record the result for a later run.

    A series that is refused shortens the shard. Anything unexpected stops the run, with a note that
    names the series.
    """
    outcomes: dict[str, Outcome] = {}
    labels: dict[str, Outcome] = {}
    previews: dict[str, str] = {}
    histogram = np.zeros((HU_MAX - HU_MIN + 1) // HISTOGRAM_BIN_HU, np.int64)
    shard, peak = None, 0
    e_tags: dict[str, str] = {}
    spool = f"{STATE_FOLDER}/{spool_folder(task.group.number)}"
    spooled = output.names(spool)
    with (
        output.workspace() as folder,
        ShardWriter(folder, task.group.number, task.config.profile) as writer,
    ):
        for part in series_tasks(task):
            key = part.series.key
            finished = _spooled(output, f"{spool}/{key}", task) if key in spooled else None
            finished = finish_series(part) if finished is None else finished
            outcomes[key] = finished.outcome
            if finished.label is not None:
                labels[key] = finished.label
            peak = max(peak, finished.peak_bytes)
            if (sample := finished.sample) is None:
                continue
            writer.add_stored(sample.members, sample.index_row, sample.chunk_row)
            histogram += np.array(finished.hu_histogram)
            if finished.preview is not None:
                previews[key] = finished.preview
        if writer.samples:
            shard = writer.close()
            e_tags = output.deliver(folder)
    result = GroupResult(
        build_sha256=task.build_sha256,
        number=task.group.number,
        shard=shard,
        outcomes=outcomes,
        previews=previews,
        hu_histogram=histogram.tolist(),
        labels=labels,
        peak_bytes=max(peak, peak_bytes()),
        e_tags=e_tags,
    )
    save_result(output, result)
    output.remove([f"{spool}/{name}" for name in sorted(spooled)])
    return result


def _spooled(output: Output, path: str, task: GroupTask) -> FinishedSeries | None:
    data = output.read(path)
    return None if data is None else unpack_series(data, task.build_sha256)


def shared_parts(task: GroupTask) -> list[SeriesTask]:
    """What several workers can do of a group; nothing where they would take longer to start."""
    voxels = sum(series.estimated_voxels for series in task.group.series)
    return series_tasks(task) if voxels >= SHARED_FROM_VOXELS else []


def series_tasks(task: GroupTask) -> list[SeriesTask]:
    """The parts of a group, in the order of its shard."""
    return [
        SeriesTask(
            series=series,
            group=task.group.number,
            out=task.out,
            config=task.config,
            build_sha256=task.build_sha256,
            preview=series.key in task.previews,
            excluded=task.excluded,
            refused=task.refused.get(series.key),
        )
        for series in task.group.series
    ]


def spool_series(task: SeriesTask) -> None:
    """Prepare a series and keep it for `build_group`, unless an earlier run did.

    Raises:
        IngestError: the build is over, or not in sight here.
    """
    output = open_output(task.out)
    check_build(output, task.build_sha256)
    path = f"{STATE_FOLDER}/{spool_folder(task.group)}/{task.series.key}"
    data = output.read(path)
    if data is None or unpack_series(data, task.build_sha256) is None:
        packed = pack_series(finish_series(task), task.build_sha256)
        # Not synced to disk: a damaged one is made again.
        output.write(path, packed, durable=False)


def finish_series(task: SeriesTask) -> FinishedSeries:
    """Read, prepare and encode a series, or say why it is refused.

    Anything unexpected is raised, with a note that names the series.
    """
    keep_freed_memory()
    series = task.series
    if task.refused is not None:
        return FinishedSeries(outcome=task.refused)
    try:
        meta, hu, detail = make_sample(series, task.config, task.excluded)
        meta, label, label_outcome = with_label(series, meta, task.config)
    except SeriesError as exc:
        return FinishedSeries(outcome=Outcome(reason=str(exc.reason), detail=exc.detail))
    except Exception as exc:
        exc.add_note(f"while building series {series.series_id}")
        raise
    return FinishedSeries(
        outcome=Outcome(reason=str(Reason.OK), detail=detail, flags=meta.flags),
        sample=encode_sample(meta, hu, task.config.profile, label),
        hu_histogram=hu_histogram(hu).tolist(),
        preview=preview(hu, meta.spacing_zyx_mm) if task.preview else None,
        label=label_outcome,
        peak_bytes=peak_bytes(),
    )


def save_result(output: Output, result: GroupResult) -> None:
    """Write a group's result whole or not at all."""
    output.write(f"{STATE_FOLDER}/{_result_name(result.number)}", dump_json(result))
    failpoint("result_saved")


def finished_result(output: Output, task: GroupTask) -> GroupResult | None:
    """The result of an earlier run, if it was of this build and its files are unchanged."""
    result = _read_result(output, task)
    if result is None or output.changed(result.files, result.e_tags):
        return None
    return result


def finished_results(output: Output, tasks: Sequence[GroupTask]) -> dict[int, GroupResult]:
    """As `finished_result`, of many groups, by number."""
    names = output.names(STATE_FOLDER)
    there = [task for task in tasks if _result_name(task.group.number) in names]
    read = prefetch(lambda task: _read_result(output, task), there, READ_THREADS)
    results = [result for result in read if result is not None]
    changed = output.changed(*files_of(results))
    return {
        result.number: result
        for result in results
        if changed.isdisjoint(file.name for file in result.files)
    }


def files_of(results: Sequence[GroupResult]) -> tuple[list[FileEntry], dict[str, str]]:
    """All files of some groups, and their ETags by name, in a bucket."""
    files = [file for result in results for file in result.files]
    return files, {name: tag for result in results for name, tag in result.e_tags.items()}


def _read_result(output: Output, task: GroupTask) -> GroupResult | None:
    name = _result_name(task.group.number)
    data = output.read(f"{STATE_FOLDER}/{name}")
    if data is None:
        return None
    result = load_json(data, GroupResult, name)
    return result if result.build_sha256 == task.build_sha256 else None


def _result_name(number: int) -> str:
    return f"group-{number:06d}.json"
