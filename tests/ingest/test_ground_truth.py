"""Real series against SimpleITK, which shares no code with us: same voxels at the same places."""

import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ingest.prepare import PrepareConfig, Prepared, prepare
from ingest.reader import read_series
from ingest.scan import scan
from ingest.volume import Volume

SERIES = ["lidc", "philips", "acrin", "totalsegmentator-jpeg2000", "totalsegmentator-nifti"]


@dataclass
class Case:
    """One series, read both ways."""

    volume: Volume
    reference: sitk.Image
    """On axes L, P, S in (x, y, z): the array is S, P, L in (z, y, x)."""

    @property
    def expected(self) -> np.ndarray:
        return sitk.GetArrayFromImage(self.reference)


def unpack(source: Path, target: Path, under: str = "") -> Path:
    """The files of an archive in one flat folder."""
    target.mkdir()
    if source.suffix == ".zip":
        with zipfile.ZipFile(source) as archive:
            for number, info in enumerate(archive.infolist()):
                if not info.is_dir() and info.filename.startswith(under):
                    (target / str(number)).write_bytes(archive.read(info))
    else:
        with tarfile.open(source) as archive:
            for number, member in enumerate(archive):
                if member.isfile() and member.name.startswith(under):
                    (target / str(number)).write_bytes(archive.extractfile(member).read())
    return target


def read_with_simpleitk(folder: Path, size_z: int) -> sitk.Image:
    """SimpleITK's own choice of files and order; the series with ``size_z`` slices."""
    reader = sitk.ImageSeriesReader()
    for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)) or ("",):
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)
        if len(names) == size_z:
            reader.SetFileNames(names)
            return reader.Execute()
    raise AssertionError(f"SimpleITK finds no series of {size_z} slices")


@pytest.fixture(scope="module", params=SERIES)
def case(request, ct_data: Path, id_key, tmp_path_factory) -> Case:
    tmp = tmp_path_factory.mktemp("reference")
    if request.param == "lidc":
        # Unpacking the bzip2 takes seconds: once is enough, other archives are read as they are.
        source, n = unpack(ct_data / "lidc-idri/LIDC-IDRI-0001.tar.bz2", tmp / "x"), 133
        folder = source
    elif request.param == "philips":
        source, n = ct_data / "dcm_qa_ct/Philips_S21570_partial.tar.gz", 28
        folder = unpack(source, tmp / "x", "Philips/S21570/S2010/I")
    elif request.param == "acrin":
        source, n = ct_data / "acrin-flt-breast-013/ACRIN-FLT-Breast_013.zip", 49
        folder = unpack(source, tmp / "x")
    elif request.param == "totalsegmentator-jpeg2000":
        source = folder = ct_data / "totalsegmentator/example_ct_dicom"
        n = 20
    else:
        source, n = ct_data / "totalsegmentator/example_ct.nii.gz", 112
    image = sitk.ReadImage(str(source)) if source.is_file() and n == 112 else (
        read_with_simpleitk(folder, n)
    )  # fmt: skip
    [row] = [row for row in scan([str(source)], id_key).series if row.reason == "ok"]
    assert row.n_slices == n
    return Case(volume=read_series(row), reference=sitk.DICOMOrient(image, "LPS"))


def ras(image: sitk.Image, index_zyx: tuple[int, ...]) -> np.ndarray:
    """Where SimpleITK puts a voxel, RAS mm."""
    point = image.TransformIndexToPhysicalPoint([int(v) for v in index_zyx[::-1]])
    return np.array(point) * (-1, -1, 1)


def test_native_voxels_and_places_are_simpleitks(case: Case) -> None:
    sample = prepare(case.volume, PrepareConfig(spacing_zyx_mm=None, body_crop=False))
    # Padding is far below -1024 HU in these series, so that clipping is what makes it air.
    np.testing.assert_array_equal(sample.hu, np.clip(case.expected, -1024, 3071))
    last = np.array(sample.hu.shape) - 1
    for corner in np.ndindex(2, 2, 2):
        index = tuple(last * corner)
        np.testing.assert_allclose(
            (sample.affine @ (*index, 1))[:3], ras(case.reference, index), atol=1e-3
        )


def resampled_by_simpleitk(case: Case, sample: Prepared) -> np.ndarray:
    """Linear interpolation onto the sample's grid, low values filled first."""
    filled = sitk.GetImageFromArray(np.maximum(case.expected, -1024).astype(np.float32))
    filled.CopyInformation(case.reference)
    grid = sitk.ResampleImageFilter()
    grid.SetSize([int(n) for n in sample.hu.shape[::-1]])
    grid.SetOutputSpacing([1.5, 1.5, 1.5])
    grid.SetOutputOrigin([float(v) for v in sample.affine[:3, 3] * (-1, -1, 1)])
    grid.SetInterpolator(sitk.sitkLinear)
    grid.SetDefaultPixelValue(-1024)
    return sitk.GetArrayFromImage(grid.Execute(filled))


def test_linear_at_1_5_mm_is_simpleitks(case: Case) -> None:
    sample = prepare(case.volume, PrepareConfig(body_crop=False, resample="linear"))
    expected = np.clip(resampled_by_simpleitk(case, sample), -1024, 3071)
    assert np.abs(sample.hu - expected).max() <= 1


def test_antialias_keeps_means(case: Case) -> None:
    """Smoothing moves nothing in bulk: block means of 12 mm agree with linear interpolation's."""
    smooth = prepare(case.volume, PrepareConfig(body_crop=False)).hu
    sharp = prepare(case.volume, PrepareConfig(body_crop=False, resample="linear")).hu

    def blocks(hu: np.ndarray) -> np.ndarray:
        z, y, x = (n // 8 * 8 for n in hu.shape)
        cut = hu[:z, :y, :x].astype(np.float64)
        return cut.reshape(z // 8, 8, y // 8, 8, x // 8, 8).mean(axis=(1, 3, 5))

    assert np.abs(blocks(smooth) - blocks(sharp)).mean() < 5


def test_the_crop_holds_the_patient(case: Case) -> None:
    """What the crop leaves out is air and clothing, and behind the patient the table."""
    whole = prepare(case.volume, PrepareConfig(body_crop=False))
    cut = prepare(case.volume, PrepareConfig())
    outside = whole.hu.copy()
    outside[tuple(slice(*ends) for ends in cut.body_box_zyx)] = -1024
    back = cut.body_box_zyx[1][1]
    lost = np.count_nonzero(outside[:, :back] > -200)
    assert lost <= 0.005 * np.count_nonzero(whole.hu > -200)
    assert cut.hu.max() == whole.hu.max()
