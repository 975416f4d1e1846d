"""One group of series to one shard: the work that runs on a worker."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ingest.allocator import keep_freed_memory
from ingest.config import BuildConfig
from ingest.errors import IngestError, Reason, SeriesError
from ingest.exclude import NO_VOXELS, ExcludedVoxels
from ingest.groups import Group
from ingest.lock import waiting_lock
from ingest.memory import peak_bytes
from ingest.sample import HISTOGRAM_BIN_HU, hu_histogram, make_sample, preview, with_label
from ingest.series import Series
from ingest.spool import FinishedSeries, Outcome, load_series, save_series, spool_path
from shards.failpoints import failpoint
from shards.files import write_atomic
from shards.schema import HU_MAX, HU_MIN, dump_json, load_json
from shards.writer import ShardResult, ShardWriter, encode_sample

logger = logging.getLogger(__name__)

SHARED_FROM_VOXELS = 100_000_000
"""Of a group, as scanned: two or three seconds of work, about what starting workers takes."""
STATE_FOLDER = ".build"
"""Inside OUT while a build is unfinished: what a second run needs to go on."""
STATE_FILE = "build.json"
"""In the state folder: which build this is."""
GROUP_WAIT_S = 3600.0
"""How long a group waits for another process that is at the same one."""


@dataclass(frozen=True, kw_only=True)
class GroupTask:
    """All that a worker needs; picklable."""

    group: Group
    out: str
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


def build_group(task: GroupTask) -> GroupResult:
    """Build a group unless that is done already; no two processes ever write the same one.

    A cluster may give a task twice, to a worker it believes lost and to another one, and the tasks
    of a run that was killed may still be at work when the next one starts.

    Raises:
        IngestError: the build is over, or not in sight here, or another worker keeps the group.
    """
    check_build(Path(task.out), task.build_sha256)
    lock = _result_path(Path(task.out), task.group.number).with_suffix(".lock")
    try:
        with waiting_lock(lock, GROUP_WAIT_S):
            if (done := finished_result(task)) is not None:
                return done
            return _build_group(task)
    except FileNotFoundError as exc:
        if lock.parent.exists():
            raise
        raise IngestError(f"{task.out}: the build ended while a worker was at it") from exc


def check_build(out: Path, build_sha256: str) -> None:
    """Make sure that the build this task belongs to is still going on in ``out``.

    Raises:
        IngestError: it is not, or this machine does not see ``out``.
    """
    try:
        state = json.loads((out / STATE_FOLDER / STATE_FILE).read_bytes())
    except OSError as exc:
        raise IngestError(
            f"{out}: worker on {socket.gethostname()} sees no build there; OUT and RAW must be at "
            "the same paths on every worker of the cluster"
        ) from exc
    if state["build_sha256"] != build_sha256:
        raise IngestError(f"{out}: holds another build by now")


def _build_group(task: GroupTask) -> GroupResult:
    """Read, prepare and write every series of a group; record the result for a later run.

    A series that is refused shortens the shard. Anything unexpected stops the run, with a note that
    names the series.
    """
    out = Path(task.out)
    state = out / STATE_FOLDER
    outcomes: dict[str, Outcome] = {}
    labels: dict[str, Outcome] = {}
    previews: dict[str, str] = {}
    histogram = np.zeros((HU_MAX - HU_MIN + 1) // HISTOGRAM_BIN_HU, np.int64)
    shard, peak = None, 0
    with ShardWriter(out, task.group.number, task.config.profile) as writer:
        for part in series_tasks(task):
            key = part.series.key
            finished = load_series(spool_path(state, key), task.build_sha256)
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
    result = GroupResult(
        build_sha256=task.build_sha256,
        number=task.group.number,
        shard=shard,
        outcomes=outcomes,
        previews=previews,
        hu_histogram=histogram.tolist(),
        labels=labels,
        peak_bytes=max(peak, peak_bytes()),
    )
    save_result(out, result)
    for key in outcomes:
        spool_path(state, key).unlink(missing_ok=True)
    return result


def shared_parts(task: GroupTask) -> list[SeriesTask]:
    """What several workers can do of a group; nothing where they would take longer to start."""
    voxels = sum(series.estimated_voxels for series in task.group.series)
    return series_tasks(task) if voxels >= SHARED_FROM_VOXELS else []


def series_tasks(task: GroupTask) -> list[SeriesTask]:
    """The parts of a group, in the order of its shard."""
    return [
        SeriesTask(
            series=series,
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
    check_build(Path(task.out), task.build_sha256)
    path = spool_path(Path(task.out) / STATE_FOLDER, task.series.key)
    if load_series(path, task.build_sha256) is None:
        save_series(path, finish_series(task), task.build_sha256)


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


def save_result(out: Path, result: GroupResult) -> None:
    """Write a group's result whole or not at all."""
    write_atomic(_result_path(out, result.number), dump_json(result))
    failpoint("result_saved")


def finished_result(task: GroupTask) -> GroupResult | None:
    """The result of an earlier run, if it was of this build and its files are unchanged."""
    path = _result_path(Path(task.out), task.group.number)
    if not path.exists():
        return None
    result = load_json(path.read_bytes(), GroupResult, path.name)
    if result.build_sha256 != task.build_sha256:
        return None
    if result.shard is None:
        return result
    entry = result.shard.entry
    for file in (entry, entry.idx, entry.refs):
        if not _unchanged(Path(task.out) / file.name, file.bytes, file.sha256):
            return None
    return result


def _result_path(out: Path, number: int) -> Path:
    return out / STATE_FOLDER / f"group-{number:06d}.json"


def _unchanged(path: Path, nbytes: int, sha256: str) -> bool:
    if not path.is_file() or path.stat().st_size != nbytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256
