"""``--labels`` from end to end: pairing, accounting, what is stored, and what is kept private."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image

import ingest.pipeline
from ingest.cli import main
from ingest.errors import Reason, UsageError
from ingest.groups import cut_groups
from ingest.ids import IdKey
from ingest.labels import label_sources, load_label_names
from ingest.montage import outlined
from ingest.phantom import Torso
from ingest.scan import ScanConfig, scan
from ingest.testing import SeriesSpec, pack, write_dicom_series, write_nifti
from ingest.testing_labels import CODES, torso_labels, write_nifti_labels, write_seg
from shards.dataset import Dataset
from shards.verify import verify

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning:highdicom")]
KEY = IdKey(key=bytes(range(32)))
SMALL = SeriesSpec(patient=1, slices=14, side=56, pixel_mm=6.0, gap_mm=5.0, bottom_mm=-45.0)
SHAPE_XYZ, MM, BOTTOM = (60, 50, 16), 6.0, -45.0
NATIVE = ("--spacing-mm", "native", "--no-body-crop", "--min-slices", "8")


def nifti_affine():
    """(z, y, x) to RAS of the NIfTI volumes here: their arrays run toward L, A, S."""
    affine = np.zeros((4, 4))
    affine[0, 2], affine[1, 1], affine[2, 0], affine[3, 3] = -MM, MM, MM, 1
    affine[:3, 3] = MM * (SHAPE_XYZ[0] - 1) / 2, -MM * (SHAPE_XYZ[1] - 1) / 2, BOTTOM
    return affine


AFFINE = nifti_affine()
VALUES = torso_labels(AFFINE, SHAPE_XYZ[::-1])


def write_volume(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, Torso(seed=seed), SHAPE_XYZ, MM, BOTTOM)


def volumes_and_labels(folder, **labels):
    """Two nnU-Net images, and label files of the given names and values."""
    write_volume(folder / "imagesTr/case_1_0000.nii.gz", 1)
    write_volume(folder / "imagesTr/case_2_0000.nii.gz", 2)
    for name, values in labels.items():
        write_nifti_labels(folder / f"labelsTr/{name}.nii.gz", values, AFFINE)
    return folder / "imagesTr", folder / "labelsTr"


def build(raw, out, *labels, more=NATIVE):
    args = [arg for path in labels for arg in ("--labels", str(path))]
    return main(["build-shards", *map(str, raw), str(out), *args, *map(str, more)])


def rows(out):
    return pq.read_table(out / "series.parquet").to_pylist()


def verdicts(out):
    return sorted((row["reason"], row["n_files"]) for row in rows(out))


def found(raw, *labels):
    """(Reason of each row, name of the label of each accepted one) of a scan."""
    sources = label_sources([str(path) for path in labels], [str(path) for path in raw])
    result = scan([str(path) for path in raw], KEY, ScanConfig(min_slices=8), labels=sources)
    pairs = {
        row.refs[0].path.rsplit("/", 1)[-1]: row.label.refs[0].path.rsplit("/", 1)[-1]
        for row in result.series
        if row.label is not None
    }
    return sorted(str(row.reason) for row in result.series), pairs, result


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """DICOM with a segmentation, two NIfTI with one label, and clutter."""
    raw = tmp_path_factory.mktemp("raw")
    images = write_dicom_series(raw / "dicom", SMALL)
    values = torso_labels(SMALL.affine, (14, 56, 56))
    write_seg(raw / "segs/liver.dcm", images, values)
    volumes_and_labels(raw, case_1=VALUES)
    (raw / "labelsTr/dataset.json").write_text("{}")
    return raw


@pytest.fixture(scope="module")
def built(archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "out"
    assert build([archive], out, archive / "segs", archive / "labelsTr") == 0
    return out


def test_labels_are_stored_voxel_for_voxel(built):
    dataset = Dataset.open(built)
    assert dataset.manifest.format_version == 2
    assert verify(built).problems == []
    kinds = {}
    for sample in dataset:
        label = dataset.label(sample.meta.key)
        if label is None:
            continue
        kinds[label.meta.source_kind] = label
        expected = torso_labels(sample.affine, sample.hu.shape)
        np.testing.assert_array_equal(label.values, expected)
    assert sorted(kinds) == ["dicom_seg", "nifti"]
    assert kinds["dicom_seg"].names == {n: f"SCT:{code}" for n, (code, _) in CODES.items()}
    assert kinds["nifti"].names == {1: "", 2: "", 3: ""}


def test_every_file_is_counted_once(archive, built):
    dataset = Dataset.open(built)
    # 14 slices and their segmentation, a volume and its label, a volume without, dataset.json.
    assert verdicts(built) == [("not_medical_image", 1), ("ok", 1), ("ok", 2), ("ok", 15)]
    totals = dataset.manifest.totals
    assert totals.files_in == sum(path.is_file() for path in archive.rglob("*")) == 19
    assert (totals.files_used, totals.files_refused) == (18, 1)
    assert sorted(dataset.index["labelled"].to_pylist()) == [False, True, True]
    assert "Stored with labels: 2." in (built / "report.html").read_text()


def test_resampled_labels_keep_place_and_volume(archive, tmp_path):
    more = ("--spacing-mm", "3", "--min-slices", "8")
    assert (
        build([archive], tmp_path / "out", archive / "segs", archive / "labelsTr", more=more) == 0
    )
    dataset = Dataset.open(tmp_path / "out")
    assert verify(tmp_path / "out").problems == []
    for row in dataset.index.to_pylist():
        label = dataset.label(row["key"])
        if label is None:
            continue
        sample = dataset.sample(row["key"])
        expected = torso_labels(sample.affine, sample.hu.shape)
        for value in CODES:
            ours, true = label.values == value, expected == value
            assert 2 * (ours & true).sum() / (ours.sum() + true.sum()) > 0.85
            assert ours.sum() == pytest.approx(true.sum(), rel=0.06)


def test_bytes_do_not_depend_on_packing(archive, built, tmp_path):
    reference = {p.name: p.read_bytes() for p in built.iterdir() if p.is_file()}
    pack(tmp_path / "seg.zip", [("x", (archive / "segs/liver.dcm").read_bytes())])
    shutil.copytree(archive / "imagesTr", tmp_path / "raw/a")
    shutil.copytree(archive / "dicom", tmp_path / "raw/b")
    again = tmp_path / "again"
    labels = (archive / "labelsTr", tmp_path / "seg.zip")
    assert build([tmp_path / "raw"], again, *labels) == 0
    assert {p.name: p.read_bytes() for p in again.iterdir() if p.is_file()} == reference


def test_a_stopped_build_goes_on_to_the_bytes_of_two_workers(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(ingest.pipeline, "cut_groups", lambda s, mm, size: cut_groups(s, mm, 1))
    labels = (archive / "segs", archive / "labelsTr")
    assert build([archive], tmp_path / "whole", *labels, more=(*NATIVE, "--workers", 2)) == 0
    real, done = ingest.pipeline.build_group, []

    def stops_at_third(task):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task.group.number)
        return real(task)

    out = tmp_path / "out"
    one_worker = (*NATIVE, "--workers", 1)
    monkeypatch.setattr(ingest.pipeline, "build_group", stops_at_third)
    assert build([archive], out, *labels, more=one_worker) == 1
    # Without its labels it is another build, which must not go on there.
    assert build([archive], out, archive / "segs", more=one_worker) == 2
    monkeypatch.setattr(ingest.pipeline, "build_group", real)
    assert build([archive], out, *labels, more=one_worker) == 0
    whole = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir() if p.is_file()}
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == whole


def test_another_label_is_another_build(archive, built, tmp_path, capsys):
    changed = VALUES.copy()
    changed[0, 0, 0] = 1
    write_nifti_labels(tmp_path / "labelsTr/case_1.nii.gz", changed, AFFINE)
    assert build([archive], built, archive / "segs", tmp_path / "labelsTr") == 2
    assert "other inputs or settings" in capsys.readouterr().err


def test_nothing_private_is_written(archive, tmp_path):
    seg = pydicom.dcmread(archive / "segs/liver.dcm")
    planted = ["PLANTED" + name for name in ("LABEL", "TEXT", "CREATOR", "SERIES", "FILE", "NIFTI")]
    seg.SegmentSequence[0].SegmentLabel = planted[0]
    seg.SegmentSequence[0].SegmentDescription = planted[1]
    seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning = planted[1]
    seg.ContentCreatorName, seg.SeriesDescription = planted[2], planted[3]
    labels = tmp_path / planted[4]
    labels.mkdir()
    seg.save_as(labels / f"{planted[4]}.dcm")
    import nibabel

    image = nibabel.Nifti1Image(VALUES.transpose(2, 1, 0), AFFINE[:, [2, 1, 0, 3]])
    image.header["descrip"] = planted[5].encode()
    image.to_filename(labels / "case_1.nii.gz")
    assert build([archive / "dicom", archive / "imagesTr"], tmp_path / "out", labels) == 0
    assert sum(Dataset.open(tmp_path / "out").index["labelled"].to_pylist()) == 2
    uids = [str(seg.SOPInstanceUID), str(seg.SeriesInstanceUID)]
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += json.dumps(pq.read_table(path).to_pylist()).encode()
        for secret in (*planted, *uids, str(tmp_path), "case_1"):
            assert secret.encode() not in content, (path.name, secret)


def test_a_label_that_fails_at_its_pixels_costs_the_volume_nothing(tmp_path, capsys):
    images, labels = volumes_and_labels(
        tmp_path, case_1=VALUES.astype(np.float32) + 0.5, case_2=VALUES
    )
    assert build([images], tmp_path / "out", labels) == 0
    captured = capsys.readouterr()
    assert "1 with labels" in captured.out
    assert "label_values" in captured.err
    assert "case_1.nii.gz" in captured.err
    assert verdicts(tmp_path / "out") == [("label_values", 1), ("ok", 1), ("ok", 2)]
    flagged = [row for row in rows(tmp_path / "out") if "label_refused" in row["flags"]]
    assert [row["n_files"] for row in flagged] == [1]
    sample = Dataset.open(tmp_path / "out").sample(flagged[0]["key"])
    assert "label_refused" in sample.meta.flags
    assert verify(tmp_path / "out").problems == []


def test_labels_are_forgotten_with_their_patient(archive, tmp_path, capsys):
    labels = tmp_path / "labels"
    shutil.copytree(archive / "segs", labels)
    seg = pydicom.dcmread(labels / "liver.dcm")
    seg.ContentDescription = "ANOTHER"
    seg.save_as(labels / "second.dcm")  # two for one volume: both are refused
    out = tmp_path / "out"
    assert build([archive / "dicom", archive / "imagesTr"], out, labels, archive / "labelsTr") == 0
    before = [row for row in rows(out) if row["reason"] == "label_ambiguous"]
    assert len(before) == 2
    index = Dataset.open(out).index.to_pylist()
    (subject,) = {row["subject_id"] for row in index if not row["labelled"]} & {
        row["subject_id"] for row in index if row["key"] in _dicom_keys(out)
    }
    assert main(["forget", str(out), "--subject", subject]) == 0
    gone = [row for row in rows(out) if row["reason"] == "withdrawn"]
    assert sum(row["n_files"] for row in gone) == 14 + 2
    assert not {row["series_id"] for row in before} & {row["series_id"] for row in rows(out)}
    assert verify(out).problems == []
    assert main(["compact", str(out)]) == 0
    assert verify(out).problems == []
    assert sum(Dataset.open(out).index["labelled"].to_pylist()) == 1


def _dicom_keys(out):
    return {row["key"] for row in rows(out) if row["source_kind"] == "dicom"}


@pytest.mark.parametrize(
    ("values", "detail"),
    [
        (VALUES.astype(np.int16) - 1, "-1"),
        (VALUES.astype(np.int32) + 70000, "7000"),
        (np.where(VALUES > 0, np.nan, 0).astype(np.float32), "no whole number"),
        (np.arange(VALUES.size, dtype=np.uint16).reshape(VALUES.shape) % 600, "599 different"),
    ],
)
def test_values_that_are_no_labels(tmp_path, values, detail):
    from ingest.errors import SeriesError
    from ingest.labels_nifti import read_nifti_labels

    write_nifti_labels(tmp_path / "a.nii", values, AFFINE)
    with pytest.raises(SeriesError, match=detail) as caught:
        read_nifti_labels((tmp_path / "a.nii").read_bytes())
    assert caught.value.reason is Reason.LABEL_VALUES


def test_floats_that_are_whole_and_large_values_are_labels(tmp_path):
    from ingest.labels_nifti import read_nifti_labels

    write_nifti_labels(tmp_path / "a.nii", VALUES.astype(np.float64), AFFINE)
    planes, present = read_nifti_labels((tmp_path / "a.nii").read_bytes())
    assert (planes.values.dtype, present) == (np.uint8, (1, 2, 3))
    write_nifti_labels(tmp_path / "b.nii", VALUES.astype(np.int32) * 20000, AFFINE)
    planes, present = read_nifti_labels((tmp_path / "b.nii").read_bytes())
    assert (planes.values.dtype, present) == (np.uint16, (20000, 40000, 60000))


def test_labels_pair_by_name(tmp_path):
    images, labels = volumes_and_labels(tmp_path, case_2=VALUES, case_3=VALUES)
    write_volume(images / "plain.nii.gz", 3)
    write_nifti_labels(labels / "plain.nii", VALUES, AFFINE)
    reasons, pairs, _ = found([images], labels)
    assert reasons == ["label_without_ct", "ok", "ok", "ok"]
    assert pairs == {
        "case_2_0000.nii.gz": "case_2.nii.gz",
        "plain.nii.gz": "plain.nii",
    }


def test_equal_names_pair_by_their_folders_or_not_at_all(tmp_path):
    for seed, place in enumerate(["x/p1", "x/p2", "y/p3", "z/p3"]):
        write_volume(tmp_path / f"images/{place}/ct.nii.gz", seed)
    for place in ("x/p1", "x/p2"):
        write_nifti_labels(tmp_path / f"labels/{place}/ct.nii.gz", VALUES, AFFINE)
    write_nifti_labels(tmp_path / "labels/p3/ct.nii.gz", VALUES, AFFINE)
    reasons, _, result = found([tmp_path / "images"], tmp_path / "labels")
    assert reasons == ["label_ambiguous", *["ok"] * 4]
    for row in result.series:
        if row.label is not None:
            folder = row.refs[0].path.rsplit("/", 2)[1]
            assert row.label.refs[0].path.endswith(f"labels/x/{folder}/ct.nii.gz")


def test_labels_of_equal_bytes_may_belong_to_different_volumes(tmp_path):
    empty = np.zeros_like(VALUES)
    images, labels = volumes_and_labels(tmp_path, case_1=empty, case_2=empty)
    assert build([images], tmp_path / "out", labels) == 0
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.index["labelled"].to_pylist() == [True, True]
    for key in dataset.index["key"].to_pylist():
        assert dataset.label(key).meta.labels == ()
        assert not dataset.label(key).values.any()
    assert verify(tmp_path / "out").problems == []


def test_two_labels_for_one_volume_are_both_refused_and_copies_are_not(tmp_path):
    images, labels = volumes_and_labels(tmp_path, case_1=VALUES, case_2=VALUES)
    other = VALUES.copy()
    other[0] = 7
    write_nifti_labels(labels / "more/case_1.nii.gz", other, AFFINE)
    write_nifti_labels(labels / "more/case_2.nii.gz", VALUES, AFFINE)
    reasons, pairs, result = found([images], labels)
    assert reasons == ["duplicate_file", "label_ambiguous", "label_ambiguous", "ok", "ok"]
    assert list(pairs) == ["case_2_0000.nii.gz"]
    assert [row.flags for row in result.series if row.refs[0].path.endswith("1_0000.nii.gz")] == [
        ("label_refused",)
    ]


def test_a_table_of_pairs_goes_before_names(tmp_path):
    images, _ = volumes_and_labels(tmp_path, case_1=VALUES, case_2=VALUES)
    dicom = write_dicom_series(tmp_path / "dicom/one", SMALL)
    values = torso_labels(SMALL.affine, (14, 56, 56))
    write_nifti_labels(tmp_path / "other.nii", values, SMALL.affine)
    table = tmp_path / "pairs.csv"
    table.write_text(
        "label,image,note\nlabelsTr/case_1.nii.gz,imagesTr/case_2_0000.nii.gz,swapped\n"
        "other.nii,dicom/one,\n"
    )
    reasons, pairs, _ = found([images, tmp_path / "dicom"], table)
    assert reasons == ["ok"] * 3
    assert pairs == {"case_2_0000.nii.gz": "case_1.nii.gz", dicom[0].name: "other.nii"}
    assert build([tmp_path / "dicom"], tmp_path / "out", table) == 0
    dataset = Dataset.open(tmp_path / "out")
    np.testing.assert_array_equal(dataset.label(dataset.keys()[0]).values, values)
    assert verdicts(tmp_path / "out") == [("label_without_ct", 1), ("ok", 15)]


def test_a_folder_with_both_may_be_given_twice(archive):
    reasons, pairs, result = found([archive / "dicom", archive / "segs"], archive / "segs")
    assert reasons == ["ok"]
    assert list(pairs.values()) == ["liver.dcm"]
    assert result.n_files == 15
    # The whole archive as its own label folder: only segmentations are labels in it.
    reasons, pairs, _ = found([archive], archive)
    assert list(pairs.values()) == ["liver.dcm"]
    assert reasons.count("ok") == 4  # the NIfTI label is taken for a volume, as without --labels


def test_a_segmentation_of_another_frame_or_of_nothing_is_refused(archive, tmp_path):
    seg = pydicom.dcmread(archive / "segs/liver.dcm")
    seg.FrameOfReferenceUID = "1.2.3.4"
    (tmp_path / "a").mkdir()
    seg.save_as(tmp_path / "a/other-frame.dcm")
    reasons, _, result = found([archive / "dicom"], tmp_path / "a")
    assert reasons == ["label_mismatch", "ok"]
    assert [row.flags for row in result.series if row.reason is Reason.OK] == [
        ("kernel_soft", "label_refused")
    ]
    del seg.FrameOfReferenceUID
    seg.save_as(tmp_path / "a/other-frame.dcm")
    assert found([archive / "dicom"], tmp_path / "a")[0] == ["ok"]
    assert found([archive / "imagesTr"], archive / "segs")[0] == ["label_without_ct", "ok", "ok"]
    (tmp_path / "a/slice.dcm").write_bytes((archive / "dicom/IM0001.dcm").read_bytes())
    assert found([archive / "dicom"], tmp_path / "a")[0] == ["not_a_label", "ok"]


def test_a_label_that_lies_elsewhere_is_refused(tmp_path):
    images, labels = volumes_and_labels(tmp_path, case_1=VALUES)
    away = AFFINE.copy()
    away[2, 3] += 90
    write_nifti_labels(labels / "case_2.nii.gz", VALUES, away)
    reasons, pairs, _ = found([images], labels)
    assert reasons == ["label_mismatch", "ok", "ok"]
    assert list(pairs) == ["case_1_0000.nii.gz"]


def test_a_real_archive_pairs_and_accounts(ct_data, tmp_path, capsys):
    folder = ct_data / "oddities/dcmqi/24x38x3"
    write_volume(tmp_path / "v.nii.gz", 1)
    more = ("--min-slices", "3", "--spacing-mm", "native", "--no-body-crop")
    liver = ct_data / "oddities/pydicom-data/liver.dcm"
    assert build([folder / "image", tmp_path / "v.nii.gz"], tmp_path / "out", folder / "seg", liver,
                 more=more) == 0  # fmt: skip
    found_rows = {row["reason"]: row for row in rows(tmp_path / "out")}
    # The synthetic volume is a mask, not HU: it is refused at its pixels, and its label with it.
    assert sum(row["n_files"] for row in rows(tmp_path / "out")) == 3 + 1 + 1 + 1
    assert found_rows["label_without_ct"]["modality"] == "SEG"
    details = {row["detail"] for row in rows(tmp_path / "out") if row["modality"] == "SEG"}
    assert len(details) == 2


def test_names_come_from_the_user_alone(archive, tmp_path):
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"1": "liver", "3": "spine (all)", "9": "not there"}))
    more = (*NATIVE, "--label-names", names)
    assert build([archive / "imagesTr"], tmp_path / "out", archive / "labelsTr", more=more) == 0
    dataset = Dataset.open(tmp_path / "out")
    (key,) = [row["key"] for row in dataset.index.to_pylist() if row["labelled"]]
    assert dataset.label(key).names == {1: "liver", 2: "", 3: "spine (all)"}


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"x": "a"}', '{"1": 2}', '{"0": "a"}', '{"1": "a\\nb"}']
)
def test_names_that_cannot_be_are_said_in_a_line(tmp_path, text):
    path = tmp_path / "names.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="--label-names"):
        load_label_names(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1,2\n", "columns image,label"),
        ("", "columns image,label"),
        ("image,label\nv.nii,missing.nii\n", "line 2: .*missing.nii: no such file"),
        ("image,label\nv.nii\n", "line 2"),
        ("image,label\nv.nii,l.nii\nw.nii,l.nii\n", "is there twice"),
        ("image,label\n\xff".encode("latin-1"), "cannot be read"),
    ],
)
def test_tables_that_are_none_are_said_in_a_line(tmp_path, text, expected):
    for name in ("v.nii", "w.nii", "l.nii"):
        (tmp_path / name).touch()
    table = tmp_path / "pairs.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=expected):
        label_sources([str(table)], [str(tmp_path)])


def test_a_label_path_that_is_missing_is_a_usage_error(archive, tmp_path, capsys):
    assert build([archive], tmp_path / "out", tmp_path / "nowhere") == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err


def test_scan_gives_the_same_verdicts(archive, capsys):
    args = ["scan", str(archive), "--labels", str(archive / "segs"), "--min-slices", "8", "--json"]
    args += ["--labels", str(archive / "labelsTr")]
    assert main(args) == 0
    record = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert record["reasons"] == {"ok": 3, "not_medical_image": 1}
    assert record["files"] == 19


def test_inspect_shows_and_draws_labels(built, tmp_path, capsys):
    dataset = Dataset.open(built)
    labelled = [row["key"] for row in dataset.index.to_pylist() if row["labelled"]]
    assert main(["inspect", str(built), "--png", str(tmp_path / "all.png")]) == 0
    text = capsys.readouterr().out
    assert "2 with labels" in text
    lines = {line.split()[0] for line in text.splitlines() if line.endswith("labels")}
    assert lines - {"3"} == set(labelled)
    colours = np.array(Image.open(tmp_path / "all.png")).reshape(-1, 3)
    assert (colours == (86, 180, 233)).all(axis=1).sum() > 50
    assert main(["inspect", str(built), labelled[0], "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["label"]["key"] == labelled[0]


def test_outlines_are_the_borders_of_labels():
    values = np.zeros((6, 8), np.uint8)
    values[1:5, 2:7] = 1
    drawn = np.array(outlined(Image.new("L", (8, 6)), values)).any(axis=2)
    expected = values == 1
    expected[2:4, 3:6] = False
    np.testing.assert_array_equal(drawn, expected)


def test_series_that_differ_only_in_labels_keep_their_voxels(archive, built, tmp_path):
    assert build([archive / "dicom"], tmp_path / "plain") == 0
    (plain,) = Dataset.open(tmp_path / "plain")
    labelled = Dataset.open(built).sample(plain.meta.key)
    assert replace(labelled.meta) == plain.meta
    assert Dataset.open(tmp_path / "plain").manifest.format_version == 1
