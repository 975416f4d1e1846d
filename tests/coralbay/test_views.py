"""Views: inside the box, distributed as the recipe says, refused if the backbone cannot take it."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coralbay import recipes
from coralbay.draws import draw_views
from coralbay.rotation import rotation_matrices
from coralbay.views import N_FIRST, N_SECOND, ViewRecipe, ViewSpec, identity_recipe
from shards.rng import VIEWS, uniforms

RECIPES = [recipes.tiny().views, recipes.small().views, identity_recipe()]
WILD = dataclasses.replace(recipes.small().views, rotate_p=1.0, rotate_deg=180.0, extent_jitter=0.5)
TURNED = [*RECIPES, WILD]
NAMES = ["tiny", "small", "identity"]

UNIFORMS = arrays(
    np.float64,
    (10 * (N_FIRST + N_SECOND),),
    elements=st.floats(0.0, 1.0, exclude_max=True),
    fill=st.sampled_from([0.0, 0.5, np.nextafter(1.0, 0.0)]),
)


def straight(recipe: ViewRecipe) -> ViewRecipe:
    return dataclasses.replace(recipe, rotate_p=0.0)


@pytest.mark.parametrize("recipe", RECIPES, ids=NAMES)
@settings(max_examples=60, deadline=None)
@given(uniforms=UNIFORMS)
def test_every_source_window_lies_inside_the_box(recipe: ViewRecipe, uniforms: np.ndarray) -> None:
    draws = draw_views(straight(recipe), uniforms)
    assert (draws.start_zyx >= 0).all()
    assert (draws.start_zyx + draws.extent_zyx <= recipe.box_side + 1e-9).all()
    smallest = np.array([recipe.global_.extent[0]] * 2 + [recipe.local.extent[0]] * 8)[:, None]
    largest = np.array([recipe.global_.extent[1]] * 2 + [recipe.local.extent[1]] * 8)[:, None]
    assert (draws.extent_zyx >= smallest).all()
    assert (draws.extent_zyx <= largest).all()
    assert (draws.low_hu < draws.high_hu).all()


@pytest.mark.parametrize("recipe", TURNED, ids=[*NAMES, "wild"])
@settings(max_examples=60, deadline=None)
@given(uniforms=UNIFORMS)
def test_every_sample_lies_between_the_centres_of_voxels_of_the_box(
    recipe: ViewRecipe, uniforms: np.ndarray
) -> None:
    """The outermost samples of a view are the eight at its corners, turned or not."""
    draws = draw_views(recipe, uniforms)
    inner = draws.extent_zyx * (1 - 1 / np.array(recipe.sizes)[:, None]) / 2
    centre = draws.start_zyx + draws.extent_zyx / 2 - 0.5
    rotation = rotation_matrices(draws.angles_zyx)
    for signs in itertools.product((-1, 1), repeat=3):
        corner = centre + np.einsum("vij,vj->vi", rotation, inner * signs)
        assert (corner >= -1e-9).all()
        assert (corner <= recipe.box_side - 1 + 1e-9).all()
    lower, upper = draws.bounds_zyx()
    assert (lower >= -1e-9).all()
    assert (upper <= recipe.box_side + 1e-9).all()


@pytest.mark.parametrize("name", ["small", "tiny"])
@settings(max_examples=60, deadline=None)
@given(uniforms=UNIFORMS)
def test_views_that_are_not_turned_are_those_of_a_recipe_without_rotation(
    name: str, uniforms: np.ndarray
) -> None:
    """To the bit, and with nothing but the first block of uniforms: as before there were others."""
    recipe = dataclasses.replace(recipes.RECIPES[name]().views, rotate_p=0.5, rotate_deg=10.0)
    blank = uniforms.copy()
    blank[10 * N_FIRST :] = 0.0
    before = draw_views(dataclasses.replace(recipe, rotate_p=0, blur_p=0, noise_p=0), blank)
    after = draw_views(recipe, uniforms)
    assert not before.turned.any()
    assert not before.blur_sigma.any()
    assert not before.noise_sd.any()
    for field in ("start_zyx", "extent_zyx"):
        same = ~after.turned
        np.testing.assert_array_equal(getattr(after, field)[same], getattr(before, field)[same])
    for field in ("flip_zyx", "low_hu", "high_hu", "gain", "offset", "gamma"):
        np.testing.assert_array_equal(getattr(after, field), getattr(before, field))


KNOWN = {
    "start_zyx": 1033.6510290345207,
    "extent_zyx": 1805.2661678699026,
    "flip_zyx": 15.0,
    "low_hu": -9081.786184979275,
    "gain": 9.969868890969828,
    "gamma": 9.987003426399177,
}


def test_the_first_block_means_what_it_meant() -> None:
    """Known answers, computed when a draw had one block only; runs recorded then go on."""
    recipe = dataclasses.replace(recipes.small().views, rotate_p=0, blur_p=0, noise_p=0)
    draws = draw_views(recipe, uniforms(7, VIEWS, 11, 0, recipe.n_uniforms))
    sums = {name: float(np.asarray(getattr(draws, name), dtype=np.float64).sum()) for name in KNOWN}
    assert sums == pytest.approx(KNOWN, abs=1e-9)


def test_turned_views_are_made_smaller_only_where_they_would_not_fit() -> None:
    small = recipes.small().views
    recipe = dataclasses.replace(small, rotate_p=1.0, rotate_deg=10.0)
    with_turns, without = many(recipe, 300), many(straight(small), 300)
    ratio = with_turns["extent_zyx"] / without["extent_zyx"]
    assert (with_turns["angles_zyx"] != 0).all()
    np.testing.assert_array_equal(ratio[:, 2:], 1.0)  # a local view always fits
    assert ratio[:, :2].max() == 1.0
    assert 0.7 < ratio[:, :2].min() < 0.9
    np.testing.assert_allclose(ratio.max(axis=-1), ratio.min(axis=-1))  # their shape stays
    # As near to the box's faces as it may be: one of the two rules is met exactly.
    lower = with_turns["bounds"][:, :2, 0]
    shrunk = ratio[:, :2, 0] < 1
    assert np.abs(lower[shrunk]).min(axis=-1).max() < 0.5 + 1e-9


def test_options_follow_their_probabilities_and_ranges() -> None:
    recipe = dataclasses.replace(
        recipes.small().views, rotate_p=0.2, rotate_deg=10.0, blur_p=0.3, noise_p=0.4
    )
    fields = many(recipe)
    turned = fields["angles_zyx"].any(axis=-1)
    angles = np.rad2deg(fields["angles_zyx"][turned])
    # 20,000 draws: a standard deviation is below .0036.
    assert turned.mean() == pytest.approx(0.2, abs=0.015)
    assert np.abs(angles).max() <= 10
    np.testing.assert_allclose(angles.mean(axis=0), 0, atol=0.5)
    np.testing.assert_allclose(angles.std(axis=0), 20 / 12**0.5, atol=0.3)
    for name, p, (low, high) in (
        ("blur_sigma", 0.3, recipe.blur_sigma),
        ("noise_sd", 0.4, recipe.noise_sd),
    ):
        values = fields[name][fields[name] > 0]
        assert values.size / fields[name].size == pytest.approx(p, abs=0.015)
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() < high
        assert values.mean() == pytest.approx((low + high) / 2, rel=0.02)
    starts = fields["noise_start_zyx"]
    assert starts.min() == 0
    assert starts[:, :2].max() == 192 - 96 - 1
    assert starts[:, 2:].max() == 192 - 48 - 1
    # Independent of each other, and of the first block.
    columns = [turned, fields["blur_sigma"] > 0, fields["noise_sd"] > 0, fields["gain"]]
    columns += [*np.moveaxis(starts, -1, 0), fields["start_zyx"][..., 0]]
    of_one_kind = [np.ravel(column[:, 2:]) for column in columns]
    correlation = np.corrcoef(of_one_kind) - np.eye(len(columns))
    assert np.abs(correlation).max() < 0.03


@functools.cache
def many(recipe: ViewRecipe, sets: int = 2000) -> dict[str, np.ndarray]:
    """Fields of many sets, one long array each, the globals of a set first."""
    rng = np.random.default_rng(3)
    drawn = [draw_views(recipe, rng.random(recipe.n_uniforms)) for _ in range(sets)]
    names = [field.name for field in dataclasses.fields(drawn[0])]
    fields = {name: np.stack([getattr(draws, name) for draws in drawn]) for name in names}
    fields["bounds"] = np.stack([np.stack(draws.bounds_zyx(), axis=1) for draws in drawn])
    return fields


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
    fields = many(straight(recipes.small().views))
    assert np.log(fields["gamma"]).mean() == pytest.approx(0.0, abs=0.005)
    assert fields["gain"].mean() == pytest.approx(1.0, abs=0.003)
    assert fields["offset"].mean() == pytest.approx(0.0, abs=0.003)
    assert np.abs(fields["gain"] - 1).max() <= 0.1


def test_global_and_local_extents_cover_their_ranges() -> None:
    extents = many(straight(recipes.small().views))["extent_zyx"]
    for views, low, high in ((extents[:, :2], 72, 128), (extents[:, 2:], 32, 64)):
        assert views.min() == low  # the jitter is clipped to the range, so its ends are met
        assert views.max() == high
        assert views.mean() == pytest.approx((low + high) / 2, abs=2)
        # Nearly cubic: two axes differ by at most the jitter both ways, 1.1².
        assert (views.max(axis=-1) / views.min(axis=-1)).max() <= 1.21 + 1e-9


def test_starts_reach_both_ends_of_the_room_left() -> None:
    fields = many(straight(recipes.small().views))
    room = 129 - fields["extent_zyx"][:, :2]
    position = fields["start_zyx"][:, :2] / room
    assert position.min() < 0.01
    assert position.max() > 0.99
    assert position.mean() == pytest.approx(0.5, abs=0.01)


def test_views_of_a_set_are_drawn_independently() -> None:
    fields = many(straight(recipes.small().views))
    # As shares of the room left: a view's axes share an extent, so the starts themselves correlate.
    places = (fields["start_zyx"] / (129 - fields["extent_zyx"])).reshape(2000, -1)
    extents = fields["extent_zyx"][:, :, 0]
    correlation = np.corrcoef(np.concatenate([places, extents], axis=1).T) - np.eye(40)
    assert np.abs(correlation).max() < 0.12  # 5 standard deviations of 2,000 independent draws


def test_one_uniform_changes_one_thing() -> None:
    recipe = recipes.small().views
    base = np.full(recipe.n_uniforms, 0.4)
    changed = base.copy()
    changed[3 * N_FIRST + 4] = 0.9  # the start along z of view 3
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
    with pytest.raises(ValueError, match="269 uniforms: this recipe takes 270"):
        draw_views(identity_recipe(), np.zeros(269))


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
        ({"noise_p": 1.1}, "noise_p 1.1"),
        ({"rotate_p": 0.5, "rotate_deg": 0.0}, "rotate_deg 0.0"),
        ({"rotate_p": 0.5, "rotate_deg": 181.0}, "rotate_deg 181"),
        ({"rotate_p": 0.5, "rotate_deg": 5.0, "whole_voxels": True}, "whole_voxels"),
        ({"blur_p": 0.5, "blur_sigma": (0.0, 1.0)}, "blur_sigma"),
        ({"blur_p": 0.5, "blur_sigma": (1.0, 11.0)}, "blur_sigma"),
        ({"noise_p": 0.5, "noise_sd": (0.0, 0.1)}, "noise_sd"),
    ],
)
def test_recipes_that_cannot_work_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(recipes.small().views, **change)
