"""Writes into object storage: whole objects, files in parts, and puts that hold under a condition.

An object appears whole or not at all. A file is sent in parts, of which only a few are in memory at
a time; where sending fails, the storage is told to drop the parts that it has. A process that is
killed cannot tell it: `shards.upload_sweep` finds what is left of those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store, from_url

from shards.errors import ShardError
from shards.failpoints import failpoint

PART_BYTES = 8 << 20
"""Of one request: S3 takes 10,000 parts, so that a file may have 78 GiB."""
PARTS_IN_FLIGHT = 4
"""Parts that are sent at once, and so are in memory."""
_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"status code: (\d+ [A-Za-z ]+)")

Bucket: TypeAlias = AzureStore | GCSStore | S3Store
Version: TypeAlias = Mapping[str, str]
"""What tells one content of an object from another, as its storage names it."""


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What a storage says of an object without sending it."""

    nbytes: int
    e_tag: str
    """Empty where the storage has none."""
    modified: datetime
    """By the storage's own clock."""


def open_bucket(url: str) -> Bucket:
    """Open a prefix of a bucket (``s3:// gs:// az://``) for writing.

    Raises:
        ShardError: the URL cannot be opened as such.
    """
    try:
        opened = from_url(url)
    except (BaseError, ValueError) as exc:
        raise ShardError(f"{url}: cannot open this URL as a bucket ({brief(exc)})") from exc
    if not isinstance(opened, Bucket):
        raise ShardError(f"{url}: is no bucket; use a URL that starts with s3://, gs:// or az://")
    return opened


def put(bucket: Bucket, path: str, data: bytes) -> str:
    """Write an object, over one that is there; its ETag, or "".

    Raises:
        ShardError: it cannot be written.
    """
    with _naming(path, "written"):
        result = obstore.put(
            bucket, path, data, chunk_size=PART_BYTES, max_concurrency=PARTS_IN_FLIGHT
        )
    return result["e_tag"] or ""


def put_file(bucket: Bucket, path: str, file: Path) -> str:
    """Write an object from a local file, in parts where it is large; its ETag, or "".

    Raises:
        ShardError: it cannot be written.
    """
    if file.stat().st_size <= PART_BYTES:
        return put(bucket, path, file.read_bytes())
    with _naming(path, "written"):
        result = obstore.put(
            bucket,
            path,
            _parts(file),
            use_multipart=True,
            chunk_size=PART_BYTES,
            max_concurrency=PARTS_IN_FLIGHT,
        )
    return result["e_tag"] or ""


def _parts(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while part := opened.read(PART_BYTES):
            yield part
            failpoint("part_sent")


def create(bucket: Bucket, path: str, data: bytes) -> Version | None:
    """Write an object unless there is one; its version, or None where there is.

    Some servers know no conditions and write all the same.

    Raises:
        ShardError: it cannot be written.
    """
    with _naming(path, "written"):
        try:
            return _version(obstore.put(bucket, path, data, mode="create"))
        except AlreadyExistsError:
            return None


def replace(bucket: Bucket, path: str, data: bytes, version: Version) -> Version | None:
    """Write an object if it is still of ``version``; its new version, or None where it is not.

    Raises:
        ShardError: it cannot be written.
    """
    mode: Any = dict(version)
    with _naming(path, "written"):
        try:
            return _version(obstore.put(bucket, path, data, mode=mode))
        except (PreconditionError, AlreadyExistsError, FileNotFoundError):
            return None
        except NotSupportedError:
            return _version(obstore.put(bucket, path, data))


def read_versioned(bucket: Bucket, path: str) -> tuple[bytes, Version, datetime] | None:
    """An object's content, version and time of writing; None where there is none.

    Raises:
        ShardError: it cannot be read.
    """
    with _naming(path, "read"):
        try:
            found = obstore.get(bucket, path)
            return bytes(found.bytes()), _version(found.meta), found.meta["last_modified"]
        except FileNotFoundError:
            return None


def stamp(bucket: Bucket, path: str) -> Stamp | None:
    """What is known of an object without its content; None where there is none.

    Raises:
        ShardError: the storage does not say.
    """
    with _naming(path, "read"):
        try:
            return _stamp(obstore.head(bucket, path))
        except FileNotFoundError:
            return None


def list_all(bucket: Bucket, folder: str = "") -> dict[str, Stamp]:
    """Every object below ``folder``, at any depth, by its path.

    Raises:
        ShardError: the storage cannot be listed.
    """
    with _naming(folder or "the bucket", "listed"):
        pages = obstore.list(bucket, prefix=folder or None)
        return {entry["path"]: _stamp(entry) for page in pages for entry in page}


def top_names(bucket: Bucket) -> set[str]:
    """Names of objects and folders directly in the prefix.

    Raises:
        ShardError: the storage cannot be listed.
    """
    with _naming("the bucket", "listed"):
        found = obstore.list_with_delimiter(bucket)
    # Consoles mark a folder by an empty object of its name: that is the root itself here.
    return {*(entry["path"] for entry in found["objects"]), *found["common_prefixes"]} - {""}


def delete(bucket: Bucket, paths: Iterable[str]) -> None:
    """Delete objects, whether they are there or not.

    Raises:
        ShardError: the storage refuses.
    """
    wanted = list(paths)
    if wanted:
        with _naming(wanted[0], "deleted"):
            try:
                obstore.delete(bucket, wanted)
            except FileNotFoundError:
                # Some storages mind what others do not: then one by one.
                for path in wanted:
                    _delete_one(bucket, path)


def _delete_one(bucket: Bucket, path: str) -> None:
    try:
        obstore.delete(bucket, path)
    except FileNotFoundError:
        return


def brief(error: BaseException) -> str:
    """What went wrong in a few words: obstore's messages run over many lines."""
    text = str(error).strip()
    if found := _CODE.search(text) or _STATUS.search(text):
        return found[1].strip()
    return text.split("\n", 1)[0].rsplit(" - ", 1)[-1][:160]


@contextmanager
def _naming(path: str, what: str) -> Iterator[None]:
    """Turns obstore's errors into ours: one line that names the object."""
    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError) as exc:
        raise ShardError(
            f"{path}: cannot be {what}: the storage does not allow it ({brief(exc)})"
        ) from exc
    except (BaseError, OSError) as exc:
        raise ShardError(f"{path}: cannot be {what} ({brief(exc)})") from exc


def _version(found: Mapping[str, Any]) -> Version:
    return {name: found[name] for name in ("e_tag", "version") if found[name]}


def _stamp(entry: Mapping[str, Any]) -> Stamp:
    return Stamp(
        nbytes=int(entry["size"]), e_tag=entry["e_tag"] or "", modified=entry["last_modified"]
    )
