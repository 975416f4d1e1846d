"""DICOM segmentations: against highdicom, and against the shapes that they were drawn from."""

import io
import warnings
from dataclasses import replace

import highdicom
import numpy as np
import pydicom
import pytest

from ingest.errors import Reason, SeriesError
from ingest.ids import IdKey
from ingest.labels import label_sources
from ingest.labels_build import make_label
from ingest.labels_frames import read_seg_labels
from ingest.labels_grid import sample_labels
from ingest.labels_seg import read_seg_header
from ingest.scan import ScanConfig, scan
from ingest.testing import FEET_FIRST_SUPINE, SeriesSpec, write_dicom_series
from ingest.testing_labels import CODES, torso_labels, write_seg
from shards.testing import toy_meta, toy_volume

KEY = IdKey(key=bytes(range(32)))
SMALL = SeriesSpec(patient=1, slices=24, side=48, pixel_mm=6.0, gap_mm=5.0, bottom_mm=-75.0)
TILTED = replace(SMALL, orientation=(1.0, 0.0, 0.0, 0.0, 0.948324, -0.317305))
GAPS = [*range(3), *range(4, 10), *range(12, 24)]
"""Slices of a series in which some are missing."""
pytestmark = [
    # highdicom says so of each segmentation that it writes without all of the optional facts.
    pytest.mark.filterwarnings("ignore::UserWarning:highdicom"),
]


def volume_of(folder, labels=()):
    """The one volume of a scan."""
    sources = label_sources([str(path) for path in labels], [str(folder)])
    found = scan([str(folder)], KEY, ScanConfig(min_slices=3), labels=sources)
    (volume,) = [row for row in found.series if row.reason is Reason.OK]
    return volume


def grid_of(volume):
    return np.array(volume.affine), volume.shape_zyx


def stack(tmp_path, spec, keep=None, values=None, **options):
    """A series with some of its slices, its segmentation's bytes, and its scan."""
    images = write_dicom_series(tmp_path / "raw", spec)
    values = torso_labels(spec.affine, (spec.slices, spec.side, spec.side))
    keep = range(spec.slices) if keep is None else keep
    for number, path in enumerate(images):
        if number not in keep:
            path.unlink()
    write_seg(tmp_path / "seg.dcm", [images[n] for n in keep], values[list(keep)], **options)
    return (tmp_path / "seg.dcm").read_bytes(), volume_of(tmp_path / "raw"), values


@pytest.mark.parametrize(
    "spec",
    [
        SMALL,
        replace(SMALL, orientation=FEET_FIRST_SUPINE, top_first=True),
        replace(SMALL, orientation=(0.0, -1.0, 0.0, 1.0, 0.0, 0.0)),
    ],
)
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_on_its_own_grid_a_label_is_what_was_drawn(tmp_path, spec, kind):
    data, volume, values = stack(tmp_path, spec, kind=kind)
    planes, codes = read_seg_labels(data, volume)
    assert codes == {number: (code, "SCT") for number, (code, _) in CODES.items()}
    np.testing.assert_array_equal(sample_labels(planes, spec.affine, values.shape), values)
    # The volume itself is stored from the feet or from the head.
    found = sample_labels(planes, *grid_of(volume))
    turned = spec.orientation == FEET_FIRST_SUPINE
    np.testing.assert_array_equal(found, values[::-1] if turned else values)


def test_regular_segmentations_are_what_highdicom_makes_of_them(tmp_path):
    data, volume, _ = stack(tmp_path, SMALL)
    seg = highdicom.seg.Segmentation.from_dataset(pydicom.dcmread(io.BytesIO(data)))
    theirs = seg.get_volume(combine_segments=True)
    # Their affine is LPS of (plane, row, column); empty planes at the ends are left out of it.
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ theirs.affine
    ours = sample_labels(read_seg_labels(data, volume)[0], affine, theirs.spatial_shape)
    np.testing.assert_array_equal(ours, theirs.array)
    assert theirs.array.any()


