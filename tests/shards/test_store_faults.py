"""What errors of a storage mean, and what the waiting calls do about them."""

import errno
from random import Random

import pytest
from obstore.exceptions import GenericError, PermissionDeniedError, UnauthenticatedError

from shards.attempts import Attempts
from shards.errors import (
    AccessDeniedError,
    CorruptShardError,
    ServiceError,
    ShardError,
    StorageUnavailableError,
)
from shards.faults import Kind, classify
from shards.policy import RequestPolicy
from shards.stats import Stats
from shards.store import get, get_range, names, stream
from shards.testing.faults import PASSING, FaultyStore, Schedule, Trouble
from shards.testing.memory import MemoryStore

QUICK = RequestPolicy(first_backoff_s=0.0001, max_backoff_s=0.001, attempts=6)
URL = "http://10.0.0.1:9000/bucket/key?X-Amz-Signature=5ec4e7"


def answer(status: str, code: str = "") -> str:
    body = f"<Error><Code>{code}</Code><Message>m</Message></Error>" if code else ""
    return (
        f"Generic S3 error: Error performing GET {URL} in 2ms - Server returned non-2xx status "
        f"code: {status}: {body}\n\nDebug source:\nGeneric {{ {URL} }}"
    )


def broken(words: str, dump: str = "") -> str:
    return f"Generic S3 error: Error performing GET {URL} in 2ms - {words}\n\nDebug:\n{dump}"


ERRORS = [
    # As obstore 0.12.1 raises them, from a server that answered so (or not at all).
    (GenericError(answer("503 Service Unavailable", "SlowDown")), Kind.THROTTLED, "SlowDown"),
    (GenericError(answer("503 Service Unavailable")), Kind.THROTTLED, "503 Service Unavailable"),
    (GenericError(answer("429 Too Many Requests")), Kind.THROTTLED, "429 Too Many Requests"),
    (GenericError(answer("500 Internal Server Error")), Kind.BROKEN, "500 Internal Server Error"),
    (GenericError(answer("502 Bad Gateway")), Kind.BROKEN, "502 Bad Gateway"),
    (GenericError(answer("400 Bad Request", "RequestTimeout")), Kind.BROKEN, "RequestTimeout"),
    (GenericError(answer("409 Conflict", "OperationAborted")), Kind.BROKEN, "OperationAborted"),
    (GenericError(answer("400 Bad Request", "ExpiredToken")), Kind.DENIED, "ExpiredToken"),
    (PermissionDeniedError(answer("403 Forbidden", "AccessDenied")), Kind.DENIED, "AccessDenied"),
    (GenericError(answer("400 Bad Request").replace("GET", "HEAD")), Kind.DENIED, "400 Bad"),
    (GenericError(answer("400 Bad Request")), Kind.WRONG, "400 Bad Request"),
    (PermissionDeniedError(answer("403 Forbidden")), Kind.DENIED, "403 Forbidden"),
    (UnauthenticatedError(answer("401 Unauthorized")), Kind.DENIED, "401 Unauthorized"),
    (GenericError(answer("416 Range Not Satisfiable", "InvalidRange")), Kind.SHORT, "ends"),
    (GenericError("Generic InMemory error: Invalid range: Wanted 5"), Kind.SHORT, "ends"),
    (FileNotFoundError(answer("404 Not Found", "NoSuchKey")), Kind.MISSING, "no such object"),
    (FileNotFoundError(answer("404 Not Found", "NoSuchBucket")), Kind.WRONG, "no such bucket"),
    (GenericError(answer("501 Not Implemented", "NotImplemented")), Kind.WRONG, "NotImplemented"),
    (GenericError(broken("HTTP error: error sending request", "kind: Request")), Kind.BROKEN, "br"),
    (GenericError(broken("HTTP error: error sending request", "TimedOut")), Kind.BROKEN, "no answ"),
    (GenericError("Generic S3 error: HTTP error: request or response body error"), Kind.BROKEN, ""),
    (GenericError(broken("HTTP error: error sending request", "kind: Connect, ConnectionRefused")),
     Kind.UNREACHABLE, "no connection"),
    (GenericError(broken("HTTP error: error sending request", 'kind: Connect, "dns error"')),
     Kind.UNREACHABLE, "unknown host"),
    (GenericError(broken("HTTP error: builder error")), Kind.WRONG, ""),
    (GenericError("Generic S3 error: Received redirect without LOCATION"), Kind.WRONG, "redirect"),
    (GenericError("Generic HTTP error: Received non-partial response when range requested"),
     Kind.WRONG, "the server does not give ranges"),
    (GenericError("Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token "
                  "in 1ms - HTTP error: error sending request"), Kind.DENIED, ""),
    (PermissionError(errno.EACCES, "Permission denied"), Kind.DENIED, "permission denied"),
    (TimeoutError(), Kind.BROKEN, "no answer in time"),
    (OSError(errno.ESTALE, "Stale file handle"), Kind.BROKEN, "Stale file handle"),
    (CorruptShardError("x: ends before byte 5"), Kind.SHORT, "x: ends before byte 5"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "kind", "brief"), ERRORS)
