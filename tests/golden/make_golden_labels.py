"""Makes the golden dataset with labels: ``python tests/golden/make_golden_labels.py OUT``.

Two computed volumes at their own spacing, one with a DICOM segmentation (a byte a voxel) and one
with a NIfTI label map (two bytes), and a third without labels. What is committed under
``v2-labels`` is never made anew: see ``make_golden.py``.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

from ingest.config import BuildConfig
from ingest.ids import IdKey
from ingest.labels import label_sources
from ingest.phantom import Torso
from ingest.pipeline import Job, build, plan_build
from ingest.terminal import Terminal
from ingest.testing import SeriesSpec, write_dicom_series, write_nifti
from ingest.testing_labels import torso_labels, write_nifti_labels, write_seg

KEY = IdKey(key=bytes(range(32)))
CONFIG = BuildConfig(
    spacing_zyx_mm=None, body_crop=False, source="golden", label_names=((300, "heart"),)
)
SPEC = SeriesSpec(patient=1, slices=20, side=36, pixel_mm=8.0, gap_mm=7.0, bottom_mm=-70.0)
SHAPE_XYZ, MM, BOTTOM = (34, 26, 16), 9.0, -70.0
AFFINE = np.array(
    [[0, 0, -MM, MM * 33 / 2], [0, MM, 0, -MM * 25 / 2], [MM, 0, 0, BOTTOM], [0, 0, 0, 1]]
)
"""(z, y, x) to RAS mm of the NIfTI volumes."""


def nifti_labels() -> np.ndarray:
    """Values 1, 300 and 3 on the NIfTI grid."""
    values = torso_labels(AFFINE, SHAPE_XYZ[::-1]).astype(np.uint16)
    values[values == 2] = 300
    return values


def build_golden(out: Path) -> None:
    """Build the dataset, and beside it the digests that a test holds it to."""
    with tempfile.TemporaryDirectory() as folder, Terminal() as terminal:
        raw, labels = Path(folder, "raw"), Path(folder, "labels")
        images = write_dicom_series(raw / "one", SPEC)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_seg(labels / "one.dcm", images, torso_labels(SPEC.affine, (20, 36, 36)))
        for number in (2, 3):
            write_nifti(raw / f"{number}.nii.gz", Torso(seed=number), SHAPE_XYZ, MM, BOTTOM)
        write_nifti_labels(labels / "2.nii.gz", nifti_labels(), AFFINE)
        sources = label_sources([str(labels)], [str(raw)])
        plan = plan_build([str(raw)], CONFIG, KEY, terminal, labels=sources)
        manifest = build(plan, CONFIG, KEY, Job(out=out), terminal)
    digests = {
        "generation_id": manifest.generation_id,
        "shards": {shard.name: shard.sha256 for shard in manifest.shards},
    }
    out.with_name(f"{out.name}.digest.json").write_text(json.dumps(digests, indent=2) + "\n")


if __name__ == "__main__":
    build_golden(Path(sys.argv[1]))
