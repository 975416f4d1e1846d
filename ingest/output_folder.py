"""A dataset is built in a local folder: files are made in place, and get their names when whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from ingest.errors import IngestError
from ingest.lock import check_free, locked, waiting_lock
from ingest.output import STATE, STATE_FOLDER
from shards.files import write_atomic
from shards.schema import FileEntry

GROUP_WAIT_S = 3600.0
"""How long a group waits for another process that is at the same one."""
REMOVAL_TRIES = 5
"""A task that a killed run left on a cluster may put a last file where one is just removed."""


class FolderHold:
    """A lock of the operating system: nobody can take it over."""

    def check(self) -> None:
        """It is held as long as this process lives."""


class FolderOutput:
    """See `ingest.output.Output`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = str(folder)
        self.address = str(folder.resolve())

    def check(self, *, writing: bool, take: bool = False) -> None:
        """See ``Output``; that nothing can be written shows when the lock is made."""
        check_free(self.folder)

    def complaint(self) -> str:
        """See ``Output``."""
        if (self.folder / STATE).exists():
            return ""
        return f"does not see OUT at {self.folder}; mount it at the same path on every worker"

    @contextmanager
    def locked(self, *, take: bool, say: Callable[[str], None]) -> Iterator[FolderHold]:
        """See ``Output``; the lock of a dead process is free, so that ``take`` changes nothing."""
        with locked(self.folder):
            yield FolderHold()

    @contextmanager
    def group_lock(self, number: int) -> Iterator[None]:
        """See ``Output``.

        Raises:
            FileNotFoundError: the build is over.
            IngestError: another process keeps the group.
        """
        with waiting_lock(self._group_lock(number), GROUP_WAIT_S):
            yield

    def _group_lock(self, number: int) -> Path:
        return self.folder / STATE_FOLDER / f"group-{number:06d}.lock"

    def names(self, folder: str = "") -> set[str]:
        """See ``Output``."""
        try:
            return {path.name for path in (self.folder / folder).iterdir()}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def read(self, path: str) -> bytes | None:
        """See ``Output``."""
        try:
            return (self.folder / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """See ``Output``."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if durable:
            write_atomic(target, data)
            return
        # Its own name: a cluster may give one task to two workers at once.
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            partial.write_bytes(data)
            os.replace(partial, target)
        except BaseException:  # a full disk is not left with the part that did fit
            partial.unlink(missing_ok=True)
            raise

    def remove(self, paths: Collection[str]) -> None:
        """See ``Output``."""
        for path in paths:
            (self.folder / path).unlink(missing_ok=True)

    def remove_state(self) -> None:
        """See ``Output``."""
        for _ in range(REMOVAL_TRIES):
            shutil.rmtree(self.folder / STATE_FOLDER, ignore_errors=True)
            if not (self.folder / STATE_FOLDER).exists():
                break

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """See ``Output``: the folder itself."""
        yield self.folder

    def deliver(self, folder: Path) -> dict[str, str]:
        """See ``Output``: they are here already."""
        return {}

    def changed(self, files: Sequence[FileEntry], e_tags: Mapping[str, str]) -> set[str]:
        """See ``Output``; every file is read."""
        return {file.name for file in files if not _unchanged(self.folder / file.name, file)}

    def confirm(self, files: Sequence[FileEntry], e_tags: Mapping[str, str]) -> None:
        """See ``Output``: the locks saw to that."""

    def clear_partials(self) -> None:
        """See ``Output``.

        Ending a run ends its local workers wherever they are. On a cluster they go on to the end of
        their shard, and keep its lock until then.
        """
        for path in self.folder.glob(".shard-*.tmp"):
            number = int(path.name[len(".shard-") :].split(".")[0])
            with suppress(OSError, IngestError), waiting_lock(self._group_lock(number), 0):
                path.unlink()

    def naming(self) -> AbstractContextManager[None]:
        """See ``Output``: a disk's errors do so by themselves."""
        return nullcontext()


def _unchanged(path: Path, expected: FileEntry) -> bool:
    if not path.is_file() or path.stat().st_size != expected.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == expected.sha256
