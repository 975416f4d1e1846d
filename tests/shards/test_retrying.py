"""Requests that fail, stall and answer late, on virtual time."""

import asyncio
import zlib
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.backends import StoreReader
from shards.errors import AccessDeniedError, CorruptShardError, StorageUnavailableError
from shards.limiter import Limiter
from shards.policy import RequestPolicy
from shards.requests import RangeReader
from shards.retrying import RetryingReader
from shards.testing.clock import run_virtual
from shards.testing.faults import PASSING, FaultyStore, Schedule, Trouble
from shards.testing.memory import MemoryStore

OBJECTS = {f"shard-{n}": Random(n).randbytes(50_000) for n in range(8)}
RANGE = 1000


def store_of(schedule: Schedule, seconds=0.05, **options) -> FaultyStore:
    memory = MemoryStore()
    for path, data in OBJECTS.items():
        memory.put(path, data)
    answer_s = seconds if callable(seconds) else lambda nbytes: seconds
    return FaultyStore(memory, schedule, answer_s=answer_s, **options)


def reader_of(store: FaultyStore, policy: RequestPolicy, seed: int = 0) -> RetryingReader:
    return RetryingReader(
        StoreReader(store), policy, where="s3://b/", renew=store.renew, random=Random(seed)
    )


async def read_all(reader: RetryingReader, asks: list[tuple[str, int, int]]) -> list[bytes]:
    answers = await asyncio.gather(*(reader.get_range(*ask) for ask in asks))
    return [bytes(answer) for answer in answers]


def some_asks(n: int, seed: int = 0) -> list[tuple[str, int, int]]:
    draw = Random(seed)
    paths = list(OBJECTS)
    return [(draw.choice(paths), draw.randrange(50_000 - RANGE), RANGE) for _ in range(n)]


def right(ask: tuple[str, int, int]) -> bytes:
    path, offset, nbytes = ask
    return OBJECTS[path][offset : offset + nbytes]


def test_it_is_a_range_reader():
    assert isinstance(reader_of(store_of(Schedule()), RequestPolicy()), RangeReader)
    assert isinstance(StoreReader(MemoryStore()), RangeReader)


def test_a_thousand_faults_lose_nothing_and_give_nothing_twice():
    """5,000 requests of which a fifth meets trouble, wrong bytes among it."""
    kinds = (*PASSING, Trouble.SHORT_BODY, Trouble.TRUNCATED, Trouble.WRONG_BYTES)
    store = store_of(Schedule(rate=0.2, troubles=kinds, seed=7))
    policy = RequestPolicy(in_flight=32, deadline_s=5)
    reader = reader_of(store, policy)
    asks = some_asks(5000)
    delivered: Counter[int] = Counter()
    wrong = 0

    async def one(number: int) -> None:
        nonlocal wrong
        # A range that is checked above this layer is read again when its checksum is not right.
        while True:
            try:
                data = await reader.get_range(*asks[number])
            except CorruptShardError:
                continue  # truncated twice in a row
            if zlib.crc32(data) == zlib.crc32(right(asks[number])):
                break
            wrong += 1
        assert bytes(data) == right(asks[number])
        delivered[number] += 1

    async def all_of_them() -> None:
        await asyncio.gather(*(one(number) for number in range(len(asks))))

    _, seconds = run_virtual(all_of_them())
    made = Counter(injected.trouble for injected in store.injected)
    assert sum(made.values()) >= 1000
    assert set(made) == set(kinds)
    assert delivered == Counter(range(len(asks)))
    assert store.most_in_flight <= policy.in_flight + policy.hedges_in_flight
    assert store.in_flight == 0
    counted = reader.stats.counters()
    assert counted["requests"] == store.requests == sum(store.asked.values())
    assert counted["answers"] == len(asks) + wrong
    assert counted["throttled"] == made[Trouble.SLOW_DOWN]
    # A stall ends by its deadline, or by a rival that wins.
    assert counted["timeouts"] + counted.get("hedges_won", 0) <= made[Trouble.STALL]
    assert counted["timeouts"] > 0
    assert seconds < 3600


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rate=st.floats(0, 0.5),
    in_flight=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.05, 0.5]),
    kinds=st.lists(st.sampled_from([*PASSING, Trouble.SHORT_BODY]), min_size=1, unique=True),
)
def test_passing_troubles_never_show(seed, rate, in_flight, share, kinds):
    store = store_of(Schedule(rate=rate, troubles=kinds, seed=seed))
    policy = RequestPolicy(
        in_flight=in_flight, deadline_s=3, hedge_share=share, patience_s=1e6, attempts=10**6
    )
    reader = reader_of(store, policy, seed)
    asks = some_asks(60, seed)
    found, _ = run_virtual(read_all(reader, asks))
    assert found == [right(ask) for ask in asks]
    assert store.most_in_flight <= in_flight + policy.hedges_in_flight
    assert store.in_flight == 0
    counted = reader.stats.counters()
    assert counted["requests"] == store.requests
    assert counted.get("hedges", 0) <= 1 + share * counted["requests"]


