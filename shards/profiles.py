"""The three storage profiles: chunk size and the codecs between voxels and stored bytes.

A chunk is a cube of voxels in C order: int16 HU, or labels of one or two bytes. Each profile
compresses it and a CRC-32C closes it, so a flipped bit is an error and never a wrong voxel.
Profiles are Zarr v3 codec chains, which zarr-python reads as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numcodecs.blosc
import numcodecs.lz4
from jaxtyping import Integer
from numcodecs.shuffle import Shuffle
from numpy import ndarray

from shards.errors import CorruptShardError
from shards.lz4_blocks import decode_shuffled_lz4

# Blosc's own thread pool takes a global lock; without it every call uses a private context,
# releases the GIL and ignores the BLOSC_* environment variables, which could change stored bytes.
numcodecs.blosc.use_threads = False

ITEM_BYTES = 2
"""Bytes of an int16 HU voxel."""
LABEL_BYTES = 1
"""Bytes of a label voxel where no value is over 255; else labels take ``ITEM_BYTES`` too."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How a chunk becomes bytes, without the closing CRC-32C."""

    name: str
    chunk_side: int
    codecs: tuple[dict[str, Any], ...]
    """Zarr v3 metadata of the codecs between ``bytes`` and ``crc32c``."""
    compress: Callable[[Integer[ndarray, "c c c"]], bytes]
    decompress: Callable[[memoryview, Integer[ndarray, "c c c"]], int]
    """Decodes into its second argument, and says how many bytes it copied beside that; raises
    CorruptShardError."""


_BLOSC_SIZES = struct.Struct("<III")


def _check_size(found: int, expected: int, what: str) -> None:
    if found != expected:
        raise CorruptShardError(f"chunk states {found} {what}, expected {expected}")


def _blosc_decompress(body: memoryview, out: Integer[ndarray, "c c c"]) -> int:
    # Header of Blosc 1: nbytes at 4, cbytes at 12, little-endian uint32.
    if len(body) < 16:
        raise CorruptShardError(f"chunk of {len(body)} bytes is shorter than a Blosc header")
    nbytes, _, cbytes = _BLOSC_SIZES.unpack_from(body, 4)
    _check_size(nbytes, out.nbytes, "decoded bytes")
    _check_size(cbytes, len(body), "stored bytes")
    try:
        numcodecs.blosc.decompress(body, out)
    except (RuntimeError, ValueError) as exc:
        raise CorruptShardError(f"chunk does not decode ({exc})") from exc
    return 0


def _blosc(name: str, cname: str, clevel: int, item_bytes: int) -> Profile:
    """64³ chunks, Blosc with bit shuffle over voxels."""

    def compress(chunk: Integer[ndarray, "c c c"]) -> bytes:
        bits = numcodecs.blosc.BITSHUFFLE
        stored: bytes = numcodecs.blosc.compress(
            chunk, cname.encode(), clevel, bits, 0, typesize=item_bytes
        )
        return stored

    configuration = {
        "blocksize": 0,
        "clevel": clevel,
        "cname": cname,
        "shuffle": "bitshuffle",
        "typesize": item_bytes,
    }
    return Profile(
        name=name,
        chunk_side=64,
        codecs=({"name": "blosc", "configuration": configuration},),
        compress=compress,
        decompress=_blosc_decompress,
    )


_LZ4_ACCELERATION = 1
_LZ4_SIZE = struct.Struct("<I")


def lz4_block(body: memoryview, decoded: int) -> memoryview:
    """The raw LZ4 block of a chunk of profile ``gpu``, which decodes to ``decoded`` bytes.

    Raises:
        CorruptShardError: the chunk states another size, or is too short to state any.
    """
    # numcodecs writes the decoded size, then the block.
    if len(body) <= _LZ4_SIZE.size:
        raise CorruptShardError(f"chunk of {len(body)} bytes is shorter than an LZ4 header")
    _check_size(_LZ4_SIZE.unpack_from(body)[0], decoded, "decoded bytes")
    return body[_LZ4_SIZE.size :]


def _shuffled_lz4(name: str, item_bytes: int) -> Profile:
    """32³ chunks, byte shuffle and LZ4; of int16 they are the 64 KiB that GPU decoders like."""
    shuffle = Shuffle(elementsize=item_bytes)

    def compress(chunk: Integer[ndarray, "c c c"]) -> bytes:
        stored: bytes = numcodecs.lz4.compress(shuffle.encode(chunk), _LZ4_ACCELERATION)
        return stored

    def decompress(body: memoryview, out: Integer[ndarray, "c c c"]) -> int:
        try:
            return decode_shuffled_lz4(lz4_block(body, out.nbytes), out, item_bytes)
        except (RuntimeError, ValueError) as exc:
            raise CorruptShardError(f"chunk does not decode ({exc})") from exc

    return Profile(
        name=name,
        chunk_side=32,
        codecs=(
            {"name": "numcodecs.shuffle", "configuration": {"elementsize": item_bytes}},
            {"name": "numcodecs.lz4", "configuration": {"acceleration": _LZ4_ACCELERATION}},
        ),
        compress=compress,
        decompress=decompress,
    )


def _profiles(item_bytes: int) -> dict[str, Profile]:
    made = (
        _blosc("balanced", "lz4hc", 5, item_bytes),
        _blosc("ratio", "zstd", 7, item_bytes),
        _shuffled_lz4("gpu", item_bytes),
    )
    return {profile.name: profile for profile in made}


PROFILES = _profiles(ITEM_BYTES)
"""``balanced`` decodes fast on a CPU, ``ratio`` is smallest, ``gpu`` suits GPU decoders."""
_LABEL_PROFILES = _profiles(LABEL_BYTES)


def get_profile(name: str, item_bytes: int = ITEM_BYTES) -> Profile:
    """The profile called ``name`` for voxels of ``item_bytes``.

    Raises:
        ValueError: no such profile.
    """
    if name not in PROFILES:
        raise ValueError(f"profile {name!r} is unknown; use one of {', '.join(PROFILES)}")
    return (PROFILES if item_bytes == ITEM_BYTES else _LABEL_PROFILES)[name]
