"""Every regular real series against dcm2niix and SimpleITK: same voxels, same places.

The oracles get the files of one series and order, decode, rescale and place them on their own.
"""

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from ingest.prepare import PrepareConfig, Prepared, prepare
from ingest.reader import read_series
from ingest.scan import ScanConfig, scan
from ingest.series import Series
from ingest.sources import read_files

DCM2NIIX = Path(sys.executable).with_name("dcm2niix")
TWO = ScanConfig(min_slices=2)

# name: path in the data folder, part of the first member's name, slices
COMPARED = {
    "LIDC-IDRI chest": ("lidc-idri/LIDC-IDRI-0001.tar.bz2", "", 133),
    "Philips 5 mm": ("dcm_qa_ct/Philips_S21570_partial.tar.gz", "S2010", 28),
    "ACRIN axial": ("acrin-flt-breast-013/ACRIN-FLT-Breast_013.zip", "1-0", 49),
    "ACRIN coronal": ("acrin-flt-breast-013/ACRIN-FLT-Breast_013.zip", "CView", 6),
    "ACRIN sagittal": ("acrin-flt-breast-013/ACRIN-FLT-Breast_013.zip", "SView", 6),
    "TotalSegmentator, JPEG 2000": ("totalsegmentator/example_ct_dicom", "", 20),
    "wrist, classic": ("rse-panimg/enhanced-vs-classic.zip", "slice", 7),
    "head, 16 x 16": ("oddities/pydicom/dicomdirtests/98892001/CT5N", "", 5),
    "abdomen NIfTI": ("totalsegmentator/example_ct.nii.gz", "", 112),
    "abdomen NIfTI, int16": ("totalsegmentator/example_ct_sm.nii.gz", "", 30),
}
NOT_COMPARED = {
    "GE/": "tilt and gaps: dcm2niix's plain file is 102 HU off, SimpleITK 313",
    "S21610/S2010": "tilt: dcm2niix's plain file is 283 HU off, SimpleITK 585",
}
"""Accepted series whose oracles are wrong; `test_regrid_real` measures them at the true places."""


@dataclass(frozen=True)
class Case:
    """One series: where it is, and what ingest makes of it at native spacing, uncropped."""

    series: Series
    sample: Prepared
    part: str
    """In the names of its classic files: the wrist is also there as one multi-frame file."""


def first_name(series: Series) -> str:
    ref = min(series.refs, key=lambda ref: (ref.path, ref.member or ""))
    return ref.member or ref.path


@pytest.fixture(scope="module", params=COMPARED)
def case(request, ct_data: Path, id_key, tmp_path_factory) -> Case:
    path, part, n = COMPARED[request.param]
    source = ct_data / path
    if source.suffix == ".bz2":  # seconds to unpack, and it would be read three times
        with tarfile.open(source) as archive:
            source = tmp_path_factory.mktemp("unpacked")
            archive.extractall(source, filter="data")
    found = [
        row
        for row in scan([str(source)], id_key, TWO).series
        if row.reason == "ok" and part in first_name(row)
    ]
    [series] = [row for row in found if row.n_slices == n]
    sample = prepare(read_series(series), PrepareConfig(spacing_zyx_mm=None, body_crop=False))
    return Case(series, sample, part)


@pytest.fixture(scope="module")
def files(case: Case, tmp_path_factory) -> Path:
    """The files of the series alone, under names that say nothing of their order."""
    folder = tmp_path_factory.mktemp("files")
    suffix = ".nii" if case.series.source_kind == "nifti" else ""
    refs = {ref for ref in case.series.refs if case.part in (ref.member or ref.path)}
    for number, (_, data) in enumerate(read_files(refs)):
        (folder / f"{(number * 7919) % 1009:04d}{suffix}").write_bytes(data)
    expected = 1 if suffix else case.series.n_slices
    assert len(list(folder.iterdir())) == expected
    return folder


Oracle = Callable[[Case, Path, Path], tuple[np.ndarray, np.ndarray]]


def by_dcm2niix(case: Case, files: Path, scratch: Path) -> tuple[np.ndarray, np.ndarray]:
    """HU (x, y, z) and affine to RAS of what dcm2niix writes; of a NIfTI, what nibabel reads."""
    if case.series.source_kind == "nifti":
        [path] = files.iterdir()
    else:
        subprocess.run(
            [str(DCM2NIIX), "-z", "n", "-b", "n", "-f", "out", "-o", str(scratch), str(files)],
            env={**os.environ, "HOME": str(scratch)},  # it writes its settings there
            check=True,
            capture_output=True,
        )
        [path] = scratch.glob("*.nii")
    image = nibabel.load(path)
    return np.asarray(image.get_fdata()), image.affine


def by_simpleitk(case: Case, files: Path, scratch: Path) -> tuple[np.ndarray, np.ndarray]:
    """HU (x, y, z) and affine to RAS of what SimpleITK reads."""
    if case.series.source_kind == "nifti":
        [path] = files.iterdir()
        image = sitk.ReadImage(str(path))
    else:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(files)))
        image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    affine[:2] *= -1  # LPS to RAS
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0).astype(np.float64), affine


@pytest.mark.parametrize("oracle", [by_dcm2niix, by_simpleitk])
def test_voxels_and_places_are_the_oracles(
    oracle: Oracle, case: Case, files: Path, tmp_path: Path
) -> None:
    hu, affine = oracle(case, files, tmp_path)
    turned = nibabel.Nifti1Image(hu, affine).as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt("LPS")
        )
    )
    expected = np.asarray(turned.dataobj).transpose(2, 1, 0)  # (z, y, x) toward S, P, L
    sample = case.sample
    assert sample.hu.shape == expected.shape
    # Padding is far below -1024 HU in these series, so that clipping is what makes it air.
    np.testing.assert_array_equal(sample.hu, np.clip(np.rint(expected), -1024, 3071))
    zyx_to_ras = turned.affine[:, [2, 1, 0, 3]]
    last = np.array(sample.hu.shape) - 1
    for corner in np.ndindex(2, 2, 2):
        place = (*(last * corner), 1)
        np.testing.assert_allclose(sample.affine @ place, zyx_to_ras @ place, rtol=0, atol=2e-3)


def test_every_accepted_real_series_is_compared_or_named(ct_data: Path, id_key) -> None:
    # The three archives with more than one kind of series; the others hold what COMPARED says.
    folders = [ct_data / name for name in ("dcm_qa_ct", "acrin-flt-breast-013", "totalsegmentator")]
    found = scan([str(path) for path in folders], id_key)
    for series in found.series:
        if series.reason != "ok":
            continue
        name = first_name(series)
        compared = [
            key
            for key, (path, part, n) in COMPARED.items()
            if path in series.refs[0].path and part in name and n == series.n_slices
        ]
        named = [key for key in NOT_COMPARED if key in name]
        assert len(compared) + len(named) == 1, name
