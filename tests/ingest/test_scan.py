"""Every file in exactly one row, with the right reason, whatever the order, names and packing."""

import gzip
import random
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from ingest.errors import BROKEN, Reason, UsageError
from ingest.ids import IdKey
from ingest.scan import ScanConfig, ScanResult, scan

TINY = ScanConfig(min_slices=3)


@pytest.fixture(scope="session")
def real(ct_data: Path, id_key: IdKey) -> ScanResult:
    return scan([str(ct_data)], id_key)


def reasons(result: ScanResult) -> dict[str, int]:
    """Files by reason."""
    counts: Counter[str] = Counter()
    for row in result.series:
        counts[row.reason] += row.n_files
    return dict(counts)


def public(result: ScanResult) -> list[tuple[object, ...]]:
    """All that may reach a report: everything but where the files are."""
    return [
        (r.series_id, r.key, r.subject_id, r.study_id, r.source_kind, r.reason, r.detail, r.n_files,
         r.n_slices, r.modality, r.geometry, r.shape_zyx, r.spacing_zyx_mm, r.affine, r.kernel,
         r.contrast, r.kvp, r.slice_mm, r.flags)
        for r in result.series
    ]  # fmt: skip


# ---------------------------------------------------------------- real files


def test_every_real_file_is_in_one_row(real: ScanResult, ct_data: Path) -> None:
    expected = 0
    for path in ct_data.rglob("*"):
        if path.suffix == ".bz2":
            expected += 133  # counted once by hand: unpacking it takes seconds
        elif path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                expected += sum(member.isfile() for member in archive)
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                expected += sum(not info.is_dir() for info in archive.infolist())
        else:
            expected += path.is_file()
    assert real.n_files == expected
    assert sum(row.n_files for row in real.series) == expected
    assert len({ref for row in real.series for ref in row.refs}) == expected


def test_accepted_real_series(real: ScanResult) -> None:
    accepted = {
        (Path(row.refs[0].path).name if row.refs[0].member or row.source_kind == "nifti" else
         Path(row.refs[0].path).parent.name): row
        for row in real.series if row.reason is Reason.OK
    }  # fmt: skip
    found = {
        name: (row.n_files, row.shape_zyx, tuple(round(v, 3) for v in row.spacing_zyx_mm or ()))
        for name, row in accepted.items()
    }
    # Slices, matrix and spacings as the data folder's README states them.
    assert found == {
        "LIDC-IDRI-0001.tar.bz2": (133, (133, 512, 512), (2.5, 0.703, 0.703)),
        "Philips_S21570_partial.tar.gz": (28, (28, 512, 512), (5.0, 0.451, 0.451)),
        "ACRIN-FLT-Breast_013.zip": (49, (49, 512, 512), (4.0, 1.367, 1.367)),
        # Sheared slices lie on a taller grid, gaps on one of the median spacing.
        "Philips_S21610_tilt-18.5.tar.gz": (30, (30, 560, 512), (2.371, 0.482, 0.482)),
        "GE_variable-tilt-and-spacing.tar.gz": (28, (37, 611, 512), (4.002, 0.488, 0.488)),
        "example_ct_dicom": (20, (20, 512, 512), (2.0, 0.977, 0.977)),
        "example_ct.nii.gz": (1, (112, 101, 122), (3.0, 3.0, 3.0)),
        "example_ct_sm.nii.gz": (1, (30, 101, 122), (3.0, 3.0, 3.0)),
        # Not HU, but only the voxels tell.
        "CT_AVM.nii.gz": (1, (154, 242, 256), (1.0, 0.721, 0.72)),
    }
    assert accepted["example_ct_dicom"].kernel == "Br38f/3"
    assert accepted["LIDC-IDRI-0001.tar.bz2"].contrast is True
    assert accepted["ACRIN-FLT-Breast_013.zip"].slice_mm == 5.0
    assert len({row.key for row in accepted.values()}) == 9


