"""Compressed streams and tar members, read strictly: damage and bombs are errors, never silence."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Literal, cast

SPOOL_BYTES = 64 << 20
"""Members up to this size stay in memory, larger ones go to a temporary file."""
MAX_MEMBER_BYTES = 16 << 30
"""A CT of 2000 slices of 1024 x 1024 float64 voxels: larger is no single volume."""
MAX_MEMBERS = 2_000_000
MAX_RATIO = 200
"""Expansion above this is a bomb: CT packs 2 to 5 fold; only constant data packs 1000 fold."""
RATIO_FLOOR_BYTES = 1 << 30
"""Small archives of constant data (label maps) may expand as they like, up to this."""
MAX_TAR_HEADER_BYTES = 1 << 20
"""Of a long name or an extended header: the longest path of a file system has 4096."""
_TAR_HEADER_TYPES = frozenset(
    {
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
    }
)
HEAD_BYTES = 512
"""Enough to tell a tar (its magic is at 257) and a DICOM file (at 128)."""
BLOCK_BYTES = 1 << 20

Opener = Callable[[IO[bytes]], IO[bytes]]

BROKEN_STREAM = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError)
"""What damaged archives and compressed files raise, beside OSError."""


class ArchiveLimitError(Exception):
    """An archive or compressed file expands beyond the limits."""


def _open_gzip(file: IO[bytes]) -> IO[bytes]:
    return cast("IO[bytes]", gzip.GzipFile(fileobj=file, mode="rb"))


def _open_bz2(file: IO[bytes]) -> IO[bytes]:
    return bz2.open(file, "rb")


def _open_xz(file: IO[bytes]) -> IO[bytes]:
    return lzma.open(file, "rb")


_OPENERS: dict[bytes, Opener] = {
    b"\x1f\x8b": _open_gzip,
    b"BZh": _open_bz2,
    b"\xfd7zXZ\x00": _open_xz,
}


def opener_of(head: bytes) -> Opener | None:
    """How to decompress a file that begins with ``head``; None if it is not compressed."""
    return next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)


class Budget:
    """What an archive of ``packed`` bytes may still expand to."""

    def __init__(self, packed: int) -> None:
        self._bytes = max(RATIO_FLOOR_BYTES, MAX_RATIO * packed)
        self._members = MAX_MEMBERS

    def spend(self, size: int) -> None:
        """Count one member of ``size`` bytes.

        Raises:
            ArchiveLimitError: too many members, or too large.
        """
        self._bytes -= size
        self._members -= 1
        if size > MAX_MEMBER_BYTES or self._bytes < 0 or self._members < 0:
            raise ArchiveLimitError("the archive expands beyond the limits; unpack it first")


def spool(stream: IO[bytes], limit: int = MAX_MEMBER_BYTES) -> IO[bytes]:
    """A seekable copy: seeking back in a compressed stream would decompress it all again.

    Raises:
        ArchiveLimitError: there are more than ``limit`` bytes.
    """
    copy = cast("IO[bytes]", tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES))  # noqa: SIM115
    try:
        while block := stream.read(BLOCK_BYTES):
            limit -= len(block)
            if limit < 0:
                raise ArchiveLimitError("the compressed file expands beyond the limits")
            copy.write(block)
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return copy


def spool_decompressed(file: IO[bytes], packed: int) -> IO[bytes]:
    """A seekable, decompressed copy of a compressed file of ``packed`` bytes.

    Raises:
        ArchiveLimitError: it expands like a bomb.
    """
    file.seek(0)
    opener = opener_of(file.read(HEAD_BYTES))
    assert opener is not None
    file.seek(0)
    limit = min(MAX_MEMBER_BYTES, max(RATIO_FLOOR_BYTES, MAX_RATIO * packed))
    with opener(file) as stream:
        return spool(stream, limit)


def decompress(data: bytes) -> bytes:
    """``data`` itself, or what it decompresses to."""
    if (opener := opener_of(data)) is None:
        return data
    with opener(io.BytesIO(data)) as stream:
        return stream.read()


def open_zip(file: IO[bytes]) -> zipfile.ZipFile:
    """A zip's directory.

    Raises:
        BadZipFile: it is damaged.
    """
    try:
        return zipfile.ZipFile(file)
    except (NotImplementedError, ValueError) as exc:  # a version, name or offset that cannot be
        raise zipfile.BadZipFile(str(exc)) from exc


def tar_members(
    file: IO[bytes],
) -> Iterator[tuple[int, tarfile.TarInfo, IO[bytes] | None]]:
    """(number, header, bytes) of each member in stream order; no bytes for folders and links."""
    with _open_tar(file, "r|") as archive:
        yield from _members(archive)


def plain_tar_members(
    file: IO[bytes], size: int
) -> Iterator[tuple[int, tarfile.TarInfo, IO[bytes] | None]]:
    """As `tar_members`, of an uncompressed tar that seeks: what nobody reads is stepped over.

    Args:
        file: the archive.
        size: its bytes; a member that would end beyond them is damage, as if it had been read.
    """
    with _open_tar(file, "r:") as archive:
        for index, info, stream in _members(archive):
            if stream is not None and not info.issparse() and info.offset_data + info.size > size:
                raise tarfile.ReadError("unexpected end of data")
            yield index, info, stream


def _members(
    archive: tarfile.TarFile,
) -> Iterator[tuple[int, tarfile.TarInfo, IO[bytes] | None]]:
    index = 0
    while (info := _next(archive)) is not None:
        archive.members = []  # type: ignore[attr-defined]  # it would keep a kilobyte of each
        stream = archive.extractfile(info) if info.isfile() else None
        if stream is None:
            yield index, info, None
        else:
            with stream:
                yield index, info, stream
        index += 1


def _open_tar(file: IO[bytes], mode: Literal["r|", "r:"]) -> tarfile.TarFile:
    """Also reads the first header."""
    with _finite_headers():
        return tarfile.open(fileobj=file, mode=mode, tarinfo=_StrictTarInfo)


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    with _finite_headers():
        return archive.next()


@contextmanager
def _finite_headers() -> Iterator[None]:
    """Tarfile calls itself for each further header of the same member."""
    try:
        yield
    except RecursionError as exc:
        raise tarfile.ReadError("headers without end") from exc


class _StrictTarInfo(tarfile.TarInfo):
    """Makes a damaged header an error: tarfile itself silently ends the archive there.

    So is a long name or an extended header that is too long: they are read into memory.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictTarInfo:
        info = super().frombuf(buf, encoding, errors)
        if info.type in _TAR_HEADER_TYPES and info.size > MAX_TAR_HEADER_BYTES:
            raise tarfile.InvalidHeaderError("the name is too long")  # type: ignore[attr-defined]
        return info

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the regular end
            raise
        except tarfile.HeaderError as exc:
            raise tarfile.ReadError(str(exc)) from exc
