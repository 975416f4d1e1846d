"""``build.json``: what later changes of a dataset need and the shard format does not hold.

It lies beside the manifest. No reader of the shards needs it, and it holds no path, name, date or
UID: settings, sums and keyed ids only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ingest.config import BuildConfig
from ingest.errors import IngestError
from ingest.ids import ID_CHARS
from ingest.series import Series
from shards.dataset import Dataset
from shards.schema import converter
from shards.store import get

BUILD_RECORD = "build.json"
RECORD_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A dataset that was merged into this one."""

    generation: int
    generation_id: str
    build_sha256: str


@dataclass(frozen=True, kw_only=True)
class ExclusionList:
    """What is kept of the list that every series was held against: no entry of it."""

    sha256: str = ""
    """Empty: there was none."""
    entries: dict[str, int] = field(default_factory=dict)
    """How many there are of each kind."""


@dataclass(frozen=True, kw_only=True)
class BuildRecord:
    """The content of ``build.json``."""

    record_version: int = RECORD_VERSION
    generation_id: str
    """Of the manifest beside it: a record of another generation is of no use."""
    config: BuildConfig | None
    """Settings that the samples were made with; None when they are not known, or not one set."""
    hu_histogram: list[int] | None
    """The report's; None when it is not known."""
    exclusions: ExclusionList = field(default_factory=ExclusionList)
    forgotten: list[str] = field(default_factory=list)
    """``one_way`` of the subjects that are withdrawn for good, sorted."""
    refused_subjects: dict[str, str] = field(default_factory=dict)
    """Subject of each refused series whose files name one, by series id: to be forgotten too."""
    merged_from: list[Origin] = field(default_factory=list)


def one_way(identifier: str) -> str:
    """Stands for a keyed id that is to be known again, but not kept.

    >>> one_way("0123456789abcdef01234567")
    'c0c54d730ebcefdee6e012db'
    """
    digest = hashlib.sha256(b"withdrawn " + identifier.encode())
    return digest.hexdigest()[:ID_CHARS]


def refused_subjects(series: Iterable[Series], rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Subjects for ``BuildRecord``, from series and their rows; a label is its volume's subject."""
    refused = {row["series_id"] for row in rows if row["verdict"] == "refused"}
    subjects: dict[str, str] = {}
    for one in series:
        ids = [one.series_id] if one.label is None else [one.series_id, one.label.series_id]
        for series_id in refused.intersection(ids):
            if series_id != one.subject_id:
                subjects[series_id] = one.subject_id
    return subjects


def read_record(dataset: Dataset) -> BuildRecord:
    """The record beside a dataset's manifest; one that knows nothing where there is none.

    Raises:
        IngestError: it is of another generation, or cannot be read.
    """
    where = f"{dataset.url}: {BUILD_RECORD}"
    expected = dataset.manifest.generation_id
    try:
        data = json.loads(get(dataset.store, dataset.tables + BUILD_RECORD))
        if data["record_version"] != RECORD_VERSION:
            raise IngestError(
                f"{where}: version {data['record_version']!r}, but this program knows "
                f"{RECORD_VERSION}; use the coralbay that wrote it"
            )
        record = converter.structure(data, BuildRecord)
    except FileNotFoundError:
        return BuildRecord(generation_id=expected, config=None, hu_histogram=None)
    except IngestError:
        raise
    except Exception as exc:  # cattrs raises an open family of errors: any means "not our record"
        raise IngestError(f"{where}: cannot be read ({exc!r}); copy the dataset again") from exc
    if record.generation_id != expected:
        raise IngestError(
            f"{where}: is of another generation than the manifest; copy the dataset again, "
            "with all its files"
        )
    return record