def test_what_an_error_means(error, kind, brief):
    fault = classify(error)
    assert fault.kind is kind
    assert brief in fault.brief
    assert "5ec4e7" not in fault.brief + fault.hint
    assert "\n" not in fault.brief + fault.hint


@pytest.mark.parametrize(
    ("code", "todo"),
    [
        ("ExpiredToken", "renew"),
        ("InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", "secret key"),
        ("RequestTimeTooSkewed", "clock"),
        ("AccessDenied", "may read"),
        ("AuthorizationHeaderMalformed", "AWS_REGION"),
    ],
)
def test_refused_credentials_say_what_to_do(code, todo):
    store = memory()
    faulty = FaultyStore(store, Schedule())
    faulty.open = lambda path: (_ for _ in ()).throw(
        PermissionDeniedError(answer("403 Forbidden", code))
    )

    with pytest.raises(AccessDeniedError, match=todo) as excinfo:
        get(faulty, "a")
    assert code in str(excinfo.value)
    assert "5ec4e7" not in str(excinfo.value)


def memory() -> MemoryStore:
    store = MemoryStore(policy=QUICK)
    store.put("a", bytes(range(256)))
    return store


def test_passing_troubles_are_overcome():
    for seed in range(30):
        schedule = Schedule(rate=0.4, troubles=(*PASSING, Trouble.SHORT_BODY), seed=seed)
        store = FaultyStore(memory(), schedule)
        store.policy = RequestPolicy(first_backoff_s=1e-5, max_backoff_s=1e-4)
        assert get(store, "a") == bytes(range(256))
        assert bytes(get_range(store, "a", 10, 5)) == bytes(range(10, 15))
        assert b"".join(stream(store, "a")) == bytes(range(256))
        assert names(store) == ["a"]
        counted = store.stats.counters()
        assert counted["requests"] == store.requests == counted["answers"] + len(store.injected)
        assert counted.get("retries", 0) == len(store.injected)
        slow_downs = sum(i.trouble is Trouble.SLOW_DOWN for i in store.injected)
        assert counted.get("throttled", 0) == slow_downs


@pytest.mark.parametrize("trouble", [*PASSING, Trouble.SHORT_BODY])
def test_a_service_that_stays_down_is_no_verdict_on_the_data(trouble):
    store = FaultyStore(memory(), Schedule(paths={"a": trouble}))
    with pytest.raises(StorageUnavailableError, match=r"memory://test/a: .* in 6 attempts"):
        get(store, "a")
    assert store.requests == QUICK.attempts


def test_a_missing_object_is_said_at_the_first_request():
    store = FaultyStore(memory(), Schedule(paths={"a": Trouble.MISSING}))
    with pytest.raises(FileNotFoundError):
        get(store, "a")
    assert store.requests == 1


