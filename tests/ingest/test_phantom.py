import gzip
import hashlib
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK

from ingest.phantom import Torso, sample_torso
from ingest.testing import (
    DEMO_SERIES,
    EXPLICIT_LE,
    FEET_FIRST_SUPINE,
    IMPLICIT_LE,
    SeriesSpec,
    write_dicom_series,
    write_nifti,
    write_series_at,
)

SMALL = SeriesSpec(patient=1, slices=12, side=48, pixel_mm=6.0, gap_mm=5.0, torso=Torso(seed=7))


def mean_hu(torso, ras, side=5):
    """Mean over a cube of 1 mm voxels around a position."""
    affine = np.eye(4)
    affine[:3, 3] = np.asarray(ras) - side // 2
    return sample_torso(torso, affine, (side,) * 3).mean()


@pytest.mark.parametrize(
    ("what", "ras", "low", "high"),
    [
        ("air in front", (0, 130, 0), -1024, -980),
        ("couch behind", (0, -128, 0), -600, -200),
        ("right lung", (62, -20, 60), -900, -800),
        ("left lung", (-62, -20, 60), -900, -800),
        ("heart muscle, left of the midline", (-62, 26, 32), 20, 80),
        ("liver, on the right", (60, 10, -60), 30, 90),
        ("stomach gas, in front", (-50, 52, -60), -1024, -900),
        ("stomach fluid, behind", (-50, 22, -60), 0, 60),
        ("vertebral marrow", (0, -48, 14), 120, 260),
        ("windpipe", (0, -9, 120), -1024, -900),
        ("subcutaneous fat", (0, 86, -100), -130, -70),
    ],
)
def test_each_organ_has_its_hu_where_anatomy_puts_it(what, ras, low, high):
    torso = Torso(seed=1)
    position = list(ras)
    if what == "subcutaneous fat":  # The trunk's depth depends on the seed: 92 mm and 0 to 12 more.
        position[1] = 92 + 12 * torso.build[1] - 6
    assert low <= mean_hu(torso, position) <= high


def test_contrast_brightens_the_blood_but_not_the_lung():
    plain, enhanced = Torso(seed=1), Torso(seed=1, contrast=True)
    aorta, lung = (-25, -23, 60), (62, -20, 60)
    assert 20 < mean_hu(plain, aorta) < 70
    assert 150 < mean_hu(enhanced, aorta) < 230
    assert abs(mean_hu(plain, lung) - mean_hu(enhanced, lung)) < 1


def test_persons_differ_and_a_person_stays_the_same():
    spec = replace(SMALL, slices=4)
    again = replace(spec, torso=Torso(seed=7))
    other = replace(spec, torso=Torso(seed=8))
    np.testing.assert_array_equal(spec.hu(), again.hu())
    assert (spec.hu() != other.hu()).mean() > 0.5


def test_a_voxel_depends_on_its_millimetres_alone():
    """Permuted, reversed and shifted grids of the same points hold the same values."""
    torso = Torso(seed=3)
    affine = np.array([[-4.0, 0, 0, 60], [0, -3.0, 0, 45], [0, 0, 2.0, -20], [0, 0, 0, 1]])
    whole = sample_torso(torso, affine, (30, 31, 20))
    turned = affine[:, [2, 0, 1, 3]].copy()
    turned[:, 1] *= -1  # This axis, the first of `affine`, now runs the other way.
    turned[:3, 3] += affine[:3, 0] * 29
    np.testing.assert_array_equal(
        sample_torso(torso, turned, (20, 30, 31)), whole.transpose(2, 0, 1)[:, ::-1]
    )
    part = affine.copy()
    part[:3, 3] += affine[:3, :3] @ [5, 6, 7]
    np.testing.assert_array_equal(sample_torso(torso, part, (9, 9, 9)), whole[5:14, 6:15, 7:16])


def test_noise_is_mild_and_neighbours_are_alike():
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = 45, 0, -75
    liver = sample_torso(Torso(seed=2), affine, (30, 20, 20)).astype(float)
    assert 6 < liver.std() < 20
    step = np.corrcoef(liver[:, :, 1:].ravel(), liver[:, :, :-1].ravel())[0, 1]
    assert step > 0.6


