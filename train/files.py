"""Large files that are whole or absent: written beside their name, synced, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from shards.files import sync_folder, temporary


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file, then give it the name ``path``, durably.

    A crash at any moment leaves the old file or the new one, never a part of it.
    """
    partial = temporary(path)
    with partial.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    # The rename itself is durable only once the folder is synced.
    sync_folder(path.parent)


def write_json(path: Path, record: Any) -> None:
    """Write ``record`` as indented JSON, whole or not at all. NaN is refused."""
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
