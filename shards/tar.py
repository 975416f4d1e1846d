"""The tar of a shard: USTAR, every header field fixed but name and size."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from shards.errors import CorruptShardError

BLOCK = 512
"""Headers and data are multiples of this, bytes."""
RECORD = 20 * BLOCK
"""The file is a multiple of this, bytes."""
MAX_NAME_BYTES = 100
"""Longer names would need the prefix field."""
MAX_MEMBER_BYTES = 8**11 - 1
"""USTAR gives a size 11 octal digits."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file in a tar; ``offset`` is that of its data."""

    name: str
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        """Where the next header starts, or the end marker."""
        return self.offset + padded(self.nbytes)


def padded(nbytes: int) -> int:
    """Bytes that data of ``nbytes`` takes in a tar."""
    return -(-nbytes // BLOCK) * BLOCK


def header(name: str, nbytes: int) -> bytes:
    """The 512 bytes before a member's data: a regular file, mode 0644, no owner, no time.

    Packed here (POSIX.1-1988 ustar) because fields that do not matter differ between versions of
    ``tarfile``, and a shard's bytes must not.

    Raises:
        ValueError: name or size does not fit.
    """
    path = name.encode("ascii")
    if len(path) > MAX_NAME_BYTES:
        raise ValueError(f"{name}: longer than {MAX_NAME_BYTES} bytes")
    if not 0 <= nbytes <= MAX_MEMBER_BYTES:
        raise ValueError(f"{name}: {nbytes} bytes is over the 8 GiB that a USTAR member can hold")
    mode, owner, group, mtime = b"0000644", b"0000000", b"0000000", b"00000000000"
    before = struct.pack("100s8s8s8s12s12s", path, mode, owner, group, b"%011o" % nbytes, mtime)
    after = struct.pack("c100s6s2s247x", b"0", b"", b"ustar", b"00")
    # The checksum is the sum of the header's bytes, with its own eight taken as spaces.
    checksum = sum(before) + sum(after) + 8 * ord(" ")
    return before + b"%06o\0 " % checksum + after


def end_marker(nbytes_so_far: int) -> bytes:
    """Two zero blocks, then zeros up to a whole record, as tar itself writes."""
    total = -(-(nbytes_so_far + 2 * BLOCK) // RECORD) * RECORD
    return bytes(total - nbytes_so_far)


class TarWriter:
    """Appends members to a binary file; keeps where they are and the digest of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.nbytes = 0
        self.members: list[Member] = []

    def add(self, name: str, data: bytes) -> Member:
        """Write one member."""
        self._write(header(name, len(data)))
        member = Member(name=name, offset=self.nbytes, nbytes=len(data))
        self._write(data)
        self._write(bytes(padded(len(data)) - len(data)))
        self.members.append(member)
        return member

    def finish(self) -> str:
        """Write the end marker; SHA-256 of the whole file."""
        self._write(end_marker(self.nbytes))
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.nbytes += len(data)


def read_members(read: Callable[[int], bytes]) -> Iterator[tuple[Member, bytes]]:
    """Members and data of a tar that ``TarWriter`` wrote, read once from start to end.

    Args:
        read: gives the next ``n`` bytes, fewer only at the end.

    Raises:
        CorruptShardError: any byte outside the members' data is not what ``TarWriter`` writes.
    """
    at = 0
    while any(block := read(BLOCK)):
        name, nbytes = _parse_header(block, at)
        data = read(nbytes)
        padding = read(padded(nbytes) - nbytes)
        if len(data) + len(padding) != padded(nbytes):
            raise CorruptShardError(f"cut off inside member {name}")
        if any(padding):
            raise CorruptShardError(f"padding after member {name} is not zero")
        member = Member(name=name, offset=at + BLOCK, nbytes=nbytes)
        at = member.end
        yield member, data
    expected = end_marker(at)
    if block + read(len(expected)) != expected:
        raise CorruptShardError(f"end marker at byte {at} is not that of a tar")


def _parse_header(block: bytes, at: int) -> tuple[str, int]:
    """Name and size of the member whose header is ``block``."""
    try:
        name = block[:MAX_NAME_BYTES].rstrip(b"\0").decode("ascii")
        nbytes = int(block[124:135], 8)
        if header(name, nbytes) == block:
            return name, nbytes
    except ValueError as exc:
        raise CorruptShardError(f"header at byte {at} is broken ({exc})") from exc
    raise CorruptShardError(f"header at byte {at} is not that of a shard's member")
