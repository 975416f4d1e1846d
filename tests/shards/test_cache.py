"""The local cache gives the storage's bytes, asks once, and changes no verdict."""

import asyncio
import os
import threading

import pytest

from shards import cache_disk
from shards.cache import CachingReader
from shards.cache_layout import ABSENT, BLOCK_BYTES, PRESENT, ShardFile
from shards.errors import CorruptShardError, StorageUnavailableError
from shards.fetcher import Fetcher
from shards.requests import FreshReader, RangeReader
from shards.stats import Stats
from tests.shards.cache_tools import (
    BLOCK,
    FIRST,
    ROOMY,
    SECOND,
    SMALL,
    Source,
    caching,
    counted,
    entries,
    file_of,
    flags,
    noted,
    objects,
    settled,
    shard_files,
)


def damage(folder, path, offset):
    where, _ = file_of(folder, path)
    with where.open("r+b") as file:
        file.seek(offset)
        file.write(b"rot")


def test_it_is_a_reader(tmp_path):
    async def main():
        async with caching(tmp_path / "cache") as (reader, source, _):
            assert isinstance(reader, RangeReader)
            assert isinstance(reader, FreshReader)
        assert source.closed

    asyncio.run(main())


def test_whole_blocks_are_fetched_once(tmp_path):
    data = objects()[FIRST]

    async def main():
        async with caching(tmp_path) as (reader, source, stats):
            # The end of block 0, all of 1, the start of 2.
            got = await reader.get_range(FIRST, BLOCK - 10, BLOCK + 20)
            assert got == data[BLOCK - 10 : 2 * BLOCK + 10]
            assert sorted(source.requests) == [(FIRST, n * BLOCK, BLOCK) for n in range(3)]
            await settled(reader)
            assert await reader.get_range(FIRST, 5, 3 * BLOCK - 5) == data[5 : 3 * BLOCK]
            # Block 2 is there, block 3 is not.
            assert (
                await reader.get_range(FIRST, 3 * BLOCK - 7, 14)
                == (data[3 * BLOCK - 7 : 3 * BLOCK + 7])
            )
            # The last block is short.
            assert await reader.get_range(FIRST, len(data) - 3, 3) == data[-3:]
            assert source.requests[3:] == [(FIRST, 3 * BLOCK, BLOCK), (FIRST, 5 * BLOCK, 1000)]
            await settled(reader)
        assert stats.counters() == {
            "cache_hits": 4,
            "cache_misses": 5,
            "cache_bytes_read": 3 * BLOCK - 5 + 7,
            "cache_bytes_fetched": 4 * BLOCK + 1000,
            "cache_evictions": 0,
        }
        assert flags(tmp_path, FIRST) == [PRESENT] * 4 + [ABSENT, PRESENT]

    asyncio.run(main())


def test_a_restart_asks_for_nothing_that_is_there(tmp_path):
    async def main():
        async with caching(tmp_path) as (reader, source, _):
            for path, data in source.objects.items():
                assert await reader.get_range(path, 0, len(data)) == data
        async with caching(tmp_path) as (reader, source, stats):
            for path, data in source.objects.items():
                assert await reader.get_range(path, 0, len(data)) == data
            assert source.requests == []
        total = sum(map(len, source.objects.values()))
        assert stats.counters() == {"cache_hits": 6 + 4 + 1 + 4, "cache_bytes_read": total}

    asyncio.run(main())


def test_who_wants_a_block_on_its_way_waits_for_it(tmp_path):
    async def main():
        async with caching(tmp_path) as (reader, source, stats):
            source.gate = asyncio.Event()
            calls = [asyncio.create_task(reader.get_range(FIRST, n, 10)) for n in range(20)]
            await asyncio.sleep(0.05)
            source.gate.set()
            for n, got in enumerate(await asyncio.gather(*calls)):
                assert got == source.objects[FIRST][n : n + 10]
            assert source.requests == [(FIRST, 0, BLOCK)]
        assert stats.counters()["cache_hits"] == 19
        assert stats.counters()["cache_misses"] == 1

    asyncio.run(main())


