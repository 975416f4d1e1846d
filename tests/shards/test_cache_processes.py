"""The local cache through random histories, and shared by processes that are killed."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from shards import cache_files
from shards.cache_files import CLAIMS, LEDGER
from shards.cache_locks import Claims
from tests.shards.cache_tools import (
    BLOCK,
    FIRST,
    ROOMY,
    SMALL,
    caching,
    counted,
    file_of,
    noted,
    objects,
    on_disk,
    random_range,
    room_for,
    settled,
    shard_files,
)

ROOT = Path(__file__).parents[2]
WORKERS = 4
STEP = st.one_of(
    st.tuples(st.just("read"), st.integers(0, 2**32)),
    st.tuples(st.just("fresh"), st.integers(0, 2**32)),
    st.just(("restart", 0)),
    st.just(("forget", 0)),
    st.tuples(st.just("rot"), st.integers(0, 2**32)),
    st.tuples(st.just("cut"), st.integers(0, 2**32)),
)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(STEP, max_size=25), limit=st.integers(1, 14))
def test_any_history_gives_the_bytes_and_keeps_the_count(tmp_path_factory, steps, limit):
    folder = tmp_path_factory.mktemp("cache")
    most = room_for(SMALL) + limit * BLOCK
    data = objects()

    async def take(reader, path, offset, nbytes):
        """As the layer above: what does not match its checksum is asked for again."""
        want = data[path][offset : offset + nbytes]
        if await reader.get_range(path, offset, nbytes) != want:
            assert rotten
            assert await reader.get_fresh(path, offset, nbytes) == want

    async def run(part):
        async with caching(folder, limit=most) as (reader, source, stats):
            for kind, seed in part:
                rng = random.Random(seed)
                if kind == "read":
                    ranges = [random_range(rng, data) for _ in range(rng.randint(1, 3))]
                    await asyncio.gather(*(take(reader, *r) for r in ranges))
                elif kind == "fresh":
                    path, offset, nbytes = random_range(rng, data)
                    got = await reader.get_fresh(path, offset, nbytes)
                    assert got == data[path][offset : offset + nbytes]
                await settled(reader)
                spoil(kind, rng)
                assert on_disk(folder) <= counted(folder) <= most
                assert noted(folder) == counted(folder) or spoiled
            counters = stats.counters()
            assert len(source.requests) == counters.get("cache_misses", 0)

    def spoil(kind, rng):
        nonlocal rotten, spoiled
        files = shard_files(folder)
        if kind == "forget":
            spoiled = True
            (folder / LEDGER).write_bytes(b"what?" * (rng.random() < 0.5))
        elif kind == "rot" and files:
            rotten = True
            with rng.choice(files).open("r+b") as file:
                file.seek(rng.randrange(700))
                file.write(b"rot")
        elif kind == "cut" and files:
            spoiled = True
            os.truncate(rng.choice(files), rng.randrange(700))

    rotten = spoiled = False
    parts = [[]]
    for step in steps:
        parts.append([]) if step[0] == "restart" else parts[-1].append(step)
    for part in parts:
        spoiled = False  # a start counts again
        asyncio.run(run(part))


def start_worker(folder, limit, seed, reads):
    command = [sys.executable, "-m", "tests.shards.cache_worker", folder, limit, seed, reads]
    return subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def disk_use(folder, processes):
    """Bytes that the folder's files take, also those without a name that a process has open."""
    found = {}
    for path in [*folder.iterdir(), *(h for p in processes for h in handles(p))]:
        try:
            status, target = path.stat(), path.resolve()
        except FileNotFoundError:  # evicted, or closed, just now
            continue
        if target.parent == folder and ".shard" in target.name:
            found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def handles(process):
    try:
        return list(Path(f"/proc/{process.pid}/fd").iterdir())
    except (FileNotFoundError, PermissionError):
        return []


def test_processes_share_a_folder_and_one_is_killed(tmp_path):
    limit = room_for(SMALL) + 5 * BLOCK
    workers = [start_worker(tmp_path, limit, seed, 800) for seed in range(WORKERS)]
    victim, *others = workers
    assert victim.stdout.read(20) == b"." * 20  # at work
    most = samples = 0
    while any(worker.poll() is None for worker in others):
        most = max(most, disk_use(tmp_path, workers))
        samples += 1
        if samples == 20:
            victim.kill()
        time.sleep(0.002)
    assert victim.wait() == -signal.SIGKILL
    victim.stdout.close()
    victim.stderr.close()
    for worker in others:
        output, errors = worker.communicate()
        assert worker.returncode == 0, errors.decode()
        dots, counters = output.decode().splitlines()
        assert dots == "." * 800
        assert json.loads(counters)["cache_evictions"] > 0
    # One block is written at a time by each process.
    assert BLOCK < most <= limit + WORKERS * BLOCK
    assert on_disk(tmp_path) <= counted(tmp_path) <= limit
    assert noted(tmp_path) >= counted(tmp_path)  # a kill may leave a block counted twice, no more
    asyncio.run(all_is_right(tmp_path, limit))


async def all_is_right(folder, limit):
    async with caching(folder, limit=limit) as (reader, source, _):
        assert noted(folder) == counted(folder)
        for path, data in source.objects.items():
            assert await reader.get_range(path, 0, len(data)) == data


def test_a_killed_process_holds_nothing(tmp_path):
    # Killed while it has the ledger's lock and a claim: the next one finds both free.
    held = (
        "import sys, time; from pathlib import Path; "
        "from shards.cache_files import *; from shards.cache_files import locked; "
        "from tests.shards.cache_tools import *; "
        "folder = CacheFolder(Path(sys.argv[1]), ROOMY); "
        "path, file = file_of(Path(sys.argv[1]), FIRST); assert folder.claim(file, 0); "
        "lock = locked(Path(sys.argv[1]) / LEDGER); lock.__enter__(); "
        "print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", held, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    file = file_of(tmp_path, FIRST)[1]
    other = Claims(tmp_path / CLAIMS)
    assert not other.take(cache_files._place(file, 0))
    process.kill()
    process.wait()
    process.stdout.close()
    assert other.take(cache_files._place(file, 0))
    other.close()
    asyncio.run(all_is_right(tmp_path, ROOMY))
