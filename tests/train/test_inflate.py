"""Stored chunks for the GPU to decode: what a slot then holds, and the graph after the decoder."""

import itertools
import logging
import struct
import tracemalloc
from concurrent.futures import Future
from dataclasses import replace

import nibabel
import numcodecs.lz4
import numpy as np
import pytest
from crc32c import crc32c
from numcodecs.shuffle import Shuffle

from coralbay.recipes import tiny
from shards.codec import encode_volume
from shards.decoding import ChunkDecoder
from shards.errors import CorruptShardError
from shards.fetched import Fetched, Part
from shards.regions import chunks_per_axis, cover
from shards.sources import touched
from shards.stats import Stats
from shards.testing import write_toy_dataset
from train.data import StreamConfig
from train.errors import UsageError
from train.loader.base import CTLoader
from train.loader.filling import (
    ALIGN,
    CHUNK_BYTES,
    LONGEST_BLOCK,
    StoredFiller,
    choose_decode_on,
    spare_bytes,
)
from train.loader.settings import LoaderConfig
from train.loader.slots import SlotLayout

BOX = 97
N = chunks_per_axis(BOX, 32)
SHAPE = (N, N, N, 32, 32, 32)
STALE = 12345


@pytest.fixture(scope="module")
def hu(ct_data):
    """A part of a real CT, with air around it."""
    path = sorted((ct_data / "totalsegmentator").rglob("*.nii.gz"))[0]
    volume = np.asanyarray(nibabel.load(path).dataobj)[:120, :130, :110]
    volume = np.clip(np.rint(volume), -1024, 3071).astype(np.int16)
    volume[:40, :40] = -1024
    return volume


def make_slot(spare=True):
    layout = SlotLayout(
        chunks_shape=SHAPE, params_shape=(1, 1), spare_bytes=spare_bytes(SHAPE) if spare else 0
    )
    (slot,) = layout.carve(np.zeros(layout.nbytes, np.uint8))
    slot.chunks[:] = STALE
    slot.table[:] = -1
    return slot


def fetch(encoded, shape, start):
    region = cover(start, BOX, shape, 32)
    wanted, sizes = touched(region, encoded.chunk_nbytes, 0)
    answer = Future()
    answer.set_result(memoryview(encoded.zshard))
    part = Part(
        range=answer,
        places=region.places[wanted].tolist(),
        starts=encoded.chunk_offsets[region.chunks[wanted]].tolist(),
        nbytes=sizes.tolist(),
    )
    return region, Fetched(parts=[part], absent=np.delete(region.places, wanted).tolist())


def inflated(slot):
    """What the operator gives: an LZ4 block from each row of the table, one after another."""
    header = CHUNK_BYTES.to_bytes(4, "little")
    blocks = [
        slot.stored[offset : offset + size].tobytes() for offset, size in slot.table.T.tolist()
    ]
    return np.stack(
        [np.frombuffer(numcodecs.lz4.decompress(header + block), np.uint8) for block in blocks]
    )


def unshuffled(raw, grid=(N, N, N)):
    shuffle = Shuffle(elementsize=2)
    voxels = [np.frombuffer(shuffle.decode(chunk.tobytes()), np.int16) for chunk in raw]
    return np.stack(voxels).reshape(*grid, 32, 32, 32)


@pytest.mark.parametrize("start", [(0, 0, 0), (-30, 20, 5), (17, 31, 64), (60, -90, 40)])
def test_the_packed_chunks_are_those_the_cpu_decodes(hu, start):
    encoded = encode_volume(hu, "gpu")
    region, fetched = fetch(encoded, hu.shape, start)
    slot, stats, cpu_stats = make_slot(), Stats(), Stats()
    StoredFiller(stats).fill(fetched, slot)
    got = unshuffled(inflated(slot)).reshape(-1, 32, 32, 32)
    expected = np.full(SHAPE, -1024, np.int16)  # the graph never reads a place not touched
    ChunkDecoder("gpu", cpu_stats).decode(fetched, expected)
    np.testing.assert_array_equal(got, expected.reshape(got.shape))
    assert set(np.unique(slot.table[0] % ALIGN)) == {0}
    assert len(region.places) <= got.shape[0]
    counted, cpu = stats.counters(), cpu_stats.counters()
    assert counted.pop("bytes_copied") == cpu.pop("bytes_copied")
    assert counted == cpu
    assert stats.stages()["decode"].bytes == cpu_stats.stages()["decode"].bytes


