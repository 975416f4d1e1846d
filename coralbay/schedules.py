"""Every schedule of a run as an array with one value a step, for a plot or a test to see whole.

Shapes are DINO's: linear warm-up from 0, then a cosine that starts at its first value and would
reach its last one step after the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from coralbay.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Schedules:
    """Values by step.

    Attributes:
        lr: learning rate.
        weight_decay: of the decayed parameter group; the other has none.
        teacher_temp: temperature of the teacher.
        ema: share of the teacher that stays.
        frozen_last_layer_steps: number of first steps in which the head's last layer stays.
    """

    lr: Float64[ndarray, " steps"]
    weight_decay: Float64[ndarray, " steps"]
    teacher_temp: Float64[ndarray, " steps"]
    ema: Float64[ndarray, " steps"]
    frozen_last_layer_steps: int


def build_schedules(recipe: Recipe, *, steps: int, global_batch: int) -> Schedules:
    """Lay a recipe's schedules over a run.

    Args:
        recipe: names the values and the shares of the run.
        steps: length of the run.
        global_batch: sets a step, over all ranks.
    """
    peak = recipe.lr_per_256 * global_batch / 256
    return Schedules(
        lr=warmed_cosine(peak, recipe.lr_end, _share(recipe.lr_warmup, steps), steps),
        weight_decay=cosine(*recipe.weight_decay, steps),
        teacher_temp=held_ramp(
            *recipe.teacher_temp, _share(recipe.teacher_temp_warmup, steps), steps
        ),
        ema=cosine(*recipe.ema, steps),
        frozen_last_layer_steps=_share(recipe.freeze_last_layer, steps),
    )


def cosine(start: float, end: float, steps: int) -> Float64[ndarray, " steps"]:
    """Go from ``start`` to ``end`` along half a cosine.

    >>> cosine(1.0, 0.0, 2).round(6).tolist()
    [1.0, 0.5]
    """
    return end + 0.5 * (start - end) * (1 + np.cos(np.pi * np.arange(steps) / max(steps, 1)))


def warmed_cosine(peak: float, end: float, warmup: int, steps: int) -> Float64[ndarray, " steps"]:
    """Rise linearly from 0 to ``peak`` over ``warmup`` steps, then follow half a cosine.

    >>> warmed_cosine(1.0, 0.0, 3, 5).round(6).tolist()
    [0.0, 0.5, 1.0, 1.0, 0.5]
    """
    return np.concatenate([np.linspace(0.0, peak, warmup), cosine(peak, end, steps - warmup)])


def held_ramp(start: float, end: float, ramp: int, steps: int) -> Float64[ndarray, " steps"]:
    """Rise linearly over the first ``ramp`` steps, then stay.

    >>> held_ramp(0.0, 1.0, 3, 4).tolist()
    [0.0, 0.5, 1.0, 1.0]
    """
    return np.concatenate([np.linspace(start, end, ramp), np.full(steps - ramp, end)])


def _share(share: float, steps: int) -> int:
    """Steps in a share of the run."""
    return round(share * steps)
