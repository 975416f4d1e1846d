"""Where files come from: folders, zip, tar (plain, gz, bz2, xz), single files, packed or not.

Nothing is ever extracted to disk by name, so a member's name cannot do harm (no zip-slip); counts,
sizes and expansion are limited, so an archive bomb is refused. An archive is streamed once a pass.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from ingest.errors import Reason, SeriesError, UsageError
from ingest.streams import (
    BROKEN_STREAM,
    HEAD_BYTES,
    ArchiveLimitError,
    Budget,
    Opener,
    decompress,
    open_zip,
    opener_of,
    spool,
    spool_decompressed,
    tar_members,
)

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True, kw_only=True)
class FileRef:
    """Where a file's bytes are. Private: never written to a dataset.

    Attributes:
        path: the file, or the archive that holds it.
        member: name inside the archive.
        kind: ``file``, ``zip``, ``tar`` (compressed or not) or ``gz`` (one compressed file).
        size: bytes as stored in ``path``, or of the member.
        index: number of the member in its archive (names may repeat); 0 otherwise.
        offset: of the member's bytes in ``path`` where they lie there as they are (plain tar).
    """

    path: str
    member: str | None = None
    kind: str = "file"
    size: int = 0
    index: int = 0
    offset: int | None = None


@dataclass(frozen=True, kw_only=True)
class OpenFile:
    """A file found, and its decompressed bytes: seekable, valid until the next one is taken."""

    ref: FileRef
    stream: IO[bytes]


@dataclass(frozen=True, kw_only=True)
class SourceProblem:
    """A file or archive that could not be opened or read to its end; it counts as one file."""

    ref: FileRef
    reason: Reason
    detail: str


Found = OpenFile | SourceProblem


def walk(raw: Sequence[str]) -> Iterator[Found]:
    """Every file under ``raw``, archives opened, in a stable order; the same file only once.

    Raises:
        UsageError: a path of ``raw`` does not exist.
    """
    for path in _paths(raw):
        if isinstance(path, SourceProblem):
            yield path
            continue
        try:
            yield from _open_path(path)
        except OSError as exc:
            yield _unreadable(path, exc)


def read_files(refs: Collection[FileRef]) -> Iterator[tuple[FileRef, bytes]]:
    """The decompressed bytes of ``refs``, archive by archive, each archive streamed once.

    Raises:
        SeriesError: a file that the scan could read cannot be read now.
    """
    by_path: dict[str, list[FileRef]] = {}
    for ref in refs:
        by_path.setdefault(ref.path, []).append(ref)
    for path, wanted in by_path.items():
        try:
            for ref, data in _read_path(path, wanted):
                yield ref, decompress(data)
        except (OSError, *BROKEN_STREAM) as exc:
            raise SeriesError(
                Reason.UNREADABLE_FILE, f"cannot be read any more ({type(exc).__name__})"
            ) from exc


def _unreadable(path: Path | str, error: OSError) -> SourceProblem:
    detail = error.strerror or "read error"
    ref = FileRef(path=str(path))
    return SourceProblem(ref=ref, reason=Reason.UNREADABLE_FILE, detail=detail)


def _paths(raw: Sequence[str]) -> Iterator[Path | SourceProblem]:
    """Regular files, folders sorted; a real path is given once, so that links cannot loop."""
    for text in raw:
        if not os.path.exists(text):
            raise UsageError(f"{text}: no such file or folder")
    seen: set[str] = set()
    for text in raw:
        # Absolute: workers on other machines or in other folders open the same path.
        for path in _files_of(Path(os.path.abspath(text)), seen):
            if isinstance(path, SourceProblem):
                yield path
                continue
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                yield path


def _files_of(root: Path, seen: set[str]) -> Iterator[Path | SourceProblem]:
    if not root.is_dir():
        yield root
        return
    unlistable: list[OSError] = []
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=unlistable.append):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            # A pipe or socket would block for ever; a dangling link is reported when opened.
            if path.is_file() or path.is_symlink():
                yield path
    for error in unlistable:
        yield _unreadable(str(error.filename), error)


def _open_path(path: Path) -> Iterator[Found]:
    """The file, or the members of the archive it is: content decides, the suffix breaks ties."""
    ref = FileRef(path=str(path), size=path.stat().st_size)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        opener = opener_of(head)
        if head[:4] in _ZIP_MAGIC or (path.suffix.lower() == ".zip" and not _is_dicom(head)):
            yield from _guard(_open_zip(file, ref), ref)
        elif opener is not None:
            yield from _guard(_open_compressed(file, ref, opener), ref)
        elif _is_tar(head, path):
            yield from _guard(_open_tar(file, ref, plain=True), ref)
        else:
            yield OpenFile(ref=ref, stream=file)


def _is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def _is_tar(head: bytes, path: Path) -> bool:
    if _is_dicom(head):
        return False
    return head[257:262] == b"ustar" or path.name.lower().endswith(_TAR_SUFFIXES)


def _guard(found: Iterator[Found], ref: FileRef) -> Iterator[Found]:
    """Turn a broken or bomb-like archive into one problem; the members before the damage stay."""
    empty = True
    try:
        for item in found:
            empty = False
            yield item
    except ArchiveLimitError as exc:
        yield SourceProblem(ref=ref, reason=Reason.ARCHIVE_LIMIT, detail=str(exc))
    except (OSError, *BROKEN_STREAM) as exc:
        detail = f"damaged ({type(exc).__name__}); what came before the damage is used"
        yield SourceProblem(ref=ref, reason=Reason.CORRUPT_ARCHIVE, detail=detail)
    else:
        if empty:
            detail = "an archive without files"
            yield SourceProblem(ref=ref, reason=Reason.NOT_MEDICAL_IMAGE, detail=detail)


def _open_zip(file: IO[bytes], ref: FileRef) -> Iterator[Found]:
    with open_zip(file) as archive:
        budget = Budget(ref.size)
        for index, info in enumerate(archive.infolist()):
            if info.is_dir():
                continue
            budget.spend(info.file_size)
            member = replace(
                ref, member=info.filename, kind="zip", size=info.file_size, index=index
            )
            try:
                with archive.open(info) as stream:
                    copy = spool(stream)
            except (*BROKEN_STREAM, OSError) as exc:
                detail = f"the archive's member is damaged ({type(exc).__name__})"
                yield SourceProblem(ref=member, reason=Reason.CORRUPT_ARCHIVE, detail=detail)
            except (RuntimeError, NotImplementedError):
                detail = "the archive's member is encrypted or packed in an unknown way"
                yield SourceProblem(ref=member, reason=Reason.UNREADABLE_FILE, detail=detail)
            else:
                yield from _open_member(member, copy)


def _open_compressed(file: IO[bytes], ref: FileRef, opener: Opener) -> Iterator[Found]:
    """A compressed tar, or one compressed file."""
    try:
        with opener(file) as stream:
            head = stream.read(HEAD_BYTES)
    except (OSError, *BROKEN_STREAM):
        head = b""  # what is wrong is told below, by the suffix's kind
    file.seek(0)
    if _is_tar(head, Path(ref.path)):
        with opener(file) as stream:
            yield from _open_tar(stream, ref, plain=False)
    else:
        yield from _open_single(replace(ref, kind="gz"), file)


def _open_tar(file: IO[bytes], ref: FileRef, *, plain: bool) -> Iterator[Found]:
    budget = Budget(ref.size)
    for index, info, stream in tar_members(file):
        budget.spend(info.size)
        if stream is None:
            continue
        member = replace(
            ref,
            member=info.name,
            kind="tar",
            size=info.size,
            index=index,
            offset=info.offset_data if plain and not info.issparse() else None,
        )
        yield from _open_member(member, spool(stream))


def _open_member(ref: FileRef, copy: IO[bytes]) -> Iterator[Found]:
    """A compressed member is decompressed once; an archive inside an archive is refused."""
    with closing(copy):
        head = copy.read(HEAD_BYTES)
        copy.seek(0)
        if opener_of(head) is not None:
            yield from _open_single(ref, copy)
        elif _holds_archive(head):
            yield _nested(ref)
        else:
            yield OpenFile(ref=ref, stream=copy)


def _open_single(ref: FileRef, file: IO[bytes]) -> Iterator[Found]:
    """One compressed file, such as ``.nii.gz`` or ``.dcm.gz``."""
    try:
        copy = spool_decompressed(file, ref.size)
    except EOFError:
        detail = "the compressed file ends too early; copy it again"
        yield SourceProblem(ref=ref, reason=Reason.TRUNCATED_FILE, detail=detail)
    except ArchiveLimitError as exc:
        yield SourceProblem(ref=ref, reason=Reason.ARCHIVE_LIMIT, detail=str(exc))
    except (OSError, *BROKEN_STREAM) as exc:
        detail = f"cannot be decompressed ({type(exc).__name__})"
        yield SourceProblem(ref=ref, reason=Reason.UNREADABLE_FILE, detail=detail)
    else:
        with closing(copy):
            head = copy.read(HEAD_BYTES)
            copy.seek(0)
            if _holds_archive(head) or opener_of(head) is not None:
                yield _nested(ref)
            else:
                yield OpenFile(ref=ref, stream=copy)


def _holds_archive(head: bytes) -> bool:
    return not _is_dicom(head) and (head[:4] in _ZIP_MAGIC or head[257:262] == b"ustar")


def _nested(ref: FileRef) -> SourceProblem:
    detail = "an archive inside an archive; unpack the outer one"
    return SourceProblem(ref=ref, reason=Reason.NESTED_ARCHIVE, detail=detail)


def _read_path(path: str, wanted: Sequence[FileRef]) -> Iterator[tuple[FileRef, bytes]]:
    """Stored bytes of files that share a path."""
    with open(path, "rb") as file:
        if wanted[0].kind == "zip":
            with open_zip(file) as archive:
                infos = archive.infolist()
                for ref in wanted:
                    yield ref, archive.read(infos[ref.index])
        elif wanted[0].kind == "tar":
            yield from _read_tar(file, wanted)
        else:
            for ref in wanted:
                file.seek(0)
                yield ref, file.read()


def _read_tar(file: IO[bytes], wanted: Sequence[FileRef]) -> Iterator[tuple[FileRef, bytes]]:
    """Members of a tar: by offset where it is plain, else in one pass up to the last wanted one."""
    in_stream = {}
    for ref in wanted:
        if ref.offset is None:
            in_stream[ref.index] = ref
            continue
        file.seek(ref.offset)
        data = file.read(ref.size)
        if len(data) < ref.size:
            raise EOFError("the archive became shorter")
        yield ref, data
    if not in_stream:
        return
    file.seek(0)
    opener = opener_of(file.read(HEAD_BYTES))
    file.seek(0)
    with closing(file if opener is None else opener(file)) as stream:
        for index, _, member in tar_members(stream):
            found = in_stream.pop(index, None)
            if found is not None and member is not None:
                yield found, member.read()
            if not in_stream:
                return
    raise EOFError("members are missing")
