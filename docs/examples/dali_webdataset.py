"""Stored bytes of whole samples by DALI's own webdataset reader, with the .idx beside each shard.

python docs/examples/dali_webdataset.py s3://bucket/prefix
Needs nvidia-dali, zarr, obstore.
An S3 endpoint other than AWS is named by AWS_ENDPOINT_URL, which obstore takes as well.
"""

import json
import sys

import obstore
import zarr
from nvidia.dali import fn, pipeline_def, types
from obstore.store import from_url
from zarr.buffer.cpu import Buffer
from zarr.storage import MemoryStore

MEMBERS = ["json", "ct.zarr.json", "ct.zshard"]


@pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
def samples(shards):
    """The members of one sample after the other, as they are stored: DALI decodes no Zarr."""
    return tuple(
        fn.readers.webdataset(
            name="reader",
            paths=shards,
            index_paths=[f"{shard}.idx" for shard in shards],
            ext=MEMBERS,
            dtypes=[types.UINT8] * len(MEMBERS),
            missing_component_behavior="error",
        )
    )


if __name__ == "__main__":
    url = sys.argv[1].rstrip("/")
    manifest = json.loads(bytes(obstore.get(from_url(url), "manifest.json").bytes()))
    # Samples that were withdrawn are still in their shard: no reader may use them.
    withdrawn = set(manifest.get("tombstones", []))
    # DALI takes s3:// and paths.
    folder = url.removeprefix("file://")
    pipeline = samples([f"{folder}/{shard['name']}" for shard in manifest["shards"]])
    pipeline.build()
    for _ in range(pipeline.epoch_size("reader")):
        record, metadata, zshard = (bytes(output.at(0)) for output in pipeline.run())
        key = json.loads(record)["key"]
        if key in withdrawn:
            continue
        files = {"zarr.json": Buffer.from_bytes(metadata), "c/0/0/0": Buffer.from_bytes(zshard)}
        hu = zarr.open_array(MemoryStore(files), mode="r")[:]
        print(f"{key} {hu.shape} {hu.dtype} mean {hu.mean(dtype='float64'):.3f} HU")
