"""What a worker's memory came to, and how to give some of it back early."""

from __future__ import annotations

import ctypes
import mmap
import resource
import sys
from pathlib import Path

from numpy import ndarray

_STATUS = Path("/proc/self/status")
_MADV_DONTNEED = 4
"""Linux: drop these pages now; the memory stays allocated and reads as zeros."""


def peak_bytes() -> int:
    """Most resident memory this process ever had.

    ``ru_maxrss`` would do, but a process inherits it from the one that started it.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    scale = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def give_back(array: ndarray) -> None:
    """Let go of the whole pages that hold ``array``, which nobody reads any more.

    Its values are lost. Half a volume can go while the other half is still at work.
    """
    if not sys.platform.startswith("linux") or not array.flags.c_contiguous:
        return
    start = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (array.ctypes.data + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED
        )
