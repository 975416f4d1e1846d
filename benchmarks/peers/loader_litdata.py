"""litdata's StreamingDataset over a local folder, int16 volumes as items.

``ordinary``: a set a volume. ``one-read``: ``SETS_PER_READ`` sets from each.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.crops import (
    BATCH,
    SETS_PER_READ,
    arrived,
    cut,
    empty_batch,
    main,
)
from benchmarks.stream_protocol import Arrived


def serve_volumes(options: argparse.Namespace, sets: int) -> Iterator[Arrived]:
    """Crops of the volumes as they come, ``sets`` from each."""
    import torch
    from litdata import StreamingDataLoader, StreamingDataset

    rng = np.random.default_rng()

    class Sets(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            volume = super().__getitem__(index)["image"]
            if not isinstance(volume, torch.Tensor):
                volume = torch.from_numpy(volume)
            out = empty_batch(torch.int16, torch.empty)
            small = [group[: len(group) // BATCH * sets] for group in out]
            for place in range(sets):
                cut(volume, small, place, rng)
            return small

    def collate(items: list[Any]) -> list[Any]:
        if len(items) == 1:
            return items[0]
        return [torch.cat(group) for group in zip(*items, strict=True)]

    data = Sets(str(options.data / "litdata"), shuffle=True)
    workers = options.cores if options.cores > 1 else 0
    loader = StreamingDataLoader(
        data, batch_size=BATCH // sets, num_workers=workers, collate_fn=collate, drop_last=True
    )
    while True:
        for groups in loader:
            yield arrived(*groups)


def write(source: Path, target: Path) -> None:
    """Items of one volume each, uncompressed."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(target), chunk_bytes=64 * 2**20)
    for number, path in enumerate(sorted(source.glob("*.npy"))):
        writer[number] = {"key": path.stem, "image": np.load(path)}
    writer.done()
    writer.merge()


if __name__ == "__main__":
    main(
        "litdata",
        {
            "ordinary": partial(serve_volumes, sets=1),
            "one-read": partial(serve_volumes, sets=SETS_PER_READ),
        },
        write,
    )
