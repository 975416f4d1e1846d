"""Whole volumes through plain webdataset and torch's DataLoader; no code of this package.

python docs/examples/webdataset_torch.py s3://bucket/prefix
Needs webdataset, torch, zarr, fsspec, obstore.
"""

import functools
import json
import sys

import fsspec
import obstore
import torch
import webdataset
import zarr
from obstore.fsspec import register
from obstore.store import from_url
from zarr.buffer.cpu import Buffer
from zarr.storage import MemoryStore


def open_object(url, mode="rb", bufsize=0):
    """A shard in a bucket as a file: one request for its size, then one for each 8 MiB."""
    bucket = fsspec.filesystem(url.partition("://")[0])
    return bucket.open(url, mode, buffer_size=8 * 2**20)


# webdataset has no handler for s3://. This stands at the top level because spawned workers import
# this file and need it too. The other way is a command that writes a shard to its output:
# "pipe:aws s3 cp s3://bucket/prefix/shard-000000.tar -" in place of the shard's URL.
register(["s3", "gs", "az"])
webdataset.gopen_schemes |= dict.fromkeys(["s3", "gs", "az"], open_object)


def decode(sample):
    """A sample's HU: int16, axes (z, y, x) toward superior, posterior, left; and its affine."""
    files = {"zarr.json": sample["ct.zarr.json"], "c/0/0/0": sample["ct.zshard"]}
    store = MemoryStore({name: Buffer.from_bytes(data) for name, data in files.items()})
    hu = torch.from_numpy(zarr.open_array(store, mode="r")[:])
    return sample["__key__"], hu, torch.tensor(json.loads(sample["json"])["affine"])


def is_live(withdrawn, sample):
    """Samples that were withdrawn are still in their shard: no reader may use them."""
    return sample["__key__"] not in withdrawn


if __name__ == "__main__":
    url = sys.argv[1].rstrip("/")
    manifest = json.loads(bytes(obstore.get(from_url(url), "manifest.json").bytes()))
    shards = [f"{url}/{shard['name']}" for shard in manifest["shards"]]
    live = functools.partial(is_live, set(manifest.get("tombstones", [])))
    dataset = webdataset.WebDataset(shards, shardshuffle=False).select(live).map(decode)
    # spawn, because obstore does not survive a fork. A worker reads whole shards, so more workers
    # than shards are of no use. batch_size=None: volumes differ in shape.
    workers = {"num_workers": min(2, len(shards)), "multiprocessing_context": "spawn"}
    for key, hu, _affine in torch.utils.data.DataLoader(dataset, batch_size=None, **workers):
        print(f"{key} {tuple(hu.shape)} {hu.dtype} mean {hu.double().mean():.3f} HU")