def test_real_segmentations_are_what_highdicom_makes_of_them(ct_data):
    folder = ct_data / "oddities/dcmqi/24x38x3"
    volume = volume_of(folder / "image")
    for path in (folder / "seg/label.seg", ct_data / "oddities/pydicom-data/liver.dcm"):
        data = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seg = highdicom.seg.Segmentation.from_dataset(pydicom.dcmread(path))
            theirs = seg.get_volume(combine_segments=True)
        planes, codes = read_seg_labels(data, volume)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ theirs.affine
        ours = sample_labels(planes, affine, theirs.spatial_shape)
        np.testing.assert_array_equal(ours, theirs.array)
        assert codes == {1: ("T-62000", "SRT")}
        assert ours.any()


def test_a_real_segmentation_finds_its_series(ct_data):
    folder = ct_data / "oddities/dcmqi/24x38x3"
    volume = volume_of(folder / "image", [folder / "seg"])
    assert volume.label is not None
    assert volume.label.modality == "SEG"
    ours = sample_labels(
        read_seg_labels((folder / "seg/label.seg").read_bytes(), volume)[0], *grid_of(volume)
    )
    # The volume is a synthetic mask itself: 1 where the segmentation is.
    images = [pydicom.dcmread(path) for path in sorted((folder / "image").iterdir())]
    np.testing.assert_array_equal(ours, np.stack([image.pixel_array for image in images]))


def test_frames_of_a_few_slices_are_put_on_those(tmp_path):
    images = write_dicom_series(tmp_path / "raw", SMALL)
    values = torso_labels(SMALL.affine, (24, 48, 48))
    few = [5, 6, 11]
    write_seg(tmp_path / "seg.dcm", [images[n] for n in few], values[few])
    volume = volume_of(tmp_path / "raw")
    planes, _ = read_seg_labels((tmp_path / "seg.dcm").read_bytes(), volume)
    found = sample_labels(planes, *grid_of(volume))
    np.testing.assert_array_equal(found[few], values[few])
    assert set(np.flatnonzero(found.any(axis=(1, 2))).tolist()) == set(few)


def dice(found, expected):
    """Of each value."""
    pairs = [(found == value, expected == value) for value in CODES]
    return [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]


@pytest.mark.parametrize(
    ("spec", "keep", "least"),
    [(SMALL, None, 0.99), (TILTED, None, 0.9), (SMALL, GAPS, 0.9), (TILTED, GAPS, 0.88)],
)
def test_on_a_regridded_volume_a_label_lies_at_its_true_place(tmp_path, spec, keep, least):
    data, volume, _ = stack(tmp_path, spec, keep)
    assert (volume.regridding is not None) == (spec is TILTED or keep is GAPS)
    affine, shape = grid_of(volume)
    found = sample_labels(read_seg_labels(data, volume)[0], affine, shape)
    expected = torso_labels(affine, shape)
    assert min(dice(found, expected)) >= least
    # In the planes of a missing slice the nearest scanned one speaks: no band without labels.
    inner = np.flatnonzero(expected.any(axis=(1, 2)))[1:-1]
    assert found[inner].any(axis=(1, 2)).all()


def test_on_a_finer_grid_volumes_are_kept(tmp_path):
    spec = replace(SMALL, slices=50, gap_mm=2.5, side=110, pixel_mm=2.6)
    data, volume, _ = stack(tmp_path, spec)
    affine = np.array(volume.affine)
    fine = affine @ np.diag([1.5 / 2.5, 1.5 / 2.6, 1.5 / 2.6, 1])
    shape = (80, 190, 190)
    found = sample_labels(read_seg_labels(data, volume)[0], fine, shape)
    expected = torso_labels(fine, shape)
    assert min(dice(found, expected)) > 0.95
    share = [(found == value).sum() / (expected == value).sum() for value in CODES]
    assert share == pytest.approx([1, 1, 1], abs=0.02)


def test_only_public_codes_leave_a_segmentation(tmp_path):
    data, volume, _ = stack(tmp_path, SMALL)
    dataset = pydicom.dcmread(io.BytesIO(data))
    kinds = [item.SegmentedPropertyTypeCodeSequence[0] for item in dataset.SegmentSequence]
    kinds[0].CodingSchemeDesignator = "99CLINIC"
    kinds[1].CodeValue = "DOE^JOHN"
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    _, codes = read_seg_labels(buffer.getvalue(), volume)
    assert codes == {1: ("", ""), 2: ("", ""), 3: (CODES[3][0], "SCT")}


