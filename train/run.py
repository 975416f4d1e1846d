"""A run from its folder's point of view: begin one, go on with one, leave it whole."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from coralbay.schedules import build_schedules
from shards.opening import read_manifest
from shards.schema import Manifest
from shards.store import open_store
from train import checkpoint
from train.config import Device, RunConfig, RunRecord, check_data, create_run, read_run, record_run
from train.data import StreamConfig
from train.errors import CheckpointError, UsageError
from train.generations import (
    UsedGeneration,
    accept_generation,
    check_generation,
    read_used,
    write_used,
)
from train.loader.base import CTLoader
from train.loader.machine import why_no_gpu
from train.loader.settings import LoaderConfig
from train.loop import fit
from train.metrics import MetricsLog, StepRecord, read_metrics
from train.plots import plot_run
from train.state import TrainState, new_state

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
PLOT = "loss.png"


@dataclass(frozen=True, kw_only=True)
class FitSummary:
    """What a call of ``start`` or ``resume`` did, and the files it left."""

    run: str
    step: int
    """Finished steps of the run."""
    total_steps: int
    steps_done: int
    """By this call."""
    loss: float
    """Of the last step."""
    sets_per_s: float
    """Over this call, waiting included; 0 if it did no step."""
    data_wait: float
    """Share of this call's time spent waiting for data."""
    device: str
    generation: int | None
    """Of the dataset."""
    generation_id: str
    checkpoint: str
    metrics: str
    plot: str


@runtime_checkable
class Watch(Protocol):
    """What a run tells, and asks, after every step."""

    @property
    def should_stop(self) -> bool:
        """Whether to save a checkpoint and end here."""

    def step(self, record: StepRecord, last_step: int) -> None:
        """A step is finished; the call ends after ``last_step``."""


def start(config: RunConfig, run: Path, *, steps: int | None, watch: Watch) -> FitSummary:
    """Begin a run in a new folder and do ``steps`` of it, or all.

    Raises:
        UsageError: settings, data and machine do not go together, or the folder is taken.
        ShardError: the dataset cannot be read.
        NonFiniteError: see ``loop.train_step``.
    """
    # Whatever cannot work is said before the folder is made, so that the corrected call may use it.
    last_step(config, 0, steps)
    device = pick_device(config.device)
    check_data(config, manifest_of(config.shards), config.shards)
    with open_loader(config, device) as loader:
        manifest = loader.dataset.manifest
        check_data(config, manifest, config.shards)
        record = record_run(config, manifest)
        create_run(run, record)
        write_used(run, [UsedGeneration.of(manifest, 0)])
        return _go_on(run, record, loader, None, steps=steps, watch=watch)


def resume(
    run: Path,
    *,
    steps: int | None,
    watch: Watch,
    stream: StreamConfig | None = None,
    shards: str | None = None,
    accept_new_data: bool = False,
) -> FitSummary:
    """Go on from a run's newest checkpoint, or from its beginning when it has none yet.

    Args:
        run: folder of the run.
        steps: steps to do now; None: to the end.
        watch: told of every step.
        stream: how to read from now on; None as before.
        shards: where the dataset is now, if it has moved.
        accept_new_data: go on with another generation of the dataset, in a new order.

    Raises:
        UsageError: no run there, or its dataset or device is not what it was.
        CheckpointError: the checkpoint cannot be loaded.
        ShardError, NonFiniteError: as for ``start``.
    """
    record = read_run(run)
    config = record.config
    config = replace(config, stream=stream or config.stream, shards=shards or config.shards)
    record = replace(record, config=config)
    saved = checkpoint.latest(run)
    manifest = manifest_of(config.shards)
    if accept_new_data:
        check_data(config, manifest, config.shards)
        done = checkpoint.read_info(saved.with_suffix(".json")).step if saved is not None else 0
        accept_generation(run, record.generation_id, manifest, done)
    check_generation(run, config.shards, record.generation_id, manifest)
    with open_loader(config, pick_device(config.device)) as loader:
        # Once more on what was opened: the dataset may have changed a moment ago.
        check_generation(run, config.shards, record.generation_id, loader.dataset.manifest)
        return _go_on(run, record, loader, saved, steps=steps, watch=watch)


def last_step(config: RunConfig, done: int, steps: int | None) -> int:
    """The step after which a call ends.

    Raises:
        UsageError: the run has fewer steps left than were asked for.
    """
    left = config.total_steps - done
    if steps is None:
        return config.total_steps
    if steps < 1:
        raise UsageError(f"--steps {steps}: give 1 or more")
    if steps > left:
        raise UsageError(
            f"--steps {steps}: the run is {config.total_steps} steps long and {left} are left, for "
            "its schedules end there; give fewer, or start a run with a larger --total-steps"
        )
    return done + steps


