"""Without air only what is HU beyond doubt is taken."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from ingest.errors import Reason, SeriesError
from ingest.inner_body import is_inner_body
from ingest.intensity import check_hu
from ingest.nifti import read_nifti


@pytest.fixture(scope="module")
def abdomen(ct_data: Path) -> np.ndarray:
    """A box of a real abdomen with no voxel of air: fat, muscle, vertebrae."""
    path = ct_data / "totalsegmentator/example_ct.nii.gz"
    hu = read_nifti(gzip.decompress(path.read_bytes())).hu
    for z, y, x in np.ndindex(6, 12, 14):
        box = hu[z * 12 : z * 12 + 40, y * 6 : y * 6 + 28, x * 7 : x * 7 + 28]
        if (box < -200).mean() < 0.0005 and ((box > -130) & (box < -70)).mean() > 0.2:
            return box
    raise AssertionError("the file has changed")


def test_a_small_field_inside_a_body_is_taken_and_flagged(abdomen: np.ndarray) -> None:
    assert check_hu(abdomen, 0.0) == ("no_air",)
    fine = abdomen + np.random.default_rng(0).normal(0, 15, abdomen.shape).astype(np.float32)
    assert check_hu(fine, 0.0) == ("no_air",)


NOT_HU = {
    "stored values": lambda hu: hu + 1024,
    "shifted by 1000": lambda hu: hu + 1000,
    "shifted by 100": lambda hu: hu + 100,
    "doubled": lambda hu: hu * 2,
    "halved": lambda hu: hu / 2,
    "mean 0, deviation 1": lambda hu: (hu - hu.mean()) / hu.std(),
    "mean 0, deviation 100": lambda hu: np.random.default_rng(0).normal(0, 100, hu.shape),
    "a grey picture": lambda hu: np.clip((hu + 160) / 400 * 255, 0, 255),
    "windowed": lambda hu: np.clip(hu, -90, 120),
    "uniform": lambda hu: np.random.default_rng(0).uniform(-190, 200, hu.shape),
    "soft tissue alone": lambda hu: np.random.default_rng(0).normal(40, 15, hu.shape),
}


@pytest.mark.parametrize("name", NOT_HU)
def test_what_is_not_hu(name: str, abdomen: np.ndarray) -> None:
    with pytest.raises(SeriesError) as caught:
        check_hu(NOT_HU[name](abdomen).astype(np.float32), 0.0)
    assert caught.value.reason is Reason.NOT_HU


def test_real_files_that_are_not_hu(ct_data: Path) -> None:
    """An angiogram of 0 to 563, a perfusion map, MR and PET, with any offset that fits best."""
    import pydicom

    from ingest.headers import quiet_pydicom

    volumes = [read_nifti(gzip.decompress((ct_data / "nifti/CT_AVM.nii.gz").read_bytes())).hu]
    folder = ct_data / "oddities"
    for name in ("pydicom-data/eCT_Supplemental.dcm", "pydicom/MR_small.dcm",
                 "fo-dicom/GH184.dcm", "pydicom/rtdose.dcm"):  # fmt: skip
        with quiet_pydicom():
            pixels = pydicom.dcmread(folder / name).pixel_array.astype(np.float32)
        volumes.append(pixels if pixels.ndim == 3 else pixels[None])
    taken = []
    for number, hu in enumerate(volumes):
        for offset in (0, -100, -200, -500, -1000, -1024):
            taken += [(number, offset)] if is_inner_body(hu + np.float32(offset)) else []
    assert taken == []
