"""A volume to a Zarr v3 array of one shard, and back; each chunk can be decoded alone.

The array is int16 HU on (z, y, x), or a label volume on the same grid. Its one shard holds an
index, then the chunks that are not all fill (-1024, or label 0), in Morton order.
``docs/format.md`` gives every byte; zarr-python reads the result unchanged.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from crc32c import crc32c
from jaxtyping import Bool, Int16, Int32, Int64, Integer, UInt8, UInt16
from numpy import ndarray

from shards.errors import CorruptShardError
from shards.profiles import PROFILES, Profile, get_profile
from shards.schema import AIR_BELOW_HU, FILL_HU, canonical_json

_CRC = struct.Struct("<I")
CRC_BYTES = _CRC.size
"""A CRC-32C, little-endian, after each chunk and after the index."""
ENTRY_BYTES = 16
"""Index entry: offset and length, little-endian uint64."""
ABSENT = np.uint64(2**64 - 1)
"""Offset and length of an absent chunk in the index (Zarr v3 ``sharding_indexed``)."""

Triple = tuple[int, int, int]
LabelArray = UInt8[ndarray, "z y x"] | UInt16[ndarray, "z y x"]


@dataclass(frozen=True, kw_only=True)
class ArrayKind:
    """What a voxel is: its type, and the value that absent chunks stand for."""

    dtype: str
    fill: int


CT_KIND = ArrayKind(dtype="int16", fill=FILL_HU)
LABEL_KINDS = (ArrayKind(dtype="uint8", fill=0), ArrayKind(dtype="uint16", fill=0))
"""Labels take two bytes only where a value is over 255."""


@dataclass(frozen=True, kw_only=True)
class ArrayHead:
    """What an array's metadata say."""

    shape_zyx: Triple
    profile: Profile
    kind: ArrayKind


@dataclass(frozen=True, kw_only=True)
class EncodedLabels:
    """A label volume as stored."""

    zarr_json: bytes
    zshard: bytes


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


def zarr_metadata(shape_zyx: tuple[int, ...], profile: str, kind: ArrayKind = CT_KIND) -> bytes:
    """The array's ``zarr.json``: a function of shape, profile and kind alone."""
    chosen = _profile_of(profile, kind)
    side = chosen.chunk_side
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    # One byte has no order, and zarr-python writes none.
    plain = {"name": "bytes"} if np.dtype(kind.dtype).itemsize == 1 else little
    crc = {"name": "crc32c"}
    sharding = {
        "chunk_shape": [side] * 3,
        "codecs": [plain, *chosen.codecs, crc],
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
            "data_type": kind.dtype,
            "dimension_names": ["z", "y", "x"],
            "fill_value": kind.fill,
            "node_type": "array",
            "shape": list(shape_zyx),
            "zarr_format": 3,
        }
    )


def parse_zarr_metadata(zarr_json: bytes, kinds: Sequence[ArrayKind] = (CT_KIND,)) -> ArrayHead:
    """Shape, profile and kind of an array.

    Raises:
        CorruptShardError: not, to the byte, the metadata of a profile and one of ``kinds``.
    """
    try:
        z, y, x = (int(length) for length in json.loads(zarr_json)["shape"])
    except (ValueError, KeyError, TypeError) as exc:
        raise CorruptShardError(f"array metadata has no shape ({exc!r})") from exc
    for name, kind in itertools.product(PROFILES, kinds):
        if min(z, y, x) > 0 and zarr_metadata((z, y, x), name, kind) == zarr_json:
            return ArrayHead(shape_zyx=(z, y, x), profile=_profile_of(name, kind), kind=kind)
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
    side = get_profile(profile).chunk_side
    grid = chunk_grid(hu.shape, side)
    zshard, offsets, nbytes = _encode(hu, profile, CT_KIND)
    air = np.ones(len(nbytes), dtype=np.bool_)
    for n in np.flatnonzero(nbytes):
        air[n] = not np.any(hu[_chunk_slices(np.unravel_index(n, grid), side)] > AIR_BELOW_HU)
    return EncodedVolume(
        zarr_json=zarr_metadata(hu.shape, profile),
        zshard=zshard,
        grid_zyx=grid,
        chunk_offsets=offsets,
        chunk_nbytes=nbytes,
        air_mask=air,
    )


def encode_labels(values: LabelArray, profile: str) -> EncodedLabels:
    """Encode a label volume: one byte a voxel where every value fits, else two.

    Args:
        values: labels, (z, y, x), no side 0; 0 is background.
        profile: name in ``PROFILES``.

    Raises:
        ValueError: not uint8 or uint16, not 3D, or empty.
    """
    if values.dtype not in (np.uint8, np.uint16) or values.ndim != 3 or 0 in values.shape:
        raise ValueError(f"need a non-empty 3D label volume, got {values.dtype} {values.shape}")
    kind = LABEL_KINDS[int(values.max() > np.iinfo(np.uint8).max)]
    zshard, _, _ = _encode(values.astype(kind.dtype, copy=False), profile, kind)
    return EncodedLabels(zarr_json=zarr_metadata(values.shape, profile, kind), zshard=zshard)


