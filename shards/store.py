"""Where datasets live: a folder, or any object storage that obstore opens."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

import obstore
from obstore.exceptions import BaseError
from obstore.store import (
    AzureStore,
    GCSStore,
    HTTPStore,
    LocalStore,
    MemoryStore,
    S3Store,
    from_url,
)

from shards.errors import NotADatasetError, ShardError

Store: TypeAlias = AzureStore | GCSStore | HTTPStore | LocalStore | MemoryStore | S3Store

STREAM_BYTES = 8 * 2**20
"""Pieces in which a whole object is read: large enough to hide the latency of a bucket."""
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_STORAGE_ERRORS = (BaseError, OSError)


def open_store(url: str | Path) -> Store:
    """Open a folder, a ``file://`` URL or a bucket prefix (``s3:// gs:// az:// https://``).

    Credentials and endpoints of buckets come from the environment, as obstore documents.

    Raises:
        NotADatasetError: no such folder.
        ShardError: the URL cannot be opened as storage.
    """
    text = str(url)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return _open_folder(Path(text))
    if scheme[1].lower() == "file":
        return _open_folder(Path(unquote(text[len("file://") :])))
    try:
        return from_url(text)
    except (BaseError, ValueError) as exc:
        raise ShardError(
            f"{text}: cannot open this URL as storage; use a folder or a URL that starts with "
            f"s3://, gs://, az://, https:// or file:// ({_first_line(exc)})"
        ) from exc


def _open_folder(folder: Path) -> LocalStore:
    if not folder.exists():
        raise NotADatasetError(
            f"{folder}: no such folder; give the folder that holds manifest.json"
        )
    if not folder.is_dir():
        raise NotADatasetError(f"{folder}: a file; give the folder that holds manifest.json")
    return LocalStore(folder.absolute())


def get(store: Store, path: str) -> bytes:
    """A whole object.

    Raises:
        FileNotFoundError: no such object.
        ShardError: it cannot be read.
    """
    try:
        return bytes(obstore.get(store, path).bytes())
    except FileNotFoundError:
        raise
    except _STORAGE_ERRORS as exc:
        raise ShardError(f"{path}: cannot be read ({_first_line(exc)})") from exc


def get_range(store: Store, path: str, offset: int, nbytes: int) -> memoryview:
    """``nbytes`` bytes of an object from ``offset`` on, without a copy.

    Raises:
        FileNotFoundError: no such object.
        ShardError: it cannot be read or is shorter.
    """
    try:
        view = memoryview(obstore.get_range(store, path, start=offset, length=nbytes))
    except FileNotFoundError:
        raise
    except _STORAGE_ERRORS as exc:
        raise ShardError(
            f"{path}: bytes {offset}+{nbytes} cannot be read ({_first_line(exc)})"
        ) from exc
    if len(view) != nbytes:
        raise ShardError(f"{path}: ends before byte {offset + nbytes}")
    return view


def stream(store: Store, path: str) -> Iterator[bytes]:
    """An object in pieces, in order.

    Raises:
        FileNotFoundError: no such object.
        ShardError: it cannot be read.
    """
    try:
        for piece in obstore.get(store, path).stream(min_chunk_size=STREAM_BYTES):
            yield bytes(piece)
    except FileNotFoundError:
        raise
    except _STORAGE_ERRORS as exc:
        raise ShardError(f"{path}: cannot be read ({_first_line(exc)})") from exc


class RangeFile(io.RawIOBase):
    """An object as a file that seeks: each read is one ranged request."""

    def __init__(self, store: Store, path: str) -> None:
        try:
            self._size = int(obstore.head(store, path)["size"])
        except FileNotFoundError:
            raise
        except _STORAGE_ERRORS as exc:
            raise ShardError(f"{path}: cannot be read ({_first_line(exc)})") from exc
        self._store = store
        self._path = path
        self._at = 0

    def readable(self) -> bool:
        """Always: an object in a store can be read."""
        return True

    def seekable(self) -> bool:
        """Always: ranges start anywhere."""
        return True

    def tell(self) -> int:
        """Offset of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the next read; beyond the end it returns nothing."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` as far as the object goes; bytes read."""
        view = memoryview(buffer).cast("B")
        nbytes = max(0, min(len(view), self._size - self._at))
        if nbytes:
            view[:nbytes] = get_range(self._store, self._path, self._at, nbytes)
        self._at += nbytes
        return nbytes


def names(store: Store) -> list[str]:
    """Names of the objects directly under the store's root, sorted.

    Raises:
        ShardError: the storage cannot be listed.
    """
    try:
        listed = obstore.list_with_delimiter(store)["objects"]
    except _STORAGE_ERRORS as exc:
        raise ShardError(f"the dataset's folder cannot be listed ({_first_line(exc)})") from exc
    return sorted(entry["path"] for entry in listed)


def _first_line(exc: BaseException) -> str:
    # obstore appends a Debug dump of many lines to some messages.
    return str(exc).strip().split("\n", 1)[0]
