"""Regions of volumes by zarr over this package's store: fewer requests than by references.

python docs/examples/zarr_store.py s3://bucket/prefix
Needs this package.
"""

import sys

import zarr

from shards.zarr_store import ZarrStore

if __name__ == "__main__":
    # Two requests: manifest and index. After that the metadata of volumes cost none, each array
    # one for its chunk index, and each stored chunk that a region meets one.
    store = ZarrStore.open_url(sys.argv[1])
    group = zarr.open_group(store, mode="r")
    keys = store.dataset.keys()
    for name in [name for key in keys for name in (key, f"{key}.seg")]:
        # Labels, where there are any, lie on the voxels of their volume.
        if name in group:
            array = group[name]
            # 32 voxels a side around the centre.
            region = array[tuple(slice(n // 2 - 16, n // 2 + 16) for n in array.shape)]
            print(f"{name} {array.shape} {array.dtype} centre mean {region.mean():.3f}")
