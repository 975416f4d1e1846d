"""Gives memory that was freed back to the system."""

from __future__ import annotations

import ctypes
import sys

import pyarrow as pa


def release() -> None:
    """Return what was freed: allocators keep it, and hundreds of MB of short use would stay.

    Does nothing to the C library's part where it is not glibc.
    """
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