def changed(data, change):
    dataset = pydicom.dcmread(io.BytesIO(data))
    change(dataset)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def groups(dataset):
    return dataset.PerFrameFunctionalGroupsSequence


def turn_one(dataset):
    shared = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    for number, frame in enumerate(groups(dataset)):
        frame.PlaneOrientationSequence = pydicom.Sequence([pydicom.Dataset()])
        frame.PlaneOrientationSequence[0].ImageOrientationPatient = (
            [0, 1, 0, -1, 0, 0] if number == 3 else list(shared[0].ImageOrientationPatient)
        )


def shift_one(dataset):
    """A frame between two slices, and not halfway."""
    position = groups(dataset)[4].PlanePositionSequence[0].ImagePositionPatient
    position[2] += 1.7


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: setattr(d, "SegmentationType", "FRACTIONAL"), Reason.LABEL_FRACTIONAL),
        (lambda d: delattr(d, "SegmentationType"), Reason.LABEL_FRACTIONAL),
        (lambda d: groups(d).pop(), Reason.MISSING_GEOMETRY),
        (lambda d: delattr(groups(d)[2], "PlanePositionSequence"), Reason.MISSING_GEOMETRY),
        (lambda d: d.SegmentSequence.pop(), Reason.LABEL_VALUES),
        (lambda d: delattr(d, "SegmentSequence"), Reason.LABEL_VALUES),
        (lambda d: delattr(d, "Rows"), Reason.UNREADABLE_FILE),
        (lambda d: setattr(d, "Rows", 47), Reason.DECODE_FAILED),
        (lambda d: setattr(d, "PixelData", d.PixelData[:40]), Reason.DECODE_FAILED),
        (turn_one, Reason.LABEL_GEOMETRY),
        (shift_one, Reason.LABEL_GEOMETRY),
    ],
)
def test_what_is_no_label_map_is_refused_with_a_reason(tmp_path, change, reason):
    data, volume, _ = stack(tmp_path, SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        broken = changed(data, change)
    with pytest.raises(SeriesError) as caught:
        read_seg_labels(broken, volume)
    assert caught.value.reason is reason


def test_overlapping_segments_are_refused(tmp_path):
    data, volume, _ = stack(tmp_path, SMALL)

    def overlap(dataset):
        """Two segments claim the frame's pixels: a frame of 1 is given to 2 where 2 is."""
        numbers = [
            f.SegmentIdentificationSequence[0].ReferencedSegmentNumber for f in groups(dataset)
        ]
        frames = groups(dataset)
        first = numbers.index(1)
        second = numbers.index(2)
        place = frames[first].PlanePositionSequence[0].ImagePositionPatient
        frames[second].PlanePositionSequence[0].ImagePositionPatient = list(place)
        rows = dataset.Rows * dataset.Columns // 8
        pixels = bytearray(dataset.PixelData)
        pixels[second * rows : (second + 1) * rows] = pixels[first * rows : (first + 1) * rows]
        dataset.PixelData = bytes(pixels)

    with pytest.raises(SeriesError) as caught:
        read_seg_labels(changed(data, overlap), volume)
    assert caught.value.reason is Reason.LABEL_OVERLAP


def test_a_cut_anywhere_is_a_verdict(tmp_path):
    data, volume, _ = stack(tmp_path, SMALL)
    rng = np.random.default_rng(0)
    seen = set()
    for length in [*rng.integers(0, len(data), 40).tolist(), len(data) - 1]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read_seg_header(data[:length])
                read_seg_labels(data[:length], volume)
        except SeriesError as exc:
            seen.add(exc.reason)
        else:
            pytest.fail(f"{length} of {len(data)} bytes were taken")
    assert Reason.DECODE_FAILED in seen


def test_a_label_far_from_its_volume_is_refused(tmp_path):
    data, volume, _ = stack(tmp_path, SMALL)
    (tmp_path / "moved.dcm").write_bytes(data)
    away = np.array(volume.affine)
    away[:3, 3] += 1000
    moved = replace(
        volume_of(tmp_path / "raw", [tmp_path / "seg.dcm"]), affine=tuple(map(tuple, away.tolist()))
    )
    with pytest.raises(SeriesError) as caught:
        make_label(moved, toy_meta("a", toy_volume((34, 34, 34), 0)), ())
    assert caught.value.reason is Reason.LABEL_MISMATCH
