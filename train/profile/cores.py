"""Processor time of this process and its children, and the cores there are for them."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def cores() -> int:
    """Cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def cpu_seconds() -> float:
    """Processor time of this process and all below it; of itself alone where /proc is absent."""
    return time.process_time() + sum(_spent(process) for process in _below(os.getpid()))


def _below(process: int) -> set[int]:
    """Children, their children, and so on; one that ends meanwhile may be left out."""
    found: set[int] = set()
    with suppress(OSError):
        for task in (_PROC / str(process) / "task").iterdir():
            with suppress(OSError):
                for child in (task / "children").read_text().split():
                    found |= {int(child)} | _below(int(child))
    return found


def _spent(process: int) -> float:
    try:
        stat = (_PROC / str(process) / "stat").read_text()
    except OSError:
        return 0.0
    # The name, in parentheses, may hold anything; user and system time are fields 14 and 15.
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
