"""nnU-Net's blosc2 files.

``ordinary``: its own ``nnUNetDataLoader``, one a patch size, which draws each crop from a case of
its own; every case has a segmentation, empty here. ``one-read``: its dataset class without the
segmentation, files kept open, one region a set, crops cut from it. ``int16``: the same with the
voxels stored as int16, where nnU-Net has float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.crops import (
    BATCH,
    BOX_SIDE,
    KINDS,
    arrived,
    cut,
    empty_batch,
    in_workers,
    main,
    start,
)
from benchmarks.stream_protocol import Arrived


def ordinary(options: argparse.Namespace) -> Iterator[Arrived]:
    """Its data loaders."""
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    labels = LabelManager({"background": 0, "lesion": 1}, None)
    cases = nnUNetDatasetBlosc2(str(options.data / "nnunet" / "float32"))
    loaders = [
        nnUNetDataLoader(cases, count * BATCH, (side,) * 3, (side,) * 3, labels)
        for count, side in KINDS
    ]

    def batches(_: int) -> Iterator[list[Any]]:
        while True:
            yield [next(loader)["data"] for loader in loaders]

    for groups in in_workers(batches, options.cores):
        yield arrived(*groups)


def one_read(options: argparse.Namespace, dtype: str) -> Iterator[Arrived]:
    """Its files and its way to read them, a region at a time."""
    import numpy as np
    import torch
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    cases = nnUNetDatasetBlosc2(str(options.data / "nnunet" / dtype))

    def batches(seed: int) -> Iterator[list[Any]]:
        rng = np.random.default_rng(seed)
        images = [cases.load_case(name)[0] for name in cases.identifiers]
        while True:
            out = empty_batch(getattr(torch, dtype), torch.empty)
            for place in range(BATCH):
                image = images[rng.integers(len(images))]
                region = image[(0, *start(rng, image.shape[1:], BOX_SIDE))]
                cut(torch.from_numpy(region), out, place, rng)
            yield out

    for groups in in_workers(batches, options.cores):
        yield arrived(*groups)


def write(source: Path, target: Path) -> None:
    """As nnU-Net's preprocessing writes them for patches of 96³."""
    import numpy as np
    from nnunetv2.training.dataloading.nnunet_dataset import (
        comp_blosc2_params,
        nnUNetDatasetBlosc2,
    )

    for dtype in ("float32", "int16"):
        (target / dtype).mkdir()
        for path in sorted(source.glob("*.npy")):
            hu = np.load(path)[None].astype(dtype)
            shape, patch = hu.shape, (KINDS[0][1],) * 3
            blocks, chunks = comp_blosc2_params(shape, patch, hu.itemsize)
            blocks_seg, chunks_seg = comp_blosc2_params(shape, patch, 1)
            nnUNetDatasetBlosc2.save_case(
                hu,
                np.zeros(shape, dtype=np.int8),
                {"class_locations": {}},
                str(target / dtype / path.stem),
                chunks=chunks,
                blocks=blocks,
                chunks_seg=chunks_seg,
                blocks_seg=blocks_seg,
            )


if __name__ == "__main__":
    main(
        "nnU-Net blosc2",
        {
            "ordinary": ordinary,
            "one-read": partial(one_read, dtype="float32"),
            "int16": partial(one_read, dtype="int16"),
        },
        write,
    )
