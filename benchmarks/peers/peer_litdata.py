"""litdata's StreamingDataset over ``s3://``: items are stored volumes, k boxes of each."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from benchmarks.stream_protocol import Arrived, keep_answers_apart, serve


def batches(options: argparse.Namespace) -> Iterator[Arrived]:
    """The boxes of a volume at a time."""
    import numpy as np
    import torch
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import downloader

    from benchmarks.peers.boxes import deliver, read_boxes

    # Its obstore clients refuse http://, and no option of its own says otherwise.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True

    class Volumes(StreamingDataset):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            if not hasattr(self, "_rng"):
                info = torch.utils.data.get_worker_info()
                self._rng = np.random.default_rng(info.id if info else 0)
            starts, boxes = read_boxes(
                item["array"], item["zshard"], self._rng, options.side, options.k
            )
            return item["key"], torch.from_numpy(starts), torch.from_numpy(boxes)

    data = Volumes(
        options.url,
        cache_dir=options.cache,
        # True: items came back empty wherever two workers shared a chunk (0.2.76).
        shuffle=False,
        storage_options={"endpoint_url": os.environ["AWS_ENDPOINT"]},
    )
    loader = StreamingDataLoader(
        data,
        batch_size=1,
        num_workers=options.workers,
        collate_fn=lambda items: items[0],
        prefetch_factor=2,
    )
    while True:
        for key, starts, boxes in loader:
            yield deliver(key, starts.numpy(), boxes.numpy())


if __name__ == "__main__":
    keep_answers_apart()
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--cache", required=True, help="local folder for chunks")
    parser.add_argument("--side", type=int, required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("url")
    serve(batches(parser.parse_args()), loader="litdata")
