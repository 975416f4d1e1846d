"""MONAI transforms on volumes of a bucket, with positions in the patient that stay right.

python docs/examples/monai_dataset.py s3://bucket/prefix
Needs this package.
"""

import functools
import sys

import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import Compose, Orientation, RandSpatialCropSamplesd, ScaleIntensityRanged
from monai.utils import set_determinism

from shards.dataset import Dataset

# Opened once a process. Workers must be spawned: obstore does not survive a fork.
open_dataset = functools.cache(Dataset.open)


def load_volume(url, key):
    """``{"key": key, "image": MetaTensor}`` of shape (1, z, y, x), HU; one request.

    MONAI's affine takes the spatial indices of the tensor, in their order, to RAS mm. Ours takes
    (z, y, x) to RAS mm, so it is right as it is: MONAI reads it as orientation SPL.
    """
    sample = open_dataset(url).sample(key)
    image = torch.from_numpy(sample.hu).float()[None]
    return {"key": key, "image": MetaTensor(image, affine=torch.from_numpy(sample.affine))}


def at(image, ras_mm):
    """Index and HU of the voxel at a place in the patient, whatever the order of the axes."""
    index = torch.linalg.solve(image.affine, ras_mm)[:3].round().int().tolist()
    return index, int(image.as_tensor()[0][tuple(index)])


if __name__ == "__main__":
    set_determinism(0)  # for the same crops in each run
    load = functools.partial(load_volume, sys.argv[1])
    turn = Orientation(axcodes="RAS", labels=None)
    window = ScaleIntensityRanged("image", -1000, 1000, 0, 1, clip=True)
    crops = RandSpatialCropSamplesd(
        "image", roi_size=(64, 64, 64), num_samples=2, random_size=False
    )

    # Loaded and windowed once; cropped anew whenever a volume is asked for.
    keys = open_dataset(sys.argv[1]).keys()
    dataset = CacheDataset(keys, Compose([load, window, crops]), progress=False)
    for batch in DataLoader(dataset, batch_size=1):
        for crop in batch["image"]:  # (2, 1, 64, 64, 64): both crops of a volume
            corner = crop.affine[:3, 3].tolist()
            print(f"{batch['key'][0]} crop {tuple(crop.shape)} from {corner} mm, {crop.mean():.4f}")

    volume = load(keys[0])["image"]
    ras_mm = volume.affine @ torch.tensor([*(n // 2 for n in volume.shape[1:]), 1.0]).double()
    print("RAS mm:", ras_mm[:3].tolist())
    print("as stored (z, y, x):", *at(volume, ras_mm))
    print("turned to (R, A, S):", *at(turn(volume), ras_mm))