@pytest.mark.parametrize("trouble", [Trouble.EXPIRED, Trouble.DENIED])
def test_refused_credentials_end_after_a_second_try(trouble):
    store = FaultyStore(memory(), Schedule(paths={"a": trouble}))
    with pytest.raises(AccessDeniedError, match="memory://test/a: access denied"):
        get(store, "a")
    assert store.requests == 2


def test_renewed_credentials_are_found():
    below = memory()
    store = FaultyStore(below, Schedule(expired=range(1, 10**9)), renewable=True)
    for _ in range(5):
        assert len(get(store, "a")) == 256
    assert below.renewed == 1
    assert [i.trouble for i in store.injected] == [Trouble.EXPIRED]


def test_a_shorter_object_is_a_fault_of_the_data_after_a_second_look():
    store = FaultyStore(memory(), Schedule(paths={"a": Trouble.TRUNCATED}))
    with pytest.raises(CorruptShardError, match="ends before byte 20"):
        get_range(store, "a", 10, 10)
    assert store.requests == 2
    once = FaultyStore(memory(), Schedule(at={0: Trouble.TRUNCATED}))
    assert bytes(get_range(once, "a", 10, 10)) == bytes(range(10, 20))


def test_an_object_that_is_replaced_while_it_is_read(monkeypatch):
    monkeypatch.setattr("shards.store.PART_BYTES", 64)
    monkeypatch.setattr("shards.testing.memory.PART_BYTES", 64)
    store = memory()
    pieces = stream(store, "a")
    assert next(pieces) == bytes(range(64))
    store.put("a", bytes(256))
    with pytest.raises(CorruptShardError, match="was replaced while it was read"):
        list(pieces)


def test_an_address_where_nobody_ever_answered_is_given_up_soon():
    error = GenericError(broken("HTTP error: error sending request", "kind: Connect"))
    for counted, patience in (({}, 15.0), ({"answers": 1}, 300.0)):
        now, stats = [0.0], Stats()
        stats.count(**counted)
        attempts = Attempts(
            RequestPolicy(attempts=10**6), "s3://b/a", stats, Random(1), lambda now=now: now[0]
        )

        def fail(attempts=attempts, now=now):
            while True:
                now[0] += attempts.after(error)

        with pytest.raises(StorageUnavailableError, match="check the URL"):
            fail()
        assert 0.5 * patience < now[0] <= patience


def test_a_long_wait_is_said_once(caplog):
    now = [0.0]
    attempts = Attempts(RequestPolicy(), "s3://b/a", Stats(), Random(1), lambda: now[0])
    while now[0] < 60:
        now[0] += attempts.after(GenericError(answer("503 Slow Down", "SlowDown")))
    assert len(caplog.records) == 1
    assert "s3://b/a: SlowDown; still trying" in caplog.text


def test_backoff_is_full_jitter_and_bounded():
    policy = RequestPolicy(first_backoff_s=0.2, max_backoff_s=20)
    assert [policy.backoff_s(n, 1.0) for n in (1, 2, 3, 8, 100)] == [0.2, 0.4, 0.8, 20, 20]
    assert policy.backoff_s(5, 0.0) == 0


@pytest.mark.parametrize(
    "wrong", [{"in_flight": 0}, {"attempts": 0}, {"deadline_s": 0}, {"hedge_quantile": 1.0}]
)
def test_a_policy_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RequestPolicy(**wrong)


def test_only_errors_of_the_storage_are_caught():
    store = memory()
    store.open = lambda path: 1 / 0

    with pytest.raises(ZeroDivisionError):
        get(store, "a")


def test_service_errors_are_shard_errors_but_no_faults_of_data():
    assert issubclass(StorageUnavailableError, ServiceError)
    assert issubclass(AccessDeniedError, ServiceError)
    assert issubclass(ServiceError, ShardError)
    assert not issubclass(ServiceError, CorruptShardError | FileNotFoundError)
