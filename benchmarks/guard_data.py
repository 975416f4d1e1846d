"""What the guard reads: small datasets, computed with whole numbers alone.

Sines and normal numbers differ in the last bit between processors, and one voxel more or less
changes stored sizes; whole numbers do not. The volumes have what the hot path must cope with:
larger than a box, an axis shorter than it, chunks of nothing, several shards.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from shards.dataset import Dataset
from shards.rng import NOISE, raw
from shards.schema import FILL_HU
from shards.testing import write_dataset

BUCKET = "guard"
SHAPES = ((150, 200, 260), (40, 210, 190), (140, 130, 200))
"""Taken in turn: 60 chunks of 64³, an axis of one chunk, and 36 chunks."""
VOLUMES = {"balanced": 12, "gpu": 4}
PER_SHARD = {"balanced": 4, "gpu": 2}
NOISE_BITS = 5


def write_data(folder: Path) -> Path:
    """Write a dataset for each profile into a bucket folder, and return that."""
    bucket = folder / BUCKET
    for profile, count in VOLUMES.items():
        volumes = {f"guard-{n:03d}": volume(SHAPES[n % len(SHAPES)], n) for n in range(count)}
        (bucket / profile).mkdir(parents=True)
        write_dataset(bucket / profile, volumes, per_shard=PER_SHARD[profile], profile=profile)
    return bucket


def volume(shape: tuple[int, int, int], seed: int) -> Any:
    """Bands and noise in an ellipsoid, -1024 outside; int16 (z, y, x), the same everywhere."""
    words = raw(seed, NOISE, 0, 0, 8 + -(-math.prod(shape) // 8))
    settings, noise = words[:8].tolist(), words[8:].view(np.uint8)[: math.prod(shape)]
    place = [axis.astype(np.int64) for axis in np.ogrid[tuple(slice(n) for n in shape)]]
    # (2 i - (n - 1))² / (n - 1)² in thousandths, for each axis.
    far = [
        (2 * axis - (n - 1)) ** 2 * 1000 // (n - 1) ** 2
        for axis, n in zip(place, shape, strict=True)
    ]
    inside = far[0] + far[1] + far[2] < 700 + settings[0] % 250
    hu = np.full(shape, 40 - (1 << (NOISE_BITS - 1)), dtype=np.int16)
    for axis, word in zip(place, settings[1:4], strict=True):
        period = 20 + word % 40
        hu += (8 * (np.abs(axis % period - period // 2) - period // 4)).astype(np.int16)
    hu += (noise.reshape(shape) & ((1 << NOISE_BITS) - 1)).astype(np.int16)
    hu[~inside] = FILL_HU
    return hu


def describe(bucket: Path) -> dict[str, Any]:
    """What the datasets are, to the byte: if this differs, so may every counter."""
    found = {}
    for profile in VOLUMES:
        dataset = Dataset.open(bucket / profile)
        nbytes = dataset.chunk_table()["chunk_nbytes"].to_pylist()
        shards = "\n".join(shard.sha256 for shard in dataset.manifest.shards)
        found[profile] = {
            "sha256": hashlib.sha256(shards.encode()).hexdigest(),
            "shards": len(dataset.manifest.shards),
            "volumes": len(nbytes),
            "chunks": sum(map(len, nbytes)),
            "absent_chunks": sum(one.count(0) for one in nbytes),
        }
    return found