def test_two_processes_ask_once(tmp_path):
    # The locks belong to the open file: two readers in a process compete as two processes do.
    async def main():
        async with caching(tmp_path) as (one, source, _), caching(tmp_path, source) as (two, _, _):
            source.gate = asyncio.Event()
            calls = [asyncio.create_task(r.get_range(FIRST, 0, 10)) for r in (one, two)]
            await asyncio.sleep(0.05)
            source.gate.set()
            assert await asyncio.gather(*calls) == [source.objects[FIRST][:10]] * 2
            assert source.requests == [(FIRST, 0, BLOCK)]

    asyncio.run(main())


def test_a_process_that_hangs_is_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_disk, "PATIENCE_S", 0.03)

    async def main():
        async with caching(tmp_path) as (one, hung, _), caching(tmp_path) as (two, source, _):
            hung.gate = asyncio.Event()
            call = asyncio.create_task(one.get_range(FIRST, 0, 10))
            await asyncio.sleep(0.05)
            assert await two.get_range(FIRST, 0, 10) == source.objects[FIRST][:10]
            call.cancel()

    asyncio.run(main())


def test_the_last_who_gives_up_cancels_the_request(tmp_path):
    async def main():
        async with caching(tmp_path) as (reader, source, _):
            source.gate = asyncio.Event()
            one, two = (asyncio.create_task(reader.get_range(FIRST, n, 10)) for n in range(2))
            await asyncio.sleep(0.05)
            one.cancel()
            await asyncio.sleep(0.02)
            assert len(reader._tasks) == 1  # the other still waits
            two.cancel()
            await settled(reader)
            source.gate = None
            assert await reader.get_range(FIRST, 0, 10) == source.objects[FIRST][:10]
            assert len(source.requests) == 2

    asyncio.run(main())


def test_closing_ends_what_is_at_work(tmp_path):
    async def main():
        before = set(os.listdir("/proc/self/fd"))
        async with caching(tmp_path) as (reader, source, _):
            await reader.get_range(SECOND, 0, 10)  # is being written
            source.gate = asyncio.Event()
            call = asyncio.create_task(reader.get_range(FIRST, 0, 10))
            await asyncio.sleep(0.05)
            late = asyncio.create_task(reader.get_fresh(FIRST, 0, 10))  # has not begun
            await asyncio.sleep(0)
        results = await asyncio.gather(call, late, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError, RuntimeError]
        assert flags(tmp_path, SECOND)[0] == PRESENT
        assert set(os.listdir("/proc/self/fd")) == before

    asyncio.run(main())


def test_behind_a_fetcher_that_is_closed_at_once(tmp_path):
    def fetch(calls):
        source = Source(objects())
        reader = CachingReader(
            source, tmp_path, ROOMY, entries(objects()), Stats(), block_bytes=BLOCK
        )
        fetcher = Fetcher(reader)
        try:
            answers = [fetcher.submit(FIRST, n * BLOCK, BLOCK) for n in range(5)]
            for n, answer in enumerate(answers):
                assert answer.result(10) == source.objects[FIRST][n * BLOCK :][:BLOCK]
        finally:
            fetcher.close()
        assert source.closed
        assert len(source.requests) == calls

    threads = threading.active_count()
    fetch(5)
    fetch(0)  # what was still to be written has been
    assert threading.active_count() == threads


