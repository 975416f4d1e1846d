"""What the tests of the local cache share: a storage in memory, and looks into the folder."""

import asyncio
import hashlib
import random
from contextlib import asynccontextmanager
from types import SimpleNamespace

from shards.cache import CachingReader
from shards.cache_files import LEDGER
from shards.cache_layout import ABSENT, ShardFile, cost_of
from shards.cache_locks import locked
from shards.errors import CorruptShardError
from shards.stats import Stats

BLOCK = 64 * 1024
SIZES = (5 * BLOCK + 1000, 4 * BLOCK, 700, 3 * BLOCK + 1)


class Source:
    """Objects in memory as a reader of ranges, and every request made."""

    def __init__(self, objects):
        self.objects = dict(objects)
        self.requests = []
        self.gate = None
        self.error = None
        self.closed = False

    async def get_range(self, path, offset, nbytes):
        self.requests.append((path, offset, nbytes))
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        if path not in self.objects:
            raise FileNotFoundError(path)
        data = self.objects[path][offset : offset + nbytes]
        if len(data) < nbytes:
            raise CorruptShardError(f"{path}: ends before byte {offset + nbytes}")
        return memoryview(data)

    async def close(self):
        self.closed = True


def objects(sizes=SIZES):
    """The same bytes in every process."""
    return {f"shard-{n:06d}.tar": random.Random(n).randbytes(size) for n, size in enumerate(sizes)}


def entries(objects):
    """What a manifest says of the objects."""
    return {
        path: SimpleNamespace(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in objects.items()
    }


def random_range(rng, objects):
    path = rng.choice(sorted(objects))
    offset = rng.randrange(len(objects[path]))
    return path, offset, rng.randint(1, min(len(objects[path]) - offset, 2 * BLOCK))


FIRST, SECOND, SMALL, FOURTH = sorted(objects())
ROOMY = 2**30


@asynccontextmanager
async def caching(folder, source=None, limit=ROOMY, shards=None):
    source = source or Source(objects())
    stats = Stats()
    shards = entries(objects()) if shards is None else shards
    reader = CachingReader(source, folder, limit, shards, stats, block_bytes=BLOCK)
    try:
        yield reader, source, stats
    finally:
        await reader.close()


async def settled(reader):
    """Wait until what was fetched is written."""
    while reader._tasks:
        await asyncio.sleep(0.001)


def shard_files(folder):
    return sorted(path for path in folder.iterdir() if ShardFile.named(path.name))


def file_of(folder, path):
    shard = entries(objects())[path]
    file = ShardFile(shard.sha256, shard.bytes, BLOCK)
    return folder / file.name, file


def flags(folder, path):
    where, file = file_of(folder, path)
    return list(where.read_bytes()[file.flags_at :]) if where.exists() else [ABSENT] * file.blocks


def noted(folder):
    with locked(folder / LEDGER) as ledger:
        return ledger.read()


def counted(folder):
    total = 0
    for path in shard_files(folder):
        with path.open("rb") as handle:
            total += cost_of(handle.fileno(), ShardFile.named(path.name))
    return total


def on_disk(folder):
    return sum(path.stat().st_blocks * 512 for path in shard_files(folder))


def room_for(*paths):
    """A limit that just holds all blocks of these shards, and what is looked for beforehand."""
    shards = entries(objects())
    files = [ShardFile(shards[path].sha256, shards[path].bytes, BLOCK) for path in paths]
    cost = sum(f.overhead + sum(f.cost(n) for n in range(f.blocks)) for f in files)
    return cost + files[0].overhead
