"""The label files of a scan: each is judged by its header and paired with one volume, or refused.

A label that is used is counted with its volume's files; one that is refused is a row of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ingest.errors import Reason, SeriesError
from ingest.headers import Header
from ingest.ids import IdKey
from ingest.labels import LabelSources
from ingest.labels_grid import Grid
from ingest.labels_pairing import Label, Pairing
from ingest.labels_seg import SEGMENTATIONS, read_seg_header
from ingest.series import Series
from ingest.sources import read_files

LABEL_REFUSED = "label_refused"
"""Flag of a volume that was taken without the label that was meant for it."""


def take_labels(
    sources: LabelSources, headers: list[Header], rows: list[Series], id_key: IdKey
) -> list[Label]:
    """Take the label files out of what a walk found: ``headers`` and ``rows`` keep the others.

    Files that are no image at all stay where they are: they have their verdict already.
    """
    if not sources.roots:
        return []
    other_headers: list[Header] = []
    other_rows: list[Series] = []
    labels: list[Label] = []
    for header in headers:
        segmentation = header.sop_class in SEGMENTATIONS
        if sources.claims(header.ref.path, segmentation=segmentation):
            labels.append(_seg_label(header, id_key))
        else:
            other_headers.append(header)
    for row in rows:
        if row.source_kind == "nifti" and sources.claims(row.refs[0].path, segmentation=False):
            labels.append(_nifti_label(row))
        else:
            other_rows.append(row)
    headers[:], rows[:] = other_headers, other_rows
    return labels


def attach_labels(
    rows: Sequence[Series],
    labels: Iterable[Label],
    sources: LabelSources,
    headers: Sequence[Header],
) -> list[Series]:
    """Pair labels with volumes: the rows, with labels, and a row for each label refused.

    Args:
        rows: every other row of the scan.
        labels: the label files.
        sources: holds the user's own pairs.
        headers: of the DICOM files in ``rows``.
    """
    pairing = Pairing(rows, headers, sources)
    out = list(rows)
    refused: list[Series] = []
    found: dict[int, list[Label]] = {}
    for label in labels:
        sound = label.row.reason is Reason.OK
        try:
            number = pairing.volume_of(label)
        except SeriesError as exc:
            refused.append(_refused(label, exc) if sound else label.row)
            continue
        # Of the volume's patient: what is forgotten of one is forgotten of the other.
        whose = rows[number]
        own = replace(label.row, subject_id=whose.subject_id, study_id=whose.study_id)
        label = replace(label, row=own)
        if sound:
            found.setdefault(number, []).append(label)
        else:
            refused.append(label.row)
            out[number] = _flagged(out[number])
    for number, claimants in found.items():
        out[number], others = _attached(out[number], claimants, pairing)
        refused += others
    return out + refused


def _attached(
    row: Series, labels: Sequence[Label], pairing: Pairing
) -> tuple[Series, list[Series]]:
    """A volume with its label, and the labels that it does not take."""
    first, *others = sorted(labels, key=lambda label: (label.row.series_id, str(label.ref)))
    refused = []
    same = SeriesError(Reason.DUPLICATE_FILE, "the same label is there more than once; one is used")
    for copy in [one for one in others if one.row.series_id == first.row.series_id]:
        refused.append(_refused(copy, same))
        others.remove(copy)
    if others:
        detail = "one volume has several labels; merge them, or pair one in a table"
        several = SeriesError(Reason.LABEL_AMBIGUOUS, detail)
        return _flagged(row), refused + [_refused(one, several) for one in (first, *others)]
    try:
        pairing.check(first, row)
    except SeriesError as exc:
        return _flagged(row), [*refused, _refused(first, exc)]
    return replace(row, label=first.row), refused


def _refused(label: Label, error: SeriesError) -> Series:
    return replace(label.row, reason=error.reason, detail=error.detail)


def _flagged(row: Series) -> Series:
    return replace(row, flags=tuple(sorted({*row.flags, LABEL_REFUSED})))


def _nifti_label(row: Series) -> Label:
    """A NIfTI row as a label: the number of slices does not matter."""
    if row.reason is Reason.TOO_FEW_SLICES:
        row = replace(row, reason=Reason.OK, detail="")
    row = replace(row, key="", modality="", slice_of_ref=())
    if row.reason is not Reason.OK:
        return Label(row=row)
    assert row.affine is not None
    assert row.shape_zyx is not None
    return Label(row=row, grid=Grid(affine=np.array(row.affine), shape_zyx=row.shape_zyx))


def _seg_label(header: Header, id_key: IdKey) -> Label:
    """A DICOM file that is claimed as a label."""
    row = Series(
        series_id="",
        subject_id="",
        study_id="",
        source_kind="dicom",
        refs=(header.ref,),
        reason=Reason.OK,
        n_files=1,
    )
    identity = str(header.ref)
    label = Label(row=row)
    try:
        [(_, data)] = read_files([header.ref])
        identity = hashlib.sha256(data).hexdigest()
        label = _judged(row, header, data)
    except SeriesError as exc:
        label = Label(row=replace(row, reason=exc.reason, detail=exc.detail))
    own = id_key.id("file", identity)
    return replace(label, row=replace(label.row, series_id=own, subject_id=own, study_id=own))


def _judged(row: Series, header: Header, data: bytes) -> Label:
    if header.sop_class not in SEGMENTATIONS:
        raise SeriesError(Reason.NOT_A_LABEL, "DICOM, but no segmentation")
    if header.pixel_bytes_missing is None:
        raise SeriesError(Reason.TRUNCATED_FILE, "ends before its pixel data")
    if header.pixel_bytes_missing > 0:
        detail = f"its pixel data is {header.pixel_bytes_missing} bytes short"
        raise SeriesError(Reason.TRUNCATED_FILE, detail)
    found = read_seg_header(data)
    grid = found.frames.grid
    facts = replace(row, modality="SEG", n_slices=grid.shape_zyx[0], shape_zyx=grid.shape_zyx)
    return Label(
        row=facts,
        grid=grid,
        instances=found.instances,
        series=found.series,
        frame_of_reference=found.frame_of_reference,
    )
