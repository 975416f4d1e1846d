"""Time a set takes under the GIL: what bounds the sets a second of one process, whatever its cores.

What lets go of the GIL (decompressor, checksum, long copies) is replaced by stand-ins that return
at once; the processor time of all that is left is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np

from shards.codec import CRC_BYTES
from shards.decoding import ChunkDecoder
from shards.fetched import Bytes, Fetched, Part
from shards.stats import Stats
from train.loader.base import CTLoader
from train.loader.filling import PROFILE, StoredFiller
from train.loader.params import pack_params
from train.loader.visits import Visit

VISITS = 64
TURNS = 15
"""The least of these counts: other work on the machine only adds."""


@dataclass(frozen=True)
class Fetcher:
    """Has every range at once, without reading it."""

    answer: memoryview

    def submit(
        self, path: str, offset: int, nbytes: int, priority: int = 0, *, fresh: bool = False
    ) -> Bytes:
        """See ``RangeFetcher``."""
        future: Bytes = Bytes()
        future.set_result(self.answer)
        return future

    def close(self) -> None:
        """See ``RangeFetcher``."""


def held_us(loader: CTLoader, fetched: Fetched) -> dict[str, float]:
    """Microseconds a set by stage.

    Args:
        loader: of the dataset.
        fetched: a set; its absent chunks are left out.
    """
    # Filling lets go of the GIL, and would count as processor time.
    fetched = Fetched(parts=fetched.parts, absent=[])
    visits = [loader.inputs.scheduler.visit(index, 0) for index in range(VISITS)]
    profile = loader.inputs.profile
    slot_shape = loader.inputs.chunks_shape
    decoder, out = ChunkDecoder(profile, Stats()), np.zeros(slot_shape, dtype=np.int16)
    tasks: dict[str, tuple[Callable[[], object], int]] = {
        "plan": (lambda: [loader.inputs.scheduler.visit(n, 0) for n in range(VISITS)], VISITS),
        "fetch": (lambda: _fetch(loader, visits), VISITS),
        "params": (lambda: _params(loader, visits), VISITS),
        "decode": (lambda: decoder.decode(fetched, out), 1),
    }
    if profile == PROFILE:
        (slot,) = loader.inputs.slot_layout.carve(
            np.zeros(loader.inputs.slot_layout.nbytes, dtype=np.uint8)
        )
        filler, short = StoredFiller(Stats()), _shortened(fetched)
        tasks["pack"] = (lambda: filler.fill(short, slot), 1)
    return {name: round(_least(task, fetched) * 1e6 / n, 1) for name, (task, n) in tasks.items()}


def _least(task: Callable[[], object], fetched: Fetched) -> float:
    times = []
    for _ in range(TURNS):
        with _stand_ins(fetched):
            start = time.thread_time()
            task()
            times.append(time.thread_time() - start)
    return min(times)


@contextmanager
def _stand_ins(fetched: Fetched) -> Iterator[None]:
    """Neither decompresses nor sums: checksums come from the chunks themselves, in their order."""
    sums = iter([int.from_bytes(chunk[-CRC_BYTES:], "little") for _, chunk in fetched.stored()])
    with (
        patch("shards.codec.crc32c", lambda body: next(sums)),
        patch("numcodecs.blosc.decompress", lambda body, out: None),
    ):
        yield


def _fetch(loader: CTLoader, visits: list[Visit]) -> None:
    source: Any = loader.inputs.source(Fetcher(memoryview(b"")), Stats())
    for visit in visits:
        source.fetch(visit.item, visit.region)
        source.done(visit.item)


def _params(loader: CTLoader, visits: list[Visit]) -> None:
    for visit in visits:
        pack_params(visit.draws, visit.region.origin_zyx, loader.views.sizes, loader.resampler)


def _shortened(fetched: Fetched) -> Fetched:
    """The same chunks with blocks of 16 bytes, as long copies let go of the GIL."""
    parts = []
    for part in fetched.parts:
        view = part.range.result()
        chunks = [
            bytes(view[start : start + 20]) + bytes(view[start + n - CRC_BYTES : start + n])
            for start, n in zip(part.starts, part.nbytes, strict=True)
        ]
        answer: Bytes = Bytes()
        answer.set_result(memoryview(b"".join(chunks)))
        sizes = [len(chunk) for chunk in chunks]
        starts = [n * sizes[0] for n in range(len(sizes))]
        parts.append(Part(range=answer, places=part.places, starts=starts, nbytes=sizes))
    return Fetched(parts=parts, absent=[])
