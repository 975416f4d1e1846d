"""The first bytes of each file: read ahead by threads where files are far away."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from ingest.listing import Source
from ingest.ranges import open_ranges
from ingest.refs import SourceProblem, unreadable
from ingest.remote import (
    BLOCK_BYTES,
    HEAD_BYTES,
    READ_THREADS,
    is_url,
    object_size,
    open_object,
    read_object,
    read_range,
)
from shards.prefetch import prefetch

LOCAL_HEAD_BYTES = 1 << 14
"""Of a local file: the pixels of 97 in 100 CT files begin before this."""
SLOW_S = 0.0005
"""Files that take longer to open and to read from are read ahead; on a local disk that costs more
than it saves."""
WATCHED_FILES = 16
"""So many files in a row say how fast a file system is."""
LOCAL_THREADS = 8


@dataclass(frozen=True, slots=True)
class FileHead:
    """A file's size and first bytes.

    Attributes:
        path: path or URL.
        size: bytes of the file.
        data: its beginning; all of it where it is short.
    """

    path: str
    size: int
    data: bytes

    def open(self) -> IO[bytes]:
        """The file; what lies in ``data`` is not read again."""
        if is_url(self.path):
            return open_object(self.path, self.size, self.data)
        return open_ranges(self._read, self.size, self.data, LOCAL_HEAD_BYTES, BLOCK_BYTES)

    def open_archive(self) -> IO[bytes]:
        """The file, to be read to its end or nearly so."""
        if is_url(self.path):
            return open_object(self.path, self.size, self.data, BLOCK_BYTES)
        return open(self.path, "rb", buffering=HEAD_BYTES)

    def _read(self, start: int, nbytes: int) -> bytes:
        with open(self.path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), nbytes, start)
        if len(data) != nbytes:
            raise OSError(errno.EIO, "the file became shorter", self.path)
        return data


def file_heads(sources: Iterable[Source | SourceProblem]) -> Iterator[FileHead | SourceProblem]:
    """The head of each source, in order; a source that cannot be read is a problem.

    Raises:
        IngestError: a bucket does not answer.
    """
    for far, same in itertools.groupby(sources, key=_is_far):
        if far:
            yield from prefetch(_head, same, READ_THREADS)
        else:
            yield from _local_heads(same)


def _is_far(source: Source | SourceProblem) -> bool:
    return isinstance(source, Source) and is_url(source.path)


def _local_heads(sources: Iterator[Source | SourceProblem]) -> Iterator[FileHead | SourceProblem]:
    """One after the other, until files prove to be slow to open; by threads from then on."""
    while watched := list(itertools.islice(sources, WATCHED_FILES)):
        taken = 0.0
        for source in watched:
            started = time.perf_counter()
            head = _head(source)
            taken += time.perf_counter() - started
            yield head
        if taken > SLOW_S * WATCHED_FILES:
            yield from prefetch(_head, sources, LOCAL_THREADS, ahead=8 * LOCAL_THREADS)


def _head(source: Source | SourceProblem) -> FileHead | SourceProblem:
    if isinstance(source, SourceProblem):
        return source
    path, size = source
    try:
        if size is not None:
            return FileHead(path, size, read_range(path, 0, min(size, HEAD_BYTES)))
        with open(path, "rb", buffering=0) as file:
            return FileHead(path, os.fstat(file.fileno()).st_size, file.read(LOCAL_HEAD_BYTES))
    except OSError as exc:
        return unreadable(path, exc)


def open_whole(path: str) -> IO[bytes]:
    """An archive that is read once more."""
    return FileHead(path, object_size(path) if is_url(path) else 0, b"").open_archive()


def read_whole(path: str, size: int) -> bytes:
    """All bytes of a file, or of an object of ``size`` bytes."""
    if is_url(path):
        return read_object(path, size)
    with open(path, "rb") as file:
        return file.read()