def _encode(
    voxels: Integer[ndarray, "z y x"], profile: str, kind: ArrayKind
) -> tuple[bytes, Int64[ndarray, " n"], Int32[ndarray, " n"]]:
    """The zshard, and offsets and lengths of its chunks in C order."""
    chosen = _profile_of(profile, kind)
    grid = chunk_grid(voxels.shape, chosen.chunk_side)
    n_chunks = math.prod(grid)
    offsets = np.zeros(n_chunks, dtype=np.int64)
    nbytes = np.zeros(n_chunks, dtype=np.int32)
    parts: list[bytes] = []
    at = index_nbytes(n_chunks)
    for n in morton_order(grid):
        chunk = _padded_chunk(voxels, np.unravel_index(n, grid), chosen.chunk_side, kind.fill)
        if not np.any(chunk != kind.fill):
            continue
        stored = _close(chosen.compress(chunk))
        offsets[n], nbytes[n] = at, len(stored)
        at += len(stored)
        parts.append(stored)
    return b"".join([_encode_index(offsets, nbytes), *parts]), offsets, nbytes


def _profile_of(name: str, kind: ArrayKind) -> Profile:
    return get_profile(name, np.dtype(kind.dtype).itemsize)


def decode_chunk(
    buf: bytes | memoryview, out: Integer[ndarray, "c c c"], profile: Profile | str
) -> int:
    """Decode one stored chunk into ``out``, which is C-contiguous and of the profile's side.

    The checksum is read first. Checksum and decoder work without the GIL.

    Returns:
        Bytes copied beside decoding: none where the profile is Blosc.

    Raises:
        CorruptShardError: checksum, sizes or compressed stream are wrong.
    """
    chosen = get_profile(profile) if isinstance(profile, str) else profile
    return chosen.decompress(chunk_body(buf), out)


def chunk_body(buf: bytes | memoryview) -> memoryview:
    """What the profile's codecs made of one stored chunk: the bytes before its checksum.

    Raises:
        CorruptShardError: they fail it.
    """
    return _open(buf, "chunk")


def decode_padded(
    zarr_json: bytes, zshard: bytes, kinds: Sequence[ArrayKind] = (CT_KIND,)
) -> Integer[ndarray, "z y x"]:
    """Every whole chunk of an array, the padding of the last ones included.

    Raises:
        CorruptShardError: metadata, index or a chunk is not as written.
    """
    head = parse_zarr_metadata(zarr_json, kinds)
    side = head.profile.chunk_side
    grid = chunk_grid(head.shape_zyx, side)
    offsets, nbytes = read_chunk_index(zshard, math.prod(grid))
    out = np.full([n * side for n in grid], head.kind.fill, dtype=head.kind.dtype)
    scratch = np.empty((side, side, side), dtype=head.kind.dtype)
    view = memoryview(zshard)
    for n in np.flatnonzero(nbytes):
        decode_chunk(view[offsets[n] : offsets[n] + nbytes[n]], scratch, head.profile)
        out[_chunk_slices(np.unravel_index(n, grid), side)] = scratch
    return out


def decode_volume(zarr_json: bytes, zshard: bytes) -> Int16[ndarray, "z y x"]:
    """The whole volume, HU.

    Raises:
        CorruptShardError: metadata, index or a chunk is not as written.
    """
    return _decode(zarr_json, zshard, (CT_KIND,))


def decode_labels(zarr_json: bytes, zshard: bytes) -> LabelArray:
    """The whole label volume, uint8 or uint16.

    Raises:
        CorruptShardError: metadata, index or a chunk is not as written.
    """
    return _decode(zarr_json, zshard, LABEL_KINDS)


def _decode(
    zarr_json: bytes, zshard: bytes, kinds: Sequence[ArrayKind]
) -> Integer[ndarray, "z y x"]:
    shape = parse_zarr_metadata(zarr_json, kinds).shape_zyx
    padded = decode_padded(zarr_json, zshard, kinds)
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


def _close(body: bytes) -> bytes:
    return body + _CRC.pack(crc32c(body))


def _open(buf: bytes | memoryview, what: str) -> memoryview:
    """The bytes before a closing CRC-32C that agrees with them."""
    view = memoryview(buf).cast("B")
    end = len(view) - CRC_BYTES
    body = view[: max(0, end)]
    if end < 0 or _CRC.unpack_from(view, end)[0] != crc32c(body):
        raise CorruptShardError(f"{what} fails its CRC-32C")
    return body


def _chunk_slices(position: tuple[np.intp, ...], side: int) -> tuple[slice, ...]:
    return tuple(slice(int(p) * side, (int(p) + 1) * side) for p in position)


def _padded_chunk(
    voxels: Integer[ndarray, "z y x"], position: tuple[np.intp, ...], side: int, fill: int
) -> Integer[ndarray, "c c c"]:
    """One chunk, C-contiguous; what lies outside the volume is fill."""
    part = voxels[_chunk_slices(position, side)]
    if part.shape == (side, side, side):
        return np.ascontiguousarray(part)
    chunk = np.full((side, side, side), fill, dtype=voxels.dtype)
    chunk[tuple(slice(length) for length in part.shape)] = part
    return chunk
