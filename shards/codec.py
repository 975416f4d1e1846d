"""A volume to a Zarr v3 array of one shard, and back; each chunk can be decoded alone.

The array is int16 HU on (z, y, x). Its one shard holds an index, then the chunks that are not all
-1024, in Morton order. ``docs/format.md`` gives every byte; zarr-python reads the result unchanged.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass

import google_crc32c
import numpy as np
from jaxtyping import Bool, Int16, Int32, Int64
from numpy import ndarray

from shards.errors import CorruptShardError
from shards.profiles import PROFILES, Profile, get_profile
from shards.schema import AIR_BELOW_HU, FILL_HU, canonical_json

CRC_BYTES = 4
"""A CRC-32C, little-endian, after each chunk and after the index."""
ENTRY_BYTES = 16
"""Index entry: offset and length, little-endian uint64."""
ABSENT = np.uint64(2**64 - 1)
"""Offset and length of an absent chunk in the index (Zarr v3 ``sharding_indexed``)."""

Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class EncodedVolume:
    """A volume as stored. Per-chunk arrays are in C order of the chunk grid."""

    zarr_json: bytes
    zshard: bytes
    grid_zyx: Triple
    chunk_offsets: Int64[ndarray, " n"]
    """From the start of ``zshard``; 0 where the chunk is absent."""
    chunk_nbytes: Int32[ndarray, " n"]
    """Stored bytes with the CRC; 0 where the chunk is absent."""
    air_mask: Bool[ndarray, " n"]
    """No voxel of the chunk is above -500 HU."""


def chunk_grid(shape_zyx: tuple[int, ...], chunk_side: int) -> Triple:
    """Chunks along each axis: the shape rounded up to whole chunks."""
    z, y, x = (-(-length // chunk_side) for length in shape_zyx)
    return z, y, x


def morton_order(grid_zyx: Triple) -> Int64[ndarray, " n"]:
    """C-order positions of the chunks of a grid, in the order in which they are stored.

    The code takes one bit of z, then y, then x, from the lowest bit up; an axis that has no bits
    left is passed over. Bits of z are therefore the least significant.
    """
    position = np.indices(grid_zyx).reshape(3, -1)
    bits = [(length - 1).bit_length() for length in grid_zyx]
    code = np.zeros(position.shape[1], dtype=np.int64)
    place = 0
    for bit, axis in itertools.product(range(max(bits)), range(3)):
        if bit < bits[axis]:
            code |= ((position[axis] >> bit) & 1) << place
            place += 1
    order: Int64[ndarray, " n"] = np.argsort(code, kind="stable")
    return order


def zarr_metadata(shape_zyx: tuple[int, ...], profile: str) -> bytes:
    """The array's ``zarr.json``: a function of shape and profile alone."""
    chosen = get_profile(profile)
    side = chosen.chunk_side
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    crc = {"name": "crc32c"}
    sharding = {
        "chunk_shape": [side] * 3,
        "codecs": [little, *chosen.codecs, crc],
        "index_codecs": [little, crc],
        "index_location": "start",
    }
    shard_shape = [n * side for n in chunk_grid(shape_zyx, side)]
    return canonical_json(
        {
            "attributes": {},
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard_shape}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "data_type": "int16",
            "dimension_names": ["z", "y", "x"],
            "fill_value": FILL_HU,
            "node_type": "array",
            "shape": list(shape_zyx),
            "zarr_format": 3,
        }
    )


def parse_zarr_metadata(zarr_json: bytes) -> tuple[Triple, Profile]:
    """Shape and profile of an array.

    Raises:
        CorruptShardError: not, to the byte, the metadata of a profile of this format version.
    """
    try:
        z, y, x = (int(length) for length in json.loads(zarr_json)["shape"])
    except (ValueError, KeyError, TypeError) as exc:
        raise CorruptShardError(f"array metadata has no shape ({exc!r})") from exc
    for profile in PROFILES.values():
        if min(z, y, x) > 0 and zarr_metadata((z, y, x), profile.name) == zarr_json:
            return (z, y, x), profile
    raise CorruptShardError("array metadata is not that of any profile of this format version")


def encode_volume(hu: Int16[ndarray, "z y x"], profile: str) -> EncodedVolume:
    """Encode a volume. The same voxels give the same bytes.

    Args:
        hu: HU, (z, y, x), no side 0.
        profile: name in ``PROFILES``.

    Raises:
        ValueError: not int16, not 3D, empty, or an unknown profile.
    """
    if hu.dtype != np.int16 or hu.ndim != 3 or 0 in hu.shape:
        raise ValueError(f"need a non-empty 3D int16 volume, got {hu.dtype} {hu.shape}")
    chosen = get_profile(profile)
    grid = chunk_grid(hu.shape, chosen.chunk_side)
    n_chunks = math.prod(grid)
    offsets = np.zeros(n_chunks, dtype=np.int64)
    nbytes = np.zeros(n_chunks, dtype=np.int32)
    air = np.ones(n_chunks, dtype=np.bool_)
    parts: list[bytes] = []
    at = index_nbytes(n_chunks)
    for n in morton_order(grid):
        chunk = _padded_chunk(hu, np.unravel_index(n, grid), chosen.chunk_side)
        if not np.any(chunk != FILL_HU):
            continue
        air[n] = not np.any(chunk > AIR_BELOW_HU)
        stored = _close(chosen.compress(chunk))
        offsets[n], nbytes[n] = at, len(stored)
        at += len(stored)
        parts.append(stored)
    return EncodedVolume(
        zarr_json=zarr_metadata(hu.shape, profile),
        zshard=b"".join([_encode_index(offsets, nbytes), *parts]),
        grid_zyx=grid,
        chunk_offsets=offsets,
        chunk_nbytes=nbytes,
        air_mask=air,
    )


