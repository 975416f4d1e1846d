"""DICOM files to series: which files and frames belong together in a volume."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ingest.errors import Reason
from ingest.geometry import plausible_extent, plausible_spacing
from ingest.headers import Header
from ingest.heads import body_part_is_head
from ingest.ids import IdKey
from ingest.kernels import kernel_of
from ingest.phases import copies_differ, drop_copied_phases, split_phases
from ingest.private import KVP_RANGE, SLICE_MM_RANGE, bounded, modality_of
from ingest.regrid import plan_regridding
from ingest.series import Series
from ingest.sources import FileRef
from ingest.stack import Stack, measure_stack
from ingest.verdict import file_verdict, type_flags

ORIENTATION_TOLERANCE = 1e-3
"""Direction cosines of one series differ by less: rounding, never a second reformat."""
_NO_CONTRAST = {"NONE", "NO", "N", "WITHOUT", "NO CONTRAST"}


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

    Grouped by study, series, matrix, pixel spacing and orientation, and by phase where positions
    repeat. Not by AcquisitionNumber (one head had 21) nor FrameOfReferenceUID (differs per slice in
    LIDC-IDRI), nor by SOP class (one series holds its slices, and again as one multi-frame file).
    Only where positions repeat are pixels looked at, of one position: copies are no phases.

    Args:
        headers: files, each once.
        duplicates: further copies of some of them.
        id_key: makes the ids.
        min_slices: volumes with fewer are refused.
    """
    pieces: dict[_Piece, list[Header]] = {}
    shared: set[FileRef] = set()
    for header in headers:
        if len(header.planes) > 1:
            shared.add(header.ref)
        planes = [replace(p, content_sha256=header.content_sha256) for p in header.planes]
        for plane in planes or [header]:
            pieces.setdefault(_piece_of(plane), []).append(plane)
    rows: list[Series] = []
    row_of_file: dict[str, int] = {}
    for piece, files in pieces.items():
        files.sort(key=_rank)
        for members in _by_orientation(files) if piece.reason is Reason.OK else [files]:
            made = [_row(piece, members, id_key)]
            if piece.reason is Reason.OK:
                made = _volumes(made[0], piece, members, id_key, min_slices)
            row_of_file.update((file_id(header), len(rows)) for header in members)
            rows += made
    _count_once(rows, shared)
    return rows + _duplicate_rows(duplicates, rows, row_of_file)


def _count_once(rows: list[Series], shared: set[FileRef]) -> None:
    """A multi-frame file whose frames are in several rows counts in one, in a taken one if any."""
    holders: dict[FileRef, list[int]] = {}
    for number, row in enumerate(rows):
        for ref in shared.intersection(row.refs):
            holders.setdefault(ref, []).append(number)
    for numbers in holders.values():
        numbers.sort(key=lambda i: (rows[i].reason is not Reason.OK, rows[i].key, rows[i].detail))
        for number in numbers[1:]:
            rows[number] = replace(rows[number], n_files=rows[number].n_files - 1)


def file_id(header: Header) -> str:
    """What makes two files one: the SOPInstanceUID, or the content where there is none."""
    return header.sop_instance or header.content_sha256


def _rank(header: Header) -> tuple[object, ...]:
    """An order that does not depend on where files were found: the first one gives the facts."""
    facts = (header.patient, header.issuer, header.modality, header.kernel, header.contrast_agent)
    numbers = f"{header.kvp} {header.slice_thickness} {header.pixel_spacing}"
    return header.orientation, header.position, file_id(header), header.frame, facts, numbers


def _piece_of(header: Header) -> _Piece:
    reason, detail = file_verdict(header)
    plane: tuple[str, ...] = ()
    if reason is Reason.OK:
        spacing = "x".join(f"{value:.4f}" for value in header.pixel_spacing)
        plane = (f"{header.rows}x{header.columns}", spacing)
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
        refs=tuple(dict.fromkeys(header.ref for header in members)),
        reason=piece.reason,
        detail=piece.detail,
        n_files=len({header.ref for header in members}),
        modality=modality_of(first.modality),
    )


