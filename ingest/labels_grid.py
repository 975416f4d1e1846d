"""Label values at their places, and the nearest label at each voxel of another grid.

A label volume is a stack of planes: a NIfTI grid has them evenly spaced, a DICOM segmentation has
them wherever its frames are. Nothing is interpolated: a voxel takes the label of the cell that its
centre lies in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer
from numpy import ndarray

from ingest.geometry import AXIS_TOLERANCE, SPL_IN_RAS, spl_axes
from shards.codec import LabelArray

TIE = 1e-3
"""Share of a cell: centres this near to the border of two cells are on it, rounding or not."""
MIN_OVERLAP = 0.5
"""Less than this share of either grid inside the other is no label of that volume."""
_LATTICE = 16


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where a volume lies: (z, y, x, 1) to RAS mm."""

    affine: Float64[ndarray, "4 4"]
    shape_zyx: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class LabelPlanes:
    """Parallel planes of labels.

    Attributes:
        values: labels, (plane, row, column); 0 is background.
        origins: RAS mm of the first voxel's centre of each plane, ascending along the normal.
        axes: unit vectors in RAS: across the planes, down the rows, along the columns.
        pixel_mm: between rows, between columns.
        cells_mm: where each plane's cell begins and ends along the normal.
    """

    values: Integer[ndarray, "n rows columns"]
    origins: Float64[ndarray, "n 3"]
    axes: Float64[ndarray, "3 3"]
    pixel_mm: tuple[float, float]
    cells_mm: Float64[ndarray, "n 2"]


def grid_planes(values: Integer[ndarray, "z y x"], affine: Float64[ndarray, "4 4"]) -> LabelPlanes:
    """The planes of a regular grid of labels."""
    step = affine[:3, 0]
    pitch = float(np.linalg.norm(step))
    origins = affine[:3, 3] + np.arange(values.shape[0])[:, None] * step
    axes = (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).T
    along = origins @ axes[0]
    return LabelPlanes(
        values=values,
        origins=origins,
        axes=axes,
        pixel_mm=(float(np.linalg.norm(affine[:3, 1])), float(np.linalg.norm(affine[:3, 2]))),
        cells_mm=np.stack([along - pitch / 2, along + pitch / 2], axis=1),
    )


def sample_labels(
    planes: LabelPlanes, affine: Float64[ndarray, "4 4"], shape: tuple[int, int, int]
) -> LabelArray:
    """The label at each voxel's centre; 0 outside the planes.

    A centre on the border of two cells takes the one further toward S, P or L, however the labels
    are stored.

    Args:
        planes: the labels.
        affine: of the grid to fill, (z, y, x, 1) to RAS mm.
        shape: of that grid.
    """
    planes = _upright(planes)
    to_mm = planes.axes @ affine[:3, :3]
    start = planes.axes @ affine[:3, 3]
    order = _separable(planes, to_mm, shape)
    if order is None:
        return _sample_anywhere(planes, to_mm, start, shape)
    across = planes.origins[0] @ planes.axes.T
    wanted = []
    for axis in range(3):
        place = start[axis] + to_mm[axis, order[axis]] * np.arange(shape[order[axis]])
        if axis == 0:
            wanted.append(_plane_at(planes, place))
        else:
            wanted.append(_nearest(place - across[axis], planes, axis))
    picked = planes.values[np.ix_(*(np.maximum(index, 0) for index in wanted))]
    for axis, index in enumerate(wanted):
        picked[tuple(index < 0 if other == axis else slice(None) for other in range(3))] = 0
    out: LabelArray = np.ascontiguousarray(picked.transpose(np.argsort(order)))
    return out


def overlap(label: Grid, volume: Grid) -> float:
    """The larger share of one grid that lies inside the other: 1 where one holds the other."""
    return max(share_inside(_lattice(label), volume), share_inside(_lattice(volume), label))


def share_inside(points: Float64[ndarray, "n 3"], grid: Grid) -> float:
    """Share of RAS points that lie inside the voxels of ``grid``."""
    inverse = np.linalg.inv(grid.affine)
    index = points @ inverse[:3, :3].T + inverse[:3, 3]
    inside = (index >= -0.5) & (index < np.array(grid.shape_zyx) - 0.5)
    return float(inside.all(axis=1).mean())


def _lattice(grid: Grid) -> Float64[ndarray, "n 3"]:
    """RAS mm of voxels spread evenly over a grid."""
    steps = [np.linspace(0, n - 1, min(n, _LATTICE)) for n in grid.shape_zyx]
    index = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    points: Float64[ndarray, "n 3"] = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return points


