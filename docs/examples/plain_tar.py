"""One volume from a shard that lies on this disk: tarfile, json and zarr, no code of this package.

python docs/examples/plain_tar.py shard-000000.tar [KEY]
Needs zarr.

`tar -tf shard-000000.tar` lists what is there.
"""

import json
import sys
import tarfile

import numpy as np
import zarr
from zarr.buffer.cpu import Buffer
from zarr.storage import MemoryStore

if __name__ == "__main__":
    with tarfile.open(sys.argv[1]) as tar:
        # Three members a sample: KEY.json, KEY.ct.zarr.json, KEY.ct.zshard.
        key = sys.argv[2] if len(sys.argv) > 2 else tar.getnames()[0].partition(".")[0]
        record = json.load(tar.extractfile(f"{key}.json"))
        metadata = tar.extractfile(f"{key}.ct.zarr.json").read()
        zshard = tar.extractfile(f"{key}.ct.zshard").read()

    # The two other members are the two files of a Zarr array, whose only chunk is a Zarr shard.
    files = {"zarr.json": Buffer.from_bytes(metadata), "c/0/0/0": Buffer.from_bytes(zshard)}
    hu = zarr.open_array(MemoryStore(files), mode="r")[:]

    # int16 HU on axes (z, y, x) toward superior, posterior, left; the affine gives RAS mm.
    centre = np.array(hu.shape) // 2
    right, anterior, superior = (np.array(record["affine"]) @ [*centre, 1])[:3]
    print(f"{key} {hu.shape} {hu.dtype} mean {hu.mean(dtype='float64'):.3f} HU")
    print(f"voxel {centre.tolist()} lies at R {right:.3f} A {anterior:.3f} S {superior:.3f} mm")
