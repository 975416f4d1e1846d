"""Each file by its header: a DICOM header to be grouped, or a row of its own.

Files are sorted out by several processes where there are many; the result is the same as by one.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from typing import IO

from ingest.errors import IngestError, Reason, SeriesError
from ingest.geometry import spacing_of
from ingest.headers import Header, looks_like_dicom, quiet_pydicom, read_header
from ingest.ids import IdKey
from ingest.listing import Source, find_sources
from ingest.nifti import HEADER_BYTES, NiftiGrid, looks_like_nifti, read_grid
from ingest.readahead import open_whole
from ingest.refs import FileRef, OpenFile, SourceProblem
from ingest.series import Series
from ingest.sources import open_sources
from shards.prefetch import in_order

logger = logging.getLogger(__name__)

CHUNK_FILES = 500
"""Files that a process reads before it reports."""
PARALLEL_FILES = 20_000
PARALLEL_ARCHIVE_BYTES = 256 << 20
"""With fewer files, and less in several archives, processes take longer to start than they save."""
TOLD_EVERY = 100
"""Files between two calls of ``progress``."""
_ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz")
_STRAY_HASH_BYTES = 1 << 20
"""This much of a file that is no image, and its size, make its id: no film is read to its end."""
_BLOCK_BYTES = 1 << 20

Found = Source | SourceProblem


@dataclass(slots=True)
class Sifted:
    """Files by kind, in the order in which they were met."""

    headers: list[Header] = field(default_factory=list)
    rows: list[Series] = field(default_factory=list)
    n_files: int = 0


def sift(
    raw: Sequence[str],
    id_key: IdKey,
    min_slices: int,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Sifted:
    """Read the header of every file under ``raw``.

    Args:
        raw: folders, archives, files and URLs.
        id_key: turns content into ids.
        min_slices: NIfTI volumes with fewer are refused.
        workers: processes, where the files are many.
        progress: called with the number of files seen so far, now and then.

    Raises:
        UsageError: a source is not there.
        IngestError: a bucket does not answer, or a process died.
    """
    found = Sifted()
    sources: Iterable[Found] = find_sources(raw)
    if workers > 1:
        sources = list(sources)
    if isinstance(sources, list) and _worth_processes(sources):
        task = partial(_sift_chunk, id_key, min_slices)
        _sift_by_processes(list(_chunks(sources)), task, workers, found, progress)
    else:
        with quiet_pydicom():
            _sift(sources, id_key, min_slices, found, progress)
    if progress is not None and found.n_files % TOLD_EVERY:
        progress(found.n_files)
    return found


def _sift(
    sources: Iterable[Found],
    id_key: IdKey,
    min_slices: int,
    found: Sifted,
    progress: Callable[[int], None] | None = None,
) -> None:
    for item in open_sources(sources):
        found.n_files += 1
        if isinstance(item, SourceProblem):
            found.rows.append(_problem_row(item, id_key))
        else:
            _take(item, found, id_key, min_slices)
        if progress is not None and found.n_files % TOLD_EVERY == 0:
            progress(found.n_files)


def _chunks(sources: Iterable[Found]) -> Iterator[list[Found]]:
    """Runs of sources; what may be an archive stands alone."""
    chunk: list[Found] = []
    for source in sources:
        alone = isinstance(source, Source) and source.path.lower().endswith(_ARCHIVES)
        if chunk and (alone or len(chunk) == CHUNK_FILES):
            yield chunk
            chunk = []
        chunk.append(source)
        if alone:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _worth_processes(sources: Sequence[Found]) -> bool:
    if len(sources) >= PARALLEL_FILES:
        return True
    sizes = []
    for source in sources:
        if isinstance(source, Source) and source.path.lower().endswith(_ARCHIVES):
            try:
                size = os.stat(source.path).st_size if source.size is None else source.size
            except OSError:
                size = 0  # a problem of its own, told when it is opened
            sizes.append(size)
    return len(sizes) > 1 and sum(sizes) >= PARALLEL_ARCHIVE_BYTES


def _sift_by_processes(
    chunks: Sequence[list[Found]],
    task: Callable[[list[Found]], Sifted],
    workers: int,
    found: Sifted,
    progress: Callable[[int], None] | None,
) -> None:
    """Add up the chunks in their order, so that the first of equal files is the same one."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(chunks)), spawn, _start_process)
    try:
        for part in in_order(pool, task, chunks, ahead=4 * workers):
            found.headers += part.headers
            found.rows += part.rows
            for count in range(found.n_files + 1, found.n_files + part.n_files + 1):
                if progress is not None and count % TOLD_EVERY == 0:
                    progress(count)
            found.n_files += part.n_files
    except BrokenProcessPool as exc:
        raise IngestError(
            "a process that reads headers died, most likely for want of memory; "
            "run again with fewer --workers"
        ) from exc


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the others
    for name in ("pydicom", "nibabel"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _sift_chunk(id_key: IdKey, min_slices: int, chunk: list[Found]) -> Sifted:
    found = Sifted()
    with quiet_pydicom():
        _sift(chunk, id_key, min_slices, found)
    return found


def _take(item: OpenFile, found: Sifted, id_key: IdKey, min_slices: int) -> None:
    """Read one file's header and put it where it belongs."""
    stream, ref = item.stream, item.ref
    try:
        size = item.size
        head = stream.read(HEADER_BYTES)
        stream.seek(0)
        if looks_like_nifti(head):
            found.rows.append(_nifti_row(item, size, id_key, min_slices))
        elif looks_like_dicom(head):
            _take_dicom(item, size, found, id_key)
        else:
            reason, detail = Reason.NOT_MEDICAL_IMAGE, "neither DICOM nor NIfTI"
            found.rows.append(_stray_row(ref, _stray_id(stream, size), id_key, reason, detail))
    except OSError as exc:
        detail = exc.strerror or "read error"
        found.rows.append(_stray_row(ref, str(ref), id_key, Reason.UNREADABLE_FILE, detail))


def _take_dicom(item: OpenFile, size: int, found: Sifted, id_key: IdKey) -> None:
    try:
        header = read_header(item.ref, item.stream, size)
    except (OSError, IngestError):
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


def _nifti_row(item: OpenFile, size: int, id_key: IdKey, min_slices: int) -> Series:
    content = _sha256(item.stream)
    row = _stray_row(item.ref, content, id_key, Reason.OK, "", kind="nifti")
    row = replace(row, modality="CT")
    item.stream.seek(0)
    try:
        grid = read_grid(item.stream, size)
    except SeriesError as exc:
        return replace(row, reason=exc.reason, detail=exc.detail)
    row = _with_grid(row, grid, id_key.id("volume", content))
    if row.n_slices < min_slices:
        detail = f"{row.n_slices} slice(s); at least {min_slices} are needed"
        return replace(row, reason=Reason.TOO_FEW_SLICES, detail=detail)
    return row


def _with_grid(row: Series, grid: NiftiGrid, key: str) -> Series:
    spacing = spacing_of(grid.affine)
    return replace(
        row,
        key=key,
        slice_of_ref=(0,),
        n_slices=grid.n_slices,
        detail=grid.detail,
        flags=() if grid.regridding is None else (grid.geometry,),
        geometry=grid.geometry,
        shape_zyx=grid.shape_zyx,
        spacing_zyx_mm=spacing,
        affine=tuple(map(tuple, grid.affine.tolist())),
        slice_mm=spacing[0],
    )


def _problem_row(problem: SourceProblem, id_key: IdKey) -> Series:
    ref = problem.ref
    try:
        with open_whole(ref.path) as file:
            stored = _stray_id(file, file.seek(0, 2))
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


def _sha256(stream: IO[bytes]) -> str:
    stream.seek(0)
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _stray_id(stream: IO[bytes], size: int) -> str:
    stream.seek(0)
    return f"{size} {hashlib.sha256(stream.read(_STRAY_HASH_BYTES)).hexdigest()}"
