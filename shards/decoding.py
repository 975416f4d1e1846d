"""Decodes the stored chunks of a region into a slot."""

from __future__ import annotations

from jaxtyping import Int16
from numpy import ndarray

from shards.codec import decode_chunk
from shards.fetched import Fetched
from shards.profiles import get_profile
from shards.schema import FILL_HU
from shards.stats import Stats


class ChunkDecoder:
    """Stored chunks in, voxels out, with exact counts. Thread-safe.

    Args:
        profile: name of the dataset's profile.
        stats: where to count ``chunks``, their ``bytes_ideal`` as stored, ``voxels_decoded``, and
            ``bytes_copied`` beside decoding.
    """

    def __init__(self, profile: str, stats: Stats) -> None:
        self._profile = get_profile(profile)
        self._stats = stats

    def decode(self, fetched: Fetched, out: Int16[ndarray, "nz ny nx c c c"]) -> None:
        """Decode into a slot: touched chunks only, -1024 where nothing is stored.

        Raises:
            CorruptShardError: a chunk is not as written.
            ShardError, OSError: a chunk could not be read.
        """
        fetched.wait()
        flat = out.reshape(-1, *out.shape[3:])
        decoded = stored = copied = 0
        with self._stats.timed("decode", "busy_s"):
            for place in fetched.absent:
                flat[place].fill(FILL_HU)
            for place, chunk in fetched.stored():
                copied += decode_chunk(chunk, flat[place], self._profile)
                decoded += 1
                stored += len(chunk)
        voxels = decoded * flat[0].size
        self._stats.add("decode", items=1, nbytes=voxels * out.itemsize)
        self._stats.count(
            chunks=decoded, bytes_ideal=stored, voxels_decoded=voxels, bytes_copied=copied
        )
