"""DICOM headers: the few facts that grouping, geometry and the report need.

Nothing personal is read beyond the ids that become keyed pseudonyms.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import IO, Any

import pydicom
from pydicom import uid
from pydicom.config import disable_value_validation
from pydicom.dataset import FileDataset, FileMetaDataset

from ingest.frames import Frame, frames_of
from ingest.front import Front, read_front, wanted_elements
from ingest.sources import FileRef
from ingest.streams import MAX_RATIO

PHASE_TAGS = (
    "TemporalPositionIdentifier", "TemporalPositionIndex", "TemporalPositionTimeOffset",
    "AcquisitionTime", "AcquisitionDateTime", "FrameAcquisitionDateTime",
    "TriggerTime", "NominalCardiacTriggerDelayTime", "NominalPercentageOfCardiacPhase",
    "ContentTime", "FrameReferenceDateTime", "AcquisitionNumber", "FrameAcquisitionNumber",
)  # fmt: skip
"""What may tell the phases of a series apart, in the order in which it is tried."""
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "PatientID", "IssuerOfPatientID", "SeriesNumber", "SeriesDate", "SeriesTime",
    "Modality", "ImageType", "ScanOptions", "BurnedInAnnotation", "NumberOfFrames",
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber",
    "ConvolutionKernel", "ContrastBolusAgent", "KVP", "SliceThickness",
    "RescaleSlope", "RescaleIntercept",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    *PHASE_TAGS,
    "AcquisitionUID", "BodyPartExamined",
]  # fmt: skip
_WANTED = wanted_elements(_TAGS)
_PREAMBLE_BYTES = 132
_META_BYTES = 4096
"""The transfer syntax stands in the first of these."""
_BLOCK_BYTES, _SMALL_BYTES = 1 << 20, 64 << 20
"""Inflated at a time; and what any deflated file may expand to."""
_PIXEL_TAGS = ((0x7FE0, 0x0010), (0x7FE0, 0x0008), (0x7FE0, 0x0009))
"""PixelData, FloatPixelData, DoubleFloatPixelData."""
_PIXEL_VRS = (b"OW", b"OB", b"UN", b"OF", b"OD")
UNDEFINED_LENGTH = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """Facts of one DICOM file, strings stripped; what is absent or invalid is "", () or None.

    Attributes:
        series_hint: tells series apart where the SeriesInstanceUID is missing.
        frames: in the file.
        frame: which of them this is, from 0.
        planes: of a multi-frame file, a header for each frame; empty where frames have no facts of
            their own.
        own_groups: this is a frame with functional groups of its own.
        instance: InstanceNumber.
        phase: values of ``PHASE_TAGS``.
        rescaled: slope and intercept are stated.
        other_units: the pixels are mapped to another quantity than HU.
        pixel_bytes_missing: bytes of pixel data that the file should have and has not; None when
            there is no pixel data element at all.
        content_sha256: of the whole file, only where there is no SOPInstanceUID.
    """

    ref: FileRef
    sop_instance: str
    series: str
    study: str
    series_hint: str
    patient: str
    issuer: str
    sop_class: str
    transfer_syntax: str
    modality: str
    image_type: tuple[str, ...]
    scan_options: str
    burned_in: str
    frames: int
    frame: int = 0
    planes: tuple[Header, ...] = ()
    own_groups: bool = False
    instance: int
    samples: int
    photometric: str
    rows: int
    columns: int
    pixel_spacing: tuple[float, ...]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    phase: tuple[str, ...]
    rescaled: bool = False
    other_units: bool = False
    kernel: str
    contrast_agent: str
    kvp: float | None
    slice_thickness: float | None
    pixel_bytes_missing: int | None
    content_sha256: str = ""
    frame_of_reference: str = ""
    acquisition_uid: str = ""
    acquisition_time: str = ""
    body_part: str = ""


def looks_like_dicom(head: bytes) -> bool:
    """Whether the first 132 bytes are DICOM's: with the prefix, or a bare data set.

    Those begin in group 0002 or 0008; files of before 1993 and of some exporters have no preamble.
    """
    if head[128:_PREAMBLE_BYTES] == b"DICM":
        return True
    if len(head) < 16:
        return False
    for order in "<>":
        group, element = struct.unpack(f"{order}HH", head[:4])
        if group not in (0x0002, 0x0008) or element > 0x1000:
            continue
        explicit = head[4:6].isalpha() and head[4:6].isupper()
        if explicit or struct.unpack(f"{order}L", head[4:8])[0] < 0x1000:
            return True
    return False


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Invalid values are the rule in archives: what matters is judged here, not warned about."""
    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def read_dataset(stream: IO[bytes], *, header_only: bool) -> FileDataset:
    """Parse a DICOM file, filling in a transfer syntax that the file does not state.

    Raises:
        Exception: pydicom raises an open family of errors on garbage.
    """
    _check_inflation(stream)
    dataset = pydicom.dcmread(
        stream,
        force=True,
        stop_before_pixels=header_only,
        specific_tags=list(_TAGS) if header_only else None,
    )
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            uid.ImplicitVRLittleEndian
            if implicit
            else (uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian)
        )
    return dataset


