"""zarr-python over ranges of our own shards, by ``shards.zarr_store``; NumPy arrays, int16.

``ordinary``: each crop is read for itself. ``one-read``: one region a set, crops cut from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.peers.crops import BATCH, BOX_SIDE, KINDS, arrived, cut, empty_batch, main, start
from benchmarks.stream_protocol import Arrived


def arrays(options: argparse.Namespace) -> list[Any]:
    """All volumes, open."""
    import zarr

    from shards.zarr_store import ZarrStore

    zarr.config.set({"threading.max_workers": options.cores})
    group = zarr.open_group(ZarrStore.open_url(options.data / "shards"), mode="r")
    return [array for _, array in sorted(group.arrays())]


def ordinary(options: argparse.Namespace) -> Iterator[Arrived]:
    """A read a crop."""
    rng, volumes = np.random.default_rng(0), arrays(options)
    while True:
        out = empty_batch(np.int16)
        for place in range(BATCH):
            volume = volumes[rng.integers(len(volumes))]
            for (count, side), group in zip(KINDS, out, strict=True):
                for row in range(place * count, (place + 1) * count):
                    group[row, 0] = volume[start(rng, volume.shape, side)]
        yield arrived(*out)


def one_read(options: argparse.Namespace) -> Iterator[Arrived]:
    """A read a set."""
    rng, volumes = np.random.default_rng(0), arrays(options)
    while True:
        out = empty_batch(np.int16)
        for place in range(BATCH):
            volume = volumes[rng.integers(len(volumes))]
            cut(volume[start(rng, volume.shape, BOX_SIDE)], out, place, rng)
        yield arrived(*out)


if __name__ == "__main__":
    main("zarr-python", {"ordinary": ordinary, "one-read": one_read})
