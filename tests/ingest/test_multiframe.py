"""Multi-frame files: each frame a slice, each file counted once."""

import zipfile
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    EnhancedCTImageStorage,
    JPEG2000Lossless,
    JPEGLSLossless,
    LegacyConvertedEnhancedCTImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    RLELossless,
)

from ingest.headers import quiet_pydicom
from ingest.reader import read_series
from ingest.scan import ScanConfig, scan

TINY = ScanConfig(min_slices=3)
GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
}


def item(**values) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def group_of(source: Dataset, names) -> Dataset:
    """Functional groups that hold a slice's facts."""
    group = Dataset()
    for name in names:
        values = {key: source[key].value for key in GROUPS[name] if key in source}
        setattr(group, name, Sequence([item(**values)]))
    return group


def merged(slices, *, shared=("PlaneOrientationSequence", "PixelMeasuresSequence"), cls=None):
    """One Enhanced CT of classic slices: ``shared`` groups once, the others with each frame."""
    own = [name for name in GROUPS if name not in shared]
    ds = pydicom.dcmread(_bytes(slices[0]))
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = cls or EnhancedCTImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{ds.SOPInstanceUID[:50]}.99"
    for keys in GROUPS.values():
        for key in keys:
            if key in ds:
                delattr(ds, key)
    ds.ContentDate, ds.ContentTime = "20200101", "120000"
    ds.NumberOfFrames = len(slices)
    ds.SharedFunctionalGroupsSequence = Sequence([group_of(slices[0], shared)])
    ds.PerFrameFunctionalGroupsSequence = Sequence([group_of(one, own) for one in slices])
    ds.PixelData = b"".join(one.PixelData for one in slices)
    return ds


def _bytes(ds):
    buffer = pydicom.filebase.DicomBytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return buffer


def save(ds, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def varied(noise_stack):
    """A stack whose slices have a rescale each, top slice first, with a spacing that is not 1."""
    stack = noise_stack(side=64, positions=[(5, 6, 100 - 2.0 * k) for k in range(12)])
    stack.set(PixelSpacing=[0.8, 0.7], RescaleType="HU", FrameOfReferenceUID="1.2.3")
    for k, ds in enumerate(stack.slices):
        ds.RescaleSlope, ds.RescaleIntercept = 1 + 0.25 * (k % 3), -1024.5 - k
    return stack


LAYOUTS = [
    ("PlaneOrientationSequence", "PixelMeasuresSequence"),
    ("PlaneOrientationSequence",),
    (),
]


@pytest.mark.parametrize("shared", LAYOUTS)
@pytest.mark.parametrize(
    "cls",
    [
        EnhancedCTImageStorage,
        LegacyConvertedEnhancedCTImageStorage,
        MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    ],
)
def test_frames_are_the_slices(cls, shared, varied, tmp_path, id_key, only) -> None:
    classic = read_series(only(scan([str(varied.write(tmp_path / "s"))], id_key)))
    save(merged(varied.slices, shared=shared, cls=cls), tmp_path / "m/one.dcm")
    found = scan([str(tmp_path / "m")], id_key)
    series = only(found)
    assert (found.n_files, series.n_files, series.n_slices) == (1, 1, 12)
    assert series.slice_mm == 7.25
    volume = read_series(series)
    np.testing.assert_array_equal(volume.hu, classic.hu)
    np.testing.assert_array_equal(volume.affine, classic.affine)
    assert volume.flags == ()


def test_frames_are_highdicoms_volume(varied, tmp_path, id_key, only) -> None:
    """Against an independent reader: HU and places."""
    path = save(merged(varied.slices), tmp_path / "one.dcm")
    volume = read_series(only(scan([str(path)], id_key)))
    oracle = highdicom.imread(path).get_volume(
        apply_real_world_transform=False, apply_modality_transform=True, dtype=np.float64
    )
    # LPS with (frame, row, column) from the first frame on, which is the top one here.
    lps = oracle.affine @ np.array([11, 0, 0, 1])
    np.testing.assert_allclose(volume.affine[:3, 3], lps[:3] * (-1, -1, 1), atol=1e-9)
    np.testing.assert_allclose(volume.hu, oracle.array[::-1], atol=1e-3)
    np.testing.assert_allclose(volume.spacing_mm, oracle.spacing)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_frames(syntax, varied, tmp_path, id_key, only) -> None:
    plain = read_series(only(scan([str(varied.write(tmp_path / "s"))], id_key)))
    ds = merged(varied.slices)
    with quiet_pydicom():
        ds.compress(syntax, generate_instance_uid=False)
    volume = read_series(only(scan([str(save(ds, tmp_path / "m/one.dcm"))], id_key)))
    np.testing.assert_array_equal(volume.hu, plain.hu)


def test_a_file_is_parsed_once(varied, tmp_path, id_key, only, monkeypatch) -> None:
    from ingest import dicom

    series = only(scan([str(save(merged(varied.slices), tmp_path / "one.dcm"))], id_key))
    calls = []
    real = dicom.read_dataset
    monkeypatch.setattr(dicom, "read_dataset", lambda *a, **k: calls.append(1) or real(*a, **k))
    read_series(series)
    assert len(calls) == 1


def test_tilt_and_gaps_inside_one_file(varied, tmp_path, id_key, only) -> None:
    for k, ds in enumerate(varied.slices):
        ds.ImagePositionPatient = [0, 0.7 * k, 2.0 * k + (k > 5)]
    classic = only(scan([str(varied.write(tmp_path / "s"))], id_key))
    frames = only(scan([str(save(merged(varied.slices), tmp_path / "m/one.dcm"))], id_key))
    assert classic.geometry == frames.geometry == "tilted_variable"
    np.testing.assert_array_equal(read_series(frames).hu, read_series(classic).hu)


def test_without_places_it_is_refused(varied, tmp_path, id_key) -> None:
    def verdict(ds) -> tuple[str, int]:
        [row] = scan([str(save(ds, tmp_path / "one.dcm"))], id_key).series
        return row.reason, row.n_files

    ds = merged(varied.slices)
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:7]
    assert verdict(ds) == ("multi_frame", 1)
    del ds.PerFrameFunctionalGroupsSequence
    assert verdict(ds) == ("multi_frame", 1)
    ds.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    assert verdict(ds) == ("secondary_capture", 1)
    ds = merged(varied.slices)
    for group in ds.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence
    assert verdict(ds) == ("missing_geometry", 1)
    del ds.PixelData
    assert verdict(ds) == ("truncated_file", 1)


