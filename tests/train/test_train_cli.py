"""The `coralbay` command: help that costs nothing, exit codes, one-line errors, signals."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from coralbay import recipes
from coralbay.views import ViewRecipe, ViewSpec
from shards.testing import write_toy_dataset
from train import presets
from train.cli import SMOOTHED_STEPS, _Watch, _watching, main
from train.config import RunConfig
from train.loader.base import Batch, CTLoader
from train.metrics import MetricsLog, StepRecord

VIEWS = ViewRecipe(
    global_=ViewSpec(size=64, extent=(40.0, 65.0), count=2),
    local=ViewSpec(size=33, extent=(24.0, 40.0), count=1),
    box_side=65,
)


def little(shards: str) -> RunConfig:
    """A preset that takes half a second a step."""
    recipe = replace(
        recipes.tiny(),
        name="little",
        views=VIEWS,
        feature_size=4,
        num_heads=(1, 1, 1, 1),
        prototypes=64,
    )
    return replace(
        presets.tiny(shards),
        preset="little",
        recipe=recipe,
        batch_size=1,
        total_steps=4,
        checkpoint_every=3,
        device="cpu",
    )


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(presets.PRESETS, "little", little)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_dataset(tmp_path_factory.mktemp("toy"), 3, shape=(70, 70, 70), per_shard=2)


def pretrain(shards: object, run: Path, *more: str, preset: str = "little") -> int:
    return main(["pretrain", "--shards", str(shards), "--run", str(run), "--preset", preset, *more])


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on standard error, as a user sees it."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line[:4] != "INFO"]
    assert len(lines) == 1, lines
    assert lines[0].startswith("coralbay: ")
    return lines[0]


# Help.

HEAVY = ("torch", "nvidia", "monai", "zarr", "SimpleITK", "pyarrow", "matplotlib", "numcodecs")


@pytest.mark.parametrize("command", [[], ["pretrain"], ["resume"], ["profile-loader"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = f"""
import sys
from train.cli import main
try:
    main([*{command!r}, "--help"])
except SystemExit as end:
    assert end.code == 0
