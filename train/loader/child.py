"""The subprocess of a loader: fetches and decodes into slots that the loader reads as well.

``python -m train.loader.child DESCRIPTOR``, started by ``process.ProcessSupply`` with a connection
to it. It ends when it is told to, and at once when the loader is gone. No torch here: neither its
import time nor its memory is needed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

from shards.decoding import ChunkDecoder
from shards.errors import ShardError
from shards.stats import Stats
from train.loader.feed import Feed, Quarantined
from train.loader.inputs import Inputs
from train.loader.memory import map_shared
from train.loader.messages import Counted, Failed, Freed, Ready, Setup, Stop
from train.loader.slots import Slot
from train.loader.supply import open_feed

COUNTED_EVERY_S = 0.5
"""How old the counts that the loader has may be."""
ALIVE_EVERY_S = 1.0
"""How often to look whether the loader lives: a fork of it may hold the connection open."""


class Outbox:
    """Sends messages from any thread without waiting, in the order in which they were put.

    Args:
        connection: to the loader.
        stats: whose counts are sent along, now and then.
    """

    def __init__(self, connection: Connection, stats: Stats) -> None:
        self.queue: SimpleQueue[Any] = SimpleQueue()
        self._connection = connection
        self._stats = stats
        self._thread = threading.Thread(target=self._send_all, name="outbox", daemon=True)
        self._thread.start()

    def put(self, message: object) -> None:
        """Send it in its turn."""
        self.queue.put(message)

    def finish(self) -> None:
        """Wait until everything is sent, the last counts too."""
        self.queue.put(None)
        self._thread.join()

    def _send_all(self) -> None:
        counted = time.monotonic()
        try:
            while True:
                try:
                    message = self.queue.get(timeout=COUNTED_EVERY_S)
                    if message is None:
                        break
                    self._connection.send(message)
                except Empty:
                    pass
                if time.monotonic() - counted >= COUNTED_EVERY_S:
                    counted = time.monotonic()
                    self._send_counts()
            self._send_counts()
        except OSError:
            os._exit(1)  # the loader is gone

    def _send_counts(self) -> None:
        snapshot = self._stats.take()
        if snapshot.stages or snapshot.counters:
            self._connection.send(Counted(snapshot))


class LentSlots:
    """The slots that the loader has given back; see ``FreeSlots``."""

    def __init__(self, slots: list[Slot]) -> None:
        self._slots = slots
        self._free: SimpleQueue[int] = SimpleQueue()
        self.add(range(len(slots)))

    def add(self, numbers: range | list[int]) -> None:
        """These may be written to."""
        for number in numbers:
            self._free.put(number)

    def acquire(self) -> Slot | None:
        """See ``FreeSlots``."""
        try:
            return self._slots[self._free.get_nowait()]
        except Empty:
            return None

    def wait(self) -> Slot:
        """See ``FreeSlots``."""
        return self._slots[self._free.get()]


class Work:
    """Opens the dataset and loads item after item, in a thread of its own.

    Args:
        setup: what to load.
        slots: where to.
        outbox: for who takes the items.
        stats: where to count.
    """

    def __init__(self, setup: Setup, slots: LentSlots, outbox: Outbox, stats: Stats) -> None:
        self._setup = setup
        self._slots = slots
        self._outbox = outbox
        self._stats = stats
        self._feed: Feed | None = None
        self._told = len(setup.settings.quarantine)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="work", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End what is under way; nothing more is sent but counts."""
        self._stopping = True
        if self._feed is not None:
            self._feed.close()

    def _run(self) -> None:
        try:
            self._feed = self._open()
            # Below this, the loader has said or will say it itself: both open the dataset.
            logging.getLogger().setLevel(self._setup.log_level)
            while True:
                loaded = self._feed.next()
                self._outbox.put(
                    Ready(
                        visit=loaded.visit,
                        slot=loaded.slot.number,
                        came_s=loaded.came_s,
                        ready_s=time.perf_counter(),
                        found=self._found(),
                    )
                )
        except BaseException as error:
            # What is closed under the feed's hands fails in many ways, and none matters.
            if not self._stopping:
                self._outbox.put(Failed.of(error, self._found()))

    def _open(self) -> Feed:
        setup = self._setup
        settings = setup.settings
        inputs = Inputs(setup.url, settings.views, settings.config, self._stats)
        if inputs.plan.hash != setup.plan_hash:
            raise ShardError(
                f"{setup.url}: the dataset or this program has changed since it was opened, and "
                "with it the order of the data; open it again"
            )
        decoder = ChunkDecoder(inputs.profile, self._stats)
        return open_feed(settings, inputs, decoder, self._slots, self._stats)

    def _found(self) -> list[tuple[Quarantined, int]]:
        """What the feed has put into quarantine since this was last asked."""
        if self._feed is None:
            return []
        found = list(self._feed.quarantine.items())[self._told :]
        self._told += len(found)
        return found


def main(descriptor: int) -> None:
    """Work for the loader at the other end of a connection; does not return."""
    # Ctrl-C and SIGTERM are for the loader, which may have a checkpoint to save first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        _serve(connection)
    except (EOFError, OSError):
        os._exit(1)  # the loader is gone


def _serve(connection: Connection) -> None:
    setup: Setup = connection.recv()
    stats = Stats()
    if setup.most_spans is not None:
        stats.keep_spans(setup.most_spans)
    outbox = Outbox(connection, stats)
    logging.getLogger().addHandler(QueueHandler(outbox.queue))
    slots = LentSlots(setup.layout.carve(map_shared(setup.memory, setup.nbytes)))
    os.close(setup.memory)
    work = Work(setup, slots, outbox, stats)
    while True:
        if not connection.poll(ALIVE_EVERY_S):
            if os.getppid() != setup.parent:
                os._exit(1)
            continue
        match connection.recv():
            case Freed(numbers):
                slots.add(numbers)
            case Stop():
                work.stop()
                outbox.finish()
                # Threads that wait for what does not come any more are not waited for.
                os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