def test_a_quantity_that_is_not_hu(varied, ct_data, tmp_path, id_key) -> None:
    [row] = scan([str(ct_data / "oddities/pydicom-data/eCT_Supplemental.dcm")], id_key, TINY).series
    assert (row.reason, row.n_files) == ("not_hu", 1)
    ds = merged(varied.slices)
    mapping = item(MeasurementUnitsCodeSequence=Sequence([item(CodeValue="mg/cm3")]))
    ds.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence = Sequence([mapping])
    [row] = scan([str(save(ds, tmp_path / "one.dcm"))], id_key).series
    assert row.reason == "not_hu"
    mapping.MeasurementUnitsCodeSequence[0].CodeValue = "[hnsf'U]"
    [row] = scan([str(save(ds, tmp_path / "one.dcm"))], id_key).series
    assert row.reason == "ok"


def test_the_enhanced_rescale_is_not_the_top_levels(varied, tmp_path, id_key, only) -> None:
    """eCT_Supplemental gives 0..1196 where the functional groups are not read."""
    expected = read_series(only(scan([str(varied.write(tmp_path / "s"))], id_key))).hu
    ds = merged(varied.slices)
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    volume = read_series(only(scan([str(save(ds, tmp_path / "m/one.dcm"))], id_key)))
    np.testing.assert_array_equal(volume.hu, expected)


def test_frames_of_two_orientations_count_their_file_once(
    noise_stack, tmp_path, id_key, only
) -> None:
    axial = noise_stack(n=12)
    coronal = noise_stack(
        n=4, orientation=(1, 0, 0, 0, 0, -1), positions=[(0, 2 * k, 0) for k in range(4)]
    )
    ds = merged([*axial.slices, *coronal.slices], shared=())
    found = scan([str(save(ds, tmp_path / "one.dcm"))], id_key)
    assert sorted((row.reason, row.n_files, row.n_slices) for row in found.series) == [
        ("ok", 1, 12),
        ("too_few_slices", 0, 4),
    ]


# ---------------------------------------------------------------- real files


@pytest.fixture
def blank_is_fine(monkeypatch) -> None:
    """For files whose pixels upstream blanked: places and counts are what is tested."""
    monkeypatch.setattr("ingest.dicom.check_slices", lambda hu: None)


def test_real_seven_frames_are_the_seven_slices(ct_data, tmp_path, id_key, only) -> None:
    with zipfile.ZipFile(ct_data / "rse-panimg/enhanced-vs-classic.zip") as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "dicom_enhanced"
    many, alone = tmp_path / "many", tmp_path / "alone"
    many.mkdir()
    alone.mkdir()
    for path in folder.glob("slice*.dcm"):
        (many / path.name).write_bytes(path.read_bytes())
    (alone / "volume.dcm").write_bytes((folder / "volume.dcm").read_bytes())
    classic, frames, both = (only(scan([str(f)], id_key, TINY)) for f in (many, alone, folder))
    assert (classic.n_files, frames.n_files, both.n_files) == (7, 1, 8)
    volume = read_series(classic)
    for other in (read_series(frames), read_series(both)):
        np.testing.assert_array_equal(other.hu, volume.hu)
        np.testing.assert_allclose(other.affine, volume.affine, atol=1e-9)
    # One volume of both, its second copy dropped: the pixels are compared.
    assert read_series(both).flags == ("duplicates_dropped",)
    assert volume.hu.shape == (7, 512, 512)


def test_real_legacy_conversion(ct_data, id_key, only, blank_is_fine) -> None:
    folder = ct_data / "oddities/dcmqi/24x38x3"
    classic = read_series(only(scan([str(folder / "image")], id_key, TINY)))
    frames = read_series(only(scan([str(folder / "multiframe")], id_key, TINY)))
    np.testing.assert_array_equal(frames.hu, classic.hu)
    np.testing.assert_allclose(frames.affine, classic.affine, atol=1e-9)
    oracle = highdicom.imread(folder / "multiframe/mf.dcm").get_volume()
    assert frames.hu.shape == oracle.spatial_shape


def test_real_4d_files_are_the_classic_slices(ct_data, id_key, blank_is_fine) -> None:
    """19 phases, 19 series: 4 slices each, and 4 frames each."""
    config = ScanConfig(min_slices=4)
    classic = scan([str(ct_data / "rse-panimg/dicom_4d")], id_key, config)
    frames = scan([str(ct_data / "rse-panimg/dicom_4d_enhanced")], id_key, config)
    assert [(row.reason, row.n_files) for row in classic.series] == [("ok", 4)] * 19
    assert [(row.reason, row.n_files) for row in frames.series] == [("ok", 1)] * 19
    for one, other in zip(classic.series, frames.series, strict=True):
        assert one.series_id == other.series_id
        np.testing.assert_array_equal(read_series(one).hu, read_series(other).hu)
        np.testing.assert_allclose(one.affine, other.affine, atol=1e-9)