def _upright(planes: LabelPlanes) -> LabelPlanes:
    """The same labels with every axis toward S, P or L, and exactly so where it nearly is."""
    frame = np.eye(4)
    frame[:3, :3] = planes.axes.T
    order, flips = spl_axes(frame)
    values, origins, axes = planes.values, planes.origins, planes.axes.copy()
    cells = planes.cells_mm
    for row, axis in enumerate(order):
        if flips[row]:
            values = np.flip(values, axis)
            if axis == 0:
                origins, cells = origins[::-1], -cells[::-1, ::-1]
            else:
                extent = (values.shape[axis] - 1) * planes.pixel_mm[axis - 1]
                origins = origins + extent * axes[axis]
            axes[axis] *= -1
    exact = np.empty((3, 3))
    for row, axis in enumerate(order):
        exact[axis] = SPL_IN_RAS[row]
    if np.abs(exact - axes).max() <= AXIS_TOLERANCE:
        # The volume's own affine drops such rounding too; cells move with their planes.
        cells = cells + (origins @ exact[0] - origins @ axes[0])[:, None]
        axes, origins = exact, _straightened(origins, exact)
    return LabelPlanes(
        values=values, origins=origins, axes=axes, pixel_mm=planes.pixel_mm, cells_mm=cells
    )


def _straightened(
    origins: Float64[ndarray, "n 3"], axes: Float64[ndarray, "3 3"]
) -> Float64[ndarray, "n 3"]:
    """Origins in one line along the normal, where only the axes' rounding takes them off it."""
    offsets = (origins - origins[0]) @ axes.T
    drift = np.linalg.norm(offsets[:, 1:], axis=1)
    if (drift > AXIS_TOLERANCE * np.abs(offsets[:, 0]) + 1e-9).any():
        return origins
    straight: Float64[ndarray, "n 3"] = origins[0] + offsets[:, :1] * axes[0]
    return straight


def _separable(
    planes: LabelPlanes, to_mm: Float64[ndarray, "3 3"], shape: tuple[int, int, int]
) -> tuple[int, int, int] | None:
    """The grid's axis along each of the planes' axes; None where they are at an angle."""
    z, y, x = (int(axis) for axis in np.abs(to_mm).argmax(axis=1))
    cell = np.array([(planes.cells_mm[:, 1] - planes.cells_mm[:, 0]).min(), *planes.pixel_mm])
    drift = np.abs(to_mm) * np.array(shape)
    drift[(0, 1, 2), (z, y, x)] = 0
    wander = np.abs((planes.origins - planes.origins[0]) @ planes.axes[1:].T).max(axis=0)
    straight = (drift.sum(axis=1) <= TIE * cell).all() and (wander <= TIE * cell[1:]).all()
    return (z, y, x) if straight and len({z, y, x}) == 3 else None


def _sample_anywhere(
    planes: LabelPlanes,
    to_mm: Float64[ndarray, "3 3"],
    start: Float64[ndarray, " 3"],
    shape: tuple[int, int, int],
) -> LabelArray:
    """As `sample_labels`, voxel by voxel: for oblique grids, and planes that shift sideways."""
    out = np.zeros(shape, planes.values.dtype)
    y, x = np.ogrid[: shape[1], : shape[2]]
    shift = planes.origins @ planes.axes.T
    for z in range(shape[0]):
        place = [
            start[axis] + to_mm[axis, 0] * z + to_mm[axis, 1] * y + to_mm[axis, 2] * x
            for axis in range(3)
        ]
        plane = _plane_at(planes, place[0])
        row = _nearest(place[1] - shift[plane, 1], planes, 1)
        column = _nearest(place[2] - shift[plane, 2], planes, 2)
        inside: Bool[ndarray, "y x"] = (plane >= 0) & (row >= 0) & (column >= 0)
        out[z][inside] = planes.values[plane[inside], row[inside], column[inside]]
    return out


def _plane_at(planes: LabelPlanes, place_mm: Float64[ndarray, ...]) -> Int64[ndarray, ...]:
    """The plane whose cell holds each place along the normal; -1 where none does."""
    low, high = planes.cells_mm.T
    tie = TIE * (high - low).min()
    found = np.searchsorted(low - tie, place_mm, side="right") - 1
    beyond = place_mm >= high[found] - tie
    return np.where((found < 0) | beyond, -1, found).astype(np.int64)


def _nearest(
    offset_mm: Float64[ndarray, ...], planes: LabelPlanes, axis: int
) -> Int64[ndarray, ...]:
    """The row or column nearest to each place; -1 where it is outside."""
    found = np.floor(offset_mm / planes.pixel_mm[axis - 1] + 0.5 + TIE).astype(np.int64)
    outside = (found < 0) | (found >= planes.values.shape[axis])
    nearest: Int64[ndarray, ...] = np.where(outside, -1, found)
    return nearest
