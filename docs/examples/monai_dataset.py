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


def brightest(image):
    """Index and RAS mm of the brightest voxel of a (1, ...) image."""
    index = torch.unravel_index(image.as_tensor().argmax(), image.shape)[1:]
    ras_mm = image.affine @ torch.tensor([*index, 1.0], dtype=image.affine.dtype)
    return [int(i) for i in index], [round(float(mm), 3) for mm in ras_mm[:3]]


if __name__ == "__main__":
    url = sys.argv[1]
    set_determinism(0)  # for the same crops in each run
    load = functools.partial(load_volume, url)
    turn = Orientation(axcodes="RAS", labels=None)
    window = ScaleIntensityRanged("image", -1000, 1000, 0, 1, clip=True)
    crops = RandSpatialCropSamplesd(
        "image", roi_size=(64, 64, 64), num_samples=2, random_size=False
    )

    # Loaded and windowed once; cropped anew whenever a volume is asked for.
    keys = open_dataset(url).keys()
    dataset = CacheDataset(keys, Compose([load, window, crops]), progress=False)
    for batch in DataLoader(dataset, batch_size=1):
        for crop in batch["image"]:  # (2, 1, 64, 64, 64): both crops of a volume
            corner = [round(float(mm), 3) for mm in crop.affine[:3, 3]]
            print(f"{batch['key'][0]} crop {tuple(crop.shape)} from {corner} mm, {crop.mean():.4f}")

    volume = load(keys[0])["image"]
    print("as stored (z, y, x):", *brightest(volume))
    print("turned to (R, A, S):", *brightest(turn(volume)))
