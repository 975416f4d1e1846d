"""What a walk over the sources finds: files, where their bytes are, and what could not be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

from ingest.errors import Reason


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRef:
    """Where a file's bytes are. Private: never written to a dataset.

    Attributes:
        path: the file, or the archive that holds it; a path or a URL.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenFile:
    """A file found, and its decompressed bytes: seekable, valid until the next one is taken.

    Attributes:
        size: bytes in ``stream``.
    """

    ref: FileRef
    stream: IO[bytes]
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceProblem:
    """A file or archive that could not be opened or read to its end; it counts as one file."""

    ref: FileRef
    reason: Reason
    detail: str


Found = OpenFile | SourceProblem


def unreadable(path: str, error: OSError) -> SourceProblem:
    """The problem of a file that the system does not give out."""
    detail = error.strerror or "read error"
    return SourceProblem(ref=FileRef(path=path), reason=Reason.UNREADABLE_FILE, detail=detail)
