"""Does a run's own step learn from real CT, read and prepared by our own ingest?

A free-running DINO loss may rise while the model learns, for its targets move. With teacher and
centre frozen it must fall: on the batch that is trained on, and on views of the same anatomy that
the student never sees.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from coralbay.augment import render_set
from coralbay.draws import draw_views
from coralbay.model import DinoModel
from coralbay.recipes import Recipe
from coralbay.views import ViewRecipe, ViewSpec
from ingest.ids import IdKey
from ingest.prepare import PrepareConfig, prepare
from ingest.reader import read_series
from ingest.scan import scan
from train.loader.base import Batch
from train.loop import StepSettings, train_step
from train.state import new_state

STEPS = 20
RECIPE = Recipe(
    name="learning",
    views=ViewRecipe(
        global_=ViewSpec(size=64, extent=(48.0, 65.0), count=2),
        local=ViewSpec(size=33, extent=(24.0, 44.0), count=1),
        box_side=65,
    ),
    feature_size=4,
    depths=(1, 1, 1, 1),
    num_heads=(1, 1, 2, 2),
    window=4,
    drop_path_rate=0.0,
    head_hidden=64,
    head_bottleneck=32,
    prototypes=256,
    centre_momentum=1.0,
)
FROZEN = StepSettings(
    lr=5e-4, weight_decay=0.04, teacher_temp=0.04, ema=1.0, last_layer_frozen=False
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def boxes(ct_data: Path) -> list[np.ndarray]:
    """The base box in the middle of an abdomen at 1.5 mm, then six around it."""
    found = scan([str(ct_data / "totalsegmentator/example_ct.nii.gz")], IdKey(key=bytes(32)))
    [series] = found.series
    hu = prepare(read_series(series), PrepareConfig()).hu
    middle = [length // 2 - 32 for length in hu.shape]
    shifts = [(0, 0, 0), *itertools.product((-45, 45), (0,), (-45, 0, 45))]
    corners = [[m + shift for m, shift in zip(middle, by, strict=True)] for by in shifts]
    return [hu[tuple(slice(start, start + 65) for start in corner)] for corner in corners]


def draw_batch(boxes: list[np.ndarray], seed: int) -> Batch:
    """Views of every box, view-major as the loader gives them."""
    rng = np.random.default_rng(seed)
    views, n_globals = RECIPE.views, RECIPE.views.global_.count
    sets = [
        render_set(box, views.sizes, draw_views(views, rng.random(views.n_uniforms)))
        for box in boxes
    ]
    by_view = list(zip(*sets, strict=True))
    groups = (by_view[:n_globals], by_view[n_globals:])
    rows = [np.stack([view for same in group for view in same])[:, None] for group in groups]
    return Batch(
        views=[torch.from_numpy(group) for group in rows],
        keys=[f"box-{n}" for n in range(len(boxes))],
        indices=list(range(len(boxes))),
        epoch=0,
    )


@torch.no_grad()
def loss_on(model: DinoModel, batch: Batch) -> float:
    return float(model.loss(model(batch.views), teacher_temp=FROZEN.teacher_temp))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_twenty_steps_lower_the_loss_here_and_on_unseen_views(
    boxes: list[np.ndarray], seed: int
) -> None:
    state = new_state(RECIPE, seed=seed, device=torch.device("cpu"))
    model = state.model
    # A batch of one set keeps the test short.
    seen, unseen = draw_batch(boxes[:1], seed), draw_batch(boxes[:1], 1000 + seed)
    with torch.no_grad():
        # As a running centre would be, over other anatomy: what is left tells this box from those.
        logits, _ = model.teacher([draw_batch(boxes[1:], seed).views[0]])
        model.centre.copy_(logits.mean(dim=0))
    teacher = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    centre = model.centre.clone()
    before = loss_on(model, seen), loss_on(model, unseen)

    losses = [train_step(state, seen, FROZEN).loss for _ in range(STEPS)]

    after = loss_on(model, seen), loss_on(model, unseen)
    assert losses[0] == pytest.approx(before[0], rel=1e-4)
    # Better than knowing nothing, which is to find all prototypes equally likely.
    assert after[0] < math.log(RECIPE.prototypes) < before[0]
    assert after[1] < before[1] - 0.5
    assert torch.equal(model.centre, centre)
    for name, value in model.teacher.state_dict().items():
        assert torch.equal(value, teacher[name]), name
