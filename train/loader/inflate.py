"""Decodes a slot's stored chunks on the GPU, by DALI's ``decoders.inflate``.

``filling.StoredFiller`` says what a slot then holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int16
from numpy import ndarray
from nvidia.dali import Pipeline, fn, types

from shards.codec import encode_volume
from shards.fetched import Bytes, Fetched, Part
from shards.profiles import get_profile
from shards.schema import FILL_HU
from shards.stats import Stats
from train.loader.filling import CHUNK_BYTES, PROFILE, StoredFiller, spare_bytes
from train.loader.slots import Slot, SlotLayout

_SIDE = get_profile(PROFILE).chunk_side

INPUT_TYPES = [types.UINT8, types.INT64]
INPUT_NDIM = [1, 2]
"""Of the two inputs that ``inputs`` gives."""


def inputs(slots: Sequence[Slot]) -> tuple[list[ndarray], list[ndarray]]:
    """Stored bytes, those in use alone, and tables of some slots: what the graph is fed."""
    used = [int((slot.table[0] + slot.table[1]).max()) for slot in slots]
    stored = [slot.stored[:end] for slot, end in zip(slots, used, strict=True)]
    return stored, [slot.table for slot in slots]


def inflate(stored: Any, table: Any, chunks_shape: tuple[int, ...]) -> Any:
    """Graph: stored chunks to voxels ``(nz, ny, nx, c, c, c)``, int16, on the GPU.

    Args:
        stored: blocks, uint8, on the CPU.
        table: offset and size of each, on the CPU: the operator reads both there.
        chunks_shape: ``(nz, ny, nx, c, c, c)``.
    """
    where = fn.cast(table, dtype=types.INT32)
    raw = fn.decoders.inflate(
        stored.gpu(),
        chunk_offsets=where[0],
        chunk_sizes=where[1],
        shape=[CHUNK_BYTES],
        algorithm="LZ4",
    )
    return unshuffle(raw, chunks_shape)


def unshuffle(raw: Any, chunks_shape: tuple[int, ...]) -> Any:
    """Graph: the low bytes, then the high bytes of each chunk ``(n, bytes)``, to voxels."""
    halves = fn.reshape(raw, shape=[-1, 2, CHUNK_BYTES // 2])
    pairs = fn.transpose(halves, perm=[0, 2, 1])
    return fn.reinterpret(pairs, shape=list(chunks_shape), dtype=types.INT16)


def refusal() -> str | None:
    """Why DALI does not decode on this GPU, in a line; None if it does, to the bit."""
    expected = np.full((3 * _SIDE, _SIDE, _SIDE), FILL_HU, dtype=np.int16)
    middle = expected[_SIDE : 2 * _SIDE]
    middle[:] = np.random.default_rng(0).integers(-1000, 400, middle.shape)
    try:
        got = _try(_filled(expected))
    except Exception as exc:
        lines = str(exc).strip().splitlines() or [""]
        return f"DALI's decoders.inflate does not work here ({type(exc).__name__}: {lines[0]})"
    if not np.array_equal(got.reshape(expected.shape), expected):
        return "DALI's decoders.inflate gives other voxels than the CPU"
    return None


def _filled(hu: Int16[ndarray, "z y x"]) -> Slot:
    """A slot as the loader fills it, with a column of three chunks; only the middle is stored."""
    encoded = encode_volume(hu, PROFILE)
    answer: Bytes = Bytes()
    answer.set_result(memoryview(encoded.zshard))
    offsets, nbytes = encoded.chunk_offsets[1:2].tolist(), encoded.chunk_nbytes[1:2].tolist()
    part = Part(range=answer, places=[1], starts=offsets, nbytes=nbytes)
    shape = (3, 1, 1, _SIDE, _SIDE, _SIDE)
    layout = SlotLayout(chunks_shape=shape, params_shape=(1, 1), spare_bytes=spare_bytes(shape))
    (slot,) = layout.carve(np.zeros(layout.nbytes, dtype=np.uint8))
    StoredFiller(Stats()).fill(Fetched(parts=[part], absent=[0, 2]), slot)
    return slot


def _try(slot: Slot) -> Int16[ndarray, "nz ny nx c c c"]:
    """One batch of one slot through the operator."""
    pipeline = Pipeline(
        batch_size=1,
        num_threads=1,
        device_id=torch.cuda.current_device(),
        exec_dynamic=True,
    )
    with pipeline:
        stored, table = fn.external_source(
            source=lambda: inputs([slot]), num_outputs=2, dtype=INPUT_TYPES, ndim=INPUT_NDIM
        )
        pipeline.set_outputs(inflate(stored, table, slot.chunks.shape))
    pipeline.build()
    (output,) = pipeline.run()
    voxels: Int16[ndarray, "nz ny nx c c c"] = np.array(output.as_cpu()[0])
    return voxels
