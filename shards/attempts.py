"""One policy for every request: what is tried again, when, and how giving up is said."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from random import Random
from typing import TypeVar

from shards.errors import (
    AccessDeniedError,
    CorruptShardError,
    ServiceError,
    ShardError,
    StorageUnavailableError,
)
from shards.faults import NO_ANSWER, STORAGE_ERRORS, Fault, Kind, classify
from shards.policy import RequestPolicy
from shards.stats import Stats

logger = logging.getLogger(__name__)

SECOND_LOOK = (Kind.SHORT, Kind.DENIED)
"""Tried once more: the object may just be replaced, the credentials just be renewed."""
FINAL = (Kind.MISSING, Kind.EXISTS, Kind.WRONG)
SAID_AFTER_S = 15.0
"""A request that fails for so long is said in the log ..."""
SAID_EVERY_S = 60.0
"""... of one reader or call at most so often."""

T = TypeVar("T")


class Notice:
    """When the log last said that a storage does not answer."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def is_due(self, now: float) -> bool:
        """Whether to say it again; if so, it counts as said."""
        if now - self._last < SAID_EVERY_S:
            return False
        self._last = now
        return True


class Attempts:
    """The failures of one operation so far, and what follows from the next one.

    Args:
        policy: how patient.
        where: the object, for messages.
        stats: counts ``retries``, ``timeouts``, ``throttled``; its ``answers`` tell whether
            anybody ever answered.
        random: gives the jitter.
        now: clock, seconds.
        notice: shared by operations that tell of the same storage.
    """

    def __init__(
        self,
        policy: RequestPolicy,
        where: str,
        stats: Stats,
        random: Random,
        now: Callable[[], float] = time.monotonic,
        notice: Notice | None = None,
    ) -> None:
        self._notice = notice or Notice()
        self._policy = policy
        self._where = where
        self._stats = stats
        self._random = random
        self._now = now
        self._start = now()
        self._failures = 0
        self._second_looks = 0

    def queued(self, seconds: float) -> None:
        """Waiting for a place of its own is not held against the storage."""
        self._start += seconds

    def after(self, exc: BaseException) -> float:
        """Seconds to wait before the next attempt.

        Args:
            exc: why the last one failed.

        Raises:
            FileNotFoundError, FileExistsError, ShardError: there is no next one.
        """
        fault = classify(exc)
        if fault.brief == NO_ANSWER:
            self._stats.count(timeouts=1)
        if fault.kind is Kind.THROTTLED:
            self._stats.count(throttled=1)
        self._failures += 1
        self._second_looks += fault.kind in SECOND_LOOK
        wait = self._policy.backoff_s(self._failures, self._random.random())
        if isinstance(exc, ServiceError) or self._is_over(fault, wait):
            raise self._final(exc, fault) from exc
        self._say(fault)
        self._stats.count(retries=1)
        return wait

    def _is_over(self, fault: Fault, wait: float) -> bool:
        if fault.kind in FINAL or (fault.kind in SECOND_LOOK and self._second_looks > 1):
            return True
        patience = self._policy.patience_s
        if fault.kind is Kind.UNREACHABLE and not self._stats.counters().get("answers"):
            patience = min(patience, self._policy.first_patience_s)
        spent = self._now() - self._start
        return self._failures >= self._policy.attempts or spent + wait > patience

    def _final(self, exc: BaseException, fault: Fault) -> Exception:
        where, hint = self._where, f"; {fault.hint}" if fault.hint else ""
        if isinstance(exc, ShardError):
            return exc
        if fault.kind is Kind.MISSING:
            return FileNotFoundError(f"{where}: no such object")
        if fault.kind is Kind.EXISTS:
            return FileExistsError(f"{where}: exists already")
        if fault.kind is Kind.SHORT:
            return CorruptShardError(f"{where}: {fault.brief}")
        if fault.kind is Kind.DENIED:
            return AccessDeniedError(f"{where}: access denied ({fault.brief}){hint}")
        if fault.kind is Kind.WRONG:
            return ServiceError(f"{where}: cannot be used ({fault.brief}){hint}")
        spent = self._now() - self._start
        return StorageUnavailableError(
            f"{where}: the storage did not serve it in {self._failures} attempts over "
            f"{spent:.0f} s ({fault.brief}){hint or '; run again when it does'}"
        )

    def _say(self, fault: Fault) -> None:
        now = self._now()
        if now - self._start >= SAID_AFTER_S and self._notice.is_due(now):
            logger.warning(
                "%s: %s; still trying, for up to %.0f s",
                self._where,
                fault.brief,
                self._policy.patience_s,
            )


def patiently(
    operation: Callable[[], T],
    attempts: Attempts,
    *,
    sleep: Callable[[float], object] = time.sleep,
    renew: Callable[[], None] | None = None,
) -> T:
    """What ``operation`` returns, tried as often as the policy allows.

    Args:
        operation: one attempt; raises what the storage raises.
        attempts: of this operation.
        sleep: waits.
        renew: called before the next attempt when credentials were refused.

    Raises:
        FileNotFoundError, FileExistsError, ShardError: as `Attempts.after`.
    """
    while True:
        try:
            return operation()
        except STORAGE_ERRORS as exc:
            wait = attempts.after(exc)
            if renew is not None and classify(exc).kind is Kind.DENIED:
                renew()
        sleep(wait)


def counted(
    operation: Callable[[], T],
    policy: RequestPolicy,
    where: str,
    stats: Stats,
    renew: Callable[[], None],
) -> T:
    """As `patiently`, with each attempt counted as one of ``requests``.

    Args:
        operation: one attempt; raises what the storage raises.
        policy: how patient.
        where: the object, for messages.
        stats: where to count.
        renew: see `patiently`.

    Raises:
        FileNotFoundError, FileExistsError, ShardError: as `Attempts.after`.
    """

    def attempt() -> T:
        stats.count(requests=1)
        found = operation()
        stats.count(answers=1)
        return found

    # Jitter must differ between processes, so it is no part of any seed.
    attempts = Attempts(policy, where, stats, Random(os.urandom(8)))
    return patiently(attempt, attempts, renew=renew)
