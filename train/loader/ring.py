"""Fixed memory between decoding and the graph: a slot holds one base box's chunks and parameters.

Slots are reused, and the graph reads them without a copy. So a slot goes back only when the output
made from it has been handed over, and on a GPU only when the stream has passed the event recorded
at that moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch

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


class SlotRing:
    """A fixed number of slots. Used from one thread.

    Args:
        n_slots: slots in all.
        layout: what each holds.
        pinned: page-locked memory, which a GPU reads at full speed without staging.
        poison: fill a slot with garbage as soon as it is free, to catch a reader that is late.
    """

    def __init__(
        self,
        *,
        n_slots: int,
        layout: SlotLayout,
        pinned: bool = False,
        poison: bool = False,
    ) -> None:
        self._poison = poison
        block = torch.zeros(n_slots * layout.nbytes, dtype=torch.uint8, pin_memory=pinned)
        self._free = deque(layout.carve(block.numpy()))
        self._retired: deque[tuple[Event, tuple[Slot, ...]]] = deque()

    def acquire(self) -> Slot | None:
        """A slot nobody reads any more, or None if there is none at this moment."""
        self._reclaim()
        return self._free.popleft() if self._free else None

    def wait(self) -> Slot:
        """A slot nobody reads any more, waiting for the oldest event if need be."""
        if not self._free and self._retired:
            self._retired[0][0].synchronize()
        slot = self.acquire()
        assert slot is not None, "every slot is in use: the ring is smaller than the queue it feeds"
        return slot

    def release(self, slots: Iterable[Slot], event: Event | None = None) -> None:
        """Give slots back; with an event, once the event has passed."""
        if event is None:
            self._recycle(slots)
        else:
            self._retired.append((event, tuple(slots)))

    def _reclaim(self) -> None:
        while self._retired and self._retired[0][0].query():
            self._recycle(self._retired.popleft()[1])

    def _recycle(self, slots: Iterable[Slot]) -> None:
        for slot in slots:
            if self._poison:
                slot.chunks.fill(GARBAGE_HU)
                # Wrong, but such that a late reader gives wrong views rather than a crash.
                slot.params[:] += 1.0
            self._free.append(slot)
