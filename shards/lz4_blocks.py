"""Decodes byte-shuffled LZ4 blocks with Blosc, in one call and without the GIL.

numcodecs decodes such a chunk in two calls, through two new arrays, and keeps the GIL. Blosc 1
does the same steps inside, so a block is given to it as the only block of a container: 16 bytes of
header, where the block starts, its length, then the block. The format is frozen:
https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst
"""

from __future__ import annotations

import struct
import threading

import numcodecs.blosc
import numcodecs.lz4
from jaxtyping import Integer
from numcodecs.shuffle import Shuffle
from numpy import ndarray

_FRAME = struct.Struct("<BBBBIIIII")
"""Format, LZ4 format, flags, voxel bytes; decoded, block and container bytes; start, length."""
_BLOCK_AT = _FRAME.size
_START_AT = 20
_BLOSC_FORMAT, _LZ4_FORMAT = 2, 1
_FLAGS = 0x01 | 0x10 | 1 << 5
"""Bytes are shuffled; the block is one stream, not one for each byte of a voxel; LZ4."""

_memory = threading.local()


def decode_shuffled_lz4(block: memoryview, out: Integer[ndarray, "c c c"], item_bytes: int) -> int:
    """Decode one LZ4 block that holds the low bytes of all voxels, then the high bytes.

    Args:
        block: the block, no header.
        out: where the voxels go, C-contiguous.
        item_bytes: bytes of a voxel.

    Returns:
        Bytes copied beside decoding.

    Raises:
        RuntimeError, ValueError: the block does not decode to the bytes of ``out``.
    """
    size, decoded = len(block), out.nbytes
    if size >= decoded:
        # Blosc takes a block of just the decoded length for bytes that are stored as they are.
        return _decode_in_steps(block, out, item_bytes)
    frame = _frame(_BLOCK_AT + decoded)
    total = _BLOCK_AT + size
    _FRAME.pack_into(
        frame,
        0,
        *(_BLOSC_FORMAT, _LZ4_FORMAT, _FLAGS, item_bytes),
        *(decoded, decoded, total, _START_AT, size),
    )
    frame[_BLOCK_AT:total] = block
    numcodecs.blosc.decompress(frame[:total], out)
    return size


def _frame(nbytes: int) -> memoryview:
    """Memory of this thread, kept from block to block."""
    frame: memoryview | None = getattr(_memory, "frame", None)
    if frame is None or len(frame) < nbytes:
        frame = _memory.frame = memoryview(bytearray(nbytes))
    return frame


def _decode_in_steps(block: memoryview, out: Integer[ndarray, "c c c"], item_bytes: int) -> int:
    header = out.nbytes.to_bytes(4, "little")
    raw = numcodecs.lz4.decompress(header + bytes(block))
    Shuffle(elementsize=item_bytes).decode(raw, out)
    return 2 * len(block) + len(raw)
