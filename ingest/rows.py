"""What became of each series, as rows of ``series.parquet``, and their sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ingest.errors import Reason
from ingest.series import Series
from ingest.spool import Outcome
from shards.schema import Totals
from shards.writer import KeptShard, ShardResult


def series_rows(
    series: Series, outcome: Outcome | None, label: Outcome | None
) -> list[dict[str, Any]]:
    """Rows of a series: a label that is used counts with its files, a refused one is another row.

    Args:
        series: a series, with its label if one was found for it.
        outcome: the pixel stage's verdict on it, if there was one.
        label: the pixel stage's verdict on its label, if that was tried.
    """
    row = series_row(series, outcome)
    if series.label is None:
        return [row]
    if label is not None and label.reason == Reason.OK and row["verdict"] == "accepted":
        return [row | {"n_files": row["n_files"] + series.label.n_files}]
    if label is None or label.reason == Reason.OK:
        detail = f"its volume is refused ({row['reason']})"
        label = Outcome(reason=str(Reason.LABEL_WITHOUT_CT), detail=detail)
    return [row, series_row(series.label, label)]


def series_row(series: Series, outcome: Outcome | None) -> dict[str, Any]:
    """A row of ``series.parquet``: the pixel stage's verdict if there was one, else the scan's."""
    if series.reason != Reason.OK or outcome is None:
        outcome = Outcome(reason=str(series.reason), detail=series.detail, flags=series.flags)
    accepted = outcome.reason == Reason.OK
    return {
        "series_id": series.series_id,
        "source_kind": series.source_kind,
        "verdict": "accepted" if accepted else "refused",
        "reason": outcome.reason,
        "detail": outcome.detail,
        "n_files": series.n_files,
        "n_slices": series.n_slices,
        "key": series.key if accepted else None,
        "modality": series.modality,
        "geometry": series.geometry,
        "shape_zyx": None if series.shape_zyx is None else list(series.shape_zyx),
        "spacing_zyx_mm": None if series.spacing_zyx_mm is None else list(series.spacing_zyx_mm),
        "flags": list(outcome.flags),
    }


def count_totals(
    rows: Sequence[dict[str, Any]], shards: Sequence[ShardResult | KeptShard]
) -> Totals:
    """The sums of the manifest; every file found is either used or refused."""
    samples = [row for shard in shards for row in shard.index_rows]
    used = sum(row["n_files"] for row in rows if row["verdict"] == "accepted")
    files = sum(row["n_files"] for row in rows)
    accepted = sum(row["verdict"] == "accepted" for row in rows)
    return Totals(
        samples=len(samples),
        trainable=sum(row["trainable"] for row in samples),
        shard_bytes=sum(shard.entry.bytes for shard in shards),
        voxels=sum(math.prod(row["shape_zyx"]) for row in samples),
        files_in=files,
        files_used=used,
        files_refused=files - used,
        series_accepted=accepted,
        series_refused=len(rows) - accepted,
    )
