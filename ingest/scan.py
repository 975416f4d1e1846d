"""One pass over the sources: every file found ends up in exactly one row, with its verdict so far.

Only headers are read here. What a row says does not depend on the order of the sources, on
file names or on how files are packed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO

from ingest.choice import TAKE_ALL, Choice, apply_choice
from ingest.errors import Reason, SeriesError
from ingest.geometry import spacing_of
from ingest.group import file_id, group_series
from ingest.headers import Header, looks_like_dicom, quiet_pydicom, read_header
from ingest.ids import IdKey
from ingest.labels import LabelSources
from ingest.labels_scan import attach_labels, take_labels
from ingest.nifti import HEADER_BYTES, NiftiGrid, looks_like_nifti, read_grid
from ingest.series import Series
from ingest.sources import FileRef, OpenFile, SourceProblem, read_files, walk

__all__ = ["ScanConfig", "ScanResult", "Series", "scan"]

logger = logging.getLogger(__name__)

_STRAY_HASH_BYTES = 1 << 20
"""This much of a file that is no image, and its size, make its id: no film is read to its end."""
_BLOCK_BYTES = 1 << 20


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


@dataclass
class _Found:
    """Files by kind, as the walk meets them."""

    headers: list[Header] = field(default_factory=list)
    rows: list[Series] = field(default_factory=list)


def scan(
    raw: Sequence[str],
    id_key: IdKey,
    config: ScanConfig | None = None,
    progress: Callable[[int], None] | None = None,
    labels: LabelSources | None = None,
) -> ScanResult:
    """Find every file under ``raw`` and judge it by its header.

    Args:
        raw: folders, archives, single files.
        id_key: turns UIDs into ids.
        config: what is accepted.
        progress: called with the number of files seen so far.
        labels: where segmentations of the volumes are.

    Raises:
        UsageError: a path does not exist.
    """
    config = config or ScanConfig()
    labels = labels or LabelSources()
    found = _Found()
    n_files = 0
    with quiet_pydicom():
        for item in walk([*raw, *labels.roots]):
            n_files += 1
            if isinstance(item, SourceProblem):
                found.rows.append(_problem_row(item, id_key))
            else:
                _take(item, found, id_key, config)
            if progress is not None:
                progress(n_files)
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
    assert sum(row.n_files + (row.label is not None) for row in rows) == n_files
    return ScanResult(series=tuple(rows), n_files=n_files)


def _with_uids(row: Series, headers: Mapping[FileRef, Header]) -> Series:
    known = [headers[ref] for ref in row.refs if ref in headers]
    uids = {uid for header in known for uid in (header.study, header.series) if uid}
    patient = next((header.patient for header in known if header.patient), "")
    return replace(row, uids=tuple(sorted(uids)), patient=patient)


def _take(item: OpenFile, found: _Found, id_key: IdKey, config: ScanConfig) -> None:
    """Read one file's header and put it where it belongs."""
    stream, ref = item.stream, item.ref
    try:
        size = stream.seek(0, 2)
        stream.seek(0)
        head = stream.read(HEADER_BYTES)
        stream.seek(0)
        if looks_like_nifti(head):
            found.rows.append(_nifti_row(item, size, id_key, config))
        elif looks_like_dicom(head):
            _take_dicom(item, size, found, id_key)
        else:
            reason, detail = Reason.NOT_MEDICAL_IMAGE, "neither DICOM nor NIfTI"
            found.rows.append(_stray_row(ref, _stray_id(stream, size), id_key, reason, detail))
    except OSError as exc:
        detail = exc.strerror or "read error"
        found.rows.append(_stray_row(ref, str(ref), id_key, Reason.UNREADABLE_FILE, detail))


def _take_dicom(item: OpenFile, size: int, found: _Found, id_key: IdKey) -> None:
    try:
        header = read_header(item.ref, item.stream, size)
    except OSError:
        raise
    except Exception as exc:  # pydicom raises an open family of errors on garbage
        logger.debug("header of %s: %r", item.ref, exc)
        detail = f"the DICOM header is damaged ({type(exc).__name__})"
        content = _sha256(item.stream)
        found.rows.append(
            _stray_row(item.ref, content, id_key, Reason.UNREADABLE_FILE, detail, kind="dicom")
        )
    else:
        if not header.sop_instance:
            header = replace(header, content_sha256=_sha256(item.stream))
        found.headers.append(header)


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


def _digests(refs: Sequence[FileRef]) -> dict[FileRef, str]:
    """sha256 of each file's bytes; a file that cannot be read any more has none."""
    digests: dict[FileRef, str] = {}
    for path in dict.fromkeys(ref.path for ref in refs):
        try:
            for ref, data in read_files([ref for ref in refs if ref.path == path]):
                digests[ref] = hashlib.sha256(data).hexdigest()
        except SeriesError as exc:
            logger.warning("while looking for duplicates: %s", exc)
    return digests


def _nifti_row(item: OpenFile, size: int, id_key: IdKey, config: ScanConfig) -> Series:
    content = _sha256(item.stream)
    row = _stray_row(item.ref, content, id_key, Reason.OK, "", kind="nifti")
    row = replace(row, modality="CT")
    item.stream.seek(0)
    try:
        grid = read_grid(item.stream, size)
    except SeriesError as exc:
        return replace(row, reason=exc.reason, detail=exc.detail)
    row = _with_grid(row, grid, id_key.id("volume", content))
    if row.n_slices < config.min_slices:
        detail = f"{row.n_slices} slice(s); at least {config.min_slices} are needed"
        return replace(row, reason=Reason.TOO_FEW_SLICES, detail=detail)
    return row


def _with_grid(row: Series, grid: NiftiGrid, key: str) -> Series:
    spacing = spacing_of(grid.affine)
    return replace(
        row,
        key=key,
        slice_of_ref=(0,),
        n_slices=grid.shape_zyx[0],
        geometry=grid.geometry,
        shape_zyx=grid.shape_zyx,
        spacing_zyx_mm=spacing,
        affine=tuple(map(tuple, grid.affine.tolist())),
        slice_mm=spacing[0],
    )


def _problem_row(problem: SourceProblem, id_key: IdKey) -> Series:
    ref = problem.ref
    try:
        with open(ref.path, "rb") as file:
            stored = _stray_id(file, os.path.getsize(ref.path))
    except OSError:
        stored = ref.path  # nothing of it can be read, so its name has to do
    return _stray_row(ref, f"{stored} {ref.index}", id_key, problem.reason, problem.detail)


def _stray_row(
    ref: FileRef, identity: str, id_key: IdKey, reason: Reason, detail: str, kind: str = "other"
) -> Series:
    """A file that is a series of its own."""
    series_id = id_key.id("file", identity)
    return Series(
        series_id=series_id,
        subject_id=series_id,
        study_id=series_id,
        source_kind=kind,
        refs=(ref,),
        reason=reason,
        detail=detail,
        n_files=1,
    )


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


def _sha256(stream: IO[bytes]) -> str:
    stream.seek(0)
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _stray_id(stream: IO[bytes], size: int) -> str:
    stream.seek(0)
    return f"{size} {hashlib.sha256(stream.read(_STRAY_HASH_BYTES)).hexdigest()}"
