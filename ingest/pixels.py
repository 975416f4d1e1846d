"""A name for the voxels of a scan that survives other UIDs, another format or another encoding.

The hash is over the decoded voxels at the source's own resolution: HU rounded to int16, turned to
S, P, L by permuting and flipping axes, clipped to [-900, 3071], and their shape before them.
Padding, declared or not, lies below -900 HU and so counts as air, as exporters write it in many
ways. Spacing and position are left out. So the same scan as DICOM, as NIfTI and re-encoded without
loss agree; a resampled, cropped, smoothed or lossy copy does not.

Series that are put on a regular grid are hashed as they were stored, slice by slice.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from ingest.prepare import to_spl
from ingest.series import Series
from ingest.volume import Volume
from shards.schema import HU_MAX

FLOOR_HU = -900
"""Everything below is air or padding: what ``read_dicom`` takes for padding never lies above."""
_VERSION = b"coralbay pixels 1\n"


def pixel_sha256(hu: Float32[ndarray, "a b c"], affine: Float64[ndarray, "4 4"]) -> str:
    """The hash of voxels on axes that ``affine`` turns to RAS mm; only its directions count."""
    turned, _ = to_spl(hu, affine)
    digest = hashlib.sha256(_VERSION)
    digest.update(np.array(turned.shape, "<i8").tobytes())
    for plane in turned:
        digest.update(np.clip(np.rint(plane), FLOOR_HU, HU_MAX).astype("<i2").tobytes())
    return digest.hexdigest()


def series_sha256(series: Series, volume: Volume | None = None) -> str:
    """The hash of an accepted series.

    Args:
        series: what to hash.
        volume: its voxels if they were read already; read again if they were regridded.

    Raises:
        SeriesError: the voxels cannot be read.
    """
    from ingest.reader import read_series

    if series.regridding is not None:
        volume = read_series(
            replace(series, regridding=None, shape_zyx=series.regridding.stored_shape_zyx)
        )
    elif volume is None:
        volume = read_series(series)
    return pixel_sha256(volume.hu, volume.affine)
