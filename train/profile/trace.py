"""``--trace``: the run as Chrome trace events, for ui.perfetto.dev or chrome://tracing.

The format is the JSON array format of the Trace Event Format: complete events ("X"), counters ("C")
and names ("M"), times in microseconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.stats import Span
from train.files import write_durably
from train.profile.lanes import lanes, queues

Event = dict[str, Any]

_NAMES = {"busy_s": "{}", "wait_up_s": "{} waits", "wait_down_s": "consumer"}
"""By clock; of the threads only the graph's waits for the one after it: the consumer."""


def write_trace(spans: Sequence[Span], path: Path) -> None:
    """Write a trace, whole or not at all."""
    trace = {"traceEvents": trace_events(spans), "displayTimeUnit": "ms"}
    text = json.dumps(trace, allow_nan=False, separators=(",", ":"))
    write_durably(path, lambda file: file.write(text.encode()))


def trace_events(spans: Sequence[Span]) -> list[Event]:
    """Names of processes and threads, then pieces by lane and start, then lengths of queues."""
    origin = min((span.start_s for span in spans), default=0.0)
    own = os.getpid()
    processes = sorted({span.process for span in spans} | {own})
    events = [
        _name("process_name", pid, 0, "coralbay" if pid == own else "coralbay, feed")
        for pid in processes
    ]
    for tid, lane in enumerate(lanes(spans), start=1):
        events.append(_name("thread_name", lane.process, tid, lane.name))
        events.append(_sorted("thread_sort_index", lane.process, tid))
        events += [_piece(span, tid, origin) for span in lane.spans]
    for queue, lengths in queues(spans).items():
        events += [
            {
                "ph": "C",
                "name": f"sets waiting for {queue}",
                "pid": own,
                "ts": _microseconds(at - origin),
                "args": {"sets": length},
            }
            for at, length in lengths
        ]
    return events


def _piece(span: Span, tid: int, origin: float) -> Event:
    return {
        "ph": "X",
        "name": _NAMES[span.clock].format(span.stage),
        "cat": f"{span.stage}.{span.clock}",
        "pid": span.process,
        "tid": tid,
        "ts": _microseconds(span.start_s - origin),
        "dur": _microseconds(span.stop_s - span.start_s),
    }


def _name(kind: str, pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _sorted(kind: str, pid: int, tid: int) -> Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"sort_index": tid}}


def _microseconds(seconds: float) -> float:
    """To the nanosecond: a clock has no more."""
    return round(seconds * 1e6, 3)
