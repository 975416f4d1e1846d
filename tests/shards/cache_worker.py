"""A process that reads through a shared cache.

Run as ``python -m tests.shards.cache_worker FOLDER LIMIT SEED READS``: it prints a dot for
each range that had the right bytes, and at the end its counters in a line.
"""

import asyncio
import json
import random
import sys
from pathlib import Path

from tests.shards.cache_tools import caching, objects, random_range


async def read_ranges(folder, limit, seed, reads):
    data, rng = objects(), random.Random(seed)

    async def read(path, offset, nbytes):
        got = await reader.get_range(path, offset, nbytes)
        assert got == data[path][offset : offset + nbytes], (path, offset, nbytes)
        sys.stdout.write(".")
        sys.stdout.flush()

    async with caching(folder, limit=limit) as (reader, _, stats):
        for _ in range(reads // 4):
            await asyncio.gather(*(read(*random_range(rng, data)) for _ in range(4)))
    return stats.counters()


if __name__ == "__main__":
    where, most, start, many = sys.argv[1:]
    counters = asyncio.run(read_ranges(Path(where), int(most), int(start), int(many)))
    sys.stdout.write(f"\n{json.dumps(counters)}\n")
