"""What every loader of the loader benchmark delivers, and the crops that peers cut by hand.

A set is 2 crops of 96³ and 8 of 48³ at random whole voxels of one volume, all inside it, with the
stored HU; a batch of ``BATCH`` sets is a tensor of the large crops and one of the small.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stream_protocol import Arrived, Delivered, keep_answers_apart, serve

KINDS = ((2, 96), (8, 48))
"""Count and side of the crops of a set."""
BATCH = 4
"""Sets."""
BOX_SIDE = 129
"""Voxels that a set's crops lie within, where they are cut from one read of a part."""
SETS_PER_READ = 4
"""Sets cut from a volume that was read whole: as often as our loader visits a volume."""


def arrived(*groups: Any) -> Arrived:
    """A batch of tensors or arrays, the crops along their first axis."""

    def each() -> list[Delivered]:
        crops = (np.asarray(crop) for group in groups for crop in group)
        return [Delivered(partial(np.reshape, crop, crop.shape[-3:])) for crop in crops]

    return Arrived(len(groups[0]) // KINDS[0][0], each)


def start(rng: np.random.Generator, shape: Sequence[int], side: int) -> tuple[slice, ...]:
    """A cube at a random place inside."""
    places = [int(rng.integers(n - side + 1)) for n in shape]
    return tuple(slice(place, place + side) for place in places)


def empty_batch(dtype: Any, empty: Callable[..., Any] = np.empty) -> list[Any]:
    """Memory for a batch."""
    return [empty((BATCH * count, 1, side, side, side), dtype=dtype) for count, side in KINDS]


def cut(region: Any, out: Sequence[Any], place: int, rng: np.random.Generator) -> None:
    """Set ``place`` of a batch out of one region."""
    for (count, side), group in zip(KINDS, out, strict=True):
        for row in range(place * count, (place + 1) * count):
            group[row, 0] = region[start(rng, region.shape, side)]


def in_workers(batches: Callable[[int], Iterator[Any]], cores: int) -> Iterator[Any]:
    """Batches made here, or in a worker a core where there are more.

    Args:
        batches: gives batches without end, for a seed.
        cores: of this machine that may be used.
    """
    if cores == 1:
        return batches(0)
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            info = get_worker_info()
            return batches(info.id if info else 0)

    return iter(DataLoader(Endless(), batch_size=None, num_workers=cores, prefetch_factor=2))


def main(
    name: str,
    forms: dict[str, Callable[[argparse.Namespace], Iterator[Arrived]]],
    write: Callable[[Path, Path], None] | None = None,
) -> None:
    """The command line of a peer.

    Args:
        name: of the peer.
        forms: ways to use it.
        write: makes the peer's form of a folder of ``KEY.npy`` in a new folder.
    """
    keep_answers_apart()
    parser = argparse.ArgumentParser()
    parser.add_argument("form", choices=[*forms, "write"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="where to write")
    parser.add_argument("--cores", type=int, default=1)
    options = parser.parse_args()
    if options.form == "write":
        assert write is not None
        write(options.data / "volumes", options.out)
    else:
        serve(forms[options.form](options), loader=name, form=options.form)