def test_noise_fits_into_a_slot():
    """Its LZ4 blocks are longer than its voxels: the worst that can come."""
    noise = np.random.default_rng(0).integers(-(2**15), 2**15, (128,) * 3).astype(np.int16)
    encoded = encode_volume(noise, "gpu")
    assert encoded.chunk_nbytes.min() > CHUNK_BYTES
    _, fetched = fetch(encoded, noise.shape, (0, 0, 0))
    slot = make_slot()
    StoredFiller(Stats()).fill(fetched, slot)
    expected = np.empty(SHAPE, np.int16)
    ChunkDecoder("gpu", Stats()).decode(fetched, expected)
    np.testing.assert_array_equal(unshuffled(inflated(slot)), expected)
    # And so do blocks as long as LZ4_compressBound allows.
    assert LONGEST_BLOCK == CHUNK_BYTES + CHUNK_BYTES // 255 + 16
    block = -(-LONGEST_BLOCK // ALIGN) * ALIGN
    assert len(slot.stored) >= int(slot.table[0].min()) + N**3 * block


def test_a_block_that_is_too_long_is_refused(hu):
    answer = Future()
    body = CHUNK_BYTES.to_bytes(4, "little") + bytes(LONGEST_BLOCK + 1)
    answer.set_result(memoryview(body + struct.pack("<I", crc32c(body))))
    part = Part(range=answer, places=[0], starts=[0], nbytes=[len(body) + 4])
    with pytest.raises(CorruptShardError, match="more than"):
        StoredFiller(Stats()).fill(Fetched(parts=[part], absent=[]), make_slot())


@pytest.mark.parametrize(("at", "message"), [(0, "CRC-32C"), (30, "CRC-32C")])
def test_a_damaged_chunk_is_an_error_before_it_reaches_the_gpu(hu, at, message):
    encoded = encode_volume(hu, "gpu")
    _, fetched = fetch(encoded, hu.shape, (17, 31, 64))
    part = fetched.parts[0]
    damaged = bytearray(encoded.zshard)
    damaged[part.starts[3] + at] ^= 1
    answer = Future()
    answer.set_result(memoryview(damaged))
    bad = Part(range=answer, places=part.places, starts=part.starts, nbytes=part.nbytes)
    with pytest.raises(CorruptShardError, match=message):
        StoredFiller(Stats()).fill(Fetched(parts=[bad], absent=[]), make_slot())


def test_packing_allocates_next_to_nothing(hu):
    encoded = encode_volume(hu, "gpu")
    _, fetched = fetch(encoded, hu.shape, (17, 31, 0))
    slot, filler = make_slot(), StoredFiller(Stats())
    filler.fill(fetched, slot)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        filler.fill(fetched, slot)
        assert tracemalloc.get_traced_memory()[1] - before < 32 * 1024
    finally:
        tracemalloc.stop()


def test_the_graph_after_the_decoder_makes_the_region(hu):
    """On the CPU, fed with what the decoder gives."""
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import Pipeline, fn, types

    from train.loader.graph import _assemble
    from train.loader.inflate import unshuffle

    encoded = encode_volume(hu, "gpu")
    slots = []
    for start in [(17, 31, 0), (-30, 20, 5)]:
        slots.append(make_slot())
        StoredFiller(Stats()).fill(fetch(encoded, hu.shape, start)[1], slots[-1])
    pipeline = Pipeline(batch_size=2, num_threads=1, device_id=None, exec_dynamic=True)
    with pipeline:
        raw = fn.external_source(
            source=lambda: [inflated(slot) for slot in slots], dtype=types.UINT8, ndim=2
        )
        pipeline.set_outputs(_assemble(unshuffle(raw, SHAPE), SHAPE))
    pipeline.build()
    (regions,) = pipeline.run()
    for slot, region in zip(slots, regions, strict=True):
        voxels = unshuffled(inflated(slot)).transpose(0, 3, 1, 4, 2, 5).reshape((N * 32,) * 3)
        got = np.array(region)
        assert got.dtype == np.int16
        np.testing.assert_array_equal(got[..., 0], voxels)


def test_the_graph_is_fed_the_bytes_in_use_alone(hu):
    pytest.importorskip("nvidia.dali")
    from train.loader.inflate import inputs

    encoded = encode_volume(hu, "gpu")
    slot = make_slot()
    _, fetched = fetch(encoded, hu.shape, (17, 31, 0))
    StoredFiller(Stats()).fill(fetched, slot)
    (stored,), (table,) = inputs([slot])
    assert np.shares_memory(stored, slot.stored)
    assert table is slot.table
    assert len(stored) == (slot.table[0] + slot.table[1]).max()
    assert len(stored) < 1.05 * sum(fetched.parts[0].nbytes) + 4096


def gpu_config(decode_on="auto"):
    """As on a machine with a GPU, wherever this runs."""
    config = LoaderConfig(batch_size=1, stream=StreamConfig(decode_on=decode_on))
    object.__setattr__(config, "device", "gpu")
    return config


def test_the_cpu_decodes_where_the_gpu_cannot_and_says_so(monkeypatch, caplog):
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn

    def refuse(*args, **kwargs):
        raise RuntimeError("no inflate in this build\nand a trace")

    monkeypatch.setattr(fn.decoders, "inflate", refuse)
    monkeypatch.setattr("torch.cuda.current_device", lambda: None)  # graphs are made for the CPU
    with caplog.at_level(logging.WARNING):
        assert choose_decode_on(gpu_config(), "gpu") == "cpu"
    (line,) = caplog.messages
    assert line.startswith("chunks of profile gpu are decoded on the CPU: DALI's decoders.inflate")
    assert line.endswith("(RuntimeError: no inflate in this build)")
    with pytest.raises(UsageError, match="no inflate in this build"):
        choose_decode_on(gpu_config(decode_on="gpu"), "gpu")
    monkeypatch.delattr(fn.decoders, "inflate")
    assert choose_decode_on(gpu_config(), "gpu") == "cpu"


def test_other_voxels_are_a_refusal(monkeypatch):
    pytest.importorskip("nvidia.dali")
    from train.loader import inflate

    # What stands for the operator decodes what the loader's own packing gives it.
    monkeypatch.setattr(inflate, "_try", lambda slot: unshuffled(inflated(slot), (3, 1, 1)))
    assert inflate.refusal() is None
    assert choose_decode_on(gpu_config(), "gpu") == "gpu"
    monkeypatch.setattr(
        inflate, "_try", lambda slot: unshuffled(inflated(slot), (3, 1, 1))[[1, 0, 2]]
    )
    assert "other voxels" in inflate.refusal()


def test_only_profile_gpu_for_dali_on_a_gpu_is_decoded_there(caplog):
    with caplog.at_level(logging.INFO):
        assert choose_decode_on(gpu_config(), "balanced") == "cpu"
        assert choose_decode_on(gpu_config(decode_on="cpu"), "gpu") == "cpu"
    assert not caplog.messages
    with pytest.raises(UsageError, match="profile balanced"):
        choose_decode_on(gpu_config(decode_on="gpu"), "balanced")
    with pytest.raises(UsageError, match="not made by DALI on a GPU"):
        choose_decode_on(replace(gpu_config(decode_on="gpu"), device="cpu"), "gpu")


def test_the_decoders_node_takes_these_arguments():
    """As far as a graph gets where there is no GPU: building needs one."""
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import Pipeline, fn

    from train.loader import inflate

    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None, exec_dynamic=True)
    with pipeline:
        stored, table = fn.external_source(
            source=lambda: ([], []),
            num_outputs=2,
            dtype=inflate.INPUT_TYPES,
            ndim=inflate.INPUT_NDIM,
        )
        voxels = inflate.inflate(stored, table, SHAPE)
    assert voxels.device == "gpu"
    with pytest.raises((KeyError, TypeError), match="chunk_sises"), pipeline:
        fn.decoders.inflate(stored.gpu(), chunk_sises=table[0], shape=[8])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("gpu"), 4, shape=(70, 100, 130), profile="gpu")