REAL_REASONS = {
    # where: reasons of its files
    "dcm_qa_ct/GE_variable-tilt-and-spacing": {"ok": 28},
    "dcm_qa_ct/Philips_S21610": {"ok": 30, "localizer": 1},
    "dcm_qa_ct/Philips_S21570": {"ok": 28, "localizer": 4, "secondary_capture": 3, "dicomdir": 5},
    "dcm_qa_ct/Ref": {"not_medical_image": 6},
    "acrin-flt": {"ok": 49, "too_few_slices": 12},
    "nifti/CT_AVM": {"ok": 1},
    "dicom2nifti": {"too_few_slices": 8},
    "oddities/dcmqi": {"too_few_slices": 4, "not_ct": 1},
    "oddities/fo-dicom/CT-MONO2-16-ankle": {"secondary_capture": 1},
    "oddities/fo-dicom/FreezePattern": {"secondary_capture": 1},
    "oddities/fo-dicom/GH178": {"secondary_capture": 1},
    "oddities/fo-dicom/GH184": {"not_ct": 1},
    "oddities/misc/PrivateGE": {"too_few_slices": 1},
    "oddities/misc/j2k": {"localizer": 1},
    "oddities/misc/dicom-numpy_dupe": {"missing_slices": 11},
    "oddities/pydicom-data/eCT": {"not_hu": 1},
    "oddities/pydicom/MR_small.dcm": {"not_ct": 1},
    "oddities/pydicom/zipMR.gz": {"duplicate_file": 1},
    "oddities/pydicom/rtdose.dcm": {"not_ct": 1},
    "oddities/pydicom/rtstruct.dcm": {"not_an_image": 1},
    "oddities/pydicom/rtplan": {"not_an_image": 2, "not_medical_image": 1},
    "oddities/pydicom/test-SR": {"not_an_image": 1},
    "oddities/pydicom/dicomdirtests/DICOMDIR": {"dicomdir": 7},
    "rse-panimg/enhanced": {"too_few_slices": 8, "not_medical_image": 1},
    "rse-panimg/dicom_4d_enhanced": {"too_few_slices": 19},
    "rse-panimg/dicom_4d/": {"too_few_slices": 76},
    "tcga-singles": {"too_few_slices": 7},
    "totalsegmentator/example_ct_dicom": {"ok": 20},
}


@pytest.mark.parametrize("where", REAL_REASONS)
def test_real_reasons(where: str, real: ScanResult, ct_data: Path) -> None:
    counts: Counter[str] = Counter()
    for row in real.series:
        for ref in set(row.refs):
            counts[row.reason] += ref.path.startswith(f"{ct_data / where.rstrip('/')}" + (
                "/" if where.endswith("/") else ""
            ))  # fmt: skip
    assert {reason: n for reason, n in counts.items() if n} == REAL_REASONS[where]


def test_real_rows_say_nothing_private(real: ScanResult, ct_data: Path) -> None:
    text = repr(public(real))
    private = ["LIDC", "ACRIN", "TCGA", "1.2.840", "1.3.6", "/", "Philips", "PHANTOM", "IDRI"]
    kernels = {row.kernel for row in real.series}
    for kernel in kernels:
        text = text.replace(f"'{kernel}'", "")
    assert [word for word in private if word in text] == []


# ---------------------------------------------------------------- invariance


def test_order_names_and_packing_change_nothing(noise_stack, tmp_path: Path, id_key) -> None:
    first, second = noise_stack(name="a"), noise_stack(name="b", orientation=(0, 1, 0, 0, 0, -1),
                            positions=[(3.0 * k, 0, 0) for k in range(12)])  # fmt: skip
    uidless = noise_stack(name="c")
    uidless.set(SOPInstanceUID="", SeriesInstanceUID="", StudyInstanceUID="", PatientID="")
    plain = tmp_path / "plain"
    for name, stack in (("a", first), ("b", second), ("c", uidless)):
        stack.write(plain / name)
    (plain / "notes.txt").write_text("not an image")
    (plain / "cut.nii.gz").write_bytes(gzip.compress(bytes(9000))[:-9])
    reference = scan([str(plain)], id_key)
    assert reasons(reference) == {"ok": 36, "not_medical_image": 1, "truncated_file": 1}

    files = [path for path in sorted(plain.rglob("*")) if path.is_file()]
    random.Random(0).shuffle(files)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    with tarfile.open(mixed / "half.tar.gz", "w:gz") as archive:
        for k, path in enumerate(files[:20]):
            if path.suffix == ".dcm":
                archive.add(path, arcname=f"renamed/{k}")
            else:
                shutil.copy(path, mixed / path.name)
    for k, path in enumerate(files[20:]):
        (mixed / f"folder{k % 3}").mkdir(exist_ok=True)
        shutil.copy(path, mixed / f"folder{k % 3}" / f"{k}{''.join(path.suffixes)}")
    assert public(scan([str(mixed)], id_key)) == public(reference)
    parts = [str(path) for path in sorted(mixed.iterdir(), reverse=True)]
    assert public(scan(parts, id_key)) == public(reference)


