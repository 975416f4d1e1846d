"""The local cache stays within its limit, and trouble with the disk only costs speed."""

import asyncio
import errno
import os
import stat

import pytest

from shards import cache_disk, cache_files, cache_locks
from shards.cache import CachingReader
from shards.cache_files import CLAIMS, LEDGER
from shards.cache_layout import PRESENT, ShardFile
from shards.cache_locks import locked
from shards.errors import ShardError
from shards.stats import Stats
from tests.shards.cache_tools import (
    BLOCK,
    FIRST,
    FOURTH,
    ROOMY,
    SECOND,
    SMALL,
    Source,
    caching,
    counted,
    file_of,
    flags,
    noted,
    on_disk,
    room_for,
    settled,
    shard_files,
)


def test_the_least_recently_used_shard_goes_first(tmp_path):
    async def main():
        limit = room_for(FIRST, SECOND)
        async with caching(tmp_path, limit=limit) as (reader, source, stats):
            await reader.get_range(FIRST, 0, len(source.objects[FIRST]))
            await settled(reader)
            await reader.get_range(SECOND, 0, len(source.objects[SECOND]))
            await settled(reader)
            assert stats.counters()["cache_evictions"] == 0
            assert await reader.get_range(FIRST, 3, 4) == source.objects[FIRST][3:7]  # a use
            await reader.get_range(FOURTH, 0, 1)
            await settled(reader)
            assert stats.counters()["cache_evictions"] == 1
            assert shard_files(tmp_path) == sorted(
                file_of(tmp_path, path)[0] for path in (FIRST, FOURTH)
            )
            assert noted(tmp_path) == counted(tmp_path) <= limit
            before = len(source.requests)
            assert await reader.get_range(SECOND, 3, 4) == source.objects[SECOND][3:7]
            assert len(source.requests) == before + 1

    asyncio.run(main())


def test_a_shard_larger_than_the_limit_goes_in_parts(tmp_path):
    async def main():
        limit = room_for(SMALL) + 2 * BLOCK
        async with caching(tmp_path, limit=limit) as (reader, _, stats):
            for n in range(5):
                await reader.get_range(FIRST, n * BLOCK, BLOCK)
                await settled(reader)
                assert on_disk(tmp_path) <= counted(tmp_path) == noted(tmp_path) <= limit
        assert stats.counters()["cache_evictions"] == 2
        assert flags(tmp_path, FIRST)[4] == PRESENT

    asyncio.run(main())


def test_eviction_frees_the_room_of_a_file_that_is_open(tmp_path):
    async def main():
        async with caching(tmp_path, limit=room_for(FIRST)) as (reader, source, _):
            await reader.get_range(FIRST, 0, len(source.objects[FIRST]))
            await settled(reader)
            with file_of(tmp_path, FIRST)[0].open("rb") as handle:
                assert os.fstat(handle.fileno()).st_blocks * 512 > 5 * BLOCK
                await reader.get_range(SECOND, 0, BLOCK)
                await settled(reader)
                assert os.fstat(handle.fileno()).st_nlink == 0
                assert os.fstat(handle.fileno()).st_blocks == 0

    asyncio.run(main())


def test_an_evicted_file_that_is_open_gives_no_bytes(tmp_path, monkeypatch):
    async def main():
        async with caching(tmp_path) as (reader, source, _):
            await reader.get_range(FIRST, 0, BLOCK)
            await settled(reader)
            pread = os.pread

            def evicted_first(handle, nbytes, offset):
                if nbytes == 10:
                    path, file = file_of(tmp_path, FIRST)
                    writer = os.open(path, os.O_RDWR)
                    cache_files._evict(path)
                    os.ftruncate(writer, file.length)  # as one who writes another block does
                    os.close(writer)
                return pread(handle, nbytes, offset)

            monkeypatch.setattr(os, "pread", evicted_first)
            assert await reader.get_range(FIRST, 0, 10) == source.objects[FIRST][:10]
            assert len(source.requests) == 2

    asyncio.run(main())


@pytest.mark.parametrize("note", [None, b"", b"garbage", b"x" * 20, b"y" * 4000])
def test_a_lost_or_wrong_count_is_counted_again(tmp_path, note):
    async def main():
        limit = room_for(FIRST)
        async with caching(tmp_path, limit=limit) as (reader, _, _):
            await reader.get_range(FIRST, 0, 4 * BLOCK)
            await settled(reader)
            (tmp_path / LEDGER).unlink()
            if note is not None:
                (tmp_path / LEDGER).write_bytes(note)
            await reader.get_range(FIRST, 4 * BLOCK, BLOCK)
            await settled(reader)
            assert noted(tmp_path) == counted(tmp_path)
            await reader.get_range(SECOND, 0, 4 * BLOCK)
            await settled(reader)
            assert noted(tmp_path) == counted(tmp_path) <= limit

    asyncio.run(main())


