"""Keyed pseudonyms."""

import hashlib
import hmac
import multiprocessing
import stat
from pathlib import Path

import pytest

from ingest.errors import UsageError
from ingest.ids import IdKey, load_id_key


def test_known_answer() -> None:
    key = bytes(range(32))
    # Each part is preceded by its length in bytes, 8 bytes little-endian.
    message = b"\x03\0\0\0\0\0\0\0" + b"abc" + b"\x02\0\0\0\0\0\0\0" + "é".encode()
    expected = hmac.new(key, message, hashlib.sha256).hexdigest()[:24]
    assert IdKey(key=key).id("abc", "é") == expected


def test_parts_are_kept_apart() -> None:
    key = IdKey(key=b"k" * 32)
    ids = {key.id(*parts) for parts in [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ()]}
    assert len(ids) == 5
    assert key.id("a") != IdKey(key=b"l" * 32).id("a")


def test_key_is_not_shown() -> None:
    key = IdKey(key=b"secretsecretsecretsecret")
    assert "secret" not in repr(key)
    assert key.fingerprint != IdKey(key=b"s" * 32).fingerprint


def test_own_key_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    key = load_id_key()
    path = tmp_path / "coralbay/id.key"
    assert len(key.key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["id.key"]
    assert load_id_key() == key == load_id_key(path)


def _load(_: int) -> bytes:
    return load_id_key().key


def test_concurrent_makers_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert len(set(pool.map(_load, range(8)))) == 1


@pytest.mark.parametrize("content", ["", "not hex", "abcd", "é"])
def test_bad_key_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match="id key"):
        load_id_key(path)


def test_missing_key_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the id key"):
        load_id_key(tmp_path / "nowhere")


def test_unwritable_config_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="--id-key"):
        load_id_key()
