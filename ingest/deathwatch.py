"""Preloaded by local worker processes: they die at once with the run that started them.

Dask's workers end themselves when their parent is gone, as soon as a thread of theirs gets to run;
decoding or compressing may keep it waiting, and meanwhile the worker goes on writing. The kernel
(Linux) does not wait.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
_ORPHANS_PARENT = 1


def dask_setup(worker: Any) -> None:
    """Called by Dask in the worker process before its first task."""
    die_with_parent()


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == _ORPHANS_PARENT:  # it died before it could be watched
        os.kill(os.getpid(), signal.SIGKILL)
