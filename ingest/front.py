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
_CHARACTER_SET, _SOP_CLASS, _FRAMES = 0x00080005, 0x00080016, 0x00280008
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


_CONVERTERS: dict[str, Converter] = {
    "UI": _text(_UID),
    "LO": _text(_TEXT),
    "SH": _text(_TEXT),
    "CS": _text(None),
    "DA": _text(None),
    "TM": _text(None),
    "DT": _text(None),
    "DS": _text(_DECIMALS),
    "IS": _text(_INTEGERS),
}
_NUMBER_VRS = ("DS", "IS", "US", "UL", "FD")
"""VRs whose empty value is no value, not an empty text."""
_BINARY = {"US": "H", "UL": "L", "FD": "d"}
_UNPACK = {
    (vr, little): Struct(order + code)
    for vr, code in _BINARY.items()
    for little, order in ((True, "<"), (False, ">"))
}


@dataclass(frozen=True)
class Wanted:
    """Elements to read: VR by tag, and tag by keyword."""

    vrs: dict[int, bytes]
    tags: dict[str, int]


def wanted_elements(keywords: Iterable[str]) -> Wanted:
    """The elements named by ``keywords`` of the DICOM dictionary."""
    tags = {word: tag for word in keywords if (tag := tag_for_keyword(word)) is not None}
    vrs = {tag: dictionary_VR(tag).encode() for tag in tags.values()}
    return Wanted(vrs={**vrs, _CHARACTER_SET: b"CS", _FRAMES: b"IS", _SOP_CLASS: b"UI"}, tags=tags)


class Meta:
    """File meta information, read as far as a scan needs it."""

    def __init__(self, values: dict[str, Value]) -> None:
        self._values = values

    def get(self, keyword: str) -> Value | None:
        """Value of an element, or None."""
        return self._values.get(keyword)


class Front:
    """What a file's front says; quacks like a pydicom data set as far as `ingest.headers` asks.

    Attributes:
        file_meta: its transfer syntax and SOP class.
        original_encoding: (implicit VR, little endian).
    """

    __slots__ = ("_tags", "_values", "file_meta", "original_encoding")

    def __init__(
        self, wanted: Wanted, values: dict[int, Value], meta: Meta, implicit: bool, little: bool
    ) -> None:
        self._tags = wanted.tags
        self._values = values
        self.file_meta = meta
        self.original_encoding = (implicit, little)

    def get(self, keyword: str) -> Value | None:
        """Text, number or list of texts; None where the element is absent or an empty number."""
        return self._values.get(self._tags[keyword])


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
    media = _CONVERTERS["UI"](media_class)
    if values.get(_FRAMES, "1") != "1" or {values.get(_SOP_CLASS), media} & _MULTI_FRAME:
        raise SurpriseError
    meta = Meta({"TransferSyntaxUID": syntax.decode(), "MediaStorageSOPClassUID": media})
    return Front(wanted, values, meta, implicit, little), pixels


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


def _convert(raw: dict[int, bytes], wanted: Wanted, little: bool) -> dict[int, Value]:
    """Values as text or number; what is empty and no text is left out."""
    values: dict[int, Value] = {}
    for tag, data in raw.items():
        vr = wanted.vrs[tag].decode()
        if not data and vr in _NUMBER_VRS:
            continue
        if vr in _BINARY:
            number = _UNPACK[vr, little]
            if len(data) != number.size:
                raise SurpriseError
            values[tag] = number.unpack(data)[0]
        elif (convert := _CONVERTERS.get(vr)) is not None:
            values[tag] = convert(data)
        else:
            raise SurpriseError
    return values
