"""A temporary folder for what is on its way into a bucket: one shard, or the tables.

Its process holds a lock on it (``flock``), so that a later process on the machine sees that it is
left over from one that was killed, and removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "coralbay-build-"


@contextmanager
def workspace() -> Iterator[Path]:
    """An empty folder, where the system keeps temporary files (``TMPDIR``); removed afterwards."""
    remove_left_over()
    folder, descriptor = _make()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _make() -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(OSError):  # taken for left over in between, and removed
            descriptor = os.open(folder, os.O_RDONLY)
            if _lock(descriptor) and _is(folder, descriptor):
                return folder, descriptor
            os.close(descriptor)


def remove_left_over() -> None:
    """Remove the folders of processes that are gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or just removed
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                if _lock(descriptor):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether nobody else holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(folder: Path, descriptor: int) -> bool:
    """Whether ``folder`` still names what is open."""
    return os.path.samestat(os.stat(folder), os.fstat(descriptor))
