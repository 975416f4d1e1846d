"""The front of a DICOM file, read by ourselves: a few wanted values, and where the pixels begin.

A scan spends its time here. pydicom makes an object of every element; this reader steps over what
nobody asked for and looks at nothing twice. It takes only files that it reads exactly as pydicom
does (PS3.5 section 7); at the first surprise it gives up, and the caller asks pydicom. So a file
gets the same verdict either way, and only the regular ones, nearly all, are fast.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import IO

from pydicom.datadict import dictionary_VR, tag_for_keyword

from ingest.elements import LONG, SHORT, SurpriseError, Walk, Window, looks_explicit

Value = str | int | float | list[str]
Converter = Callable[[bytes], Value]

MAX_VALUE_BYTES = 256
"""Of a wanted element: no regular one is longer, and values are remembered."""
_META_START = 132
_META_GROUP = 0x0002
_GROUP_LENGTH, _SYNTAX, _MEDIA_CLASS = 0x00020000, 0x00020010, 0x00020002
_CHARACTER_SET = 0x00080005
_MULTI_FRAME = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in ("2.1", "2.2", "7.1", "7.2", "7.3", "7.4")
)
"""Enhanced and Legacy Converted Enhanced CT, multi-frame secondary captures."""
_IMPLICIT, _BIG_ENDIAN = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2"
_EXPLICIT = re.compile(rb"1\.2\.840\.10008\.1\.2\.(1|5|4\.\d{2,3})")
"""Little endian, plain or with compressed pixels; not the deflated one."""
_ASCII_SETS = re.compile(
    rb"(ISO_IR (6|100|101|109|110|126|127|138|144|148|166|192)|ISO 2022 IR \d{1,3}"
    rb"|\\ISO 2022 IR \d{1,3}|ISO 2022 IR 6\\ISO 2022 IR \d{1,3}|)"
)
"""Character sets in which printable ASCII without escapes stands for itself."""
_UID = re.compile(rb"[0-9.]*")
_TEXT = re.compile(rb"[\x20-\x7e]*")
_DECIMALS = re.compile(rb"(?: *[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})? *(?:\\(?!$)|$))*")
_INTEGERS = re.compile(rb"(?: *[+-]?\d{1,9} *(?:\\(?!$)|$))*")


def _text(pattern: re.Pattern[bytes] | None) -> Converter:
    """A converter of text whose padded bytes ``pattern`` takes; None takes all."""

    @lru_cache(maxsize=1 << 14)
    def convert(data: bytes) -> Value:
        if len(data) > MAX_VALUE_BYTES:
            raise SurpriseError
        data = data.rstrip(b" \0")
        if pattern is not None and pattern.fullmatch(data) is None:
            raise SurpriseError
        items = [item.strip(" \0") for item in data.decode("latin-1").split("\\")]
        return items if len(items) > 1 else items[0]

    return convert


_CONVERTERS: dict[bytes, Converter] = {
    b"UI": _text(_UID),
    b"LO": _text(_TEXT),
    b"SH": _text(_TEXT),
    b"CS": _text(None),
    b"DA": _text(None),
    b"TM": _text(None),
    b"DT": _text(None),
    b"DS": _text(_DECIMALS),
    b"IS": _text(_INTEGERS),
}
_NUMBER_VRS = (b"DS", b"IS", b"US", b"UL", b"FD")
"""VRs whose empty value is no value, not an empty text."""
_BINARY = {b"US": "H", b"UL": "L", b"FD": "d"}
_UNPACK = {
    (vr, little): Struct(order + code)
    for vr, code in _BINARY.items()
    for little, order in ((True, "<"), (False, ">"))
}


@dataclass(frozen=True)
class Wanted:
    """Elements to read, by tag: their VR, and their keyword."""

    vrs: dict[int, bytes]
    keywords: dict[int, str]


def wanted_elements(keywords: Iterable[str]) -> Wanted:
    """The elements named by ``keywords`` of the DICOM dictionary, and those that decide here."""
    names = {*keywords, "NumberOfFrames", "SOPClassUID"}
    words = {tag: word for word in sorted(names) if (tag := tag_for_keyword(word)) is not None}
    vrs = {tag: dictionary_VR(tag).encode() for tag in words}
    return Wanted(vrs={**vrs, _CHARACTER_SET: b"CS"}, keywords=words)


class Meta:
    """Some elements by keyword: text, number or list of texts.

    ``get`` gives None where an element is absent, was not asked for, or is an empty number.
    """

    __slots__ = ("get",)

    def __init__(self, values: dict[str, Value]) -> None:
        # The dictionary's own: a scan asks fifty times a file, and mostly for what is absent.
        self.get: Callable[[str], Value | None] = values.get


class Front(Meta):
    """What a file's front says; quacks like a pydicom data set as far as `ingest.headers` asks.

    Attributes:
        file_meta: its transfer syntax and SOP class.
        original_encoding: (implicit VR, little endian).
    """

    __slots__ = ("file_meta", "original_encoding")

    def __init__(self, values: dict[str, Value], meta: Meta, implicit: bool, little: bool) -> None:
        super().__init__(values)
        self.file_meta = meta
        self.original_encoding = (implicit, little)


def read_front(stream: IO[bytes], size: int, wanted: Wanted) -> Front | None:
    """Read ``wanted`` up to the pixel data, where ``stream`` is left; None if pydicom has to.

    Args:
        stream: at its start, and there again when None is returned.
        size: bytes of the file.
        wanted: what to read.
    """
    try:
        front, pixels = _read(Window(stream, size), wanted)
    except SurpriseError:
        stream.seek(0)
        return None
    stream.seek(pixels)
    return front


def _read(window: Window, wanted: Wanted) -> tuple[Front, int]:
    """The front, and where its pixel data element begins."""
    syntax, media_class, at = _read_meta(window.data)
    implicit, little = syntax == _IMPLICIT, syntax != _BIG_ENDIAN
    if not (implicit or not little or _EXPLICIT.fullmatch(syntax)):
        raise SurpriseError
    letters = window.data[at + 4 : at + 6]
    if window.data[at : at + 2] == b"\0\0" or looks_explicit(letters) == implicit:
        raise SurpriseError
    raw, pixels = Walk(window, implicit, little).top_level(at, wanted.vrs)
    if not _ASCII_SETS.fullmatch(raw.pop(_CHARACTER_SET, b"").rstrip(b" \0")):
        raise SurpriseError
    values = _convert(raw, wanted, little)
    media = _CONVERTERS[b"UI"](media_class)
    if values.get("NumberOfFrames", "1") != "1":
        raise SurpriseError
    if media in _MULTI_FRAME or values.get("SOPClassUID") in _MULTI_FRAME:
        raise SurpriseError
    meta = Meta({"TransferSyntaxUID": syntax.decode(), "MediaStorageSOPClassUID": media})
    return Front(values, meta, implicit, little), pixels


def _read_meta(data: bytes) -> tuple[bytes, bytes, int]:
    """Transfer syntax, SOP class, and where the data set begins (PS3.10 section 7.1)."""
    if data[128:_META_START] != b"DICM":
        raise SurpriseError
    at, end = _META_START, len(data)
    # An empty SOP class is none; an empty transfer syntax is a surprise.
    values = {_SYNTAX: b"", _MEDIA_CLASS: b""}
    unpack = Struct("<HH2sH").unpack_from
    while at + 12 <= end:
        group, element, vr, length = unpack(data, at)
        if group != _META_GROUP:
            return values[_SYNTAX].rstrip(b" \0"), values[_MEDIA_CLASS], at
        start = at + 8
        if vr in LONG:
            length, start = int.from_bytes(data[start : start + 4], "little"), start + 4
        elif vr not in SHORT:
            break
        tag = _META_GROUP << 16 | element
        if (tag == _GROUP_LENGTH) != (at == _META_START):
            break  # pydicom looks at the first element's value: let it be the regular one
        if tag == _GROUP_LENGTH and (vr != b"UL" or length != 4):
            break
        if tag in values:
            if vr != b"UI":
                break
            values[tag] = data[start : start + length]
        at = start + length
    raise SurpriseError


def _convert(raw: dict[int, bytes], wanted: Wanted, little: bool) -> dict[str, Value]:
    """Values as text or number, by keyword; what is empty and no text is left out."""
    values: dict[str, Value] = {}
    for tag, data in raw.items():
        vr = wanted.vrs[tag]
        if not data and vr in _NUMBER_VRS:
            continue
        if (convert := _CONVERTERS.get(vr)) is not None:
            values[wanted.keywords[tag]] = convert(data)
        elif vr in _BINARY and len(data) == _UNPACK[vr, little].size:
            values[wanted.keywords[tag]] = _UNPACK[vr, little].unpack(data)[0]
        else:
            raise SurpriseError
    return values
