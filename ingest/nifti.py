"""NIfTI files (version 1 and 2, one file): header verdicts and voxels.

NIfTI stores (x, y, z) with x fastest and an affine to RAS; both are turned into (z, y, x) here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import IO, Any

import nibabel as nib
import numpy as np
from jaxtyping import Float32, Float64, Shaped
from numpy import ndarray

from ingest.errors import Reason, SeriesError
from ingest.geometry import (
    UNIT_TOLERANCE,
    is_oblique,
    is_orthogonal,
    plausible_extent,
    plausible_spacing,
    spacing_of,
)
from ingest.regrid import Regridding, plan_regridding
from ingest.regridded import regridded
from ingest.stack import MAX_TILT_DEGREES, TILTED
from ingest.volume import Volume
from shards.schema import FILL_HU

HEADER_BYTES, NIFTI1_BYTES = 540, 348
"""Length of the header in version 2, and in version 1."""
AFFINE_TOLERANCE = 0.25
"""sform and qform may place a corner this share of a voxel apart (both are stored as float32)."""
MAX_NONFINITE = 0.5
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""xyzt_units & 7: unknown (mm by custom), metre, millimetre, micrometre."""


@dataclass(frozen=True, kw_only=True)
class NiftiGrid:
    """Where the voxels lie.

    Attributes:
        shape_zyx: of the grid: the stored one, or the one that a leaning stack is put on.
        affine: (z, y, x, 1) of the grid to RAS mm.
        n_slices: as stored.
        regridding: how leaning slices become the grid.
        detail: what is to be said of it.
    """

    shape_zyx: tuple[int, int, int]
    affine: Float64[ndarray, "4 4"]
    n_slices: int
    regridding: Regridding | None = None
    detail: str = ""

    @property
    def stored_shape_zyx(self) -> tuple[int, int, int]:
        """Shape of the voxels as they are stored."""
        return self.shape_zyx if self.regridding is None else self.regridding.stored_shape_zyx

    @property
    def geometry(self) -> str:
        """``uniform``, ``oblique`` or ``tilted``."""
        if self.regridding is not None:
            return TILTED
        return "oblique" if is_oblique(self.affine) else "uniform"


def looks_like_nifti(head: bytes) -> bool:
    """Whether 540 (or 348) bytes are a NIfTI header, of either version and byte order."""
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def read_grid(stream: IO[bytes], size: int) -> NiftiGrid:
    """Judge the header of the NIfTI file in ``stream``, which has ``size`` bytes.

    Raises:
        SeriesError: not one 3-D volume of numbers at a known place, or cut off.
    """
    return _judge(stream.read(HEADER_BYTES), size)[1]


