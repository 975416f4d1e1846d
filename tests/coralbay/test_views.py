"""Views: inside the box, distributed as the recipe says, refused if the backbone cannot take it."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coralbay import recipes
from coralbay.views import N_UNIFORMS, ViewRecipe, ViewSpec, draw_views, identity_recipe

RECIPES = [recipes.tiny().views, recipes.small().views, identity_recipe()]

UNIFORMS = arrays(
    np.float64,
    (10, N_UNIFORMS),
    elements=st.floats(0.0, 1.0, exclude_max=True),
    fill=st.sampled_from([0.0, 0.5, np.nextafter(1.0, 0.0)]),
)


@pytest.mark.parametrize("recipe", RECIPES, ids=["tiny", "small", "identity"])
@settings(max_examples=60, deadline=None)
@given(uniforms=UNIFORMS)
def test_every_source_window_lies_inside_the_box(recipe: ViewRecipe, uniforms: np.ndarray) -> None:
    draws = draw_views(recipe, uniforms)
    assert (draws.start_zyx >= 0).all()
    assert (draws.start_zyx + draws.extent_zyx <= recipe.box_side + 1e-9).all()
    smallest = np.array([recipe.global_.extent[0]] * 2 + [recipe.local.extent[0]] * 8)[:, None]
    largest = np.array([recipe.global_.extent[1]] * 2 + [recipe.local.extent[1]] * 8)[:, None]
    assert (draws.extent_zyx >= smallest).all()
    assert (draws.extent_zyx <= largest).all()
    assert (draws.low_hu < draws.high_hu).all()


@pytest.mark.parametrize("recipe", RECIPES, ids=["tiny", "small", "identity"])
@settings(max_examples=60, deadline=None)
@given(uniforms=UNIFORMS)
def test_every_sample_lies_between_the_centres_of_voxels_of_the_box(
    recipe: ViewRecipe, uniforms: np.ndarray
) -> None:
    draws = draw_views(recipe, uniforms)
    step = draws.extent_zyx / np.array(recipe.sizes)[:, None]
    first = draws.start_zyx + 0.5 * step - 0.5
    last = draws.start_zyx + draws.extent_zyx - 0.5 * step - 0.5
    assert (first >= -1e-9).all()
    assert (last <= recipe.box_side - 1 + 1e-9).all()


def many(recipe: ViewRecipe, sets: int = 2000) -> dict[str, np.ndarray]:
    """Fields of many sets, one long array each, the globals of a set first."""
    rng = np.random.default_rng(3)
    drawn = [draw_views(recipe, rng.random((10, N_UNIFORMS))) for _ in range(sets)]
    names = [field.name for field in dataclasses.fields(drawn[0])]
    return {name: np.stack([getattr(draws, name) for draws in drawn]) for name in names}


def test_flips_follow_their_probability_per_axis() -> None:
    recipe = dataclasses.replace(recipes.small().views, flip_p_zyx=(0.0, 0.3, 0.5))
    share = many(recipe)["flip_zyx"].mean(axis=(0, 1))
    # 20,000 draws: a standard deviation is below .0036.
    np.testing.assert_allclose(share, [0.0, 0.3, 0.5], atol=0.015)


def test_windows_are_drawn_with_their_probability_and_uniform_in_their_ranges() -> None:
    recipe = dataclasses.replace(recipes.small().views, window_p=0.25)
    fields = many(recipe)
    fixed = (fields["low_hu"] == -1000.0) & (fields["high_hu"] == 1000.0)
    assert 1 - fixed.mean() == pytest.approx(0.25, abs=0.015)
    for name, low, high in (("low_hu", -1000, -200), ("high_hu", 200, 1000)):
        values = fields[name][~fixed]
        assert low <= values.min() < low + 10
        assert high - 10 < values.max() < high
        assert values.mean() == pytest.approx((low + high) / 2, abs=15)


def test_gamma_is_symmetric_in_the_logarithm_and_gain_and_offset_in_value() -> None:
    fields = many(recipes.small().views)
    assert np.log(fields["gamma"]).mean() == pytest.approx(0.0, abs=0.005)
    assert fields["gain"].mean() == pytest.approx(1.0, abs=0.003)
    assert fields["offset"].mean() == pytest.approx(0.0, abs=0.003)
    assert np.abs(fields["gain"] - 1).max() <= 0.1


def test_global_and_local_extents_cover_their_ranges() -> None:
    extents = many(recipes.small().views)["extent_zyx"]
    for views, low, high in ((extents[:, :2], 72, 128), (extents[:, 2:], 32, 64)):
        assert views.min() == low  # the jitter is clipped to the range, so its ends are met
        assert views.max() == high
        assert views.mean() == pytest.approx((low + high) / 2, abs=2)
        # Nearly cubic: two axes differ by at most the jitter both ways, 1.1².
        assert (views.max(axis=-1) / views.min(axis=-1)).max() <= 1.21 + 1e-9


def test_starts_reach_both_ends_of_the_room_left() -> None:
    fields = many(recipes.small().views)
    room = 129 - fields["extent_zyx"][:, :2]
    position = fields["start_zyx"][:, :2] / room
    assert position.min() < 0.01
    assert position.max() > 0.99
    assert position.mean() == pytest.approx(0.5, abs=0.01)


def test_views_of_a_set_are_drawn_independently() -> None:
    fields = many(recipes.small().views)
    # As shares of the room left: a view's axes share an extent, so the starts themselves correlate.
    places = (fields["start_zyx"] / (129 - fields["extent_zyx"])).reshape(2000, -1)
    extents = fields["extent_zyx"][:, :, 0]
    correlation = np.corrcoef(np.concatenate([places, extents], axis=1).T) - np.eye(40)
    assert np.abs(correlation).max() < 0.12  # 5 standard deviations of 2,000 independent draws


def test_one_uniform_changes_one_thing() -> None:
    recipe = recipes.small().views
    base = np.full((10, N_UNIFORMS), 0.4)
    changed = base.copy()
    changed[3, 4] = 0.9  # the start along z of view 3
    before, after = draw_views(recipe, base), draw_views(recipe, changed)
    different = after.start_zyx != before.start_zyx
    assert np.argwhere(different).tolist() == [[3, 0]]
    np.testing.assert_array_equal(before.extent_zyx, after.extent_zyx)
    np.testing.assert_array_equal(before.low_hu, after.low_hu)


def test_identity_recipe_draws_plain_crops() -> None:
    fields = many(identity_recipe(), sets=200)
    assert (fields["extent_zyx"][:, :2] == 64).all()
    assert (fields["extent_zyx"][:, 2:] == 40).all()
    assert set(np.unique(fields["start_zyx"][:, :2])) == {0.0, 1.0}
    assert set(np.unique(fields["start_zyx"][:, 2:])) == set(np.arange(26.0))
    assert not fields["flip_zyx"].any()
    for name, value in (("low_hu", -1000), ("high_hu", 1000), ("gain", 1), ("offset", 0)):
        assert (fields[name] == value).all()
    assert (fields["gamma"] == 1).all()


def test_wrong_number_of_uniforms_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(9, 16\).*\(10, 16\)"):
        draw_views(identity_recipe(), np.zeros((9, N_UNIFORMS)))


@pytest.mark.parametrize("size", [16, 32])
def test_collapsing_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="use 33 or more"):
        ViewSpec(size=size, extent=(24, 32), count=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_": ViewSpec(size=48, extent=(40, 60), count=2)}, "multiple of 32"),
        ({"global_": ViewSpec(size=80, extent=(40, 60), count=2)}, "multiple of 32"),
        ({"global_": ViewSpec(size=96, extent=(72, 130), count=2)}, "base box"),
        ({"local": ViewSpec(size=144, extent=(32, 64), count=8)}, "base box"),
        ({"low_hu": (-1000.0, 300.0)}, "low end"),
        ({"gamma": (0.0, 1.0)}, "gamma"),
    ],
)
def test_recipes_that_cannot_work_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(recipes.small().views, **change)
