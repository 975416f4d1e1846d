"""Memory of one item between decoding and the graph; plain arrays over one block of memory.

The block may be pinned, or shared between processes, so this module knows neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int16, Int64, UInt8
from numpy import ndarray

PAGE = 4096
"""Slots and their parts start on whole pages."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Slot:
    """Memory for one item."""

    number: int
    """Its place among the slots of its block."""
    chunks: Int16[ndarray, "nz ny nx c c c"]
    """Covering chunks of the base box, HU."""
    params: Float32[ndarray, "v p"]
    """View parameters, packed as ``params`` says."""
    stored: UInt8[ndarray, " bytes"]
    """The memory of ``chunks`` and some more, for stored bytes that the graph decodes itself."""
    table: Int64[ndarray, "2 n"]
    """Where each chunk lies in ``stored``, and its bytes, if it is used so."""


@dataclass(frozen=True, kw_only=True)
class SlotLayout:
    """What a slot holds.

    Attributes:
        chunks_shape: ``(nz, ny, nx, c, c, c)``.
        params_shape: ``(views, parameters)``.
        spare_bytes: more room in ``Slot.stored`` than the decoded chunks take.
    """

    chunks_shape: tuple[int, ...]
    params_shape: tuple[int, int]
    spare_bytes: int = 0

    @property
    def nbytes(self) -> int:
        """Of one slot."""
        return sum(self._parts)

    @property
    def _parts(self) -> tuple[int, int, int]:
        stored = math.prod(self.chunks_shape) * np.dtype(np.int16).itemsize + self.spare_bytes
        params = math.prod(self.params_shape) * np.dtype(np.float32).itemsize
        table = 2 * math.prod(self.chunks_shape[:3]) * np.dtype(np.int64).itemsize
        return _whole_pages(stored), _whole_pages(params), _whole_pages(table)

    def carve(self, block: UInt8[ndarray, " block"]) -> list[Slot]:
        """As many slots as a block of memory holds."""
        count = len(block) // self.nbytes
        return [self._slot(n, block[n * self.nbytes : (n + 1) * self.nbytes]) for n in range(count)]

    def _slot(self, number: int, block: UInt8[ndarray, " block"]) -> Slot:
        stored, params, table = np.split(block, np.cumsum(self._parts[:2]))
        n_params, n_chunks = math.prod(self.params_shape), math.prod(self.chunks_shape[:3])
        n_voxels = math.prod(self.chunks_shape)
        return Slot(
            number=number,
            chunks=stored[: 2 * n_voxels].view(np.int16).reshape(self.chunks_shape),
            params=params[: 4 * n_params].view(np.float32).reshape(self.params_shape),
            stored=stored,
            table=table[: 16 * n_chunks].view(np.int64).reshape(2, n_chunks),
        )


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE
