"""Makes the golden datasets: ``python tests/golden/make_golden.py tests/golden/v1``, or v2.

Three phantom volumes at their own spacing, uncropped, so that no resampling is involved and the
shard can be made again bit by bit on any CPU with the pinned packages. What is committed under
``v1`` is never made anew: a change of these bytes is a change of the format, and needs a new
version and folder. ``v2`` is its second generation, with a sample withdrawn: that takes version 2.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np

from ingest.config import BuildConfig
from ingest.edit_forget import forget
from ingest.ids import IdKey
from ingest.phantom import Torso, sample_torso
from ingest.pipeline import Job, build, plan_build
from ingest.terminal import Terminal
from ingest.testing import FEET_FIRST_SUPINE, SeriesSpec, write_dicom_series
from shards.schema import Manifest

KEY = IdKey(key=bytes(range(32)))
CONFIG = BuildConfig(spacing_zyx_mm=None, body_crop=False, source="golden")
HEAD_FIRST = SeriesSpec(patient=1, slices=34, side=44, pixel_mm=7.0, gap_mm=5.0)
FEET_FIRST = SeriesSpec(
    patient=2,
    torso=Torso(seed=2, contrast=True),
    slices=34,
    side=40,
    pixel_mm=7.5,
    gap_mm=5.0,
    thickness_mm=8.0,
    orientation=FEET_FIRST_SUPINE,
    top_first=True,
    padding=-2000,
    slice_rescale=True,
)
ABSENT_FROM = 64
"""The third volume is -1024 from this column on: its second chunk is absent."""


def third_volume() -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine of the NIfTI, axes L, P, S."""
    affine = np.array([[-6.0, 0, 0, 190], [0, -6.0, 0, 105], [0, 0, 5.0, -90], [0, 0, 0, 1]])
    hu = sample_torso(Torso(seed=3), affine, (72, 36, 34))
    hu[ABSENT_FROM:] = -1024
    return hu, affine


def write_archive(raw: Path) -> None:
    """The raw files that the golden dataset is built from."""
    write_dicom_series(raw / "one", HEAD_FIRST)
    write_dicom_series(raw / "two", FEET_FIRST)
    nibabel.Nifti1Image(*third_volume()).to_filename(raw / "three.nii")
    (raw / "notes.txt").write_text("One file that is refused.\n")


def build_golden(out: Path) -> None:
    """Build the dataset, and beside it the digests that a test holds it to."""
    with tempfile.TemporaryDirectory() as folder, Terminal() as terminal:
        raw = Path(folder) / "raw"
        raw.mkdir()
        write_archive(raw)
        plan = plan_build([str(raw)], CONFIG, KEY, terminal)
        manifest = build(plan, CONFIG, KEY, Job(out=out), terminal)
    write_digests(out, manifest)


def build_golden_v2(out: Path) -> None:
    """The committed version 1 with its first patient withdrawn."""
    shutil.copytree(Path(__file__).with_name("v1"), out)
    write_digests(out, forget(out, [KEY.id("subject", "", "PHANTOM-1")]).manifest)


def write_digests(out: Path, manifest: Manifest) -> None:
    """What a test holds the dataset to."""
    digests = {
        "generation_id": manifest.generation_id,
        "shards": {shard.name: shard.sha256 for shard in manifest.shards},
    }
    out.with_name(f"{out.name}.digest.json").write_text(json.dumps(digests, indent=2) + "\n")


if __name__ == "__main__":
    {"v1": build_golden, "v2": build_golden_v2}[Path(sys.argv[1]).name](Path(sys.argv[1]))
