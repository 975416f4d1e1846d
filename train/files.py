"""Files of a run that are whole or absent, and still there after a power cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from shards.files import sync_folder, write_atomically


def write_durably(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill ``path``, whole or not at all, and sync the folder behind it."""
    write_atomically(path, write)
    sync_folder(path.parent)


def write_json(path: Path, record: Any) -> None:
    """Write ``record`` as indented JSON, whole or not at all. NaN is refused."""
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    write_durably(path, lambda file: file.write(text.encode()))