def test_files_that_are_not_ours_stay_and_damaged_ones_of_ours_are_made_again(tmp_path):
    async def main():
        where, file = file_of(tmp_path, FIRST)
        where.write_bytes(b"of another length")
        foreign = {"notes.txt": b"mine", f"{'A' * 64}.5.5.shard": b"mine", "a.shard": b"mine"}
        for name, data in foreign.items():
            (tmp_path / name).write_bytes(data)
        (tmp_path / ShardFile("0" * 64, 5, 5).name).mkdir()
        limit = room_for(FIRST)
        async with caching(tmp_path, limit=limit) as (reader, source, _):
            for path, data in list(source.objects.items()) * 2:
                assert await reader.get_range(path, 0, len(data)) == data
                await settled(reader)
            await reader.get_range(FIRST, 0, 10)
            await settled(reader)
        assert where.stat().st_size == file.length
        assert {name: (tmp_path / name).read_bytes() for name in foreign} == foreign
        assert (tmp_path / ShardFile("0" * 64, 5, 5).name).is_dir()

    asyncio.run(main())


def test_files_are_private(tmp_path):
    async def main():
        old = os.umask(0)
        try:
            async with caching(tmp_path / "a" / "cache") as (reader, _, _):
                await reader.get_range(FIRST, 0, 10)
        finally:
            os.umask(old)

    asyncio.run(main())
    folder = tmp_path / "a" / "cache"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == dict.fromkeys((LEDGER, CLAIMS, file_of(folder, FIRST)[0].name), 0o600)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_once_and_reading_goes_on(tmp_path, monkeypatch, caplog, number):
    async def main():
        async with caching(tmp_path) as (reader, source, stats):
            await reader.get_range(FIRST, 0, BLOCK)
            await settled(reader)
            pwrite = os.pwrite

            def full(handle, data, offset):
                if len(data) > 500:
                    raise OSError(number, os.strerror(number))
                return pwrite(handle, data, offset)

            monkeypatch.setattr(os, "pwrite", full)
            for path, data in source.objects.items():
                assert await reader.get_range(path, 0, len(data)) == data
                await settled(reader)
            # What is there is still of use.
            before = len(source.requests)
            assert await reader.get_range(FIRST, 1, 5) == source.objects[FIRST][1:6]
            assert len(source.requests) == before
        assert stats.counters()["cache_not_kept"] == 14  # all but the first
        [record] = caplog.records
        assert os.strerror(number) in record.getMessage()
        assert str(tmp_path) in record.getMessage()

    asyncio.run(main())


def test_a_disk_that_is_full_at_the_start(tmp_path, monkeypatch, caplog):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main():
        async with caching(tmp_path) as (reader, source, _):
            assert await reader.get_range(FIRST, 1, 5) == source.objects[FIRST][1:6]
            assert source.requests == [(FIRST, 1, 5)]

    monkeypatch.setattr(cache_locks.os, "pwrite", full)
    asyncio.run(main())
    assert len(caplog.records) == 1


def test_a_limit_below_a_block_is_said_once(tmp_path, caplog):
    async def main():
        async with caching(tmp_path / "cache", limit=BLOCK) as (reader, source, _):
            for _ in range(3):
                assert await reader.get_range(FIRST, 1, 5) == source.objects[FIRST][1:6]
            assert source.requests == [(FIRST, 1, 5)] * 3

    asyncio.run(main())
    assert len(caplog.records) == 1
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_used_is_said_in_a_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ShardError, match="cannot be used as a cache") as caught:
        CachingReader(Source({}), tmp_path / "file", ROOMY, {}, Stats())
    assert "\n" not in str(caught.value)


def test_a_slow_disk_does_not_slow_the_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_disk, "WAITING_WRITES", 2)

    async def main():
        async with caching(tmp_path) as (reader, source, stats):
            with locked(tmp_path / LEDGER):  # no block can be written for now
                data = source.objects[FIRST]
                assert await reader.get_range(FIRST, 0, len(data)) == data
                await asyncio.sleep(0.01)
                assert stats.counters()["cache_not_kept"] == 4
            await settled(reader)
            assert flags(tmp_path, FIRST).count(PRESENT) == 2

    asyncio.run(main())


def test_a_stopped_process_costs_blocks_not_the_cache(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cache_locks, "LOCK_WAIT_S", 0.02)

    async def main():
        async with caching(tmp_path) as (reader, _, stats):
            with locked(tmp_path / LEDGER):
                await reader.get_range(FIRST, 0, 10)
                await settled(reader)
            assert stats.counters()["cache_not_kept"] == 1
            await reader.get_range(FIRST, 0, 10)
            await settled(reader)
            assert flags(tmp_path, FIRST)[0] == PRESENT
        assert caplog.records == []

    asyncio.run(main())
