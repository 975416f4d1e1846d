"""A label file and a sample to labels on the sample's own grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingest.errors import Reason, SeriesError
from ingest.labels_frames import read_seg_labels
from ingest.labels_grid import MIN_OVERLAP, Grid, LabelPlanes, sample_labels, share_inside
from ingest.labels_nifti import read_nifti_labels
from ingest.series import Series
from ingest.sources import read_files
from shards.digest import label_sha256
from shards.labels import LabelVolume, count_values
from shards.schema import LabelMeta, LabelValue, SampleMeta

_PROBES = 20_000
"""Labelled voxels whose place is looked at."""


def make_label(series: Series, sample: SampleMeta, names: Sequence[tuple[int, str]]) -> LabelVolume:
    """Read the label of ``series`` and bring it onto the grid of its sample.

    Args:
        series: a volume with its label.
        sample: what is stored of the volume.
        names: of the values of NIfTI labels.

    Raises:
        SeriesError: the file holds no labels, or they lie elsewhere.
    """
    assert series.label is not None
    [(_, data)] = read_files(series.label.refs)
    if series.label.source_kind == "nifti":
        planes, present = read_nifti_labels(data)
        own = dict(names)
        meanings = {value: (own.get(value, ""), "", "") for value in present}
        kind = "nifti"
    else:
        planes, codes = read_seg_labels(data, series)
        meanings = {value: ("", code, scheme) for value, (code, scheme) in codes.items()}
        kind = "dicom_seg"
    _check_place(planes, series)
    affine = np.array(sample.affine, np.float64)
    values = sample_labels(planes, affine, sample.shape_zyx)
    counts = count_values(values)
    return LabelVolume(
        meta=LabelMeta(
            key=sample.key,
            source_kind=kind,
            labels=tuple(
                LabelValue(
                    value=value,
                    name=name,
                    code=code,
                    scheme=scheme,
                    voxels=int(counts[value]) if value < len(counts) else 0,
                )
                for value, (name, code, scheme) in sorted(meanings.items())
            ),
            content_sha256=label_sha256(values, affine),
        ),
        values=values,
    )


def _check_place(planes: LabelPlanes, series: Series) -> None:
    """Whether what is labelled lies in the volume, as it was before cropping."""
    drawn = np.flatnonzero(planes.values)
    if len(drawn) == 0:
        return
    assert series.affine is not None
    assert series.shape_zyx is not None
    probes = drawn[:: -(-len(drawn) // _PROBES)]
    plane, row, column = np.unravel_index(probes, planes.values.shape)
    points = (
        planes.origins[plane]
        + row[:, None] * planes.pixel_mm[0] * planes.axes[1]
        + column[:, None] * planes.pixel_mm[1] * planes.axes[2]
    )
    grid = Grid(affine=np.array(series.affine), shape_zyx=series.shape_zyx)
    if (share := share_inside(points, grid)) < MIN_OVERLAP:
        raise SeriesError(
            Reason.LABEL_MISMATCH, f"only {share:.0%} of what is labelled lies in its volume"
        )
