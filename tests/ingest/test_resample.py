"""Resampling against closed forms and scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ingest.geometry import is_oblique, orientation_code
from ingest.resample import axis_weights, resample_axes, resample_oblique, target_size


@pytest.mark.parametrize(
    ("n", "spacing", "target", "size"),
    [
        (133, 2.5, 1.5, 221),  # 132 * 2.5 / 1.5 = 220 exactly
        (512, 0.703125, 1.5, 240),  # 239.53
        (5, 0.3, 0.1, 13),  # 4 * 0.3 / 0.1 is 11.999999999999998
        (1, 5.0, 1.5, 1),
        (10, 1.0, 20.0, 1),
    ],
)
def test_target_size(n: int, spacing: float, target: float, size: int) -> None:
    assert target_size(n, spacing, target) == size


def test_weights_by_hand() -> None:
    # Step 1.5, support 1.5: at 1.5 the distances are 1.5, .5, .5, 1.5 -> 0, 2/3, 2/3, 0
    weights = axis_weights(4, 3, 1.5, 1.5)
    edge = np.array([1, 1 / 3, 0, 0]) / (4 / 3)
    np.testing.assert_allclose(weights, [edge, [0, 0.5, 0.5, 0], edge[::-1]], atol=1e-6)


@given(
    n=st.integers(2, 60), spacing=st.floats(0.3, 5), target=st.floats(0.3, 5), wide=st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_weights_are_an_average(n: int, spacing: float, target: float, wide: bool) -> None:
    step = target / spacing
    support = max(1.0, step) if wide else 1.0
    weights = axis_weights(n, target_size(n, spacing, target), step, support)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("antialias", [True, False])
def test_constants_stay(antialias: bool) -> None:
    hu = np.full((9, 10, 11), -731, np.float32)
    out = resample_axes(hu, (2.5, 0.7, 0.7), (1.5, 1.5, 1.5), antialias=antialias)
    np.testing.assert_allclose(out, -731, atol=1e-3)


def test_linear_reproduces_a_ramp() -> None:
    z, y, x = np.meshgrid(*[np.arange(n) for n in (9, 21, 31)], indexing="ij")
    spacing, target = (2.5, 0.7, 0.9), (1.5, 1.1, 0.8)
    hu = (10 * z * 2.5 - 3 * y * 0.7 + 5 * x * 0.9).astype(np.float32)
    out = resample_axes(hu, spacing, target, antialias=False)
    z, y, x = np.meshgrid(*[np.arange(n) for n in out.shape], indexing="ij")
    np.testing.assert_allclose(out, 10 * z * 1.5 - 3 * y * 1.1 + 5 * x * 0.8, atol=1e-3)


def test_linear_equals_scipy() -> None:
    hu = np.random.default_rng(0).normal(0, 300, (12, 20, 25)).astype(np.float32)
    spacing, target = (3.0, 0.7, 0.8), (1.5, 1.5, 1.5)
    out = resample_axes(hu, spacing, target, antialias=False)
    ratio = np.array(target) / spacing
    expected = ndimage.affine_transform(
        hu.astype(np.float64), np.diag(ratio), output_shape=out.shape, order=1, mode="nearest"
    )
    np.testing.assert_allclose(out, expected, atol=2e-3)


def test_same_spacing_is_untouched() -> None:
    hu = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    out = resample_axes(hu, (1.5, 1.5, 1.5), (1.5, 1.5, 1.5), antialias=True)
    np.testing.assert_array_equal(out, hu)


def test_antialias_removes_what_the_grid_cannot_hold() -> None:
    """A wave of period 1.5 target voxels: linear sampling keeps most of it as a false pattern."""
    x = np.arange(400) * 0.5
    wave = (1000 * np.sin(2 * np.pi * x / (1.5 * 1.5))).astype(np.float32)
    hu = np.broadcast_to(wave, (2, 2, 400)).copy()
    amplitude = {
        antialias: np.abs(
            resample_axes(hu, (1.5, 1.5, 0.5), (1.5, 1.5, 1.5), antialias=antialias)[0, 0, 8:-8]
        ).max()
        for antialias in (True, False)
    }
    assert amplitude[False] > 500
    assert amplitude[True] < 200


def test_it_is_the_product_with_the_weights() -> None:
    hu = np.random.default_rng(0).normal(0, 300, (20, 64, 70)).astype(np.float32)
    spacing, target = (2.0, 0.7, 0.9), (1.5, 1.5, 1.2)
    weights = []
    for n, old, new in zip(hu.shape, spacing, target, strict=True):
        step = new / old
        weights.append(axis_weights(n, target_size(n, old, new), step, max(1, step)))
    expected = np.einsum("az,by,cx,zyx->abc", *weights, hu.astype(np.float64), optimize=True)
    out = resample_axes(hu, spacing, target, antialias=True)
    np.testing.assert_allclose(out, expected, atol=0.005)
    # How the volume lies in memory changes no bit.
    for view in (hu[:, ::-1].copy()[:, ::-1], hu.transpose(2, 0, 1).copy().transpose(1, 2, 0)):
        np.testing.assert_array_equal(view, hu)
        same = resample_axes(view, spacing, target, antialias=True)
        assert same.tobytes() == out.tobytes()


def rotated(degrees: float, spacing: tuple[float, float, float]) -> np.ndarray:
    """S, P, L axes turned about two patient axes."""
    turn = Rotation.from_euler("xz", [degrees, degrees / 2], degrees=True).as_matrix()
    affine = np.eye(4)
    axes = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]]).astype(float)
    affine[:3, :3] = turn @ axes * spacing
    affine[:3, 3] = (30, 40, -50)
    return affine


@pytest.mark.parametrize("antialias", [True, False])
def test_oblique_reproduces_a_field(antialias: bool) -> None:
    """A field linear in space has the same value at each place, whatever the grid."""
    shape, affine = (30, 40, 36), rotated(12, (1.2, 0.8, 0.9))
    gradient = np.array([2.0, -3.0, 1.0])

    def field(grid: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        index = np.indices(size).reshape(3, -1)
        return (gradient @ (grid[:3, :3] @ index + grid[:3, 3:])).reshape(size)

    hu = field(affine, shape).astype(np.float32)
    out, grid = resample_oblique(hu, affine, (1.5, 1.5, 1.5), antialias=antialias)
    assert orientation_code(grid) == "SPL"
    assert not is_oblique(grid)
    expected = field(grid, out.shape)
    inside = np.linalg.inv(affine) @ grid
    index = np.indices(out.shape).reshape(3, -1)
    old = inside[:3, :3] @ index + inside[:3, 3:]
    # The widened kernel is one-sided near the old edges: a linear field bends there.
    margin = 3
    deep = ((old > margin) & (old < np.array(shape)[:, None] - 1 - margin)).all(axis=0)
    assert deep.sum() > 5000
    np.testing.assert_allclose(out.ravel()[deep], expected.ravel()[deep], atol=0.02)
    outside = ((old < -1e-6) | (old > np.array(shape)[:, None] - 1 + 1e-6)).any(axis=0)
    assert (out.ravel()[outside] == -1024).all()
    assert outside.sum() > 1000


def test_oblique_grid_bounds_the_volume() -> None:
    shape, affine = (10, 12, 14), rotated(25, (2.0, 1.0, 1.0))
    out, grid = resample_oblique(
        np.zeros(shape, np.float32), affine, (1.0, 1.0, 1.0), antialias=False
    )
    corners = np.array([[z, y, x, 1] for z in (0, 9) for y in (0, 11) for x in (0, 13)]).T
    index = (np.linalg.inv(grid) @ affine @ corners)[:3]
    assert index.min() > -1e-9
    assert (index.max(axis=1) < np.array(out.shape)).all()
    np.testing.assert_allclose(index.min(axis=1), 0, atol=1e-9)
