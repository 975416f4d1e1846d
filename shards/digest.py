"""SHA-256 digests: of a sample's content, and of bytes."""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Float64, Int16, Integer
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
    return _content(np.ascontiguousarray(hu, dtype="<i2"), affine)


def label_sha256(values: Integer[ndarray, "z y x"], affine: Float64[ndarray, "4 4"]) -> str:
    """What a label volume *is*, whether it was stored with one or two bytes a voxel.

    Args:
        values: labels, (z, y, x).
        affine: (z, y, x, 1) to RAS mm, of the sample.

    Returns:
        As `content_sha256`, but of the values as uint16 little-endian.
    """
    return _content(np.ascontiguousarray(values, dtype="<u2"), affine)


def _content(voxels: Integer[ndarray, "z y x"], affine: Float64[ndarray, "4 4"]) -> str:
    digest = hashlib.sha256(voxels.data)
    digest.update(np.asarray(voxels.shape, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(affine, dtype="<f8").tobytes())
    return digest.hexdigest()
