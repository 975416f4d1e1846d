"""torchio's Queue: volumes are loaded, patches drawn from them, kept and shuffled.

``ordinary``: uncompressed NIfTI files, a queue a kind of crop, as a queue has one patch size; as
many patches a volume as ``SETS_PER_READ`` sets have. ``one-read``: volumes in RAM, int16, and a
queue of regions that all crops of a set are cut from.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.crops import (
    BATCH,
    BOX_SIDE,
    KINDS,
    SETS_PER_READ,
    arrived,
    cut,
    empty_batch,
    main,
)
from benchmarks.stream_protocol import Arrived

VOLUMES_KEPT = 4
"""Volumes whose patches a queue holds."""


def ordinary(options: argparse.Namespace) -> Iterator[Arrived]:
    """A queue a kind of crop."""
    import torchio as tio

    paths = sorted(options.data.glob("torchio/*.nii"))
    streams = []
    for count, side in KINDS:
        subjects = [tio.Subject(ct=tio.ScalarImage(path)) for path in paths]
        streams.append(_patches(subjects, side, count * SETS_PER_READ, count * BATCH, options))
    for large, small in zip(*streams, strict=True):
        yield arrived(large["ct"]["data"], small["ct"]["data"])


def one_read(options: argparse.Namespace) -> Iterator[Arrived]:
    """Regions from volumes in RAM, and crops of them."""
    import numpy as np
    import torch
    import torchio as tio

    subjects = [
        tio.Subject(ct=tio.ScalarImage(tensor=torch.from_numpy(np.load(path))[None]))
        for path in sorted(options.data.glob("volumes/*.npy"))
    ]
    rng = np.random.default_rng(0)
    for regions in _patches(subjects, BOX_SIDE, SETS_PER_READ, BATCH, options):
        found = regions["ct"]["data"]
        out = empty_batch(found.dtype, torch.empty)
        for place, region in enumerate(found):
            cut(region[0], out, place, rng)
        yield arrived(*out)


def _patches(subjects, side: int, per_volume: int, batch: int, options: argparse.Namespace):
    import torchio as tio

    queue = tio.Queue(
        tio.SubjectsDataset(subjects),
        max_length=VOLUMES_KEPT * per_volume,
        samples_per_volume=per_volume,
        sampler=tio.UniformSampler(side),
        num_workers=0 if options.cores == 1 else options.cores,
    )
    loader = tio.SubjectsLoader(queue, batch_size=batch, num_workers=0, drop_last=True)
    while True:
        yield from loader


def write(source: Path, target: Path) -> None:
    """Uncompressed NIfTI, int16."""
    import nibabel as nib
    import numpy as np

    for path in sorted(source.glob("*.npy")):
        nib.save(nib.Nifti1Image(np.load(path), np.eye(4)), target / f"{path.stem}.nii")


if __name__ == "__main__":
    main("torchio Queue", {"ordinary": ordinary, "one-read": one_read}, write)
