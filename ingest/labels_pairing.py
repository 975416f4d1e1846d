"""Which volume a label belongs to: by the user's table, by name, or by the images it refers to."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ingest.errors import Reason, SeriesError
from ingest.headers import Header
from ingest.labels import LabelSources
from ingest.labels_grid import MIN_OVERLAP, Grid, overlap
from ingest.series import Series
from ingest.sources import FileRef

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


class Pairing:
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
