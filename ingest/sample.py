"""A series to its sample: voxels, record, labels, and its picture for the report."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int16, Int64
from numpy import ndarray

from ingest.config import BuildConfig
from ingest.errors import Reason, SeriesError
from ingest.exclude import BY_CONTENT, BY_PIXELS, NO_VOXELS, ExcludedVoxels
from ingest.intensity import hu_counts
from ingest.series import Series
from ingest.spool import Outcome
from ingest.volume import Volume
from shards.digest import content_sha256
from shards.labels import LabelVolume
from shards.schema import SampleMeta

HISTOGRAM_BIN_HU = 64
"""Width of a bar in the report's HU histogram: 64 bars over the stored range."""
PREVIEW_SIDE = 128
"""Pixels of a preview's plane."""


def make_sample(
    series: Series, config: BuildConfig, excluded: ExcludedVoxels = NO_VOXELS
) -> tuple[SampleMeta, Int16[ndarray, "z y x"], str]:
    """Read and prepare one series; also what is to be said of it.

    Raises:
        SeriesError: its pixels are not what the headers promised, or are no HU; it is excluded by
            its voxels, or shows a head where those are dropped.
    """
    # Here, because they bring in scipy and pydicom, which `--help` must not.
    from ingest.heads import HEAD, shows_head
    from ingest.pixels import series_sha256
    from ingest.prepare import PrepareConfig, prepare
    from ingest.reader import read_series
    from ingest.regridded import cost_in_words

    options = PrepareConfig(
        spacing_zyx_mm=config.spacing_zyx_mm, body_crop=config.body_crop, resample=config.resample
    )
    head = False

    def read() -> Volume:
        """Read and look; nothing here may keep the volume while `prepare` is at it."""
        nonlocal head
        known = excluded.pixels and series.regridding is not None
        if known and series_sha256(series) in excluded.pixels:
            raise SeriesError(Reason.EXCLUDED, BY_PIXELS)
        volume = read_series(series)
        if excluded.pixels and not known and series_sha256(series, volume) in excluded.pixels:
            raise SeriesError(Reason.EXCLUDED, BY_PIXELS)
        head = shows_head(volume, stated=series.head_stated)
        return volume

    prepared = prepare(read(), options)
    if head and config.heads == "drop":
        raise SeriesError(Reason.HEAD, "a head is in it, and heads are dropped")
    assert series.slice_mm is not None
    affine = np.asarray(prepared.affine, np.float64)
    meta = SampleMeta(
        key=series.key,
        subject_id=series.subject_id,
        study_id=series.study_id,
        source=config.source,
        source_kind=series.source_kind,
        modality=series.modality,
        shape_zyx=prepared.hu.shape,
        spacing_zyx_mm=prepared.spacing_zyx_mm,
        affine=tuple(tuple(row) for row in affine.tolist()),
        original=prepared.original,
        hu=prepared.hu_stats,
        body_box_zyx=prepared.body_box_zyx,
        slice_mm=series.slice_mm,
        kernel=series.kernel,
        contrast=series.contrast,
        kvp=series.kvp,
        flags=tuple(sorted({*series.flags, *prepared.flags, *([HEAD] if head else [])})),
        content_sha256=content_sha256(prepared.hu, affine),
    )
    if meta.content_sha256 in excluded.contents:
        raise SeriesError(Reason.EXCLUDED, BY_CONTENT)
    return meta, prepared.hu, cost_in_words(series.detail, prepared.regrid_error_hu)


def with_label(
    series: Series, meta: SampleMeta, config: BuildConfig
) -> tuple[SampleMeta, LabelVolume | None, Outcome | None]:
    """A sample's labels and what became of them; a flag where there should have been some."""
    if series.label is None:
        return meta, None, None
    from ingest.labels_build import make_label
    from ingest.labels_scan import LABEL_REFUSED

    try:
        label = make_label(series, meta, config.label_names)
    except SeriesError as exc:
        flagged = replace(meta, flags=tuple(sorted({*meta.flags, LABEL_REFUSED})))
        return flagged, None, Outcome(reason=str(exc.reason), detail=exc.detail)
    return meta, label, Outcome(reason=str(Reason.OK))


def hu_histogram(hu: Int16[ndarray, "z y x"]) -> Int64[ndarray, " bins"]:
    """Voxels a bin of ``HISTOGRAM_BIN_HU``, from ``HU_MIN`` on."""
    bins: Int64[ndarray, " bins"] = hu_counts(hu).reshape(-1, HISTOGRAM_BIN_HU).sum(axis=1)
    return bins


def preview(hu: Int16[ndarray, "z y x"], spacing_zyx_mm: Sequence[float]) -> str:
    """Three planes as PNG in base64, for the report."""
    from ingest.montage import png_bytes, strip

    return base64.b64encode(png_bytes(strip(hu, spacing_zyx_mm, PREVIEW_SIDE))).decode()
