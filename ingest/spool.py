"""A series on its way from the worker that prepared it to the one that writes its shard.

Where a build has few groups, its series are prepared apart, so that no worker is idle; each is kept
in the state folder until its group is written. It is read back only if it is whole, and of this
build: what is in doubt is prepared again.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

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


def spool_path(state: Path, key: str) -> Path:
    """Where the series ``key`` is kept."""
    return state / f"series-{key}.spool"


def save_series(path: Path, series: FinishedSeries, build_sha256: str) -> None:
    """Write ``series`` whole or not at all. Not synced to disk: a damaged one is made again."""
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
    # Its own name: a cluster may give one series to two workers at once.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with partial.open("wb") as file:
            for part in parts:
                file.write(part)
                crc = google_crc32c.extend(crc, part)
            file.write(crc.to_bytes(_CRC_BYTES, "little"))
        os.replace(partial, path)
    except BaseException:  # a full disk is not left with the part that did fit
        partial.unlink(missing_ok=True)
        raise


def load_series(path: Path, build_sha256: str) -> FinishedSeries | None:
    """What `save_series` wrote for this build; None if there is no such file or it is damaged."""
    try:
        data = path.read_bytes()
        body = data[:-_CRC_BYTES]
        if google_crc32c.value(body) != int.from_bytes(data[-_CRC_BYTES:], "little"):
            return None
        at, text = _read_sized(body, 0)
        head = load_json(text, _Head, path.name)
        at, text = _read_sized(body, at)
    except (FileNotFoundError, CorruptShardError):
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
