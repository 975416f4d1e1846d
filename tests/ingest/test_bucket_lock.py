"""The lock of a bucket: one holder, whom the others can name, and who loses it only when dead."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingest import bucket_lock
from ingest.bucket_lock import BucketLock, Owner, bucket_locked, check_bucket_free, this_process
from ingest.errors import IngestError, UsageError
from shards import upload
from shards.schema import canonical_json, converter
from shards.upload import Bucket, Stamp, open_bucket
from tests.s3 import serving
from tests.s3_conditional import ConditionalServer

SERVERS = ("knows conditions", "knows no conditions")


@pytest.fixture(scope="module")
def plain_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with serving(tmp_path_factory.mktemp("plain") / "buckets", "data") as server:
        yield server.environment


@pytest.fixture(params=SERVERS)
def prefix(
    request: pytest.FixtureRequest,
    bucket_server: ConditionalServer,
    plain_server: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Bucket:
    bucket_server.refuse()
    known = request.param == SERVERS[0]
    for name, value in (bucket_server.environment if known else plain_server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket_lock, "SETTLE_S", 0.2)
    return open_bucket(f"s3://data/{tmp_path.name}")


URL = "s3://data/x"


def put_owner(prefix: Bucket, owner: Owner) -> None:
    upload.put(prefix, ".lock", canonical_json(converter.unstructure(owner)))


def elsewhere() -> Owner:
    """Someone on another machine."""
    return replace(this_process(), machine="other", host="node7", process=77, started="noon")


def test_a_second_run_is_told_who_is_first(prefix: Bucket) -> None:
    with bucket_locked(prefix, URL) as lock:
        for try_it in (
            lambda: check_bucket_free(prefix, URL),
            lambda: BucketLock(prefix, URL).acquire(take=False),
        ):
            with pytest.raises(UsageError, match=r"s3://data/x: process \d+ on .* since 20"):
                try_it()
        lock.check()
    assert upload.list_all(prefix) == {}
    check_bucket_free(prefix, URL)


def test_a_dead_process_of_this_machine_holds_nothing(prefix: Bucket) -> None:
    dead = replace(this_process(), process=2**22 + 1, born="1")
    put_owner(prefix, dead)
    with bucket_locked(prefix, URL):
        pass
    # The number has been given to another process since.
    put_owner(prefix, replace(this_process(), nonce="a", born="1"))
    with bucket_locked(prefix, URL):
        pass
    assert upload.list_all(prefix) == {}


def test_elsewhere_it_is_dead_after_a_while_by_the_clock_of_the_storage(
    prefix: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_owner(prefix, elsewhere())
    with pytest.raises(UsageError, match="process 77 on node7 is writing there since noon"):
        BucketLock(prefix, URL).acquire(take=False)
    real = upload.stamp

    def later(bucket: Bucket, path: str) -> Stamp | None:
        found = real(bucket, path)
        assert found is not None
        return replace(found, modified=found.modified + timedelta(seconds=bucket_lock.DEAD_S + 5))

    monkeypatch.setattr(upload, "stamp", later)
    with bucket_locked(prefix, URL):
        pass
    assert upload.list_all(prefix) == {}  # nor what the clock was read from


def test_a_lock_is_taken_over_by_hand_and_its_holder_notices(
    prefix: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_lock, "HEARTBEAT_S", 0.05)
    with bucket_locked(prefix, URL) as first:
        with bucket_locked(prefix, URL, take=True) as second:
            first._thread.join(10)
            with pytest.raises(IngestError, match="has taken the lock over"):
                first.check()
            second.check()
            [name] = upload.list_all(prefix)
        assert upload.list_all(prefix) == {}
    assert name == ".lock"


def test_a_holder_gives_signs_of_life(prefix: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_lock, "HEARTBEAT_S", 0.02)
    with bucket_locked(prefix, URL) as lock:
        for _ in range(500):
            found = lock.read()
            assert found is not None
            if found[0].beats >= 3:
                break
        else:
            pytest.fail("no sign of life")
        lock.check()
    before = threading.active_count()
    assert all(thread.name != "bucket-lock" for thread in threading.enumerate()), before


def test_of_many_one_at_a_time_holds_it(prefix: Bucket) -> None:
    """Each holds it three times; a list shows whether two ever were inside."""
    inside: list[str] = []
    errors: list[str] = []

    def hold() -> None:
        got = 0
        while got < 3:
            try:
                with bucket_locked(prefix, URL):
                    inside.append("in")
                    if len(inside) != 1:
                        errors.append("two at once")
                    inside.pop()
                    got += 1
            except UsageError:
                time.sleep(0.05)

    threads = [threading.Thread(target=hold) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_put_whose_answer_was_lost_is_known_again(
    prefix: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = upload.create

    def answer_lost(bucket: Bucket, path: str, data: bytes) -> None:
        real(bucket, path, data)  # repeated below obstore, it then finds its own object

    monkeypatch.setattr(upload, "create", answer_lost)
    with bucket_locked(prefix, URL) as lock:
        lock.check()
    assert upload.list_all(prefix) == {}


def test_a_foreign_object_in_its_place_is_left_alone(prefix: Bucket) -> None:
    upload.put(prefix, ".lock", json.dumps({"a": 1}).encode())
    with pytest.raises(UsageError, match=r"holds a foreign object \.lock"):
        BucketLock(prefix, URL).acquire(take=True)
    assert list(upload.list_all(prefix)) == [".lock"]


def test_the_clock_is_the_storages(prefix: Bucket) -> None:
    now = BucketLock(prefix, URL)._now()
    assert abs(now - datetime.now(UTC)) < timedelta(minutes=1)  # both are this machine's here
    assert upload.list_all(prefix) == {}
