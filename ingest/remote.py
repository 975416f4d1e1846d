"""Raw archives in a bucket: listing, ranged reads and whole objects, through obstore.

Credentials and endpoints come from the environment, as obstore documents (``AWS_*``, ``GOOGLE_*``,
``AZURE_*``). Each process opens stores of its own. What the network does is never a verdict on a
file: only "no such object" and "not allowed" are; the rest stops the run, in one line.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from ingest.errors import IngestError, UsageError
from ingest.ranges import open_ranges
from shards.prefetch import prefetch

MAX_RETRIES = 8
RETRY_TIMEOUT_S = 120.0
"""A request is repeated after 0.2 s, 0.4 s ... 10 s, so often or so long."""
TIMEOUT_S = 60.0
"""A request may take as long: a block of 8 MiB at 2 Mbit/s."""
HEAD_BYTES = 1 << 16
"""First range of each object: what most headers need."""
BLOCK_BYTES = 8 << 20
"""Largest range of one request; ranges grow towards it while an object is read in order."""
READ_THREADS = 16

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"status code: (\d+ [A-Za-z ]+)")
_HINT = "check the URL, and credentials and endpoint in the environment (such as AWS_*)"


def is_url(name: str) -> bool:
    """Whether ``name`` is a URL, not a path."""
    return _SCHEME.match(name) is not None


def local_path(name: str) -> str:
    """The path of a ``file://`` URL; any other name as it is."""
    return unquote(name[len("file://") :]) if name.lower().startswith("file://") else name


def list_objects(url: str) -> Iterator[tuple[str, int]]:
    """(URL, bytes) of every object under ``url``, or of the one that it names, sorted.

    Raises:
        UsageError: there is none, or it cannot be listed.
    """
    root, key = _split(url)
    listed = {} if _is_web(url) else _list(url, root, key)
    if not listed:
        listed = _single(url, root, key)
    names = sorted(listed)
    for name, following in zip(names, [*names[1:], ""], strict=True):
        # Consoles mark folders by empty objects: a marker is no file.
        if listed[name] or not following.startswith(f"{name}/"):
            yield f"{root}/{name}", listed[name]


def object_size(url: str) -> int:
    """Bytes of an object.

    Raises:
        OSError, IngestError: as `read_range`.
    """
    import obstore

    root, key = _split(url)
    with _named_errors(url):
        return int(obstore.head(_store(root), key)["size"])


def read_range(url: str, start: int, nbytes: int) -> bytes:
    """``nbytes`` bytes of an object from ``start`` on.

    Raises:
        OSError: no such object, not allowed, or it is shorter.
        IngestError: the storage does not answer.
    """
    import obstore

    if nbytes == 0:
        return b""
    root, key = _split(url)
    with _named_errors(url):
        data = bytes(obstore.get_range(_store(root), key, start=start, length=nbytes))
    if len(data) != nbytes:
        raise OSError(errno.EIO, "the object became shorter", url)
    return data


def read_object(url: str, nbytes: int) -> bytes:
    """A whole object of ``nbytes`` bytes, large ones by several requests at once.

    Raises:
        OSError, IngestError: as `read_range`.
    """
    starts = range(0, nbytes, BLOCK_BYTES)
    if len(starts) <= 1:
        return read_range(url, 0, nbytes)

    def part(start: int) -> bytes:
        return read_range(url, start, min(BLOCK_BYTES, nbytes - start))

    return b"".join(prefetch(part, starts, READ_THREADS))


def open_object(url: str, size: int, head: bytes = b"", block: int = HEAD_BYTES) -> IO[bytes]:
    """A seekable file on an object; what is read in order comes in ever larger ranges.

    Args:
        url: the object.
        size: its bytes.
        head: its first bytes, where they are known already.
        block: least bytes of a request.
    """

    def fetch(start: int, nbytes: int) -> bytes:
        return read_range(url, start, nbytes)

    return open_ranges(fetch, size, head, block, BLOCK_BYTES)


