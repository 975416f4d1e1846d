"""Which of the volumes found are taken: rules that headers decide, so that a scan applies them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ingest.errors import Reason
from ingest.exclude import NO_EXCLUSIONS, Exclusions, exclude_rows
from ingest.geometry import spl_axes
from ingest.headers import Header
from ingest.select import thinnest_soft_tissue
from ingest.series import Series
from ingest.sources import FileRef

Select = Literal["all", "thinnest-soft-tissue"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is taken of the volumes that could be.

    Attributes:
        min_coverage_mm: least distance of the first and the last voxel from feet to head.
        select: ``all``, or one reconstruction of each acquisition.
        exclusions: what must not be taken.
    """

    min_coverage_mm: float = 0.0
    select: Select = "all"
    exclusions: Exclusions = NO_EXCLUSIONS

    @property
    def needs_headers(self) -> bool:
        """Whether the rows alone do not suffice."""
        return self.select != "all" or bool(self.exclusions.uids or self.exclusions.patients)


TAKE_ALL = Choice()


def apply_choice(
    rows: Sequence[Series], headers: Mapping[FileRef, Header], choice: Choice
) -> list[Series]:
    """Refuse accepted rows that are excluded, then too short ones, then those not selected.

    Args:
        rows: of a whole scan.
        headers: of the DICOM files among their files.
        choice: the rules.
    """
    chosen = exclude_rows(rows, headers, choice.exclusions)
    if choice.min_coverage_mm > 0:
        chosen = [_covering(row, choice.min_coverage_mm) for row in chosen]
    if choice.select == "thinnest-soft-tissue":
        chosen = thinnest_soft_tissue(chosen, headers)
    return chosen


def coverage_mm(row: Series) -> float:
    """Distance of the first and the last voxel's centre along the axis nearest to feet-head."""
    assert row.shape_zyx is not None
    assert row.spacing_zyx_mm is not None
    axis = spl_axes(np.array(row.affine))[0][0]
    return (row.shape_zyx[axis] - 1) * row.spacing_zyx_mm[axis]


def _covering(row: Series, least_mm: float) -> Series:
    if row.reason is not Reason.OK or (mm := coverage_mm(row)) >= least_mm:
        return row
    detail = f"covers {mm:.1f} mm from feet to head; at least {least_mm:g} are asked for"
    return replace(row, reason=Reason.TOO_LITTLE_COVERAGE, detail=detail)
