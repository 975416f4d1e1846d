"""Plain crops cut out of decoded chunks: equal, to the bit, to the reference's."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from coralbay.views import identity_recipe
from shards.dataset import Dataset
from shards.testing import write_dataset, write_toy_dataset
from train.errors import UsageError
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig
from train.loader.slices import cut

VIEWS = identity_recipe(global_size=64, local_size=40, box_side=80)
MIRRORED = replace(VIEWS, flip_p_zyx=(0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    return write_toy_dataset(folder, 4, shape=(70, 100, 150), per_shard=2)


def batches(url, views, **settings):
    config = LoaderConfig(**({"batch_size": 2, "threads": 2, "poison": True} | settings))
    with CTLoader(url, views, config) as loader:
        return list(itertools.islice(loader, 6))


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("views", [VIEWS, MIRRORED], ids=["plain", "mirrored"])
def test_views_equal_the_reference_to_the_bit(dataset, views, precision):
    cut_ones = batches(dataset, views, loader="slices", precision=precision)
    references = batches(dataset, views, loader="reference", precision=precision)
    for found, expected in zip(cut_ones, references, strict=True):
        assert found.keys == expected.keys
        for a, b in zip(found.views, expected.views, strict=True):
            assert a.dtype == b.dtype == getattr(torch, precision)
            assert a.unique().numel() > 10
            assert torch.equal(a, b)


def test_int16_views_are_the_stored_voxels(dataset):
    """Against the stored volume alone: each crop lies in it, where the draws say."""
    opened = Dataset.open(dataset)
    config = LoaderConfig(batch_size=2, threads=2, loader="slices", precision="int16")
    with CTLoader(dataset, VIEWS, config) as loader:
        for batch in itertools.islice(loader, 6):
            for n, index in enumerate(batch.indices):
                visit = loader.inputs.scheduler.visit(index, 0)
                hu = np.pad(opened.sample(visit.key).hu, 80, constant_values=-1024)
                start = np.array(visit.item.box_start_zyx) + visit.draws.start_zyx + 80
                views = [view[n::2, 0].numpy() for view in batch.views]
                for view, (z, y, x) in zip(
                    itertools.chain(*views), start.astype(int).tolist(), strict=True
                ):
                    s = len(view)
                    assert view.dtype == np.int16
                    np.testing.assert_array_equal(view, hu[z : z + s, y : y + s, x : x + s])


def test_a_padded_volume_is_padded_in_its_views(tmp_path):
    volume = np.full((50, 100, 100), 40, dtype=np.int16)
    write_dataset(tmp_path, {"a": volume, "b": volume})
    batch = batches(tmp_path, VIEWS, loader="slices", precision="int16")[0]
    assert set(batch.views[0].unique().tolist()) == {-1024, 40}


def test_cut_takes_what_lies_at_the_place():
    rng = np.random.default_rng(0)
    region = rng.integers(-1024, 3071, (24, 24, 24), dtype=np.int16)
    chunks = region.reshape(3, 8, 3, 8, 3, 8).transpose(0, 2, 4, 1, 3, 5).copy()
    for start, shape in (
        ((0, 0, 0), (24, 24, 24)),
        ((7, 8, 9), (9, 1, 15)),
        ((8, 15, 16), (8,) * 3),
    ):
        out = np.zeros(shape, dtype=np.int16)
        cut(chunks, np.array(start, dtype=np.float64), out)
        where = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
        np.testing.assert_array_equal(out, region[where])


@pytest.mark.parametrize(
    "changes",
    [{"gain": (0.9, 1.1)}, {"window_p": 0.5}, {"whole_voxels": False}, {"gamma": (1.0, 1.2)}],
)
def test_a_recipe_that_changes_voxels_is_refused(dataset, changes):
    with pytest.raises(UsageError, match="use dali or reference"):
        batches(dataset, replace(VIEWS, **changes), loader="slices")


def test_a_recipe_that_zooms_is_refused(dataset):
    zoom = replace(VIEWS, local=replace(VIEWS.local, extent=(30, 40)))
    with pytest.raises(UsageError, match="use dali or reference"):
        batches(dataset, zoom, loader="slices")


def test_stored_values_come_from_slices_alone():
    with pytest.raises(UsageError, match="int16"):
        LoaderConfig(batch_size=1, loader="dali", precision="int16")
