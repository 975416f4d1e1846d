"""What is taken: exclusion lists, coverage, reconstructions. A scan and a build agree."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest

from ingest.choice import Choice, coverage_mm
from ingest.cli import main
from ingest.cli_fingerprint import entries
from ingest.config import BuildConfig
from ingest.errors import UsageError
from ingest.exclude import read_exclusions
from ingest.phantom import Torso
from ingest.scan import ScanConfig, scan
from ingest.select import acquisition_of, thinnest_soft_tissue
from ingest.testing import SeriesSpec, write_dicom_series
from shards.dataset import Dataset

SMALL = SeriesSpec(patient=1, slices=24, side=24, pixel_mm=14.0, gap_mm=2.5, kernel="B30f")
TIME = "101500.00"


def write(folder, *, time=TIME, **changes):
    """A reconstruction; ``time`` is its AcquisitionTime, one a slice if it is a list."""
    spec = replace(SMALL, **changes)
    for number, path in enumerate(write_dicom_series(folder, spec)):
        ds = pydicom.dcmread(path)
        ds.AcquisitionTime = time if isinstance(time, str) else time[number % len(time)]
        ds.save_as(path)
    return folder


def verdicts(raw, id_key, **choice):
    """Reason by the folder's name."""
    found = scan([str(raw)], id_key, ScanConfig(choice=Choice(**choice)))
    return {row.refs[0].path.split("/")[-2]: str(row.reason) for row in found.series}


@pytest.fixture(scope="module")
def acquisitions(tmp_path_factory):
    """One acquisition five times, a later one, and another patient's."""
    raw = tmp_path_factory.mktemp("raw")
    thick = {"slices": 12, "gap_mm": 5.0, "thickness_mm": 5.0}
    write(raw / "soft-thick", number=1, **thick)
    write(raw / "soft-thin", number=2, thickness_mm=2.5, time=["101459.50", "101503.00"])
    write(raw / "lung-thinner", number=3, kernel="B70f", thickness_mm=1.0)
    write(raw / "unknown-thin", number=4, kernel="My Kernel", thickness_mm=2.5)
    write(raw / "zoomed", number=5, pixel_mm=6.0, thickness_mm=1.0)
    write(raw / "later", number=6, time="102000.00", **thick)
    write(raw / "no-time", number=7, time="", **thick)
    write(raw / "other", patient=2, torso=Torso(seed=2), **thick)
    return raw


def test_the_thinnest_soft_reconstruction_of_an_acquisition_is_kept(acquisitions, id_key):
    assert verdicts(acquisitions, id_key, select="thinnest-soft-tissue") == {
        "soft-thick": "not_selected",
        "soft-thin": "ok",
        "lung-thinner": "not_selected",
        "unknown-thin": "not_selected",
        "zoomed": "ok",  # another region
        "later": "ok",
        "no-time": "ok",  # nothing says that it is the same
        "other": "ok",
    }
    assert set(verdicts(acquisitions, id_key).values()) == {"ok"}


def test_without_a_soft_one_the_best_other_is_kept(tmp_path, id_key):
    write(tmp_path / "lung", number=1, kernel="B70f", thickness_mm=1.0)
    write(tmp_path / "detail", number=2, kernel="DETAIL", thickness_mm=2.5)
    assert verdicts(tmp_path, id_key, select="thinnest-soft-tissue") == {
        "lung": "not_selected",
        "detail": "ok",
    }


def test_other_voltages_and_frames_are_other_acquisitions(tmp_path, id_key):
    write(tmp_path / "a", number=1)
    write(tmp_path / "b", number=2)
    write(tmp_path / "c", number=3)
    for path in (tmp_path / "b").iterdir():
        ds = pydicom.dcmread(path)
        ds.KVP = 80
        ds.save_as(path)
    for path in (tmp_path / "c").iterdir():
        ds = pydicom.dcmread(path)
        ds.FrameOfReferenceUID = "1.2.3"
        ds.save_as(path)
    assert set(verdicts(tmp_path, id_key, select="thinnest-soft-tissue").values()) == {"ok"}


def test_an_acquisition_uid_outweighs_times(tmp_path, id_key):
    for name, uid in (("a", "1.2.3"), ("b", "1.2.3"), ("c", "1.2.4")):
        write(tmp_path / name, number=ord(name), time="" if name == "b" else TIME)
        for path in (tmp_path / name).iterdir():
            ds = pydicom.dcmread(path)
            ds.AcquisitionUID = uid
            ds.save_as(path)
    counts = verdicts(tmp_path, id_key, select="thinnest-soft-tissue")
    assert sorted((counts["a"], counts["b"])) == ["not_selected", "ok"]
    assert counts["c"] == "ok"