def test_ids_depend_on_the_key(noise_stack, tmp_path: Path, id_key, only) -> None:
    folder = str(noise_stack().write(tmp_path / "s"))
    row, other = only(scan([folder], id_key)), only(scan([folder], IdKey(key=b"x" * 32)))
    for name in ("series_id", "key", "subject_id", "study_id"):
        assert getattr(row, name) != getattr(other, name)


def test_progress_counts_files(tmp_path: Path, id_key) -> None:
    seen: list[int] = []
    (tmp_path / "notes").mkdir()
    for number in range(230):
        (tmp_path / "notes" / str(number)).write_text(str(number))
    scan([str(tmp_path)], id_key, progress=seen.append)
    assert seen == [100, 200, 230]


def test_missing_path_is_a_usage_error(tmp_path: Path, id_key) -> None:
    with pytest.raises(UsageError, match="no such file"):
        scan([str(tmp_path / "nowhere")], id_key)


def test_empty_folder(tmp_path: Path, id_key) -> None:
    assert scan([str(tmp_path)], id_key) == ScanResult(series=(), n_files=0)


# ---------------------------------------------------------------- grouping


def test_spacing_is_from_positions_and_order_is_spatial(
    noise_stack, tmp_path, id_key, only
) -> None:
    stack = noise_stack(positions=[(0, 0, -3.5 * k) for k in range(12)])
    row = only(scan([str(stack.write(tmp_path / "s"))], id_key))
    assert row.spacing_zyx_mm == (3.5, 1.0, 1.0)  # the files claim a thickness of 7.25
    assert [Path(ref.path).stem for ref in row.refs] == [f"{k:03d}" for k in reversed(range(12))]
    assert row.slice_of_ref == tuple(range(12))
    assert row.slice_mm == 7.25


def test_frame_of_reference_and_acquisition_do_not_split(
    noise_stack, tmp_path, id_key, only
) -> None:
    stack = noise_stack()
    for k, ds in enumerate(stack.slices):
        ds.FrameOfReferenceUID = generate_uid()
        ds.AcquisitionNumber, ds.InstanceNumber = k, 100 - k
    assert only(scan([str(stack.write(tmp_path / "s"))], id_key)).n_slices == 12


def test_orientation_rounding_does_not_split(noise_stack, tmp_path, id_key, only) -> None:
    stack = noise_stack()
    for k, ds in enumerate(stack.slices):
        ds.ImageOrientationPatient = [1, 1e-5 * (k % 5), 0, -1e-5 * (k % 5), 1, 0]
    assert only(scan([str(stack.write(tmp_path / "s"))], id_key)).n_slices == 12


def test_a_localizer_inside_is_split_off(noise_stack, tmp_path, id_key, only) -> None:
    stack = noise_stack(n=13)
    stack.slices[5].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    stack.slices[5].ImagePositionPatient = [0, 0, 24.0 * 13]
    stack.slices[12].ImagePositionPatient = [0, 0, 10.0]
    result = scan([str(stack.write(tmp_path / "s"))], id_key)
    assert reasons(result) == {"ok": 12, "localizer": 1}
    assert only(result).geometry == "uniform"
    assert len({row.series_id for row in result.series}) == 1


