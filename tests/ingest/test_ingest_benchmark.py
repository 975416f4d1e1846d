"""The ingest benchmark itself: exact inputs, runs that do the work, ratios that are right."""

import pydicom
import pytest
from pydicom.uid import JPEGLosslessSV1

from benchmarks.ingest import TARGETS, summarise
from benchmarks.ingest_inputs import transcode, write_copy
from benchmarks.ingest_runs import Timing, run_ingest, run_limit
from ingest.testing import SeriesSpec, write_dicom_series

SPEC = SeriesSpec(patient=1, slices=8, side=64, pixel_mm=6.0, gap_mm=5.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    files = write_dicom_series(folder / "source", SPEC)
    made = []
    for number in range(2):
        write_copy(files, folder / f"raw-{number}", number)
        transcode(folder / f"raw-{number}", folder / f"packed-{number}")
        made.append(folder / f"packed-{number}")
    return made


def test_inputs_are_jpeg_lossless_under_ids_of_their_own(folders):
    found = [[pydicom.dcmread(path) for path in folder.iterdir()] for folder in folders]
    assert {ds.file_meta.TransferSyntaxUID for one in found for ds in one} == {JPEGLosslessSV1}
    assert len({ds.SeriesInstanceUID for one in found for ds in one}) == 2
    assert len({ds.SOPInstanceUID for one in found for ds in one}) == 2 * SPEC.slices


def test_runs_do_their_work(folders, tmp_path):
    limit = run_limit(folders, 1)
    whole = run_ingest(folders, tmp_path / "out", 1)
    assert (tmp_path / "out/manifest.json").exists()
    assert whole.stored_bytes > limit.stored_bytes == 0
    for timing in (limit, whole):
        assert 0 < timing.work_s <= timing.wall_s
        assert 0 < timing.work_cpu_s <= timing.cpu_s


def test_a_ratio_is_how_fast_ingest_is():
    def timings(*seconds):
        return [Timing(wall_s=9, work_s=s, cpu_s=9, work_cpu_s=s) for s in seconds]

    runs = {"limit": timings(1, 3, 2), "ingest": timings(4, 5, 90), "peer": timings(8, 10, 12)}
    found = summarise(runs, 7, TARGETS["raw"])
    assert found["ratios"]["work_s"] == {"limit": 0.4, "peer": 2.0}
    assert found["passed"]
    slow = summarise(runs | {"ingest": timings(9)}, 7, TARGETS["raw"])
    assert not slow["passed"]
    assert not summarise({"ingest": timings(1)}, 7, TARGETS["raw"])["passed"]