def test_errors_are_those_of_the_storage_and_nothing_is_kept(tmp_path):
    async def main():
        source = Source(objects())
        source.objects[FIRST] = source.objects[FIRST][: BLOCK + 500]  # ends early
        del source.objects[SECOND]
        async with caching(tmp_path, source) as (reader, _, _):
            # Alone, for of blocks asked for together one that fails may end the others.
            assert await reader.get_range(FIRST, 0, 10) == source.objects[FIRST][:10]
            # A block that ends early is no fault of the samples before its end.
            got = await reader.get_range(FIRST, BLOCK - 5, 100)
            assert got == source.objects[FIRST][BLOCK - 5 : BLOCK + 95]
            with pytest.raises(CorruptShardError, match="ends before"):
                await reader.get_range(FIRST, BLOCK + 450, 51)
            with pytest.raises(FileNotFoundError):
                await reader.get_range(SECOND, 0, 10)
            with pytest.raises(CorruptShardError, match="ends before"):
                await reader.get_range(SMALL, 690, 11)  # more than the manifest says
            assert source.requests[-1] == (SMALL, 690, 11)
        assert flags(tmp_path, FIRST) == [PRESENT] + [ABSENT] * 5
        assert len(shard_files(tmp_path)) == 1

    asyncio.run(main())


def test_an_unavailable_storage_is_not_asked_twice(tmp_path):
    async def main():
        async with caching(tmp_path) as (reader, source, _):
            source.error = StorageUnavailableError("503 for as long as patience lasts")
            with pytest.raises(StorageUnavailableError):
                await reader.get_range(FIRST, 5, 10)
            assert source.requests == [(FIRST, 0, BLOCK)]
            source.error = None  # back again
            assert await reader.get_range(FIRST, 5, 10) == source.objects[FIRST][5:15]

    asyncio.run(main())


def test_tables_and_shards_without_a_digest_pass_through(tmp_path):
    async def main():
        source = Source({**objects(), "index.parquet": b"table" * 100})
        shards = entries(objects())
        shards[FIRST].sha256 = "../../elsewhere"
        async with caching(tmp_path, source, shards=shards) as (reader, _, stats):
            assert await reader.get_range("index.parquet", 5, 5) == b"table"
            assert await reader.get_fresh("index.parquet", 0, 5) == b"table"
            assert await reader.get_range(FIRST, 1, 2) == source.objects[FIRST][1:3]
        assert source.requests == [("index.parquet", 5, 5), ("index.parquet", 0, 5), (FIRST, 1, 2)]
        assert stats.counters() == {}
        assert shard_files(tmp_path) == []

    asyncio.run(main())


def test_damaged_blocks_are_replaced(tmp_path):
    async def main():
        async with caching(tmp_path) as (reader, source, stats):
            data = source.objects[FIRST]
            await reader.get_range(FIRST, 0, 3 * BLOCK)
            await settled(reader)
            damage(tmp_path, FIRST, BLOCK + 7)
            assert await reader.get_range(FIRST, BLOCK, 20) != data[BLOCK : BLOCK + 20]
            assert await reader.get_fresh(FIRST, BLOCK, 20) == data[BLOCK : BLOCK + 20]
            assert source.requests[3:] == [(FIRST, BLOCK, BLOCK)]
            await settled(reader)
            assert await reader.get_range(FIRST, 0, 3 * BLOCK) == data[: 3 * BLOCK]
            assert len(source.requests) == 4
        assert stats.counters()["cache_misses"] == 4
        assert noted(tmp_path) == counted(tmp_path)  # the room was counted once

    asyncio.run(main())


def test_wrong_bytes_from_the_storage_do_not_stay(tmp_path):
    async def main():
        async with caching(tmp_path) as (reader, source, _):
            right = source.objects[FIRST]
            source.objects[FIRST] = b"wrong" + right[5:]
            assert await reader.get_range(FIRST, 0, 10) == b"wrong" + right[5:10]
            source.objects[FIRST] = right
            assert await reader.get_fresh(FIRST, 0, 10) == right[:10]  # the write may still wait
            await settled(reader)
            assert await reader.get_range(FIRST, 0, 10) == right[:10]

    asyncio.run(main())


def test_the_default_block_is_that_of_a_request():
    assert BLOCK_BYTES == 8 * 2**20
    assert ShardFile("0" * 64, 512 * 2**20).blocks == 64
