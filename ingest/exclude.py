"""The leakage guard: lists of what must never enter a dataset, such as the cases of an evaluation.

A list is a text file, one entry a line; ``#`` begins a comment. It names a case by

- a UID (StudyInstanceUID, SeriesInstanceUID or SOPInstanceUID): the study, the series, or the
  series that holds the image is left out; ``uid:TEXT`` where one is malformed;
- ``patient:ID``, a PatientID as the headers have it: everything of that patient is left out (in
  these two, a # is part of the text);
- ``pixels:HEX``, a pixel hash (``ingest/pixels.py``): the same voxels under whatever UIDs;
- ``sha256:HEX``, the ``content_sha256`` of a sample of another dataset of the same settings.

``ingest fingerprint`` writes such a list from raw data. A list holds identifiers and belongs to its
owner: of it, only its digest and counts reach a dataset.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ingest.errors import Reason, UsageError
from ingest.headers import Header
from ingest.series import Series
from ingest.sources import FileRef
from shards.schema import canonical_json

EXCLUSIONS = "exclusions.json"
"""File of a dataset: the list's digest, and how many series it left out."""
BY_UID = "a UID of it is on the exclusion list"
BY_PATIENT = "its patient is on the exclusion list"
BY_PIXELS = "its voxels are on the exclusion list, or are those of an excluded series"
BY_CONTENT = "its content_sha256 is on the exclusion list"
KINDS = {"uid": BY_UID, "patient": BY_PATIENT, "pixels": BY_PIXELS, "content": BY_CONTENT}
"""Details of rows with the reason ``excluded``, by what they were excluded by."""
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_MAX_UID_CHARS = 64
_HEX = re.compile(r"[0-9a-f]{64}")
_VERBATIM = ("patient:", "uid:")
_COMMENT = re.compile(r"(^|\s)#.*")


@dataclass(frozen=True, kw_only=True)
class ExcludedVoxels:
    """The part of a list that is known only when voxels are read: workers take it along."""

    pixels: frozenset[str] = frozenset()
    contents: frozenset[str] = frozenset()


NO_VOXELS = ExcludedVoxels()


@dataclass(frozen=True, kw_only=True)
class Exclusions:
    """All that lists exclude."""

    uids: frozenset[str] = frozenset()
    patients: frozenset[str] = frozenset()
    voxels: ExcludedVoxels = NO_VOXELS

    @property
    def entries(self) -> dict[str, int]:
        """How many there are of each kind."""
        return {
            "uid": len(self.uids),
            "patient": len(self.patients),
            "pixels": len(self.voxels.pixels),
            "content": len(self.voxels.contents),
        }

    @property
    def sha256(self) -> str:
        """Digest of the entries, whatever their order, files and comments; empty without any."""
        if not any(self.entries.values()):
            return ""
        groups = (self.uids, self.patients, self.voxels.pixels, self.voxels.contents)
        return hashlib.sha256(canonical_json([sorted(group) for group in groups])).hexdigest()

    def detail(self, header: Header) -> str:
        """Why a file's series is excluded; empty if it is not."""
        if not self.uids.isdisjoint((header.study, header.series, header.sop_instance)):
            return BY_UID
        return BY_PATIENT if header.patient in self.patients else ""


NO_EXCLUSIONS = Exclusions()


def read_exclusions(paths: Sequence[Path]) -> Exclusions:
    """The lists in ``paths`` as one.

    Raises:
        UsageError: a file cannot be read, or a line is no entry.
    """
    found: dict[str, set[str]] = {"uid": set(), "patient": set(), "pixels": set(), "sha256": set()}
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
            raise UsageError(f"--exclude {path}: cannot be read ({why})") from exc
        for number, line in enumerate(lines, 1):
            text = line.removeprefix("\ufeff").strip()
            if not text.startswith(_VERBATIM):
                text = _COMMENT.sub("", text).strip()
            if not text:
                continue
            entry = _parse(text)
            if entry is None:
                raise UsageError(
                    f"--exclude {path}, line {number}: {text[:40]!r} is no entry; give a UID, "
                    "patient:ID, pixels:HEX or sha256:HEX (64 hex digits), or a # comment"
                )
            found[entry[0]].add(entry[1])
    return Exclusions(
        uids=frozenset(found["uid"]),
        patients=frozenset(found["patient"]),
        voxels=ExcludedVoxels(
            pixels=frozenset(found["pixels"]), contents=frozenset(found["sha256"])
        ),
    )


def _parse(text: str) -> tuple[str, str] | None:
    """Kind and value of a line without comment."""
    kind, colon, value = text.partition(":")
    value = value.strip()
    if not colon:
        return ("uid", text) if _is_uid(text) else None
    if kind in ("patient", "uid"):
        return (kind, value) if value else None
    if kind in ("pixels", "sha256") and _HEX.fullmatch(value.lower()):
        return kind, value.lower()
    return None


def _is_uid(text: str) -> bool:
    return len(text) <= _MAX_UID_CHARS and _UID.fullmatch(text) is not None


def uid_line(uid: str) -> str:
    """The entry for a UID as a header has it."""
    return uid if _is_uid(uid) else f"uid:{uid}"


def exclude_rows(
    rows: Sequence[Series], headers: Mapping[FileRef, Header], exclusions: Exclusions
) -> list[Series]:
    """Refuse what a list names by UID or patient: every accepted piece of such a series."""
    if not exclusions.uids and not exclusions.patients:
        return list(rows)
    details: dict[str, str] = {}
    for row in rows:
        for ref in row.refs:
            if ref in headers and (detail := exclusions.detail(headers[ref])):
                details.setdefault(row.series_id, detail)
    return [
        replace(row, reason=Reason.EXCLUDED, detail=details[row.series_id])
        if row.reason is Reason.OK and row.series_id in details
        else row
        for row in rows
    ]


def exclusion_record(
    exclusions: Exclusions, rows: Iterable[Mapping[str, Any]]
) -> dict[str, str | dict[str, int]]:
    """What a dataset says of its exclusions: no entry of the list itself."""
    return {
        "sha256": exclusions.sha256,
        "entries": exclusions.entries,
        "excluded": count_excluded(rows),
    }


def count_excluded(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Rows of ``series.parquet`` with the reason ``excluded``, by what excluded them."""
    details = Counter(row["detail"] for row in rows if row["reason"] == Reason.EXCLUDED)
    return {kind: details[detail] for kind, detail in KINDS.items()}
