"""When a slot may be used again, with events that pass on command."""

import numpy as np
import pytest

from train.loader.ring import GARBAGE_HU, SlotRing
from train.loader.slots import SlotLayout

LAYOUT = SlotLayout(chunks_shape=(1, 1, 1, 4, 4, 4), params_shape=(2, 3))


class FakeEvent:
    """Passes when told to, or when somebody waits."""

    def __init__(self):
        self.passed = False
        self.waited = False

    def query(self):
        return self.passed

    def synchronize(self):
        self.passed = self.waited = True


def make_ring(n_slots=2, **options):
    return SlotRing(n_slots=n_slots, layout=LAYOUT, **options)


def test_slots_are_distinct_memory_and_run_out():
    ring = make_ring()
    first, second = ring.acquire(), ring.acquire()
    assert ring.acquire() is None
    assert not np.shares_memory(first.chunks, second.chunks)
    ring.release([first])
    assert ring.acquire() is first


def test_a_slot_waits_for_its_event():
    ring, event = make_ring(n_slots=1), FakeEvent()
    slot = ring.acquire()
    ring.release([slot], event)
    assert ring.acquire() is None
    event.passed = True
    assert ring.acquire() is slot


def test_waiting_blocks_on_the_oldest_event_only():
    ring, old, new = make_ring(), FakeEvent(), FakeEvent()
    first, second = ring.acquire(), ring.acquire()
    ring.release([first], old)
    ring.release([second], new)
    assert ring.wait() is first
    assert old.waited
    assert not new.waited


def test_a_ring_that_is_too_small_says_so():
    ring = make_ring(n_slots=1)
    ring.acquire()
    with pytest.raises(AssertionError, match="smaller than the queue"):
        ring.wait()


def test_poison_fills_a_slot_when_it_becomes_free_not_before():
    ring, event = make_ring(n_slots=1, poison=True), FakeEvent()
    slot = ring.acquire()
    slot.chunks[:], slot.params[:] = 7, 1
    ring.release([slot], event)
    ring.acquire()
    assert (slot.chunks == 7).all()
    event.passed = True
    ring.acquire()
    assert (slot.chunks == GARBAGE_HU).all()
    assert (slot.params != 1).all()
