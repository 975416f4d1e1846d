"""Fixed memory between decoding and the graph: a slot holds one base box's chunks and parameters.

Slots are reused, and the graph reads them without a copy. So a slot goes back only when the output
made from it has been handed over, and on a GPU only when the stream has passed the event recorded
at that moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from train.loader.memory import own_block
from train.loader.slots import Slot, SlotLayout

GARBAGE_HU = 32767
"""What poisoning writes: far outside the stored range, so that a voxel read too late shows."""


@runtime_checkable
class Event(Protocol):
    """What the ring needs of a ``torch.cuda.Event``."""

    def query(self) -> bool:
        """Whether the stream has passed the event."""

    def synchronize(self) -> None:
        """Wait until it has."""


@runtime_checkable
class FreeSlots(Protocol):
    """Where a feed takes slots from."""

    def acquire(self) -> Slot | None:
        """A slot nobody reads any more, or None if there is none at this moment."""

    def wait(self) -> Slot:
        """A slot nobody reads any more, waiting for one if need be."""


class ReturnedSlots:
    """Slots that were given back, until nobody reads them. Used from one thread.

    Args:
        poison: fill a slot with garbage as soon as it is free, to catch a reader that is late.
    """

    def __init__(self, poison: bool = False) -> None:
        self._poison = poison
        self._read: deque[tuple[Event, tuple[Slot, ...]]] = deque()
        self._free: list[Slot] = []

    def add(self, slots: Iterable[Slot], event: Event | None = None) -> None:
        """Slots that are free now; with an event, once the event has passed."""
        if event is None:
            self._recycle(slots)
        else:
            self._read.append((event, tuple(slots)))

    def take(self) -> list[Slot]:
        """Those that have become free since it was last asked."""
        while self._read and self._read[0][0].query():
            self._recycle(self._read.popleft()[1])
        free, self._free = self._free, []
        return free

    def wait(self) -> None:
        """Wait for the oldest event, if there is one."""
        if self._read:
            self._read[0][0].synchronize()

    @property
    def pending(self) -> bool:
        """Whether some wait for their event."""
        return bool(self._read)

    def _recycle(self, slots: Iterable[Slot]) -> None:
        for slot in slots:
            if self._poison:
                slot.chunks.fill(GARBAGE_HU)
                # Wrong, but such that a late reader gives wrong views rather than a crash.
                slot.params[:] += 1.0
            self._free.append(slot)


class SlotRing:
    """A fixed number of slots. Used from one thread.

    Args:
        n_slots: slots in all.
        layout: what each holds.
        pinned: page-locked memory, which a GPU reads at full speed without staging.
        poison: see ``ReturnedSlots``.
    """

    def __init__(
        self,
        *,
        n_slots: int,
        layout: SlotLayout,
        pinned: bool = False,
        poison: bool = False,
    ) -> None:
        block = own_block(n_slots * layout.nbytes, pinned=pinned)
        self._free = deque(layout.carve(block))
        self._returned = ReturnedSlots(poison)

    def acquire(self) -> Slot | None:
        """See ``FreeSlots``."""
        self._free.extend(self._returned.take())
        return self._free.popleft() if self._free else None

    def wait(self) -> Slot:
        """See ``FreeSlots``; waits for the oldest event only."""
        if not self._free:
            self._returned.wait()
        slot = self.acquire()
        assert slot is not None, "every slot is in use: the ring is smaller than the queue it feeds"
        return slot

    def release(self, slots: Iterable[Slot], event: Event | None = None) -> None:
        """Give slots back; with an event, once the event has passed."""
        self._returned.add(slots, event)
