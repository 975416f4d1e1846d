"""DALI's webdataset reader over ``s3://``; boxes are cut in threads while it reads on."""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.stream_protocol import Arrived, keep_answers_apart, serve


def batches(options: argparse.Namespace) -> Iterator[Arrived]:
    """The boxes of a volume at a time."""
    import numpy as np
    from nvidia.dali import fn, pipeline_def, types

    from benchmarks.peers.boxes import deliver, read_boxes

    extensions = ["json", "ct.zarr.json", "ct.zshard"]

    @pipeline_def(batch_size=1, num_threads=2, device_id=None, prefetch_queue_depth=2)
    def members():
        """One reader per share of the shards: a reader has one connection, and waits for it."""
        outputs = []
        for share in range(options.workers):
            outputs += fn.readers.webdataset(
                paths=[f"s3://{path}" for path in options.paths],
                index_paths=[f"s3://{path}.idx" for path in options.paths],
                ext=extensions,
                dtypes=[types.UINT8] * len(extensions),
                shard_id=share,
                num_shards=options.workers,
                prefetch_queue_depth=2,
                name=f"reader{share}",
            )
        return tuple(outputs)

    pipe = members()
    pipe.build()
    rng = np.random.default_rng(0)

    def volume(record: bytes, array: bytes, shard) -> Arrived:
        starts, boxes = read_boxes(array, shard, rng, options.side, options.k)
        return deliver(json.loads(record)["key"], starts, boxes)

    pending: deque = deque()
    with ThreadPoolExecutor(options.threads) as pool:
        while True:
            while len(pending) < options.workers + options.threads:
                parts = [np.asarray(out.at(0)) for out in pipe.run()]
                # The pipeline's memory is used again by its next run.
                for record, array, shard in zip(*[iter(parts)] * 3, strict=True):
                    arguments = (record.tobytes(), array.tobytes(), shard.copy())
                    pending.append(pool.submit(volume, *arguments))
            yield pending.popleft().result()


if __name__ == "__main__":
    keep_answers_apart()
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=1, help="readers, a connection each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int, required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("paths", nargs="+")
    serve(batches(parser.parse_args()), loader="DALI readers.webdataset")
