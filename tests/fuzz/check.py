"""One harmed input through scan and build, and all that must hold whatever came out."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import ingest.pipeline
from ingest import streams
from ingest.config import BuildConfig
from ingest.errors import IngestError, Reason
from ingest.ids import IdKey
from ingest.pipeline import Job, Plan
from ingest.scan import ScanResult
from ingest.series import Series
from ingest.work import Outcome
from shards.dataset import Dataset, Sample
from shards.verify import verify
from tests.fuzz.harm import Case
from tests.fuzz.seeds import OUTSIDE, seed

KEY = IdKey(key=bytes(range(32)))
CONFIGS = {
    False: BuildConfig(spacing_zyx_mm=None, body_crop=False, min_slices=3),
    True: BuildConfig(min_slices=3),
}
BOMB_BYTES = 2 << 20
"""Archives may expand to this here, not to a gibibyte: the seeds' bombs are small."""


@dataclass
class Result:
    """What became of a case.

    Attributes:
        problems: what must not be; empty when all is well.
        reasons: files by reason.
        content: how each accepted volume compares with the unharmed one.
    """

    problems: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    content: list[str] = field(default_factory=list)


class Silent:
    """A listener that remembers the scan, and the files refused by reason."""

    def __init__(self) -> None:
        self.found: ScanResult | None = None
        self.reasons: Counter[str] = Counter()

    def files(self, count: int) -> None: ...

    def planned(self, found: ScanResult, groups: int) -> None:
        self.found = found

    def group_done(self, done: int, groups: int) -> None: ...

    def refused(self, series: Series, outcome: Outcome) -> None:
        self.reasons[outcome.reason] += series.n_files


def run_case(case: Case, box: Path) -> Result:
    """Write ``case`` under the empty folder ``box``, build it there, and judge.

    An exception that is not the tool's own one-line error is a problem, not raised.
    """
    raw, out, scratch = box / "raw", box / "out", box / "tmp"
    for folder in (raw, scratch):
        folder.mkdir()
    for name, data in case.files.items():
        (raw / name).write_bytes(data)
    before = _listing(raw)
    result = Result()
    streams.RATIO_FLOOR_BYTES = BOMB_BYTES
    tempfile.tempdir = str(scratch)
    try:
        _build(case, raw, out, result)
    except Exception as exc:  # the very thing that must not happen
        result.problems.append(f"{type(exc).__name__}: {exc}"[:300])
    finally:
        tempfile.tempdir = None
    if _listing(raw) != before:
        result.problems.append("the input was changed")
    if strays := sorted({path.name for path in box.iterdir()} - {"raw", "out", "tmp"}):
        result.problems.append(f"written outside OUT: {strays}")
    if any(scratch.iterdir()):
        result.problems.append("temporary files are left")
    for path in (Path(OUTSIDE), box.parent / "escaped", box.parent.parent / "escaped"):
        if path.exists():
            result.problems.append(f"written outside OUT: {path}")
    return result


