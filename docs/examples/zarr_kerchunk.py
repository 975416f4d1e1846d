"""Regions of volumes by zarr and kerchunk references; no code of this package.

python docs/examples/zarr_kerchunk.py s3://bucket/prefix
Needs zarr, fsspec, obstore.
"""

import json
import sys

import obstore
import zarr
from obstore.fsspec import register
from obstore.store import from_url
from zarr.storage import FsspecStore

# fsspec's own s3:// would need s3fs; obstore brings an implementation along.
register(["s3", "gs", "az"])


def open_shard(url, shard):
    """The Zarr group of a shard: array KEY is a volume, array KEY.seg its labels."""
    options = {
        "fo": f"{url}/{shard}.refs.json",
        # The references leave the base open, so that a dataset can be moved: it is the template u.
        "template_overrides": {"u": f"{url}/"},
        "remote_protocol": url.partition("://")[0],
        "remote_options": {"asynchronous": True},
    }
    store = FsspecStore.from_url("reference://", storage_options=options, read_only=True)
    return zarr.open_group(store, mode="r")


if __name__ == "__main__":
    url = sys.argv[1].rstrip("/")
    manifest = json.loads(bytes(obstore.get(from_url(url), "manifest.json").bytes()))
    # Samples that were withdrawn are still in their shard: no reader may use them.
    withdrawn = set(manifest.get("tombstones", []))
    for shard in manifest["shards"]:
        # Names and metadata of the arrays: one small request each.
        for name, array in sorted(open_shard(url, shard["name"]).arrays()):
            if name.removesuffix(".seg") in withdrawn:
                continue
            # 32 voxels a side around the centre: the array's chunk index, then the chunks it meets.
            region = array[tuple(slice(n // 2 - 16, n // 2 + 16) for n in array.shape)]
            print(f"{name} {array.shape} {array.dtype} centre mean {region.mean():.3f}")
