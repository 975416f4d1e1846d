"""The part of S3's protocol that an emulated store speaks: from a request to its answer, on files.

A bucket is a folder and an object is a file in it. Signatures are not looked at. The protocol:
https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_MAX_KEYS = 1000


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it came, its names of headers in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def query(self) -> dict[str, str]:
        """The parameters after the question mark."""
        parsed = parse_qs(urlsplit(self.target).query, keep_blank_values=True)
        return {name: values[0] for name, values in parsed.items()}

    @property
    def place(self) -> tuple[str, str]:
        """Bucket and key, either of them empty if the path has none."""
        path = unquote(urlsplit(self.target).path)
        bucket, _, key = path.lstrip("/").partition("/")
        return bucket, key

    @property
    def kind(self) -> str:
        """How it is counted: the method in lower case, or ``list``."""
        listing = self.method == "GET" and not self.place[1]
        return "list" if listing else self.method.lower()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A status, headers, and a body: bytes at hand, or ``[start, stop)`` of a file."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    file: Path | None = None
    start: int = 0
    stop: int = 0

    @property
    def nbytes(self) -> int:
        """Length of the body, bytes."""
        return self.stop - self.start if self.file else len(self.body)


class Buckets:
    """Answers requests from the folders under ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._uploads: dict[str, dict[int, bytes]] = {}

    def answer(self, request: Request) -> Answer:
        """What S3 would answer."""
        bucket, key = request.place
        folder = self._root / bucket
        if ".." in Path(key).parts or not bucket or bucket.startswith("."):
            return error(400, "InvalidURI")
        if not folder.is_dir():
            return error(404, "NoSuchBucket")
        if not key:
            return self._of_bucket(folder, bucket, request)
        path = folder / key
        match request.method:
            case "GET" | "HEAD":
                return _read(path, request)
            case "PUT" | "POST" if "uploadId" in request.query or "uploads" in request.query:
                return self._multipart(path, request)
            case "PUT":
                return self._write(path, request.body, request)
            case "DELETE":
                self._uploads.pop(request.query.get("uploadId", ""), None)
                if "uploadId" not in request.query:
                    path.unlink(missing_ok=True)
                return Answer(status=204)
        return error(405, "MethodNotAllowed")

    def _of_bucket(self, folder: Path, bucket: str, request: Request) -> Answer:
        if request.method == "GET":
            return _list(folder, bucket, request.query)
        if request.method == "HEAD":
            return Answer(status=200)
        if request.method == "POST" and "delete" in request.query:
            return _delete_many(folder, request.body)
        return error(405, "MethodNotAllowed")

    def _write(self, path: Path, body: bytes, request: Request) -> Answer:
        """Put an object whole or not at all; ``If-None-Match: *`` only where there is none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._root / f".{uuid.uuid4().hex}"
        unfinished.write_bytes(body)
        try:
            if request.headers.get("if-none-match") == "*":
                os.link(unfinished, path)  # unlike replace(), refuses to overwrite
            else:
                os.replace(unfinished, path)
        except FileExistsError:
            return error(412, "PreconditionFailed")
        finally:
            unfinished.unlink(missing_ok=True)
        return Answer(status=200, headers={"ETag": _etag(path.stat())})

    def _multipart(self, path: Path, request: Request) -> Answer:
        query = request.query
        if "uploads" in query:
            upload = uuid.uuid4().hex
            self._uploads[upload] = {}
            name = f"<UploadId>{upload}</UploadId>"
            return _xml("InitiateMultipartUploadResult", _place_xml(request) + name)
        parts = self._uploads.get(query["uploadId"])
        if parts is None:
            return error(404, "NoSuchUpload")
        if request.method == "PUT":
            parts[int(query["partNumber"])] = request.body
            digest = hashlib.md5(request.body, usedforsecurity=False).hexdigest()
            return Answer(status=200, headers={"ETag": f'"{digest}"'})
        done = self._write(path, b"".join(parts[n] for n in sorted(parts)), request)
        if done.status != 200:
            return done
        del self._uploads[query["uploadId"]]
        etag = f"<ETag>{escape(done.headers['ETag'])}</ETag>"
        return _xml("CompleteMultipartUploadResult", _place_xml(request) + etag)


def error(status: int, code: str) -> Answer:
    """An error as S3 words it."""
    body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return Answer(status=status, headers={"Content-Type": "application/xml"}, body=body.encode())


def _read(path: Path, request: Request) -> Answer:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return error(404, "NoSuchKey")
    if not path.is_file():
        return error(404, "NoSuchKey")
    headers = {
        "ETag": _etag(found),
        "Last-Modified": formatdate(found.st_mtime, usegmt=True),
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    size = found.st_size
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if wanted is None or wanted[1] == wanted[2] == "":
        return Answer(status=200, headers=headers, file=path, stop=size)
    if wanted[1]:
        start, stop = int(wanted[1]), min(size, int(wanted[2] or size) + 1)
    else:
        start, stop = max(0, size - int(wanted[2])), size
    if start >= stop:
        refused = error(416, "InvalidRange")
        refused.headers["Content-Range"] = f"bytes */{size}"
        return refused
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Answer(status=206, headers=headers, file=path, start=start, stop=stop)


def _list(folder: Path, bucket: str, query: dict[str, str]) -> Answer:
    """ListObjectsV2: keys in the order of their bytes, in pages."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("continuation-token") or query.get("start-after", "")
    limit = min(_MAX_KEYS, int(query.get("max-keys", _MAX_KEYS)))
    seen: set[str] = set()
    items: list[str] = []
    last, truncated = "", False
    for key in sorted(_keys(folder), key=str.encode):
        if not key.startswith(prefix) or key.encode() <= after.encode():
            continue
        head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        common = prefix + head + cut if cut else ""
        if common and (common in seen or after.startswith(common)):
            continue
        if len(items) == limit:
            truncated = True
            break
        seen.add(common)
        last = key
        items.append(_prefix_xml(common) if common else _object_xml(folder, key))
    body = f"<Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix>"
    body += f"<KeyCount>{len(items)}</KeyCount><MaxKeys>{limit}</MaxKeys>"
    body += f"<IsTruncated>{str(truncated).lower()}</IsTruncated>"
    if truncated:
        body += f"<NextContinuationToken>{escape(last)}</NextContinuationToken>"
    return _xml("ListBucketResult", body + "".join(items))


