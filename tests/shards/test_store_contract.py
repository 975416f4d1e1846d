"""What every store does: memory, a folder, a real S3 server on loopback, and an emulated one."""

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from shards import upload
from shards.backends import PART_BYTES
from shards.errors import CorruptShardError
from shards.policy import RequestPolicy
from shards.reading import open_fetcher, open_reader
from shards.store import Store, get, get_range, names, open_store, stream
from shards.testing.emulator import emulator
from shards.testing.memory import MemoryStore
from shards.upload import open_bucket
from tests.s3 import serving

QUICK = RequestPolicy(first_backoff_s=0.001, max_backoff_s=0.01)
NAMES = ("plain", "a b", "100%", "ü-Ω", "a~b.c_d-e", "deep/er/still")
Write = Callable[[str, bytes], object]


@contextmanager
def _memory(folder: Path) -> Iterator[tuple[Store, Write]]:
    store = MemoryStore(policy=QUICK)
    yield store, store.put


@contextmanager
def _folder(folder: Path) -> Iterator[tuple[Store, Write]]:
    def write(path: str, data: bytes) -> None:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    yield open_store(folder, QUICK), write


@contextmanager
def _s3(folder: Path) -> Iterator[tuple[Store, Write]]:
    with (
        serving(folder / "server", "bucket") as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environment.items():
            patch.setenv(name, value)
        url = "s3://bucket/data/set"
        yield open_store(url, QUICK), partial(upload.put, open_bucket(url, QUICK))


@contextmanager
def _emulator(folder: Path) -> Iterator[tuple[Store, Write]]:
    (folder / "server/bucket").mkdir(parents=True)
    with (
        emulator(folder / "server", latency_s=0.001) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environment.items():
            patch.setenv(name, value)
        url = "s3://bucket/data/set"
        yield open_store(url, QUICK), partial(upload.put, open_bucket(url, QUICK))


OPENERS: dict[str, Callable[[Path], AbstractContextManager[tuple[Store, Write]]]] = {
    "memory": _memory,
    "folder": _folder,
    "s3": _s3,
    "emulator": _emulator,
}
"""A store more is a line here."""


@pytest.fixture(scope="module", params=list(OPENERS))
def opened(request, tmp_path_factory) -> Iterator[tuple[Store, Write]]:
    with OPENERS[request.param](tmp_path_factory.mktemp(request.param)) as found:
        yield found


@pytest.fixture
def store(opened) -> Store:
    return opened[0]


@pytest.fixture
def write(opened) -> Write:
    return opened[1]


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
    def test_what_is_written_is_read(self, store, write, name):
        data = os.urandom(1000)
        write(name, data)
        assert get(store, name) == data
        assert bytes(get_range(store, name, 10, 20)) == data[10:30]
        assert b"".join(stream(store, name)) == data
        assert (name in names(store)) == ("/" not in name)

    def test_what_is_written_again_is_read_anew(self, store, write):
        write("replaced", b"old and long")
        write("replaced", b"new")
        assert get(store, "replaced") == b"new"

    def test_an_empty_object(self, store, write):
        write("empty", b"")
        assert get(store, "empty") == b""
        assert b"".join(stream(store, "empty")) == b""
        assert bytes(get_range(store, "empty", 0, 0)) == b""
        with pytest.raises(CorruptShardError, match="ends before"):
            get_range(store, "empty", 0, 1)

    @pytest.mark.parametrize(("offset", "nbytes"), [(95, 10), (100, 1), (5000, 10)])
    def test_a_range_beyond_the_end_is_a_fault_of_the_data(self, store, write, offset, nbytes):
        write("short", os.urandom(100))
        with pytest.raises(CorruptShardError, match=r"short: .*ends before"):
            get_range(store, "short", offset, nbytes)
        with pytest.raises(CorruptShardError, match=r"short: .*ends before"):
            ranges_of(store, "short", [(offset, nbytes)])

    def test_what_is_missing(self, store):
        calls = (
            lambda: get(store, "absent"),
            lambda: get_range(store, "absent", 0, 1),
            lambda: list(stream(store, "absent")),
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

    def test_a_large_object_comes_in_pieces(self, store, write):
        data = os.urandom(2 * PART_BYTES + 12345)
        write("large", data)
        pieces = list(stream(store, "large"))
        assert len(pieces) > 1
        assert b"".join(pieces) == data
        assert get(store, "large") == data
        at = PART_BYTES - 50
        assert bytes(get_range(store, "large", at, 100)) == data[at : at + 100]

    def test_the_asynchronous_reader_equals_the_other(self, store, write):
        data = os.urandom(300_000)
        write("both", data)
        ranges = [(0, 1), (0, 300_000), (299_999, 1), (1000, 77_777), (65_535, 2)]
        expected = [bytes(get_range(store, "both", at, n)) for at, n in ranges]
        assert ranges_of(store, "both", ranges) == expected
        fetcher = open_fetcher(store)
        answers = [fetcher.submit("both", at, n) for at, n in ranges]
        assert [bytes(answer.result(30)) for answer in answers] == expected
        fetcher.close()

    def test_names_are_those_at_the_top(self, store, write):
        for name in ("top", "list/a", "list/sub/b"):
            write(name, b"1234")
        found = names(store)
        assert found == sorted(found)
        assert "top" in found
        assert not any("/" in name or name == "list" for name in found)
