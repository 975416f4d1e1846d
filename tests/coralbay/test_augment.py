"""The plain augmentation against SciPy and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from coralbay.augment import adjust, render_set, render_view
from coralbay.views import N_UNIFORMS, draw_views, identity_recipe

PLAIN = {"low": -1000.0, "high": 1000.0, "gain": 1.0, "offset": 0.0, "gamma": 1.0}


def noise_box(side: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1024, 3072, (side,) * 3).astype(np.int16)


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
    expected = np.clip((hu + 300) / 900, 0, 1) ** 1.3 * 0.9 + 0.04
    expected = np.flip(np.clip(expected, 0, 1), axis=[i for i in range(3) if flip[i]])

    view = render_view(
        box, size, start_zyx, extent_zyx, np.array(flip), -300.0, 600.0, 0.9, 0.04, 1.3
    )

    assert view.dtype == np.float32
    np.testing.assert_allclose(view, expected, atol=2e-5)


def test_whole_voxel_crops_are_slices_bit_for_bit() -> None:
    box = noise_box(12)
    view = render_view(
        box, 7, np.array([2.0, 0.0, 5.0]), np.full(3, 7.0), np.array([False] * 3), **PLAIN
    )
    crop = box[2:9, 0:7, 5:12].astype(np.float32)
    expected = np.clip((crop + np.float32(1000)) / np.float32(2000), 0, 1)
    np.testing.assert_array_equal(view, expected)


def test_flips_mirror_the_axis_they_name() -> None:
    box = noise_box(12)
    at = {"start": np.array([1.0, 2.0, 3.0]), "extent": np.full(3, 8.0)}
    straight = render_view(box, 8, flip=np.array([False] * 3), **at, **PLAIN)
    for axis in range(3):
        mirrored = render_view(box, 8, flip=np.arange(3) == axis, **at, **PLAIN)
        np.testing.assert_array_equal(mirrored, np.flip(straight, axis))


def test_a_linear_ramp_stays_linear_with_the_stated_pixel_centres() -> None:
    box = np.broadcast_to(np.arange(16, dtype=np.int16)[:, None, None] * 10, (16, 16, 16))
    view = render_view(
        box,
        4,
        np.array([4.0, 0.0, 0.0]),
        np.array([8.0, 16.0, 16.0]),
        np.array([False] * 3),
        **{**PLAIN, "low": 0.0, "high": 200.0},
    )
    # The window [4, 12) in 4 steps of 2: centres at 4.5, 6.5, 8.5, 10.5 in voxel indices.
    np.testing.assert_allclose(view[:, 0, 0] * 200, [45, 65, 85, 105], atol=1e-4)


def test_adjust_by_hand() -> None:
    hu = np.array([-500.0, -200.0, 0.0, 200.0, 900.0], dtype=np.float32).reshape(5, 1, 1)
    # Windowed to 0, 0, .5, 1, 1; squared; times 1.2 minus .1; clipped.
    result = adjust(hu, low=-200, high=200, gain=1.2, offset=-0.1, gamma=2.0)
    np.testing.assert_allclose(result.ravel(), [0.0, 0.0, 0.2, 1.0, 1.0], atol=1e-6)


def test_a_set_holds_every_view_at_its_size() -> None:
    recipe = identity_recipe()
    box = noise_box(65)
    draws = draw_views(recipe, np.random.default_rng(1).random((10, N_UNIFORMS)))
    rendered = render_set(box, recipe.sizes, draws)
    assert [view.shape[0] for view in rendered] == [64, 64] + [40] * 8
    for view, start in zip(rendered, draws.start_zyx.astype(int), strict=True):
        crop = box[tuple(slice(a, a + view.shape[0]) for a in start)].astype(np.float32)
        np.testing.assert_array_equal(view, np.clip((crop + 1000) / np.float32(2000), 0, 1))


def test_no_view_changes_its_box() -> None:
    box = noise_box(65)
    before = box.copy()
    draws = draw_views(identity_recipe(), np.zeros((10, N_UNIFORMS)))
    render_set(box, identity_recipe().sizes, draws)
    np.testing.assert_array_equal(box, before)


@pytest.mark.parametrize("gamma", [0.8, 1.0, 1.25])
def test_values_stay_in_the_unit_interval(gamma: float) -> None:
    view = render_view(
        noise_box(),
        33,
        np.zeros(3),
        np.full(3, 20.0),
        np.array([True, False, True]),
        -200,
        200,
        1.1,
        0.05,
        gamma,
    )
    assert view.min() >= 0
    assert view.max() <= 1
