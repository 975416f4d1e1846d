"""Whether what a loader delivered are crops of the stored volumes, voxel by voxel.

A loader that says where a crop comes from is held to it. For all others the crop is looked for in
all volumes, and has to be equal to what is there. Nothing that a loader says of itself is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

WINDOW_HU = (-1000.0, 1000.0)
"""Of the identity recipe."""
WINDOW_TOLERANCE = 6e-4
"""float16 keeps values up to 1 to 2.5e-4, and DALI interpolates."""
WORD = 4
"""Voxels of a word of 8 bytes."""
STEP = 16
"""Voxels between two words that are remembered: any row of a crop has one."""

Place = tuple[str, tuple[int, ...]]


class WrongCropError(RuntimeError):
    """A loader delivered something else than crops of the volumes."""


class Volumes:
    """Int16 volumes by key, in which crops can be found."""

    def __init__(self, volumes: Mapping[str, Any]) -> None:
        self.by_key = dict(volumes)
        words = [_words(hu) for hu in self.by_key.values()]
        self._ends = np.cumsum([len(part) for part in words])
        self._words = np.concatenate(words)
        self._order = np.argsort(self._words, kind="stable")
        self._words = self._words[self._order]

    def find(self, hu: Any) -> Place:
        """Key and first voxel of a place that has the same voxels.

        Raises:
            WrongCropError: there is none.
        """
        rows = hu.reshape(-1, hu.shape[2])
        # The row with the most different values is found in few other places.
        row = int(np.argmax((np.diff(np.sort(rows, axis=1), axis=1) != 0).sum(axis=1)))
        dz, dy = divmod(row, hu.shape[1])
        for dx in range(STEP):
            word = rows[row, dx : dx + WORD].copy().view(np.uint64)[0]
            for key, (z, y, x) in self._with(word):
                start = (z - dz, y - dy, x - dx)
                if _holds(self.by_key[key], start, hu):
                    return key, start
        raise WrongCropError(f"a box of {hu.shape} lies in no volume")

    def _with(self, word: Any) -> Iterator[tuple[str, tuple[int, int, int]]]:
        """Places of a word."""
        first, last = (
            np.searchsorted(self._words, word),
            np.searchsorted(self._words, word, "right"),
        )
        keys = list(self.by_key)
        for at in self._order[first:last].tolist():
            number = int(np.searchsorted(self._ends, at, "right"))
            hu = self.by_key[keys[number]]
            begin = self._ends[number - 1] if number else 0
            shape = (*hu.shape[:2], _n_words(hu))
            z, y, x = (int(n) for n in np.unravel_index(at - begin, shape))
            yield keys[number], (z, y, x * STEP)


def _n_words(hu: Any) -> int:
    return (hu.shape[2] - WORD) // STEP + 1


def _words(hu: Any) -> Any:
    parts = [hu[:, :, x * STEP : x * STEP + WORD] for x in range(_n_words(hu))]
    return np.stack(parts, axis=2).view(np.uint64).ravel()


def _holds(volume: Any, start: tuple[int, ...], hu: Any) -> bool:
    if min(start) < 0 or volume[start] != hu[0, 0, 0]:
        return False
    return np.array_equal(volume[_box(start, hu.shape)], hu)


def _box(start: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))


def check_sets(
    found: Mapping[str, Any], volumes: Volumes, kinds: tuple[tuple[int, int], ...]
) -> int:
    """Check the boxes that a loader delivered for some sets; how many there were.

    Args:
        found: answer of ``Subject.check``.
        volumes: what was stored.
        kinds: count and side of the boxes of a set.

    Raises:
        WrongCropError: number or sizes are not those of the sets; a box is not of a volume; or all
            boxes of a kind lie at one place.
    """
    wanted = {(side,) * 3: count * found["units"] for count, side in kinds}
    if Counter(tuple(box["shape"]) for box in found["boxes"]) != wanted:
        shapes = Counter(tuple(box["shape"]) for box in found["boxes"])
        raise WrongCropError(f"boxes {dict(shapes)}, wanted {wanted}")
    places: dict[tuple[int, ...], set[Any]] = {shape: set() for shape in wanted}
    for box in found["boxes"]:
        place = check_box(box, volumes)
        places[tuple(box["shape"])].add(place)
    if alike := [shape for shape, where in places.items() if len(where) < 2]:
        raise WrongCropError(f"all boxes of {alike} are the same one")
    return len(found["boxes"])


def check_box(box: Mapping[str, Any], volumes: Volumes) -> Place:
    """Key and first voxel of a delivered box.

    Raises:
        WrongCropError: it is not that of the volume.
    """
    voxels = np.frombuffer(Path(box["file"]).read_bytes(), box["dtype"]).reshape(box["shape"])
    if box["key"] is not None:
        start = tuple(box["start_zyx"])
        _check_at(voxels, volumes.by_key[box["key"]], start, f"{box['key']} at {start}")
        return box["key"], start
    hu = voxels.astype(np.int16)
    if not np.array_equal(hu.astype(voxels.dtype), voxels):
        raise WrongCropError(f"a box of {box['shape']} holds values that are not whole HU")
    return volumes.find(hu)


def _check_at(voxels: Any, volume: Any, start: tuple[int, ...], where: str) -> None:
    size = voxels.shape
    if min(start) < 0 or any(s + n > m for s, n, m in zip(start, size, volume.shape, strict=True)):
        raise WrongCropError(f"{where}: a box of {size} reaches out of {volume.shape}")
    hu = volume[_box(start, size)]
    if voxels.dtype == np.int16:
        same = np.array_equal(voxels, hu)
    else:
        low, high = WINDOW_HU
        windowed = np.clip((hu.astype(np.float32) - low) / (high - low), 0, 1)
        same = bool(np.abs(windowed - voxels.astype(np.float32)).max() <= WINDOW_TOLERANCE)
    if not same:
        raise WrongCropError(f"{where}: the box of {size} differs from the volume")