def _check_inflation(stream: IO[bytes]) -> None:
    """Refuse a deflated data set that expands like a bomb, for pydicom inflates it all at once.

    Raises:
        ValueError: it does.
        zlib.error: it is damaged.
    """
    start = stream.tell()
    front = stream.read(_META_BYTES)
    stream.seek(start)
    if uid.DeflatedExplicitVRLittleEndian.encode() not in front:
        return
    packed = stream.read()
    stream.seek(0)
    pydicom.filereader.read_preamble(stream, force=True)
    pydicom.filereader._read_file_meta_info(stream)
    begin = stream.tell()
    stream.seek(start)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    left, data = max(_SMALL_BYTES, MAX_RATIO * len(packed)), packed[begin - start :]
    while data and not inflater.eof:
        left -= len(inflater.decompress(data, _BLOCK_BYTES))
        data = inflater.unconsumed_tail
        if left < 0:
            raise ValueError("the deflated data set expands beyond the limits")


def read_header(ref: FileRef, stream: IO[bytes], size: int) -> Header:
    """Facts of the DICOM file in ``stream``, which has ``size`` bytes.

    Raises:
        Exception: see `read_dataset`; the caller records the file as unreadable.
    """
    front = read_front(stream, size, _WANTED)
    dataset = read_dataset(stream, header_only=True) if front is None else front
    frames = frames_of(dataset) if front is None else []
    syntax = _text(dataset.file_meta, "TransferSyntaxUID")
    missing = _missing_pixel_bytes(dataset, stream, size, syntax)
    header = _file_header(ref, dataset, frames[0] if frames else dataset, missing)
    if not frames:
        return header
    planes = tuple(
        replace(header, frame=number, own_groups=True, **_plane_facts(frame))
        for number, frame in enumerate(frames)
    )
    return replace(header, planes=planes)


