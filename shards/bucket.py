"""A bucket or a web server as a store, through obstore."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import obstore

from shards.backends import PART_BYTES, Head, Part
from shards.connection import Connection
from shards.errors import ShardError
from shards.policy import DEFAULT_POLICY, RequestPolicy
from shards.stats import Stats

SETTLE_STEP_S = 0.005
SETTLED_AFTER = 3
SETTLE_STEPS = 200

P = ParamSpec("P")
T = TypeVar("T")

_runtime_of: int | None = None
"""The process in which obstore's threads run; they do not survive a fork, and it then hangs."""


def _interruptible(call: Callable[P, T]) -> Callable[P, T]:
    """Let Ctrl-C end a call of the main thread at once: obstore itself waits for its answer."""

    @wraps(call)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> T:
        if threading.current_thread() is not threading.main_thread():
            return call(*args, **kwargs)
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(call(*args, **kwargs))
            except BaseException as exc:
                answer.set_exception(exc)

        # One that is left behind by Ctrl-C keeps no program from ending.
        threading.Thread(target=run, name="bucket-call", daemon=True).start()
        return answer.result()

    return waiting


class ObjectStore:
    """A `Store` through obstore.

    Args:
        name: for messages.
        connect: makes the obstore store, with obstore's own retries on or off.
        policy: of its requests.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[bool], Any],
        policy: RequestPolicy = DEFAULT_POLICY,
    ) -> None:
        self.name = name
        self.folder: Path | None = None
        self.policy = policy
        self.stats = Stats()
        self._connect = connect
        self._connection = Connection(connect)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open it again in another process, which reads credentials of its own."""
        return ObjectStore, (self.name, self._connect, self.policy)

    def _at(self) -> Any:
        _check_runtime()
        return self._connection.once

    @_interruptible
    def open(self, path: str) -> Part:
        """See `Store`."""
        # No range: some servers refuse one that goes beyond the end.
        answer = obstore.get(self._at(), path)
        whole = _head(answer.meta)
        if whole.size <= PART_BYTES:
            return Part(memoryview(answer.bytes()), whole)
        return Part(memoryview(next(iter(answer.stream(PART_BYTES)))), whole)

    @_interruptible
    def read(self, path: str, start: int, stop: int) -> Part:
        """See `Store`."""
        answer = obstore.get(self._at(), path, options={"range": (start, stop)})
        return Part(memoryview(answer.bytes()), _head(answer.meta))

    async def get_range(self, path: str, offset: int, nbytes: int) -> memoryview:
        """See `Store`."""
        return memoryview(
            await obstore.get_range_async(self._at(), path, start=offset, length=nbytes)
        )

    @_interruptible
    def names(self) -> list[str]:
        """See `Store`."""
        return [entry["path"] for entry in obstore.list_with_delimiter(self._at())["objects"]]

    def renew(self) -> None:
        """See `Store`."""
        self._connection.renew()


def _head(meta: Any) -> Head:
    return Head(meta["path"], int(meta["size"]), meta["e_tag"])


def _check_runtime() -> None:
    """Refuse to wait for threads that are not there.

    Raises:
        ShardError: this process is a fork of one that has used a bucket.
    """
    global _runtime_of
    if _runtime_of is None:
        _runtime_of = os.getpid()
    elif _runtime_of != os.getpid():
        raise ShardError(
            "a bucket was used before this process was forked, and cannot be used after; start "
            'processes with multiprocessing.get_context("spawn")'
        )


async def settle() -> None:
    """Wait until obstore's threads have let go of Python, before a loop or the program ends.

    Such a thread hands over its answer, and then needs the interpreter once more, to come back
    from there. If that is just being taken down, the program ends with SIGABRT: without this, one
    in four that read from a bucket and ended at once did.
    """
    if _runtime_of is None:
        return
    quiet = 0
    for _ in range(SETTLE_STEPS):
        # Threads that wait for the interpreter get it now.
        await asyncio.sleep(SETTLE_STEP_S)
        quiet = 0 if _is_busy() else quiet + 1
        if quiet == SETTLED_AFTER:
            return


def _is_busy() -> bool:
    """Whether a thread of tokio, on which obstore runs, is on a processor or waits for one."""
    with suppress(OSError):
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):
                name, _, rest = (task / "stat").read_text().rpartition(")")
                if "tokio" in name and rest.split()[0] == "R":
                    return True
    return False
