"""Can this file, or this frame, be a slice of a CT volume? From its header alone.

ImageType lies both ways (original axial series that say DERIVED, reformats that say AXIAL), so the
rules refuse only what names itself no volume; geometry does the rest.
"""

from __future__ import annotations

from functools import lru_cache
from math import isfinite

import numpy as np

from ingest.decode import can_decode
from ingest.errors import Reason
from ingest.geometry import plausible_spacing, unit_axes
from ingest.headers import Header

_LOCALIZER = {"LOCALIZER", "SCOUT", "SURVIEW", "REF_SURVIEW", "TOPOGRAM"}
_NOT_SLICES = {
    "SCREEN SAVE", "VXTL STATE", "DOSEINFO", "DOSE", "3D", "VRT", "SSD", "CPR", "CURVED",
    "MIP", "MAX_IP", "MAX IP", "MINIP", "MIN_IP", "MIN IP", "PROJECTION IMAGE",
}  # fmt: skip
_OTHER_QUANTITIES = {"PERFUSION"}
"""Values of ImageType whose pixels are no attenuation (PS3.3 C.8.16.1.3)."""
SMALL_BYTES = 64 << 20
MAX_EXPANSION = 1000
"""A frame of this many bytes is decoded whatever its file's size, a larger one only from a file
that is no smaller than this share of it: no slice but a blank one packs 100 fold."""
_REFORMATS = ("REFORMATTED", "MPR", "AVERAGE")
_AXIAL_COSINE = 0.7
"""Slices leaning more than 45 degrees are coronal or sagittal; gantries lean 30 at most."""
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""Secondary Capture Image Storage; its multi-frame kin have a further component."""
_GREY_WORD_CAPTURE = "1.2.840.10008.5.1.4.1.1.7.3"
"""Multi-frame Grayscale Word Secondary Capture: some converters keep whole volumes in it."""
_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_ENHANCED = {"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}
"""Enhanced CT and Legacy Converted Enhanced CT: geometry is per frame, even with one frame."""
_DICOMDIR = "1.2.840.10008.1.3.10"


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
    if kinds & _NOT_SLICES or _is_capture(header, kinds):
        return Reason.SECONDARY_CAPTURE, "a derived or captured picture, not a slice"
    if not header.own_groups and (header.frames > 1 or header.sop_class in _ENHANCED):
        return Reason.MULTI_FRAME, "several frames in one file, with no facts of each frame"
    if header.other_units or kinds & _OTHER_QUANTITIES:
        return Reason.NOT_HU, "shows another quantity than attenuation, such as a perfusion map"
    if header.burned_in == "YES":
        return Reason.BURNED_IN_ANNOTATION, "text is burned into the pixels"
    return None


def _is_capture(header: Header, kinds: set[str]) -> bool:
    """Whether a "secondary" image is a picture of images.

    Slices sent again by another system call themselves SECONDARY too: they keep the class of CT
    images, their place and their rescale.
    """
    if header.sop_class.startswith(_SECONDARY_CAPTURE):
        return header.sop_class != _GREY_WORD_CAPTURE or not header.own_groups
    if "SECONDARY" not in kinds:
        return False
    slice_like = header.position and header.orientation and header.pixel_spacing
    known = header.sop_class == _CT_IMAGE or header.sop_class in _ENHANCED
    return not (known and slice_like and header.rescaled)


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
    claimed = 2 * header.rows * header.columns * header.frames
    if claimed > SMALL_BYTES and claimed > MAX_EXPANSION * header.ref.size:
        return Reason.ARCHIVE_LIMIT, "its header claims more pixels than its bytes can hold"
    if header.samples != 1 or not header.photometric.startswith("MONOCHROME"):
        return Reason.NOT_GREYSCALE, "a colour image"
    return None


def _plane_verdict(header: Header) -> tuple[Reason, str]:
    """Whether the file says where its plane lies."""
    spacing = header.pixel_spacing
    if len(header.position) != 3 or len(header.orientation) != 6 or len(spacing) != 2:
        return Reason.MISSING_GEOMETRY, "position, orientation or pixel spacing is missing"
    if not all(map(isfinite, (*header.position, *header.orientation, *spacing))):
        return Reason.MISSING_GEOMETRY, "position, orientation or pixel spacing is not a number"
    if _normal_z(header.orientation) is None:
        return Reason.MISSING_GEOMETRY, "the direction cosines are not orthonormal"
    if not plausible_spacing(spacing):
        return Reason.IMPLAUSIBLE_SPACING, "the pixel spacing is none that CT has"
    return Reason.OK, ""


@lru_cache(maxsize=1 << 12)  # the slices of a series share it, and a scan asks for each of them
def _normal_z(orientation: tuple[float, ...]) -> float | None:
    """The slice normal's share along z; None where the cosines are not orthonormal."""
    try:
        return float(unit_axes(np.array(orientation))[0][2])
    except ValueError:
        return None


def type_flags(header: Header) -> set[str]:
    """What an accepted slice says of its making: ``secondary``, ``reformat``."""
    kinds = {value.upper() for value in header.image_type}
    flags = {"secondary"} if "SECONDARY" in kinds else set()
    derived = "DERIVED" in kinds and any(kind.startswith(_REFORMATS) for kind in kinds)
    normal_z = _normal_z(header.orientation)
    assert normal_z is not None  # accepted slices have an orientation
    if derived or abs(normal_z) < _AXIAL_COSINE:
        flags.add("reformat")
    return flags