def decode_chunk(
    buf: bytes | memoryview, out: Int16[ndarray, "c c c"], profile: Profile | str
) -> None:
    """Decode one stored chunk into ``out``, which is C-contiguous int16 of the profile's side.

    The checksum is read first; the Blosc profiles then decode without a temporary copy and without
    the GIL.

    Raises:
        CorruptShardError: checksum, sizes or compressed stream are wrong.
    """
    chosen = get_profile(profile) if isinstance(profile, str) else profile
    chosen.decompress(_open(buf, "chunk"), out)


def decode_padded(zarr_json: bytes, zshard: bytes) -> Int16[ndarray, "z y x"]:
    """Every whole chunk of an array, the padding of the last ones included.

    Raises:
        CorruptShardError: metadata, index or a chunk is not as written.
    """
    shape, profile = parse_zarr_metadata(zarr_json)
    side = profile.chunk_side
    grid = chunk_grid(shape, side)
    offsets, nbytes = read_chunk_index(zshard, math.prod(grid))
    out = np.full([n * side for n in grid], FILL_HU, dtype=np.int16)
    scratch = np.empty((side, side, side), dtype=np.int16)
    view = memoryview(zshard)
    for n in np.flatnonzero(nbytes):
        decode_chunk(view[offsets[n] : offsets[n] + nbytes[n]], scratch, profile)
        out[_chunk_slices(np.unravel_index(n, grid), side)] = scratch
    return out


def decode_volume(zarr_json: bytes, zshard: bytes) -> Int16[ndarray, "z y x"]:
    """The whole volume, HU.

    Raises:
        CorruptShardError: metadata, index or a chunk is not as written.
    """
    shape, _ = parse_zarr_metadata(zarr_json)
    padded = decode_padded(zarr_json, zshard)
    return np.ascontiguousarray(padded[tuple(slice(length) for length in shape)])


def index_nbytes(n_chunks: int) -> int:
    """Bytes of a shard's index: the first chunk starts here."""
    return n_chunks * ENTRY_BYTES + CRC_BYTES


def read_chunk_index(
    zshard: bytes | memoryview, n_chunks: int
) -> tuple[Int64[ndarray, " n"], Int32[ndarray, " n"]]:
    """Offsets and lengths of the chunks, C order; both 0 for an absent chunk.

    Raises:
        CorruptShardError: the index is cut off, fails its checksum or points outside the shard.
    """
    start = index_nbytes(n_chunks)
    if len(zshard) < start:
        raise CorruptShardError(f"shard of {len(zshard)} bytes is shorter than its index ({start})")
    body = _open(memoryview(zshard)[:start], "index")
    entries = np.frombuffer(body, dtype="<u8").reshape(n_chunks, 2)
    absent = np.all(entries == ABSENT, axis=1)
    size = np.uint64(len(zshard))
    # Each bound alone first: offset + length may wrap around in uint64.
    inside = (entries[:, 0] >= start) & (entries <= size).all(axis=1)
    inside &= (entries[:, 1] > 0) & (entries[:, 1] < 2**31) & (entries.sum(axis=1) <= size)
    if not np.all(absent | inside):
        raise CorruptShardError("index points outside its shard")
    present = np.where(absent[:, None], np.uint64(0), entries)
    return present[:, 0].astype(np.int64), present[:, 1].astype(np.int32)


def any_in_chunk(mask: Bool[ndarray, "z y x"], chunk_side: int) -> Bool[ndarray, " n"]:
    """Whether a voxel of each whole chunk is set, C order of the chunk grid."""
    z, y, x = chunk_grid(mask.shape, chunk_side)
    cubes = mask.reshape(z, chunk_side, y, chunk_side, x, chunk_side)
    found: Bool[ndarray, " n"] = cubes.any(axis=(1, 3, 5)).ravel()
    return found


def _encode_index(offsets: Int64[ndarray, " n"], nbytes: Int32[ndarray, " n"]) -> bytes:
    entries = np.stack([offsets, nbytes], axis=1).astype("<u8")
    entries[nbytes == 0] = ABSENT
    return _close(entries.tobytes())


def _crc32c(body: bytes | memoryview) -> int:
    # google_crc32c refuses memoryviews; an array over the same memory is taken without a copy.
    crc: int = google_crc32c.value(np.frombuffer(body, dtype=np.uint8))
    return crc


def _close(body: bytes) -> bytes:
    return body + _crc32c(body).to_bytes(CRC_BYTES, "little")


def _open(buf: bytes | memoryview, what: str) -> memoryview:
    """The bytes before a closing CRC-32C that agrees with them."""
    view = memoryview(buf).cast("B")
    body = view[:-CRC_BYTES]
    if int.from_bytes(view[-CRC_BYTES:], "little") != _crc32c(body):
        raise CorruptShardError(f"{what} fails its CRC-32C")
    return body


def _chunk_slices(position: tuple[np.intp, ...], side: int) -> tuple[slice, ...]:
    return tuple(slice(int(p) * side, (int(p) + 1) * side) for p in position)


def _padded_chunk(
    hu: Int16[ndarray, "z y x"], position: tuple[np.intp, ...], side: int
) -> Int16[ndarray, "c c c"]:
    """One chunk, C-contiguous; what lies outside the volume is -1024."""
    part = hu[_chunk_slices(position, side)]
    if part.shape == (side, side, side):
        return np.ascontiguousarray(part)
    chunk = np.full((side, side, side), FILL_HU, dtype=np.int16)
    chunk[tuple(slice(length) for length in part.shape)] = part
    return chunk