def _listing(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _build(case: Case, raw: Path, out: Path, result: Result) -> None:
    ear = Silent()
    config = CONFIGS[case.default_config]
    try:
        plan = ingest.pipeline.plan_build([str(raw)], config, KEY, ear)
        ingest.pipeline.build(plan, config, KEY, Job(out=out, max_failures=1.0), ear)
    except IngestError as exc:
        # Nothing to build is a verdict on every file, and leaves nothing behind.
        if "\n" in str(exc) or "none accepted" not in str(exc):
            result.problems.append(f"not a one-line verdict: {exc}")
        if out.exists():
            result.problems.append("OUT is left although nothing was accepted")
        if ear.found is not None:
            result.reasons.update(_reasons(ear.found))
            _count(case, ear.found, result)
        return
    _count(case, plan.found, result)
    _judge_output(case, plan, out, result)


def _reasons(found: ScanResult) -> Counter[str]:
    counts: Counter[str] = Counter()
    for series in found.series:
        # What the headers pass here, the pixels refused: nothing was accepted.
        reason = "refused_by_pixels" if series.reason is Reason.OK else str(series.reason)
        counts[reason] += series.n_files
    return counts


def _count(case: Case, found: ScanResult, result: Result) -> None:
    """Every file in one row, and none that names what went wrong inside us."""
    if sum(series.n_files for series in found.series) != found.n_files:
        result.problems.append("the rows do not add up")
    if case.seed.name in _PLAIN and not case.packed and found.n_files != len(case.files):
        result.problems.append(f"{found.n_files} files counted, {len(case.files)} are there")
    # A multi-frame file is named once for each frame; its phases may be rows of their own.
    files = {ref for series in found.series for ref in series.refs}
    if len(files) != found.n_files:
        result.problems.append(f"{len(files)} files in the rows, {found.n_files} were found")
    for series in found.series:
        if "MemoryError" in series.detail or "RecursionError" in series.detail:
            result.problems.append(f"refused only by running out: {series.detail}")


_PLAIN = {"explicit", "implicit", "big-endian", "deflated", "rle", "jpeg-ls", "jpeg-2000",
          "jpeg-lossless", "multi-frame", "nii", "nii-2", "nii-float"}  # fmt: skip
"""Seeds whose files are counted one by one, whatever harm makes them look like."""


def _judge_output(case: Case, plan: Plan, out: Path, result: Result) -> None:
    rows = pq.read_table(out / "series.parquet").to_pylist()
    for row in rows:
        result.reasons[row["reason"]] += row["n_files"]
    if sum(result.reasons.values()) != plan.found.n_files:
        result.problems.append("series.parquet does not add up")
    if unknown := set(result.reasons) - {str(reason) for reason in Reason}:
        result.problems.append(f"unknown reasons {unknown}")
    if (out / ".build").exists():
        result.problems.append("the state folder is left")
    if (found := verify(out)).problems:
        result.problems.append(f"verify: {found.problems[0]}")
    for sample in Dataset.open(out):
        _judge_volume(case, sample, result)


def _judge_volume(case: Case, sample: Sample, result: Result) -> None:
    """Never blank; the unharmed volume, or one whose difference is named."""
    hu = sample.hu
    if hu.min() == hu.max() or not 0.001 <= np.mean(hu >= -200) <= 0.999:
        result.problems.append(f"a blank volume was accepted: {hu.min()} to {hu.max()} HU")
    if not np.isfinite(sample.affine).all() or math.prod(hu.shape) == 0:
        result.problems.append("a volume without a place or without voxels was accepted")
    kind = compare(sample, case.default_config)
    result.content.append(kind)
    if case.harm == "cut" and case.seed.name in _CUT_SAFE and kind in ("voxels", "other"):
        result.problems.append(f"a cut file changed the voxels of an accepted volume ({kind})")


_CUT_SAFE = {"explicit", "implicit", "big-endian", "deflated", "rle", "jpeg-ls", "jpeg-lossless",
             "nii", "nii-2", "nii-float", "nii.gz", "dcm.gz", "zip", "zip-stored", "tar", "tar.gz",
             "tar.bz2", "tar.xz", "jpeg-2000"}  # fmt: skip
"""Where a file that ends early must be refused, never decoded to something else."""


def compare(sample: Sample, default_config: bool) -> str:
    """How an accepted volume differs from the unharmed one.

    ``equal``: not at all. ``flagged``: it says that it was regridded, or what was noticed.
    ``fewer``: end slices are gone, the others are the same. ``place``: same voxels, elsewhere.
    ``voxels``: other values on the same grid, as a flipped bit of a pixel gives. ``resampled``:
    not compared, as it was resampled. ``other``: another shape.
    """
    truth = unharmed(default_config)
    if sample.meta.content_sha256 == truth.meta.content_sha256:
        return "equal"
    if any(not flag.startswith("kernel_") for flag in sample.meta.flags):
        return "flagged"
    if default_config:
        return "resampled"
    if 0 < len(sample.hu) < len(truth.hu):
        for start in range(len(truth.hu) - len(sample.hu) + 1):
            if np.array_equal(sample.hu, truth.hu[start : start + len(sample.hu)]):
                return "fewer"
    if sample.hu.shape == truth.hu.shape:
        return "place" if np.array_equal(sample.hu, truth.hu) else "voxels"
    return "other"


@cache
def unharmed(default_config: bool) -> Sample:
    """The volume that every whole seed gives."""
    box = Path(tempfile.mkdtemp(prefix="coralbay-fuzz-"))
    try:
        for name, data in seed("explicit").files.items():
            (box / name).write_bytes(data)
        config, ear = CONFIGS[default_config], Silent()
        plan = ingest.pipeline.plan_build([str(box)], config, KEY, ear)
        ingest.pipeline.build(plan, config, KEY, Job(out=box / "out"), ear)
        [sample] = Dataset.open(box / "out")
        return sample
    finally:
        shutil.rmtree(box)


def own_box(parent: Path, index: int) -> Path:
    """An empty folder for one case, two levels below ``parent``, so that ``../..`` stays inside."""
    box = parent / f"case-{os.getpid()}-{index}" / "box"
    box.mkdir(parents=True)
    return box
