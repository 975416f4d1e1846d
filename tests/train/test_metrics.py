"""``metrics.jsonl`` after kills and edits, and the curves drawn from it."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from train.errors import TrainError
from train.metrics import MetricsLog, StepRecord, read_metrics
from train.plots import plot_run, smooth


def record(step: int, loss: float = 2.0) -> StepRecord:
    return StepRecord(
        step=step,
        epoch=0,
        index=2 * step - 2,
        sets=2,
        loss=loss,
        teacher_entropy=0.8,
        level_variance=(0.001, 0.1),
        grad_norm=1.0,
        lr=1e-3,
        wd=0.04,
        momentum=0.996,
        teacher_temp=0.04,
        data_s=0.25,
        step_s=0.75,
    )


def write(path: Path, *steps: int, resume_step: int = 0) -> None:
    with MetricsLog(path, resume_step=resume_step) as log:
        for step in steps:
            log.append(record(step))


def test_a_line_is_one_steps_json(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", 1, 2)
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert (lines[0]["data_wait"], lines[0]["sets_per_s"]) == (0.25, 2.0)
    assert read_metrics(tmp_path / "m.jsonl") == [record(1), record(2)]


def test_a_line_is_in_the_file_as_its_step_ends(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m.jsonl", resume_step=0) as log:
        log.append(record(1))
        assert read_metrics(tmp_path / "m.jsonl") == [record(1)]


def test_resuming_drops_the_steps_that_will_be_done_again(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", 1, 2, 3)
    write(tmp_path / "m.jsonl", 3, 4, resume_step=2)
    assert [r.step for r in read_metrics(tmp_path / "m.jsonl")] == [1, 2, 3, 4]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, 1, 2)
    path.write_text(path.read_text()[:-30])
    assert [r.step for r in read_metrics(path)] == [1]


def test_a_broken_line_inside_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, 1, 2)
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(TrainError, match="line 1: not a metrics record"):
        read_metrics(path)


@pytest.mark.parametrize("n", [1, 2, 60])
def test_the_curves_are_a_picture_with_ink(tmp_path: Path, n: int) -> None:
    records = [record(step, loss=7.0 - step / n) for step in range(1, n + 1)]
    plot_run(records, tmp_path / "loss.png", title="a run")
    pixels = imread(tmp_path / "loss.png")
    assert pixels.shape[0] > 600
    assert pixels.shape[1] > 900
    blue = (pixels[..., 2] - pixels[..., 0]) > 0.3
    assert blue[: len(blue) // 2].sum() > 20


def test_smoothing_is_the_mean_of_the_last_values() -> None:
    found = smooth(np.array([1.0, 3.0, 5.0, 7.0, 0.0]), 2)
    np.testing.assert_allclose(found, [1.0, 2.0, 4.0, 6.0, 3.5])
