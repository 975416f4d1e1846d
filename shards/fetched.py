"""Stored chunks of a region, on their way from a storage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

Bytes = Future[memoryview]


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The stored chunks of a region that one range brings. Plain lists: they are read one by one.

    Attributes:
        range: what was asked for.
        places: of the chunks in the slot.
        starts: where each lies in the range.
        nbytes: how long each is.
    """

    range: Bytes
    places: list[int]
    starts: list[int]
    nbytes: list[int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Fetched:
    """The chunks that a region touches.

    Attributes:
        parts: the stored ones, by the range that brings them.
        absent: places in the slot where nothing is stored, or that lie outside the volume.
    """

    parts: list[Part]
    absent: list[int]

    def stored(self) -> Iterator[tuple[int, memoryview]]:
        """Place in the slot and bytes of each stored chunk, waiting for its range if need be.

        Raises:
            ShardError, OSError: a range could not be read.
        """
        for part in self.parts:
            view = part.range.result()
            for place, start, n in zip(part.places, part.starts, part.nbytes, strict=True):
                yield place, view[start : start + n]

    def when_done(self, call: Callable[[], object]) -> None:
        """Call once when every range has come or failed: here, or in the thread of the last one."""
        when_all_done([part.range for part in self.parts], call)

    def release(self) -> None:
        """Let go of the bytes.

        Ranges keep whom they called when they were done, and so all that those refer to: with the
        parts still here, megabytes would stay until the collector of cycles comes by.
        """
        self.parts.clear()

    def wait(self) -> None:
        """Wait for all ranges, whether they come or fail."""
        for part in self.parts:
            part.range.exception()


def when_all_done(futures: Iterable[Bytes], call: Callable[[], object]) -> None:
    """Call once when all futures, each named once, are done; at once if there is none."""
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
