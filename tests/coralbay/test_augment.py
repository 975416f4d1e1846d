"""The plain augmentation against SciPy and closed forms."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from coralbay.augment import (
    blur,
    jitter,
    render_set,
    render_view,
    resample,
    resample_turned,
    window,
)
from coralbay.draws import ViewDraws, draw_views
from coralbay.noise import bank_side, noise_bank
from coralbay.rotation import rotation_matrices
from coralbay.views import ViewRecipe, ViewSpec, identity_recipe

NO_FLIP = np.array([False] * 3)
RECIPE = ViewRecipe(
    global_=ViewSpec(size=64, extent=(40.0, 66.0), count=1),
    local=ViewSpec(size=33, extent=(20.0, 40.0), count=2),
    box_side=66,
    rotate_p=1.0,
    rotate_deg=20.0,
    blur_p=1.0,
    blur_sigma=(0.5, 1.5),
    noise_p=1.0,
    noise_sd=(0.01, 0.05),
)


def noise_box(side: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1024, 3072, (side,) * 3).astype(np.int16)


def draw(recipe: ViewRecipe = RECIPE, seed: int = 1) -> ViewDraws:
    return draw_views(recipe, np.random.default_rng(seed).random(recipe.n_uniforms))


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(3, 30),
    extent=st.tuples(*[st.floats(2.0, 20.0)] * 3),
    place=st.tuples(*[st.floats(0.0, 1.0)] * 3),
    flip=st.tuples(*[st.booleans()] * 3),
)
def test_equals_scipy_at_the_sample_points(
    size: int, extent: tuple, place: tuple, flip: tuple
) -> None:
    box = noise_box()
    extent_zyx = np.array(extent)
    start_zyx = np.array(place) * (20 - extent_zyx)
    points = [
        start_zyx[axis] + (np.arange(size) + 0.5) * extent_zyx[axis] / size - 0.5
        for axis in range(3)
    ]
    grid = np.stack(np.meshgrid(*points, indexing="ij"))
    hu = ndimage.map_coordinates(box.astype(np.float64), grid, order=1, mode="nearest")
    expected = np.flip(hu, axis=[i for i in range(3) if flip[i]])
    view = resample(box, size, start_zyx, extent_zyx, np.array(flip))
    assert view.dtype == np.float32
    np.testing.assert_allclose(view, expected, atol=2e-2)  # of 4096 HU
    straight = resample_turned(box, size, start_zyx, extent_zyx, np.array(flip), np.eye(3))
    np.testing.assert_allclose(straight, expected, atol=2e-2)


def test_whole_voxel_crops_are_slices_bit_for_bit() -> None:
    box = noise_box(12)
    hu = resample(box, 7, np.array([2.0, 0.0, 5.0]), np.full(3, 7.0), NO_FLIP)
    np.testing.assert_array_equal(hu, box[2:9, 0:7, 5:12])


def test_flips_mirror_the_axis_they_name() -> None:
    box = noise_box(12)
    at = {"start": np.array([1.0, 2.0, 3.0]), "extent": np.full(3, 8.0)}
    straight = resample(box, 8, flip=NO_FLIP, **at)
    for axis in range(3):
        mirrored = resample(box, 8, flip=np.arange(3) == axis, **at)
        np.testing.assert_array_equal(mirrored, np.flip(straight, axis))


def test_a_linear_ramp_stays_linear_with_the_stated_pixel_centres() -> None:
    box = np.broadcast_to(np.arange(16, dtype=np.int16)[:, None, None] * 10, (16, 16, 16))
    hu = resample(box, 4, np.array([4.0, 0.0, 0.0]), np.array([8.0, 16.0, 16.0]), NO_FLIP)
    # The window [4, 12) in 4 steps of 2: centres at 4.5, 6.5, 8.5, 10.5 in voxel indices.
    np.testing.assert_allclose(hu[:, 0, 0], [45, 65, 85, 105], atol=1e-4)


def test_a_linear_field_tells_where_a_turned_view_is_taken() -> None:
    """Trilinear interpolation reproduces it, so each value gives its place away."""
    z, y, x = np.meshgrid(*[np.arange(40)] * 3, indexing="ij")
    fields = [(100 * z).astype(np.int16), (100 * y).astype(np.int16), (100 * x).astype(np.int16)]
    rotation = rotation_matrices(np.array([[0.3, -0.2, 0.1]]))[0]
    start, extent = np.array([8.0, 9.0, 7.0]), np.array([21.0, 20.0, 22.0])
    flip = np.array([True, False, False])
    got = np.stack([resample_turned(f, 5, start, extent, flip, rotation) for f in fields]) / 100
    for k in np.ndindex(5, 5, 5):
        offset = ((np.array(k) + 0.5) / 5 - 0.5) * extent * [-1, 1, 1]
        expected = start + extent / 2 + rotation @ offset - 0.5
        np.testing.assert_allclose(got[(slice(None), *k)], expected, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_is_numpys(axis: int) -> None:
    box = noise_box(9)
    angles = np.zeros((1, 3))
    angles[0, axis] = np.pi / 2
    got = resample_turned(
        box, 9, np.zeros(3), np.full(3, 9.0), NO_FLIP, rotation_matrices(angles)[0]
    )
    first, second = (other for other in range(3) if other != axis)
    # Content of a window that turns one way turns the other way in the view.
    expected = np.rot90(box, -1, axes=(first, second))
    np.testing.assert_allclose(got, expected, atol=1e-2)


def test_window_and_jitter_by_hand() -> None:
    hu = np.array([-500.0, -200.0, 0.0, 200.0, 900.0], dtype=np.float32).reshape(5, 1, 1)
    windowed = window(hu, low=-200, high=200)
    np.testing.assert_allclose(windowed.ravel(), [0, 0, 0.5, 1, 1], atol=1e-6)
    # Squared; times 1.2 minus .1.
    result = jitter(windowed, gamma=2.0, gain=1.2, offset=-0.1)
    np.testing.assert_allclose(result.ravel(), [-0.1, -0.1, 0.2, 1.1, 1.1], atol=1e-6)


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0, 1.7])
def test_blur_by_its_definition(sigma: float) -> None:
    value = np.random.default_rng(2).random((9, 8, 7)).astype(np.float32)
    radius = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    expected = np.pad(value.astype(np.float64), radius, mode="reflect")
    for axis in range(3):
        expected = np.apply_along_axis(np.convolve, axis, expected, kernel / kernel.sum(), "valid")
    np.testing.assert_allclose(blur(value, sigma), expected, atol=1e-6)


def test_a_view_is_its_steps_in_the_stated_order() -> None:
    box, draws = noise_box(66), draw()
    start, extent, flip = draws.start_zyx[1], draws.extent_zyx[1], draws.flip_zyx[1]
    bank = noise_bank(bank_side(RECIPE.sizes))
    hu = resample_turned(box, 33, start, extent, flip, rotation_matrices(draws.angles_zyx)[1])
    value = window(hu, draws.low_hu[1], draws.high_hu[1])
    value = jitter(value, draws.gamma[1], draws.gain[1], draws.offset[1])
    z, y, x = draws.noise_start_zyx[1]
    noise = bank[z : z + 33, y : y + 33, x : x + 33].astype(np.float32)
    expected = blur(value, draws.blur_sigma[1]) + noise * np.float32(draws.noise_sd[1])
    view = render_view(box, 33, draws, 1, bank)
    assert view.dtype == np.float32
    np.testing.assert_array_equal(view, np.clip(expected, 0, 1))


@pytest.mark.parametrize("field", ["angles_zyx", "blur_sigma", "noise_sd"])
def test_each_option_changes_the_view(field: str) -> None:
    box, draws = noise_box(66), draw()
    without = dataclasses.replace(draws, **{field: np.zeros_like(getattr(draws, field))})
    for ours, plain in zip(
        render_set(box, RECIPE.sizes, draws), render_set(box, RECIPE.sizes, without), strict=True
    ):
        assert np.abs(ours - plain).max() > 0.02


def test_a_set_holds_every_view_at_its_size() -> None:
    recipe = identity_recipe()
    box = noise_box(65)
    draws = draw(recipe)
    rendered = render_set(box, recipe.sizes, draws)
    assert [view.shape[0] for view in rendered] == [64, 64] + [40] * 8
    for view, start in zip(rendered, draws.start_zyx.astype(int), strict=True):
        crop = box[tuple(slice(a, a + view.shape[0]) for a in start)].astype(np.float32)
        np.testing.assert_array_equal(view, np.clip((crop + 1000) / np.float32(2000), 0, 1))


def test_no_view_changes_its_box() -> None:
    box = noise_box(66)
    before = box.copy()
    render_set(box, RECIPE.sizes, draw())
    np.testing.assert_array_equal(box, before)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_values_stay_in_the_unit_interval(seed: int) -> None:
    for view in render_set(noise_box(66), RECIPE.sizes, draw(seed=seed)):
        assert view.min() >= 0
        assert view.max() <= 1
