"""What the machine gives for the bytes of a loader's sets with nothing around them, to be timed.

Each limit runs as the stage that it bounds does: on the same sets, as many at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Int16
from numpy import ndarray

from shards.codec import CRC_BYTES
from shards.profiles import get_profile
from shards.store import Store, get_range
from train.loader.pace import Pace, in_this_thread, in_threads
from train.loader.stages import N_SETS, StageBench


class LimitBench:
    """The limits of the stages of a bench.

    Args:
        bench: whose sets.
    """

    def __init__(self, bench: StageBench) -> None:
        self._bench = bench
        self._profile = get_profile(bench.loader.inputs.profile)
        shape = bench.loader.inputs.chunks_shape
        self._voxels = np.ones(shape, dtype=np.int16).reshape(-1, *shape[3:])

    def read(self, seconds: float, in_flight: int) -> Pace:
        """Ask for the same ranges and throw them away: bare reads, or bare ranged GETs."""
        store, asked = self._bench.loader.dataset.store, self._bench.asked
        pace = in_threads(in_flight, seconds, lambda n: _raw_read(store, *asked[n % len(asked)]))
        return Pace(sets=pace.sets * N_SETS / len(asked), seconds=pace.seconds)

    def memcpy(self, seconds: float, threads: int) -> Pace:
        """Copy as many bytes as decoding writes, from memory that no cache holds whole."""

        def one(number: int) -> None:
            with self._slot() as slot:
                for place, _ in self._stored(number):
                    np.copyto(slot[place], self._voxels[place])

        return in_threads(threads, seconds, one)

    def codec(self, seconds: float, threads: int) -> Pace:
        """Decompress without checksum, index or fill."""

        def one(number: int) -> None:
            with self._slot() as slot:
                for place, stored in self._stored(number):
                    self._profile.decompress(stored[:-CRC_BYTES], slot[place])

        return in_threads(threads, seconds, one)

    def h2d(self, seconds: float) -> Pace:
        """Copy slots from page-locked memory to the GPU."""
        shape = self._bench.loader.inputs.chunks_shape
        slot = torch.ones(shape, dtype=torch.int16, pin_memory=True)
        there = torch.empty(shape, dtype=torch.int16, device="cuda")

        def one() -> None:
            there.copy_(slot, non_blocking=True)
            torch.cuda.synchronize()

        return in_this_thread(seconds, one)

    def _stored(self, number: int) -> Iterator[tuple[int, memoryview]]:
        """Places in the slot and stored bytes of one set's chunks."""
        yield from self._bench.fetched[number % N_SETS].stored()

    @contextmanager
    def _slot(self) -> Iterator[Int16[ndarray, "n c c c"]]:
        with self._bench.slot() as slot:
            yield slot.reshape(-1, *slot.shape[3:])


def _raw_read(store: Store, path: str, offset: int, nbytes: int) -> None:
    """The cheapest way to these bytes: the file system where there is one."""
    if store.folder is None:
        get_range(store, path, offset, nbytes)
        return
    with open(store.folder / path, "rb", buffering=0) as file:
        os.pread(file.fileno(), nbytes, offset)
