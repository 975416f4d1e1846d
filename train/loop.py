"""The step and the loop: ``train_step`` is the method on one page, ``fit`` feeds it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from coralbay.health import level_variance, normalised_entropy
from coralbay.model import DinoOutput, clip_per_tensor_, freeze_last_layer_
from coralbay.schedules import Schedules
from coralbay.vector import level_widths
from train.errors import NonFiniteError
from train.loader.base import Batch
from train.metrics import StepRecord
from train.state import TrainState


@dataclass(frozen=True, kw_only=True)
class Signs:
    """What a step measured, as numbers on the host."""

    loss: float
    grad_norm: float
    """L2 norm of all gradients, before clipping."""
    teacher_entropy: float
    level_variance: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What the schedules say for one step, as plain numbers that a checkpoint can hold."""

    lr: float
    weight_decay: float
    teacher_temp: float
    ema: float
    last_layer_frozen: bool


def settings_at(schedules: Schedules, step: int) -> StepSettings:
    """The settings of step ``step``, counted from 0."""
    return StepSettings(
        lr=float(schedules.lr[step]),
        weight_decay=float(schedules.weight_decay[step]),
        teacher_temp=float(schedules.teacher_temp[step]),
        ema=float(schedules.ema[step]),
        last_layer_frozen=step < schedules.frozen_last_layer_steps,
    )


def train_step(state: TrainState, batch: Batch, at: StepSettings) -> Signs:
    """One step of DINO (arXiv 2104.14294, Alg. 1) on the multi-scale vector; changes ``state``.

    The host waits for the device once, before the weights change.

    Raises:
        NonFiniteError: the loss or a gradient is not finite; nothing was changed.
    """
    model, student, optimiser = state.model, state.model.student, state.optimiser

    # The student sees all views, the teacher the global ones; no view is compared with itself.
    with torch.autocast(state.device.type, torch.bfloat16, enabled=state.device.type == "cuda"):
        output = model(batch.views)
        loss = model.loss(output, teacher_temp=at.teacher_temp)

    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    signs = _measure(state, output, loss, at.teacher_temp)
    _require_finite(signs, state.step, batch.keys)

    clip_per_tensor_(student.parameters(), model.recipe.clip)
    if at.last_layer_frozen:
        freeze_last_layer_(student.head)
    decayed, _ = optimiser.param_groups
    decayed["weight_decay"] = at.weight_decay
    for group in optimiser.param_groups:
        group["lr"] = at.lr
    optimiser.step()

    model.update_teacher(at.ema)
    model.update_centre(output)
    state.step += 1
    return signs


def fit(
    state: TrainState, batches: Iterator[Batch], schedules: Schedules, *, last_step: int
) -> Iterator[StepRecord]:
    """Take steps until ``last_step`` are finished; give each one's record as it ends.

    Raises:
        NonFiniteError: see ``train_step``.
    """
    while state.step < last_step:
        at, asked = settings_at(schedules, state.step), time.perf_counter()
        batch = next(batches)
        began = time.perf_counter()
        signs = train_step(state, batch, at)
        ended = time.perf_counter()
        yield StepRecord(
            step=state.step,
            epoch=batch.epoch,
            index=batch.indices[0],
            sets=len(batch.keys),
            loss=signs.loss,
            teacher_entropy=signs.teacher_entropy,
            level_variance=signs.level_variance,
            grad_norm=signs.grad_norm,
            lr=at.lr,
            wd=at.weight_decay,
            momentum=at.ema,
            teacher_temp=at.teacher_temp,
            data_s=began - asked,
            step_s=ended - began,
        )


def _measure(
    state: TrainState, output: DinoOutput, loss: Float[Tensor, ""], teacher_temp: float
) -> Signs:
    """All signs of a step, in one transfer from the device."""
    recipe, globals_ = state.model.recipe, output.teacher_vectors
    # One view of each sample: between views of one sample the variance would say little.
    vectors = globals_[: len(globals_) // recipe.views.global_.count]
    entropy = normalised_entropy(output.teacher_logits, state.model.centre, teacher_temp)
    variance = level_variance(vectors, level_widths(recipe.feature_size, recipe.vector))
    gradients = [p.grad for p in state.model.student.parameters() if p.grad is not None]
    grad_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    scalars = torch.stack([loss.detach(), grad_norm, entropy])
    on_host: list[float] = torch.cat([scalars, variance]).tolist()
    return Signs(
        loss=on_host[0],
        grad_norm=on_host[1],
        teacher_entropy=on_host[2],
        level_variance=tuple(on_host[3:]),
    )


def _require_finite(signs: Signs, step: int, keys: Sequence[str]) -> None:
    if math.isfinite(signs.loss) and math.isfinite(signs.grad_norm):
        return
    raise NonFiniteError(
        f"step {step + 1}: loss {signs.loss}, gradient norm {signs.grad_norm} on samples "
        f"{', '.join(keys)}; the weights were left as they were: look at these samples with "
        "`ingest inspect`; `coralbay resume` tries again from the newest checkpoint"
    )