def read_nifti(data: bytes) -> Volume:
    """The volume in a NIfTI file's bytes.

    Raises:
        SeriesError: as `read_grid`, or voxels that are no numbers.
    """
    stored, slope, intercept, grid = stored_voxels(data)
    hu: Float32[ndarray, "z y x"] = np.empty(grid.stored_shape_zyx, np.float32)
    nonfinite = 0
    for out, plane in zip(hu, stored, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            out[:] = plane.astype(np.float64) * slope + intercept
        bad = ~np.isfinite(out)
        nonfinite += int(bad.sum())
        out[bad] = FILL_HU
    fraction = nonfinite / hu.size
    if fraction > MAX_NONFINITE:
        raise SeriesError(Reason.NOT_HU, f"{fraction:.0%} of the voxels are not numbers")
    error = None
    if grid.regridding is not None:
        hu, fraction, error = regridded(hu, fraction, grid.regridding)
    return Volume(
        hu=hu,
        affine=grid.affine,
        geometry=grid.geometry,
        flags=("nonfinite_filled",) if nonfinite else (),
        padding_fraction=fraction,
        regrid_error_hu=error,
    )


def stored_voxels(data: bytes) -> tuple[Shaped[ndarray, "z y x"], float, float, NiftiGrid]:
    """Voxels as stored, slope, intercept and grid of a NIfTI file.

    Raises:
        SeriesError: as `read_grid`.
    """
    header, grid = _judge(data[:HEADER_BYTES], len(data))
    count, start = math.prod(grid.stored_shape_zyx), int(header["vox_offset"])
    stored = np.frombuffer(data, header.get_data_dtype(), count, start)
    # Fortran (x, y, z) is C (z, y, x)
    return stored.reshape(grid.stored_shape_zyx), *_scaling(header), grid


def _judge(head: bytes, size: int) -> tuple[Any, NiftiGrid]:
    """The parsed header and its grid."""
    try:
        with np.errstate(all="ignore"):
            header = _header(head)
            return header, _grid(header, size)
    except SeriesError:
        raise
    except Exception as exc:  # nibabel raises an open family of errors on garbage
        detail = f"the NIfTI header is damaged ({type(exc).__name__})"
        raise SeriesError(Reason.UNREADABLE_FILE, detail) from exc


def _header(head: bytes) -> Any:
    if head[344:348] == b"ni1\0" or head[4:8] == b"ni2\0":
        raise SeriesError(
            Reason.UNREADABLE_FILE, "a header whose voxels are in another file; convert it to .nii"
        )
    version2 = len(head) >= HEADER_BYTES and head[4:8] == b"n+2\0"
    kind, length = (
        (nib.Nifti2Header, HEADER_BYTES) if version2 else (nib.Nifti1Header, NIFTI1_BYTES)
    )
    return kind(head[:length], check=False)


def _grid(header: Any, size: int) -> NiftiGrid:
    shape = _shape(header)
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise SeriesError(Reason.NOT_GREYSCALE, "voxels are colours or complex numbers")
    start = float(header["vox_offset"])
    if not start >= NIFTI1_BYTES:
        raise SeriesError(Reason.UNREADABLE_FILE, "the voxels cannot be where the header says")
    end = start + float(math.prod(shape)) * dtype.itemsize
    if end > size:
        raise SeriesError(Reason.TRUNCATED_FILE, f"ends {end - size:.0f} bytes too early")
    affine = _affine(header, shape)[:, [2, 1, 0, 3]]
    grid = NiftiGrid(shape_zyx=(shape[2], shape[1], shape[0]), affine=affine, n_slices=shape[2])
    if not is_orthogonal(affine):
        grid = _upright(grid)
    if not plausible_spacing(spacing_of(grid.affine)):
        raise SeriesError(Reason.IMPLAUSIBLE_SPACING, "the voxel spacing is none that CT has")
    if not plausible_extent(grid.shape_zyx, spacing_of(grid.affine)):
        raise SeriesError(Reason.IMPLAUSIBLE_SPACING, "longer than any person")
    return grid


def _upright(leaning: NiftiGrid) -> NiftiGrid:
    """A regular grid for slices whose stack leans: what a tilted gantry leaves in an sform."""
    lengths = np.array(spacing_of(leaning.affine))
    if not np.isfinite(leaning.affine).all() or not plausible_spacing(tuple(lengths)):
        raise SeriesError(Reason.BAD_AFFINE, "the grid is degenerate")
    stack, down, along = (leaning.affine[:3, :3] / lengths).T
    if abs(down @ along) >= UNIT_TOLERANCE:
        raise SeriesError(Reason.BAD_AFFINE, "the grid is sheared within its slices")
    normal = np.cross(down, along)
    normal *= np.sign(normal @ stack) / np.linalg.norm(normal)
    degrees = float(np.degrees(np.arccos(min(1.0, normal @ stack))))
    if degrees > MAX_TILT_DEGREES:
        detail = f"slices are sheared by {degrees:.1f} degrees, more than any gantry tilts"
        raise SeriesError(Reason.TILTED, detail)
    steps = np.array([normal, down, along]) @ stack * lengths[0]
    affine = leaning.affine.copy()
    affine[:3, 0] = normal * steps[0]
    offsets = np.arange(leaning.n_slices)[:, None] * steps
    if not plausible_spacing(spacing_of(affine)):
        raise SeriesError(Reason.IMPLAUSIBLE_SPACING, "the voxel spacing is none that CT has")
    plan, affine = plan_regridding(offsets, affine, leaning.shape_zyx[1:])
    return NiftiGrid(
        shape_zyx=plan.shape_zyx,
        affine=affine,
        n_slices=leaning.n_slices,
        regridding=plan,
        detail=f"slices are sheared by {degrees:.1f} degrees (gantry tilt)",
    )


def _shape(header: Any) -> tuple[int, int, int]:
    """(x, y, z); trailing axes of one voxel are dropped."""
    dims = header["dim"]
    n = int(dims[0])
    sizes = [int(value) for value in dims[1 : n + 1]] if 1 <= n <= 7 else []
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3 or min(sizes) < 1:
        volumes = f", {sizes[3]} volumes of a 4-D file: split it" if len(sizes) == 4 else ""
        raise SeriesError(Reason.NOT_3D, f"{len(sizes)} dimensions, not 3{volumes}")
    return sizes[0], sizes[1], sizes[2]


def _affine(header: Any, shape_xyz: tuple[int, int, int]) -> Float64[ndarray, "4 4"]:
    """(x, y, z, 1) to RAS mm, from the sform, else the qform; if both are set they must agree."""
    try:
        sform = header.get_sform(coded=True)[0]
        qform = header.get_qform(coded=True)[0]
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as exc:
        raise SeriesError(Reason.BAD_AFFINE, "the affine is damaged") from exc
    affine = qform if sform is None else sform
    if affine is None:
        raise SeriesError(Reason.MISSING_GEOMETRY, "neither sform nor qform: no orientation")
    scale = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    affine = np.array(affine, np.float64)
    affine[:3] *= scale
    if sform is not None and qform is not None:
        other = np.array(qform, np.float64)
        other[:3] *= scale
        if not _corner_distance(affine, other, shape_xyz) <= AFFINE_TOLERANCE * min(
            spacing_of(affine)
        ):
            raise SeriesError(Reason.BAD_AFFINE, "sform and qform disagree")
    return affine + 0.0


def _corner_distance(
    a: Float64[ndarray, "4 4"], b: Float64[ndarray, "4 4"], shape: tuple[int, int, int]
) -> float:
    """Greatest distance between where two affines put a corner voxel, mm."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    homogeneous = np.vstack([corners, np.ones(corners.shape[1])])
    distance = np.linalg.norm(((a - b) @ homogeneous)[:3], axis=0).max()
    return float(distance) if np.isfinite(distance) else np.inf


def _scaling(header: Any) -> tuple[float, float]:
    """(slope, intercept); a slope of 0 or NaN means that values are stored as they are."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        return 1.0, 0.0
    return slope, intercept if np.isfinite(intercept) else 0.0
