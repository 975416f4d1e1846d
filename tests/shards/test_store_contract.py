"""What every store does: memory, a folder, and a real S3 server on loopback."""

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from shards.backends import PART_BYTES
from shards.errors import CorruptShardError
from shards.policy import RequestPolicy
from shards.reading import open_fetcher, open_reader
from shards.store import (
    RangeFile,
    Store,
    delete,
    get,
    get_range,
    head,
    list_all,
    names,
    open_store,
    put,
    put_if_absent,
    stream,
)
from shards.testing.memory import MemoryStore
from tests.s3_conditional import serving_conditional

QUICK = RequestPolicy(first_backoff_s=0.001, max_backoff_s=0.01)
NAMES = ("plain", "a b", "100%", "ü-Ω", "a~b.c_d-e", "deep/er/still")
WRITERS = 8


@contextmanager
def _memory(folder: Path) -> Iterator[Store]:
    yield MemoryStore(policy=QUICK)


@contextmanager
def _folder(folder: Path) -> Iterator[Store]:
    yield open_store(folder / "dataset", QUICK, create=True)


@contextmanager
def _s3(folder: Path) -> Iterator[Store]:
    with (
        serving_conditional(folder / "server", "bucket") as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield open_store("s3://bucket/data/set", QUICK)


OPENERS: dict[str, Callable[[Path], AbstractContextManager[Store]]] = {
    "memory": _memory,
    "folder": _folder,
    "s3": _s3,
}
"""A store more is a line here."""


@pytest.fixture(scope="module", params=list(OPENERS))
def store(request, tmp_path_factory) -> Iterator[Store]:
    with OPENERS[request.param](tmp_path_factory.mktemp(request.param)) as opened:
        yield opened


def ranges_of(store: Store, path: str, ranges: list[tuple[int, int]]) -> list[bytes]:
    async def read() -> list[bytes]:
        reader = open_reader(store, QUICK)
        try:
            return [bytes(await reader.get_range(path, at, n)) for at, n in ranges]
        finally:
            await reader.close()

    # A loop in a thread of its own, as a fetcher has it.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, read()).result()


class TestStoreContract:
    @pytest.mark.parametrize("name", NAMES)
    def test_what_is_written_is_read(self, store, name):
        data = os.urandom(1000)
        put(store, name, data)
        assert head(store, name).size == 1000
        assert head(store, name).path == name
        assert get(store, name) == data
        assert bytes(get_range(store, name, 10, 20)) == data[10:30]
        assert b"".join(stream(store, name)) == data
        assert name in [entry.path for entry in list_all(store)]
        delete(store, [name])
        with pytest.raises(FileNotFoundError, match="no such object"):
            get(store, name)

    def test_a_put_replaces(self, store):
        put(store, "replaced", b"old and long")
        put(store, "replaced", b"new")
        assert get(store, "replaced") == b"new"

    def test_an_empty_object(self, store):
        put(store, "empty", b"")
        assert head(store, "empty").size == 0
        assert get(store, "empty") == b""
        assert b"".join(stream(store, "empty")) == b""
        assert bytes(get_range(store, "empty", 0, 0)) == b""
        with pytest.raises(CorruptShardError, match="ends before"):
            get_range(store, "empty", 0, 1)

    @pytest.mark.parametrize(("offset", "nbytes"), [(95, 10), (100, 1), (5000, 10)])
    def test_a_range_beyond_the_end_is_a_fault_of_the_data(self, store, offset, nbytes):
        put(store, "short", os.urandom(100))
        with pytest.raises(CorruptShardError, match=r"short: .*ends before"):
            get_range(store, "short", offset, nbytes)
        with pytest.raises(CorruptShardError, match=r"short: .*ends before"):
            ranges_of(store, "short", [(offset, nbytes)])

    def test_what_is_missing(self, store):
        calls = (
            lambda: get(store, "absent"),
            lambda: get_range(store, "absent", 0, 1),
            lambda: list(stream(store, "absent")),
            lambda: head(store, "absent"),
            lambda: RangeFile(store, "absent"),
            lambda: ranges_of(store, "absent", [(0, 1)]),
        )
        for call in calls:
            with pytest.raises(FileNotFoundError, match="absent: no such object"):
                call()

    def test_missing_is_said_at_once(self, store):
        before = store.stats.counters()
        with pytest.raises(FileNotFoundError):
            get(store, "absent")
        assert store.stats.counters()["requests"] == before.get("requests", 0) + 1

    @pytest.mark.parametrize("from_file", [False, True])
    def test_a_large_object_goes_up_and_comes_down_in_pieces(self, store, tmp_path, from_file):
        data = os.urandom(2 * PART_BYTES + 12345)
        (tmp_path / "file").write_bytes(data)
        put(store, "large", tmp_path / "file" if from_file else data)
        assert head(store, "large").size == len(data)
        pieces = list(stream(store, "large"))
        assert len(pieces) > 1
        assert b"".join(pieces) == data
        assert get(store, "large") == data
        at = PART_BYTES - 50
        assert bytes(get_range(store, "large", at, 100)) == data[at : at + 100]

    def test_the_asynchronous_reader_equals_the_other(self, store):
        data = os.urandom(300_000)
        put(store, "both", data)
        ranges = [(0, 1), (0, 300_000), (299_999, 1), (1000, 77_777), (65_535, 2)]
        expected = [bytes(get_range(store, "both", at, n)) for at, n in ranges]
        assert ranges_of(store, "both", ranges) == expected
        fetcher = open_fetcher(store)
        answers = [fetcher.submit("both", at, n) for at, n in ranges]
        assert [bytes(answer.result(30)) for answer in answers] == expected
        fetcher.close()

    def test_lists(self, store):
        for name in ("list/b", "list/a", "list/sub/c", "list-not/d"):
            put(store, name, b"1234")
        listed = list_all(store, "list")
        assert [(entry.path, entry.size) for entry in listed] == [
            ("list/a", 4),
            ("list/b", 4),
            ("list/sub/c", 4),
        ]
        assert list_all(store, "nothing-there") == []
        put(store, "top", b"")
        assert "top" in names(store)
        assert not any("/" in name for name in names(store))

    def test_a_file_that_seeks(self, store):
        data = os.urandom(5000)
        put(store, "seek", data)
        file = RangeFile(store, "seek")
        file.seek(-100, os.SEEK_END)
        assert file.read() == data[-100:]
        file.seek(17)
        assert file.read(33) == data[17:50]
        assert file.tell() == 50

    def test_put_if_absent_keeps_what_is_there(self, store):
        delete(store, ["lock"])
        assert put_if_absent(store, "lock", b"mine")
        assert not put_if_absent(store, "lock", b"yours")
        assert get(store, "lock") == b"mine"

    def test_one_of_many_writers_wins(self, store):
        delete(store, ["race"])
        tokens = [f"writer {n}".encode() for n in range(WRITERS)]
        with ThreadPoolExecutor(WRITERS) as pool:
            won = list(pool.map(lambda token: put_if_absent(store, "race", token), tokens))
        assert sum(won) == 1
        assert get(store, "race") == tokens[won.index(True)]

    def test_deleting_what_is_not_there_is_no_error(self, store):
        put(store, "gone", b"x")
        delete(store, ["gone", "never-there", "gone"])
        assert "gone" not in names(store)
