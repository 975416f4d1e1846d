"""Checkpoints: atomic, verified, versioned, and only the newest few kept."""

import json
import os
from pathlib import Path

import pytest
import torch

from shards.schema import Contract, MustMatch, Recorded
from train import checkpoint
from train.errors import CheckpointError

CONTRACT = Contract(
    must_match=MustMatch(),
    recorded=Recorded(resampler="antialias", body_crop=True, profile="balanced"),
)


def save(run: Path, step: int, keep: int = 3) -> Path:
    state = {"weight": torch.arange(6.0).reshape(2, 3) + step, "step": step, "name": "x"}
    return checkpoint.save(
        run,
        state,
        step=step,
        loss=1.5,
        data_position={"next_index": 2 * step},
        generation_id="gen",
        contract=CONTRACT,
        versions={"torch": "9"},
        keep=keep,
    )


def newest_step(run: Path) -> int:
    path = checkpoint.latest(run)
    assert path is not None
    return checkpoint.load(path)[0].step


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = save(tmp_path, 12)
    assert path == tmp_path / "checkpoint-000012.pt"
    info, state = checkpoint.load(path)
    torch.testing.assert_close(state["weight"], torch.tensor([[12.0, 13, 14], [15, 16, 17]]))
    assert (state["step"], state["name"]) == (12, "x")
    assert (info.step, info.loss, info.data_position) == (12, 1.5, {"next_index": 24})
    assert info.bytes == path.stat().st_size
    assert info.contract == CONTRACT


def test_latest_is_by_number_and_old_ones_go(tmp_path: Path) -> None:
    for step in (9, 10, 11, 1_000_000):
        save(tmp_path, step, keep=2)
    assert checkpoint.latest(tmp_path).name == "checkpoint-1000000.pt"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-000011.json",
        "checkpoint-000011.pt",
        "checkpoint-1000000.json",
        "checkpoint-1000000.pt",
    ]


def test_a_save_cut_short_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def disk_full(state: object, file: object) -> None:
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path, 2)
    assert newest_step(tmp_path) == 1


def test_a_crash_between_the_two_files_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def crash(path: Path, record: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_json", crash)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert (tmp_path / "checkpoint-000002.pt").exists()
    assert newest_step(tmp_path) == 1


def test_everything_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("sync"), fsync(fd))[1])
    monkeypatch.setattr(
        os, "replace", lambda a, b: (events.append(Path(b).suffix), replace(a, b))[1]
    )
    save(tmp_path, 1)
    assert events == ["sync", ".pt", "sync", "sync", ".json", "sync"]


def one_line(exc: pytest.ExceptionInfo[CheckpointError]) -> str:
    assert "\n" not in str(exc.value)
    return str(exc.value)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_tensors_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    path = save(tmp_path, 3)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-10])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-000003\.pt: .*delete it") as caught:
        checkpoint.load(path)
    one_line(caught)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_format_version_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    edit(path.with_suffix(".json"), format_version=2, new_field=1)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"version 2, but this program knows .* version 1"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 1}'])
def test_a_broken_json_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = save(tmp_path, 3)
    path.with_suffix(".json").write_text(content)
    with pytest.raises(CheckpointError, match="not a checkpoint's JSON") as caught:
        checkpoint.load(path)
    one_line(caught)


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    edit(path.with_suffix(".json"), surprise=1)
    with pytest.raises(CheckpointError, match="surprise") as caught:
        checkpoint.load(path)
    one_line(caught)


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('ran')",)

    path = save(tmp_path, 3)
    torch.save({"state": Hostile()}, path)
    digest = checkpoint._sha256(path)
    edit(path.with_suffix(".json"), sha256=digest, bytes=path.stat().st_size)
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        checkpoint.load(path)


def test_an_empty_run_folder_has_no_latest(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
