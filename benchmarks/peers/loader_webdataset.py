"""webdataset with volumes as ``.npy`` members, int16.

``ordinary``: its decoder, a set a volume. ``one-read``: the bytes taken as an array without a copy,
and ``SETS_PER_READ`` sets cut from each volume.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.crops import (
    BATCH,
    SETS_PER_READ,
    arrived,
    cut,
    empty_batch,
    in_workers,
    main,
)
from benchmarks.stream_protocol import Arrived

VOLUMES_PER_SHARD = 4


def serve_volumes(
    options: argparse.Namespace, decode: Callable[[Any], Any], sets: int
) -> Iterator[Arrived]:
    """Crops of the volumes as they come, ``sets`` from each."""
    import torch
    import webdataset as wds

    urls = sorted(map(str, options.data.glob("webdataset/*.tar")))

    def batches(seed: int) -> Iterator[Any]:
        rng = np.random.default_rng(seed)
        data = wds.WebDataset(
            urls, resampled=True, shardshuffle=False, nodesplitter=None, seed=seed
        )
        volumes = (torch.from_numpy(sample["npy"]) for sample in decode(data))
        while True:
            out = empty_batch(torch.int16, torch.empty)
            place = 0
            while place < BATCH:
                volume = next(volumes)
                for _ in range(sets):
                    cut(volume, out, place, rng)
                    place += 1
            yield out

    for groups in in_workers(batches, options.cores):
        yield arrived(*groups)


def ordinary(options: argparse.Namespace) -> Iterator[Arrived]:
    """A set a volume, decoded by webdataset."""
    return serve_volumes(options, lambda data: data.decode(), 1)


def one_read(options: argparse.Namespace) -> Iterator[Arrived]:
    """Some sets a volume, decoded without a copy."""
    return serve_volumes(options, lambda data: data.map_dict(npy=view), SETS_PER_READ)


def view(data: bytes) -> np.ndarray:
    """A ``.npy`` file as an array, in place."""
    file = io.BytesIO(data)  # shares the bytes
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)


def write(source: Path, target: Path) -> None:
    """Tars of a few volumes."""
    paths = sorted(source.glob("*.npy"))
    for number in range(0, len(paths), VOLUMES_PER_SHARD):
        with tarfile.open(target / f"{number:03d}.tar", "w") as tar:
            for path in paths[number : number + VOLUMES_PER_SHARD]:
                tar.add(path, path.name)


if __name__ == "__main__":
    main("webdataset, npy", {"ordinary": ordinary, "one-read": one_read}, write)