def _volumes(
    row: Series, piece: _Piece, members: list[Header], id_key: IdKey, min_slices: int
) -> list[Series]:
    """One volume, or one for each phase where positions repeat with different images."""
    stack = _measure(members)
    if not stack.repeated or stack.n_slices < min_slices:
        return [_volume(row, piece, members, id_key, min_slices)]
    parts = drop_copied_phases(split_phases(members, stack.slice_of.tolist()), stack.n_slices // 2)
    if len(parts) > 1:
        rows = []
        for number, part in enumerate(parts, 1):
            ordinal = f"phase_{number:02d}_of_{len(parts):02d}"
            rows.append(_volume(row, piece, part, id_key, min_slices, ordinal))
        return rows
    volume = _volume(row, piece, members, id_key, min_slices)
    if volume.reason is Reason.OK and copies_differ(members, stack.slice_of.tolist()):
        detail = "positions repeat with different images, and nothing sorts them into phases"
        volume = replace(volume, reason=Reason.DUPLICATE_POSITIONS, detail=detail)
    return [volume]


def _measure(members: Sequence[Header]) -> Stack:
    first = members[0]
    positions = np.array([header.position for header in members])
    spacing = (first.pixel_spacing[0], first.pixel_spacing[1])
    return measure_stack(positions, np.array(first.orientation), spacing)


def _volume(
    row: Series,
    piece: _Piece,
    members: list[Header],
    id_key: IdKey,
    min_slices: int,
    phase: str = "",
) -> Series:
    """The verdict on files that may be one volume, and its facts."""
    first = members[0]
    stack = _measure(members)
    reason, detail = _stack_verdict(stack, min_slices)
    slices = stack.slice_of.tolist()
    order = sorted(
        range(len(members)), key=lambda i: (slices[i], file_id(members[i]), members[i].frame)
    )
    orientation = " ".join(f"{value:.4f}" for value in first.orientation)
    sop_class = min(header.sop_class for header in members)
    kernel, kernel_flags = kernel_of(header.kernel for header in members)
    flags = {*kernel_flags, *(["phase", phase] if phase else [])}.union(*map(type_flags, members))
    pixel_spacing = (first.pixel_spacing[0], first.pixel_spacing[1])
    grid = _grid_of(stack, pixel_spacing, (first.rows, first.columns))
    if reason is Reason.OK and not plausible_extent(grid["shape_zyx"], grid["spacing_zyx_mm"]):
        reason, detail = Reason.IMPLAUSIBLE_SPACING, "longer than any person"
    thickness = bounded(first.slice_thickness, SLICE_MM_RANGE)
    named = (sop_class, *piece.plane, orientation, *([phase] if phase else []))
    return replace(
        row,
        **grid | {"flags": tuple(sorted({*grid.get("flags", ()), *flags}))},
        key=id_key.id("volume", row.series_id, *named),
        refs=tuple(members[i].ref for i in order),
        slice_of_ref=tuple(slices[i] for i in order),
        frame_of_ref=tuple(members[i].frame for i in order),
        reason=reason,
        detail=detail,
        n_files=len({header.ref for header in members}),
        n_slices=stack.n_slices,
        kernel=kernel,
        head_stated=any(body_part_is_head(header.body_part) for header in members),
        contrast=_contrast(first.contrast_agent),
        kvp=bounded(first.kvp, KVP_RANGE),
        slice_mm=thickness or stack.spacing_mm,
    )


def _stack_verdict(stack: Stack, min_slices: int) -> tuple[Reason, str]:
    if stack.n_slices < min_slices:
        return Reason.TOO_FEW_SLICES, f"{stack.n_slices} slice(s); at least {min_slices} are needed"
    if stack.reason is not Reason.OK:
        return stack.reason, stack.detail
    if stack.spacing_mm is None or not plausible_spacing((stack.spacing_mm,)):
        return Reason.IMPLAUSIBLE_SPACING, "the slice spacing is none that CT has"
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
            frame_of_ref=(),
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
