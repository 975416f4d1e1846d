"""A bucket or a web server through obstore, connected again when credentials are refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

RENEW_EVERY_S = 5.0


class Connection:
    """Stores of obstore for one place.

    Args:
        connect: makes one, with obstore's own retries on or off.

    Raises:
        ShardError: the place cannot be opened.
    """

    def __init__(self, connect: Callable[[bool], Any]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._once = connect(False)
        self._repeating: Any = None
        self._connected_at = time.monotonic()

    @property
    def once(self) -> Any:
        """Tries each request once: `shards.attempts.patiently` does the rest."""
        return self._once

    @property
    def repeating(self) -> Any:
        """Repeats requests itself: pieces of an upload cannot be repeated from here."""
        with self._lock:
            self._repeating = self._repeating or self._connect(True)
            return self._repeating

    def renew(self) -> None:
        """Read the credentials again."""
        with self._lock:
            # All requests that are under way find the credentials refused, at about the same time.
            if time.monotonic() - self._connected_at > RENEW_EVERY_S:
                self._once, self._repeating = self._connect(False), None
                self._connected_at = time.monotonic()
