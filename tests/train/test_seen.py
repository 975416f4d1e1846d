"""Chunks that no view sees are neither read nor decoded, and no view ever takes a voxel of them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from coralbay.recipes import small, tiny
from coralbay.views import ViewRecipe, ViewSpec, identity_recipe
from shards.stats import Stats
from shards.testing import write_toy_dataset
from train.data import StreamConfig
from train.loader.base import CTLoader
from train.loader.inputs import Inputs
from train.loader.settings import LoaderConfig

# Few and small views, turned and enlarged, in a box that touches up to 27 chunks.
VIEWS = ViewRecipe(
    global_=ViewSpec(size=64, extent=(40.0, 70.0), count=1),
    local=ViewSpec(size=33, extent=(16.0, 30.0), count=1),
    box_side=129,
    rotate_p=0.5,
    rotate_deg=20.0,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("toy"), 3, shape=(150, 170, 190))


def batches(dataset, n, views=VIEWS, **options):
    options = {"batch_size": 1, "threads": 2, "prefetch": 1, "precision": "float32"} | options
    stream = StreamConfig(mode=options.pop("mode", "auto"))
    with CTLoader(dataset, views, LoaderConfig(stream=stream, **options)) as loader:
        return list(itertools.islice(loader, n)), loader.stats.counters()


@pytest.mark.parametrize("loader", ["dali", "reference"])
@pytest.mark.parametrize("mode", ["range", "stream"])
def test_views_are_those_of_whole_boxes(dataset, loader, mode):
    """Slots are full of garbage: a view that looked at a chunk left out would show it."""
    whole, _ = batches(dataset, 12, loader=loader, mode=mode, whole_boxes=True)
    seen, _ = batches(dataset, 12, loader=loader, mode=mode, poison=True)
    for a, b in zip(whole, seen, strict=True):
        for x, y in zip(a.views, b.views, strict=True):
            assert torch.equal(x, y)


def test_less_is_decoded(dataset):
    _, whole = batches(dataset, 12, loader="reference", mode="range", whole_boxes=True)
    _, seen = batches(dataset, 12, loader="reference", mode="range")
    assert seen["chunks"] < 0.8 * whole["chunks"]
    assert seen["bytes_asked"] < whole["bytes_asked"]


@pytest.mark.parametrize("views", [VIEWS, small().views, tiny().views, identity_recipe()])
def test_every_voxel_that_a_sample_takes_is_in_a_chunk_that_is_seen(dataset, views):
    """By the positions of all samples, worked out here for windows that are not turned."""
    views = replace(views, rotate_p=0.0)
    inputs = Inputs(dataset, views, LoaderConfig(batch_size=1), Stats())
    side = inputs.dataset.chunk_side
    count = inputs.chunks_shape[0]
    for index in range(40):
        visit = inputs.scheduler.visit(index, 0)
        needed = set()
        rows = zip(views.sizes, visit.draws.start_zyx, visit.draws.extent_zyx, strict=True)
        for size, start, extent in rows:
            at = start[:, None] + (np.arange(size) + 0.5) * (extent / size)[:, None] - 0.5
            below = np.floor(at + visit.region.origin_zyx[:, None] + 1e-9).astype(int)
            # The voxel above counts only where it has a weight.
            above = np.ceil(at + visit.region.origin_zyx[:, None] - 1e-9).astype(int)
            axes = [sorted(set((line // side).tolist())) for line in np.hstack([below, above])]
            needed |= set(itertools.product(*axes))
        places = {(z * count + y) * count + x for z, y, x in needed}
        assert places <= set(visit.region.places.tolist())