def test_a_request_has_a_deadline():
    store = store_of(Schedule(at={0: Trouble.STALL}))
    reader = reader_of(store, RequestPolicy(deadline_s=30, hedge_share=0))
    found, seconds = run_virtual(read_all(reader, [("shard-0", 0, 10)]))
    assert found == [OBJECTS["shard-0"][:10]]
    assert 30 < seconds < 30 + 0.2 + 0.1
    assert reader.stats.counters()["timeouts"] == 1


def test_the_wait_between_attempts_doubles_and_is_jittered():
    times = []

    class Down(FaultyStore):
        async def get_range(self, path, offset, nbytes):
            times.append(asyncio.get_running_loop().time())
            return await super().get_range(path, offset, nbytes)

    spent = []
    for seed in range(40):
        times.clear()
        store = Down(MemoryStore(), Schedule(paths={"a": Trouble.SERVER_ERROR}))
        policy = RequestPolicy(attempts=8, first_backoff_s=1.0, max_backoff_s=10.0)
        with pytest.raises(StorageUnavailableError, match=r"s3://b/a: .* in 8 attempts"):
            run_virtual(reader_of(store, policy, seed).get_range("a", 0, 1))
        waits = [after - before for before, after in pairwise(times)]
        assert all(w <= most for w, most in zip(waits, (1, 2, 4, 8, 10, 10, 10), strict=True))
        spent.append(waits)
    means = [sum(waits[n] for waits in spent) / len(spent) for n in range(7)]
    assert all(0.3 * most < m < 0.7 * most for m, most in zip(means, (1, 2, 4, 8, 10, 10, 10)))  # noqa: B905


@pytest.mark.parametrize("trouble", [*PASSING, Trouble.SHORT_BODY])
def test_patience_ends(trouble):
    store = store_of(Schedule(paths={"shard-3": trouble}))
    policy = RequestPolicy(patience_s=300, attempts=10**6, hedge_share=0)
    reader = reader_of(store, policy)

    async def until_it_ends() -> float:
        with pytest.raises(StorageUnavailableError, match="s3://b/shard-3"):
            await reader.get_range("shard-3", 0, 10)
        return asyncio.get_running_loop().time()

    ended, _ = run_virtual(until_it_ends())
    assert 240 < ended <= policy.patience_s + policy.deadline_s


def test_one_object_that_fails_does_not_stop_the_others():
    store = store_of(Schedule(paths={"shard-3": Trouble.MISSING, "shard-4": Trouble.STALL}))
    reader = reader_of(store, RequestPolicy(patience_s=100, deadline_s=10))

    async def main() -> list:
        asks = [(path, 0, 10) for path in OBJECTS]
        return await asyncio.gather(
            *(reader.get_range(*ask) for ask in asks), return_exceptions=True
        )

    found, _ = run_virtual(main())
    for path, answer in zip(OBJECTS, found, strict=True):
        if path == "shard-3":
            assert isinstance(answer, FileNotFoundError)
        elif path == "shard-4":
            assert isinstance(answer, StorageUnavailableError)
        else:
            assert bytes(answer) == OBJECTS[path][:10]


def test_expired_credentials_for_ever_and_for_a_while():
    asks = some_asks(50)
    store = store_of(Schedule(expired=range(20, 10**9)))
    with pytest.raises(AccessDeniedError, match=r"ExpiredToken.*renew"):
        run_virtual(read_all(reader_of(store, RequestPolicy()), asks))
    renewable = store_of(Schedule(expired=range(20, 10**9)), renewable=True)
    found, _ = run_virtual(read_all(reader_of(renewable, RequestPolicy()), asks))
    assert found == [right(ask) for ask in asks]


def test_a_rival_wins_against_a_stall():
    """One request in 50 never answers; without rivals each costs a deadline."""
    stalls = {n: Trouble.STALL for n in range(100, 3000, 50)}
    seconds, counted = {}, {}
    for share in (0.0, 0.05):
        store = store_of(Schedule(at=stalls))
        reader = reader_of(store, RequestPolicy(in_flight=8, hedge_share=share))
        asks = some_asks(2000)
        found, seconds[share] = run_virtual(read_all(reader, asks))
        assert found == [right(ask) for ask in asks]
        counted[share] = reader.stats.counters()
    assert counted[0.0].get("hedges", 0) == 0
    assert counted[0.05]["hedges_won"] >= 30
    assert counted[0.05]["hedges_won"] <= counted[0.05]["hedges"]
    assert counted[0.05]["hedges"] <= 1 + 0.05 * counted[0.05]["requests"]
    assert counted[0.05].get("timeouts", 0) == 0
    assert seconds[0.05] < seconds[0.0] / 3


