"""Raw archives in a bucket: listing, ranged reads and whole objects, through obstore.

Credentials and endpoints come from the environment, as for datasets (docs/storage.md). Each process
opens stores of its own. What the network does is never a verdict on a file: only "no such object"
and "not allowed" are; the rest stops the run, in one line.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from ingest.errors import IngestError, UsageError
from ingest.ranges import open_ranges
from shards.errors import ShardError
from shards.policy import RequestPolicy
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
    from shards.urls import connect

    policy = RequestPolicy(
        attempts=MAX_RETRIES,
        patience_s=RETRY_TIMEOUT_S,
        upload_deadline_s=TIMEOUT_S,
        max_backoff_s=10.0,
    )
    try:
        return connect(root, policy, True)
    except ShardError as exc:
        raise UsageError(str(exc)) from exc


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
    from shards.faults import classify

    return classify(error).brief
