"""Views by torch grid_sample, a peer of the graph: equal to the reference, or not started."""

from dataclasses import replace

import pytest
import torch

from benchmarks import loader_augment
from benchmarks.loader_grid_sample import GridSampleRenderer
from coralbay.views import ViewRecipe, ViewSpec
from shards.testing import write_toy_dataset
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig

RECIPE = ViewRecipe(
    global_=ViewSpec(size=64, extent=(48.0, 65.0), count=2),
    local=ViewSpec(size=33, extent=(20.0, 40.0), count=3),
    box_side=65,
    rotate_p=0.5,
    rotate_deg=10.0,
)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    url = write_toy_dataset(tmp_path_factory.mktemp("toy"), 2, shape=(70, 100, 130), per_shard=2)
    with CTLoader(url, RECIPE, LoaderConfig(batch_size=2, loader="reference")) as loader:
        return loader_augment.decoded(loader, RECIPE, 2, pinned=False)


def error(batch):
    renderer = GridSampleRenderer(RECIPE, lambda: batch, torch.device("cpu"))
    groups, _ = renderer.render((2, 3))
    assert [group.shape for group in groups] == [(4, 1, 64, 64, 64), (6, 1, 33, 33, 33)]
    assert all(group.dtype == torch.float16 for group in groups)
    return loader_augment.largest_error(groups, batch, RECIPE)


def test_views_by_grid_sample_equal_the_reference(batch):
    assert any(loaded.visit.draws.turned.any() for loaded in batch)
    assert error(batch) < loader_augment.TOLERANCE


def test_views_from_another_place_are_seen(batch):
    params = batch[1].slot.params
    params[4, 3] += 0.5  # half a voxel along x
    assert error(batch) > loader_augment.TOLERANCE
    params[4, 3] -= 0.5


def test_what_grid_sample_cannot_do_is_refused():
    with pytest.raises(ValueError, match="neither blur nor noise"):
        GridSampleRenderer(
            replace(RECIPE, blur_p=0.5, blur_sigma=(0.1, 0.2)), list, torch.device("cpu")
        )
