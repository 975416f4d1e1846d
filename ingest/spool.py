"""A series on its way from the worker that prepared it to the one that writes its shard.

Where a build has few groups, its series are prepared apart, so that no worker is idle; each is kept
in the state folder until its group is written. It is read back only if it is whole, and of this
build: what is in doubt is prepared again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from crc32c import crc32c

from shards.errors import CorruptShardError
from shards.schema import dump_json, load_json
from shards.tables import Row
from shards.writer import EncodedSample

_CRC_BYTES = 4
_LENGTH_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a series at the pixel stage."""

    reason: str
    detail: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FinishedSeries:
    """All that a series adds to its group."""

    outcome: Outcome
    sample: EncodedSample | None = None
    """None when it is refused."""
    hu_histogram: list[int] | None = None
    preview: str | None = None
    """PNG in base64, where the report shows it."""
    label: Outcome | None = None
    """What became of its label, if that was tried."""
    peak_bytes: int = 0
    """Most memory that the worker which prepared it had had by then."""


@dataclass(frozen=True, kw_only=True)
class _Head:
    """The JSON before the members' bytes."""

    build_sha256: str
    outcome: Outcome
    members: list[tuple[str, int]]
    """Names and sizes."""
    hu_histogram: list[int] | None
    preview: str | None
    label: Outcome | None
    peak_bytes: int


def spool_folder(number: int) -> str:
    """Where in the state folder the series of a group are kept, each under its key."""
    return f"spool-{number:06d}"


def pack_series(series: FinishedSeries, build_sha256: str) -> bytes:
    """``series`` as it is kept; `unpack_series` notices if it was cut or damaged."""
    sample = series.sample
    members = [] if sample is None else sample.members
    head = _Head(
        build_sha256=build_sha256,
        outcome=series.outcome,
        members=[(name, len(data)) for name, data in members],
        hu_histogram=series.hu_histogram,
        preview=series.preview,
        label=series.label,
        peak_bytes=series.peak_bytes,
    )
    rows = None if sample is None else [sample.index_row, sample.chunk_row]
    parts = [_sized(dump_json(head)), _sized(json.dumps(rows).encode())]
    parts += [data for _, data in members]
    crc = 0
    for part in parts:
        crc = crc32c(part, crc)
    return b"".join([*parts, crc.to_bytes(_CRC_BYTES, "little")])


def unpack_series(data: bytes, build_sha256: str) -> FinishedSeries | None:
    """What `pack_series` made for this build; None if it is of another one, or damaged."""
    try:
        body = data[:-_CRC_BYTES]
        if crc32c(body) != int.from_bytes(data[-_CRC_BYTES:], "little"):
            return None
        at, text = _read_sized(body, 0)
        head = load_json(text, _Head, "spool")
        at, text = _read_sized(body, at)
    except CorruptShardError:
        return None
    if head.build_sha256 != build_sha256:
        return None
    members = []
    for name, nbytes in head.members:
        members.append((name, body[at : at + nbytes]))
        at += nbytes
    rows: list[Row] | None = json.loads(text)
    return FinishedSeries(
        outcome=head.outcome,
        sample=None
        if rows is None
        else EncodedSample(members=members, index_row=rows[0], chunk_row=rows[1]),
        hu_histogram=head.hu_histogram,
        preview=head.preview,
        label=head.label,
        peak_bytes=head.peak_bytes,
    )


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(_LENGTH_BYTES, "little") + data


def _read_sized(body: bytes, at: int) -> tuple[int, bytes]:
    """The position after it, and the data."""
    start = at + _LENGTH_BYTES
    end = start + int.from_bytes(body[at:start], "little")
    return end, body[start:end]