def _go_on(
    run: Path,
    record: RunRecord,
    loader: CTLoader,
    saved: Path | None,
    *,
    steps: int | None,
    watch: Watch,
) -> FitSummary:
    """Train on from ``saved``, or from nothing, until ``steps`` are done or ``watch`` stops it."""
    config, device = record.config, pick_device(record.config.device)
    state = new_state(config.recipe, seed=config.seed, device=device)
    if saved is not None:
        _restore(run, saved, state, loader)
    first, last = state.step, last_step(config, state.step, steps)
    logger.info("%s: steps %d to %d on %s", run, first + 1, last, device)
    _train(run, record, state, loader, last, watch)
    loader.close()
    return _summarise(run, record, state, first)


def _train(
    run: Path,
    record: RunRecord,
    state: TrainState,
    loader: CTLoader,
    last: int,
    watch: Watch,
) -> None:
    """Take steps, and leave metrics and checkpoints behind, the last one at the end."""
    config = record.config
    schedules = build_schedules(
        config.recipe, steps=config.total_steps, global_batch=config.batch_size
    )
    with MetricsLog(run / METRICS, resume_step=state.step) as log:
        for done in fit(state, loader, schedules, last_step=last):
            log.append(done)
            watch.step(done, last)
            ends = watch.should_stop or done.step == last
            if ends or done.step % config.checkpoint_every == 0:
                _save(run, record, state, loader, done.loss)
            if ends:
                break


def _save(run: Path, record: RunRecord, state: TrainState, loader: CTLoader, loss: float) -> None:
    position = loader.state_dict()
    checkpoint.save(
        run,
        state.state_dict() | {"data_position": position},
        step=state.step,
        loss=loss,
        data_position=position,
        generation_id=record.generation_id,
        contract=record.contract,
        versions={"coralbay": version("coralbay"), "torch": torch.__version__},
        keep=record.config.keep_checkpoints,
    )


def _restore(run: Path, path: Path, state: TrainState, loader: CTLoader) -> None:
    _, saved = checkpoint.load(path)
    try:
        state.load_state_dict(saved)
        position = saved["data_position"]
    except (KeyError, RuntimeError, ValueError) as exc:
        # The first line names the cause; torch lists every tensor after it.
        why = str(exc).splitlines()[0]
        raise CheckpointError(f"{path}: not a checkpoint of this run's model ({why})") from exc
    used = read_used(run)
    if len(used) > 1 and used[-1].from_step == state.step:
        # The order of the generation before ends with this checkpoint.
        loader.start_at(state.step)
    else:
        loader.load_state_dict(position)


def _summarise(run: Path, record: RunRecord, state: TrainState, first: int) -> FitSummary:
    """Draw the curves and say what there is."""
    path = checkpoint.checkpoint_path(run, state.step)
    records = read_metrics(run / METRICS)
    if records:
        title = f"{record.config.preset}, {state.step} of {record.config.total_steps} steps"
        plot_run(records, run / PLOT, title=title)
    now = [done for done in records if done.step > first]
    waited, worked = sum(done.data_s for done in now), sum(done.step_s for done in now)
    seconds = max(waited + worked, 1e-9)
    return FitSummary(
        run=str(run),
        step=state.step,
        total_steps=record.config.total_steps,
        steps_done=len(now),
        loss=checkpoint.read_info(path.with_suffix(".json")).loss,
        sets_per_s=sum(done.sets for done in now) / seconds,
        data_wait=waited / seconds,
        device=str(state.device),
        generation=record.generation,
        generation_id=record.generation_id,
        checkpoint=str(path),
        metrics=str(run / METRICS),
        plot=str(run / PLOT),
    )


def open_loader(config: RunConfig, device: torch.device) -> CTLoader:
    """The loader of a run.

    Raises:
        UsageError: the settings do not go with the data.
        ShardError: the dataset cannot be read.
    """
    return CTLoader(config.shards, config.recipe.views, loader_config(config, device))


def loader_config(config: RunConfig, device: torch.device) -> LoaderConfig:
    """How a run on ``device`` loads."""
    on_gpu = device.type == "cuda"
    return LoaderConfig(
        batch_size=config.batch_size,
        seed=config.seed,
        visits=config.visits,
        data=config.data,
        stream=config.stream,
        threads=config.threads,
        device="gpu" if on_gpu else "cpu",
        loader=config.loader,
        # Half the memory traffic where autocast rounds further anyway.
        precision="float16" if on_gpu else "float32",
    )


def pick_device(asked: Device) -> torch.device:
    """The device to train on.

    Raises:
        UsageError: CUDA is asked for and not there.
    """
    lacking = why_no_gpu()
    if asked == "cuda" and lacking is not None:
        raise UsageError(f"--device cuda: {lacking} (--device cpu or auto)")
    return torch.device("cuda" if lacking is None and asked != "cpu" else "cpu")


def manifest_of(url: str) -> Manifest:
    """The manifest of the dataset at ``url``.

    Raises:
        ShardError: no usable dataset there.
    """
    return read_manifest(open_store(url), url)