def test_reformats_in_one_series_are_not_merged(noise_stack, tmp_path, id_key) -> None:
    axial = noise_stack(name="a")
    coronal = noise_stack(
        name="b", orientation=(1, 0, 0, 0, 0, -1), positions=[(0, 2 * k, 0) for k in range(12)]
    )
    coronal.set(
        SeriesInstanceUID=axial.slices[0].SeriesInstanceUID,
        StudyInstanceUID=axial.slices[0].StudyInstanceUID,
    )
    axial.write(tmp_path / "s/a")
    coronal.write(tmp_path / "s/b")
    result = scan([str(tmp_path / "s")], id_key)
    assert [row.n_slices for row in result.series] == [12, 12]
    assert len({row.key for row in result.series}) == 2
    assert len({row.series_id for row in result.series}) == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ImageType": ["DERIVED", "SECONDARY"]}, "ok"),
        ({"ImageType": ["DERIVED", "SECONDARY"], "RescaleSlope": None}, "secondary_capture"),
        ({"ImageType": ["DERIVED", "SECONDARY"], "PixelSpacing": None}, "secondary_capture"),
        ({"ImageType": ["ORIGINAL", "SECONDARY", "MIP"]}, "secondary_capture"),
        ({"ImageType": ["DERIVED", "PRIMARY", "CSA 3D", "3D"]}, "secondary_capture"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}, "ok"),
        ({"ScanOptions": "SCOUT MODE"}, "localizer"),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, "secondary_capture"),
        ({"SOPClassUID": ""}, "ok"),
        ({"BurnedInAnnotation": "YES"}, "burned_in_annotation"),
        ({"BurnedInAnnotation": "NO"}, "ok"),
        ({"Modality": "MR"}, "not_ct"),
        ({"NumberOfFrames": 2}, "multi_frame"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "truncated_file"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "not_greyscale"),
        ({"ImagePositionPatient": None}, "missing_geometry"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "missing_geometry"),
        ({"PixelSpacing": None}, "missing_geometry"),
        ({"PixelSpacing": [0, 0]}, "implausible_spacing"),
        ({"PixelSpacing": [0.0007, 0.0007]}, "implausible_spacing"),
    ],
)
def test_header_rules(change, expected, noise_stack, tmp_path, id_key) -> None:
    folder = noise_stack().set(**change).write(tmp_path / "s")
    assert reasons(scan([str(folder)], id_key)) == {expected: 12}


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, ()),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}, ()),
        ({"ImageType": ["ORIGINAL", "SECONDARY", "AXIAL"]}, ("secondary",)),
        ({"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}, ("reformat", "secondary")),
        ({"ImageType": ["DERIVED", "PRIMARY", "MPR"]}, ("reformat",)),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "MPR"]}, ()),
    ],
)
def test_sent_again_or_reformatted_is_flagged(
    change, flags, noise_stack, tmp_path, id_key, only
) -> None:
    folder = noise_stack().set(**change).write(tmp_path / "s")
    assert only(scan([str(folder)], id_key)).flags == flags


def test_coronal_slices_are_flagged(noise_stack, tmp_path, id_key, only) -> None:
    positions = [(0, 2.0 * k, 0) for k in range(12)]
    stack = noise_stack(orientation=(1, 0, 0, 0, 0, -1), positions=positions)
    assert only(scan([str(stack.write(tmp_path / "s"))], id_key)).flags == ("reformat",)


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ([(0, 0, 2.0 * k + (k > 5) * 4.5) for k in range(12)], "missing_slices"),
        ([(0, (k % 3) * 0.7, 2.0 * k) for k in range(12)], "variable_spacing"),
        ([(0, 2.5 * k, 2.0 * k) for k in range(12)], "tilted"),
        ([(0, 0, 30.0 * k) for k in range(12)], "implausible_spacing"),
        ([(0, 0, 2.0 * (k % 9)) for k in range(12)], "too_few_slices"),
    ],
)
def test_geometry_rules(positions, expected, noise_stack, tmp_path, id_key) -> None:
    folder = noise_stack(positions=positions).write(tmp_path / "s")
    [row] = scan([str(folder)], id_key).series
    assert (row.reason, row.n_files) == (expected, 12)


