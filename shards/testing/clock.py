"""An event loop on virtual time: a test of hours takes as long as its work."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Time stands still while there is work, and then jumps to the next timer.

    Only for what waits by this loop: an answer from another thread may come any virtual time
    later. With nothing to do and no timer it waits for other threads, as any loop does.
    """

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let so much time pass."""
        self._now += seconds


class _JumpingSelector(selectors.DefaultSelector):
    """Never sleeps until a timer: moves the loop's time there."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            return list(super().select(None))
        ready = list(super().select(0))
        if not ready and timeout > 0:
            self._loop.advance(timeout)
        return ready


def run_virtual(main: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """What ``main`` returns, and the virtual seconds that it took."""
    loop = VirtualTimeLoop()
    try:
        result = loop.run_until_complete(main)
        return result, loop.time()
    finally:
        loop.run_until_complete(_end())
        loop.close()


async def _end() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
