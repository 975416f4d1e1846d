"""The codec against zarr-python, as reader and as writer, and against flipped bits."""

import asyncio
import hashlib
import json
import struct

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from shards.codec import (
    chunk_grid,
    decode_chunk,
    decode_labels,
    decode_volume,
    encode_labels,
    encode_volume,
    morton_order,
    read_chunk_index,
)
from shards.digest import content_sha256
from shards.errors import CorruptShardError
from shards.profiles import PROFILES
from shards.testing import toy_volume

pytestmark = [
    # The gpu profile uses codecs that are not in the Zarr specification, and zarr says so.
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3"),
]
SIDE = {"balanced": 64, "ratio": 64, "gpu": 32}
SHAPES = [(70, 80, 90), (1, 1, 1), (64, 64, 64), (33, 129, 200)]


def zarr_inner_codecs(profile, item_bytes=2):
    """The profile's compressors as zarr-python's own objects, written out again on purpose."""
    from zarr.codecs.numcodecs import LZ4, Shuffle

    if profile == "balanced":
        return [BloscCodec(cname="lz4hc", clevel=5, shuffle="bitshuffle", typesize=item_bytes)]
    if profile == "ratio":
        return [BloscCodec(cname="zstd", clevel=7, shuffle="bitshuffle", typesize=item_bytes)]
    return [Shuffle(elementsize=item_bytes), LZ4(acceleration=1)]