def _keys(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield (Path(parent) / name).relative_to(folder).as_posix()


def _object_xml(folder: Path, key: str) -> str:
    found = (folder / key).stat()
    changed = datetime.fromtimestamp(found.st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return (
        f"<Contents><Key>{escape(key)}</Key><Size>{found.st_size}</Size>"
        f"<ETag>{escape(_etag(found))}</ETag><LastModified>{changed}</LastModified></Contents>"
    )


def _prefix_xml(common: str) -> str:
    return f"<CommonPrefixes><Prefix>{escape(common)}</Prefix></CommonPrefixes>"


def _delete_many(folder: Path, body: bytes) -> Answer:
    tree = ElementTree.fromstring(body)
    deleted = ""
    for element in tree.iter():
        key = element.text or ""
        if element.tag.rpartition("}")[2] == "Key" and key and ".." not in Path(key).parts:
            (folder / key).unlink(missing_ok=True)
            deleted += f"<Deleted><Key>{escape(key)}</Key></Deleted>"
    return _xml("DeleteResult", deleted)


def _place_xml(request: Request) -> str:
    bucket, key = request.place
    return f"<Bucket>{escape(bucket)}</Bucket><Key>{escape(key)}</Key>"


def _xml(name: str, inside: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?><{name}>{inside}</{name}>'
    return Answer(status=200, headers={"Content-Type": "application/xml"}, body=body.encode())


def _etag(found: os.stat_result) -> str:
    return f'"{found.st_size:x}-{found.st_mtime_ns:x}"'
