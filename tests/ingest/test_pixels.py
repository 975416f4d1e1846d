"""Pixel hashes: the same voxels have one name, and copies are built once."""

import json
import shutil
import zipfile
from dataclasses import replace

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.uid import JPEGLSLossless, generate_uid

from ingest.config import BuildConfig
from ingest.duplicates import HashTask, find_copies, hash_series
from ingest.errors import Reason
from ingest.exclude import read_exclusions
from ingest.paths import write_paths
from ingest.phantom import Torso
from ingest.pipeline import Job, build, plan_build
from ingest.pixels import pixel_sha256, series_sha256
from ingest.reader import read_series
from ingest.scan import ScanConfig, scan
from ingest.testing import FEET_FIRST_SUPINE, SeriesSpec, write_dicom_series
from shards.dataset import Dataset

SMALL = SeriesSpec(patient=1, slices=12, side=40, pixel_mm=8.0, gap_mm=5.0)
CONFIG = BuildConfig(spacing_zyx_mm=(8.0, 8.0, 8.0))


class Quiet:
    """A listener that says nothing."""

    def files(self, count):
        pass

    def planned(self, found, groups):
        pass

    def group_done(self, done, groups):
        pass

    def refused(self, series, outcome):
        pass


def run(raw, out, id_key, exclusions=None, **job):
    more = () if exclusions is None else (exclusions,)
    plan = plan_build([str(raw)], CONFIG, id_key, Quiet(), *more)
    return build(plan, CONFIG, id_key, Job(out=out, **job), Quiet())


def rows(out):
    return pq.read_table(out / "series.parquet").to_pylist()


def export_nifti(path, series):
    """As a converter would: LPI-first axes, padding as it was stored, HU as int16."""
    volume = read_series(series)
    hu = np.where(volume.hu == -1024, -2000, volume.hu).astype(np.int16)
    affine = volume.affine[:, [2, 1, 0, 3]]
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(hu.transpose(2, 1, 0), affine))
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    image.to_filename(path)


def under_other_uids(source, target, *, syntax=None):
    """The same images as another archive would hand them out: new UIDs, names and patient."""
    target.mkdir(parents=True)
    study, series = generate_uid(), generate_uid()
    for number, path in enumerate(sorted(source.iterdir(), reverse=True)):
        ds = pydicom.dcmread(path)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.PatientID, ds.InstanceNumber = "ANON", number
        if syntax is not None:
            ds.compress(syntax)
        ds.save_as(target / f"{number:04d}")


@pytest.fixture(scope="module")
def copies(tmp_path_factory, id_key):
    """One padded volume three times, and two that only look like it."""
    raw = tmp_path_factory.mktemp("copies")
    spec = replace(SMALL, padding=-2000)
    write_dicom_series(raw / "original", spec)
    under_other_uids(raw / "original", raw / "copy", syntax=JPEGLSLossless)
    [series] = scan([str(raw / "original")], id_key).series
    export_nifti(raw / "copy.nii.gz", series)
    write_dicom_series(raw / "other-kernel", replace(spec, number=2, torso=Torso(seed=9)))
    write_dicom_series(raw / "moved", replace(spec, number=3, bottom_mm=-75.0))
    return raw


def test_the_same_scan_has_one_hash_in_any_form(copies, id_key):
    accepted = [s for s in scan([str(copies)], id_key).series if s.reason == "ok"]
    hashes = {}
    for series in accepted:
        name = series.refs[0].path.removeprefix(str(copies)).split("/")[1]
        hashes[name] = series_sha256(series)
    assert len(hashes) == 5
    assert hashes["copy"] == hashes["copy.nii.gz"] == hashes["original"]
    assert len(set(hashes.values())) == 3


def test_orientation_of_storage_drops_out_and_padding_is_air():
    rng = np.random.default_rng(1)
    hu = rng.integers(-1024, 3000, (4, 5, 6)).astype(np.float32)
    affine = np.eye(4)[:, [2, 1, 0, 3]] @ np.diag([2.0, 1, 1, 1])
    reference = pixel_sha256(hu, affine)
    flipped = affine.copy()
    flipped[:, 1] *= -1
    assert pixel_sha256(hu[:, ::-1].copy(), flipped) == reference
    assert pixel_sha256(hu.transpose(2, 0, 1).copy(), affine[:, [2, 0, 1, 3]]) == reference
    padded = np.where(hu < -900, -3024, hu).astype(np.float32)
    assert pixel_sha256(padded, affine) == reference
    assert pixel_sha256(hu + np.float32(0.3), affine) == reference  # rounding
    changed = hu.copy()
    changed[1, 2, 3] += 1
    assert pixel_sha256(changed, affine) != reference
    assert pixel_sha256(hu, affine[:, [0, 2, 1, 3]]) != reference  # mirrored is another scan


def test_real_scans_as_nifti(ct_data, id_key, tmp_path):
    """A tilted one too: a converter without regridding writes its slices as they are stored."""
    places = ("totalsegmentator/example_ct_dicom", "dcm_qa_ct/Philips_S21610_tilt-18.5.tar.gz")
    for number, place in enumerate(places):
        [series] = [s for s in scan([str(ct_data / place)], id_key).series if s.reason == "ok"]
        stored = series
        if series.regridding is not None:
            shape = series.regridding.stored_shape_zyx
            stored = replace(series, regridding=None, shape_zyx=shape)
        path = tmp_path / f"{number}.nii"
        export_nifti(path, stored)
        [again] = scan([str(path)], id_key).series
        assert series_sha256(again) == series_sha256(series)


