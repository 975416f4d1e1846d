import errno
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import ingest.pipeline
from ingest.cli import main
from ingest.phantom import Torso
from ingest.testing import SeriesSpec, write_series_at

SMALL = SeriesSpec(patient=1, slices=14, side=56, pixel_mm=6.0, gap_mm=5.0)
HEAVY = ("torch", "nvidia", "zarr", "SimpleITK", "monai", "scipy", "distributed", "pydicom")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    raw = tmp_path_factory.mktemp("raw")
    write_series_at(raw / "one", SMALL)
    write_series_at(raw / "two.zip", replace(SMALL, patient=2, number=2, torso=Torso(seed=2)))
    (raw / "notes.txt").write_text("nothing to see")
    return raw


@pytest.fixture(scope="module")
def built(archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "out"
    assert main(["build-shards", str(archive), str(out), "--spacing-mm", "6"]) == 0
    return out


def exit_code(*args):
    """As the shell sees it: tyro leaves by SystemExit on wrong flags."""
    try:
        return main([str(arg) for arg in args])
    except SystemExit as exc:
        return exc.code


def one_line(capsys):
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()[-1:]
    assert line.startswith("ingest: ")
    assert "Traceback" not in captured.err
    return line


@pytest.mark.parametrize(
    "args", [[], ["scan"], ["build-shards"], ["verify"], ["inspect"], ["demo-archive"]]
)
def test_help_is_light(args):
    code = (
        "import sys\nfrom ingest.cli import main\n"
        f"try: main({[*args, '--help']!r})\n"
        "except SystemExit as exc: assert exc.code == 0\n"
        f"print(','.join(m for m in {HEAVY!r} if m in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""
    assert "usage: ingest" in done.stdout


def test_the_flags_that_others_rely_on_are_there(capsys):
    with pytest.raises(SystemExit):
        main(["build-shards", "--help"])
    text = capsys.readouterr().out
    for flag in (
        "--spacing-mm", "--no-body-crop", "--resample", "--profile", "--shard-mib", "--workers",
        "--dask-scheduler", "--max-failures", "--min-slices", "--source", "--id-key", "--dry-run",
        "--json", "--min-coverage-mm", "--select", "--heads", "--exclude", "--keep-paths",
    ):  # fmt: skip
        assert flag in text


def test_building_ends_with_the_account(archive, tmp_path, capsys):
    assert exit_code("build-shards", archive, tmp_path / "out", "--spacing-mm", "6,6,6") == 0
    captured = capsys.readouterr()
    last = captured.out.strip().splitlines()[-1]
    assert "2 samples (0 trainable) in 1 shards" in last
    assert "series: 2 accepted, 1 refused (1 not_medical_image)" in last
    assert "files: 29 in = 28 used + 1 refused" in last
    assert f"refused not_medical_image: {archive / 'notes.txt'}" in captured.err


def test_json_is_the_last_line_of_stdout(archive, tmp_path, capsys):
    out = tmp_path / "out"
    args = ("build-shards", archive, out, "--spacing-mm", "6", "--json")
    assert exit_code(*args) == 0
    record = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (record["files_in"], record["files_used"], record["files_refused"]) == (29, 28, 1)
    assert record["reasons"] == {"not_medical_image": 1}
    assert (record["samples"], record["already_complete"]) == (2, False)
    assert record["shard_bytes"] == sum(p.stat().st_size for p in out.glob("*.tar"))
    assert exit_code(*args) == 0
    again = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert again["already_complete"] is True
    assert again["generation_id"] == record["generation_id"]


def test_a_complete_build_says_so(archive, built, capsys):
    assert exit_code("build-shards", archive, built, "--spacing-mm", "6", "--workers", "2") == 0
    assert "already complete" in capsys.readouterr().out


def test_dry_run_writes_nothing(archive, tmp_path, capsys):
    assert exit_code("build-shards", archive, tmp_path / "out", "--dry-run", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["volumes"], record["refused"], record["files"]) == (2, 1, 29)
    # 44 x 221 x 221 voxels a volume at 1.5 mm, and less than their 2 bytes each.
    assert 1e6 < record["estimated_bytes"] < 2 * 2 * 44 * 221 * 221
    assert list(tmp_path.iterdir()) == []


def test_scan_lists_every_series_and_why(archive, capsys):
    assert exit_code("scan", archive) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len([line for line in lines if line.startswith("ok ")]) == 2
    assert any("notes.txt" in line and "not_medical_image" in line for line in lines)
    assert any("two.zip!DICOM/I00001" in line for line in lines)
    assert lines[-1] == "29 files: 2 series to take, 1 refused"
    assert exit_code("scan", archive, "--json") == 0
    record = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert record == {"files": 29, "series": 3, "reasons": {"ok": 2, "not_medical_image": 1}}


def test_verify_finds_a_flipped_bit(built, tmp_path, capsys):
    assert exit_code("verify", built) == 0
    assert "all well" in capsys.readouterr().out
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    shard = copy / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    assert exit_code("verify", copy, "--json") == 1
    captured = capsys.readouterr()
    record = json.loads(captured.out.strip().splitlines()[-1])
    assert any("shard-000000.tar" in problem for problem in record["problems"])


def test_inspect_shows_the_dataset_and_a_sample(built, tmp_path, capsys):
    assert exit_code("inspect", built, "--png", tmp_path / "new/m.png") == 0
    text = capsys.readouterr().out
    assert "2 samples" in text
    key = text.strip().splitlines()[-1].split()[0]
    picture = np.asarray(Image.open(tmp_path / "new/m.png").convert("L"))
    assert picture.std() > 20  # Not blank.
    assert exit_code("inspect", built, key, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["key"], record["modality"], record["slice_mm"]) == (key, "CT", 2.5)
    assert exit_code("inspect", built, "nosuchkey") == 2
    assert "no such key" in one_line(capsys)


def test_demo_archive_goes_into_a_new_folder_only(tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("")
    assert exit_code("demo-archive", tmp_path / "taken") == 2
    assert "new or empty folder" in one_line(capsys)


def usage_cases(archive, tmp_path):
    """(arguments, words of the message) of what cannot work."""
    occupied = tmp_path / "file"
    occupied.write_text("")
    new = tmp_path / "new"
    return {
        "missing path": ((tmp_path / "none", new), "none: no such file or folder"),
        "OUT in RAW": ((archive, archive / "out"), "OUT lies inside RAW"),
        "OUT is RAW": ((archive, archive), "OUT lies inside RAW"),
        "RAW in OUT": ((archive, archive.parent), "RAW lies inside OUT"),
        "only one path": ((archive,), "one RAW or more, then OUT"),
        "no path": ((), "one RAW or more, then OUT"),
        "web server": ((archive, "https://host/x"), "nothing can be written there"),
        "bucket in RAW": (("s3://b/raw/", "S3://b/raw/x"), "OUT lies inside RAW"),
        "bucket with RAW": (("s3://b/x/raw", archive, "s3://b/x"), "RAW lies inside OUT"),
        "odd prefix": ((archive, "s3://bucket/../x"), "is no plain prefix"),
        "OUT is a file": ((archive, occupied), "file: is no folder"),
        "OUT under a file": ((archive, occupied / "x"), "x: is no folder"),
        "spacing": ((archive, new, "--spacing-mm", "1,2"), "--spacing-mm 1,2: give one number"),
        "workers": ((archive, new, "--workers", "0"), "--workers 0"),
        "budget": ((archive, new, "--max-failures", "2"), "--max-failures 2"),
        "size": ((archive, new, "--shard-mib", "0"), "--shard-mib 0"),
        "slices": ((archive, new, "--min-slices", "1"), "--min-slices 1"),
        "id key": ((archive, new, "--id-key", tmp_path / "nokey"), "nokey: cannot read the id key"),
    }


@pytest.mark.parametrize("case", [
    "missing path", "OUT in RAW", "OUT is RAW", "RAW in OUT", "only one path", "no path",
    "web server", "odd prefix", "bucket in RAW", "bucket with RAW",
    "OUT is a file", "OUT under a file", "spacing", "workers", "budget", "size", "slices", "id key",
])  # fmt: skip
def test_usage_errors_are_one_line_and_exit_2(case, archive, tmp_path, capsys):
    args, words = usage_cases(archive, tmp_path)[case]
    assert exit_code("build-shards", *args) == 2
    assert words in one_line(capsys)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "args", [["build-shards", "a", "b", "--no-such-flag"], ["frobnicate"], [], ["inspect"]]
)
def test_wrong_flags_exit_2(args, capsys):
    assert exit_code(*args) == 2


def test_an_empty_archive_is_a_failure_in_a_line(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    assert exit_code("build-shards", tmp_path / "raw", tmp_path / "out") == 1
    assert "no file found" in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_an_archive_without_a_volume_fails_with_its_reasons(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.txt").write_text("a")
    assert exit_code("build-shards", tmp_path / "raw", tmp_path / "out") == 1
    captured = capsys.readouterr().err
    assert "refused not_medical_image" in captured
    assert "none accepted" in captured.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_corrupt_zip_is_a_verdict(archive, tmp_path, capsys):
    data = bytearray((archive / "two.zip").read_bytes())
    (tmp_path / "bad.zip").write_bytes(data[: len(data) // 2])
    assert exit_code("build-shards", tmp_path / "bad.zip", tmp_path / "out") == 1
    captured = capsys.readouterr().err
    assert "refused corrupt_archive" in captured
    assert "Traceback" not in captured
    # Beside good input it is one more row.
    args = ("build-shards", tmp_path / "bad.zip", archive / "one", tmp_path / "out")
    assert exit_code(*args, "--spacing-mm", "6", "--json") == 0
    record = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert record["reasons"] == {"corrupt_archive": 1}
    assert record["samples"] == 1


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_what_is_no_dataset_is_said_in_a_line(command, tmp_path, built, capsys):
    assert exit_code(command, tmp_path) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "manifest.json" in line
    other = tmp_path / "other"
    other.mkdir()
    manifest = json.loads((built / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    assert exit_code(command, other) == 1
    assert "99" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_full_disk_is_said_in_a_line(archive, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "shard-000000.tar")

    monkeypatch.setattr(ingest.pipeline, "publish", full)
    assert exit_code("build-shards", archive, tmp_path / "out", "--spacing-mm", "6") == 1
    assert "shard-000000.tar: No space left on device" in one_line(capsys)
    monkeypatch.undo()
    assert exit_code("build-shards", archive, tmp_path / "out", "--spacing-mm", "6") == 0


def test_an_interrupt_says_that_work_is_kept(archive, tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ingest.pipeline, "run_tasks", stop)
    assert exit_code("build-shards", archive, tmp_path / "out", "--spacing-mm", "6") == 1
    assert "goes on from here" in one_line(capsys)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--help"], 0, "build-shards"),
        (["inspect", "/nowhere"], 2, "ingest: /nowhere"),
        (["scan", "--no-such-flag"], 2, "no-such-flag"),
    ],
)
def test_the_console_script_says_all_and_ends_with_the_code(args, code, said):
    """Through pipes, where output is kept back until it is flushed."""
    program = f"import sys; sys.argv = ['ingest', *{args!r}]; from ingest.cli import entry; entry()"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == code
    assert said in run.stdout + run.stderr
    assert "Traceback" not in run.stderr


def test_too_little_memory_is_one_line(archive, tmp_path, monkeypatch, capsys):
    def starve(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("ingest.work.make_sample", starve)
    assert exit_code("build-shards", archive, tmp_path / "out", "--workers", "1") == 1
    assert "out of memory" in one_line(capsys)
