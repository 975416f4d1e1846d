"""The step does what DINO says, and a run that was stopped goes on as if it had not been."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train.run
from coralbay.recipes import Recipe
from coralbay.schedules import build_schedules
from coralbay.views import ViewRecipe, ViewSpec
from shards.testing import withdraw, write_toy_dataset
from train import checkpoint, loop
from train.config import RunConfig
from train.errors import CheckpointError, NonFiniteError, UsageError
from train.generations import read_used
from train.loader.base import Batch
from train.metrics import StepRecord, read_metrics
from train.run import resume, start
from train.state import TrainState, new_state

RECIPE = Recipe(
    name="test",
    views=ViewRecipe(
        global_=ViewSpec(size=64, extent=(40.0, 65.0), count=2),
        local=ViewSpec(size=33, extent=(24.0, 40.0), count=1),
        box_side=65,
    ),
    feature_size=4,
    depths=(1, 1, 1, 1),
    num_heads=(1, 1, 1, 1),
    window=4,
    drop_path_rate=0.3,
    head_hidden=32,
    head_bottleneck=16,
    prototypes=64,
    lr_per_256=0.1,
    freeze_last_layer=0.25,
)
"""Small enough for a step a second; drop path high, so that it draws at every step."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums are split by thread count: bitwise equality needs the same one throughout."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_toy_dataset(tmp_path_factory.mktemp("toy"), 3, per_shard=2))


def run_config(shards: str, **changes: object) -> RunConfig:
    config = RunConfig(
        shards=shards,
        preset="test",
        recipe=RECIPE,
        batch_size=2,
        total_steps=4,
        checkpoint_every=2,
        device="cpu",
    )
    return replace(config, **changes)


class Silent:
    """Watches without a word; may crash the run, or stop it, after some step."""

    def __init__(self, crash_at: int = 0, stop_at: int = 0) -> None:
        self.crash_at, self.stop_at = crash_at, stop_at
        self.should_stop = False
        self.seen: list[int] = []

    def step(self, record: StepRecord, last_step: int) -> None:
        self.seen.append(record.step)
        self.should_stop = record.step == self.stop_at
        if record.step == self.crash_at:
            raise RuntimeError("power cut")


def final_state(run: Path) -> dict[str, object]:
    path = checkpoint.latest(run)
    assert path is not None
    return flatten(checkpoint.load(path)[1])


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}/{key}")
    return flat


def assert_same(left: dict[str, object], right: dict[str, object]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, right[name]), name
        else:
            assert value == right[name], name


TIMES = {"data_s", "step_s", "data_wait", "sets_per_s"}


def untimed(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: v for name, v in line.items() if name not in TIMES} for line in lines]


