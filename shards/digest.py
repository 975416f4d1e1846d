"""SHA-256 digests: of a sample's content, and of bytes."""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Float64, Int16
from numpy import ndarray


def sha256(data: bytes) -> str:
    """Digest of ``data``, lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def content_sha256(hu: Int16[ndarray, "z y x"], affine: Float64[ndarray, "4 4"]) -> str:
    """What a sample *is*, whatever codec, key or shard it was stored with.

    Args:
        hu: HU, (z, y, x).
        affine: (z, y, x, 1) to RAS mm.

    Returns:
        Digest of the voxels as int16 little-endian in C order, then the shape as 3 int64
        little-endian, then the affine as 16 float64 little-endian, row by row.
    """
    digest = hashlib.sha256(np.ascontiguousarray(hu, dtype="<i2").data)
    digest.update(np.asarray(hu.shape, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(affine, dtype="<f8").tobytes())
    return digest.hexdigest()
