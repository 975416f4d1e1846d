"""Headspace: what the loader costs a training step, with steps and a loader of known pace."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from shards.testing import write_toy_dataset
from train import presets
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig
from train.profile import headspace
from train.profile.headspace import measure_headspace

CONFIG = LoaderConfig(batch_size=1, threads=1, prefetch=1, loader="reference")
STEP_S = 0.02


class Views:
    """A graph that makes nothing, at a pace."""

    def __init__(self, pull, seconds):
        self._pull, self._seconds = pull, seconds

    def render(self, counts):
        self._pull()
        time.sleep(self._seconds)
        return [torch.zeros(1, 1, 1, 1, 1) for _ in counts], None

    def close(self):
        pass


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Steps that only take their time, with a loader that takes so long for a batch."""
    folder = write_toy_dataset(tmp_path, 2, shape=(40, 50, 70))
    calls = []

    def step(state, batch, at):
        calls.append(batch.indices[0])
        time.sleep(STEP_S)

    class Nothing:
        device = torch.device("cpu")

    monkeypatch.setattr(headspace, "train_step", step)
    monkeypatch.setattr(headspace, "new_state", lambda *_, **__: Nothing())

    def measure(batch_s):
        monkeypatch.setattr(CTLoader, "renderer", lambda self, pull: Views(pull, batch_s))
        return measure_headspace(folder, presets.tiny(str(folder)), CONFIG, 0.4), calls

    return measure


def test_a_loader_that_is_slower_than_the_steps_shows(measured):
    found, calls = measured(10 * STEP_S)
    assert found.ratio < 0.5
    assert found.data_wait > 0.5
    assert found.steps_per_s < found.cached_steps_per_s
    assert (found.preset, found.device, found.batch_size) == ("tiny", "cpu", 1)
    # Two steps to warm up, then one before each block of either kind.
    assert len(calls) == 2 + found.pairs * 2 * (found.steps + 1)


def test_blocks_take_turns_and_what_was_made_ahead_is_not_counted(measured):
    found, calls = measured(0.0)
    size = found.steps + 1
    blocks = [calls[2 + n * size : 2 + (n + 1) * size] for n in range(2 * found.pairs)]
    fresh, cached = blocks[0::2], blocks[1::2]
    assert all(set(block) <= {0, 1} for block in cached)
    seen = [index for block in fresh for index in block]
    assert len(set(seen)) == len(seen)
    assert seen == sorted(seen)
    assert all(b[0] - a[-1] > 1 for a, b in itertools.pairwise(fresh))
