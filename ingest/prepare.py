"""A volume as read to a sample: checked, turned to S, P, L, resampled, cropped, int16."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int16
from numpy import ndarray

from ingest.body import Box, body_box, full_box
from ingest.geometry import (
    SPL_IN_RAS,
    is_oblique,
    orientation_code,
    shifted,
    spacing_of,
    spl_axes,
)
from ingest.intensity import check_hu, fill_low, hu_stats, to_stored
from ingest.resample import resample_axes, resample_oblique
from ingest.volume import Volume
from shards.schema import FILL_HU, HuStats, Original

RESAMPLERS = ("antialias", "linear")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How volumes become samples.

    Attributes:
        spacing_zyx_mm: target spacing, or None to keep each volume's own.
        body_crop: store only the box around the patient.
        resample: ``antialias`` or ``linear``.
    """

    spacing_zyx_mm: tuple[float, float, float] | None = (1.5, 1.5, 1.5)
    body_crop: bool = True
    resample: str = "antialias"

    def __post_init__(self) -> None:
        """Refuse values that would only fail after hours."""
        if self.resample not in RESAMPLERS:
            raise ValueError(f"resample must be one of {RESAMPLERS}, not {self.resample!r}")
        if self.spacing_zyx_mm is not None and not all(s > 0 for s in self.spacing_zyx_mm):
            raise ValueError(f"spacing must be positive, not {self.spacing_zyx_mm}")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is stored of a volume.

    Attributes:
        hu: int16 HU on axes S, P, L.
        affine: (z, y, x, 1) of ``hu`` to RAS mm.
        original: the volume before.
        hu_stats: over ``hu``.
        body_box_zyx: where ``hu`` lies in the resampled, uncropped grid.
        spacing_zyx_mm: of ``hu``.
        flags: the volume's, and what its voxels show.
        regrid_error_hu: the volume's.
    """

    hu: Int16[ndarray, "z y x"]
    affine: Float64[ndarray, "4 4"]
    original: Original
    hu_stats: HuStats
    body_box_zyx: Box
    spacing_zyx_mm: tuple[float, float, float]
    flags: tuple[str, ...]
    regrid_error_hu: float | None = None


def prepare(volume: Volume, config: PrepareConfig) -> Prepared:
    """Check, reorient, resample, round, clip and crop.

    Raises:
        SeriesError: the voxels are no HU.
    """
    found = check_hu(volume.hu, volume.padding_fraction)
    hu, affine = to_spl(volume.hu, volume.affine)
    original = Original(
        shape_zyx=_triple(hu.shape),
        spacing_zyx_mm=spacing_of(affine),
        orientation=orientation_code(volume.affine),
        geometry=volume.geometry,
    )
    flags, regrid_error_hu = tuple(sorted({*volume.flags, *found})), volume.regrid_error_hu
    del volume  # a thin-slice series is 1 GiB: nothing may keep it for longer than needed
    hu, affine = _resample(hu, affine, config)
    spacing = spacing_of(affine) if config.spacing_zyx_mm is None else config.spacing_zyx_mm
    stored, clipped = to_stored(hu, least=FILL_HU)
    del hu
    box = body_box(stored, spacing) if config.body_crop else full_box(stored.shape)
    affine = shifted(affine, tuple(start for start, _ in box))
    stored = np.ascontiguousarray(stored[tuple(slice(*ends) for ends in box)])
    return Prepared(
        hu=stored,
        affine=affine,
        original=original,
        hu_stats=hu_stats(stored, clipped),
        body_box_zyx=box,
        spacing_zyx_mm=spacing,
        flags=flags,
        regrid_error_hu=regrid_error_hu,
    )


def to_spl(
    hu: Float32[ndarray, "a b c"], affine: Float64[ndarray, "4 4"]
) -> tuple[Float32[ndarray, "z y x"], Float64[ndarray, "4 4"]]:
    """Turn the axes nearest to S, P, L into z, y, x by permuting and flipping: a view.

    No voxel moves in space.
    """
    order, flips = spl_axes(affine)
    hu = hu.transpose(order)
    affine = affine[:, [*order, 3]]
    corner = tuple(n - 1 if flip else 0 for n, flip in zip(hu.shape, flips, strict=True))
    affine = shifted(affine, corner)
    affine[:3, :3] *= np.where(flips, -1.0, 1.0)
    hu = hu[tuple(slice(None, None, -1 if flip else None) for flip in flips)]
    return hu, affine + 0.0


def _resample(
    hu: Float32[ndarray, "z y x"], affine: Float64[ndarray, "4 4"], config: PrepareConfig
) -> tuple[Float32[ndarray, "z2 y2 x2"], Float64[ndarray, "4 4"]]:
    """Onto the target spacing, axis-aligned, with air for what is below -1024 HU.

    Native, axis-aligned volumes stay as they are: `to_stored` fills them.
    """
    spacing = spacing_of(affine)
    oblique = is_oblique(affine)
    if config.spacing_zyx_mm is None and not oblique:
        return hu, _on_axes(affine, spacing)
    target = config.spacing_zyx_mm or spacing
    antialias = config.resample == "antialias"
    if oblique:
        return resample_oblique(fill_low(hu), affine, target, antialias=antialias)
    # Filled slice by slice on the way: the whole volume is not copied.
    resampled = resample_axes(hu, spacing, target, antialias=antialias, least=FILL_HU)
    return resampled, _on_axes(affine, target)


def _on_axes(
    affine: Float64[ndarray, "4 4"], spacing: tuple[float, float, float]
) -> Float64[ndarray, "4 4"]:
    """An exact S, P, L affine through the same first voxel: the cosines' rounding is dropped."""
    exact = np.eye(4)
    exact[:3, :3] = SPL_IN_RAS.T * np.array(spacing)
    exact[:3, 3] = affine[:3, 3]
    return exact + 0.0


def _triple(shape: tuple[int, ...]) -> tuple[int, int, int]:
    z, y, x = shape
    return z, y, x
