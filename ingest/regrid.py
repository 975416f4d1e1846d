"""Slices at their true places onto a regular, orthogonal grid: one rule for tilt, gaps and both.

Each slice is shifted within its plane (bilinear), then neighbours are interpolated linearly between
their true positions along the normal. Nothing is smoothed: coarser grids come later, by resampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray
from scipy import ndimage

from ingest.geometry import shifted, spacing_of
from ingest.memory import give_back
from shards.schema import FILL_HU

TISSUE_ABOVE_HU = -900
"""Air is the same everywhere: what regridding costs is measured above this."""
MEASURED_SLICES = 64
"""Of more slices, as many are measured: enough for a mean."""
PLACE_DECIMALS = 6
"""Places in voxels are rounded to this, so that a slice on the grid stays as it is to the bit."""


@dataclass(frozen=True, kw_only=True)
class Regridding:
    """Where stored slices lie on the grid they are put on, in voxels of that grid.

    Attributes:
        plane_yx: rows and columns of a stored slice.
        slice_z: of each slice, ascending from 0.
        slice_yx: of the first pixel of each slice, never negative.
        shape_zyx: of the grid.
    """

    plane_yx: tuple[int, int]
    slice_z: tuple[float, ...]
    slice_yx: tuple[tuple[float, float], ...]
    shape_zyx: tuple[int, int, int]

    @property
    def stored_shape_zyx(self) -> tuple[int, int, int]:
        """Shape of the slices as they are stored."""
        return len(self.slice_z), *self.plane_yx

    @property
    def covered(self) -> float:
        """Share of the grid that the slices cover; the rest is filled."""
        rows, columns = self.plane_yx
        return rows * columns / (self.shape_zyx[1] * self.shape_zyx[2])


def plan_regridding(
    offsets_mm: Float64[ndarray, "n 3"],
    affine: Float64[ndarray, "4 4"],
    plane_yx: tuple[int, int],
) -> tuple[Regridding, Float64[ndarray, "4 4"]]:
    """The regular grid that holds all slices, and its affine.

    The first slice lies on voxels of the grid. Along z the last plane is the one nearest to the
    last slice: up to half a spacing beyond it, where that slice is repeated.

    Args:
        offsets_mm: (z, y, x) of each slice from the first, ascending in z.
        affine: of the grid that begins with the first slice, (z, y, x, 1) to RAS mm.
        plane_yx: rows and columns of a slice.
    """
    places = np.round(offsets_mm / spacing_of(affine), PLACE_DECIMALS) + 0.0
    before = np.floor(places[:, 1:].min(axis=0)).astype(int)
    after = np.ceil(places[:, 1:].max(axis=0)).astype(int)
    rows, columns = np.array(plane_yx) + after - before
    regridding = Regridding(
        plane_yx=plane_yx,
        slice_z=tuple(places[:, 0].tolist()),
        slice_yx=tuple((float(y), float(x)) for y, x in places[:, 1:] - before),
        shape_zyx=(round(float(places[-1, 0])) + 1, int(rows), int(columns)),
    )
    return regridding, shifted(affine, (0, int(before[0]), int(before[1])))


def regrid(
    hu: Float32[ndarray, "n rows columns"], regridding: Regridding, *, consume: bool = False
) -> Float32[ndarray, "z y x"]:
    """Interpolate stored slices onto the grid; what no slice covers is -1024.

    Args:
        hu: slices ascending along the normal, padding already air.
        regridding: their plan.
        consume: give the memory of ``hu`` back as its slices are used; its values are lost.
    """
    slice_z = np.array(regridding.slice_z)
    z = np.minimum(np.arange(regridding.shape_zyx[0]), slice_z[-1])
    above = np.clip(np.searchsorted(slice_z, z, side="right"), 1, len(slice_z) - 1)
    weights = (z - slice_z[above - 1]) / (slice_z[above] - slice_z[above - 1])
    out: Float32[ndarray, "z y x"] = np.empty(regridding.shape_zyx, np.float32)
    # Placed slices are kept only while a plane of the grid lies next to them.
    placed: dict[int, Float32[ndarray, "y x"]] = {}
    used = 0
    for k, (upper, weight) in enumerate(zip(above.tolist(), weights.tolist(), strict=True)):
        pair = (upper - 1, upper)
        placed = {i: placed[i] if i in placed else _placed(hu, i, regridding) for i in pair}
        np.multiply(placed[upper - 1], 1 - weight, out=out[k])
        out[k] += weight * placed[upper]
        if consume and upper - 1 > used:
            give_back(hu[used : upper - 1])
            used = upper - 1
    return out


def measured_slices(
    hu: Float32[ndarray, "n rows columns"],
) -> dict[int, Float32[ndarray, "rows columns"]]:
    """Copies of the slices, by number, at which the cost is measured: evenly spread ones."""
    n = len(hu)
    chosen = np.unique(np.linspace(0, n - 1, min(n, MEASURED_SLICES)).round().astype(int))
    return {index: hu[index].copy() for index in chosen.tolist()}


def regrid_error(
    slices: Mapping[int, Float32[ndarray, "rows columns"]],
    volume: Float32[ndarray, "z y x"],
    regridding: Regridding,
) -> float:
    """What regridding cost: mean |dHU| over tissue at the true places of the slices.

    ``volume`` is sampled linearly where the slices were, and compared with them.

    Args:
        slices: some of those given to `regrid`, by number.
        volume: what it made of them.
        regridding: the plan.
    """
    total, count = 0.0, 0
    for index, plane in slices.items():
        tissue = plane > TISSUE_ABOVE_HU
        off = np.abs(_sampled(volume, index, regridding) - plane)
        total += float(off[tissue].sum(dtype=np.float64))
        count += int(np.count_nonzero(tissue))
    return total / count if count else 0.0


def _sampled(
    volume: Float32[ndarray, "z y x"], index: int, regridding: Regridding
) -> Float32[ndarray, "rows columns"]:
    """The volume at one slice's true place, linear along each axis; the inverse of `_placed`."""
    z = min(regridding.slice_z[index], volume.shape[0] - 1)
    below = min(int(z), volume.shape[0] - 2)
    weight = np.float32(z - below)
    plane = volume[below] * (1 - weight) + volume[below + 1] * weight
    whole = [int(place) for place in regridding.slice_yx[index]]
    part = [place - start for place, start in zip(regridding.slice_yx[index], whole, strict=True)]
    if any(part):
        plane = ndimage.shift(plane, [-p for p in part], order=1, mode="nearest")
    window = tuple(slice(s, s + n) for s, n in zip(whole, regridding.plane_yx, strict=True))
    sampled: Float32[ndarray, "rows columns"] = plane[window]
    return sampled


def _placed(
    hu: Float32[ndarray, "n rows columns"], index: int, regridding: Regridding
) -> Float32[ndarray, "y x"]:
    """One slice on the grid's rows and columns."""
    whole = [int(place) for place in regridding.slice_yx[index]]
    part = [place - start for place, start in zip(regridding.slice_yx[index], whole, strict=True)]
    out: Float32[ndarray, "y x"] = np.full(regridding.shape_zyx[1:], FILL_HU, np.float32)
    window = tuple(slice(s, s + n) for s, n in zip(whole, regridding.plane_yx, strict=True))
    out[window] = hu[index]
    if any(part):
        out = ndimage.shift(out, part, order=1, mode="nearest")
    return out
