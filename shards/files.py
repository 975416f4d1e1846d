"""Local files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from shards.digest import sha256
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


def write_atomic(path: Path, data: bytes) -> FileEntry:
    """Write ``data`` as ``path`` through a temporary file; its name, size and digest."""
    partial = temporary(path)
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return FileEntry(name=path.name, bytes=len(data), sha256=sha256(data))
