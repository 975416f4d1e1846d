"""Positions that repeat: split into phases, or copies that are dropped, or refused."""

import random
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from ingest.headers import quiet_pydicom
from ingest.reader import read_series
from ingest.scan import ScanConfig, scan

FOUR = ScanConfig(min_slices=4)


def phased(noise_stack, n_phases: int = 3, n: int = 12, **options):
    """``n_phases`` times ``n`` slices, phase after phase, one SOP instance and image each."""
    positions = [(0, 0, 2.0 * (k % n)) for k in range(n * n_phases)]
    return noise_stack(n=n * n_phases, positions=positions, **options)


def shuffled(stack, folder: Path) -> str:
    random.Random(3).shuffle(stack.slices)
    return str(stack.write(folder))


def tagged(stack, tag: str, values) -> None:
    for k, ds in enumerate(stack.slices):
        setattr(ds, tag, values[k // 12])


@pytest.mark.parametrize(
    ("tag", "values"),
    [
        ("TemporalPositionIdentifier", [1, 2, 10]),  # as numbers, not as text
        ("AcquisitionTime", ["095959.5", "100000.25", "100000.5"]),
        ("TriggerTime", [0, 50.5, 100]),
        ("ContentTime", ["100000", "100001", "100002"]),
        ("AcquisitionNumber", [8, 9, 10]),
    ],
)
def test_split_by_a_tag(tag: str, values, noise_stack, tmp_path, id_key) -> None:
    stack = phased(noise_stack)
    stored = np.stack([ds.pixel_array for ds in stack.slices]).astype(np.float64)
    tagged(stack, tag, values)
    found = scan([shuffled(stack, tmp_path / "s")], id_key)
    rows = sorted(found.series, key=lambda row: row.flags)
    assert [row.flags for row in rows] == [("phase", f"phase_0{k}_of_03") for k in (1, 2, 3)]
    assert [(row.reason, row.n_files, row.n_slices) for row in rows] == [("ok", 12, 12)] * 3
    assert len({row.key for row in rows}) == 3
    assert len({row.series_id for row in rows}) == 1
    for k, row in enumerate(rows):
        np.testing.assert_array_equal(read_series(row).hu, stored[12 * k : 12 * k + 12] - 1024)


def test_blocks_of_instance_numbers(noise_stack, tmp_path, id_key) -> None:
    stack = phased(noise_stack)
    for k, ds in enumerate(stack.slices):
        ds.InstanceNumber = 100 + k
        ds.AcquisitionTime = f"10{k:02d}00"  # of every slice its own: no phase is told by it
    found = scan([shuffled(stack, tmp_path / "s")], id_key)
    assert [(row.reason, row.n_files) for row in found.series] == [("ok", 12)] * 3


def test_nothing_tells_them_apart(noise_stack, tmp_path, id_key) -> None:
    [row] = scan([shuffled(phased(noise_stack), tmp_path / "s")], id_key).series
    assert (row.reason, row.n_files, row.n_slices) == ("duplicate_positions", 36, 12)


def test_a_tag_that_only_some_have_sorts_nothing(noise_stack, tmp_path, id_key) -> None:
    stack = phased(noise_stack, n_phases=2)
    tagged(stack, "AcquisitionTime", ["", "100000"])
    [row] = scan([shuffled(stack, tmp_path / "s")], id_key).series
    assert (row.reason, row.n_files) == ("duplicate_positions", 24)


def test_a_phase_that_lacks_a_slice(noise_stack, tmp_path, id_key) -> None:
    stack = phased(noise_stack)
    tagged(stack, "AcquisitionTime", ["100000", "100001", "100002"])
    del stack.slices[17]
    [row] = scan([shuffled(stack, tmp_path / "s")], id_key).series
    assert (row.reason, row.n_files) == ("duplicate_positions", 35)


@pytest.mark.parametrize("compressed", [False, True])
def test_copies_are_no_phases(compressed, noise_stack, tmp_path, id_key, only) -> None:
    """Sent again, with a new UID, time and number, and compressed on the way."""
    stack, copy = noise_stack(), noise_stack()
    for k, ds in enumerate([*stack.slices, *copy.slices]):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k}"
        ds.InstanceNumber, ds.ContentTime = k, "100000" if k < 12 else "110000"
        if compressed and k >= 12:
            with quiet_pydicom():
                ds.compress(RLELossless, generate_instance_uid=False)
    expected = np.stack([ds.pixel_array for ds in stack.slices]) - 1024.0
    stack.write(tmp_path / "s/a")
    copy.write(tmp_path / "s/b")
    found = scan([str(tmp_path / "s")], id_key)
    series = only(found)
    assert (len(found.series), series.n_files, series.n_slices) == (1, 24, 12)
    volume = read_series(series)
    assert volume.flags == ("duplicates_dropped",)
    np.testing.assert_array_equal(volume.hu, expected)


def test_a_phase_sent_twice_is_one_phase(noise_stack, tmp_path, id_key) -> None:
    stack = phased(noise_stack)
    tagged(stack, "AcquisitionTime", ["100000", "100001", "100002"])
    for k in range(12):
        stack.slices[24 + k].PixelData = stack.slices[k].PixelData
    found = scan([shuffled(stack, tmp_path / "s")], id_key)
    assert sorted((row.flags[1], row.n_files) for row in found.series) == [
        ("phase_01_of_02", 24),
        ("phase_02_of_02", 12),
    ]


def test_order_and_names_change_nothing(noise_stack, tmp_path, id_key) -> None:
    results = []
    for seed in (1, 2):
        stack = phased(noise_stack)
        tagged(stack, "AcquisitionTime", ["100000", "100001", "100002"])
        random.Random(seed).shuffle(stack.slices)
        folder = stack.write(tmp_path / str(seed))
        rows = scan([str(folder)], id_key).series
        results.append([(row.key, row.flags, row.slice_of_ref) for row in rows])
    assert results[0] == results[1]


def test_real_phases_in_one_series(ct_data: Path, tmp_path: Path, id_key) -> None:
    """A 4D head CT, exported as 19 series, put back into the one it was scanned as.

    Upstream blanked its 2 x 3 pixels: here they say which image they belong to.
    """
    alone: dict[str, np.ndarray] = {}
    for path in (ct_data / "rse-panimg/dicom_4d").iterdir():
        ds = pydicom.dcmread(path)
        ds.SeriesInstanceUID = "1.2.3"
        stored = np.arange(6, dtype="<i2").reshape(2, 3) + 10 * int(ds.InstanceNumber)
        place = (int(ds.InstanceNumber) - 1) % 4
        alone.setdefault(ds.AcquisitionTime, np.zeros((4, 2, 3)))[place] = stored
        ds.PixelData = stored.tobytes()
        ds.save_as(tmp_path / path.name)
    found = scan([str(tmp_path)], id_key, FOUR)
    rows = sorted(found.series, key=lambda row: row.flags)
    assert [row.flags[-1] for row in rows] == [f"phase_{k:02d}_of_19" for k in range(1, 20)]
    assert [(row.reason, row.n_files) for row in rows] == [("ok", 4)] * 19
    for row, time in zip(rows, sorted(alone), strict=True):
        np.testing.assert_array_equal(read_series(row).hu, alone[time])


def test_real_phases_as_multi_frame_files_of_one_series(ct_data, tmp_path, id_key) -> None:
    folder = ct_data / "rse-panimg/dicom_4d_enhanced"
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.SeriesInstanceUID = "1.2.3"
        ds.save_as(tmp_path / path.name)
    found = scan([str(tmp_path)], id_key, FOUR)
    assert [(row.reason, row.n_files, row.n_slices) for row in found.series] == [("ok", 1, 4)] * 19
    assert len({row.flags for row in found.series}) == 19
