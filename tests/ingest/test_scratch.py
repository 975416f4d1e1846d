"""Several series in one compressed tar cost one pass, within a cap, and leave nothing behind."""

import errno
import gc
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest import fetch
from ingest.cli import main
from ingest.scan import ScanConfig, scan
from ingest.scratch import Scratch
from ingest.series import Series
from ingest.sources import read_files

SERIES = 5


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the passes over compressed tars for voxels."""
    counts: Counter[str] = Counter()
    tar_members = fetch.tar_members

    def counting(stream: Any) -> Any:
        counts["passes"] += 1
        return tar_members(stream)

    monkeypatch.setattr(fetch, "tar_members", counting)
    return counts


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scratch]:
    mine = Scratch(limit=1 << 30)
    monkeypatch.setattr(fetch, "SCRATCH", mine)
    yield mine
    mine.close()


@pytest.fixture(scope="module")
def packed(noise_stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices of five series, taken in turn, in one tar.gz."""
    root = tmp_path_factory.mktemp("scratch")
    for k in range(SERIES):
        noise_stack(6 + k, name=f"s{k}").write(root / f"s{k}")
    (root / "in").mkdir()
    with tarfile.open(root / "in" / "all.tar.gz", "w:gz") as archive:
        for path in sorted(root.glob("s*/*.dcm"), key=lambda path: path.name):
            archive.add(path, f"{path.parent.name}/{path.name}")
        archive.add(__file__, "note.txt")
    return root / "in"


@pytest.fixture
def series(packed: Path, id_key: Any) -> list[Series]:
    rows = scan([str(packed)], id_key, ScanConfig(min_slices=3)).series
    return [row for row in rows if row.reason == "ok"]


def test_one_pass_for_all_series(
    series: list[Series], passes: Counter[str], scratch: Scratch
) -> None:
    assert len(series) == SERIES
    kept = [dict(read_files(row.refs)) for row in series]
    assert passes["passes"] == 1
    scratch.close()
    streamed = [dict(read_files(row.refs)) for row in series]
    assert passes["passes"] == 1 + SERIES
    assert kept == streamed
    assert sorted(map(len, kept)) == [6, 7, 8, 9, 10]


def test_a_cap_costs_passes_and_changes_no_byte(
    series: list[Series], passes: Counter[str], scratch: Scratch
) -> None:
    scratch.limit = 20 * series[0].refs[0].size
    kept = []
    for row in series:
        kept.append(dict(read_files(row.refs)))
        assert scratch.nbytes <= scratch.limit
    assert 1 < passes["passes"] <= SERIES
    scratch.close()
    assert kept == [dict(read_files(row.refs)) for row in series]


def test_a_killed_worker_leaves_nothing(
    series: list[Series], scratch: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    list(read_files(series[0].refs))
    assert scratch.nbytes > sum(ref.size for row in series for ref in row.refs)
    assert list(tmp_path.iterdir()) == []  # the file has no name
    scratch.close()
    assert scratch.nbytes == 0


def test_a_full_disk_costs_passes_alone(
    series: list[Series], passes: Counter[str], scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ingest.scratch.tempfile.TemporaryFile", full)
    assert [len(list(read_files(row.refs))) for row in series] == [len(row.refs) for row in series]
    assert passes["passes"] == SERIES


def test_another_build_drops_what_is_kept(series: list[Series], scratch: Scratch) -> None:
    list(read_files(series[0].refs))
    scratch.start("one", 1 << 30)
    assert scratch.nbytes == 0
    list(read_files(series[0].refs))
    scratch.start("one", 1 << 30)
    assert scratch.nbytes > 0


def test_a_build_uses_it_and_its_bytes_do_not_depend_on_it(
    packed: Path, passes: Counter[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text("cd" * 32)
    options = ["--id-key", str(tmp_path / "key"), "--workers", "1", "--min-slices", "3",
               "--spacing-mm", "native"]  # fmt: skip
    before = _open_files()
    assert main(["build-shards", str(packed), str(tmp_path / "with"), *options]) == 0
    assert passes["passes"] == 1
    gc.collect()
    assert _open_files() <= before
    off = ["--scratch-gib", "0"]
    assert main(["build-shards", str(packed), str(tmp_path / "without"), *options, *off]) == 0
    assert passes["passes"] == 1 + SERIES
    for path in (tmp_path / "with").iterdir():
        assert path.read_bytes() == (tmp_path / "without" / path.name).read_bytes()
    capsys.readouterr()
    assert main(["build-shards", str(packed), str(tmp_path / "x"), "--scratch-gib", "-1"]) == 2
    assert "--scratch-gib -1: give 0 or more" in capsys.readouterr().err


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
