"""What fills a slot: decoded voxels, or stored chunks that the GPU decodes. No torch, no DALI.

For the GPU a slot takes the LZ4 blocks of profile ``gpu`` as they are, checked by their CRC-32C,
one after another, and a table of where each place's block lies. ``inflate`` does the rest. Every
place has a block: where nothing is stored, one that decodes to fill, which all such places share.
"""

from __future__ import annotations

import logging
import math
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from shards.codec import chunk_body
from shards.decoding import ChunkDecoder
from shards.errors import CorruptShardError
from shards.fetched import Fetched
from shards.profiles import get_profile, lz4_block
from shards.schema import FILL_HU
from shards.stats import Stats
from train.errors import UsageError
from train.loader.settings import LoaderConfig
from train.loader.slots import Slot

logger = logging.getLogger(__name__)

DecodeOn = Literal["cpu", "gpu"]

PROFILE = "gpu"
"""The profile whose chunks a GPU can decode."""
_SIDE = get_profile(PROFILE).chunk_side
CHUNK_BYTES = _SIDE**3 * 2
"""Of a decoded chunk of that profile."""
ALIGN = 16
"""Blocks start at multiples of this; GPU decoders take any, and like these better."""


def _fill_block() -> bytes:
    """The LZ4 block of a chunk that is all fill."""
    chunk = np.full((_SIDE,) * 3, FILL_HU, dtype=np.int16)
    return bytes(lz4_block(memoryview(get_profile(PROFILE).compress(chunk)), CHUNK_BYTES))


_FILL_BLOCK = _fill_block()


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


LONGEST_BLOCK = CHUNK_BYTES + CHUNK_BYTES // 255 + 16
"""What ``LZ4_compressBound`` allows for a chunk that cannot be compressed."""
_FIRST_AT = _aligned(len(_FILL_BLOCK))


def spare_bytes(chunks_shape: tuple[int, ...]) -> int:
    """Room that stored chunks may need beyond that of decoded ones: noise gets longer by LZ4.

    Args:
        chunks_shape: ``(nz, ny, nx, c, c, c)`` of a slot of profile ``gpu``.
    """
    return _FIRST_AT + math.prod(chunks_shape[:3]) * (_aligned(LONGEST_BLOCK) - CHUNK_BYTES)


@runtime_checkable
class SlotFiller(Protocol):
    """Turns what was fetched into what the graph reads. Thread-safe."""

    def fill(self, fetched: Fetched, slot: Slot) -> None:
        """Put a region's chunks into a slot.

        Raises:
            CorruptShardError: a chunk is not as written.
            ShardError, OSError: a chunk could not be read.
        """


class DecodedFiller:
    """Decodes here, into ``Slot.chunks``."""

    def __init__(self, decoder: ChunkDecoder) -> None:
        self._decoder = decoder

    def fill(self, fetched: Fetched, slot: Slot) -> None:
        """See ``SlotFiller``."""
        self._decoder.decode(fetched, slot.chunks)


class StoredFiller:
    """Packs LZ4 blocks into ``Slot.stored``, and where they are into ``Slot.table``.

    Args:
        stats: where to count, as ``ChunkDecoder`` does: ``voxels_decoded`` are those that the GPU
            will decode from stored chunks, ``bytes_copied`` those of the blocks.
    """

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def fill(self, fetched: Fetched, slot: Slot) -> None:
        """See ``SlotFiller``; a block that does not decode is found on the GPU alone."""
        fetched.wait()
        with self._stats.timed("decode", "busy_s"):
            chunks, stored, copied = _pack(fetched, slot)
        voxels = chunks * _SIDE**3
        self._stats.add("decode", items=1, nbytes=voxels * 2)
        self._stats.count(
            chunks=chunks, bytes_ideal=stored, voxels_decoded=voxels, bytes_copied=copied
        )


def _pack(fetched: Fetched, slot: Slot) -> tuple[int, int, int]:
    """Number of stored chunks, their bytes, and how many of these were copied."""
    room = slot.stored
    room[: len(_FILL_BLOCK)] = np.frombuffer(_FILL_BLOCK, dtype=np.uint8)
    offsets = [0] * slot.table.shape[1]
    sizes = [len(_FILL_BLOCK)] * len(offsets)
    at, chunks, stored, copied = _FIRST_AT, 0, 0, 0
    for place, chunk in fetched.stored():
        block = lz4_block(chunk_body(chunk), CHUNK_BYTES)
        size = len(block)
        if size > LONGEST_BLOCK:
            raise CorruptShardError(f"LZ4 block of {size} bytes, more than {LONGEST_BLOCK}")
        # NumPy copies without the GIL, a memoryview does not.
        room[at : at + size] = np.frombuffer(block, dtype=np.uint8)
        offsets[place], sizes[place] = at, size
        at += _aligned(size)
        chunks, stored, copied = chunks + 1, stored + len(chunk), copied + size
    slot.table[0], slot.table[1] = offsets, sizes
    return chunks, stored, copied


def make_filler(decode_on: DecodeOn, decoder: ChunkDecoder, stats: Stats) -> SlotFiller:
    """What fills slots for a graph that expects voxels (``cpu``) or stored chunks (``gpu``)."""
    return StoredFiller(stats) if decode_on == "gpu" else DecodedFiller(decoder)


def choose_decode_on(config: LoaderConfig, profile: str) -> DecodeOn:
    """Where chunks are decoded: on the GPU where config, profile and DALI allow it.

    Raises:
        UsageError: the GPU is insisted on, and cannot.
    """
    asked = config.stream.decode_on
    if asked == "cpu" or (asked == "auto" and profile != PROFILE):
        return "cpu"
    refusal = _refusal(config, profile)
    if refusal is None:
        logger.info("chunks are decoded on the GPU")
        return "gpu"
    if asked == "gpu":
        raise UsageError(f"decode_on gpu: {refusal}; auto lets the CPU decode")
    level = logging.WARNING if config.device == "gpu" else logging.INFO
    logger.log(level, "chunks of profile %s are decoded on the CPU: %s", PROFILE, refusal)
    return "cpu"


def _refusal(config: LoaderConfig, profile: str) -> str | None:
    """Why the GPU cannot decode, or None."""
    if profile != PROFILE:
        return f"chunks of profile {profile} are for the CPU"
    if config.device != "gpu" or config.loader != "dali":
        return "views are not made by DALI on a GPU"
    from train.loader.inflate import refusal

    return refusal()
