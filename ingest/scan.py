"""One pass over the sources: every file found ends up in exactly one row, with its verdict so far.

Only headers are read here. What a row says does not depend on the order of the sources, on
file names or on how files are packed.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ingest.choice import TAKE_ALL, Choice, apply_choice
from ingest.errors import Reason, SeriesError
from ingest.group import file_id, group_series
from ingest.headers import Header, quiet_pydicom
from ingest.ids import IdKey
from ingest.labels import LabelSources
from ingest.labels_scan import attach_labels, take_labels
from ingest.series import Series
from ingest.sift import sift
from ingest.sources import FileRef, read_files

__all__ = ["ScanConfig", "ScanResult", "Series", "scan"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """What a scan accepts."""

    min_slices: int = 10
    """Series with fewer slice positions are refused."""
    source: str = "default"
    """Name of the collection, recorded with every sample."""
    choice: Choice = TAKE_ALL
    """What is taken of the volumes found."""
    keep_uids: bool = False
    """Note UIDs in the rows: for lists of exclusions, never for a dataset."""


@dataclass(frozen=True, kw_only=True)
class ScanResult:
    """All rows, sorted by series id and reason; their files and labels sum to ``n_files``."""

    series: tuple[Series, ...]
    n_files: int


def scan(
    raw: Sequence[str],
    id_key: IdKey,
    config: ScanConfig | None = None,
    progress: Callable[[int], None] | None = None,
    labels: LabelSources | None = None,
    workers: int = 1,
) -> ScanResult:
    """Find every file under ``raw`` and judge it by its header.

    Args:
        raw: folders, archives, single files, and URLs of buckets.
        id_key: turns UIDs into ids.
        config: what is accepted.
        progress: called with the number of files seen so far, now and then.
        labels: where segmentations of the volumes are.
        workers: processes that read headers where there are many; they change nothing.

    Raises:
        UsageError: a path does not exist, or a bucket cannot be listed.
        IngestError: a bucket does not answer, or a process died.
    """
    config = config or ScanConfig()
    labels = labels or LabelSources()
    found = sift([*raw, *labels.roots], id_key, config.min_slices, workers, progress)
    with quiet_pydicom():
        label_files = take_labels(labels, found.headers, found.rows, id_key)
        headers, duplicates = _split_duplicates(found.headers)
        dicom = group_series(headers, duplicates, id_key, min_slices=config.min_slices)
    needed = found.headers if config.choice.needs_headers or config.keep_uids else []
    by_ref = {header.ref: header for header in needed}
    rows = apply_choice(dicom + _mark_duplicates(found.rows), by_ref, config.choice)
    if config.keep_uids:
        rows = [_with_uids(row, by_ref) for row in rows]
    rows = attach_labels(rows, label_files, labels, headers)
    rows.sort(key=lambda row: (row.series_id, row.reason, row.key, row.n_files, row.detail))
    assert sum(row.n_files + (row.label is not None) for row in rows) == found.n_files
    return ScanResult(series=tuple(rows), n_files=found.n_files)


def _with_uids(row: Series, headers: Mapping[FileRef, Header]) -> Series:
    known = [headers[ref] for ref in row.refs if ref in headers]
    uids = {uid for header in known for uid in (header.study, header.series) if uid}
    patient = next((header.patient for header in known if header.patient), "")
    return replace(row, uids=tuple(sorted(uids)), patient=patient)


def _split_duplicates(headers: Iterable[Header]) -> tuple[list[Header], list[Header]]:
    """(files, further copies of them). A second pass makes sure that copies share every byte."""
    by_id: dict[str, list[Header]] = {}
    for header in headers:
        by_id.setdefault(file_id(header), []).append(header)
    digests = _digests([h.ref for same in by_id.values() if len(same) > 1 for h in same])
    kept: list[Header] = []
    copies: list[Header] = []
    for same in by_id.values():
        seen: set[str] = set()
        for header in same:
            digest = digests.get(header.ref, str(header.ref))
            (copies if digest in seen else kept).append(header)
            seen.add(digest)
    return kept, copies


def _digests(refs: Iterable[FileRef]) -> dict[FileRef, str]:
    """sha256 of each file's bytes; a file that cannot be read any more has none."""
    by_path: dict[str, list[FileRef]] = {}
    for ref in refs:
        by_path.setdefault(ref.path, []).append(ref)
    digests: dict[FileRef, str] = {}
    for same in by_path.values():
        try:
            for ref, data in read_files(same):
                digests[ref] = hashlib.sha256(data).hexdigest()
        except SeriesError as exc:
            logger.warning("while looking for duplicates: %s", exc)
    return digests


def _mark_duplicates(rows: Sequence[Series]) -> list[Series]:
    """Single files of equal content: the first stays, further readable ones are duplicates."""
    seen: Counter[str] = Counter()
    marked = []
    for row in rows:
        if seen[row.series_id] and row.reason is Reason.OK:
            detail = "the same file is there more than once; one is used"
            row = replace(row, key="", reason=Reason.DUPLICATE_FILE, detail=detail)
        seen[row.series_id] += 1
        marked.append(row)
    return marked
