"""Writes into object storage: whole objects, files in parts, and puts that hold under a condition.

An object appears whole or not at all. A file is sent in parts, of which only a few are in memory at
a time; where sending fails, the storage is told to drop the parts that it has. A process that is
killed cannot tell it: `shards.upload_sweep` finds what is left of those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import obstore
from obstore.exceptions import NotSupportedError, PreconditionError

from shards.attempts import counted
from shards.backends import PART_BYTES
from shards.connection import Connection
from shards.errors import AccessDeniedError, ServiceError, ShardError, StorageUnavailableError
from shards.failpoints import failpoint
from shards.faults import STORAGE_ERRORS, Kind, classify
from shards.policy import DEFAULT_POLICY, RequestPolicy
from shards.stats import Stats
from shards.urls import connect, shown

PARTS_IN_FLIGHT = 4
"""Parts that are sent at once, and so are in memory."""
MAX_PARTS = 9000
"""Of one object: S3 takes 10,000."""
_GIVEN_UP = {Kind.BROKEN, Kind.THROTTLED, Kind.UNREACHABLE}
"""Faults of a service that obstore has tried again for as long as the policy says."""

T = TypeVar("T")
Version: TypeAlias = Mapping[str, str]
"""What tells one content of an object from another, as its storage names it."""


@dataclass(frozen=True)
class Bucket:
    """A prefix of a bucket (``s3:// gs:// az://``), to write and to list."""

    name: str
    """URL for messages: no secrets."""
    policy: RequestPolicy
    connection: Connection
    stats: Stats


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What a storage says of an object without sending it."""

    nbytes: int
    e_tag: str
    """Empty where the storage has none."""
    modified: datetime
    """By the storage's own clock."""


def open_bucket(url: str, policy: RequestPolicy = DEFAULT_POLICY) -> Bucket:
    """Open a prefix for writing; credentials and endpoint come from the environment.

    Raises:
        ShardError: the URL cannot be opened as storage.
    """
    return Bucket(shown(url), policy, Connection(partial(connect, url, policy)), Stats())


def put(bucket: Bucket, path: str, data: bytes) -> str:
    """Write an object, over one that is there; its ETag, or "".

    Raises:
        ShardError: it cannot be written.
    """
    if len(data) > PART_BYTES:
        return _put_parts(bucket, path, len(data), lambda size: _cut(data, size))
    return _call(bucket, path, lambda: _put_once(bucket, path, data))


def put_file(bucket: Bucket, path: str, file: Path) -> str:
    """Write an object from a local file, in parts where it is large; its ETag, or "".

    Raises:
        ShardError: it cannot be written.
    """
    nbytes = file.stat().st_size
    if nbytes <= PART_BYTES:
        return put(bucket, path, file.read_bytes())
    return _put_parts(bucket, path, nbytes, lambda size: _parts(file, size))


def _put_once(bucket: Bucket, path: str, data: bytes) -> str:
    result = obstore.put(bucket.connection.once, path, data, use_multipart=False)
    return result["e_tag"] or ""


def _put_parts(
    bucket: Bucket, path: str, nbytes: int, cut: Callable[[int], Iterator[bytes]]
) -> str:
    """Send an object in parts; what is sent is dropped by the storage if one of them fails."""
    part_bytes = max(PART_BYTES, -(-nbytes // MAX_PARTS))

    def send() -> str:
        with _naming(bucket, path):
            result = obstore.put(
                bucket.connection.repeating,
                path,
                cut(part_bytes),
                use_multipart=True,
                chunk_size=part_bytes,
                max_concurrency=PARTS_IN_FLIGHT,
            )
        return result["e_tag"] or ""

    try:
        return send()
    except AccessDeniedError:
        bucket.connection.renew()
        return send()


def _cut(data: bytes, part_bytes: int) -> Iterator[bytes]:
    return (data[at : at + part_bytes] for at in range(0, len(data), part_bytes))


def _parts(file: Path, part_bytes: int) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while part := opened.read(part_bytes):
            yield part
            failpoint("part_sent")


def create(bucket: Bucket, path: str, data: bytes) -> Version | None:
    """Write an object unless there is one; its version, or None where there is.

    Some servers know no conditions and write all the same. An answer that gets lost is asked for
    again, which then finds the object: who needs to know reads it.

    Raises:
        ShardError: it cannot be written.
    """
    try:
        return _call(bucket, path, lambda: _version(_put_if(bucket, path, data, "create")))
    except FileExistsError:
        return None


def replace(bucket: Bucket, path: str, data: bytes, version: Version) -> Version | None:
    """Write an object if it is still of ``version``; its new version, or None where it is not.

    See `create` for what is not sure.

    Raises:
        ShardError: it cannot be written.
    """
    try:
        return _call(bucket, path, lambda: _version(_put_if(bucket, path, data, dict(version))))
    except (FileExistsError, FileNotFoundError):
        return None


def _put_if(bucket: Bucket, path: str, data: bytes, mode: Any) -> Any:
    try:
        return obstore.put(bucket.connection.once, path, data, mode=mode, use_multipart=False)
    except PreconditionError as exc:
        raise FileExistsError(path) from exc
    except NotSupportedError:  # as a server that knows no conditions
        return obstore.put(bucket.connection.once, path, data, use_multipart=False)


def read_versioned(bucket: Bucket, path: str) -> tuple[bytes, Version, datetime] | None:
    """An object's content, version and time of writing; None where there is none.

    Raises:
        ShardError: it cannot be read.
    """

    def read() -> tuple[bytes, Version, datetime]:
        found = obstore.get(bucket.connection.once, path)
        return bytes(found.bytes()), _version(found.meta), found.meta["last_modified"]

    try:
        return _call(bucket, path, read)
    except FileNotFoundError:
        return None


def stamp(bucket: Bucket, path: str) -> Stamp | None:
    """What is known of an object without its content; None where there is none.

    Raises:
        ShardError: the storage does not say.
    """
    try:
        return _call(bucket, path, lambda: _stamp(obstore.head(bucket.connection.once, path)))
    except FileNotFoundError:
        return None


def list_all(bucket: Bucket, folder: str = "") -> dict[str, Stamp]:
    """Every object below ``folder``, at any depth, by its path.

    Raises:
        ShardError: the storage cannot be listed.
    """

    def read() -> dict[str, Stamp]:
        pages = obstore.list(bucket.connection.once, prefix=folder or None)
        return {entry["path"]: _stamp(entry) for page in pages for entry in page}

    return _call(bucket, folder, read)


def top_names(bucket: Bucket) -> set[str]:
    """Names of objects and folders directly in the prefix.

    Raises:
        ShardError: the storage cannot be listed.
    """
    found = _call(bucket, "", lambda: obstore.list_with_delimiter(bucket.connection.once))
    # Consoles mark a folder by an empty object of its name: that is the root itself here.
    return {*(entry["path"] for entry in found["objects"]), *found["common_prefixes"]} - {""}


def delete(bucket: Bucket, paths: Iterable[str]) -> None:
    """Delete objects, whether they are there or not; many by one request where that is possible.

    Raises:
        ShardError: the storage refuses.
    """
    wanted = list(paths)
    if not wanted:
        return
    try:
        _call(bucket, "", lambda: obstore.delete(bucket.connection.once, wanted))
    except FileNotFoundError:  # some storages mind what others do not
        for path in wanted:
            with suppress(FileNotFoundError):
                _call(bucket, path, partial(obstore.delete, bucket.connection.once, path))


def _call(bucket: Bucket, path: str, operation: Callable[[], T]) -> T:
    """What one attempt returns, tried as often as the policy allows."""
    where = f"{bucket.name}/{path}" if path else bucket.name
    return counted(operation, bucket.policy, where, bucket.stats, bucket.connection.renew)


@contextmanager
def _naming(bucket: Bucket, path: str) -> Iterator[None]:
    """Turns obstore's errors into ours: one line that says what, where and what to do."""
    try:
        yield
    except ShardError:
        raise
    except STORAGE_ERRORS as exc:
        fault = classify(exc)
        where = f"{bucket.name}/{path}" if path else bucket.name
        text = f"{where}: {fault.brief}" + (f"; {fault.hint}" if fault.hint else "")
        if fault.kind is Kind.DENIED:
            raise AccessDeniedError(text) from exc
        raise (StorageUnavailableError if fault.kind in _GIVEN_UP else ServiceError)(text) from exc


def _version(found: Mapping[str, Any]) -> Version:
    return {name: found[name] for name in ("e_tag", "version") if found[name]}


def _stamp(entry: Mapping[str, Any]) -> Stamp:
    return Stamp(
        nbytes=int(entry["size"]), e_tag=entry["e_tag"] or "", modified=entry["last_modified"]
    )
