"""Stored chunks of a region, on their way from a storage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from jaxtyping import Int64
from numpy import ndarray

Bytes = Future[memoryview]


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """One stored chunk: part of a range that was asked for."""

    range: Bytes
    start: int
    """Offset in the range."""
    nbytes: int

    def result(self) -> memoryview:
        """The chunk's bytes, waiting for the range if need be; raises why it could not be read."""
        return self.range.result()[self.start : self.start + self.nbytes]


@dataclass(frozen=True, kw_only=True, eq=False)
class Fetched:
    """The chunks that a region touches; none for an absent chunk or one outside the volume."""

    places: Int64[ndarray, " n"]
    """In the slot."""
    pieces: list[Piece | None]

    def when_done(self, call: Callable[[], object]) -> None:
        """Call once when every range has come or failed: here, or in the thread of the last one."""
        when_all_done({piece.range for piece in self.pieces if piece is not None}, call)

    def release(self) -> None:
        """Let go of the bytes.

        Ranges keep whom they called when they were done, and so all that those refer to: with the
        pieces still here, megabytes would stay until the collector of cycles comes by.
        """
        self.pieces.clear()

    def wait(self) -> None:
        """Wait for all ranges, whether they come or fail."""
        for piece in self.pieces:
            if piece is not None:
                piece.range.exception()


def when_all_done(futures: Iterable[Bytes], call: Callable[[], object]) -> None:
    """Call once when all futures are done, at once if there is none."""
    waiting = list(futures)
    # One more than there are, so that it is called after the loop at the earliest.
    left = len(waiting) + 1
    lock = threading.Lock()

    def one_less(_: object = None) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = not left
        if last:
            call()

    for future in waiting:
        future.add_done_callback(one_less)
    one_less()