def test_a_run_in_pieces_equals_a_run_at_once_bitwise(shards: str, tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    start(run_config(shards), whole, steps=None, watch=Silent())

    start(run_config(shards), pieces, steps=1, watch=Silent())
    # Crashes with step 3 logged and the checkpoint of step 2 the newest: step 3 is done again.
    with pytest.raises(RuntimeError, match="power cut"):
        resume(pieces, steps=None, watch=Silent(crash_at=3))
    torch.manual_seed(99)
    summary = resume(pieces, steps=2, watch=Silent())

    assert (summary.step, summary.steps_done) == (4, 2)
    assert_same(final_state(pieces), final_state(whole))
    assert untimed(pieces) == untimed(whole)
    found = final_state(whole)
    assert found["/data_position/next_index"] == 8
    assert not torch.equal(found["/model/centre"], torch.zeros(64))
    student, teacher = (
        found[f"/model/{branch}.head.mlp.0.weight"] for branch in ("student", "teacher")
    )
    assert not torch.equal(student, teacher)


def test_a_run_ends_with_all_that_it_names(shards: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    watch = Silent(stop_at=1)
    summary = start(run_config(shards), run, steps=3, watch=watch)
    assert watch.seen == [1]
    assert (summary.step, summary.total_steps, summary.steps_done) == (1, 4, 1)
    assert Path(summary.checkpoint) == run / "checkpoint-000001.pt"
    assert Path(summary.plot).read_bytes().startswith(b"\x89PNG")
    [record] = read_metrics(Path(summary.metrics))
    assert (record.step, record.index, record.sets, record.epoch) == (1, 0, 2, 0)
    assert len(record.level_variance) == 5
    assert 0 < record.teacher_entropy <= 1
    assert record.loss == summary.loss
    names = {path.name for path in run.iterdir()}
    files = {"config.json", "data.json", "metrics.jsonl", "loss.png"}
    assert names == files | {"checkpoint-000001.pt", "checkpoint-000001.json"}


def test_a_run_without_checkpoint_begins_again(shards: str, tmp_path: Path) -> None:
    config = run_config(shards, batch_size=1, total_steps=1)
    with pytest.raises(RuntimeError, match="power cut"):
        start(config, tmp_path / "run", steps=None, watch=Silent(crash_at=1))
    summary = resume(tmp_path / "run", steps=None, watch=Silent())
    assert summary.step == 1
    # And a finished run is left as it is.
    again = resume(tmp_path / "run", steps=None, watch=Silent())
    assert (again.step, again.steps_done, again.loss) == (1, 0, summary.loss)


def test_more_steps_than_the_run_has_are_refused(shards: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--steps 5: the run is 4 steps long and 4 are left"):
        start(run_config(shards), tmp_path / "run", steps=5, watch=Silent())
    assert not (tmp_path / "run").exists()


def test_resuming_on_other_shards_is_refused(shards: str, tmp_path: Path) -> None:
    data = write_toy_dataset(tmp_path / "data", 2, shape=(70, 70, 70))
    config = run_config(str(data), batch_size=1, total_steps=1)
    with pytest.raises(RuntimeError, match="power cut"):
        start(config, tmp_path / "run", steps=None, watch=Silent(crash_at=1))
    for path in data.iterdir():
        path.unlink()
    write_toy_dataset(data, 2, shape=(70, 70, 70), seed=5)
    with pytest.raises(
        UsageError, match=r"1 shard more \(2 samples\), 1 shard fewer \(2 samples\)"
    ):
        resume(tmp_path / "run", steps=None, watch=Silent())


def test_resuming_on_another_generation_names_both(shards: str, tmp_path: Path) -> None:
    data = write_toy_dataset(tmp_path / "data", 3, shape=(70, 70, 70))
    config = run_config(str(data), batch_size=1, total_steps=2)
    done = start(config, tmp_path / "run", steps=1, watch=Silent())
    record = json.loads((tmp_path / "run/config.json").read_text())
    assert (done.generation, record["generation"]) == (1, 1)
    assert done.generation_id == record["generation_id"]
    withdraw(data, ["toy-0002"])
    run = tmp_path / "run"
    with pytest.raises(UsageError, match=r"is generation 2, .*used generation 1 ") as caught:
        resume(run, steps=None, watch=Silent())
    assert "(1 sample withdrawn); `coralbay resume" in str(caught.value)
    # A copy of the old one elsewhere, or the new one if one says so.
    moved = write_toy_dataset(tmp_path / "moved", 3, shape=(70, 70, 70))
    assert resume(run, steps=1, watch=Silent(), shards=str(moved)).step == 2


def test_going_on_with_another_generation(tmp_path: Path) -> None:
    data = write_toy_dataset(tmp_path / "data", 3, shape=(70, 70, 70))
    run = tmp_path / "run"
    start(run_config(str(data), batch_size=1, total_steps=4), run, steps=1, watch=Silent())
    for gone in ("toy-0002", "toy-0001"):  # accepted twice before it is used: once too early
        withdraw(data, [gone])
        with pytest.raises(UsageError, match="--accept-new-data goes on with this one"):
            resume(run, steps=1, watch=Silent())
        with pytest.raises(RuntimeError, match="power cut"):
            resume(run, steps=1, watch=Silent(crash_at=2), accept_new_data=True)
    used = [(g.from_step, g.generation) for g in read_used(run)]
    assert used == [(0, 1), (1, 3)]
    done = resume(run, steps=2, watch=Silent())
    assert (done.step, done.steps_done) == (3, 2)
    # From its own checkpoints on the new order is resumed like any other.
    assert resume(run, steps=None, watch=Silent(), accept_new_data=True).step == 4
    assert len(read_used(run)) == 2


def test_a_dataset_that_changes_while_a_run_begins_is_recorded_as_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_toy_dataset(tmp_path / "data", 3, shape=(70, 70, 70))
    before = train.run.manifest_of(str(data))
    withdraw(data, ["toy-0002"])
    monkeypatch.setattr(train.run, "manifest_of", lambda _: before)
    done = start(run_config(str(data), batch_size=1), tmp_path / "run", steps=1, watch=Silent())
    assert (before.generation, done.generation) == (1, 2)
    assert [used.generation for used in read_used(tmp_path / "run")] == [2]


def test_a_checkpoint_of_another_model_is_refused_in_one_line(shards: str, tmp_path: Path) -> None:
    config = run_config(shards, batch_size=1, total_steps=2)
    start(config, tmp_path / "run", steps=1, watch=Silent())
    path = tmp_path / "run/config.json"
    record = json.loads(path.read_text())
    record["config"]["recipe"]["prototypes"] = 32
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="not a checkpoint of this run's model") as caught:
        resume(tmp_path / "run", steps=None, watch=Silent())
    assert "\n" not in str(caught.value)


# One step, from the inside.

AT = loop.StepSettings(
    lr=1e-3, weight_decay=0.5, teacher_temp=0.04, ema=0.9, last_layer_frozen=False
)


def state_and_batch(**changes: object) -> tuple[TrainState, Batch]:
    state = new_state(replace(RECIPE, **changes), seed=3, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(4)
    views = [
        torch.rand(n, 1, side, side, side, generator=generator) for n, side in ((2, 64), (1, 33))
    ]
    return state, Batch(views=views, keys=["vol-a"], indices=[0], epoch=0)


def copied(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(module.state_dict())


def test_teacher_centre_and_student_move_as_the_paper_says() -> None:
    state, batch = state_and_batch(drop_path_rate=0.0)
    # Apart from the start: equal branches would hide a teacher that is a plain copy.
    with torch.no_grad():
        for parameter in state.model.teacher.parameters():
            parameter.mul_(1.1)
    student, teacher = copied(state.model.student), copied(state.model.teacher)
    with torch.no_grad():
        logits = state.model.teacher([batch.views[0]])[0]
    signs = loop.train_step(state, batch, AT)

    assert state.step == 1
    for name, after in state.model.teacher.named_parameters():
        expected = 0.9 * teacher[name] + 0.1 * state.model.student.get_parameter(name)
        torch.testing.assert_close(after, expected)
    torch.testing.assert_close(state.model.centre, 0.1 * logits.mean(dim=0), rtol=1e-4, atol=1e-6)
    # Adam's first step moves a weight by at most lr, once decay has scaled it by 1 - lr wd.
    for name, after in state.model.student.named_parameters():
        decays = after.ndim > 1 and not name.endswith("relative_position_bias_table")
        before = student[name] * (1 - 1e-3 * 0.5) if decays else student[name]
        assert (after - before).abs().max() <= 1e-3 * 1.001, name
        assert not torch.equal(after, before), name
    assert signs.grad_norm > 0


def test_the_loss_is_dinos_cross_entropy_written_out() -> None:
    state, batch = state_and_batch(drop_path_rate=0.0)
    with torch.no_grad():
        teacher = state.model.teacher([batch.views[0]])[0]
        student = state.model.student(batch.views)[0]
    terms = [
        -(torch.softmax(teacher[t] / 0.04, 0) * torch.log_softmax(student[s] / 0.1, 0)).sum()
        for t in range(2)
        for s in range(3)
        if s != t
    ]
    signs = loop.train_step(state, batch, AT)
    assert signs.loss == pytest.approx(float(torch.stack(terms).mean()), rel=1e-4)
    entropy = torch.distributions.Categorical(logits=teacher / 0.04).entropy().mean()
    uniform = torch.log(torch.tensor(64.0))
    assert signs.teacher_entropy == pytest.approx(float(entropy / uniform), rel=1e-4)


def test_the_last_layer_is_frozen_at_first_and_alone() -> None:
    state, batch = state_and_batch()
    before = copied(state.model.student.head)
    loop.train_step(state, batch, replace(AT, last_layer_frozen=True))
    after = state.model.student.head.state_dict()
    assert torch.equal(after["last_layer.weight"], before["last_layer.weight"])
    assert not torch.equal(after["mlp.0.weight"], before["mlp.0.weight"])


def test_each_gradient_tensor_is_clipped_on_its_own() -> None:
    state, batch = state_and_batch(clip=0.01)
    signs = loop.train_step(state, batch, AT)
    norms = [p.grad.norm().item() for p in state.model.student.parameters() if p.grad is not None]
    # One norm over all would leave nearly every tensor far below the limit.
    assert max(norms) <= 0.01 * 1.001
    assert sum(norm > 0.009 for norm in norms) > 10
    assert signs.grad_norm > 0.01


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_anything_changes(value: float) -> None:
    state, batch = state_and_batch()
    state.step = 6
    batch.views[0][0, 0, 10, 10, 10] = value
    before = copied(state.model)
    with pytest.raises(NonFiniteError, match=r"step 7: loss nan.*vol-a.*coralbay resume") as caught:
        loop.train_step(state, batch, AT)
    assert "\n" not in str(caught.value)
    assert_same(flatten(state.model.state_dict()), flatten(before))
    assert state.optimiser.state_dict()["state"] == {}
    assert state.step == 6


def test_schedules_are_read_at_the_steps_own_place() -> None:
    schedules = build_schedules(RECIPE, steps=8, global_batch=256)
    at = loop.settings_at(schedules, 4)
    # Half way, past 1 step of warm-up of the rate: cosine from .04 to .4 is .22 at its middle.
    assert at.weight_decay == pytest.approx(0.22)
    assert at.ema == pytest.approx(0.998)
    assert [loop.settings_at(schedules, s).last_layer_frozen for s in range(4)] == [
        True,
        True,
        False,
        False,
    ]
    assert type(at.lr) is float


def test_waiting_is_told_from_working(monkeypatch: pytest.MonkeyPatch) -> None:
    state, batch = state_and_batch()
    signs = loop.Signs(loss=1.0, grad_norm=1.0, teacher_entropy=1.0, level_variance=(1.0,))

    def step(state: TrainState, batch: Batch, at: loop.StepSettings) -> loop.Signs:
        state.step += 1
        return signs

    clock = iter([10.0, 13.0, 14.0])
    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(clock))
    schedules = build_schedules(RECIPE, steps=1, global_batch=1)
    [record] = loop.fit(state, iter([batch]), schedules, last_step=1)
    assert (record.data_s, record.step_s) == (3.0, 1.0)
    assert record.data_wait == 0.75
    assert record.sets_per_s == 0.25