def _file_header(
    ref: FileRef, dataset: FileDataset | Front, first: Any, missing: int | None
) -> Header:
    """What holds for the whole file; ``first`` is its first frame, or the data set."""
    sop_class = _text(dataset, "SOPClassUID") or _text(dataset.file_meta, "MediaStorageSOPClassUID")
    return Header(
        ref=ref,
        sop_instance=_text(dataset, "SOPInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        study=_text(dataset, "StudyInstanceUID"),
        series_hint=_joined(
            dataset,
            ("PatientID", "FrameOfReferenceUID", "SeriesNumber", "SeriesDate", "SeriesTime"),
        ),
        patient=_text(dataset, "PatientID"),
        issuer=_text(dataset, "IssuerOfPatientID"),
        sop_class=sop_class,
        transfer_syntax=_text(dataset.file_meta, "TransferSyntaxUID"),
        modality=_text(dataset, "Modality").upper(),
        scan_options=_joined(dataset, ("ScanOptions",)).upper(),
        burned_in=_text(dataset, "BurnedInAnnotation").upper(),
        frames=_integer(dataset, "NumberOfFrames", 1),
        instance=_integer(dataset, "InstanceNumber", 0),
        samples=_integer(dataset, "SamplesPerPixel", 1),
        photometric=_text(dataset, "PhotometricInterpretation").upper(),
        rows=_integer(dataset, "Rows", 0),
        columns=_integer(dataset, "Columns", 0),
        kernel="/".join(_texts(first, "ConvolutionKernel")),
        contrast_agent=_text(dataset, "ContrastBolusAgent")
        or _text(first, "ContrastBolusAgentAdministered"),
        kvp=_number(first, "KVP"),
        pixel_bytes_missing=missing,
        **_plane_facts(dataset),
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
        acquisition_uid=_text(dataset, "AcquisitionUID"),
        acquisition_time=_text(dataset, "AcquisitionTime"),
        body_part=_text(dataset, "BodyPartExamined").upper(),
    )


def _plane_facts(frame: Any) -> dict[str, Any]:
    """What may differ from frame to frame; ``frame`` is a `Frame` or a data set."""
    return {
        "image_type": _texts(frame, "FrameType") or _texts(frame, "ImageType"),
        "pixel_spacing": _numbers(frame, "PixelSpacing"),
        "position": _numbers(frame, "ImagePositionPatient"),
        "orientation": _numbers(frame, "ImageOrientationPatient"),
        "phase": tuple([_text(frame, name) for name in PHASE_TAGS]),
        "slice_thickness": _number(frame, "SliceThickness"),
        "rescaled": all(_texts(frame, name) for name in ("RescaleSlope", "RescaleIntercept")),
        "other_units": isinstance(frame, Frame) and frame.other_units,
    }


def _missing_pixel_bytes(
    dataset: FileDataset | Front, stream: IO[bytes], size: int, syntax: str
) -> int | None:
    """How much pixel data is cut off; 0 where only decoding can tell; None without pixel data."""
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        return 0  # inflated to its end without an error, and the stream's position says nothing
    little = dataset.original_encoding[1]
    start = stream.tell()
    head = stream.read(12)
    order = "<" if little else ">"
    if len(head) < 8 or struct.unpack(f"{order}HH", head[:4]) not in _PIXEL_TAGS:
        return None
    # The file's own bytes, not its transfer syntax, say whether there is a VR.
    header_bytes = 12 if head[4:6] in _PIXEL_VRS else 8
    if len(head) < header_bytes:
        return 1
    length = struct.unpack(f"{order}L", head[header_bytes - 4 : header_bytes])[0]
    left = size - start - header_bytes
    if length == UNDEFINED_LENGTH:
        return int(left <= 0)
    image = _integer(dataset, "Rows", 0) * _integer(dataset, "Columns", 0)
    samples = _integer(dataset, "SamplesPerPixel", 1) * _integer(dataset, "NumberOfFrames", 1)
    # Whether compressed data is whole only the decoder can tell, beyond the length it states.
    bits = _integer(dataset, "BitsAllocated", 16)
    expected = int(length) if _is_encapsulated(syntax) else image * samples * bits // 8
    return max(0, expected - min(int(length), left))


@lru_cache(maxsize=256)
def _is_encapsulated(syntax: str) -> bool:
    return bool(uid.UID(syntax).is_transfer_syntax and uid.UID(syntax).is_encapsulated)


def _value(dataset: Any, name: str) -> Any:
    try:
        return dataset.get(name)
    except Exception:  # converting a malformed value raises an open family of errors
        return None


def _texts(dataset: Any, name: str) -> tuple[str, ...]:
    value = _value(dataset, name)
    if value is None:
        return ()
    if type(value) is str:
        return (value.strip(" \0"),)
    values = [value] if isinstance(value, str | bytes | int | float) else value
    return tuple([str(item).strip(" \0") for item in values])


def _text(dataset: Any, name: str) -> str:
    value = _value(dataset, name)
    if value is None:
        return ""
    if type(value) is str:
        return value.strip(" \0")
    texts = _texts(dataset, name)
    return texts[0] if texts else ""


def _joined(dataset: Any, names: tuple[str, ...]) -> str:
    return "\\".join(["\\".join(_texts(dataset, name)) for name in names])


def _numbers(dataset: Any, name: str) -> tuple[float, ...]:
    try:
        return tuple([float(text) for text in _texts(dataset, name)])
    except ValueError:
        return ()


def _number(dataset: Any, name: str) -> float | None:
    numbers = _numbers(dataset, name)
    return numbers[0] if numbers else None


def _integer(dataset: Any, name: str, default: int) -> int:
    value = _value(dataset, name)
    if type(value) is int:  # the rule, and some scans ask a million times
        return value if abs(value) < 2**31 else default
    number = _number(dataset, name)
    return default if number is None or not abs(number) < 2**31 else int(number)
