"""DICOM elements (PS3.5 section 7): from one to the next, without looking at their values."""

from __future__ import annotations

import re
from functools import lru_cache
from struct import Struct
from typing import IO

from pydicom.datadict import dictionary_VR

FRONT_BYTES = 1 << 14
"""Read at once: the pixels of 97 in 100 CT files begin before this."""
UNDEFINED_LENGTH = 0xFFFFFFFF

_PIXEL_TAGS = frozenset({0x7FE00010, 0x7FE00009, 0x7FE00008})
_CHARACTER_SET = 0x00080005
_FUNCTIONAL_GROUPS = frozenset({0x52009229, 0x52009230})
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_MAX_DEPTH = 16
SHORT = frozenset(re.findall(b"..", b"AEASATCSDADSDTFDFLISLOLTPNSHSLSSSTTMUIULUS"))
"""Explicit VRs with a length of 2 bytes (PS3.5 table 7.1-2)."""
LONG = frozenset(re.findall(b"..", b"OBODOFOLOVOWSQSVUCUNURUTUV"))
"""Explicit VRs with 2 reserved bytes and a length of 4 bytes (PS3.5 table 7.1-1)."""


class SurpriseError(Exception):
    """Not a file for this reader."""


def looks_explicit(letters: bytes) -> bool:
    """Whether two bytes can be a VR; a length hardly ever has such bytes."""
    return len(letters) == 2 and all(0x40 < letter < 0x5B for letter in letters)


class Window:
    """The part of a file that is in memory: ``data``, from ``base`` on. It only moves forward."""

    __slots__ = ("base", "data", "size", "stream")

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self.stream = stream
        self.size = size
        self.base = 0
        self.data = stream.read(FRONT_BYTES)

    def move(self, at: int, need: int) -> int:
        """Have ``need`` bytes from ``at`` on in memory; the new index of ``at`` (always 0)."""
        if at + need > self.size or need > FRONT_BYTES:
            raise SurpriseError
        self.stream.seek(at)
        self.base, self.data = at, self.stream.read(FRONT_BYTES)
        if len(self.data) < need:
            raise SurpriseError
        return 0


class Walk:
    """Steps from element to element."""

    def __init__(self, window: Window, implicit: bool, little: bool) -> None:
        order = "<" if little else ">"
        self.window = window
        self.implicit = implicit
        self.short = Struct(f"{order}HH2sH").unpack_from
        self.long = Struct(f"{order}L").unpack_from
        self.plain = Struct(f"{order}HHL").unpack_from

    def top_level(self, at: int, vrs: dict[int, bytes]) -> tuple[dict[int, bytes], int]:
        """Bytes of the elements in ``vrs``, the later of two, and where the pixel data begins.

        The one hot loop: a CT header has 50 to 300 elements, and few of them are wanted.
        """
        window, implicit = self.window, self.implicit
        unpack = self.plain if implicit else self.short
        raw: dict[int, bytes] = {}
        data, base, i = window.data, window.base, at - window.base
        end = len(data) - 12
        while True:
            if i > end:
                i = window.move(base + i, 12)
                data, base, end = window.data, window.base, len(window.data) - 12
            if implicit:
                group, element, length = unpack(data, i)
                vr, start = None, i + 8
            else:
                group, element, vr, length = unpack(data, i)
                if vr in SHORT:
                    start = i + 8
                elif vr in LONG:
                    length, start = self.long(data, i + 8)[0], i + 12
                else:
                    raise SurpriseError
            tag = group << 16 | element
            if tag in _PIXEL_TAGS:
                return raw, base + i
            if group == 0xFFFE or tag in _FUNCTIONAL_GROUPS:
                raise SurpriseError
            if length == UNDEFINED_LENGTH:
                if tag in vrs:
                    raise SurpriseError
                i = self._sequence(base + start, tag, vr, 0) - window.base
                data, base, end = window.data, window.base, len(window.data) - 12
                continue
            i = start + length
            if tag in vrs:
                if i > end:
                    start = window.move(base + start, length)
                    i = length
                    data, base, end = window.data, window.base, len(window.data) - 12
                if vr is not None and vr != vrs[tag]:
                    raise SurpriseError
                raw[tag] = data[start:i]

    def _sequence(self, at: int, tag: int, vr: bytes | None, depth: int) -> int:
        """End of a sequence of undefined length whose items begin at ``at``."""
        if depth > _MAX_DEPTH or (vr is not None and vr not in (b"SQ", b"UN")):
            raise SurpriseError
        if vr is None and not _may_be_sequence(tag):
            raise SurpriseError
        while True:
            i = self._have(at, 8)
            group, element, length = self.plain(self.window.data, i)
            item, at = group << 16 | element, at + 8
            if item == _SEQUENCE_END and length == 0:
                return at
            if item != _ITEM:
                raise SurpriseError
            at = self._item(at, length, depth)

    def _item(self, at: int, length: int, depth: int) -> int:
        """End of an item; its elements must fill it exactly."""
        stop = None if length == UNDEFINED_LENGTH else at + length
        implicit = self.implicit
        if not implicit:
            i = self._have(at, 8)  # what follows an empty item is looked at as well
            implicit = not looks_explicit(self.window.data[i + 4 : i + 6])
        while stop is None or at < stop:
            i = self._have(at, 12)
            data = self.window.data
            vr: bytes | None = None
            group, element, size = self.plain(data, i)
            tag, start = group << 16 | element, at + 8
            if tag == _ITEM_END:
                if stop is not None or size != 0:
                    raise SurpriseError
                return start
            if group == 0xFFFE or tag == _CHARACTER_SET:
                raise SurpriseError
            if not implicit:
                _, _, vr, size = self.short(data, i)
                if vr in LONG:
                    size, start = self.long(data, i + 8)[0], at + 12
                elif vr not in SHORT:
                    raise SurpriseError
            if size != UNDEFINED_LENGTH:
                at = start + size
            elif implicit == self.implicit:
                at = self._sequence(start, tag, vr, depth + 1)
            else:
                raise SurpriseError
        if at != stop or at > self.window.size:
            raise SurpriseError
        return at

    def _have(self, at: int, need: int) -> int:
        """Index of ``at`` in the window's data, with ``need`` bytes behind it."""
        i = at - self.window.base
        return i if i + need <= len(self.window.data) else self.window.move(at, need)


@lru_cache(maxsize=1 << 12)
def _may_be_sequence(tag: int) -> bool:
    """Whether an implicit element of undefined length can be a sequence."""
    try:
        return bool(dictionary_VR(tag) == "SQ")
    except KeyError:
        return True
