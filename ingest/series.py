"""One series as a scan found it: what `scan` hands to `build-shards`, and what the report lists."""

from __future__ import annotations

from dataclasses import dataclass

from ingest.errors import Reason
from ingest.regrid import Regridding
from ingest.sources import FileRef

Affine = tuple[tuple[float, ...], ...]
"""4 x 4 row by row, (z, y, x, 1) to RAS mm: an affine that can be compared, hashed and pickled."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A volume to be read, or a series or stray file refused with its reason.

    Attributes:
        series_id: keyed id. The pieces of one series (its localizer, its duplicates) share it.
        key: keyed id of the volume, and its name in the shards; empty when refused here.
        subject_id: keyed id of the patient; of the study or series where no patient is named.
        study_id: keyed id of the study.
        source_kind: ``dicom``, ``nifti`` or ``other``.
        refs: where the files are. In spatial order when ``reason`` is OK, and then one for each
            slice: a multi-frame file is there once for each of its frames.
        slice_of_ref: slice number of each of ``refs``; equal numbers are repeated positions.
        frame_of_ref: which frame of the file each of ``refs`` is, from 0.
        reason: OK when the series goes on to its pixels.
        detail: one line for a person; no identifier, path or date.
        n_files: files of this row. Summed over all rows: every file found. A multi-frame file whose
            frames are in several rows counts in one of them.
        n_slices: distinct slice positions (0 where that means nothing).
        modality: DICOM modality, ``CT`` for NIfTI, or empty.
        geometry: ``uniform``, ``oblique``, what was regridded (``tilted``, ``missing_slices``,
            ``variable_spacing``, ``tilted_variable``), or the reason code of the geometry's
            refusal, or empty.
        regridding: how the stored slices become the grid; None where they are the grid.
        shape_zyx: of the grid as read: the stored one, or the regular one that replaces it.
        spacing_zyx_mm: distances between neighbours along the grid's axes.
        affine: of the grid, when geometry is sound.
        kernel: reconstruction kernel, or empty.
        contrast: whether a contrast agent is stated; None when the source does not say.
        kvp: tube voltage.
        slice_mm: stated slice thickness, else the slice spacing.
        flags: stable codes of what was noticed.
        head_stated: whether the headers name a part of the head as the body part.
        uids: study and series UIDs, noted only for lists of exclusions. Private, as ``refs``.
        patient: PatientID, noted and private likewise.
        label: the row of the label file that belongs to this volume; its file is not in
            ``n_files``, as it is yet to be read.
    """

    series_id: str
    key: str = ""
    subject_id: str
    study_id: str
    source_kind: str
    refs: tuple[FileRef, ...]
    slice_of_ref: tuple[int, ...] = ()
    frame_of_ref: tuple[int, ...] = ()
    reason: Reason
    detail: str = ""
    n_files: int
    n_slices: int = 0
    modality: str = ""
    geometry: str = ""
    regridding: Regridding | None = None
    shape_zyx: tuple[int, int, int] | None = None
    spacing_zyx_mm: tuple[float, float, float] | None = None
    affine: Affine | None = None
    kernel: str = ""
    contrast: bool | None = None
    kvp: float | None = None
    slice_mm: float | None = None
    flags: tuple[str, ...] = ()
    head_stated: bool = False
    uids: tuple[str, ...] = ()
    patient: str = ""
    label: Series | None = None

    @property
    def estimated_voxels(self) -> int:
        """Voxels at the source's own resolution, before resampling and cropping."""
        if self.shape_zyx is None:
            return 0
        depth, rows, columns = self.shape_zyx
        return depth * rows * columns
