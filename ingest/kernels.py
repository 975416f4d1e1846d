"""Reconstruction kernels: which names may be written down, and which of them are soft or sharp.

ConvolutionKernel is text that anyone can type into, so only names that a vendor's scheme gives are
kept, whole; any other text becomes "" with a flag. The class is a coarse reading for choosing and
filtering: *soft* kernels (soft tissue, brain) smooth, *sharp* ones (lung, bone) enhance edges.

=============  ========================  =========================================================
vendor         names                     class
=============  ========================  =========================================================
GE             words                     SOFT, STANDARD soft; LUNG, BONE, EDGE, ULTRA sharp
Siemens        B30f, Hr40f, Br38f/3      number under 50 soft, from 50 on sharp; S and T no class
Philips        A, B, UB, YA, ...         A, B and their kin soft; D, E, L and the Y kernels sharp
Toshiba/Canon  FC08, FC51, ...           tens 0, 1 (body), 2, 4 (brain) soft; 3, 5, 8 sharp
United Imaging B_SOFT_C, B_SHARP_C       the word in the middle
=============  ========================  =========================================================

Sources: Siemens, the operating instructions of the Somatom Sensation ("Body Kernels": B10s to B41s
for soft tissue, B50s to B80s for higher sharpness, the last letter for the rotation time, S80 and
S90 for physical measurements); two-letter kernels keep that scale, and ``/3`` is the strength of
iterative reconstruction. Names of the real test data: STANDARD, STD+, BONE and SOFT (GE), B10f to
B60s, T20s and Br38f/3 (Siemens), UB (Philips), FC21 and FC41 (Toshiba). The other names and classes
are common usage in published protocols, not vendors' statements; where usage is not clear a name
has no class. Hitachi's plain numbers are not kept: nothing tells them from an age.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SOFT, SHARP = "kernel_soft", "kernel_sharp"
"""Flags of a kernel's class; a kernel may have neither."""
UNKNOWN = "kernel_unknown"
"""Flag: the source names a kernel that no scheme here knows, or its slices name several."""

_WORDS = {
    "SOFT": SOFT, "STANDARD": SOFT, "STND": SOFT, "STD": SOFT, "STD+": SOFT, "STND+": SOFT,
    "STANDARD PLUS": SOFT, "SMOOTH": SOFT, "DETAIL": "", "CHEST": "", "LUNG": SHARP,
    "BONE": SHARP, "BONEPLUS": SHARP, "BONE PLUS": SHARP, "EDGE": SHARP, "ULTRA": SHARP,
    "SHARP": SHARP,
}  # fmt: skip
"""GE's, which others use too; each also with HD before it."""
_PHILIPS = {
    "A": SOFT, "B": SOFT, "C": "", "D": SHARP, "E": SHARP, "F": "", "L": SHARP,
    "EA": SOFT, "EB": SOFT, "EC": "", "UA": SOFT, "UB": SOFT, "UC": "", "CA": SOFT, "CB": SOFT,
    "CC": "", "CD": "", "XCA": SOFT, "XCB": SOFT, "XCC": "", "XCD": "",
    "YA": SHARP, "YB": SHARP, "YC": SHARP, "YD": SHARP,
}  # fmt: skip
_SIEMENS = re.compile(r"([BCDHIJQSTU])[acdfhlmnprsv]?([0-9]{2})[dfhmpqstuv](/[1-5])?")
_SIEMENS_NO_IMAGE = "ST"
"""S: physical measurements; T: topograms."""
_SIEMENS_SHARP_FROM = 50
_TOSHIBA = re.compile(r"FC([0-9])[0-9](-H)?")
_TOSHIBA_TENS = {"0": SOFT, "1": SOFT, "2": SOFT, "3": SHARP, "4": SOFT, "5": SHARP, "8": SHARP}
_UNITED_IMAGING = re.compile(r"[BCHL]_V?(SOFT|SMOOTH|SHARP|LUNG|BONE)_[A-D]{1,2}")


def kernel_of(stated: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """Name and flags of what the slices of a volume state, several values joined by ``/``.

    >>> kernel_of(["Br38f/3", "Br38f/3"]), kernel_of(["Mustermann"]), kernel_of([""])
    (('Br38f/3', ('kernel_soft',)), ('', ('kernel_unknown',)), ('', ()))
    """
    names = {text.strip() for text in stated}
    if names <= {""}:
        return "", ()
    known = kernel_class(names.pop()) if len(names) == 1 else None
    if known is None:
        return "", (UNKNOWN,)
    name, flag = known
    return name, (flag,) if flag else ()


def kernel_class(text: str) -> tuple[str, str] | None:
    """The name as it is stored and its class (``""``: none); None for any other text."""
    word = text.upper()
    plain = word.removeprefix("HD ")
    if plain in _WORDS:
        return word, _WORDS[plain]
    if text in _PHILIPS:
        return text, _PHILIPS[text]
    if found := _SIEMENS.fullmatch(text):
        if found[1] in _SIEMENS_NO_IMAGE:
            return text, ""
        return text, SHARP if int(found[2]) >= _SIEMENS_SHARP_FROM else SOFT
    if found := _TOSHIBA.fullmatch(text):
        return text, _TOSHIBA_TENS.get(found[1], "")
    if found := _UNITED_IMAGING.fullmatch(text):
        return text, SOFT if found[1] in ("SOFT", "SMOOTH") else SHARP
    return None
