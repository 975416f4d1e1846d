"""DICOM files to series: which files can be part of a CT volume, and which belong together.

ImageType lies both ways (original axial series that say DERIVED, reformats that say AXIAL), so the
rules refuse only what names itself no volume; geometry does the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ingest.decode import can_decode
from ingest.errors import Reason
from ingest.geometry import plausible_spacing, unit_axes
from ingest.headers import Header
from ingest.ids import IdKey
from ingest.kernels import kernel_of
from ingest.private import KVP_RANGE, SLICE_MM_RANGE, bounded, modality_of
from ingest.regrid import plan_regridding
from ingest.series import Series
from ingest.stack import Stack, measure_stack

ORIENTATION_TOLERANCE = 1e-3
"""Direction cosines of one series differ by less: rounding, never a second reformat."""
_LOCALIZER = {"LOCALIZER", "SCOUT", "SURVIEW", "REF_SURVIEW", "TOPOGRAM"}
_NOT_SLICES = {"SECONDARY", "SCREEN SAVE", "DOSEINFO", "DOSE", "3D", "MIP", "PROJECTION IMAGE"}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""Secondary Capture Image Storage; its multi-frame kin have a further component."""
_MULTI_FRAME = {"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}
"""Enhanced CT and Legacy Converted Enhanced CT: geometry is per frame, even with one frame."""
_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_DICOMDIR = "1.2.840.10008.1.3.10"
_NO_CONTRAST = {"NONE", "NO", "N", "WITHOUT", "NO CONTRAST"}


def file_verdict(header: Header) -> tuple[Reason, str]:
    """Whether one file can be a slice of a CT volume, from its header alone."""
    if header.sop_class == _DICOMDIR:
        return Reason.DICOMDIR, "an index of files; the files themselves are found without it"
    image = header.rows > 0 and header.columns > 0
    if not (image or header.sop_class or header.sop_instance or header.modality):
        return Reason.UNREADABLE_FILE, "the DICOM header says nothing; it may be cut off"
    modality = header.modality or ("CT" if header.sop_class == _CT_IMAGE else "")
    if modality != "CT":
        if not image:
            return Reason.NOT_AN_IMAGE, "holds no image"
        return Reason.NOT_CT, "the modality is not CT"
    return _content_verdict(header) or _pixel_verdict(header) or _plane_verdict(header)


def _content_verdict(header: Header) -> tuple[Reason, str] | None:
    """What the file says it shows."""
    kinds = {value.upper() for value in header.image_type}
    if kinds & _LOCALIZER or "SCOUT" in header.scan_options:
        return Reason.LOCALIZER, "a localizer (scout, topogram)"
    if header.frames > 1 or header.sop_class in _MULTI_FRAME:
        return Reason.MULTI_FRAME, "several frames in one file; multi-frame CT is not read yet"
    if kinds & _NOT_SLICES or header.sop_class.startswith(_SECONDARY_CAPTURE):
        return Reason.SECONDARY_CAPTURE, "a derived or captured picture, not a slice"
    if header.burned_in == "YES":
        return Reason.BURNED_IN_ANNOTATION, "text is burned into the pixels"
    return None


def _pixel_verdict(header: Header) -> tuple[Reason, str] | None:
    """Whether the pixels are there and of a kind that is read."""
    image = header.rows > 0 and header.columns > 0
    if header.pixel_bytes_missing is None and (image or header.sop_class == _CT_IMAGE):
        return Reason.TRUNCATED_FILE, "ends before its pixel data"
    if header.pixel_bytes_missing is None or not image:
        return Reason.NOT_AN_IMAGE, "holds no image"
    if not can_decode(header.transfer_syntax):
        return Reason.UNSUPPORTED_TRANSFER_SYNTAX, "the pixel data's compression is not supported"
    if header.pixel_bytes_missing > 0:
        return Reason.TRUNCATED_FILE, f"its pixel data is {header.pixel_bytes_missing} bytes short"
    if header.samples != 1 or not header.photometric.startswith("MONOCHROME"):
        return Reason.NOT_GREYSCALE, "a colour image"
    return None


def _plane_verdict(header: Header) -> tuple[Reason, str]:
    """Whether the file says where its plane lies."""
    spacing = header.pixel_spacing
    if len(header.position) != 3 or len(header.orientation) != 6 or len(spacing) != 2:
        return Reason.MISSING_GEOMETRY, "position, orientation or pixel spacing is missing"
    if not np.isfinite([*header.position, *header.orientation, *spacing]).all():
        return Reason.MISSING_GEOMETRY, "position, orientation or pixel spacing is not a number"
    try:
        unit_axes(np.array(header.orientation))
    except ValueError:
        return Reason.MISSING_GEOMETRY, "the direction cosines are not orthonormal"
    if not plausible_spacing(spacing):
        return Reason.IMPLAUSIBLE_SPACING, "the pixel spacing is none that CT has"
    return Reason.OK, ""


@dataclass(frozen=True)
class _Piece:
    """What files must share to be in one row. ``hint`` stands in for a missing series UID."""

    study: str
    series: str
    hint: str
    reason: Reason
    detail: str
    plane: tuple[str, ...] = ()


def group_series(
    headers: Iterable[Header], duplicates: Iterable[Header], id_key: IdKey, *, min_slices: int
) -> list[Series]:
    """Every file in exactly one series: volumes to be read, or refused pieces with their reason.

    Grouped by study, series, SOP class, matrix, pixel spacing and orientation. Not by
    AcquisitionNumber (one head had 21) nor FrameOfReferenceUID (differs per slice in LIDC-IDRI).

    Args:
        headers: files, each once.
        duplicates: further copies of some of them.
        id_key: makes the ids.
        min_slices: volumes with fewer are refused.
    """
    pieces: dict[_Piece, list[Header]] = {}
    for header in headers:
        pieces.setdefault(_piece_of(header), []).append(header)
    rows: list[Series] = []
    row_of_file: dict[str, int] = {}
    for piece, files in pieces.items():
        files.sort(key=_rank)
        for members in _by_orientation(files) if piece.reason is Reason.OK else [files]:
            row = _row(piece, members, id_key)
            if piece.reason is Reason.OK:
                row = _volume(row, piece, members, id_key, min_slices)
            row_of_file.update((file_id(header), len(rows)) for header in members)
            rows.append(row)
    return rows + _duplicate_rows(duplicates, rows, row_of_file)


def file_id(header: Header) -> str:
    """What makes two files one: the SOPInstanceUID, or the content where there is none."""
    return header.sop_instance or header.content_sha256


def _rank(header: Header) -> tuple[object, ...]:
    """An order that does not depend on where files were found: the first one gives the facts."""
    facts = (header.patient, header.issuer, header.modality, header.kernel, header.contrast_agent)
    numbers = f"{header.kvp} {header.slice_thickness} {header.pixel_spacing}"
    return header.orientation, header.position, file_id(header), facts, numbers


def _piece_of(header: Header) -> _Piece:
    reason, detail = file_verdict(header)
    plane: tuple[str, ...] = ()
    if reason is Reason.OK:
        spacing = "x".join(f"{value:.4f}" for value in header.pixel_spacing)
        plane = (header.sop_class, f"{header.rows}x{header.columns}", spacing)
    hint = ""
    if not header.series:  # a refused file that names no series is a row of its own
        hint = header.series_hint if reason is Reason.OK else file_id(header)
    return _Piece(header.study, header.series, hint, reason, detail, plane)


def _by_orientation(files: Sequence[Header]) -> list[list[Header]]:
    """Split by orientation, within a tolerance."""
    clusters: list[list[Header]] = []
    for header in files:
        for cluster in clusters:
            pairs = zip(header.orientation, cluster[0].orientation, strict=True)
            if all(abs(a - b) <= ORIENTATION_TOLERANCE for a, b in pairs):
                cluster.append(header)
                break
        else:
            clusters.append([header])
    return clusters


def _row(piece: _Piece, members: Sequence[Header], id_key: IdKey) -> Series:
    """The facts that hold for any group of files, refused or not."""
    first = members[0]
    if piece.series:
        series_id = id_key.id("series", piece.study, piece.series)
    else:
        series_id = id_key.id("content", *sorted(file_id(header) for header in members))
    study_id = id_key.id("study", piece.study) if piece.study else series_id
    subject_id = id_key.id("subject", first.issuer, first.patient) if first.patient else study_id
    return Series(
        series_id=series_id,
        subject_id=subject_id,
        study_id=study_id,
        source_kind="dicom",
        refs=tuple(header.ref for header in members),
        reason=piece.reason,
        detail=piece.detail,
        n_files=len(members),
        modality=modality_of(first.modality),
    )


def _volume(
    row: Series, piece: _Piece, members: list[Header], id_key: IdKey, min_slices: int
) -> Series:
    """The verdict on files that may be one volume, and its facts."""
    first = members[0]
    pixel_spacing = (first.pixel_spacing[0], first.pixel_spacing[1])
    positions = np.array([header.position for header in members])
    stack = measure_stack(positions, np.array(first.orientation), pixel_spacing)
    reason, detail = _stack_verdict(stack, members, min_slices)
    slices = stack.slice_of.tolist()
    order = sorted(range(len(members)), key=lambda i: (slices[i], file_id(members[i])))
    orientation = " ".join(f"{value:.4f}" for value in first.orientation)
    kernel, kernel_flags = kernel_of(header.kernel for header in members)
    grid = _grid_of(stack, pixel_spacing, (first.rows, first.columns))
    thickness = bounded(first.slice_thickness, SLICE_MM_RANGE)
    return replace(
        row,
        **grid | {"flags": tuple(sorted({*grid.get("flags", ()), *kernel_flags}))},
        key=id_key.id("volume", row.series_id, *piece.plane, orientation),
        refs=tuple(members[i].ref for i in order),
        slice_of_ref=tuple(slices[i] for i in order),
        reason=reason,
        detail=detail,
        n_slices=stack.n_slices,
        kernel=kernel,
        contrast=_contrast(first.contrast_agent),
        kvp=bounded(first.kvp, KVP_RANGE),
        slice_mm=thickness or stack.spacing_mm,
    )


def _stack_verdict(stack: Stack, members: Sequence[Header], min_slices: int) -> tuple[Reason, str]:
    if stack.n_slices < min_slices:
        return Reason.TOO_FEW_SLICES, f"{stack.n_slices} slice(s); at least {min_slices} are needed"
    if stack.reason is not Reason.OK:
        return stack.reason, stack.detail
    if stack.spacing_mm is None or not plausible_spacing((stack.spacing_mm,)):
        return Reason.IMPLAUSIBLE_SPACING, "the slice spacing is none that CT has"
    if stack.repeated:
        phases: dict[int, set[tuple[str, ...]]] = {}
        for number, header in zip(stack.slice_of.tolist(), members, strict=True):
            phases.setdefault(number, set()).add(header.phase)
        # Copies of one image share these; if they do not, the pixels need not be compared.
        if any(len(different) > 1 for different in phases.values()):
            detail = "positions repeat at other times (4D, or several scans in one series)"
            return Reason.DUPLICATE_POSITIONS, detail
    return Reason.OK, stack.detail


def _grid_of(stack: Stack, pixel_mm: tuple[float, float], plane: tuple[int, int]) -> dict[str, Any]:
    """Fields of the grid on which a stack is read: its own, or the regular one it is put on."""
    fields: dict[str, Any] = {"geometry": stack.geometry, "shape_zyx": (stack.n_slices, *plane)}
    if stack.spacing_mm is not None:
        fields["spacing_zyx_mm"] = (stack.spacing_mm, *pixel_mm)
    affine = stack.affine
    if affine is not None and stack.offsets_mm is not None:
        plan, affine = plan_regridding(stack.offsets_mm, affine, plane)
        fields |= {"regridding": plan, "shape_zyx": plan.shape_zyx, "flags": (stack.geometry,)}
    return fields | {"affine": None if affine is None else tuple(map(tuple, affine.tolist()))}


def _contrast(agent: str) -> bool | None:
    """Whether contrast was given. An empty value says nothing: scanners write it either way."""
    if not agent:
        return None
    return agent.upper() not in _NO_CONTRAST


def _duplicate_rows(
    duplicates: Iterable[Header], rows: Sequence[Series], row_of_file: dict[str, int]
) -> list[Series]:
    """Dropped copies, one row for each row that keeps the originals."""
    copies: dict[int, list[Header]] = {}
    for header in duplicates:
        copies.setdefault(row_of_file[file_id(header)], []).append(header)
    return [
        replace(
            rows[number],
            key="",
            refs=tuple(header.ref for header in headers),
            slice_of_ref=(),
            reason=Reason.DUPLICATE_FILE,
            detail="the same file is there more than once; one is used",
            n_files=len(headers),
            n_slices=0,
            geometry="",
            regridding=None,
            flags=(),
            shape_zyx=None,
            spacing_zyx_mm=None,
            affine=None,
        )
        for number, headers in copies.items()
    ]