def written_by_zarr(hu, profile, fill=-1024):
    """``zarr.json`` and shard as zarr-python writes them."""
    side = SIDE[profile]
    sharding = ShardingCodec(
        chunk_shape=(side,) * 3,
        codecs=[BytesCodec(), *zarr_inner_codecs(profile, hu.itemsize), Crc32cCodec()],
        index_location="start",
    )
    store = MemoryStore()
    array = zarr.create_array(
        store,
        shape=hu.shape,
        dtype=hu.dtype,
        chunks=tuple(-(-length // side) * side for length in hu.shape),
        serializer=sharding,
        compressors=None,
        filters=None,
        fill_value=fill,
        dimension_names=["z", "y", "x"],
    )
    array[:] = hu

    def content(key):
        buffer = asyncio.run(store.get(key, default_buffer_prototype()))
        return buffer.to_bytes()

    return content("zarr.json"), content("c/0/0/0")


def zarr_array(encoded):
    files = {"zarr.json": encoded.zarr_json, "c/0/0/0": encoded.zshard}
    store = MemoryStore({key: Buffer.from_bytes(data) for key, data in files.items()})
    return zarr.open_array(store, mode="r")


def read_by_zarr(encoded):
    return zarr_array(encoded)[:]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("profile", PROFILES)
def test_zarr_reads_the_same_voxels(profile, shape):
    hu = toy_volume(shape, seed=1)
    assert np.array_equal(read_by_zarr(encode_volume(hu, profile)), hu)


@pytest.mark.parametrize("profile", PROFILES)
def test_bytes_are_those_of_zarrs_own_writer(profile):
    hu = toy_volume((100, 70, 330), seed=2)
    encoded = encode_volume(hu, profile)
    zarr_json, zshard = written_by_zarr(hu, profile)
    assert encoded.zshard == zshard
    expected = json.loads(zarr_json)
    del expected["storage_transformers"]  # Optional in the specification, always empty.
    assert json.loads(encoded.zarr_json) == expected


@pytest.mark.parametrize("profile", PROFILES)
@settings(max_examples=15, deadline=None)
@given(
    hu=hnp.arrays(
        np.int16,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=70),
        elements=st.integers(-1024, 3071),
        fill=st.just(-1024),
    )
)
def test_round_trip(profile, hu):
    encoded = encode_volume(hu, profile)
    decoded = decode_volume(encoded.zarr_json, encoded.zshard)
    assert decoded.dtype == np.int16
    assert np.array_equal(decoded, hu)


def test_any_memory_layout_gives_the_same_bytes():
    hu = toy_volume((70, 66, 65), seed=3)
    expected = encode_volume(hu, "balanced").zshard
    assert encode_volume(np.asfortranarray(hu), "balanced").zshard == expected
    assert encode_volume(hu[::-1][::-1], "balanced").zshard == expected


@pytest.mark.parametrize("profile", PROFILES)
def test_chunk_table_says_where_chunks_are_and_which_are_air(profile):
    side = SIDE[profile]
    hu = np.full((side * 2, side, side * 2 + 1), -1024, np.int16)
    hu[0, 0, 0] = -500  # Still air: not above -500.
    hu[-1, 0, 0] = -499
    hu[-1, -1, -1] = 3071
    encoded = encode_volume(hu, profile)
    assert encoded.grid_zyx == (2, 1, 3)
    assert (encoded.chunk_nbytes > 0).tolist() == [True, False, False, True, False, True]
    assert encoded.air_mask.tolist() == [True, True, True, False, True, False]
    assert (encoded.chunk_offsets[encoded.chunk_nbytes == 0] == 0).all()
    # Read by hand: six entries of two uint64, a CRC, then chunks.
    entries = struct.unpack_from("<12Q", encoded.zshard)
    assert struct.unpack_from("<I", encoded.zshard, 96)[0] == google_crc32c.value(
        encoded.zshard[:96]
    )
    for n in range(6):
        offset, nbytes = entries[2 * n : 2 * n + 2]
        if encoded.chunk_nbytes[n]:
            assert (offset, nbytes) == (encoded.chunk_offsets[n], encoded.chunk_nbytes[n])
        else:
            assert (offset, nbytes) == (2**64 - 1, 2**64 - 1)
    out = np.empty((side,) * 3, np.int16)
    first = encoded.chunk_offsets[5]
    decode_chunk(memoryview(encoded.zshard)[first : first + encoded.chunk_nbytes[5]], out, profile)
    assert out[-1, -1, 0] == 3071
    assert (out[:, :, 1:] == -1024).all()


def test_a_volume_of_air_alone_has_no_chunk():
    hu = np.full((5, 6, 7), -1024, np.int16)
    encoded = encode_volume(hu, "balanced")
    assert len(encoded.zshard) == 20
    assert np.array_equal(read_by_zarr(encoded), hu)
    assert np.array_equal(decode_volume(encoded.zarr_json, encoded.zshard), hu)


# Coordinates in storage order, by hand: z is the lowest bit, an axis without bits left is skipped.
MORTON = [
    ((1, 1, 1), [(0, 0, 0)]),
    ((1, 2, 3), [(0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (0, 0, 2), (0, 1, 2)]),
    (
        (2, 2, 2),
        [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1)],
    ),
    ((3, 1, 2), [(0, 0, 0), (1, 0, 0), (0, 0, 1), (1, 0, 1), (2, 0, 0), (2, 0, 1)]),
]


@pytest.mark.parametrize(("grid", "expected"), MORTON)
def test_morton_order(grid, expected):
    found = np.stack(np.unravel_index(morton_order(grid), grid), axis=1)
    assert [tuple(row) for row in found.tolist()] == expected


def test_chunk_grid_rounds_up():
    assert chunk_grid((64, 65, 1), 64) == (1, 2, 1)


@pytest.mark.parametrize("profile", PROFILES)
def test_no_flipped_bit_decodes(profile):
    hu = toy_volume((70, 40, 90), seed=4)
    encoded = encode_volume(hu, profile)
    rng = np.random.default_rng(0)
    size = len(encoded.zshard)
    for at in [*range(100), *rng.integers(0, size, 200).tolist(), size - 1]:
        damaged = bytearray(encoded.zshard)
        damaged[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(CorruptShardError):
            decode_volume(encoded.zarr_json, bytes(damaged))


def test_metadata_is_read_to_the_byte():
    encoded = encode_volume(toy_volume((70, 40, 90), seed=4), "balanced")
    rng = np.random.default_rng(0)
    shape = json.dumps([70, 40, 90], separators=(",", ":")).encode()
    at_shape = encoded.zarr_json.rindex(shape)
    for at in range(len(encoded.zarr_json)):
        if at_shape <= at < at_shape + len(shape):
            continue  # Another digit is another valid shape: the sample's record tells (verify).
        damaged = bytearray(encoded.zarr_json)
        damaged[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(CorruptShardError):
            decode_volume(bytes(damaged), encoded.zshard)


@pytest.mark.parametrize("length", [0, 3, 50, 1000])
def test_a_cut_shard_is_an_error(length):
    encoded = encode_volume(toy_volume((70, 40, 90), seed=4), "balanced")
    with pytest.raises(CorruptShardError):
        decode_volume(encoded.zarr_json, encoded.zshard[:length])


def closed(body):
    return body + struct.pack("<I", google_crc32c.value(body))


@pytest.mark.parametrize(
    ("offset", "nbytes"),
    [(0, 10), (20, 0), (20, 2**64 - 20), (2**64 - 10, 20), (20, 100), (2**64 - 1, 5)],
)
def test_an_index_with_a_good_checksum_cannot_point_outside(offset, nbytes):
    shard = closed(struct.pack("<QQ", offset, nbytes)) + bytes(50)
    with pytest.raises(CorruptShardError, match="outside"):
        read_chunk_index(shard, 1)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    "body", [b"", b"x", bytes(16), b"\xff" * 40, bytes(4) + b"\x00\x00\x08\x00"]
)
def test_garbage_with_a_good_checksum_is_an_error(profile, body):
    out = np.empty((SIDE[profile],) * 3, np.int16)
    with pytest.raises(CorruptShardError):
        decode_chunk(closed(body), out, profile)


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="int16"):
        encode_volume(np.zeros((2, 2, 2), np.int32), "balanced")
    with pytest.raises(ValueError, match="use one of balanced, ratio, gpu"):
        encode_volume(np.zeros((2, 2, 2), np.int16), "fast")


def test_content_digest_is_the_documented_one():
    hu = np.arange(-3, 21, dtype=np.int16).reshape(2, 3, 4)
    affine = np.arange(16, dtype=float).reshape(4, 4) / 3
    said = struct.pack("<24h", *range(-3, 21)) + struct.pack("<3q", 2, 3, 4)
    said += struct.pack("<16d", *(n / 3 for n in range(16)))
    assert content_sha256(hu, affine) == hashlib.sha256(said).hexdigest()
    assert content_sha256(np.asfortranarray(hu), affine.T.copy().T) == content_sha256(hu, affine)


def test_blosc_ignores_its_environment(monkeypatch):
    hu = toy_volume((64, 64, 64), seed=5)
    expected = encode_volume(hu, "balanced").zshard
    for name, value in {"CLEVEL": "1", "SHUFFLE": "NOSHUFFLE", "COMPRESSOR": "zstd"}.items():
        monkeypatch.setenv(f"BLOSC_{name}", value)
    assert encode_volume(hu, "balanced").zshard == expected


def label_volume(shape, n_values, seed=0):
    """Blocks of labels with background between; the first chunk is empty."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, n_values + 1, [-(-n // 9) for n in shape])
    values = np.kron(coarse, np.ones((9, 9, 9), np.int64))[tuple(slice(n) for n in shape)]
    values[:64, :64, :64] = 0
    values[-1, -1, -1] = n_values
    return values.astype(np.uint16)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("n_values", "dtype"), [(3, "uint8"), (255, "uint8"), (256, "uint16")])
def test_labels_are_read_by_zarr_and_by_us(profile, n_values, dtype):
    values = label_volume((70, 80, 90), n_values)
    encoded = encode_labels(values, profile)
    array = zarr_array(encoded)
    assert (array.dtype, array.fill_value, array.shape) == (np.dtype(dtype), 0, values.shape)
    assert np.array_equal(array[:], values)
    decoded = decode_labels(encoded.zarr_json, encoded.zshard)
    assert decoded.dtype == np.dtype(dtype)
    assert np.array_equal(decoded, values)
    side = SIDE[profile]
    _, nbytes = read_chunk_index(encoded.zshard, int(np.prod(chunk_grid(values.shape, side))))
    assert nbytes[0] == 0  # all background
    # Two bytes only where a value needs them, whatever type the values came in.
    if dtype == "uint8":
        assert encode_labels(values.astype(np.uint8), profile) == encoded


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("n_values", [3, 300])
def test_label_bytes_are_those_of_zarrs_own_writer(profile, n_values):
    values = label_volume((70, 80, 90), n_values)
    encoded = encode_labels(values, profile)
    narrow = values.astype(np.uint8) if n_values == 3 else values
    zarr_json, zshard = written_by_zarr(narrow, profile, fill=0)
    expected = json.loads(zarr_json)
    del expected["storage_transformers"]
    assert json.loads(encoded.zarr_json) == expected
    assert encoded.zshard == zshard


def test_labels_are_not_taken_for_a_volume():
    encoded = encode_labels(label_volume((40, 40, 40), 2), "balanced")
    with pytest.raises(CorruptShardError, match="not that of any profile"):
        decode_volume(encoded.zarr_json, encoded.zshard)
    ct = encode_volume(toy_volume((40, 40, 40), 0), "balanced")
    with pytest.raises(CorruptShardError, match="not that of any profile"):
        decode_labels(ct.zarr_json, ct.zshard)
    with pytest.raises(ValueError, match="need a non-empty 3D label volume"):
        encode_labels(np.zeros((2, 0, 2), np.uint8), "balanced")
