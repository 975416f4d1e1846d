"""Stored chunks into a slot: exactly the touched places, counted, and next to no memory beside."""

import sys
import threading
import time
import tracemalloc
from concurrent.futures import Future

import google_crc32c
import numcodecs.lz4
import numpy as np
import pytest
from crc32c import crc32c
from numcodecs.shuffle import Shuffle

from shards import decoding
from shards.codec import CRC_BYTES, decode_chunk, encode_volume
from shards.decoding import ChunkDecoder
from shards.errors import CorruptShardError
from shards.fetched import Fetched, Part
from shards.lz4_blocks import decode_shuffled_lz4
from shards.profiles import PROFILES, get_profile
from shards.regions import chunks_per_axis, cover
from shards.sources import touched
from shards.stats import Stats
from shards.testing import toy_volume

STALE = 12345
BOX = 100
SHAPE = (130, 100, 140)
STARTS = [(-20, 30, 60), (20, -5, 10)]
"""Of boxes that reach outside the volume."""


@pytest.fixture(scope="module")
def volume():
    """CT-like, with a block of pure air that no profile stores."""
    hu = toy_volume(SHAPE, 3)
    hu[:64, :64, :64] = -1024
    return hu


@pytest.fixture(scope="module", params=sorted(PROFILES))
def stored(request, volume):
    return request.param, encode_volume(volume, request.param)


def fetch(encoded, profile, start):
    """A box's chunks, each in one of two ranges."""
    region = cover(start, BOX, SHAPE, get_profile(profile).chunk_side)
    wanted, sizes = touched(region, encoded.chunk_nbytes, 0)
    parts = []
    for own in np.array_split(np.arange(len(wanted)), 2):
        answer = Future()
        answer.set_result(memoryview(encoded.zshard))
        parts.append(
            Part(
                range=answer,
                places=region.places[wanted[own]].tolist(),
                starts=encoded.chunk_offsets[region.chunks[wanted[own]]].tolist(),
                nbytes=sizes[own].tolist(),
            )
        )
    absent = np.delete(region.places, wanted).tolist()
    return region, Fetched(parts=parts, absent=absent)


def make_slot(profile):
    side = get_profile(profile).chunk_side
    return np.full((chunks_per_axis(BOX, side),) * 3 + (side,) * 3, STALE, np.int16)


@pytest.mark.parametrize("start", STARTS)
def test_touched_places_are_written_and_no_others(volume, stored, start):
    profile, encoded = stored
    region, fetched = fetch(encoded, profile, start)
    slot, stats = make_slot(profile), Stats()
    ChunkDecoder(profile, stats).decode(fetched, slot)
    side = slot.shape[-1]
    padded = np.pad(volume, 2 * BOX, constant_values=-1024)
    first = np.asarray(start) // side * side + 2 * BOX
    for place, chunk in enumerate(slot.reshape(-1, side, side, side)):
        at = first + side * np.asarray(np.unravel_index(place, slot.shape[:3]))
        expected = padded[tuple(slice(a, a + side) for a in at)]
        np.testing.assert_array_equal(chunk, expected if place in region.places else STALE)
    sizes = [len(chunk) for _, chunk in fetched.stored()]
    assert 0 < len(sizes) < len(region.places)
    copied = 0 if profile != "gpu" else sum(sizes) - (CRC_BYTES + 4) * len(sizes)
    assert stats.counters() == {
        "chunks": len(sizes),
        "bytes_ideal": sum(sizes),
        "voxels_decoded": len(sizes) * side**3,
        "bytes_copied": copied,
    }


def test_a_damaged_chunk_is_an_error(stored):
    profile, encoded = stored
    _, fetched = fetch(encoded, profile, STARTS[1])
    part = fetched.parts[1]
    damaged = bytearray(encoded.zshard)
    damaged[part.starts[-1] + 20] ^= 4
    answer = Future()
    answer.set_result(memoryview(damaged))
    bad = Part(range=answer, places=part.places, starts=part.starts, nbytes=part.nbytes)
    with pytest.raises(CorruptShardError, match="CRC-32C"):
        ChunkDecoder(profile, Stats()).decode(
            Fetched(parts=[fetched.parts[0], bad], absent=[]), make_slot(profile)
        )