@pytest.mark.parametrize(
    ("positions", "geometry"),
    [
        ([(0, 0, 2.0 * k + (k > 5) * 2) for k in range(12)], "missing_slices"),
        ([(0, 0, 2.0 * k + (k > 5) * 0.7) for k in range(12)], "variable_spacing"),
        ([(0, 0.7 * k, 2.0 * k) for k in range(12)], "tilted"),
        ([(0, 0.035 * k * (20 + k), 0.1 * k * (20 + k)) for k in range(12)], "tilted_variable"),
    ],
)
def test_what_is_regridded_is_flagged(positions, geometry, noise_stack, tmp_path, id_key) -> None:
    stack = noise_stack(positions=positions).set(GantryDetectorTilt=0)  # the tag is not asked
    [row] = scan([str(stack.write(tmp_path / "s"))], id_key).series
    assert (row.reason, row.n_files, row.n_slices) == ("ok", 12, 12)
    assert (row.geometry, row.flags) == (geometry, (geometry,))


# ---------------------------------------------------------------- duplicates


def test_a_series_twice(noise_stack, tmp_path, id_key, only) -> None:
    noise_stack().write(tmp_path / "s/one")
    once = scan([str(tmp_path / "s")], id_key)
    noise_stack().write(tmp_path / "s/two", names=[f"x{k}" for k in range(12)])
    twice = scan([str(tmp_path / "s")], id_key)
    assert reasons(twice) == {"ok": 12, "duplicate_file": 12}
    assert len(twice.series) == 2
    assert len({row.series_id for row in twice.series}) == 1
    assert only(twice).key == only(once).key


def test_without_uids_only_equal_content_is_a_duplicate(noise_stack, tmp_path, id_key) -> None:
    stack = noise_stack().set(SOPInstanceUID="", SeriesInstanceUID="")
    stack.write(tmp_path / "s/one")
    assert reasons(scan([str(tmp_path / "s")], id_key)) == {"ok": 12}
    shutil.copy(tmp_path / "s/one/003.dcm", tmp_path / "s/again.dcm")
    result = scan([str(tmp_path / "s")], id_key)
    assert reasons(result) == {"ok": 12, "duplicate_file": 1}


def test_series_without_uids_of_two_patients_are_kept_apart(noise_stack, tmp_path, id_key) -> None:
    for name in "ab":
        stack = noise_stack(name=name, n=12 if name == "a" else 14)
        stack.set(SOPInstanceUID="", SeriesInstanceUID="", StudyInstanceUID="").write(
            tmp_path / "s" / name
        )
    result = scan([str(tmp_path / "s")], id_key)
    assert sorted(row.n_slices for row in result.series) == [12, 14]
    assert len({row.subject_id for row in result.series}) == 2


def test_same_uid_other_bytes_is_no_duplicate(noise_stack, tmp_path, id_key) -> None:
    stack = noise_stack()
    stack.write(tmp_path / "s")
    stack.slices[4].PixelData = bytes(len(stack.slices[4].PixelData))
    stack.slices[4].save_as(tmp_path / "s/other.dcm")
    # One of them is blank, which says nothing: all pixels are needed to say more.
    [row] = scan([str(tmp_path / "s")], id_key).series
    assert (row.reason, row.n_files, row.n_slices) == ("ok", 13, 12)
    assert row.slice_of_ref.count(4) == 2


def test_the_same_nifti_twice(ct_data, tmp_path, id_key) -> None:
    source = ct_data / "totalsegmentator/example_ct_sm.nii.gz"
    shutil.copy(source, tmp_path / "one.nii.gz")
    (tmp_path / "two.nii").write_bytes(gzip.decompress(source.read_bytes()))
    assert reasons(scan([str(tmp_path)], id_key)) == {"ok": 1, "duplicate_file": 1}


# ---------------------------------------------------------------- broken files


def test_cut_pixel_data(noise_stack, tmp_path, id_key) -> None:
    folder = noise_stack(n=13).write(tmp_path / "s")
    path = folder / "012.dcm"
    path.write_bytes(path.read_bytes()[:-1])
    result = scan([str(folder)], id_key)
    assert reasons(result) == {"ok": 12, "truncated_file": 1}
    [row] = [row for row in result.series if row.reason is Reason.TRUNCATED_FILE]
    assert row.detail == "its pixel data is 1 bytes short"


