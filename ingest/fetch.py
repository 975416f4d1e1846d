"""The bytes of files that a walk has found."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from typing import IO

from ingest.errors import Reason, SeriesError
from ingest.readahead import open_whole, read_whole
from ingest.refs import FileRef
from ingest.remote import READ_THREADS, is_url, read_range
from ingest.scratch import SCRATCH
from ingest.streams import BROKEN_STREAM, HEAD_BYTES, decompress, open_zip, opener_of, tar_members
from shards.prefetch import prefetch


def read_files(refs: Collection[FileRef]) -> Iterator[tuple[FileRef, bytes]]:
    """The decompressed bytes of ``refs``, archive by archive, each archive streamed once.

    Raises:
        SeriesError: a file that the scan could read cannot be read now.
        IngestError: a bucket does not answer.
    """
    far = [ref for ref in refs if is_url(ref.path) and _lies_open(ref)]
    by_path: dict[str, list[FileRef]] = {}
    for ref in refs:
        if not (is_url(ref.path) and _lies_open(ref)):
            by_path.setdefault(ref.path, []).append(ref)
    try:
        for ref, data in zip(far, prefetch(_read_far, far, READ_THREADS), strict=True):
            yield ref, decompress(data)
        for path, wanted in by_path.items():
            for ref, data in _read_path(path, wanted):
                yield ref, decompress(data)
    except (OSError, *BROKEN_STREAM) as exc:
        raise SeriesError(
            Reason.UNREADABLE_FILE, f"cannot be read any more ({type(exc).__name__})"
        ) from exc


def _lies_open(ref: FileRef) -> bool:
    """Whether the bytes lie in ``path`` as they are: a file, or a member of a plain tar."""
    return ref.member is None or ref.offset is not None


def _read_far(ref: FileRef) -> bytes:
    if ref.offset is None:
        return read_whole(ref.path, ref.size)
    return read_range(ref.path, ref.offset, ref.size)


def _read_path(path: str, wanted: Sequence[FileRef]) -> Iterator[tuple[FileRef, bytes]]:
    """Stored bytes of files that share a path."""
    if wanted[0].member is None:
        data = read_whole(path, wanted[0].size)
        yield from ((ref, data) for ref in wanted)
        return
    with open_whole(path) as file:
        if wanted[0].kind == "zip":
            with open_zip(file) as archive:
                infos = archive.infolist()
                for ref in wanted:
                    yield ref, archive.read(infos[ref.index])
        else:
            yield from _read_tar(path, file, wanted)


def _read_tar(
    path: str, file: IO[bytes], wanted: Sequence[FileRef]
) -> Iterator[tuple[FileRef, bytes]]:
    """Members of a tar: by offset where it is plain, from scratch, or else in one pass."""
    in_stream = {}
    for ref in wanted:
        if ref.offset is not None:
            file.seek(ref.offset)
            data = file.read(ref.size)
            if len(data) < ref.size:
                raise EOFError("the archive became shorter")
            yield ref, data
        elif (kept := SCRATCH.get(path, ref.index)) is not None:
            yield ref, kept
        else:
            in_stream[ref.index] = ref
    if in_stream:
        file.seek(0)
        opener = opener_of(file.read(HEAD_BYTES))
        file.seek(0)
        with closing(file if opener is None else opener(file)) as stream:
            yield from _read_stream(path, stream, in_stream)


def _read_stream(
    path: str, stream: IO[bytes], wanted: dict[int, FileRef]
) -> Iterator[tuple[FileRef, bytes]]:
    """One pass over a tar; its members are kept in scratch as far as there is room."""
    room = SCRATCH.limit > 0
    try:
        for index, info, member in tar_members(stream):
            found = wanted.pop(index, None)
            if member is not None and found is not None:
                data = member.read()
                room = room and SCRATCH.keep(path, index, io.BytesIO(data), info.size)
                yield found, data
            elif member is not None and room:
                room = SCRATCH.keep(path, index, member, info.size)
            if not wanted and not room:
                return
    except (OSError, *BROKEN_STREAM):
        if wanted:
            raise  # else damage behind the last member that counts
    if wanted:
        raise EOFError("members are missing")
