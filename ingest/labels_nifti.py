"""NIfTI label maps: whole numbers, or refused."""

from __future__ import annotations

import numpy as np
from jaxtyping import Integer
from numpy import ndarray

from ingest.errors import Reason, SeriesError
from ingest.labels_grid import LabelPlanes, grid_planes
from ingest.nifti import stored_voxels
from shards.schema import MAX_LABEL_VALUES

MAX_VALUE = int(np.iinfo(np.uint16).max)


def read_nifti_labels(data: bytes) -> tuple[LabelPlanes, tuple[int, ...]]:
    """The label map in a NIfTI file's bytes, and the values in it apart from 0.

    Raises:
        SeriesError: no label map.
    """
    stored, slope, intercept, grid = stored_voxels(data)
    if grid.regridding is not None:
        detail = f"{grid.detail}; put the labels on an upright grid"
        raise SeriesError(Reason.LABEL_GEOMETRY, detail)
    values: Integer[ndarray, "z y x"] = np.empty(grid.shape_zyx, np.uint16)
    counts = np.zeros(MAX_VALUE + 1, np.int64)
    for out, plane in zip(values, stored, strict=True):
        out[:] = _whole(plane, slope, intercept)
        counts += np.bincount(out.ravel(), minlength=len(counts))
    present = tuple(int(value) for value in np.flatnonzero(counts) if value)
    if len(present) > MAX_LABEL_VALUES:
        detail = f"{len(present)} different values; labels have {MAX_LABEL_VALUES} at most"
        raise SeriesError(Reason.LABEL_VALUES, detail)
    if not present or present[-1] <= np.iinfo(np.uint8).max:
        values = values.astype(np.uint8)
    return grid_planes(values, grid.affine), present


def _whole(plane: ndarray, slope: float, intercept: float) -> Integer[ndarray, "y x"]:
    """One plane's values, which have to be whole numbers from 0 to 65535."""
    if plane.dtype.kind == "f" or (slope, intercept) != (1.0, 0.0):
        with np.errstate(over="ignore", invalid="ignore"):
            plane = plane.astype(np.float64) * slope + intercept
            if not np.array_equal(plane, np.rint(plane)) or not np.isfinite(plane).all():
                raise SeriesError(Reason.LABEL_VALUES, "a value is no whole number")
    low, high = int(plane.min()), int(plane.max())
    if low < 0 or high > MAX_VALUE:
        worst = low if low < 0 else high
        raise SeriesError(Reason.LABEL_VALUES, f"a value is {worst}, not from 0 to {MAX_VALUE}")
    whole: Integer[ndarray, "y x"] = plane.astype(np.uint16)
    return whole