def test_rivals_are_few_where_all_is_slow():
    """Slowness that is usual is learnt."""
    draw = Random(5)
    store = store_of(Schedule(), seconds=lambda nbytes: draw.uniform(1.0, 4.0))
    reader = reader_of(store, RequestPolicy(in_flight=16))
    run_virtual(read_all(reader, some_asks(1000)))
    assert reader.stats.counters().get("hedges", 0) < 10


def test_no_rival_while_the_storage_is_overwhelmed():
    schedule = Schedule(rate=0.2, troubles=(Trouble.SLOW_DOWN,), seed=3)
    draw = Random(5)
    store = store_of(schedule, seconds=lambda nbytes: 0.05 if draw.random() < 0.9 else 6.0)
    reader = reader_of(store, RequestPolicy(in_flight=16))
    run_virtual(read_all(reader, some_asks(1000)))
    assert reader.stats.counters()["throttled"] > 100
    assert reader.stats.counters().get("hedges", 0) <= 2


def test_fewer_at_once_while_the_storage_is_overwhelmed():
    """A server that refuses all that is more than 6 at once."""
    most = 6

    class Small(FaultyStore):
        async def get_range(self, path, offset, nbytes):
            if self.in_flight >= most:
                self._schedule.at[self.requests] = Trouble.SLOW_DOWN
            return await super().get_range(path, offset, nbytes)

    memory = MemoryStore()
    for path, data in OBJECTS.items():
        memory.put(path, data)
    store = Small(memory, Schedule(at={}), answer_s=lambda nbytes: 0.05)
    reader = reader_of(store, RequestPolicy(in_flight=32))
    asks = some_asks(3000)
    found, seconds = run_virtual(read_all(reader, asks))
    assert found == [right(ask) for ask in asks]
    # The best is 3000 / 6 * 0.05 s = 25 s, and most requests are not refused.
    assert seconds < 3 * 25
    assert reader.stats.counters()["throttled"] < 0.4 * len(asks)


def test_the_limit_halves_once_a_burst_and_grows_back():
    limiter = Limiter(32)
    for _ in range(30):
        limiter.overwhelmed(10.0, cuts=0)
    assert limiter.limit == 16
    assert limiter.is_cut
    for _ in range(3):
        limiter.overwhelmed(11.0, cuts=1)
    assert limiter.limit == 8
    limiter.succeeded(12.5)
    assert limiter.limit == 9
    limiter.succeeded(13.0)
    assert limiter.limit == 10
    limiter.succeeded(34.9)
    assert limiter.is_cut
    limiter.succeeded(35.0)
    assert limiter.limit == 32
    assert not limiter.is_cut
    for cut in range(2, 22):
        for _ in range(3):
            limiter.overwhelmed(100.0, cuts=cut)
    assert limiter.limit == 1


def test_a_refusal_now_and_then_cuts_nothing():
    limiter = Limiter(32)
    for second in range(100):
        limiter.overwhelmed(float(second), cuts=0)
        for _ in range(20):
            limiter.succeeded(float(second))
    assert limiter.limit == 32


def test_places_are_given_in_order_and_none_is_lost_by_cancelling():
    async def main() -> list[int]:
        limiter = Limiter(2)
        done: list[int] = []

        async def one(number: int) -> None:
            await limiter.acquire()
            try:
                await asyncio.sleep(1)
                done.append(number)
            finally:
                limiter.release()

        tasks = [asyncio.create_task(one(n)) for n in range(20)]
        await asyncio.sleep(1.5)
        for cancelled in (3, 5, 6, 11):
            tasks[cancelled].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Both places are there again.
        await asyncio.wait_for(asyncio.gather(limiter.acquire(), limiter.acquire()), 1)
        return done

    done, _ = run_virtual(main())
    assert done == [n for n in range(20) if n not in (3, 5, 6, 11)]


def test_cancelling_a_request_cancels_what_was_sent():
    store = store_of(Schedule(rate=1.0, troubles=(Trouble.STALL,)))
    reader = reader_of(store, RequestPolicy())

    async def main() -> int:
        asks = [asyncio.create_task(reader.get_range("shard-0", 0, 5)) for _ in range(40)]
        await asyncio.sleep(3)
        busy = store.in_flight
        for ask in asks:
            ask.cancel()
        await asyncio.gather(*asks, return_exceptions=True)
        await asyncio.sleep(0)
        assert store.in_flight == 0
        return busy

    busy, _ = run_virtual(main())
    assert busy >= 32


def test_virtual_time_passes_only_by_timers():
    async def main() -> float:
        loop = asyncio.get_running_loop()
        await asyncio.gather(asyncio.sleep(86_400), asyncio.sleep(3600))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.create_future(), 10)
        return loop.time()

    assert run_virtual(main())[0] == pytest.approx(86_410)
