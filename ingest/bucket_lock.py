"""One writer at a time in a bucket: an object that is put only where none is.

It says who writes, and is written anew from time to time as a sign of life. A run on the same
machine sees at once that the holder is dead; one elsewhere after `DEAD_S` without such a sign, by
the storage's own clock, or at once if the user says so (``--take-lock``). Taking over is a put
under the condition that the lock is still the one that was read, so that of two who try one wins.

Some servers do not know conditions, and write all the same. Then whoever wrote last has the lock:
each reads it again after `SETTLE_S`, which is right as long as requests are answered in less.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ingest.errors import IngestError, UsageError
from ingest.lock import LOCK_FILE
from ingest.output import STATE_FOLDER
from shards import upload
from shards.errors import CorruptShardError, ShardError
from shards.failpoints import failpoint
from shards.schema import canonical_json, load_json
from shards.upload import Bucket, Version

HEARTBEAT_S = 30.0
"""How often the holder gives a sign of life."""
DEAD_S = 600.0
"""A holder on another machine that has given none for this long is dead."""
SETTLE_S = 2.0
"""See above: only for servers without conditional puts."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a lock: the content of its object."""

    nonce: str
    """Another one each time."""
    process: int
    born: str
    """When the process began, as its system counts: a process number is given out again."""
    host: str
    machine: str
    """Tells whether a process number means the same; empty where that is not known."""
    started: str
    """UTC."""
    beats: int = 0
    """Signs of life so far."""

    @property
    def is_dead(self) -> bool:
        """Whether it ran on this machine and is gone."""
        return self.machine == machine_id() != "" and _born(self.process) != self.born


def this_process() -> Owner:
    """An owner that has just begun."""
    return Owner(
        nonce=uuid.uuid4().hex,
        process=os.getpid(),
        born=_born(os.getpid()),
        host=socket.gethostname(),
        machine=machine_id(),
        started=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def machine_id() -> str:
    """Digest of the running system and its space of process numbers; empty off Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return hashlib.sha256(f"{boot} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()
    except OSError:
        return ""


def _born(process: int) -> str:
    """When a process began, in ticks since boot; empty if there is none (or only its remains)."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


@contextmanager
def bucket_locked(bucket: Bucket, url: str, *, take: bool = False) -> Iterator[BucketLock]:
    """Hold the dataset at ``url`` for writing.

    Args:
        bucket: at that prefix.
        url: for messages.
        take: take a lock over, whoever has it: the user knows that its holder is dead.

    Raises:
        UsageError: another run holds it.
        ShardError: the storage refuses.
    """
    lock = BucketLock(bucket, url)
    lock.acquire(take=take)
    failpoint("bucket_locked")
    try:
        yield lock
    finally:
        lock.release()


def check_bucket_free(bucket: Bucket, url: str) -> None:
    """Say early that another run holds ``url``.

    Raises:
        UsageError: it does.
    """
    lock = BucketLock(bucket, url)
    if (found := lock.read()) is not None and not lock.is_free(*found):
        raise UsageError(_refusal(url, found[0]))


class BucketLock:
    """The lock of one prefix."""

    def __init__(self, bucket: Bucket, url: str) -> None:
        self._bucket, self._url = bucket, url
        self._owner = this_process()
        self._lost_to = ""
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="bucket-lock", daemon=True)

    def acquire(self, *, take: bool) -> None:
        """Get the lock, then give signs of life until `release`.

        Raises:
            UsageError: another run has it.
        """
        while self._try(take=take) is None:
            pass  # whoever had it has just let it go
        self._thread.start()

    def _try(self, *, take: bool) -> Version | None:
        """The version of the lock once it is ours; None where it is free after all.

        Raises:
            UsageError: another run has it.
        """
        # Read before any put: a server without conditions would write over a living holder's.
        found = self.read()
        if found is None:
            version = upload.create(self._bucket, LOCK_FILE, self._content())
        elif take or self.is_free(*found):
            version = upload.replace(self._bucket, LOCK_FILE, self._content(), found[1])
        else:
            raise UsageError(_refusal(self._url, found[0]))
        if version is not None and upload.create(self._bucket, LOCK_FILE, self._content()):
            self._ends.wait(SETTLE_S)  # the server has just shown that it knows no conditions
        # Read again also where the put failed: the answer may be to its own repetition.
        if (now := self.read()) is not None and not self._is_ours(now[0]):
            raise UsageError(_refusal(self._url, now[0]))
        return None if now is None else now[1]

    def release(self) -> None:
        """End the signs of life, and remove the lock if it is still ours."""
        self._ends.set()
        self._thread.join()
        with suppress(ShardError):  # a storage that is gone: the lock is dead with this process
            if not self._lost_to and (found := self.read()) and self._is_ours(found[0]):
                upload.delete(self._bucket, [LOCK_FILE])

    def check(self) -> None:
        """Make sure that nobody has taken the lock over.

        Raises:
            IngestError: someone has.
        """
        if self._lost_to:
            raise IngestError(
                f"{self._url}: {self._lost_to} has taken the lock over, because this run gave no "
                "sign of life, or by --take-lock; one run at a time writes there"
            )

    def read(self) -> tuple[Owner, Version, datetime] | None:
        """Who holds the lock, its version, and when it was last written; None where it is free."""
        found = upload.read_versioned(self._bucket, LOCK_FILE)
        if found is None:
            return None
        try:
            owner = load_json(found[0], Owner, LOCK_FILE)
        except CorruptShardError as exc:
            raise UsageError(
                f"{self._url}: holds a foreign object {LOCK_FILE}; give another OUT"
            ) from exc
        return owner, found[1], found[2]

    def is_free(self, owner: Owner, _version: Version, beaten: datetime) -> bool:
        """Whether the holder of a lock is dead."""
        return owner.is_dead or (self._now() - beaten).total_seconds() > DEAD_S

    def _now(self) -> datetime:
        """The storage's clock: those of two machines may differ by more than `DEAD_S`."""
        probe = f"{STATE_FOLDER}/clock-{self._owner.nonce}"
        try:
            upload.put(self._bucket, probe, b"")
            stamp = upload.stamp(self._bucket, probe)
            upload.delete(self._bucket, [probe])
        except ShardError:  # nothing may be written: then nothing is taken over either
            stamp = None
        return datetime.min.replace(tzinfo=UTC) if stamp is None else stamp.modified

    def _content(self) -> bytes:
        return canonical_json(asdict(self._owner))

    def _is_ours(self, owner: Owner) -> bool:
        return owner.nonce == self._owner.nonce

    def _beat(self) -> None:
        while not self._ends.wait(HEARTBEAT_S):
            with suppress(ShardError):  # the storage may come back; if not, the build ends by that
                self._beat_once()
            if self._lost_to:
                return

    def _beat_once(self) -> None:
        """Write the lock anew, unless it is someone else's by now."""
        found = self.read()
        if found is None or not self._is_ours(found[0]):
            self._lost_to = _name(found[0]) if found else "someone who removed it"
            return
        self._owner = replace(self._owner, beats=self._owner.beats + 1)
        # Where this fails someone has just taken it over, which the next beat finds out.
        upload.replace(self._bucket, LOCK_FILE, self._content(), found[1])


def _name(owner: Owner) -> str:
    return f"process {owner.process} on {owner.host}"


def _refusal(url: str, owner: Owner) -> str:
    return (
        f"{url}: {_name(owner)} is writing there since {owner.started}; wait until it is done, or "
        f"give another OUT. If it is dead, its lock is free {DEAD_S / 60:.0f} minutes after its "
        "last sign of life, or at once with --take-lock"
    )