def test_copies_are_built_once_whatever_the_workers(copies, tmp_path, id_key):
    manifest = run(copies, tmp_path / "one", id_key)
    assert manifest.totals.samples == 3
    refused = [row for row in rows(tmp_path / "one") if row["verdict"] == "refused"]
    assert [row["reason"] for row in refused] == ["duplicate_series"] * 2
    assert manifest.totals.files_in == 12 * 4 + 1

    moved = tmp_path / "moved"
    for name in ("moved", "copy", "original", "other-kernel"):
        shutil.copytree(copies / name, moved / name[::-1])
    shutil.copy(copies / "copy.nii.gz", moved / "a.nii.gz")
    assert run(moved, tmp_path / "two", id_key, workers=2) == manifest


def test_the_copy_with_the_lowest_key_stays(copies, id_key):
    found = scan([str(copies)], id_key)
    same = [s for s in found.series if "original" in s.refs[0].path or "copy" in s.refs[0].path]
    copied = find_copies(found.series, lambda tasks: map(hash_series, tasks))
    assert set(copied) == {s.key for s in same} - {min(s.key for s in same)}
    assert {reason for reason, _ in copied.values()} == {Reason.DUPLICATE_SERIES}
    assert find_copies(found.series[::-1], lambda tasks: map(hash_series, tasks)) == copied


def test_few_slices_are_read_to_tell_volumes_apart(tmp_path, id_key):
    """Another kernel on the same grid: one slice of each is enough."""
    write_dicom_series(tmp_path / "a", SMALL)
    write_dicom_series(tmp_path / "b", replace(SMALL, number=2, torso=Torso(seed=9)))
    asked: list[HashTask] = []

    def count(tasks):
        asked.extend(tasks)
        return map(hash_series, tasks)

    assert find_copies(scan([str(tmp_path)], id_key).series, count) == {}
    assert [task.whole for task in asked] == [False, False]


def test_a_copy_that_lies_feet_first_is_found(tmp_path, id_key):
    write_dicom_series(tmp_path / "a", SMALL)
    turned = replace(SMALL, number=2, orientation=FEET_FIRST_SUPINE, slice_rescale=True)
    write_dicom_series(tmp_path / "b", turned)
    found = scan([str(tmp_path)], id_key)
    assert len(find_copies(found.series, lambda tasks: map(hash_series, tasks))) == 1


def test_a_multi_frame_copy_of_real_slices_is_found(ct_data, tmp_path, id_key):
    with zipfile.ZipFile(ct_data / "rse-panimg/enhanced-vs-classic.zip") as archive:
        for name in archive.namelist():
            if name.endswith(".dcm"):
                (tmp_path / name.replace("/", "-")).write_bytes(archive.read(name))
    (enhanced,) = tmp_path.glob("*volume.dcm")
    ds = pydicom.dcmread(enhanced)
    ds.SeriesInstanceUID, ds.SOPInstanceUID = generate_uid(), generate_uid()
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.save_as(enhanced)
    found = scan([str(tmp_path)], id_key, ScanConfig(min_slices=7))
    taken = [s for s in found.series if s.reason == "ok"]
    assert sorted(s.n_files for s in taken) == [1, 7]
    copied = find_copies(found.series, lambda tasks: map(hash_series, tasks))
    assert [reason for reason, _ in copied.values()] == [Reason.DUPLICATE_SERIES]
    write_paths(tmp_path / "list", found.series)  # one line a file, not a frame
    lines = [json.loads(line)["paths"] for line in (tmp_path / "list").read_text().splitlines()]
    assert sorted(map(len, lines)) == [1, 7]


def test_a_copy_of_an_excluded_series_is_excluded_too(copies, tmp_path, id_key):
    original = pydicom.dcmread(next((copies / "original").iterdir()))
    (tmp_path / "list").write_text(f"{original.SeriesInstanceUID}\n")
    run(copies, tmp_path / "out", id_key, read_exclusions([tmp_path / "list"]))
    reasons = sorted(row["reason"] for row in rows(tmp_path / "out"))
    assert reasons == ["excluded", "excluded", "excluded", "ok", "ok"]
    assert {s.meta.source_kind for s in Dataset.open(tmp_path / "out")} == {"dicom"}


def test_an_interrupted_build_does_not_look_for_copies_again(copies, tmp_path, id_key, monkeypatch):
    import ingest.pipeline

    real, calls = ingest.pipeline.build_group, []

    def stop(task):
        raise KeyboardInterrupt

    monkeypatch.setattr(ingest.pipeline, "build_group", stop)
    with pytest.raises(KeyboardInterrupt):
        run(copies, tmp_path / "out", id_key)
    monkeypatch.setattr(ingest.pipeline, "build_group", real)
    monkeypatch.setattr(ingest.pipeline, "find_copies", lambda *args: calls.append(args) or {})
    manifest = run(copies, tmp_path / "out", id_key)
    assert calls == []
    assert manifest.totals.samples == 3