def test_cut_anywhere_is_a_verdict(noise_stack, tmp_path, id_key) -> None:
    """A file that ends at any byte of its header gets a reason, and never an exception."""
    data = (noise_stack(n=1).write(tmp_path / "s") / "000.dcm").read_bytes()
    cuts = [*range(0, 1000, 7), *range(1000, len(data), 31)]
    (tmp_path / "cut").mkdir()
    for cut in cuts:
        (tmp_path / f"cut/{cut:05d}").write_bytes(data[:cut])
    result = scan([str(tmp_path / "cut")], id_key)
    assert result.n_files == len(cuts)
    assert "ok" not in reasons(result)
    allowed = {*BROKEN, Reason.NOT_MEDICAL_IMAGE, Reason.NOT_AN_IMAGE, Reason.DUPLICATE_FILE}
    assert set(reasons(result)) <= {str(reason) for reason in allowed}
    pixels = len(data) - 512
    late = [row for row in result.series if row.refs[0].size > pixels]
    assert {row.reason for row in late} == {Reason.TRUNCATED_FILE}


def test_random_damage_is_a_verdict(noise_stack, tmp_path, id_key) -> None:
    data = (noise_stack(n=1).write(tmp_path / "s") / "000.dcm").read_bytes()
    rng = random.Random(5)
    (tmp_path / "hurt").mkdir()
    for number in range(150):
        hurt = bytearray(data)
        for _ in range(rng.choice((1, 3, 30))):
            hurt[rng.randrange(132, 1200)] = rng.randrange(256)
        (tmp_path / f"hurt/{number}").write_bytes(hurt)
    assert scan([str(tmp_path / "hurt")], id_key, TINY).n_files == 150


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not_medical_image"),
        (b"plain text", "not_medical_image"),
        (bytes(128) + b"DICM", "unreadable_file"),
        (bytes(128) + b"DICM" + b"\xff" * 300, "unreadable_file"),
        (b"\x08\x00\x05\x00" + b"\xff" * 300, "not_medical_image"),
    ],
)
def test_stray_bytes(content: bytes, reason: str, tmp_path: Path, id_key) -> None:
    (tmp_path / "x").write_bytes(content)
    [row] = scan([str(tmp_path)], id_key).series
    assert row.reason == reason


# ---------------------------------------------------------------- NIfTI headers


def test_nifti_too_few_slices(tmp_path: Path, id_key) -> None:
    nibabel.Nifti1Image(np.zeros((9, 8, 4), np.int16), np.eye(4)).to_filename(tmp_path / "x.nii")
    [row] = scan([str(tmp_path)], id_key).series
    assert (row.reason, row.n_slices, row.shape_zyx) == ("too_few_slices", 4, (4, 8, 9))


# ---------------------------------------------------------------- facts


@pytest.mark.parametrize(
    ("agent", "contrast"),
    [(None, None), ("", None), ("OMNIPAQUE 300", True), ("NONE", False), ("no", False)],
)
def test_contrast(agent, contrast, noise_stack, tmp_path, id_key, only) -> None:
    stack = noise_stack()
    if agent is not None:
        stack.set(ContrastBolusAgent=agent)
    row = only(scan([str(stack.write(tmp_path / "s"))], id_key))
    assert row.contrast is contrast


def test_kernel_is_no_place_for_free_text(noise_stack, tmp_path, id_key, only) -> None:
    stack = noise_stack().set(ConvolutionKernel="Mr Smith, *1950")
    assert only(scan([str(stack.write(tmp_path / "s"))], id_key)).kernel == ""
    stack.set(ConvolutionKernel=["Br38f", "3"]).write(tmp_path / "s")
    assert only(scan([str(tmp_path / "s")], id_key)).kernel == "Br38f/3"


def test_estimated_voxels(noise_stack, tmp_path, id_key, only) -> None:
    row = only(scan([str(noise_stack().write(tmp_path / "s"))], id_key))
    assert row.estimated_voxels == 12 * 16 * 16