def test_phases_of_one_series_are_no_rivals(acquisitions, id_key):
    found = scan([str(acquisitions)], id_key)
    rows = [row for row in found.series if "soft-thick" in row.refs[0].path]
    phases = [*rows, replace(rows[0], key="another-phase")]
    acquired = replace(
        acquisition_of([]), frame_of_reference="1.2", seconds=(1.0, 2.0), uid="", kvp=None
    )
    assert {str(row.reason) for row in thinnest_soft_tissue(phases, {})} == {"ok"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingest.select.acquisition_of", lambda headers: acquired)
        assert {str(row.reason) for row in thinnest_soft_tissue(phases, {})} == {"ok"}
        others = [replace(row, series_id=row.key) for row in phases]
        reasons = sorted(str(row.reason) for row in thinnest_soft_tissue(others, {}))
        assert reasons == ["not_selected", "ok"]


def test_coverage_is_from_feet_to_head(acquisitions, noise_stack, tmp_path, id_key):
    row = next(s for s in scan([str(acquisitions / "soft-thin")], id_key).series)
    assert coverage_mm(row) == pytest.approx(23 * 2.5)
    assert set(verdicts(acquisitions, id_key, min_coverage_mm=57.4).values()) >= {"ok"}
    few = verdicts(acquisitions, id_key, min_coverage_mm=56.0)
    assert few["soft-thin"] == "ok"  # 57.5 mm
    assert few["soft-thick"] == "too_little_coverage"  # 55 mm
    # A coronal stack covers its rows from feet to head, however few its slices are.
    coronal = noise_stack(
        n=12, side=16, positions=[(0, 2.0 * k, 0) for k in range(12)],
        orientation=(1.0, 0.0, 0.0, 0.0, 0.0, -1.0), pixel_spacing=(3.0, 3.0),
    )  # fmt: skip
    [row] = scan([str(coronal.write(tmp_path / "c"))], id_key).series
    assert coverage_mm(row) == pytest.approx(15 * 3.0)


# ---------------------------------------------------------------- exclusion lists


def test_a_list_names_cases_in_five_ways(acquisitions, tmp_path, id_key):
    some = pydicom.dcmread(next((acquisitions / "later").iterdir()))
    other = pydicom.dcmread(next((acquisitions / "other").iterdir()))

    def excluded(text):
        path = tmp_path / "list.txt"
        path.write_text(text)
        found = verdicts(acquisitions, id_key, exclusions=read_exclusions([path]))
        return {name for name, reason in found.items() if reason == "excluded"}

    everything = {path.name for path in acquisitions.iterdir()}
    assert excluded("# nothing\n\n") == set()
    assert excluded(f"{some.SeriesInstanceUID}  # an evaluation case") == {"later"}
    assert excluded(f"\ufeff{some.SOPInstanceUID}\r\n") == {"later"}
    assert excluded(some.StudyInstanceUID) == everything - {"other"}
    assert excluded(f"patient:{other.PatientID}\n") == {"other"}
    assert excluded(f"uid:{some.SeriesInstanceUID}") == {"later"}
    assert excluded(f"patient:{other.PatientID} # 1") == set()
    assert excluded("1.2.3\npatient:nobody\npixels:" + "0" * 64) == set()


@pytest.mark.parametrize(
    "line", ["1.2.x", "7", "pixels:123", "sha256:" + "g" * 64, "patient:", "Meier", "1." * 40 + "1"]
)
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "list.txt"
    path.write_text(f"# a list\n1.2.3\n{line}\n")
    with pytest.raises(UsageError, match=r"list\.txt, line 3: .* is no entry; give a UID"):
        read_exclusions([path])


def test_a_list_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_exclusions([tmp_path / "none"])
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_exclusions([tmp_path / "binary"])


def test_the_digest_of_lists_is_of_what_they_say(tmp_path):
    texts = {"a": "1.2.3\n1.2.4\n", "b": "# both\n1.2.4\n1.2.3 # first\n1.2.3", "c": "1.2.3\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    a, b, c = (read_exclusions([tmp_path / name]).sha256 for name in texts)
    assert a == b != c
    assert read_exclusions([tmp_path / "c", tmp_path / "a"]).sha256 == a
    assert read_exclusions([]).sha256 == ""


# ---------------------------------------------------------------- the command line


def run(*args):
    return main([str(arg) for arg in args])


def test_scan_dry_run_and_build_agree(acquisitions, tmp_path, capsys):
    some = pydicom.dcmread(next((acquisitions / "other").iterdir()))
    (tmp_path / "list").write_text(f"patient:{some.PatientID}\n")
    flags = (
        "--select", "thinnest-soft-tissue", "--min-coverage-mm", "56", "--min-slices", "11",
        "--exclude", tmp_path / "list",
    )  # fmt: skip
    assert run("scan", acquisitions, *flags, "--json") == 0
    seen = json.loads(capsys.readouterr().out.splitlines()[-1])
    # Too short are the three thick ones that stay; so the other soft ones have no rival left.
    assert seen["reasons"] == {
        "ok": 2, "not_selected": 2, "too_little_coverage": 3, "excluded": 1,
    }  # fmt: skip
    assert run("build-shards", acquisitions, tmp_path / "out", *flags, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["ok", "ok"]
    assert any("B30f soft 2.5 mm 120 kV" in line and "soft-thin" in line for line in lines)
    assert lines[-1].startswith("would build 2 volumes")
    assert not (tmp_path / "out").exists()
    build = ("build-shards", acquisitions, tmp_path / "out", "--spacing-mm", "10", "--workers", "1")
    assert run(*build, *flags) == 0
    text = capsys.readouterr().out
    assert "excluded: 0 by uid, 1 by patient, 0 by pixels, 0 by content; list " in text
    table = pq.read_table(tmp_path / "out/series.parquet").to_pylist()
    reasons = {reason: sum(r["reason"] == reason for r in table) for reason in seen["reasons"]}
    assert reasons == seen["reasons"]
    record = json.loads((tmp_path / "out/exclusions.json").read_text())
    assert record["entries"] == {"uid": 0, "patient": 1, "pixels": 0, "content": 0}
    assert record["excluded"] == {"uid": 0, "patient": 1, "pixels": 0, "content": 0}
    assert record["sha256"] in (tmp_path / "out/report.html").read_text()
    # Another list is another dataset.
    (tmp_path / "list").write_text(f"patient:{some.PatientID}\npixels:{'0' * 64}\n")
    assert run(*build, *flags) == 2


def test_a_fingerprint_keeps_evaluation_cases_out(acquisitions, tmp_path, capsys):
    """By pixels alone: the cases come back under other UIDs, as NIfTI or as a dataset's sample."""
    assert run("fingerprint", acquisitions / "other", "--workers", "1", "--patients") == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    header = pydicom.dcmread(next((acquisitions / "other").iterdir()))
    assert header.SeriesInstanceUID in lines
    assert header.StudyInstanceUID in lines
    assert f"patient:{header.PatientID}" in lines
    pixels = [line for line in lines if line.startswith("pixels:")]
    assert len(pixels) == 1
    (tmp_path / "list").write_text(text)
    assert len(read_exclusions([tmp_path / "list"]).uids) == 2
    (tmp_path / "pixels").write_text("\n".join(pixels))
    build = ("build-shards", acquisitions / "other", acquisitions / "later")
    flags = ("--spacing-mm", "10", "--workers", "1", "--exclude", tmp_path / "pixels")
    assert run(*build, tmp_path / "one", *flags) == 0
    assert json.loads((tmp_path / "one/exclusions.json").read_text())["excluded"]["pixels"] == 1
    capsys.readouterr()
    # By the content digest of a sample of a dataset of the same settings.
    (kept,) = Dataset.open(tmp_path / "one")
    (tmp_path / "content").write_text(f"sha256:{kept.meta.content_sha256}")
    assert run(*build, tmp_path / "two", *flags, "--exclude", tmp_path / "content") == 1
    assert "none accepted" in capsys.readouterr().err


def test_a_list_of_odd_identifiers_reads_back(acquisitions, tmp_path, id_key):
    found = scan([str(acquisitions / "other")], id_key)
    [row] = found.series
    odd = replace(row, uids=("ABC", "1.2.3", "two\nlines"), patient="Ward 7 #12")
    lines = entries(replace(found, series=(odd,)), ["0" * 64, ""], patients=True)
    (tmp_path / "list").write_text("\n".join(lines))
    exclusions = read_exclusions([tmp_path / "list"])
    assert exclusions.uids == {"ABC", "1.2.3"}
    assert exclusions.patients == {"Ward 7 #12"}
    assert exclusions.voxels.pixels == {"0" * 64}


@pytest.mark.parametrize("value", [-1.0, np.inf, np.nan])
def test_coverage_that_cannot_be_is_refused(value):
    with pytest.raises(ValueError, match="--min-coverage-mm"):
        BuildConfig(min_coverage_mm=float(value))
