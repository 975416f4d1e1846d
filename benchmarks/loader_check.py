"""Whether what a loader delivered are crops of the stored volumes, voxel by voxel.

A loader that says where a crop comes from is held to it. For all others the crop is looked for: a
row of its voxels, the most varied one, is found in a volume, and then everything around it has to
be equal. Nothing that a loader says of itself is needed.
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


class WrongCropError(RuntimeError):
    """A loader delivered something else than crops of the volumes."""


def check_sets(
    found: Mapping[str, Any], volumes: Mapping[str, Any], kinds: tuple[tuple[int, int], ...]
) -> int:
    """Check the boxes that a loader delivered for some sets; how many there were.

    Args:
        found: answer of ``Subject.check``.
        volumes: int16 HU by key.
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


def check_box(box: Mapping[str, Any], volumes: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    """Key and first voxel of a delivered box.

    Raises:
        WrongCropError: it is not that of the volume.
    """
    voxels = np.frombuffer(Path(box["file"]).read_bytes(), box["dtype"]).reshape(box["shape"])
    if box["key"] is not None:
        start = tuple(box["start_zyx"])
        _check_at(voxels, volumes[box["key"]], start, f"{box['key']} at {start}")
        return box["key"], start
    hu = voxels.astype(np.int16)
    if not np.array_equal(hu.astype(voxels.dtype), voxels):
        raise WrongCropError(f"a box of {box['shape']} holds values that are not whole HU")
    for key, volume in volumes.items():
        for start in _places(hu, volume):
            return key, start
    raise WrongCropError(f"a box of {box['shape']} lies in no volume")


def _check_at(voxels: Any, volume: Any, start: tuple[int, ...], where: str) -> None:
    size = voxels.shape
    if min(start) < 0 or any(s + n > m for s, n, m in zip(start, size, volume.shape, strict=True)):
        raise WrongCropError(f"{where}: a box of {size} reaches out of {volume.shape}")
    hu = volume[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))]
    if voxels.dtype == np.int16:
        same = np.array_equal(voxels, hu)
    else:
        low, high = WINDOW_HU
        windowed = np.clip((hu.astype(np.float32) - low) / (high - low), 0, 1)
        same = bool(np.abs(windowed - voxels.astype(np.float32)).max() <= WINDOW_TOLERANCE)
    if not same:
        raise WrongCropError(f"{where}: the box of {size} differs from the volume")


def _places(hu: Any, volume: Any) -> Iterator[tuple[int, ...]]:
    """Where the volume has the same voxels."""
    if any(n > m for n, m in zip(hu.shape, volume.shape, strict=True)):
        return
    # The row with the most different values is found in few other places.
    rows = hu.reshape(-1, hu.shape[2])
    row = int(np.argmax((np.diff(np.sort(rows, axis=1), axis=1) != 0).sum(axis=1)))
    dz, dy = divmod(row, hu.shape[1])
    wanted, data = rows[row].tobytes(), volume.tobytes()
    at = data.find(wanted)
    while at >= 0:
        z, y, x = (int(n) for n in np.unravel_index(at // 2, volume.shape))
        start = (z - dz, y - dy, x)
        box = tuple(slice(s, s + n) for s, n in zip(start, hu.shape, strict=True))
        if at % 2 == 0 and min(start) >= 0 and np.array_equal(volume[box], hu):
            yield start
        at = data.find(wanted, at + 1)
