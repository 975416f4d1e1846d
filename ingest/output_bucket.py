"""A dataset is built in a bucket: a shard is made in a temporary file, then sent.

A group that two workers of a cluster build at once is sent twice, with the same bytes: the later
one stays, and nobody can tell. Before the manifest is put, a listing shows that every object is
the one that was sent.
"""

from __future__ import annotations

import hashlib
import socket
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from ingest.bucket_lock import BucketLock, bucket_locked, check_bucket_free
from ingest.errors import IngestError, UsageError
from ingest.lock import LOCK_FILE
from ingest.output import STATE, STATE_FOLDER
from ingest.workspace import remove_left_over, workspace
from shards import upload
from shards.errors import CorruptShardError, FormatVersionError, ShardError
from shards.failpoints import failpoint
from shards.opening import get_if_there
from shards.policy import DEFAULT_POLICY
from shards.schema import MANIFEST, FileEntry
from shards.store import Store, open_store, stream
from shards.upload import Bucket, Stamp
from shards.upload_sweep import sweep_uploads

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl")
"""Storages that can be written to."""
FEW = 6
"""Objects that are asked for one by one; more are listed."""


class BucketOutput:
    """See `ingest.output.Output`."""

    def __init__(self, url: str) -> None:
        self.name = self.address = url.rstrip("/")
        parts = urlsplit(url)
        if parts.scheme.lower() not in SCHEMES:
            raise UsageError(
                f"{url}: nothing can be written there; give a folder, or a URL that starts with "
                "s3://, gs:// or az://"
            )
        folders = parts.path.removeprefix("/").removesuffix("/").split("/")
        odd = parts.query or parts.fragment or not parts.netloc
        if odd or (folders != [""] and {"", ".", ".."} & set(folders)):
            raise UsageError(f"{url}: is no plain prefix; give OUT as s3://bucket/prefix")

    @cached_property
    def bucket(self) -> Bucket:
        """The prefix, to write and to list."""
        return upload.open_bucket(self.address)

    @cached_property
    def store(self) -> Store:
        """The same, to read."""
        return open_store(self.address)

    def check(self, *, writing: bool, take: bool = False) -> None:
        """See ``Output``."""
        policy = replace(DEFAULT_POLICY, patience_s=DEFAULT_POLICY.first_patience_s)
        try:
            bucket = upload.open_bucket(self.address, policy)
            names = upload.top_names(bucket)
            # A complete dataset may lie where nobody can write any more.
            if writing and MANIFEST not in names:
                _try_to_write(bucket)
            if LOCK_FILE in names and writing and not take:
                check_bucket_free(bucket, self.name)
        except ShardError as exc:
            raise UsageError(str(exc)) from exc

    def complaint(self) -> str:
        """See ``Output``."""
        try:
            if upload.stamp(self.bucket, STATE) is None:
                return f"on {socket.gethostname()} does not see the build in OUT {self.name}"
            _try_to_write(self.bucket)
        except ShardError as exc:
            return (
                f"on {socket.gethostname()} cannot use OUT ({exc}); credentials and endpoint have "
                "to be in the environment of each worker"
            )
        return ""

    @contextmanager
    def locked(self, *, take: bool, say: Callable[[str], None]) -> Iterator[BucketLock]:
        """See ``Output``."""
        remove_left_over()
        with bucket_locked(self.bucket, self.name, take=take) as lock:
            if advice := sweep_uploads(self.address):
                say(advice)
            yield lock
            if not advice:
                sweep_uploads(self.address)  # of workers that died meanwhile

    def group_lock(self, number: int) -> AbstractContextManager[None]:
        """See ``Output``: they do not disturb each other."""
        return nullcontext()

    def names(self, folder: str = "") -> set[str]:
        """See ``Output``."""
        if not folder:
            return upload.top_names(self.bucket)
        cut = len(folder) + 1
        return {path[cut:].split("/")[0] for path in upload.list_all(self.bucket, folder)}

    def read(self, path: str) -> bytes | None:
        """See ``Output``."""
        return get_if_there(self.store, path)

    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """See ``Output``."""
        upload.put(self.bucket, path, data)

    def remove(self, paths: Collection[str]) -> None:
        """See ``Output``."""
        upload.delete(self.bucket, paths)

    def remove_state(self) -> None:
        """See ``Output``."""
        upload.delete(self.bucket, upload.list_all(self.bucket, STATE_FOLDER))

    def workspace(self) -> AbstractContextManager[Path]:
        """See ``Output``: a temporary folder."""
        return workspace()

    def deliver(self, folder: Path) -> dict[str, str]:
        """See ``Output``."""
        found = sorted(folder.iterdir(), key=lambda path: (path.name == MANIFEST, path.name))
        e_tags = {}
        for path in found:
            if path.name == MANIFEST:
                failpoint("manifest_waits")
            e_tags[path.name] = upload.put_file(self.bucket, path.name, path)
            failpoint("delivered")
        return e_tags

    def changed(self, files: Sequence[FileEntry], e_tags: Mapping[str, str]) -> set[str]:
        """See ``Output``; what has its size and ETag is not read."""
        if len(files) <= FEW:
            found = {file.name: upload.stamp(self.bucket, file.name) for file in files}
        else:
            found = dict(upload.list_all(self.bucket))
        return {
            file.name
            for file in files
            if not self._unchanged(file, found.get(file.name), e_tags.get(file.name, ""))
        }

    def _unchanged(self, file: FileEntry, found: Stamp | None, e_tag: str) -> bool:
        if found is None or found.nbytes != file.bytes:
            return False
        if found.e_tag == e_tag != "":
            return True
        # Where a storage encrypts with keys of its own, the same bytes have another ETag each time.
        digest = hashlib.sha256()
        for piece in stream(self.store, file.name):
            digest.update(piece)
        return digest.hexdigest() == file.sha256

    def confirm(self, files: Sequence[FileEntry], e_tags: Mapping[str, str]) -> None:
        """See ``Output``."""
        if changed := sorted(self.changed(files, e_tags)):
            raise IngestError(
                f"{self.name}: {changed[0]} is not what this run wrote there (and "
                f"{len(changed) - 1} more); end whatever else writes there, then run the same "
                "command again"
            )

    def clear_partials(self) -> None:
        """See ``Output``: nobody can see any."""

    @contextmanager
    def naming(self) -> Iterator[None]:
        """See ``Output``."""
        try:
            yield
        except (CorruptShardError, FormatVersionError):
            raise
        except ShardError as exc:
            raise IngestError(f"{exc}; the same command goes on from here") from exc


def _try_to_write(bucket: Bucket) -> None:
    probe = f"{STATE_FOLDER}/probe-{uuid.uuid4().hex}"
    upload.put(bucket, probe, b"")
    upload.delete(bucket, [probe])
