"""One writer at a time: locks of the operating system, which die with the process that holds them.

``flock`` is used, which Linux turns into a byte-range lock on NFS (so it holds between the machines
of a cluster, if the server's lock service runs) and passes through on Lustre, GPFS and CephFS where
these are mounted with locks. A crashed process frees its lock at once; of a crashed machine the
NFSv4 server drops it when the lease ends, about 90 s later. No age of a file is ever taken as a
sign that its owner is dead.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ingest.errors import IngestError, UsageError

LOCK_FILE = ".lock"
"""In OUT while a run writes there; a killed run leaves it behind, unlocked."""
POLL_S = 0.2
"""How often a waiting process tries again."""
_HELD = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks answer."""


class _Held(Exception):
    """Someone else has the lock; the message says who."""


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold ``out`` for writing; it is made if need be, and taken away if nothing came of it.

    Raises:
        UsageError: another run holds it, or nothing can be written there.
    """
    path = out / LOCK_FILE
    made = not out.exists() or path.exists()  # by this run, or by one that was killed
    try:
        descriptor = _make_and_lock(path)
    except _Held as exc:
        raise UsageError(_refusal(out, str(exc))) from exc
    try:
        yield
    finally:
        # Unlinked while it is held: whoever locks this file next sees that it has no name any more.
        path.unlink(missing_ok=True)
        os.close(descriptor)
        if made:
            with suppress(OSError):
                out.rmdir()


def check_free(out: Path) -> None:
    """Say early that another run holds ``out``: it may be hours of scanning before `locked` does.

    Raises:
        UsageError: it does.
    """
    try:
        descriptor = os.open(out / LOCK_FILE, os.O_RDWR)
    except OSError:
        return
    try:
        _lock(descriptor)
    except _Held as exc:
        raise UsageError(_refusal(out, str(exc))) from exc
    finally:
        os.close(descriptor)


@contextmanager
def waiting_lock(path: Path, wait_s: float) -> Iterator[None]:
    """Hold the lock file ``path``, once whoever has it lets go. The file stays.

    Raises:
        IngestError: someone still holds it after ``wait_s``.
        FileNotFoundError: its folder is not there.
    """
    end = time.monotonic() + wait_s
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while True:
            try:
                _lock(descriptor)
                break
            except _Held as exc:
                if time.monotonic() > end:
                    raise IngestError(
                        f"{path}: still held by {exc} after {wait_s:.0f} s; "
                        "end that process, then run the same command again"
                    ) from exc
                time.sleep(POLL_S)
        _sign(descriptor)
        yield
    finally:
        os.close(descriptor)


def _refusal(out: Path, holder: str) -> str:
    return f"{out}: {holder} is writing there; wait until it is done, or give another OUT"


def _make_and_lock(path: Path) -> int:
    """A descriptor of the locked file that is ``path`` now, not of one unlinked meanwhile."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # The run before us took the folder away in between.
        except (FileExistsError, NotADirectoryError) as exc:
            raise UsageError(f"{path.parent}: is no folder; give another OUT") from exc
        except PermissionError as exc:
            raise UsageError(
                f"{path.parent}: cannot write there ({exc.strerror}); give another OUT"
            ) from exc
        try:
            _lock(descriptor)
            if _is(path, descriptor):
                _sign(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock an open file, without waiting.

    Raises:
        _Held: another process has it.
        UsageError: the file system knows no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in _HELD:
            raise _Held(_holder(descriptor)) from exc
        if exc.errno in _NO_LOCKS:
            raise UsageError(
                "the file system of OUT gives no file locks, so two runs could mix; mount it with "
                "locks (Lustre: -o flock), or give an OUT elsewhere"
            ) from exc
        raise


def _sign(descriptor: int) -> None:
    """Write who holds the lock, for the message that others get."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def _holder(descriptor: int) -> str:
    text = os.pread(descriptor, 400, 0).decode("utf-8", "replace")
    return text or "another process"


def _is(path: Path, descriptor: int) -> bool:
    """Whether ``path`` still names the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
