"""Keyed pseudonyms: nothing that identifies a patient leaves ingest.

Without the key nobody can test a guess; a plain hash of a UID is reversed by hashing known UIDs.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from ingest.errors import UsageError

ID_CHARS = 24
"""Hex digits of an id: 96 bits, so 10⁹ series collide with probability 10⁻¹¹."""
MIN_KEY_BYTES = 16


@dataclass(frozen=True, kw_only=True, repr=False)
class IdKey:
    """The secret behind every id of a dataset. Never logged, never written beside the data."""

    key: bytes

    def id(self, *parts: str) -> str:
        """24 hex digits for ``parts``; ``("a", "bc")`` and ``("ab", "c")`` differ."""
        message = b"".join(
            len(data).to_bytes(8, "little") + data for data in (part.encode() for part in parts)
        )
        return hmac.new(self.key, message, hashlib.sha256).hexdigest()[:ID_CHARS]

    @property
    def fingerprint(self) -> str:
        """Tells two keys apart without giving either away."""
        return self.id("fingerprint")


def load_id_key(path: Path | None = None) -> IdKey:
    """The key in ``path`` (hex), or the user's own, made once and then kept.

    Raises:
        UsageError: the file is missing, unreadable or not a hex key of 16 bytes or more.
    """
    if path is None:
        path = Path(platformdirs.user_config_dir("coralbay")) / "id.key"
        if not path.exists():
            _make_key(path)
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except OSError as exc:
        raise UsageError(f"{path}: cannot read the id key ({exc.strerror})") from exc
    except ValueError as exc:
        raise UsageError(f"{path}: not an id key; give a file of 64 hex digits") from exc
    if len(key) < MIN_KEY_BYTES:
        raise UsageError(f"{path}: the id key is too short; give a file of 64 hex digits")
    return IdKey(key=key)


def _make_key(path: Path) -> None:
    """Write 32 random bytes as hex, readable by the user alone; a concurrent maker's key wins."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and linked into place: a second process never reads half a key.
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    except OSError as exc:
        raise UsageError(
            f"{path}: cannot make an id key ({exc.strerror}); give one with --id-key"
        ) from exc
