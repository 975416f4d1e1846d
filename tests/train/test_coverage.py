"""Views see all of a volume: its ends as well as its middle."""

from dataclasses import replace

import numpy as np
import pytest

from coralbay.draws import draw_views
from coralbay.placement import Around
from coralbay.recipes import tiny
from coralbay.views import identity_recipe
from shards.rng import VIEWS, uniforms
from shards.stats import Stats
from shards.testing import write_toy_dataset
from train.coverage import measure_coverage
from train.loader.inputs import Inputs
from train.loader.settings import LoaderConfig

SHAPE = (160, 90, 130)
VISITS = 3000


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_toy_dataset(tmp_path_factory.mktemp("toy"), 2, shape=SHAPE)
    return Inputs(folder, tiny().views, LoaderConfig(batch_size=1), Stats())


@pytest.fixture(scope="module")
def visits(inputs):
    return [inputs.scheduler.visit(index, 0) for index in range(VISITS)]


def without_leaning(visit):
    words = uniforms(0, VIEWS, visit.item.index, 0, tiny().views.n_uniforms)
    return replace(visit, draws=draw_views(tiny().views, words))


def test_ends_of_volumes_are_seen(visits):
    shape = np.array(SHAPE, dtype=float)
    assert measure_coverage((visit, shape) for visit in visits).evenness > 0.2
    # Drawn uniformly in their boxes, views would all but miss them.
    uniform = measure_coverage((without_leaning(visit), shape) for visit in visits)
    assert uniform.evenness < 0.1


def test_every_voxel_is_seen(visits):
    step = 3
    seen = np.zeros([-(-n // step) for n in SHAPE], dtype=int)
    for visit in visits:
        first = visit.draws.start_zyx + np.array(visit.item.box_start_zyx)
        low = np.ceil((first - 0.5) / step).astype(int).clip(0)
        high = np.floor((first + visit.draws.extent_zyx - 0.5) / step).astype(int) + 1
        for (z0, y0, x0), (z1, y1, x1) in zip(low, high, strict=True):
            seen[z0:z1, y0:y1, x0:x1] += 1
    # The corners are the rarest: two views of a hundred visits see them.
    assert seen.min() >= VISITS / 500


@pytest.mark.parametrize("recipe", [tiny().views, identity_recipe()], ids=["tiny", "identity"])
@pytest.mark.parametrize(
    ("shape", "box_start"), [((30, 65, 300), (-17, 0, 235)), ((64, 200, 70), (0, 11, 0))]
)
def test_views_hold_no_padding_that_they_can_avoid(recipe, shape, box_start):
    around = Around.of(
        box_start_zyx=box_start, lean_zyx=(0, -21, 21), shape_zyx=shape, box_side=recipe.box_side
    )
    for index in range(50):
        draws = draw_views(recipe, uniforms(1, VIEWS, index, 0, recipe.n_uniforms), around)
        first, last = draws.bounds_zyx()
        assert (first >= -1e-9).all()
        assert (last <= recipe.box_side + 1e-9).all()
        inside = np.minimum(last, around.high_zyx) - np.maximum(first, around.low_zyx)
        # Either the whole window, or the whole volume; half a voxel stays for enlarged windows.
        best = np.minimum(last - first, around.high_zyx - around.low_zyx)
        assert (inside >= best - 0.51).all()
        if recipe.whole_voxels:
            assert (draws.start_zyx == np.round(draws.start_zyx)).all()


def test_a_box_in_the_middle_of_its_volume_changes_nothing():
    recipe = tiny().views
    around = Around.of(
        box_start_zyx=(9, 9, 9), lean_zyx=(0, 0, 0), shape_zyx=(99, 99, 99), box_side=65
    )
    for index in range(20):
        words = uniforms(1, VIEWS, index, 0, recipe.n_uniforms)
        moved, drawn = draw_views(recipe, words, around), draw_views(recipe, words)
        np.testing.assert_allclose(moved.start_zyx, drawn.start_zyx, rtol=0, atol=1e-12)
