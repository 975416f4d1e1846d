"""What one process counts, another can add to its own."""

import pickle

from shards.stats import Stats


def test_what_was_taken_is_added_once():
    child, parent = Stats(), Stats()
    parent.add("decode", items=1, nbytes=10)
    child.keep_spans()
    parent.keep_spans()
    child.add("decode", items=2, nbytes=20)
    child.count(requests=3)
    with child.timed("decode", "busy_s"):
        pass
    parent.absorb(pickle.loads(pickle.dumps(child.take())))
    parent.absorb(child.take())  # nothing new by now
    total = parent.stages()["decode"]
    assert (total.items, total.bytes) == (3, 30)
    assert parent.counters() == {"requests": 3}
    [span] = parent.spans()
    assert (span.stage, span.clock) == ("decode", "busy_s")
    assert span.stop_s - span.start_s == total.busy_s
    assert child.counters() == {}


def test_spans_are_kept_only_when_asked_for_and_the_oldest_go():
    stats = Stats()
    with stats.timed("plan", "busy_s"):
        pass
    assert stats.spans() == []
    stats.keep_spans(most=2)
    for stage in ("a", "b", "c"):
        with stats.timed(stage, "busy_s"):
            pass
    assert [span.stage for span in stats.spans()] == ["b", "c"]
