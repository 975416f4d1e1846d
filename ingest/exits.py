"""How a command ends: its exit code, and its line for machines."""

from __future__ import annotations

import json
from typing import Any

DONE, FAILED, USAGE = 0, 1, 2
"""Exit codes: done; failed, or over the failure budget; wrong arguments or paths."""


def emit(record: dict[str, Any]) -> None:
    """One line of JSON on stdout."""
    print(json.dumps(record, sort_keys=True))
