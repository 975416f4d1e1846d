"""Does every slice belong here? A decoder's success proves nothing: some files decode to garbage.

Measured on the real series at hand (11 stacks of 7 to 133 slices: chest, abdomen, head with tilt
and gaps, phantom, wrist, coronal and sagittal reformats): the mean |dHU| of a slice to the nearer
of its neighbours is at most 0.84 times that between those neighbours; at an end, at most 1.20 times
that of the next pair. With one slice replaced by byte-swapped, permuted, upside-down, zeroed or
doubled pixels the first number is 3.5 to 160 in a chest or abdomen. Between slices 4 to 7 mm apart
in a head, where anatomy itself changes fast, upside-down or foreign slices give 1.2 to 3.2: only
some of them are found.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from ingest.errors import Reason, SeriesError
from ingest.intensity import implausible_share
from shards.schema import HU_MAX, HU_MIN

MAX_SLICE_IMPLAUSIBLE = 0.05
"""Share of a slice outside the plausible range; metal fills far less of any (see `check_range`)."""
MAX_UNLIKE, MAX_END_UNLIKE = 2.5, 5.0
"""Times that a slice may differ from both neighbours more than these, or the next pair, differ."""
AIR_HU = -1000
"""A blank slice above this is no air, wherever it lies."""
MIN_UNLIKE_HU = 60.0
"""Mean |dHU| below this is no damage that matters, whatever the ratio."""
_COMPARED_SIDE = 128
"""Of larger slices every n-th row and column are compared: enough for a mean, and fast."""


def check_slices(hu: Float32[ndarray, "n rows columns"]) -> None:
    """Refuse a stack in which a slice is blank, out of range or unlike its neighbours.

    Blank air beyond the first and the last image is fine: it lies beyond a head.

    Args:
        hu: slices in spatial order as stored, padding at -1024.

    Raises:
        SeriesError: blank, implausible or inconsistent; says which slice.
    """
    n = len(hu)
    lowest = np.array([plane.min() for plane in hu])
    blank = lowest == np.array([plane.max() for plane in hu])
    images = np.flatnonzero(~blank)
    for number in np.flatnonzero(blank).tolist():
        between = len(images) > 0 and images[0] < number < images[-1]
        if between or lowest[number] > AIR_HU:
            raise SeriesError(Reason.BLANK, f"slice {number + 1} of {n} is blank")
    for number, plane in enumerate(hu):
        if (share := implausible_share(plane)) > MAX_SLICE_IMPLAUSIBLE:
            detail = f"{share:.1%} of slice {number + 1} of {n} is outside what HU can be"
            raise SeriesError(Reason.IMPLAUSIBLE_HU, detail)
    if (odd := _unlike_its_neighbours(hu)) is not None:
        detail = f"slice {odd + 1} of {n} does not continue its neighbours"
        raise SeriesError(Reason.INCONSISTENT_SLICE, detail)


def _unlike_its_neighbours(hu: Float32[ndarray, "n rows columns"]) -> int | None:
    """A slice that differs from its neighbours by far more than these from each other."""
    if len(hu) < 3:
        return None
    stride = max(1, min(hu.shape[1:]) // _COMPARED_SIDE)
    thin = np.clip(hu[:, ::stride, ::stride], HU_MIN, HU_MAX)
    next_one = np.abs(thin[1:] - thin[:-1]).mean(axis=(1, 2))
    next_but_one = np.abs(thin[2:] - thin[:-2]).mean(axis=(1, 2))
    nearer = np.minimum(next_one[:-1], next_one[1:])
    odd = (nearer > MIN_UNLIKE_HU) & (nearer > MAX_UNLIKE * next_but_one)
    if odd.any():
        return int(odd.argmax()) + 1
    for number, own, other in ((0, 0, 1), (len(hu) - 1, -1, -2)):
        if next_one[own] > max(MIN_UNLIKE_HU, MAX_END_UNLIKE * next_one[other]):
            return number
    return None
