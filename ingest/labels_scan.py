"""The label files of a scan: each is judged by its header and paired with one volume, or refused.

A label that is used is counted with its volume's files; one that is refused is a row of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ingest.errors import Reason, SeriesError
from ingest.headers import Header
from ingest.ids import IdKey
from ingest.labels import LabelSources
from ingest.labels_grid import MIN_OVERLAP, Grid, overlap
from ingest.labels_seg import SEGMENTATIONS, read_seg_header
from ingest.series import Series
from ingest.sources import FileRef, read_files

LABEL_REFUSED = "label_refused"
"""Flag of a volume that was taken without the label that was meant for it."""
_NIFTI_NAME = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_CHANNEL = "_0000"
"""What nnU-Net adds to the name of an image, and not to that of its label."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A label file found.

    Attributes:
        row: what is said of it; its ``reason`` is OK while nothing speaks against it.
        grid: where it lies, when its header says so.
        instances: SOPInstanceUIDs that a segmentation refers to.
        series: SeriesInstanceUIDs that it refers to.
        frame_of_reference: of a segmentation.
    """

    row: Series
    grid: Grid | None = None
    instances: frozenset[str] = field(default=frozenset(), repr=False)
    series: frozenset[str] = field(default=frozenset(), repr=False)
    frame_of_reference: str = field(default="", repr=False)

    @property
    def ref(self) -> FileRef:
        """Where the file is."""
        return self.row.refs[0]


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
    pairing = _Pairing(rows, headers, sources)
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
    row: Series, labels: Sequence[Label], pairing: _Pairing
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


class _Pairing:
    """Finds the volume of a label."""

    def __init__(
        self, rows: Sequence[Series], headers: Sequence[Header], sources: LabelSources
    ) -> None:
        self.rows = rows
        self.pairs = sources.pairs
        self.row_of_ref = {ref: number for number, row in enumerate(rows) for ref in row.refs}
        self.headers = {header.ref: header for header in headers}
        self.refs_of_uid: dict[str, list[FileRef]] = {}
        for header in headers:
            for uid in (header.sop_instance, header.series):
                self.refs_of_uid.setdefault(uid, []).append(header.ref)

    def volume_of(self, label: Label) -> int:
        """Number of the row that ``label`` belongs to.

        Raises:
            SeriesError: none, a refused one, or several.
        """
        image = self.pairs.get(os.path.realpath(label.ref.path))
        if image is not None:
            return self._only(self._at[image])
        if label.row.source_kind == "nifti":
            return self._only(self._same_name(label))
        return self._only(self._referred(label))

    def check(self, label: Label, volume: Series) -> None:
        """Whether a label lies where its volume is.

        Raises:
            SeriesError: another frame of reference, or hardly any overlap.
        """
        frames = {self.headers[r].frame_of_reference for r in volume.refs if r in self.headers}
        if label.frame_of_reference and frames - {""} and label.frame_of_reference not in frames:
            detail = "the segmentation is in another frame of reference"
            raise SeriesError(Reason.LABEL_MISMATCH, detail)
        assert label.grid is not None
        assert volume.affine is not None
        assert volume.shape_zyx is not None
        grid = Grid(affine=np.array(volume.affine), shape_zyx=volume.shape_zyx)
        if (share := overlap(label.grid, grid)) < MIN_OVERLAP:
            detail = f"only {share:.0%} of it and its volume overlap"
            raise SeriesError(Reason.LABEL_MISMATCH, detail)

    def _only(self, votes: Counter[int]) -> int:
        """The one accepted row with the most votes."""
        if not votes:
            raise SeriesError(Reason.LABEL_WITHOUT_CT, "no volume that it belongs to was found")
        usable = {n: count for n, count in votes.items() if self.rows[n].reason is Reason.OK}
        if not usable:
            reason = min(str(self.rows[n].reason) for n in votes)
            raise SeriesError(Reason.LABEL_WITHOUT_CT, f"its volume is refused ({reason})")
        most = max(usable.values())
        best = [number for number, count in usable.items() if count == most]
        if len(best) > 1:
            detail = f"{len(best)} volumes that it could belong to; pair it in a table"
            raise SeriesError(Reason.LABEL_AMBIGUOUS, detail)
        return best[0]

    @cached_property
    def _at(self) -> dict[str, Counter[int]]:
        """Rows whose files are, or lie in, each path that the user paired."""
        votes: dict[str, Counter[int]] = {image: Counter() for image in self.pairs.values()}
        rows_of_path: dict[str, set[int]] = {}
        for ref, number in self.row_of_ref.items():
            rows_of_path.setdefault(ref.path, set()).add(number)
        for path, numbers in rows_of_path.items():
            real = os.path.realpath(path)
            for place in (real, *map(str, Path(real).parents)):
                if place in votes:
                    votes[place].update(numbers)
        return {image: Counter(dict.fromkeys(found, 1)) for image, found in votes.items()}

    @cached_property
    def _nifti_of_name(self) -> dict[str, list[tuple[list[str], int]]]:
        """Folders and row of the NIfTI files of each name."""
        found: dict[str, list[tuple[list[str], int]]] = {}
        for ref, number in self.row_of_ref.items():
            if self.rows[number].source_kind == "nifti":
                *folders, name = _parts(ref)
                found.setdefault(name, []).append((folders, number))
        return found

    def _referred(self, label: Label) -> Counter[int]:
        """Rows by how many of the images that a segmentation refers to they hold."""
        votes: Counter[int] = Counter()
        for uids in (label.instances, label.series):
            for uid in uids:
                votes.update(self.row_of_ref[ref] for ref in self.refs_of_uid.get(uid, ()))
            if votes:
                break
        return votes

    def _same_name(self, label: Label) -> Counter[int]:
        """NIfTI rows of the label's name, by how many of their enclosing folders agree too."""
        votes: Counter[int] = Counter()
        *folders, name = _parts(label.ref)
        for suffix in ("", _CHANNEL):
            for others, number in self._nifti_of_name.get(name + suffix, ()):
                pairs = zip(reversed(folders), reversed(others), strict=False)
                same = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
                votes[number] = 1 + len(list(same))
        return votes


def _parts(ref: FileRef) -> list[str]:
    """Folders and name of a file, its suffix left out."""
    place = ref.path if ref.member is None else f"{ref.path}/{ref.member}"
    *folders, name = place.replace(os.sep, "/").split("/")
    return [*folders, _NIFTI_NAME.sub("", name)]


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