def allocated_bytes(profile, encoded):
    """Most that Python and NumPy hold at once beyond what was there, in the second decode."""
    decoder, slot = ChunkDecoder(profile, Stats()), make_slot(profile)
    _, fetched = fetch(encoded, profile, STARTS[1])
    decoder.decode(fetched, slot)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        decoder.decode(fetched, slot)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


ALLOWED = 16 * 1024
"""Views, integers and (in tests) what checks signatures; the smallest chunk takes 64 KiB."""


def test_a_decode_allocates_next_to_nothing(stored):
    assert allocated_bytes(*stored) < ALLOWED


def test_a_copy_of_a_chunk_would_show(stored, monkeypatch):
    def copying(buf, out, profile):
        scratch = np.empty_like(out)
        copied = decode_chunk(buf, scratch, profile)
        out[:] = scratch
        return copied

    monkeypatch.setattr(decoding, "decode_chunk", copying)
    assert allocated_bytes(*stored) >= 64 * 1024


def runs_beside(call, seconds=20.0):
    """Whether another thread gets to run while ``call`` does, which keeps the GIL if it can."""
    ran, stop = threading.Event(), threading.Event()

    def beside():
        while not stop.is_set():
            if started.is_set():
                ran.set()
            time.sleep(0)

    started = threading.Event()
    interval = sys.getswitchinterval()
    other = threading.Thread(target=beside)
    other.start()
    sys.setswitchinterval(1e3)  # nobody is made to let go
    try:
        started.set()
        end = time.monotonic() + seconds
        while not ran.is_set() and time.monotonic() < end:
            call()
        return ran.is_set()
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        other.join()


def test_checksum_and_decoder_work_without_the_gil(stored):
    profile, encoded = stored
    at = int(np.argmax(encoded.chunk_nbytes))
    first, nbytes = int(encoded.chunk_offsets[at]), int(encoded.chunk_nbytes[at])
    chunk = memoryview(encoded.zshard)[first : first + nbytes]
    out = np.empty((get_profile(profile).chunk_side,) * 3, np.int16)
    body = chunk[:-CRC_BYTES]
    assert runs_beside(lambda: get_profile(profile).decompress(body, out))
    assert runs_beside(lambda: crc32c(memoryview(encoded.zshard)[: 1 << 17]))


def test_a_checksum_with_the_gil_would_show():
    body = np.zeros(1 << 17, np.uint8)
    assert not runs_beside(lambda: google_crc32c.value(body), seconds=0.3)


def block_of(values, item_bytes):
    shuffled = Shuffle(elementsize=item_bytes).encode(np.ascontiguousarray(values))
    return memoryview(numcodecs.lz4.compress(shuffled))[4:]


def noise_with_tail(equal):
    """One int16 chunk of noise, so that bytes hardly repeat, with ``equal`` bytes that do."""
    raw = np.random.default_rng(0).integers(0, 256, 65536, dtype=np.uint8)
    raw[-equal:] = 7
    return np.frombuffer(Shuffle(elementsize=2).decode(raw.tobytes()), np.int16).reshape(32, 32, 32)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
@pytest.mark.parametrize("kind", ["noise", "constant", "ct"])
def test_blosc_decodes_lz4_blocks(volume, dtype, kind):
    values = {
        "noise": np.random.default_rng(1).integers(-(2**15), 2**15, (32,) * 3),
        "constant": np.full((32,) * 3, -1024),
        "ct": volume[64:96, 32:64, 32:64],
    }[kind].astype(dtype)
    block, out = block_of(values, values.itemsize), np.empty_like(values)
    copied = decode_shuffled_lz4(block, out, values.itemsize)
    np.testing.assert_array_equal(out, values)
    assert (copied > len(block)) == (kind == "noise" or len(block) >= values.nbytes)


def test_a_block_as_long_as_its_voxels_is_not_taken_for_them():
    """Blosc copies a block of just that length instead of decoding it."""
    for equal in range(200, 400):
        values = noise_with_tail(equal)
        block = block_of(values, 2)
        if len(block) == values.nbytes:
            break
    assert len(block) == values.nbytes
    out = np.empty_like(values)
    decode_shuffled_lz4(block, out, 2)
    np.testing.assert_array_equal(out, values)


@pytest.mark.parametrize("cut", [1, 100])
def test_a_cut_block_is_an_error(volume, cut):
    block, out = block_of(volume[64:96, 32:64, 32:64], 2), np.empty((32,) * 3, np.int16)
    with pytest.raises(RuntimeError):
        decode_shuffled_lz4(block[:-cut], out, 2)