@pytest.mark.parametrize("syntax", [IMPLICIT_LE, EXPLICIT_LE])
@pytest.mark.parametrize("orientation", [SMALL.orientation, FEET_FIRST_SUPINE])
@pytest.mark.parametrize("rescale", [False, True])
def test_dicom_files_hold_the_phantom_by_simpleitk(tmp_path, syntax, orientation, rescale):
    spec = replace(SMALL, syntax=syntax, orientation=orientation, slice_rescale=rescale)
    slices = [SimpleITK.ReadImage(str(p)) for p in write_dicom_series(tmp_path / "s", spec)]
    found = np.concatenate([SimpleITK.GetArrayFromImage(image) for image in slices])
    np.testing.assert_array_equal(found, spec.hu())
    for index in (0, 11):
        corner = slices[index].TransformContinuousIndexToPhysicalPoint((40.0, 20.0, 0.0))
        ras = spec.affine @ (index, 20, 40, 1)  # (slice, row, column)
        np.testing.assert_allclose(np.array(corner) * (-1, -1, 1), ras[:3], atol=1e-4)


def test_padding_lies_outside_the_circle_and_is_declared(tmp_path):
    spec = replace(SMALL, slices=1, padding=-2000)
    (path,) = write_dicom_series(tmp_path / "s", spec)
    ds = pydicom.dcmread(path)
    assert ds.PixelPaddingValue == -2000
    stored = ds.pixel_array
    assert stored[0, 0] == stored[-1, -1] == -2000
    assert stored[24, 0] != -2000
    assert (stored == -2000).mean() == pytest.approx(1 - np.pi / 4, abs=0.02)
    np.testing.assert_array_equal(spec.hu()[0][stored == -2000], -1024)


def test_dicom_files_are_valid_and_their_uids_unique(tmp_path):
    paths = write_dicom_series(tmp_path / "a", SMALL)
    paths += write_dicom_series(tmp_path / "b", replace(SMALL, number=2, top_first=True))
    sets = [pydicom.dcmread(path) for path in paths]
    assert len({ds.SOPInstanceUID for ds in sets}) == 24
    assert len({ds.SeriesInstanceUID for ds in sets}) == 2
    assert len({ds.StudyInstanceUID for ds in sets}) == 1
    for ds in sets:
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert ds.SOPInstanceUID.is_valid
        assert ds.SOPClassUID.name == "CT Image Storage"
    heights = [float(ds.ImagePositionPatient[2]) for ds in sets[12:]]
    assert heights == sorted(heights)
    assert [ds.InstanceNumber for ds in sets[12:]] == list(range(12, 0, -1))


def test_nifti_holds_the_phantom_in_its_own_axes(tmp_path):
    write_nifti(tmp_path / "v.nii.gz", Torso(seed=2), (40, 30, 20), 6.0, -60.0)
    image = nibabel.load(tmp_path / "v.nii.gz")
    assert nibabel.aff2axcodes(image.affine) == ("L", "A", "S")
    data = np.asanyarray(image.dataobj)
    i, j, k = (round(v) for v in (np.linalg.inv(image.affine) @ (60, 6, -60, 1))[:3])
    assert 0 <= data[i, j, k] <= 110  # The liver: right, below the lungs.


@pytest.mark.parametrize("name", ["s.zip", "s.tar.gz"])
def test_archives_hold_the_series_and_are_the_same_every_time(tmp_path, name):
    for folder in ("one", "two"):
        write_series_at(tmp_path / folder / name, replace(SMALL, slices=3))
    one, two = ((tmp_path / f / name).read_bytes() for f in ("one", "two"))
    assert hashlib.sha256(one).digest() == hashlib.sha256(two).digest()
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / "one" / name) as archive:
            names = archive.namelist()
    else:
        assert gzip.decompress(one)
        with tarfile.open(tmp_path / "one" / name) as archive:
            names = archive.getnames()
    assert names == ["DICOM/I00001", "DICOM/I00002", "DICOM/I00003"]


def test_the_demo_has_enough_volumes_to_train_on():
    """Sides at 1.5 mm and above 33 voxels, from the trunk's least size: 272 by 184 mm."""
    assert len(DEMO_SERIES) + 1 >= 6
    for spec in DEMO_SERIES.values():
        assert (spec.slices - 1) * spec.gap_mm / 1.5 > 33
        assert spec.side * spec.pixel_mm > 272 + 2 * 16  # The whole trunk is in the picture.
    assert {Path(place).suffix for place in DEMO_SERIES} == {"", ".zip", ".gz"}
