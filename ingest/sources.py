"""Where files come from: folders, buckets, archives (zip, tar, gz, bz2, xz) and single files.

Nothing is ever extracted to disk by name, so a member's name cannot do harm (no zip-slip); counts,
sizes and expansion are limited, so an archive bomb is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import IO

from ingest.errors import Reason
from ingest.fetch import read_files
from ingest.listing import Source, find_sources
from ingest.readahead import FileHead, file_heads
from ingest.refs import FileRef, Found, OpenFile, SourceProblem
from ingest.streams import (
    BROKEN_STREAM,
    HEAD_BYTES,
    ArchiveLimitError,
    Budget,
    Opener,
    open_zip,
    opener_of,
    plain_tar_members,
    spool,
    spool_decompressed,
    tar_members,
)

__all__ = ["FileRef", "Found", "OpenFile", "SourceProblem", "open_sources", "read_files", "walk"]

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")


def walk(raw: Sequence[str]) -> Iterator[Found]:
    """Every file under ``raw``, archives opened, in a stable order; the same file only once.

    Raises:
        UsageError: a path of ``raw`` does not exist, or a bucket cannot be listed.
        IngestError: a bucket does not answer.
    """
    return open_sources(find_sources(raw))


def open_sources(sources: Iterable[Source | SourceProblem]) -> Iterator[Found]:
    """The files in ``sources``, archives opened, in that order."""
    for head in file_heads(sources):
        if isinstance(head, SourceProblem):
            yield head
        else:
            yield from _open_head(head)


def _open_head(head: FileHead) -> Iterator[Found]:
    """The file, or the members of the archive it is: content decides, the suffix breaks ties."""
    ref = FileRef(path=head.path, size=head.size)
    start, opener = head.data, opener_of(head.data)
    if start[:4] in _ZIP_MAGIC or (ref.path.lower().endswith(".zip") and not _is_dicom(start)):
        yield from _guard(head, ref, _open_zip)
    elif opener is not None:
        yield from _guard(head, ref, partial(_open_compressed, opener=opener))
    elif _is_tar(start, ref.path):
        yield from _guard(head, ref, partial(_open_tar, plain=True))
    else:
        with head.open() as stream:
            yield OpenFile(ref=ref, stream=stream, size=head.size)


def _is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def _is_tar(head: bytes, path: str) -> bool:
    if _is_dicom(head):
        return False
    return head[257:262] == b"ustar" or path.lower().endswith(_TAR_SUFFIXES)


def _guard(
    head: FileHead, ref: FileRef, members: Callable[[IO[bytes], FileRef], Iterator[Found]]
) -> Iterator[Found]:
    """Turn a broken or bomb-like archive into one problem; the members before the damage stay."""
    empty = True
    try:
        with head.open_archive() as file:
            for item in members(file, ref):
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
    if _is_tar(head, ref.path):
        with opener(file) as stream:
            yield from _open_tar(stream, ref, plain=False)
    else:
        yield from _open_single(replace(ref, kind="gz"), file)


def _open_tar(file: IO[bytes], ref: FileRef, *, plain: bool) -> Iterator[Found]:
    budget = Budget(ref.size)
    members = plain_tar_members(file, ref.size) if plain else tar_members(file)
    for index, info, stream in members:
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
        yield from _open_member(member, stream if plain else spool(stream))


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
            yield OpenFile(ref=ref, stream=copy, size=ref.size)


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
                size = copy.seek(0, 2)
                copy.seek(0)
                yield OpenFile(ref=ref, stream=copy, size=size)


def _holds_archive(head: bytes) -> bool:
    return not _is_dicom(head) and (head[:4] in _ZIP_MAGIC or head[257:262] == b"ustar")


def _nested(ref: FileRef) -> SourceProblem:
    detail = "an archive inside an archive; unpack the outer one"
    return SourceProblem(ref=ref, reason=Reason.NESTED_ARCHIVE, detail=detail)
