"""A reader that bounds, repeats and hedges the requests of the reader below it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from random import Random

from shards.attempts import Attempts, Notice
from shards.faults import STORAGE_ERRORS, Kind, classify
from shards.hedging import Hedging
from shards.limiter import Limiter
from shards.policy import DEFAULT_POLICY, RequestPolicy
from shards.requests import RangeReader
from shards.stats import Stats

Answer = asyncio.Task[memoryview]


class RetryingReader:
    """Each request has a deadline, is sent again after a fault, and has a rival if it is slow.

    What it raises is final. It belongs to one event loop.

    Args:
        reader: below; raises what the storage raises.
        policy: how many at once, how long, how often.
        stats: counts ``requests`` (all that were sent), ``answers``, ``bytes_wire`` (of answers
            that were used), ``retries``, ``hedges``, ``hedges_won``, ``timeouts``, ``throttled``.
        where: put before a path in messages, such as the URL of the store and a slash.
        renew: reads the credentials again.
        random: gives the jitter; a fresh one by default, because processes must not wait in step.
    """

    def __init__(
        self,
        reader: RangeReader,
        policy: RequestPolicy = DEFAULT_POLICY,
        *,
        stats: Stats | None = None,
        where: str = "",
        renew: Callable[[], None] | None = None,
        random: Random | None = None,
    ) -> None:
        self._reader = reader
        self._policy = policy
        self._where = where
        self._renew = renew
        self._random = random or Random(os.urandom(8))
        self._limiter = Limiter(policy.in_flight)
        self._hedging = Hedging(policy)
        self._notice = Notice()
        self.stats = stats or Stats()

    async def get_range(self, path: str, offset: int, nbytes: int) -> memoryview:
        """``nbytes`` bytes, at least 1, of object ``path`` from ``offset`` on.

        Raises:
            FileNotFoundError: no such object.
            CorruptShardError: it ends before.
            StorageUnavailableError: no answer for as long as the policy's patience lasts.
            AccessDeniedError: credentials are refused.
        """
        now = asyncio.get_running_loop().time
        attempts = Attempts(
            self._policy, self._where + path, self.stats, self._random, now, self._notice
        )
        while True:
            asked = now()
            cuts = await self._limiter.acquire()
            attempts.queued(now() - asked)
            try:
                data = await self._attempt(path, offset, nbytes)
            except STORAGE_ERRORS as exc:
                wait = attempts.after(exc)
                self._learn(exc, now(), cuts)
            else:
                self._limiter.succeeded(now())
                self.stats.count(answers=1, bytes_wire=nbytes)
                return data
            finally:
                self._limiter.release()
            await asyncio.sleep(wait)

    async def close(self) -> None:
        """Close the reader below."""
        await self._reader.close()

    def _learn(self, exc: Exception, now: float, cuts: int) -> None:
        kind = classify(exc).kind
        if kind is Kind.THROTTLED or isinstance(exc, TimeoutError):
            self._limiter.overwhelmed(now, cuts)
        if kind is Kind.DENIED and self._renew is not None:
            self._renew()

    async def _attempt(self, path: str, offset: int, nbytes: int) -> memoryview:
        """One request, and its rival if it is slow."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        deadline = start + self._policy.deadline_s
        slow = self._hedging.delay_s(nbytes)
        self._hedging.sent()
        sent = [self._send(path, offset, nbytes)]
        try:
            await asyncio.wait(sent, timeout=min(slow, self._policy.deadline_s))
            if not sent[0].done() and loop.time() < deadline and self._may_hedge():
                sent.append(self._send(path, offset, nbytes))
            winner = await _first_answer(sent, deadline)
            if winner is not sent[0]:
                self.stats.count(hedges_won=1)
            self._hedging.took(nbytes, loop.time() - start)
            return winner.result()
        finally:
            _drop(sent)
            if len(sent) > 1:
                self._hedging.end()

    def _send(self, path: str, offset: int, nbytes: int) -> Answer:
        self.stats.count(requests=1)
        return asyncio.get_running_loop().create_task(self._reader.get_range(path, offset, nbytes))

    def _may_hedge(self) -> bool:
        # A storage that is overwhelmed must not be asked twice.
        allowed = not self._limiter.is_cut and self._hedging.begin()
        self.stats.count(hedges=int(allowed))
        return allowed


async def _first_answer(sent: list[Answer], deadline: float) -> Answer:
    """The request that succeeds first; if none does, the error of the first one.

    Raises:
        TimeoutError: there is no answer before the deadline.
    """
    loop = asyncio.get_running_loop()
    while True:
        for answer in sent:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                return answer
        pending = [answer for answer in sent if not answer.done()]
        if not pending:
            sent[0].result()
        left = deadline - loop.time()
        if left <= 0:
            raise TimeoutError
        await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)


def _drop(sent: list[Answer]) -> None:
    """Cancel what is still under way; its outcome interests nobody."""
    for answer in sent:
        answer.cancel()
        answer.add_done_callback(_look)


def _look(answer: Answer) -> None:
    # An error that nobody looks at is printed when the task is dropped.
    if not answer.cancelled():
        answer.exception()