print("HEAVY", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: coralbay" in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY []"


DATA_FLAGS = "holdout split-seed weights where "
STREAM_FLAGS = "cache-dir cache-gib decode-on feed held-mib in-flight mode "
FLAGS = {
    "pretrain": DATA_FLAGS + STREAM_FLAGS + "batch-size checkpoint-every device json loader preset "
    "run seed shards steps threads total-steps",
    "resume": STREAM_FLAGS + "accept-new-data json shards steps",
    "profile-loader": DATA_FLAGS + STREAM_FLAGS + "batch-size consumer-sets-per-s device headspace "
    "json loader png preset seconds threads trace",
}


@pytest.mark.parametrize("command", FLAGS)
def test_the_flags_are_these(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    found = set(re.findall(r"^[^-\w\n]*--([a-z][a-z-]*)", capsys.readouterr().out, re.MULTILINE))
    assert found == set(FLAGS[command].split())


# Running.


def test_pretrain_then_resume(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert pretrain(shards, run, "--steps", "1", "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert (result["step"], result["steps_done"], result["total_steps"]) == (1, 1, 4)
    for made in ("checkpoint", "metrics", "plot"):
        assert Path(result[made]).is_file()
        assert any(result[made] in line for line in lines[:-1])
    assert f"coralbay resume {run}" in "\n".join(lines)

    assert main(["resume", str(run), "--steps", "1"]) == 0
    captured = capsys.readouterr()
    assert "step 2 of 4" in captured.out
    assert re.search(r"step 2/2 +loss \d+\.\d+ +data wait \d+%", captured.err)
    config = json.loads((run / "config.json").read_text())["config"]
    assert (config["preset"], config["loader"], config["batch_size"]) == ("little", "dali", 1)


def test_the_feed_changes_no_step(shards: Path, tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert pretrain(shards, whole, "--steps", "2") == 0
    assert pretrain(shards, pieces, "--steps", "1") == 0
    assert main(["resume", str(pieces), "--steps", "1", "--feed", "subprocess"]) == 0
    losses = []
    for run in (whole, pieces):
        lines = (run / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_a_checkpoint_and_ends(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    append = MetricsLog.append

    def then_signal(log: MetricsLog, record: StepRecord) -> None:
        append(log, record)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    monkeypatch.setattr(MetricsLog, "append", then_signal)
    assert pretrain(shards, tmp_path / "run") == code
    assert signal.getsignal(number) is before
    assert (tmp_path / "run/checkpoint-000001.pt").is_file()
    assert not (tmp_path / "run/checkpoint-000003.pt").exists()


def profile(shards: Path, *more: str) -> int:
    little = ["--preset", "little", "--seconds", "0.1"]
    return main(["profile-loader", str(shards), *little, *more])


def test_profile_loader_ends_with_its_json(
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("train.profile.headspace.FEW_PAIRS", 1)
    files = [tmp_path / "a.png", tmp_path / "a.json"]
    flags = ["--png", str(files[0]), "--trace", str(files[1]), "--headspace", "little"]
    assert profile(shards, *flags, "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    names = "sets_per_s stages data_wait decode_amplification read_amplification limits ratios"
    assert set(result) >= {*names.split(), "bottleneck"}
    for path in files:
        assert path.is_file()
        assert any(str(path) in line for line in lines[:-1])
    found = result["headspace"]
    assert (found["preset"], found["device"], found["batch_size"]) == ("little", "cpu", 1)
    assert (found["pairs"], found["steps"]) == (1, 1)
    assert result["limits"]["cached_batches"] == pytest.approx(found["cached_steps_per_s"])
    # The same work but for the batches; rates of a shared machine may differ a lot.
    assert 0.1 < found["ratio"] < 10
    assert 0 <= found["data_wait"] < 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--png", "/"], "--png /: is a folder"),
        (["--png", "absent/a.png"], "--png absent/a.png: cannot be written (No such file"),
        (["--trace", "absent/a.json"], "--trace absent/a.json: cannot be written (No such file"),
        (["--headspace", "tinny"], "--headspace tinny: no such preset; did you mean 'tiny'?"),
        (["--seconds", "0"], "--seconds 0: give more than 0"),
        (["--consumer-sets-per-s", "-1"], "--consumer-sets-per-s -1: give more than 0"),
        (["--batch-size", "4"], "3 trainable volumes, fewer than the 4 sets of a batch"),
    ],
)
def test_what_cannot_be_profiled_is_said_before_anything_is_measured(
    shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("train.profile.measure.run_flow", never)
    assert profile(shards, *flags) == 2
    assert message in complaint(capsys)


# Data wait, live.


def record(step: int, data_s: float, step_s: float) -> StepRecord:
    return StepRecord(
        step=step, epoch=0, index=step, sets=1, loss=5.0, teacher_entropy=1.0,
        level_variance=(1.0,), grad_norm=1.0, lr=0.1, wd=0.1, momentum=0.9, teacher_temp=0.1,
        data_s=data_s, step_s=step_s,
    )  # fmt: skip


def test_a_terminal_shows_the_data_wait_of_the_last_steps() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=120)
    n = SMOOTHED_STEPS
    with _watching(console) as watch:
        for step in range(1, n + 1):
            watch.step(record(step, 9.0, 1.0), 100)
        assert "data wait 90%" in shown(watch)
        # Half of the last steps wait for nothing.
        for step in range(n + 1, n * 3 // 2 + 1):
            watch.step(record(step, 0.0, 10.0), 100)
        assert "data wait 45%" in shown(watch)
        # One slow batch among fast ones is not the whole truth.
        for step in range(n * 3 // 2 + 1, n * 3):
            watch.step(record(step, 0.0, 1.0), 100)
        watch.step(record(n * 3, 1.0, 0.0), 100)
        assert f"data wait {1 / n:.0%}" in shown(watch)
    assert "data wait" in written.getvalue()


def shown(watch: _Watch) -> str:
    assert watch._progress is not None
    return watch._progress.tasks[0].description


def test_a_log_and_the_metrics_have_the_data_wait_of_each_step(
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once = CTLoader.__next__

    def late(loader: CTLoader) -> Batch:
        batch = at_once(loader)
        time.sleep(0.2 if batch.indices[0] else 0.0)
        return batch

    monkeypatch.setattr(CTLoader, "__next__", late)
    assert pretrain(shards, tmp_path / "run", "--steps", "2") == 0
    lines = re.findall(r"step \d/2 .*data wait (\d+)%", capsys.readouterr().err)
    kept = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == len(kept) == 2
    for line, found in zip(lines, kept, strict=True):
        whole = found["data_s"] + found["step_s"]
        assert found["data_wait"] == pytest.approx(found["data_s"] / whole)
        assert int(line) == round(100 * found["data_wait"])
    assert kept[1]["data_s"] >= 0.2


# Bad input: what, where, what to do, in one line, with the right exit code.


def test_an_unknown_preset(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(shards, tmp_path / "run", preset="smal") == 2
    assert "--preset smal: no such preset; did you mean 'small'?" in complaint(capsys)


@pytest.mark.parametrize("command", ["pretrain", "profile-loader"])
def test_a_folder_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    absent = str(tmp_path / "absent")
    if command == "pretrain":
        assert pretrain(absent, tmp_path / "run") == 2
    else:
        assert main(["profile-loader", absent]) == 2
    assert f"{absent}: no such folder" in complaint(capsys)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(tmp_path, tmp_path / "run") == 2
    assert "ingest build-shards" in complaint(capsys)


def test_a_url_of_no_known_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain("ftp://host/ct", tmp_path / "run") == 1
    assert "ftp://host/ct: cannot open" in complaint(capsys)


def edited_dataset(tmp_path: Path, **changes: object) -> Path:
    folder = write_toy_dataset(tmp_path / "data", 1, shape=(70, 70, 70))
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_shards_of_another_format_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = edited_dataset(tmp_path, format_version=3)
    assert pretrain(data, tmp_path / "run") == 1
    message = complaint(capsys)
    assert str(data) in message
    assert "version 3" in message
    assert not (tmp_path / "run").exists()


def test_shards_at_native_spacing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = edited_dataset(tmp_path) / "manifest.json"
    record = json.loads(path.read_text())
    record["contract"]["must_match"]["spacing_zyx_mm"] = None
    path.write_text(json.dumps(record))
    assert pretrain(path.parent, tmp_path / "run") == 2
    assert "spacing_zyx_mm is native" in complaint(capsys)


def test_too_few_volumes_for_a_batch(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(shards, tmp_path / "run", "--batch-size", "4") == 2
    assert "3 trainable volumes, fewer than the batch size 4" in complaint(capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "0"], "batch_size 0: give 1 or more"),
        (["--steps", "0"], "--steps 0: give 1 or more"),
        (["--steps", "9"], "--steps 9: the run is 4 steps long"),
        (["--seed", "-1"], "seed -1"),
    ],
)
def test_numbers_that_cannot_work(
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    assert pretrain(shards, tmp_path / "run", *flags) == 2
    assert message in complaint(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(shards, tmp_path / "run", "--device", "cuda") == 2
    assert "--device cuda: no CUDA GPU" in complaint(capsys)


def test_a_run_folder_in_use(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert pretrain(shards, run, "--steps", "1") == 0
    capsys.readouterr()
    assert pretrain(shards, run, "--seed", "1") == 2
    assert (
        f"already holds a run with another configuration; go on with `coralbay resume {run}`"
        in (complaint(capsys))
    )


def test_no_run_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(tmp_path / "absent")]) == 2
    assert "no run there" in complaint(capsys)


def test_a_corrupt_checkpoint(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert pretrain(shards, run, "--steps", "1") == 0
    capsys.readouterr()
    path = run / "checkpoint-000001.pt"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["resume", str(run)]) == 1
    assert "checkpoint-000001.pt: its bytes are not those" in complaint(capsys)


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "smaller --batch-size"),
        (OSError(errno.ENOSPC, "No space left on device", "run/x.pt"), "run/x.pt: No space left"),
    ],
)
def test_a_machine_that_is_too_small_is_said_in_a_line(
    error: Exception,
    way_out: str,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("train.loop.train_step", fail)
    assert pretrain(shards, tmp_path / "run", "--steps", "1") == 1
    assert way_out in complaint(capsys)


def test_a_bug_is_not_hidden(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("train.loop.train_step", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        pretrain(shards, tmp_path / "run", "--steps", "1")


@pytest.mark.parametrize(
    "args", [[], ["pretrain"], ["pretend"], ["resume"], ["resume", "x", "--step", "1"]]
)
def test_usage_that_does_not_parse(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 2
    assert capsys.readouterr().err
