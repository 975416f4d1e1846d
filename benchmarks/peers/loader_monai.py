"""MONAI's CacheDataset (everything in RAM) and PersistentDataset (tensors on disk).

``ordinary``: the dictionary transforms, one pipeline a kind of crop, since
``RandSpatialCropSamplesd`` takes one size. ``one-read``: its array transforms, so that all crops of
a set come from one read. ``int16``: the same without metadata, and with the voxels as stored, where
MONAI makes float32 of them.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.crops import BATCH, KINDS, arrived, main
from benchmarks.stream_protocol import Arrived

Dataset = Callable[[list[Any], Any], Any]
"""Takes items and a transform."""


def ordinary(options: argparse.Namespace, dataset: Dataset) -> Iterator[Arrived]:
    """A pipeline for each kind of crop."""
    from monai import transforms

    items = [{"image": str(path)} for path in sorted(options.data.glob("volumes/*.npy"))]
    streams = []
    for count, side in KINDS:
        steps = [
            transforms.LoadImaged("image", reader="NumpyReader"),
            transforms.EnsureChannelFirstd("image", channel_dim="no_channel"),
            transforms.RandSpatialCropSamplesd("image", side, count, random_size=False),
        ]
        made = dataset(items, transforms.Compose(steps))
        streams.append(_batches(made, max(0, options.cores - 1)))
    for large, small in zip(*streams, strict=True):
        yield arrived(large["image"], small["image"])


def one_read(
    options: argparse.Namespace, dataset: Dataset, plain: bool = False
) -> Iterator[Arrived]:
    """All crops of a set from one read; ``plain``: int16 without metadata."""
    import numpy as np
    import torch
    from monai import transforms
    from monai.data.meta_obj import set_track_meta

    set_track_meta(not plain)

    class Crops(transforms.Randomizable, transforms.Transform):
        def __init__(self) -> None:
            self._kinds = [
                transforms.RandSpatialCropSamples(side, count, random_size=False)
                for count, side in KINDS
            ]

        def set_random_state(self, seed: Any = None, state: Any = None) -> Any:
            for kind in self._kinds:
                kind.set_random_state(seed, state)
            return self

        def __call__(self, volume: Any) -> list[Any]:
            return [torch.stack(kind(volume)) for kind in self._kinds]

    dtype = np.int16 if plain else np.float32
    steps = [
        transforms.LoadImage(reader="NumpyReader", image_only=True, dtype=dtype),
        transforms.EnsureChannelFirst(channel_dim="no_channel"),
        *([transforms.ToTensor(track_meta=False)] if plain else []),
        Crops(),
    ]
    items = sorted(map(str, options.data.glob("volumes/*.npy")))
    made = dataset(items, transforms.Compose(steps))

    def collate(sets: list[Any]) -> list[Any]:
        return [torch.cat(group) for group in zip(*sets, strict=True)]

    workers = options.cores if options.cores > 1 else 0
    for groups in _batches(made, workers, collate_fn=collate):
        yield arrived(*groups)


def _batches(dataset: Any, workers: int, **more: Any) -> Iterator[Any]:
    """Epoch after epoch, without end."""
    from monai.data import DataLoader

    if workers:
        more |= {"persistent_workers": True, "prefetch_factor": 2}
    loader = DataLoader(
        dataset, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers, **more
    )
    while True:
        yield from loader


def cached(items: list[Any], transform: Any) -> Any:
    """Everything before the random crops, in RAM."""
    from monai.data import CacheDataset

    return CacheDataset(items, transform, progress=False, num_workers=1)


def persistent(scratch: Path, items: list[Any], transform: Any) -> Any:
    """Everything before the random crops, as files; all of them are written here."""
    from monai.data import PersistentDataset

    folder = tempfile.mkdtemp(dir=scratch)
    dataset = PersistentDataset(items, transform, cache_dir=folder)
    for number in range(len(dataset)):
        dataset[number]
    return dataset


def forms(scratch: Path) -> dict[str, Callable[[argparse.Namespace], Iterator[Arrived]]]:
    """All ways, by name."""
    found = {}
    for name, dataset in (("cache", cached), ("persistent", partial(persistent, scratch))):
        found[f"{name}-ordinary"] = partial(ordinary, dataset=dataset)
        found[f"{name}-one-read"] = partial(one_read, dataset=dataset)
        found[f"{name}-int16"] = partial(one_read, dataset=dataset, plain=True)
    return found


if __name__ == "__main__":
    scratch = Path(tempfile.mkdtemp(prefix="coralbay-monai-"))
    try:
        main("MONAI", forms(scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
