"""Local files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from shards.digest import sha256
from shards.failpoints import failpoint
from shards.schema import FileEntry


def temporary(path: Path) -> Path:
    """Where ``path`` is written before it is renamed: hidden, in the same folder."""
    return path.with_name(f".{path.name}.tmp")


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file, sync it, then give it the name ``path``.

    A crash at any moment leaves the old file or the new one, never a part of it. The rename itself
    is durable once the folder is synced.
    """
    partial = temporary(path)
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # a full disk is not left with the part that did fit
        partial.unlink(missing_ok=True)
        raise
    failpoint("before_rename")
    partial.replace(path)


def write_atomic(path: Path, data: bytes) -> FileEntry:
    """Write ``data`` as ``path``, whole or not at all; its name, size and digest."""
    write_atomically(path, lambda file: file.write(data))
    return FileEntry(name=path.name, bytes=len(data), sha256=sha256(data))