def take(dataset, n, decode_on="auto", feed="threads", **options):
    options = {"batch_size": 2, "threads": 2, "prefetch": 2} | options
    options["stream"] = StreamConfig(decode_on=decode_on, feed=feed)
    with CTLoader(dataset, tiny().views, LoaderConfig(**options)) as loader:
        return loader.decode_on, list(itertools.islice(loader, n))


def test_on_the_cpu_the_gpu_profile_gives_the_same_batches(dataset, caplog):
    with caplog.at_level(logging.INFO):
        _, expected = take(dataset, 3, loader="reference", precision="float32")
        decode_on, got = take(dataset, 3, precision="float32")
    assert decode_on == "cpu"
    assert any(
        "decoded on the CPU: views are not made by DALI on a GPU" in m for m in caplog.messages
    )
    for a, b in zip(got, expected, strict=True):
        for x, y in zip(a.views, b.views, strict=True):
            np.testing.assert_allclose(x, y, atol=2e-3, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("feed", ["threads", "subprocess"])
@pytest.mark.parametrize("poison", [False, True])
def test_chunks_decoded_on_the_gpu_give_the_same_batches(dataset, poison, feed):
    import torch

    cpu, expected = take(dataset, 12, device="gpu", decode_on="cpu")
    gpu, got = take(dataset, 12, device="gpu", decode_on="gpu", feed=feed, poison=poison)
    assert (cpu, gpu) == ("cpu", "gpu")
    for a, b in zip(got, expected, strict=True):
        assert a.keys == b.keys
        for x, y in zip(a.views, b.views, strict=True):
            assert torch.equal(x, y)
