"""A dataset lives: appended to, withdrawn from, compacted, merged; one generation after another."""

import base64
import hashlib
import io
import json
import shutil
from collections import Counter
from dataclasses import replace

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest

from ingest.cli import main
from ingest.config import BuildConfig
from ingest.edit import EDIT_FOLDER
from ingest.edit_append import append, join_versions
from ingest.edit_forget import compact, forget
from ingest.edit_merge import merge
from ingest.errors import UsageError
from ingest.exclude import NO_EXCLUSIONS, Exclusions
from ingest.ids import IdKey
from ingest.phantom import Torso
from ingest.pipeline import Job, build, plan_build
from ingest.record import BUILD_RECORD, one_way
from ingest.terminal import Terminal
from ingest.testing import SeriesSpec, write_nifti, write_series_at
from shards.codec import read_chunk_index
from shards.dataset import Dataset
from shards.verify import verify

KEY = IdKey(key=bytes(range(32)))
CONFIG = BuildConfig(spacing_zyx_mm=(6.0, 6.0, 6.0), min_slices=8, shard_mib=1)
SMALL = SeriesSpec(patient=1, slices=14, side=56, pixel_mm=6.0, gap_mm=5.0)


def spec(patient, **changes):
    return replace(SMALL, patient=patient, torso=Torso(seed=patient), **changes)


def built(raw, out, config=CONFIG, key=KEY):
    with Terminal() as terminal:
        plan = plan_build([str(raw)], config, key, terminal)
        return build(plan, config, key, Job(out=out), terminal)


def appended(raw, out, key=KEY, exclusions=NO_EXCLUSIONS, **given):
    with Terminal() as terminal:
        return append([str(raw)], given, key, Job(out=out), terminal, exclusions)


def rows(out):
    return pq.read_table(out / "series.parquet").to_pylist()


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def whole(out):
    """The manifest of a dataset that verifies, adds up, and has nothing lying about."""
    assert verify(out).problems == []
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []
    manifest = Dataset.open(out).manifest
    record = json.loads((out / BUILD_RECORD).read_text())
    assert record["generation_id"] == manifest.generation_id
    dataset = Dataset.open(out)
    voxels = sum(sample.hu.size for sample in dataset)
    assert sum(record["hu_histogram"]) == voxels
    assert sum(row["n_files"] for row in rows(out)) == manifest.totals.files_in
    return manifest


