"""The three storage profiles: chunk size and the codecs between voxels and stored bytes.

A chunk is a cube of int16 HU in C order. Each profile compresses it and a CRC-32C closes it, so a
flipped bit is an error and never a wrong voxel. Profiles are Zarr v3 codec chains, which
zarr-python reads as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numcodecs.blosc
import numcodecs.lz4
from jaxtyping import Int16
from numcodecs.shuffle import Shuffle
from numpy import ndarray

from shards.errors import CorruptShardError

# Blosc's own thread pool takes a global lock; without it every call uses a private context,
# releases the GIL and ignores the BLOSC_* environment variables, which could change stored bytes.
numcodecs.blosc.use_threads = False

ITEM_BYTES = 2
"""Bytes of an int16 voxel."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How a chunk becomes bytes, without the closing CRC-32C."""

    name: str
    chunk_side: int
    codecs: tuple[dict[str, Any], ...]
    """Zarr v3 metadata of the codecs between ``bytes`` and ``crc32c``."""
    compress: Callable[[Int16[ndarray, "c c c"]], bytes]
    decompress: Callable[[memoryview, Int16[ndarray, "c c c"]], None]
    """Decodes into its second argument; raises CorruptShardError."""


def _check_size(found: int, expected: int, what: str) -> None:
    if found != expected:
        raise CorruptShardError(f"chunk states {found} {what}, expected {expected}")


def _blosc_decompress(body: memoryview, out: Int16[ndarray, "c c c"]) -> None:
    # Header of Blosc 1: nbytes at 4, cbytes at 12, little-endian uint32.
    if len(body) < 16:
        raise CorruptShardError(f"chunk of {len(body)} bytes is shorter than a Blosc header")
    nbytes, _, cbytes = struct.unpack_from("<III", body, 4)
    _check_size(nbytes, out.nbytes, "decoded bytes")
    _check_size(cbytes, len(body), "stored bytes")
    try:
        numcodecs.blosc.decompress(body, out)
    except (RuntimeError, ValueError) as exc:
        raise CorruptShardError(f"chunk does not decode ({exc})") from exc


def _blosc(name: str, cname: str, clevel: int) -> Profile:
    """64³ chunks, Blosc with bit shuffle over int16."""

    def compress(chunk: Int16[ndarray, "c c c"]) -> bytes:
        bits = numcodecs.blosc.BITSHUFFLE
        stored: bytes = numcodecs.blosc.compress(
            chunk, cname.encode(), clevel, bits, 0, typesize=ITEM_BYTES
        )
        return stored

    configuration = {
        "blocksize": 0,
        "clevel": clevel,
        "cname": cname,
        "shuffle": "bitshuffle",
        "typesize": ITEM_BYTES,
    }
    return Profile(
        name=name,
        chunk_side=64,
        codecs=({"name": "blosc", "configuration": configuration},),
        compress=compress,
        decompress=_blosc_decompress,
    )


_SHUFFLE = Shuffle(elementsize=ITEM_BYTES)
_LZ4_ACCELERATION = 1


def _lz4_compress(chunk: Int16[ndarray, "c c c"]) -> bytes:
    stored: bytes = numcodecs.lz4.compress(_SHUFFLE.encode(chunk), _LZ4_ACCELERATION)
    return stored


def _lz4_decompress(body: memoryview, out: Int16[ndarray, "c c c"]) -> None:
    # numcodecs writes the decoded size as a little-endian uint32, then one raw LZ4 block.
    if len(body) < 5:
        raise CorruptShardError(f"chunk of {len(body)} bytes is shorter than an LZ4 header")
    (nbytes,) = struct.unpack_from("<I", body)
    _check_size(nbytes, out.nbytes, "decoded bytes")
    try:
        _SHUFFLE.decode(numcodecs.lz4.decompress(body), out)
    except (RuntimeError, ValueError) as exc:
        raise CorruptShardError(f"chunk does not decode ({exc})") from exc


_GPU = Profile(
    name="gpu",
    # 32³ int16 is the 64 KiB block that GPU decompressors are tuned for.
    chunk_side=32,
    codecs=(
        {"name": "numcodecs.shuffle", "configuration": {"elementsize": ITEM_BYTES}},
        {"name": "numcodecs.lz4", "configuration": {"acceleration": _LZ4_ACCELERATION}},
    ),
    compress=_lz4_compress,
    decompress=_lz4_decompress,
)

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (_blosc("balanced", "lz4hc", 5), _blosc("ratio", "zstd", 7), _GPU)
}
"""``balanced`` decodes fast on a CPU, ``ratio`` is smallest, ``gpu`` suits GPU decoders."""


def get_profile(name: str) -> Profile:
    """The profile called ``name``.

    Raises:
        ValueError: no such profile.
    """
    if name not in PROFILES:
        raise ValueError(f"profile {name!r} is unknown; use one of {', '.join(PROFILES)}")
    return PROFILES[name]
