"""Training steps beside the loader: what they wait for, and what the loader costs.

Blocks of steps on batches of the loader and on batches that are there already take turns, and only
what both did in the same turn is compared.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from coralbay.recipes import Recipe
from coralbay.schedules import build_schedules
from train.loader.base import QUEUED_BATCHES, Batch, CTLoader
from train.loader.settings import LoaderConfig
from train.loop import settings_at, train_step
from train.state import new_state

CACHED = 2
"""Batches that are kept for the steps that wait for nothing."""
SCHEDULE = 1000
"""Steps of the run that the settings of a step are taken from the middle of."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some steps in a row."""

    seconds: float
    waited: float
    """For batches."""
    cpu_s: float
    """Processor time of the whole process."""


def headspace(
    dataset: Path | str, recipe: Recipe, config: LoaderConfig, *, pairs: int, steps: int
) -> dict[str, Any]:
    """Steps a second with the loader over those with cached batches, and what else they show.

    Args:
        dataset: read by the loader.
        recipe: trained, from its first weights.
        config: how to load.
        pairs: blocks of each kind.
        steps: of a block.
    """
    with CTLoader(dataset, recipe.views, config) as loader:
        step = _stepper(recipe, config)
        again = itertools.cycle(list(itertools.islice(loader, CACHED)))
        step(next(again))  # allocates, and tunes kernels
        blocks = []
        for _ in range(pairs):
            for _ in range(_ready(config)):
                next(loader)  # made during the steps before: it would seem free
            blocks.append((_block(step, loader, steps), _block(step, again, steps)))
    return {
        "preset": recipe.name,
        "batch_size": config.batch_size,
        "pairs": pairs,
        "steps": steps,
        "ratio": statistics.median(free.seconds / fed.seconds for fed, free in blocks),
        "data_wait": statistics.median(fed.waited / fed.seconds for fed, _ in blocks),
        # The steps themselves keep a thread busy as well: that is not the loader's.
        "loader_cores": statistics.median(
            max(0.0, (fed.cpu_s - free.cpu_s) / fed.seconds) for fed, free in blocks
        ),
        "sets_per_s": statistics.median(
            steps * config.batch_size / free.seconds for _, free in blocks
        ),
    }


def _stepper(recipe: Recipe, config: LoaderConfig) -> Callable[[Batch], object]:
    device = torch.device("cuda" if config.device == "gpu" else "cpu")
    state = new_state(recipe, seed=0, device=device)
    schedules = build_schedules(recipe, steps=SCHEDULE, global_batch=config.batch_size)
    at = settings_at(schedules, SCHEDULE // 2)

    def step(batch: Batch) -> None:
        train_step(state, batch, at)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def _block(step: Callable[[Batch], object], batches: Iterator[Batch], steps: int) -> Block:
    """So many steps, after one in which the loader comes to its pace, or to rest."""
    step(next(batches))
    waited, cpu_s, began = 0.0, time.process_time(), time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(batch)
    seconds = time.perf_counter() - began
    return Block(seconds=seconds, waited=waited, cpu_s=time.process_time() - cpu_s)


def _ready(config: LoaderConfig) -> int:
    """Batches that a loader has made when it is at rest."""
    return QUEUED_BATCHES - 1 + -(-config.prefetch // config.batch_size)
