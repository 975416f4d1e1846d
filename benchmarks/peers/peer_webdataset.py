"""webdataset with a DataLoader: shards by curl, k boxes a volume in each worker.

Tried and slower on two cores: an obstore opener instead of curl, zarr instead of the codec.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from benchmarks.stream_protocol import Arrived, keep_answers_apart, serve


def batches(options: argparse.Namespace) -> Iterator[Arrived]:
    """The boxes of a volume at a time."""
    import numpy as np
    import torch
    import webdataset as wds

    from benchmarks.peers.boxes import deliver, read_boxes

    urls = [f"pipe:curl -s -f {os.environ['AWS_ENDPOINT']}/{path}" for path in options.paths]
    rng = None

    def volume(sample):
        nonlocal rng
        if rng is None:
            rng = np.random.default_rng(torch.utils.data.get_worker_info().id)
        array, shard = sample["ct.zarr.json"], sample["ct.zshard"]
        starts, boxes = read_boxes(array, shard, rng, options.side, options.k)
        return sample["__key__"], torch.from_numpy(starts), torch.from_numpy(boxes)

    # Every worker draws shards for itself, without end: none waits for another's epoch.
    data = wds.WebDataset(urls, resampled=True, shardshuffle=False, handler=wds.reraise_exception)
    loader = torch.utils.data.DataLoader(
        data.map(volume), batch_size=None, num_workers=options.workers, prefetch_factor=2
    )
    for key, starts, boxes in loader:
        yield deliver(key, starts.numpy(), boxes.numpy())


if __name__ == "__main__":
    keep_answers_apart()
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--side", type=int, required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("paths", nargs="+")
    serve(batches(parser.parse_args()), loader="webdataset")
