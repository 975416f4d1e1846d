"""Series prepared apart from their group: the same bytes, and nothing damaged is taken."""

from dataclasses import replace

import numpy as np
import pytest

import ingest.pipeline
import ingest.work
import ingest.workers
from ingest.config import BuildConfig
from ingest.ids import IdKey
from ingest.output import STATE_FOLDER
from ingest.pipeline import Job, build, plan_build
from ingest.spool import FinishedSeries, Outcome, pack_series, spool_folder, unpack_series
from ingest.terminal import Terminal
from ingest.testing import SeriesSpec, write_dicom_series
from ingest.work import GroupTask, series_tasks, spool_series
from shards.testing import toy_meta
from shards.writer import encode_sample

CONFIG = BuildConfig(spacing_zyx_mm=(6.0, 6.0, 6.0), min_slices=8)
SPEC = SeriesSpec(patient=1, slices=14, side=56, pixel_mm=6.0, gap_mm=5.0)
PATIENTS = 3


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    for patient in range(PATIENTS):
        write_dicom_series(folder / str(patient), replace(SPEC, patient=patient))
    return folder


def run(raw, out, workers=1):
    key = IdKey(key=bytes(32))
    with Terminal() as terminal:
        plan = plan_build([str(raw)], CONFIG, key, terminal)
        return build(plan, CONFIG, key, Job(out=out, workers=workers), terminal)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def reference(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "out"
    run(raw, out)
    return contents(out)


def test_one_group_is_shared_by_two_workers(raw, reference, tmp_path, monkeypatch):
    shared = []
    real = ingest.work.shared_parts

    def note(task):
        shared.append(len(real(task)))
        return real(task)

    monkeypatch.setattr(ingest.pipeline, "shared_parts", note)
    monkeypatch.setattr(ingest.work, "SHARED_FROM_VOXELS", 1)
    manifest = run(raw, tmp_path / "out", workers=2)
    assert set(shared) == {PATIENTS}
    assert len(manifest.shards) == 1
    assert contents(tmp_path / "out") == reference


def test_what_was_kept_is_used_unless_it_is_damaged(raw, reference, tmp_path, monkeypatch):
    out = tmp_path / "out"
    tasks = []

    def keep_two(task: GroupTask):
        tasks.extend(series_tasks(task))
        for part in tasks[:2]:
            spool_series(part)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ingest.pipeline, "build_group", keep_two)
        with pytest.raises(KeyboardInterrupt):
            run(raw, out)
    spool = out / STATE_FOLDER / spool_folder(0)
    kept, damaged = (spool / part.series.key for part in tasks[:2])
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    assert unpack_series(bytes(data), tasks[0].build_sha256) is None
    assert unpack_series(kept.read_bytes(), tasks[0].build_sha256) is not None

    made = []
    real = ingest.work.finish_series

    def note(task):
        made.append(task.series.key)
        return real(task)

    monkeypatch.setattr(ingest.work, "finish_series", note)
    run(raw, out)
    assert made == [part.series.key for part in tasks[1:]]
    assert contents(out) == reference


def test_a_finished_series_comes_back_as_it_was():
    hu = np.arange(40**3, dtype=np.int16).reshape(40, 40, 40) % 1000
    series = FinishedSeries(
        outcome=Outcome(reason="ok", flags=("oblique",)),
        sample=encode_sample(toy_meta("a", hu), hu, "balanced"),
        hu_histogram=[1, 2, 3],
        preview="png",
    )
    refused = FinishedSeries(outcome=Outcome(reason="not_hu", detail="no air"))
    for one in (series, refused):
        whole = pack_series(one, "build")
        assert unpack_series(whole, "build") == one
        assert unpack_series(whole, "another build") is None
    for end in (0, 3, len(whole) // 2, len(whole) - 1):
        assert unpack_series(whole[:end], "build") is None
