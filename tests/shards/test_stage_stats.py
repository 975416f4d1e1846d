"""Counters add up over threads."""

import os
import threading

from shards.stats import StageStats, Stats


def test_totals_over_threads():
    stats = Stats()

    def work():
        for _ in range(500):
            stats.add("decode", items=1, nbytes=10)
            stats.count(requests=2, chunks=1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stats.stages() == {"decode": StageStats(items=2000, bytes=20000)}
    assert stats.counters() == {"requests": 4000, "chunks": 2000}


def test_clocks_are_kept_apart(monkeypatch):
    now = iter([0.0, 1.0, 5.0, 7.0, 7.5, 10.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    stats = Stats()
    with stats.timed("fetch", "busy_s"):
        pass
    with stats.timed("fetch", "wait_up_s"):
        pass
    with stats.timed("fetch", "busy_s"):
        pass
    assert stats.stages()["fetch"] == StageStats(busy_s=4.0, wait_up_s=2.0)


def test_reset_starts_again():
    stats = Stats()
    stats.add("x", items=1)
    stats.count(requests=1)
    stats.reset()
    assert stats.stages() == {}
    assert stats.counters() == {}


def test_a_time_inside_another_of_its_stage_interrupts_it(monkeypatch):
    """No time counts twice for a stage; another stage's time runs on its own clock."""
    now = iter([0.0, 1.0, 2.0, 5.0, 7.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    stats = Stats()
    stats.keep_spans()
    with (
        stats.timed("graph", "busy_s"),  # 0 to 1, 7 to 10
        stats.timed("graph", "wait_up_s"),  # 1 to 7
        stats.timed("plan", "busy_s"),  # 2 to 5
    ):
        pass
    assert stats.stages()["graph"] == StageStats(busy_s=4.0, wait_up_s=6.0)
    assert stats.stages()["plan"] == StageStats(busy_s=3.0)
    pieces = [(span.stage, span.clock, span.start_s, span.stop_s) for span in stats.spans()]
    assert pieces == [
        ("graph", "busy_s", 0.0, 1.0),
        ("plan", "busy_s", 2.0, 5.0),
        ("graph", "wait_up_s", 1.0, 7.0),
        ("graph", "busy_s", 7.0, 10.0),
    ]
    assert {(span.thread, span.process) for span in stats.spans()} == {
        (threading.current_thread().name, os.getpid())
    }
