"""Histogram of every voxel of a dataset, chunk by chunk, by dask.array.

python docs/examples/dask_histogram.py s3://bucket/prefix
Needs this package.
"""

import sys

import dask.array as da
import numpy as np
import zarr

from shards.zarr_store import ZarrStore

LOW_HU, N_BINS = -1024, 4096  # every value that a voxel can have: -1024 to 3071

if __name__ == "__main__":
    store = ZarrStore.open_url(sys.argv[1])
    keys, total = store.dataset.keys(), 0
    for key in keys:
        # A block is a chunk of 64 voxels a side: nothing is read yet. An absent chunk is -1024
        # throughout and costs no request. For all of a dataset, blocks of whole volumes
        # (chunks=array.shape) take one request of 8 MiB or less a piece, and more memory.
        array = zarr.open_array(store, path=key, mode="r")
        blocks = da.from_zarr(array, chunks=array.chunks)
        total += da.histogram(blocks, bins=N_BINS, range=(LOW_HU, LOW_HU + N_BINS))[0]
    # Here everything is read, by the threads of this machine. With
    # `dask.distributed.Client("scheduler:8786")` before it, the workers of a cluster read: the
    # store opens itself there.
    counts = total.compute()

    hu = np.arange(LOW_HU, LOW_HU + N_BINS)
    print(f"{counts.sum()} voxels, manifest {store.dataset.manifest.totals.voxels}")
    print(f"mean {(counts * hu).sum() / counts.sum():.3f} HU, {counts[0] / counts.sum():.4f} air")
    for low in range(LOW_HU, LOW_HU + N_BINS, 256):
        share = counts[low - LOW_HU : low - LOW_HU + 256].sum()
        print(f"{low:6d} to {low + 255:5d} HU: {share}")
