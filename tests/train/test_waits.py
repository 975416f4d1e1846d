"""What sets wait for is laid to the stage that was late."""

import pytest

from shards.stats import StageStats, Stats
from train.loader.waits import Waits


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    times = {"now": 0.0}
    monkeypatch.setattr("time.perf_counter", lambda: times["now"])
    return times


def one_set(clock, *, came, has_slot, begun, decoded, due):
    stats = Stats()
    waits = Waits(stats)
    clock["now"] = has_slot
    waits.has_slot()
    clock["now"] = came
    waits.came()
    clock["now"] = begun
    with waits.decoding():
        clock["now"] = decoded
    taken = max(due, decoded)
    clock["now"] = due
    with waits.awaited():
        clock["now"] = taken
    late = stats.counters()
    return stats.stages(), late["late_fetch_us"] / 1e6, late["late_decode_us"] / 1e6


def test_late_bytes(clock):
    stages, fetch, decode = one_set(clock, came=10, has_slot=2, begun=10, decoded=11, due=3)
    assert (fetch, decode) == (7.0, 1.0)
    assert stages["fetch"] == StageStats(busy_s=10.0)
    assert stages["decode"] == StageStats(wait_up_s=8.0)


def test_late_decoding(clock):
    stages, fetch, decode = one_set(clock, came=1, has_slot=2, begun=6, decoded=9, due=3)
    assert (fetch, decode) == (0.0, 6.0)
    assert stages["fetch"] == StageStats(busy_s=1.0, wait_down_s=5.0)
    assert stages["decode"] == StageStats()


def test_a_late_graph(clock):
    stages, fetch, decode = one_set(clock, came=1, has_slot=2, begun=2, decoded=3, due=9)
    assert (fetch, decode) == (0.0, 0.0)
    assert stages["decode"] == StageStats(wait_down_s=6.0)
