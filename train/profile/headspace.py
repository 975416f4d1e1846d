"""Headspace: training steps with the loader, against steps on batches that are there already."""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from coralbay.schedules import build_schedules
from train.config import RunConfig
from train.loader.base import QUEUED_BATCHES, Batch, CTLoader
from train.loader.settings import LoaderConfig
from train.loop import settings_at, train_step
from train.profile.result import Headspace
from train.state import new_state

logger = logging.getLogger(__name__)

CACHED = 2
"""Batches kept for the steps that wait for nothing."""
PAIRS, FEW_PAIRS = 5, 3
"""Blocks of each kind; few where a step takes long."""
MOST_STEPS = 50
"""Of a block."""


def measure_headspace(
    url: str | Path, run: RunConfig, config: LoaderConfig, seconds: float
) -> Headspace:
    """Take real training steps, in blocks: with the loader, on cached batches, and again.

    Args:
        url: dataset.
        run: its recipe is trained, from its first weights.
        config: how to load.
        seconds: how long, about; a block is a step at least.

    Raises:
        NonFiniteError: see ``loop.train_step``.
    """
    with CTLoader(url, run.recipe.views, config) as loader:
        cached = list(itertools.islice(loader, CACHED))
        again = itertools.cycle(cached)
        step = _Step(run, config)
        step(again)  # allocates, and tunes kernels
        step_s = step(again).seconds
        pairs = PAIRS if 4 * PAIRS * step_s <= 3 * seconds else FEW_PAIRS
        steps = max(1, min(MOST_STEPS, round(seconds / (2 * pairs * step_s))))
        n = pairs * 2 * (steps + 1)
        logger.info("headspace: %d steps of %s, about %.0f s", n, run.preset, n * step_s)
        blocks = []
        for _ in range(pairs):
            _drain(loader)
            blocks.append((_block(step, loader, steps), _block(step, again, steps)))
    return Headspace(
        preset=run.preset,
        device=config.device,
        ratio=statistics.median(free.seconds / fed.seconds for fed, free in blocks),
        steps_per_s=statistics.median(steps / fed.seconds for fed, _ in blocks),
        cached_steps_per_s=statistics.median(steps / free.seconds for _, free in blocks),
        data_wait=statistics.median(fed.waited / fed.seconds for fed, _ in blocks),
        batch_size=config.batch_size,
        pairs=pairs,
        steps=steps,
    )


@dataclass(frozen=True, kw_only=True)
class _Took:
    seconds: float
    waited: float = 0.0
    """Of these, for the batch."""


class _Step:
    """Takes the next batch, and a training step on it."""

    def __init__(self, run: RunConfig, config: LoaderConfig) -> None:
        device = torch.device("cuda" if config.device == "gpu" else "cpu")
        self._state = new_state(run.recipe, seed=config.seed, device=device)
        schedules = build_schedules(
            run.recipe, steps=run.total_steps, global_batch=config.batch_size
        )
        self._at = settings_at(schedules, run.total_steps // 2)

    def __call__(self, batches: Iterator[Batch]) -> _Took:
        asked = time.perf_counter()
        batch = next(batches)
        began = time.perf_counter()
        train_step(self._state, batch, self._at)
        if self._state.device.type == "cuda":
            torch.cuda.synchronize()
        return _Took(seconds=time.perf_counter() - asked, waited=began - asked)


def _block(step: _Step, batches: Iterator[Batch], steps: int) -> _Took:
    """So many steps, after one in which the loader comes to its pace, or to rest."""
    step(batches)
    took = [step(batches) for _ in range(steps)]
    return _Took(seconds=sum(one.seconds for one in took), waited=sum(one.waited for one in took))


def _drain(loader: CTLoader) -> None:
    """Take what was made during the steps before: it would seem free."""
    ready = QUEUED_BATCHES - 1 + -(-loader.config.prefetch // loader.config.batch_size)
    for _ in range(ready):
        next(loader)
