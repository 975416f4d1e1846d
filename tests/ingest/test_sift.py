"""Files are read ahead, by threads and processes, and nothing but the time changes."""

import io
import shutil
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from ingest import readahead, sift
from ingest.errors import IngestError
from ingest.scan import ScanConfig, scan
from ingest.sources import walk
from shards.prefetch import prefetch

TINY = ScanConfig(min_slices=3)


@pytest.fixture(scope="module")
def archive(noise_stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders and tars with duplicates among them, and files that are no images."""
    root = tmp_path_factory.mktemp("many")
    for name in "abc":
        noise_stack(6, name=name).write(root / name)
    shutil.copytree(root / "a", root / "copy of a")
    for name in "bd":
        with tarfile.open(root / f"{name}.tar.gz", "w:gz") as packed:
            packed.add(noise_stack(6, name=name).write(root.with_name(f"packed-{name}")))
    (root / "note.txt").write_text("no image")
    (root / "gone").symlink_to(root / "nowhere")
    return root


def test_processes_change_nothing(
    archive: Path, id_key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = scan([str(archive)], id_key, TINY)
    assert scan([str(archive)], id_key, TINY, workers=2) == alone  # too few: no process is started
    monkeypatch.setattr(sift, "PARALLEL_FILES", 10)
    monkeypatch.setattr(sift, "CHUNK_FILES", 4)
    told: list[int] = []
    monkeypatch.setattr(sift, "TOLD_EVERY", 10)
    assert scan([str(archive)], id_key, TINY, told.append, workers=2) == alone
    assert told == [*range(10, alone.n_files, 10), alone.n_files]


def test_threads_change_nothing(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def contents() -> list[tuple[Any, bytes | str]]:
        found = walk([str(archive)])
        return [(f.ref, f.stream.read() if hasattr(f, "stream") else f.detail) for f in found]

    alone = contents()
    threads: set[int] = set()
    read = readahead._head

    def watched(source: Any) -> Any:
        threads.add(threading.get_ident())
        return read(source)

    monkeypatch.setattr(readahead, "_head", watched)
    monkeypatch.setattr(readahead, "SLOW_S", 0.0)
    monkeypatch.setattr(readahead, "WATCHED_FILES", 2)
    assert contents() == alone
    assert len(threads) > 1


def test_a_process_that_dies_is_said_in_a_line(
    archive: Path, id_key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sift, "PARALLEL_FILES", 10)
    monkeypatch.setattr(sift, "_sift_chunk", _die)
    with pytest.raises(IngestError, match="a process that reads headers died"):
        scan([str(archive)], id_key, TINY, workers=2)


def _die(*_: Any) -> None:
    import os

    os._exit(9)


def test_a_scan_reads_heads_alone(
    noise_stack: Any, tmp_path: Path, id_key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a plain tar, and of files, only what the headers need is read."""
    stack = noise_stack(12, side=256)
    stack.write(tmp_path / "files")
    with tarfile.open(tmp_path / "a.tar", "w") as packed:
        packed.add(noise_stack(12, side=256, name="b").write(tmp_path.with_name("b")))
    read = 0

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            nonlocal read
            nbytes = super().readinto(buffer)
            read += nbytes
            return nbytes

        def read(self, size: int = -1) -> bytes:
            nonlocal read
            data = super().read(size)
            read += len(data)
            return data

    def counting_open(path: str, mode: str, buffering: int = 1 << 14) -> Any:
        raw = Counting(path, "r")
        return raw if buffering == 0 else io.BufferedReader(raw, buffering)

    monkeypatch.setattr(readahead, "open", counting_open, raising=False)
    result = scan([str(tmp_path)], id_key, TINY)
    total = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert result.n_files == 24
    assert total > 24 * 2 * 256 * 256
    assert 24 * 500 < read < total * 0.6


def test_prefetch_keeps_the_order_and_passes_errors_on() -> None:
    def square(value: int) -> int:
        if value == 40:
            raise ValueError("forty")
        return value * value

    results = prefetch(square, iter(range(100)), 4)
    assert [next(results) for _ in range(40)] == [value * value for value in range(40)]
    with pytest.raises(ValueError, match="forty"):
        next(results)
    assert list(prefetch(square, [], 4)) == []
