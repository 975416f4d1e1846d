import collections
import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest

import ingest.cluster
import ingest.pipeline
import ingest.reader
from ingest.budget import Budget
from ingest.config import BuildConfig, build_digest, parse_spacing
from ingest.errors import FailureBudgetError, IngestError, Reason, UsageError
from ingest.groups import cut_groups, estimated_bytes
from ingest.ids import IdKey
from ingest.phantom import Torso
from ingest.pipeline import Job, build, plan_build
from ingest.series import Series
from ingest.testing import (
    FEET_FIRST_SUPINE,
    SeriesSpec,
    write_dicom_series,
    write_nifti,
    write_series_at,
)
from ingest.workers import _local_cluster, run_tasks
from shards.dataset import Dataset
from shards.verify import verify

KEY = IdKey(key=bytes(range(32)))
COARSE = BuildConfig(spacing_zyx_mm=(6.0, 6.0, 6.0), min_slices=8)
NATIVE = BuildConfig(spacing_zyx_mm=None, body_crop=False, min_slices=8)
SMALL = SeriesSpec(patient=1, slices=14, side=56, pixel_mm=6.0, gap_mm=5.0)


class Ear:
    """A listener that remembers."""

    def __init__(self):
        self.refusals = []
        self.groups = []

    def files(self, count):
        self.scanned = count

    def planned(self, found, groups):
        self.found = found

    def group_done(self, done, groups):
        self.groups.append((done, groups))

    def refused(self, series, outcome):
        self.refusals.append((series.series_id, outcome.reason))


def run(raw, out, config=COARSE, ear=None, **job):
    ear = ear or Ear()
    plan = plan_build([str(path) for path in raw], config, KEY, ear)
    return build(plan, config, KEY, Job(out=out, **job), ear)


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows(out):
    return pq.read_table(out / "series.parquet").to_pylist()


