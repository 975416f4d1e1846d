"""Which series of a scan are new to a dataset, so that each file counts once over its generations.

A stored series stays as it is. A refused one that comes again with at least as many files is judged
anew, and its row replaced; a series of a withdrawn subject is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from ingest.edit import Base
from ingest.errors import Reason
from ingest.record import one_way
from ingest.series import Series
from shards.tables import Row


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """The rows of a scan against those of the dataset."""

    new: list[Series]
    known_files: int
    kept: list[Row]
    """The dataset's rows that stay: all but those that are judged anew."""


def sort_out(found: Sequence[Series], base: Base) -> Arrivals:
    """Which of the series found are new to the dataset, and which of its rows they replace."""
    forgotten = set(base.record.forgotten)
    samples = base.dataset.index.select(["key", "labelled"]).to_pylist()
    stored = {row["key"] for row in samples}
    labelled = {row["key"] for row in samples if row["labelled"]}
    rows: dict[str, list[Row]] = {}
    for row in base.series:
        rows.setdefault(row["series_id"], []).append(row)
    new: list[Series] = []
    known = 0
    ordered = sorted(found, key=lambda s: s.series_id)
    for series_id, pieces in groupby(ordered, key=lambda s: s.series_id):
        group = list(pieces)
        if any(one_way(one.subject_id) in forgotten for one in group):
            group = [_withdrawn(one) for one in group]
            series_id = one_way(series_id)
        left = rows.get(series_id, [])
        unmatched, left = _unmatched(group, left, stored, labelled)
        known += sum(one.n_files for one in group) - sum(one.n_files for one in unmatched)
        refused = [row for row in left if row["verdict"] == "refused"]
        # With fewer files than before it is no new verdict on them, but a further one.
        if sum(one.n_files for one in unmatched) >= sum(row["n_files"] for row in refused):
            for row in refused if unmatched else ():
                rows[series_id].remove(row)
        new += unmatched
    return Arrivals(new=new, known_files=known, kept=[row for of in rows.values() for row in of])


def _unmatched(
    group: Sequence[Series], rows: Sequence[Row], stored: set[str], labelled: set[str]
) -> tuple[list[Series], list[Row]]:
    """Pieces of a series that have no row, and the rows that have no piece."""
    unmatched: list[Series] = []
    left = list(rows)
    for one in sorted(group, key=lambda s: s.reason != Reason.OK):
        same = next((row for row in left if _is_row_of(row, one, labelled)), None)
        if same is None and one.reason == Reason.OK and one.key in stored:
            one = replace(one, reason=Reason.ALREADY_STORED, detail="", flags=())
            same = next((row for row in left if _is_row_of(row, one, labelled)), None)
        if same is None:
            unmatched.append(one)
        else:
            left.remove(same)
    return unmatched, left


def _is_row_of(row: Row, one: Series, labelled: set[str]) -> bool:
    """Whether a scan would give this row again.

    Refusals by pixels are looked at again, but for copies: their original is stored.
    """
    seen_by_scan = row["reason"] not in (Reason.OK, Reason.DUPLICATE_SERIES)
    reason = row["reason"] if seen_by_scan else Reason.OK
    same_key = row["key"] in (None, one.key)
    # The row of a labelled sample counts the label's files too.
    files = row["n_files"] == one.n_files or (one.key in labelled and row["n_files"] > one.n_files)
    return bool(files and reason == one.reason and same_key)


def _withdrawn(one: Series) -> Series:
    """A series of a withdrawn subject: only its files count."""
    return replace(
        one,
        series_id=one_way(one.series_id),
        key="",
        subject_id="",
        study_id="",
        reason=Reason.WITHDRAWN,
        detail="",
        n_slices=0,
        modality="",
        geometry="",
        shape_zyx=None,
        spacing_zyx_mm=None,
        flags=(),
    )
