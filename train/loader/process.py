"""Loaded items from a subprocess, through memory that both have mapped.

The subprocess plans, fetches and decodes, so that none of its Python competes with the training
loop for the interpreter; the graph reads the slots here, without a copy. ``child`` is the other
end. A slot is written to only between ``Freed`` and ``Ready``, and read only between ``Ready`` and
``Freed``: the messages are all the locking there is.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from shards.fetcher import check_process
from shards.stats import Stats
from train.errors import FeedDiedError
from train.loader.feed import Loaded, Quarantined
from train.loader.inputs import Inputs
from train.loader.memory import create_shared, map_shared, pin, unpin
from train.loader.messages import Counted, Failed, Freed, Ready, Setup, Stop
from train.loader.ring import Event, ReturnedSlots
from train.loader.slots import Slot
from train.loader.supply import FeedSettings
from train.loader.waits import LATE, count_late

CLOSE_S = 10.0
"""How long the subprocess may take to end in order; then it is killed."""
EVENT_POLL_S = 0.001
"""How often to look at events while waiting: an item may come before the event, or after."""

Child = subprocess.Popen[bytes]


class ProcessSupply:
    """Fetches and decodes in a subprocess; see ``Supply``.

    Args:
        settings: what to load.
        inputs: from where; the subprocess opens the same once more.
        n_slots: how many items there is room for.
        stats: where to count what the subprocess does.

    Attributes:
        pid: process id of the subprocess.
    """

    def __init__(self, settings: FeedSettings, inputs: Inputs, n_slots: int, stats: Stats) -> None:
        self._stats = stats
        self._quarantine = dict.fromkeys(settings.quarantine, -1)
        self._ready: deque[tuple[Loaded, float]] = deque()
        self._returned = ReturnedSlots(settings.config.poison)
        self._error: BaseException | None = None
        self._gone = False
        self._unpin: weakref.finalize[..., ProcessSupply] | None = None
        self._owner = os.getpid()
        layout = inputs.slot_layout
        memory = create_shared(n_slots * layout.nbytes)
        try:
            self._block = map_shared(memory, n_slots * layout.nbytes)
            self._child, self._connection = _start(memory)
        finally:
            os.close(memory)
        self.pid = self._child.pid
        # Also when it is dropped without being closed, and at the end of the program.
        self._abandon = weakref.finalize(self, _abandon, self._child, self._connection, self._owner)
        self._slots = layout.carve(self._block)
        self._send(
            Setup(
                url=inputs.dataset.url,
                plan_hash=inputs.plan.hash,
                settings=settings,
                layout=layout,
                n_slots=n_slots,
                memory=memory,
                most_spans=stats.most_spans,
                log_level=logging.getLogger().getEffectiveLevel(),
                parent=self._owner,
            )
        )
        if settings.config.device == "gpu" and pin(self._block):
            self._unpin = weakref.finalize(self, unpin, self._block)
            # At the end of the program CUDA may be gone already.
            self._unpin.atexit = False

    @property
    def quarantine(self) -> Mapping[Quarantined, int]:
        """See ``Supply``."""
        return self._quarantine

    def next(self) -> Loaded:
        """See ``Supply``."""
        check_process(self._owner)
        since = time.perf_counter()
        while not self._ready:
            if self._error is not None:
                raise self._error
            self._give_back()
            if self._connection.poll(EVENT_POLL_S if self._returned.pending else None):
                self._receive()
        loaded, ready_s = self._ready.popleft()
        now = time.perf_counter()
        self._stats.record("decode", "wait_down_s", ready_s, max(ready_s, now))
        count_late(self._stats, loaded.came_s, since, now)
        return loaded

    def release(self, slots: Iterable[Slot], event: Event | None = None) -> None:
        """See ``Supply``."""
        self._returned.add(slots, event)
        self._give_back()

    def close(self) -> None:
        """See ``Supply``."""
        if os.getpid() != self._owner or not self._abandon.alive:
            return
        self._send(Stop())
        deadline = time.monotonic() + CLOSE_S
        while not self._gone and (left := deadline - time.monotonic()) > 0:
            if self._connection.poll(left):
                self._receive()
        self._abandon()
        if self._unpin is not None:
            self._unpin()

    def _give_back(self) -> None:
        if free := self._returned.take():
            self._send(Freed([slot.number for slot in free]))

    def _send(self, message: object) -> None:
        # If it is gone, receiving says so, once its last message has been taken.
        with suppress(OSError):
            self._connection.send(message)

    def _receive(self) -> None:
        """Take one message."""
        try:
            message = self._connection.recv()
        except (EOFError, OSError):
            self._gone = True
            self._error = self._error or _death(self._child)
            return
        match message:
            case Ready():
                self._quarantine.update(message.found)
                slot = self._slots[message.slot]
                loaded = Loaded(visit=message.visit, slot=slot, came_s=message.came_s)
                self._ready.append((loaded, message.ready_s))
            case Counted(snapshot):
                # What it waits for while it works ahead keeps nobody waiting here.
                counters = {n: c for n, c in snapshot.counters.items() if n not in LATE}
                self._stats.absorb(replace(snapshot, counters=counters))
            case logging.LogRecord():
                logger = logging.getLogger(message.name)
                if logger.isEnabledFor(message.levelno):
                    logger.handle(message)
            case Failed():
                self._quarantine.update(message.found)
                self._error = message.error


def _start(memory: int) -> tuple[Child, Connection]:
    """Start the subprocess, which inherits the memory and one end of a connection."""
    ours, theirs = Pipe()
    with theirs:
        child = subprocess.Popen(
            # -P: a `train.py` in the working folder is not our package.
            [sys.executable, "-P", "-m", "train.loader.child", str(theirs.fileno())],
            pass_fds=(theirs.fileno(), memory),
            # What is imported there is what is imported here.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
            stdin=subprocess.DEVNULL,
            # Standard output may be read by a machine.
            stdout=subprocess.DEVNULL,
            # Ctrl-C on a terminal goes to every process of its group, and is for us.
            start_new_session=True,
        )
    return child, ours


def _abandon(child: Child, connection: Connection, owner: int) -> None:
    """End the subprocess if it has not ended, and wait until it has."""
    if os.getpid() != owner:
        return
    connection.close()
    child.kill()
    child.wait()


def _death(child: Child) -> FeedDiedError:
    """Why the subprocess is gone: it has closed its end of the connection."""
    try:
        code = child.wait(CLOSE_S)
    except subprocess.TimeoutExpired:
        return FeedDiedError("the subprocess that fetches and decodes does not answer any more")
    if code >= 0:
        how = f"has ended with exit code {code}; standard error may say why"
    elif code == -signal.SIGKILL:
        how = "was killed (SIGKILL), perhaps because memory ran out: give it more, lower --held-mib"
    else:
        how = f"was killed ({signal.Signals(-code).name})"
    return FeedDiedError(
        f"the subprocess that fetches and decodes (--feed subprocess) {how}; `coralbay resume` "
        "goes on from the newest checkpoint"
    )