def write_not_hu(path):
    """A volume of a valid shape whose values are a picture's, not HU."""
    values = np.arange(20 * 20 * 12, dtype=np.int16).reshape(20, 20, 12) % 255
    nibabel.Nifti1Image(values, np.diag([3.0, 3.0, 3.0, 1.0])).to_filename(path)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Four volumes of three patients in three containers, and clutter."""
    raw = tmp_path_factory.mktemp("raw")
    write_series_at(raw / "a/one", SMALL)
    write_series_at(
        raw / "a/two.zip", replace(SMALL, patient=2, torso=Torso(seed=2), padding=-2000)
    )
    write_series_at(
        raw / "b/three.tar.gz",
        replace(
            SMALL,
            patient=3,
            torso=Torso(seed=3),
            orientation=FEET_FIRST_SUPINE,
            top_first=True,
            slice_rescale=True,
        ),
    )
    write_nifti(raw / "b/four.nii.gz", Torso(seed=4), (60, 50, 16), 6.0, -40.0)
    write_not_hu(raw / "b/picture.nii")
    write_series_at(raw / "b/short", replace(SMALL, patient=4, slices=3))
    (raw / "a/copy").write_bytes((raw / "a/one/IM0003.dcm").read_bytes())
    (raw / "notes.txt").write_text("nothing to see")
    return raw


@pytest.fixture(scope="module")
def built(archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "out"
    return run([archive], out, replace(COARSE, shard_mib=1)), out


def test_every_file_is_accounted_for(built):
    manifest, out = built
    reasons = collections.Counter()
    for row in rows(out):
        reasons[row["reason"]] += row["n_files"]
        assert (row["verdict"] == "accepted") == (row["reason"] == "ok") == (row["key"] is not None)
    # By hand: 14 slices twice in containers, 14 in the folder, one NIfTI.
    assert reasons == {
        "ok": 43,
        "not_hu": 1,
        "too_few_slices": 3,
        "duplicate_file": 1,
        "not_medical_image": 1,
    }
    totals = manifest.totals
    assert (totals.files_in, totals.files_used, totals.files_refused) == (49, 43, 6)
    assert (totals.samples, totals.series_accepted, totals.series_refused) == (4, 4, 4)
    assert totals.shard_bytes == sum(p.stat().st_size for p in out.glob("*.tar"))
    assert sorted(p.name for p in out.iterdir() if p.name.startswith(".")) == []


def test_the_output_verifies_and_its_keys_are_the_accepted_ones(built):
    _, out = built
    assert verify(out).problems == []
    accepted = {row["key"] for row in rows(out)} - {None}
    assert set(Dataset.open(out).keys()) == accepted
    assert len({r["subject_id"] for r in pq.read_table(out / "index.parquet").to_pylist()}) == 4


@pytest.mark.parametrize(
    "spec",
    [
        SMALL,
        replace(SMALL, top_first=True, slice_rescale=True),
        replace(SMALL, orientation=FEET_FIRST_SUPINE),
        replace(SMALL, padding=-2000),
    ],
)
def test_voxels_and_places_are_the_phantoms(tmp_path, spec):
    write_dicom_series(tmp_path / "raw", spec)
    run([tmp_path / "raw"], tmp_path / "out", NATIVE)
    (sample,) = Dataset.open(tmp_path / "out")
    # Head first, columns run to L as the format has it; feet first they run to R.
    turned = spec.orientation == FEET_FIRST_SUPINE
    expected = spec.hu()[:, :, ::-1] if turned else spec.hu()
    np.testing.assert_array_equal(sample.hu, expected)
    for z, y, x in [(0, 0, 0), (13, 5, 50)]:
        column = spec.side - 1 - x if turned else x
        np.testing.assert_allclose(
            sample.affine @ (z, y, x, 1), spec.affine @ (z, y, column, 1), atol=1e-4
        )


def test_resampled_organs_stay_where_they_are(tmp_path):
    write_nifti(tmp_path / "v.nii.gz", Torso(seed=1), (110, 76, 40), 3.0, -90.0)
    config = BuildConfig(spacing_zyx_mm=(2.0, 2.0, 2.0))
    run([tmp_path / "v.nii.gz"], tmp_path / "out", config)
    (sample,) = Dataset.open(tmp_path / "out")
    inverse = np.linalg.inv(sample.affine)
    for ras, low, high in [((60, 10, -60), 30, 90), ((62, -20, 20), -900, -800)]:
        z, y, x = (round(v) for v in (inverse @ (*ras, 1))[:3])
        assert low < sample.hu[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2].mean() < high


def test_bytes_do_not_depend_on_order_names_or_workers(archive, built, tmp_path):
    _, reference = built
    config = replace(COARSE, shard_mib=1)
    again = tmp_path / "again"
    run([archive], again, config)
    assert digests(again) == digests(reference)

    # The same files elsewhere, under other names, given apart and in another order.
    moved = tmp_path / "moved"
    shutil.copytree(archive / "a/one", moved / "zz")
    for n, path in enumerate(sorted((moved / "zz").iterdir(), reverse=True)):
        path.rename(moved / f"zz/{n:03d}")
    for path in ("a/two.zip", "b/three.tar.gz", "b/four.nii.gz", "b/picture.nii", "notes.txt"):
        shutil.copy(archive / path, moved)
    shutil.copytree(archive / "b/short", moved / "short")
    shutil.copy(archive / "a/copy", moved / "copy")
    sources = sorted(moved.iterdir(), key=lambda p: hashlib.md5(p.name.encode()).digest())
    shuffled = tmp_path / "shuffled"
    run(sources, shuffled, config)
    assert digests(shuffled) == digests(reference)


def test_bytes_do_not_depend_on_workers(archive, tmp_path, monkeypatch):
    # So small that each volume is a group: four tasks for two workers.
    monkeypatch.setattr(ingest.pipeline, "cut_groups", lambda s, mm, size: cut_groups(s, mm, 1))
    one = run([archive], tmp_path / "one", workers=1)
    two = run([archive], tmp_path / "two", workers=2)
    assert len(one.shards) == 4
    assert one == two
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_a_stopped_build_goes_on_where_it_was(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(ingest.pipeline, "cut_groups", lambda s, mm, size: cut_groups(s, mm, 1))
    run([archive], tmp_path / "whole")
    built_groups = []
    real = ingest.pipeline.build_group

    def stops_at_third(task):
        if len(built_groups) == 2:
            raise KeyboardInterrupt
        built_groups.append(task.group.number)
        return real(task)

    out = tmp_path / "out"
    monkeypatch.setattr(ingest.pipeline, "build_group", stops_at_third)
    with pytest.raises(KeyboardInterrupt):
        run([archive], out)
    assert not (out / "manifest.json").exists()
    # One of the two finished shards is damaged in the meantime, and so has to be made again.
    damaged = out / f"shard-{built_groups[0]:06d}.tar"
    if not damaged.exists():  # That group was refused whole.
        damaged = out / f"shard-{built_groups[1]:06d}.tar"
    data = bytearray(damaged.read_bytes())
    data[-2000] ^= 1
    damaged.write_bytes(data)

    second = []
    monkeypatch.setattr(
        ingest.pipeline, "build_group", lambda task: second.append(task.group.number) or real(task)
    )
    run([archive], out)
    assert int(damaged.stem.split("-")[1]) in second
    assert len(second) == 5 - 1  # Five groups, of which one was kept.
    assert digests(out) == digests(tmp_path / "whole")


def test_a_complete_build_is_left_alone(archive, built):
    manifest, out = built
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run([archive], out, replace(COARSE, shard_mib=1)) == manifest
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_another_build_is_refused_in_an_output_that_is_taken(archive, built, tmp_path):
    _, out = built
    with pytest.raises(UsageError, match="other inputs or settings; give another OUT"):
        run([archive], out, COARSE)
    with pytest.raises(UsageError, match="other inputs or settings"):
        run([archive / "a"], out, replace(COARSE, shard_mib=1))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.doc").write_text("")
    with pytest.raises(UsageError, match="not empty"):
        run([archive], foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.doc"]


def test_an_unfinished_build_of_other_settings_is_not_mixed_in(archive, tmp_path, monkeypatch):
    def stop(task):
        raise KeyboardInterrupt

    monkeypatch.setattr(ingest.pipeline, "build_group", stop)
    with pytest.raises(KeyboardInterrupt):
        run([archive], tmp_path / "out")
    with pytest.raises(UsageError, match="unfinished build"):
        run([archive], tmp_path / "out", NATIVE)


def test_when_all_pixels_are_refused_nothing_is_left(tmp_path):
    write_not_hu(tmp_path / "picture.nii")
    ear = Ear()
    with pytest.raises(IngestError, match="none accepted"):
        run([tmp_path / "picture.nii"], tmp_path / "out", ear=ear)
    assert [reason for _, reason in ear.refusals] == ["not_hu"]
    assert not (tmp_path / "out").exists()


def test_a_bug_stops_the_run_and_names_the_series(archive, tmp_path, monkeypatch):
    def broken(series):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(ingest.reader, "read_series", broken)
    ear = Ear()
    with pytest.raises(ZeroDivisionError) as caught:
        run([archive], tmp_path / "out", ear=ear)
    ids = {s.series_id for s in ear.found.series if s.reason == Reason.OK}
    assert any(one in note for note in caught.value.__notes__ for one in ids)
    assert not (tmp_path / "out/manifest.json").exists()


def fake_series(reason=Reason.OK, key="k", shape=(10, 10, 10), mm=(1.0, 1.0, 1.0), **more):
    return Series(
        series_id=key, key=key, subject_id="s", study_id="t", source_kind="dicom", refs=(),
        reason=reason, n_files=1, shape_zyx=shape, spacing_zyx_mm=mm, **more,
    )  # fmt: skip


def test_the_budget_counts_broken_series_only_and_not_few():
    ok, broken = fake_series(), fake_series(Reason.TRUNCATED_FILE)
    ruled_out = fake_series(Reason.LOCALIZER)
    Budget([ok] * 9 + [broken] * 10, 0.1)  # 19 series: on probation.
    Budget([ok] * 18 + [broken] * 2, 0.1)  # 2 of 20 is the limit itself.
    Budget([ruled_out] * 30, 0.0)
    Budget([broken] * 30, 1.0)
    with pytest.raises(FailureBudgetError, match=r"3 of 20 .* --max-failures 0\.1"):
        Budget([ok] * 17 + [broken] * 3, 0.1)
    late = Budget([ok] * 20, 0.0)
    late.count("not_hu")
    with pytest.raises(FailureBudgetError):
        late.count("decode_failed")


def test_groups_fill_up_in_key_order_and_a_large_volume_stands_alone():
    sizes = {"a": 10, "b": 10, "c": 30, "d": 10, "e": 10, "f": 10}
    series = [fake_series(key=k, shape=(n, 100, 100)) for k, n in reversed(sizes.items())]
    one = estimated_bytes(fake_series(shape=(10, 100, 100)), None)
    groups = cut_groups(series, None, 2 * one)
    assert ["".join(s.key for s in g.series) for g in groups] == ["ab", "c", "de", "f"]
    assert [g.number for g in groups] == [0, 1, 2, 3]
    assert groups[1].estimated_bytes > 2 * one
    assert cut_groups([], None, 1) == []


def test_size_is_estimated_on_the_target_grid():
    # floor(9 * 3 / 1.5) + 1 = 19 slices of floor(99 * 0.75 / 1.5) + 1 = 50 squared.
    series = fake_series(shape=(10, 100, 100), mm=(3.0, 0.75, 0.75))
    native = estimated_bytes(series, None)
    target = estimated_bytes(series, (1.5, 1.5, 1.5))
    assert target / native == pytest.approx(19 * 50 * 50 / (10 * 100 * 100), rel=1e-3)


def test_the_digest_of_a_build_covers_inputs_settings_and_key_but_not_order():
    series = [fake_series(key="a"), fake_series(key="b")]
    digest = build_digest(COARSE, "f", series)
    assert build_digest(COARSE, "f", series[::-1]) == digest
    others = [
        build_digest(COARSE, "g", series),
        build_digest(replace(COARSE, body_crop=False), "f", series),
        build_digest(COARSE, "f", series[:1]),
        build_digest(COARSE, "f", [*series[:1], fake_series(Reason.LOCALIZER, key="b")]),
    ]
    assert len({digest, *others}) == 5


@pytest.mark.parametrize(
    ("text", "spacing"),
    [("1.5", (1.5, 1.5, 1.5)), ("3,1,0.8", (3.0, 1.0, 0.8)), ("native", None)],
)
def test_spacing_is_read(text, spacing):
    assert parse_spacing(text) == spacing


@pytest.mark.parametrize("text", ["", "x", "1,2", "1,2,3,4", "0", "-1", "nan", "1000", "1,0,1"])
def test_spacing_that_cannot_be_is_refused(text):
    with pytest.raises(ValueError, match="--spacing-mm"):
        BuildConfig(spacing_zyx_mm=parse_spacing(text))


def test_a_dead_worker_is_said_in_a_line():
    import os

    with pytest.raises(IngestError, match="worker process died"):
        list(run_tasks(os._exit, [1, 1], 2))


def test_a_running_cluster_gives_the_same_bytes(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(ingest.pipeline, "cut_groups", lambda s, mm, size: cut_groups(s, mm, 1))
    here = run([archive], tmp_path / "here", workers=1)
    with _local_cluster(2) as client:
        address = client.scheduler.address
        there = run([archive], tmp_path / "there", dask_scheduler=address)
    assert there == here
    assert digests(tmp_path / "there") == digests(tmp_path / "here")


def test_a_scheduler_that_does_not_answer_is_said_in_a_line(monkeypatch):
    monkeypatch.setattr(ingest.cluster, "CONNECT_S", 0.2)
    with pytest.raises(UsageError, match="no scheduler answers there"):
        list(run_tasks(len, ["a"], 1, "tcp://127.0.0.1:9"))


def test_workers_with_several_threads_are_refused():
    from distributed import LocalCluster

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        pytest.raises(UsageError, match="--nthreads 1"),
    ):
        list(run_tasks(len, ["a"], 1, cluster.scheduler_address))


def test_real_archive_in_one_run(ct_data, tmp_path):
    """Expected volumes: the data folder's README; NIfTI `sm` is 30 slices of the other."""
    manifest = run([ct_data], tmp_path / "out", BuildConfig(shard_mib=16), workers=2)
    assert len(manifest.shards) > 1
    table = rows(tmp_path / "out")
    assert sum(row["n_files"] for row in table) == manifest.totals.files_in
    assert manifest.totals.files_in == manifest.totals.files_used + manifest.totals.files_refused
    accepted = {
        (row["source_kind"], tuple(row["shape_zyx"]))
        for row in table
        if row["verdict"] == "accepted"
    }
    assert accepted == {
        ("dicom", (133, 512, 512)),  # LIDC-IDRI-0001
        ("dicom", (28, 512, 512)),  # Philips, 5 mm
        ("dicom", (30, 560, 512)),  # Philips, tilted
        ("dicom", (37, 611, 512)),  # GE head, 28 slices, tilted and unevenly spaced
        ("dicom", (49, 512, 512)),  # ACRIN, axial
        ("dicom", (20, 512, 512)),  # TotalSegmentator, JPEG 2000
        ("nifti", (112, 101, 122)),
        ("nifti", (30, 101, 122)),
    }
    taken = [row for row in table if row["verdict"] == "accepted"]
    by_slices = {row["n_slices"]: row for row in taken if row["geometry"] == "uniform"}
    regridded = {row["geometry"]: row["flags"] for row in taken if row["geometry"] != "uniform"}
    assert regridded.keys() == {"tilted", "tilted_variable"}
    assert all(geometry in flags for geometry, flags in regridded.items())
    tilted = next(row["detail"] for row in taken if row["geometry"] == "tilted")
    cost = "regridded, mean 4.3 HU off at the true slice positions"
    assert tilted == f"slices are sheared by 18.5 degrees (gantry tilt); {cost}"
    # From slice positions: 133 slices 2.5 mm apart, and so on; thickness would say 5 for ACRIN.
    for slices, mm in ((133, 2.5), (28, 5.0), (49, 4.0), (20, 2.0)):
        assert by_slices[slices]["spacing_zyx_mm"][0] == pytest.approx(mm, abs=1e-3)
    assert verify(tmp_path / "out").problems == []
    index = pq.read_table(tmp_path / "out/index.parquet").to_pylist()
    # 20 slices of 2 mm come to 26 of 1.5 mm: too thin for the network.
    assert sorted(row["trainable"] for row in index) == [False] + [True] * 7
    assert Path(tmp_path / "out/report.html").stat().st_size > 10_000