def _split(url: str) -> tuple[str, str]:
    """(store, key): ``s3://bucket/a/b`` is ``s3://bucket`` and ``a/b``."""
    scheme, rest = url.split("://", 1)
    netloc, _, key = rest.partition("/")
    return f"{scheme}://{netloc}", key.strip("/")


def _is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


@lru_cache(maxsize=64)
def _store(root: str) -> Any:
    """The store of a bucket or a web host, opened once a process."""
    from obstore.exceptions import BaseError
    from obstore.store import HTTPStore, from_url

    retry: Any = {
        "max_retries": MAX_RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S),
        "backoff": {
            "init_backoff": timedelta(seconds=0.2),
            "max_backoff": timedelta(seconds=10),
            "base": 2,
        },
    }
    client: Any = {"timeout": timedelta(seconds=TIMEOUT_S), **_client_settings(root)}
    try:
        if _is_web(root):
            return HTTPStore.from_url(root, client_options=client, retry_config=retry)
        return from_url(root, client_options=client, retry_config=retry)
    except (BaseError, ValueError) as exc:
        raise UsageError(
            f"{root}: cannot open this URL as storage ({_brief(exc)}); "
            "use a path, s3://, gs://, az://, http(s):// or file://"
        ) from exc


def _client_settings(root: str) -> dict[str, Any]:
    """HTTP settings of the environment: obstore looks at none of them once one is given here."""
    if root.lower().startswith("http://"):
        return {"allow_http": True}
    known = ("allow_http", "allow_invalid_certificates", "connect_timeout", "proxy_url", "timeout")
    found: dict[str, Any] = {}
    for prefix in ("AWS", "GOOGLE", "AZURE"):
        for name in known:
            if value := os.environ.get(f"{prefix}_{name.upper()}"):
                yes = name.startswith("allow")
                found[name] = value.lower() in ("1", "true", "yes", "on") if yes else value
    return found


def _list(url: str, root: str, key: str) -> dict[str, int]:
    import obstore
    from obstore.exceptions import BaseError

    try:
        pages = obstore.list(_store(root), prefix=key or None)
        return {entry["path"]: int(entry["size"]) for page in pages for entry in page}
    except (BaseError, OSError) as exc:
        raise UsageError(f"{url}: cannot be listed ({_brief(exc)}); {_HINT}") from exc


def _single(url: str, root: str, key: str) -> dict[str, int]:
    import obstore
    from obstore.exceptions import BaseError

    if urlsplit(url).query:
        raise UsageError(f"{url.split('?')[0]}: signed links are not read; give a plain URL")
    if not key:
        raise UsageError(f"{url}: nothing there; {_HINT}")
    try:
        return {key: int(obstore.head(_store(root), key)["size"])}
    except FileNotFoundError as exc:
        raise UsageError(f"{url}: no such object or prefix; {_HINT}") from exc
    except (BaseError, OSError) as exc:
        raise UsageError(f"{url}: cannot be read ({_brief(exc)}); {_HINT}") from exc


@contextmanager
def _named_errors(url: str) -> Iterator[None]:
    """Turns obstore's errors into ours: a verdict on one object, or the end of the run."""
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except FileNotFoundError as exc:
        raise FileNotFoundError(errno.ENOENT, "no such object", url) from exc
    except (PermissionDeniedError, UnauthenticatedError) as exc:
        raise PermissionError(errno.EACCES, "permission denied", url) from exc
    except (BaseError, OSError) as exc:
        raise IngestError(
            f"{url}: the storage does not answer as it should ({_brief(exc)}); "
            "run again when it does"
        ) from exc


def _brief(error: BaseException) -> str:
    """What went wrong in a few words: obstore's messages run over many lines."""
    text = str(error).strip().split("\n", 1)[0]
    if found := _CODE.search(text) or _STATUS.search(text):
        return found[1].strip()
    return text.rsplit(" - ", 1)[-1][:160]