def subject_of(out, patient, key=KEY):
    """The subject id, made here from the PatientID that the phantom's files state."""
    return key.id("subject", "", f"PHANTOM-{patient}")


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Three deliveries of a hospital: patients 1 and 2; then 2 again, 3 and clutter; then 4."""
    root = tmp_path_factory.mktemp("raw")
    for name, patients in (("first", (1, 2)), ("second", (2, 3)), ("third", (4,))):
        for patient in patients:
            write_series_at(root / name / f"p{patient}", spec(patient))
        (root / name / "notes.txt").write_text(f"notes of the {name}")
    write_series_at(root / "first/p1 short", spec(1, number=2, slices=3))
    write_nifti(root / "second/four.nii.gz", Torso(seed=9), (60, 50, 16), 6.0, -40.0)
    return root


@pytest.fixture(scope="module")
def base(archives, tmp_path_factory):
    out = tmp_path_factory.mktemp("base") / "out"
    built(archives / "first", out)
    return out


@pytest.fixture
def out(base, tmp_path):
    return shutil.copytree(base, tmp_path / "out")


@pytest.fixture(scope="module")
def pair(archives, base, tmp_path_factory):
    """The first two deliveries."""
    out = shutil.copytree(base, tmp_path_factory.mktemp("pair") / "out")
    appended(archives / "second", out)
    return out


@pytest.fixture
def both(pair, tmp_path):
    return shutil.copytree(pair, tmp_path / "both")


def test_append_adds_shards_and_leaves_the_others(archives, base, out):
    before = whole(base)
    done = appended(archives / "second", out)
    after = whole(out)
    assert after == done.manifest
    assert (after.generation, after.format_version) == (2, 1)
    # By hand: 14 slices of patient 2 are known; 14 of patient 3, a NIfTI and a text are new.
    assert (done.files, done.known_files, done.samples) == (30, 14, 2)
    assert done.reasons == {"not_medical_image": 1}
    assert after.totals.files_in == before.totals.files_in + 16
    assert (before.totals.samples, after.totals.samples) == (2, 4)
    numbers = [int(shard.name[6:12]) for shard in after.shards]
    assert numbers == list(range(len(before.shards) + len(numbers) - len(before.shards)))
    for shard in before.shards:
        assert shard in after.shards
        for name in (shard.name, shard.idx.name, shard.refs.name):
            assert (out / name).read_bytes() == (base / name).read_bytes()
    assert after.generation_id != before.generation_id


def test_what_is_appended_is_what_a_build_makes(archives, out, tmp_path):
    appended(archives / "second", out)
    built(archives / "second", tmp_path / "alone")
    alone = {sample.meta.key: sample for sample in Dataset.open(tmp_path / "alone")}
    dataset = Dataset.open(out)
    for key in set(alone) & set(dataset.keys()):
        assert dataset.sample(key).meta == alone[key].meta
        np.testing.assert_array_equal(dataset.sample(key).hu, alone[key].hu)
    assert set(alone) <= set(dataset.keys())


def test_appending_again_changes_nothing(archives, out):
    appended(archives / "second", out)
    before = contents(out)
    for raw in ("first", "second"):
        done = appended(archives / raw, out)
        assert not done.changed
        assert done.known_files == done.files
    assert contents(out) == before


def test_appends_give_the_same_bytes_every_time(archives, base, tmp_path):
    outs = [shutil.copytree(base, tmp_path / name) for name in "ab"]
    for out in outs:
        appended(archives / "second", out)
    assert contents(outs[0]) == contents(outs[1])


def test_a_refused_series_that_grew_is_judged_anew(archives, out, tmp_path):
    before = whole(out).totals
    assert Counter(row["reason"] for row in rows(out))["too_few_slices"] == 1
    write_series_at(tmp_path / "raw/p1", spec(1, number=2))
    done = appended(tmp_path / "raw", out)
    assert (done.samples, done.known_files) == (1, 0)
    # Its 3 files of the first delivery are among the 14 of this one.
    assert whole(out).totals.files_in == before.files_in - 3 + 14
    assert Counter(row["reason"] for row in rows(out))["too_few_slices"] == 0


def test_a_stored_series_with_other_files_stays_as_it_was(out, tmp_path):
    before = Dataset.open(out)
    write_series_at(tmp_path / "raw/p1", spec(1, slices=15))
    done = appended(tmp_path / "raw", out)
    assert (done.samples, done.reasons) == (0, {"already_stored": 1})
    assert whole(out).shards == before.manifest.shards
    assert not appended(tmp_path / "raw", out).changed


def test_append_needs_the_key_and_the_settings_of_the_build(archives, out):
    for key, given, match in (
        (IdKey(key=b"another key, 32 bytes long......"), {}, "another id key"),
        (KEY, {"profile": "ratio"}, "built with --profile balanced, not ratio"),
        (KEY, {"spacing_zyx_mm": (1.5,) * 3}, r"built with --spacing-mm \(6\.0, 6\.0, 6\.0\)"),
    ):
        before = contents(out)
        with pytest.raises(UsageError, match=match):
            appended(archives / "second", out, key, **given)
        assert contents(out) == before
    appended(archives / "second", out, source="other", profile="balanced")
    assert Counter(Dataset.open(out).index["source"].to_pylist()) == {"default": 2, "other": 2}
    (out / BUILD_RECORD).unlink()
    with pytest.raises(UsageError, match="does not say how it was built"):
        appended(archives / "third", out)


def test_append_needs_the_list_of_the_build(archives, out, tmp_path):
    listed = Exclusions(patients=frozenset({"PHANTOM-3"}))
    with pytest.raises(UsageError, match="was built without a list"):
        appended(archives / "second", out, exclusions=listed)
    with Terminal() as terminal:
        plan = plan_build([str(archives / "first")], CONFIG, KEY, terminal, listed)
        build(plan, CONFIG, KEY, Job(out=tmp_path / "guarded"), terminal)
    with pytest.raises(UsageError, match="exclusion list with SHA-256"):
        appended(archives / "second", tmp_path / "guarded")
    done = appended(archives / "second", tmp_path / "guarded", exclusions=listed)
    assert (done.samples, done.reasons) == (1, {"excluded": 1, "not_medical_image": 1})
    said = json.loads((tmp_path / "guarded/exclusions.json").read_text())
    assert (said["sha256"], sum(said["excluded"].values())) == (listed.sha256, 1)
    assert listed.sha256 in (tmp_path / "guarded/report.html").read_text()


def test_copies_stay_refused(archives, tmp_path):
    """The same voxels under other UIDs: refused once, and not taken later as their own original."""
    shutil.copytree(archives / "third/p4", tmp_path / "raw/a")
    write_series_at(tmp_path / "raw/b", spec(4, study=5, number=9))
    built(tmp_path / "raw", tmp_path / "out")
    reasons = Counter(row["reason"] for row in rows(tmp_path / "out"))
    assert reasons == {"ok": 1, "duplicate_series": 1}
    assert not appended(tmp_path / "raw", tmp_path / "out").changed


def test_forget_is_at_once_and_compact_for_good(both):
    before = Dataset.open(both)
    subject = subject_of(both, 2)
    [gone] = [r for r in before.index.to_pylist() if r["subject_id"] == subject]
    others = {s.meta.key: s.hu for s in before if s.meta.key != gone["key"]}
    traces = traces_of(both, gone)
    [series_id] = [row["series_id"] for row in rows(both) if row["key"] == gone["key"]]
    assert all(found_in(both, trace) for trace in [*traces, subject.encode(), series_id.encode()])

    done = forget(both, [subject])
    after = whole(both)
    assert (done.samples, done.series, done.changed) == (1, 1, True)
    assert (after.format_version, after.generation) == (2, 3)
    assert after.tombstones == [gone["key"]]
    assert after.shards == before.manifest.shards
    assert after.totals.files_in == before.manifest.totals.files_in
    assert after.totals.files_used == before.manifest.totals.files_used - 14
    assert set(Dataset.open(both).keys()) == set(others)
    # Their chunks are in the shards still; nowhere else is anything left.
    assert {name.split(".tar")[0] for trace in traces for name in found_in(both, trace)} <= {
        "manifest.json",
        gone["shard"].removesuffix(".tar"),
    }
    assert not forget(both, [subject]).changed

    done = compact(both)
    after = whole(both)
    assert (done.samples, after.tombstones) == (1, [])
    assert (after.format_version, after.generation) == (1, 4)
    for trace in [*traces, subject.encode(), series_id.encode()]:
        assert found_in(both, trace) == [], trace[:40]
    dataset = Dataset.open(both)
    assert set(dataset.keys()) == set(others)
    for key, hu in others.items():
        np.testing.assert_array_equal(dataset.sample(key).hu, hu)
    assert compact(both).manifest == after


def traces_of(out, row):
    """What must be gone: the key, every stored chunk, the preview, and the record."""
    dataset = Dataset.open(out)
    shard = (out / row["shard"]).read_bytes()
    zshard = shard[row["offset"] : row["offset"] + row["nbytes"]]
    chunks = next(r for r in dataset.chunk_table().to_pylist() if r["key"] == row["key"])
    offsets, nbytes = read_chunk_index(zshard, len(chunks["chunk_nbytes"]))
    stored = [zshard[o : o + n] for o, n in zip(offsets, nbytes, strict=True) if n]
    meta = dataset.meta(row["key"])
    return [row["key"].encode(), meta.content_sha256.encode(), row["study_id"].encode(), *stored]


def found_in(out, trace):
    """Files that hold these bytes: as they are, in tables, in pictures."""
    return sorted(
        name for name, data in contents(out).items() if trace in data or trace in opened(name, data)
    )


def opened(name, data):
    if not name.endswith(".parquet"):
        return b""
    return json.dumps(pq.read_table(io.BytesIO(data)).to_pylist(), default=str).encode()


def test_the_picture_of_a_withdrawn_volume_is_gone(both):
    subject = subject_of(both, 3)
    [row] = [r for r in Dataset.open(both).index.to_pylist() if r["subject_id"] == subject]
    page = (both / "report.html").read_text()
    [picture] = [
        part.split('"')[0]
        for part in page.split("base64,")[1:]
        if part.split("<code>")[1].startswith(row["key"])
    ]
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    forget(both, [subject])
    page = (both / "report.html").read_text()
    assert picture not in page
    assert row["key"] not in page
    assert page.count("base64,") == 3
    assert "Generation 3; 1 withdrawn, in the shards until" in page


def test_a_forgotten_subject_does_not_come_back(archives, out):
    forget(out, [subject_of(out, 2)])
    compact(out)
    before = whole(out)
    done = appended(archives / "first", out)
    assert not done.changed
    done = appended(archives / "second", out)
    assert (done.samples, done.known_files) == (2, 14)
    assert subject_of(out, 2) not in Dataset.open(out).index["subject_id"].to_pylist()
    assert whole(out).totals.files_in == before.totals.files_in + 16
    record = json.loads((out / BUILD_RECORD).read_text())
    assert record["forgotten"] == [one_way(subject_of(out, 2))]


def test_a_subject_that_only_comes_later_is_refused(archives, out, tmp_path):
    """Withdrawn before a further series of theirs arrives."""
    forget(out, [subject_of(out, 1)])
    write_series_at(tmp_path / "raw/p1", spec(1, study=2, number=7))
    done = appended(tmp_path / "raw", out)
    assert (done.samples, done.reasons) == (0, {"withdrawn": 1})
    assert whole(out).totals.samples == 1
    assert not appended(tmp_path / "raw", out).changed


def test_refused_series_of_a_subject_are_forgotten_too(out):
    """Patient 1 has a series of three slices, which is in no shard."""
    [short] = [row for row in rows(out) if row["reason"] == "too_few_slices"]
    done = forget(out, [subject_of(out, 1)])
    assert (done.samples, done.series) == (1, 2)
    compact(out)
    withdrawn = [row for row in rows(out) if row["reason"] == "withdrawn"]
    assert sorted(row["n_files"] for row in withdrawn) == [3, 14]
    assert all(row["shape_zyx"] is None and row["key"] is None for row in withdrawn)
    assert found_in(out, short["series_id"].encode()) == []
    assert found_in(out, subject_of(out, 1).encode()) == []


def test_an_unknown_subject_is_named_and_nothing_changes(out):
    before = contents(out)
    with pytest.raises(UsageError, match="holds no subject 0123"):
        forget(out, [subject_of(out, 1), "0123"])
    assert contents(out) == before


def test_everyone_may_be_forgotten(out, archives):
    forget(out, [subject_of(out, 1), subject_of(out, 2)])
    assert whole_without_samples(out).totals.samples == 0
    done = compact(out)
    assert (done.dropped, done.rewritten) == (len(done.manifest.shards) + done.dropped, 0)
    assert whole_without_samples(out).shards == []
    assert list(out.glob("shard-*")) == []
    appended(archives / "third", out)
    assert whole(out).totals.samples == 1


def whole_without_samples(out):
    assert verify(out).problems == []
    assert list(Dataset.open(out).plan_samples().keys) == []
    return Dataset.open(out).manifest


def test_without_its_record_a_dataset_can_still_forget(both):
    expected = shutil.copytree(both, both.with_name("expected"))
    (both / BUILD_RECORD).unlink()
    for out in (both, expected):
        forget(out, [subject_of(out, 3)])
    histograms = [
        json.loads((out / BUILD_RECORD).read_text())["hu_histogram"] for out in (both, expected)
    ]
    assert histograms[0] == histograms[1]
    assert (both / "report.html").read_bytes() == (expected / "report.html").read_bytes()


def test_a_record_of_another_generation_is_refused(both, base):
    shutil.copy(base / BUILD_RECORD, both / BUILD_RECORD)
    with pytest.raises(Exception, match="another generation than the manifest"):
        forget(both, [subject_of(both, 3)])


def test_a_damaged_sample_can_be_forgotten(both):
    subject = subject_of(both, 3)
    [row] = [r for r in Dataset.open(both).index.to_pylist() if r["subject_id"] == subject]
    shard = bytearray((both / row["shard"]).read_bytes())
    shard[row["offset"] + row["nbytes"] // 2] ^= 1
    (both / row["shard"]).write_bytes(shard)
    forget(both, [subject])
    assert row["key"] not in set(Dataset.open(both).keys())
    assert json.loads((both / BUILD_RECORD).read_text())["hu_histogram"] is None


@pytest.fixture(scope="module")
def apart(archives, tmp_path_factory):
    """The first two deliveries as two datasets, which share patient 2."""
    root = tmp_path_factory.mktemp("apart")
    for name in ("first", "second"):
        built(archives / name, root / name)
    return root


def test_merge(apart, tmp_path):
    before = {name: contents(apart / name) for name in ("first", "second")}
    sources = [apart / "first", apart / "second"]
    done = merge(sources, tmp_path / "out")
    manifest = whole(tmp_path / "out")
    assert {name: contents(apart / name) for name in before} == before
    assert (done.duplicates, manifest.totals.samples, manifest.generation) == (1, 4, 1)
    parts = [Dataset.open(source) for source in sources]
    assert manifest.totals.files_in == sum(p.manifest.totals.files_in for p in parts)
    assert Counter(row["reason"] for row in rows(tmp_path / "out"))["duplicate_series"] == 1
    dataset = Dataset.open(tmp_path / "out")
    for part in parts:
        for sample in part:
            np.testing.assert_array_equal(dataset.sample(sample.meta.key).hu, sample.hu)
    names = [shard.name for shard in manifest.shards]
    assert names == [f"shard-{n:06d}.tar" for n in range(len(names))]
    record = json.loads((tmp_path / "out" / BUILD_RECORD).read_text())
    assert [o["generation_id"] for o in record["merged_from"]] == [
        part.manifest.generation_id for part in parts
    ]
    again = merge(sources, tmp_path / "out")
    assert (again.changed, again.manifest) == (False, manifest)
    # Without hard links, and from a run that was cut short, the same comes out.
    first = contents(tmp_path / "out")
    merge(sources, tmp_path / "second")
    assert contents(tmp_path / "second") == first


def test_merge_copies_where_it_cannot_link(apart, tmp_path, monkeypatch):
    sources = [apart / "first", apart / "second"]
    merge(sources, tmp_path / "linked")

    def fail(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", fail)
    merge(sources, tmp_path / "copied")
    assert contents(tmp_path / "copied") == contents(tmp_path / "linked")


def test_a_merged_dataset_lives_on(apart, archives, tmp_path):
    out = tmp_path / "out"
    merge([apart / "first", apart / "second"], out)
    assert not appended(archives / "first", out).changed
    assert appended(archives / "third", out).samples == 1
    forget(out, [subject_of(out, 4)])
    compact(out)
    assert whole(out).generation == 4


def test_what_one_source_has_withdrawn_is_not_merged(apart, archives, tmp_path):
    first = shutil.copytree(apart / "first", tmp_path / "first")
    subject = subject_of(first, 2)
    [row] = [r for r in Dataset.open(first).index.to_pylist() if r["subject_id"] == subject]
    traces = traces_of(first, row)
    forget(first, [subject])
    done = merge([first, apart / "second"], tmp_path / "out")
    manifest = whole(tmp_path / "out")
    assert (done.withdrawn, done.duplicates, manifest.totals.samples) == (1, 0, 3)
    assert (manifest.format_version, manifest.tombstones) == (1, [])
    for trace in traces:
        assert found_in(tmp_path / "out", trace) == []
    assert not appended(archives / "second", tmp_path / "out").changed


def test_merge_refuses_what_does_not_go_together(apart, archives, tmp_path):
    first = apart / "first"
    for name, config, key, match in (
        ("spacing", replace(CONFIG, spacing_zyx_mm=(5.0,) * 3), KEY, "preprocessing contract"),
        ("key", CONFIG, IdKey(key=b"another key, 32 bytes long......"), "another id key"),
        ("profile", replace(CONFIG, profile="ratio"), KEY, "has profile ratio, but"),
        ("crop", replace(CONFIG, body_crop=False), KEY, "differs from that of"),
    ):
        built(archives / "second", tmp_path / name, config, key)
        with pytest.raises(UsageError, match=match):
            merge([first, tmp_path / name], tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="named twice"):
        merge([first, first], tmp_path / "out")
    with pytest.raises(UsageError, match="lie in each other"):
        merge([first, tmp_path / "crop"], first / "inside")
    with pytest.raises(UsageError, match="other inputs or settings"):
        merge([first, apart / "second"], tmp_path / "crop")


def test_settings_that_differ_leave_no_single_config(apart, archives, tmp_path):
    built(archives / "third", tmp_path / "third", replace(CONFIG, resample="linear"))
    merge([apart / "first", tmp_path / "third"], tmp_path / "out")
    manifest = whole(tmp_path / "out")
    assert manifest.contract.recorded.resampler == "antialias, linear"
    with pytest.raises(UsageError, match="does not say how it was built"):
        appended(archives / "second", tmp_path / "out")


def test_join_versions():
    assert join_versions({"a": "1"}, {"a": "1", "b": "2"}) == {"a": "1", "b": "2"}
    assert join_versions({"a": "1, 3"}, {"a": "2"}) == {"a": "1, 2, 3"}


def test_the_command_line(archives, out, tmp_path, capsys):
    key = tmp_path / "id.key"
    key.write_text(KEY.key.hex())

    def run(*args):
        code = main([*map(str, args), "--json"])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, json.loads(said.out) if code == 0 else said.err

    code, said = run("append", archives / "second", out, "--id-key", key, "--workers", 1)
    assert (code, said["generation"], said["added_samples"], said["files_known"]) == (0, 2, 2, 14)
    code, said = run("forget", out, "--patient-id", "PHANTOM-2", "--id-key", key)
    assert (code, said["tombstones"], said["forgotten_samples"]) == (0, 1, 1)
    code, said = run("compact", out)
    assert (code, said["tombstones"], said["removed_samples"]) == (0, 0, 1)
    code, said = run("forget", out, "--patient-id", "nobody", "--id-key", key)
    assert code == 2
    assert said.startswith(f"ingest: {out}: holds no subject nobody; nothing was changed")
    built(archives / "third", tmp_path / "third")
    code, said = run("merge", out, tmp_path / "third", tmp_path / "merged")
    assert (code, said["samples"], said["duplicates"]) == (0, 4, 0)
    for args in (
        ["append", archives / "first"],
        ["append", archives / "first", tmp_path / "nothing"],
        ["append", archives / "first", "s3://bucket/out"],
        ["forget", out],
        ["forget", tmp_path, "--subject", "a"],
        ["compact", tmp_path],
        ["merge", out, tmp_path / "x"],
    ):
        code, said = run(*args)
        assert code == 2, args
        assert len(said.splitlines()) == 1


def test_a_change_while_another_process_writes_is_refused(out):
    from ingest.lock import locked

    before = hashlib.sha256(repr(sorted(contents(out))).encode()).hexdigest()
    with locked(out), pytest.raises(UsageError, match="is writing there"):
        forget(out, [subject_of(out, 1)])
    assert hashlib.sha256(repr(sorted(contents(out))).encode()).hexdigest() == before
    assert not (out / EDIT_FOLDER).exists()


def test_labels_live_as_their_volumes_do(tmp_path):
    """A labelled dataset is appended to, withdrawn from, compacted and merged like any other."""
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    (tmp_path / "raw").mkdir()
    for name, seed in (("one", 21), ("two", 22)):
        write_nifti(tmp_path / f"raw/{name}.nii.gz", Torso(seed=seed), (36, 38, 40), 6.0, -90.0)
    images = sorted((tmp_path / "raw").iterdir())
    for image, shape in ((images[0], None), (images[1], (5, 5, 5))):
        stored = nibabel.load(image)
        values = (np.asarray(stored.dataobj) > 0).astype(np.uint8)
        if shape is not None:
            values, stored = np.ones(shape, np.uint8), nibabel.Nifti1Image(values, affine)
        (tmp_path / "labels").mkdir(exist_ok=True)
        label = nibabel.Nifti1Image(values, stored.affine)
        label.to_filename(tmp_path / "labels" / image.name)
    key = tmp_path / "id.key"
    key.write_text(KEY.key.hex())
    out = tmp_path / "out"
    flags = ["--id-key", str(key), "--workers", "1", "--spacing-mm", "6", "--min-slices", "8"]
    args = ["build-shards", str(tmp_path / "raw"), str(out), "--labels", str(tmp_path / "labels")]
    assert main([*args, *flags]) == 0
    before = {sample.meta.key: sample for sample in Dataset.open(out)}
    index = {row["key"]: row for row in Dataset.open(out).index.to_pylist()}
    labelled = [name for name, row in index.items() if row["labelled"]]
    assert len(before) == 2
    assert labelled
    assert whole(out).format_version == 2
    assert not appended(tmp_path / "raw", out).changed
    [gone] = [name for name in index if name != labelled[0]]
    values = Dataset.open(out).label(labelled[0]).values
    forget(out, [index[gone]["subject_id"]])
    compact(out)
    assert whole(out).format_version == 2
    np.testing.assert_array_equal(Dataset.open(out).label(labelled[0]).values, values)
    write_series_at(tmp_path / "more/p1", spec(1))
    built(tmp_path / "more", tmp_path / "other")
    merge([out, tmp_path / "other"], tmp_path / "merged")
    assert whole(tmp_path / "merged").totals.samples == 2
    np.testing.assert_array_equal(
        Dataset.open(tmp_path / "merged").label(labelled[0]).values, values
    )
    compacted = forget(out, [index[labelled[0]]["subject_id"]])
    assert compacted.samples == 1
    compact(out)
    assert Dataset.open(out).manifest.format_version == 1
