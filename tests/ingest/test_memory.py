"""Memory of a worker on a thin-slice series; `make memory` runs it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ingest.memory import give_back, peak_bytes
from ingest.phantom import Torso
from ingest.testing import SeriesSpec, dicom_slice

LIMIT_BYTES = 2 * 10**9
SLICES = 1000


@pytest.fixture(scope="module")
def thin_slices(tmp_path_factory):
    """A series of 1,000 slices of 512 x 512; eight computed planes take turns."""
    if not os.environ.get("CORALBAY_MEMORY"):
        pytest.skip("half a GB is written and read three times: make memory")
    folder = tmp_path_factory.mktemp("thin")
    few = SeriesSpec(patient=1, torso=Torso(seed=1), slices=8, side=512, pixel_mm=0.7, gap_mm=0.7)
    spec = replace(few, slices=SLICES)
    planes = few.hu()
    for n in range(SLICES):
        path = folder / f"{n:04d}.dcm"
        dicom_slice(spec, planes[n % 8], n, n + 1).save_as(path, enforce_file_format=True)
    return folder


@pytest.mark.parametrize("case", ["1.5", "native", "a missing slice"])
def test_a_worker_stays_under_2_gb_for_a_thousand_slices(case, thin_slices, tmp_path, capsys):
    if case == "a missing slice":
        (thin_slices / "0500.dcm").unlink()  # the last case: regridded over the gap
    spacing = "native" if case == "native" else "1.5"
    code = "import sys; from ingest.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "build-shards", str(thin_slices), str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--spacing-mm", spacing, "--json"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["samples"] == 1
    with capsys.disabled():
        sys.stdout.write(f"\n{case}: {record['worker_peak_bytes'] / 1e9:.2f} GB\n")
    # It holds the slices as float32 at least: a smaller number would be no measurement.
    assert SLICES * 512 * 512 * 4 < record["worker_peak_bytes"] < LIMIT_BYTES


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_memory_is_given_back_and_the_rest_stays():
    array = np.ones((64, 1 << 20), np.uint8)

    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    give_back(array[:48])
    assert before - resident() > 40 << 20
    assert (array[49:] == 1).all()
    assert peak_bytes() > 0.95 * before  # the kernel counts in batches
    give_back(array[:, 5:9])  # no whole page: nothing happens
