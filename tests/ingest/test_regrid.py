"""Sheared and uneven stacks on regular grids: fields whose value is known everywhere."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ingest.errors import Reason, SeriesError
from ingest.prepare import PrepareConfig, prepare
from ingest.reader import read_series
from ingest.regrid import plan_regridding, regrid
from ingest.scan import scan
from ingest.stack import measure_stack

AXIAL = np.array([1.0, 0, 0, 0, 1, 0])
OBLIQUE = Rotation.from_euler("xyz", (7, -4, 11), degrees=True).as_matrix()
ROWS, COLUMNS, PIXEL = 34, 30, (0.8, 0.9)
UNEVEN = np.array([0, 2, 4, 6.5, 8, 13, 15, 16.7, 19, 21])
EVEN = np.arange(10) * 2.5


def field(ras: np.ndarray) -> np.ndarray:
    """HU, linear in each of R, A and S; from about -400 to 600 here."""
    return 100 + ras @ (3.0, -5.0, 11.0)


def stack_of(
    travel: np.ndarray, lean: tuple[float, float], rotation: np.ndarray, values: Callable
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (LPS), orientation and HU of slices that sample ``values``, PS3.3 C.7.6.2.1-1."""
    along, down, normal = rotation.T
    shift = travel[:, None] * (lean[0] * down + lean[1] * along)
    positions = np.array([-8.0, 5, 120]) + travel[:, None] * normal + shift
    j, i = np.mgrid[:ROWS, :COLUMNS]
    plane = j[..., None] * PIXEL[0] * down + i[..., None] * PIXEL[1] * along
    lps = positions[:, None, None, :] + plane
    hu = values(lps * (-1, -1, 1)).astype(np.float32)
    return positions, np.concatenate([along, down]), hu


def put_on_grid(positions, orientation, hu) -> tuple[np.ndarray, np.ndarray]:
    stack = measure_stack(positions, orientation, PIXEL)
    plan, affine = plan_regridding(stack.offsets_mm, stack.affine, hu.shape[1:])
    return regrid(hu, plan), affine


def inside(affine: np.ndarray, shape, positions, orientation) -> tuple[np.ndarray, np.ndarray]:
    """RAS of every voxel, and whether the slices below and above both have pixels around it."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    ras = index @ affine[:3, :3].T + affine[:3, 3]
    along, down = orientation[:3], orientation[3:]
    normal = np.cross(along, down)
    order = positions[np.argsort(positions @ normal)]
    t = (ras * (-1, -1, 1) - order[0]) @ normal
    upper = np.clip(np.searchsorted((order - order[0]) @ normal, t - 1e-6), 1, len(order) - 1)
    ok = t <= (order[-1] - order[0]) @ normal + 1e-6
    for number in (upper - 1, upper):
        local = ras * (-1, -1, 1) - order[number]
        for axis, step, n in ((down, PIXEL[0], ROWS), (along, PIXEL[1], COLUMNS)):
            place = local @ axis / step
            ok &= (place >= -1e-6) & (place <= n - 1 + 1e-6)
    return ras, ok


@pytest.mark.parametrize("rotation", [np.eye(3), OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize(
    ("travel", "lean"),
    [
        (UNEVEN, (0, 0)),
        (UNEVEN, (0.33, 0)),
        (UNEVEN, (0.2, -0.15)),
        (EVEN, (-0.33, 0)),
        (EVEN, (0.2, -0.15)),
    ],
)
def test_a_linear_field_is_reproduced(travel, lean, rotation) -> None:
    positions, orientation, hu = stack_of(travel, lean, rotation, field)
    shuffled = np.random.default_rng(3).permutation(len(travel))
    out, affine = put_on_grid(positions[shuffled], orientation, hu)
    ras, ok = inside(affine, out.shape, positions, orientation)
    assert ok.mean() > 0.6
    assert np.abs(out - field(ras))[ok].max() < 0.5


@pytest.mark.parametrize("lean", [0.33, -0.33])
def test_the_grid_holds_every_slice(lean: float) -> None:
    """Each corner of each slice lies within the grid; only where no slice is, is it filled."""
    positions, orientation, hu = stack_of(UNEVEN, (lean, 0), OBLIQUE, lambda ras: 0 * ras[..., 0])
    out, affine = put_on_grid(positions, orientation, hu)
    along, down = orientation[:3] * PIXEL[1], orientation[3:] * PIXEL[0]
    for j, i in ((0, 0), (0, COLUMNS - 1), (ROWS - 1, 0), (ROWS - 1, COLUMNS - 1)):
        ras = (positions + j * down + i * along) * (-1, -1, 1)
        voxel = np.linalg.solve(affine[:3, :3], (ras - affine[:3, 3]).T).T
        last = np.array(out.shape) - 1
        assert (voxel[:, 1:] > -1e-6).all()
        assert (voxel[:, 1:] < last[1:] + 1e-6).all()
        assert (np.abs(np.clip(voxel[:, 0], 0, last[0]) - voxel[:, 0]) <= 0.5 + 1e-6).all()
    _, ok = inside(affine, out.shape, positions, orientation)
    assert (out[ok] == 0).all()
    assert out.min() == -1024


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(8, 30), spacing=st.floats(0.5, 8))
def test_dropping_inner_slices_changes_nothing_that_is_linear(data, n, spacing) -> None:
    """Same grid, same values, while most gaps stay and none is wider than three spacings."""
    gone = data.draw(st.sets(st.integers(1, n - 2), min_size=1, max_size=n // 4))
    left = np.array([k for k in range(n) if k not in gone])
    gaps = np.diff(left)
    if gaps.max() > 3 or np.sort(gaps)[(len(gaps) - 1) // 2] != 1:
        return
    whole = measure_stack(np.array([(4.0, -7, 30 + spacing * k) for k in range(n)]), AXIAL, PIXEL)
    positions = np.array([(4.0, -7, 30 + spacing * k) for k in left])
    noise = np.random.default_rng(0).integers(-900, 900, (2, 5, 6))
    hu = noise[0] + noise[1] * np.arange(n)[:, None, None] / n
    stack = measure_stack(positions, AXIAL, PIXEL)
    plan, affine = plan_regridding(stack.offsets_mm, stack.affine, (5, 6))
    assert stack.geometry == "missing_slices"
    assert plan.shape_zyx == hu.shape
    np.testing.assert_allclose(affine, whole.affine, rtol=0, atol=1e-9)
    out = regrid(hu[left].astype(np.float32), plan)
    np.testing.assert_allclose(out, hu, rtol=0, atol=0.01)
    # The slices that are there are there to the bit.
    np.testing.assert_array_equal(out[left], hu[left].astype(np.float32))


# ---------------------------------------------------------------- whole series


@pytest.fixture
def read_tilted(make_stack, only, id_key, tmp_path):
    """Stored values on tilted, uneven slices, written, scanned and read."""

    def run(stored: np.ndarray, lean: float, travel: np.ndarray, **tags):
        positions, orientation, _ = stack_of(travel, (lean, 0), np.eye(3), field)
        stack = make_stack(stored, positions, orientation, PIXEL, intercept=-1024).set(**tags)
        return read_series(only(scan([str(stack.write(tmp_path / "s"))], id_key))), positions

    return run


@pytest.mark.parametrize("travel", [UNEVEN, EVEN], ids=["uneven", "even"])
@pytest.mark.parametrize("config", [PrepareConfig(body_crop=False), PrepareConfig()])
def test_a_marker_of_a_tilted_series_stays_where_it_is(travel, config, read_tilted) -> None:
    stored = np.full((10, ROWS, COLUMNS), 1024 - 1000, np.uint16)
    stored[:, 4:30, 4:26] = 1024 + 40
    k, j, i = 4, 15, 13
    stored[k, j, i] = 1024 + 3000
    volume, positions = read_tilted(stored, 0.33, travel)
    truth = (positions[k] + (i * PIXEL[1], j * PIXEL[0], 0)) * (-1, -1, 1)
    sample = prepare(volume, config)
    assert sample.original.geometry == ("tilted" if travel is EVEN else "tilted_variable")
    weight = np.maximum(sample.hu - 200.0, 0)
    centre = np.array([(weight * axis).sum() for axis in np.indices(weight.shape)]) / weight.sum()
    off = np.abs((sample.affine @ (*centre, 1))[:3] - truth)
    # Half a voxel of the coarser grid, in R, A, S.
    assert (off <= np.maximum(1.5, (PIXEL[1], PIXEL[0], 2.5)) / 2).all()


def test_padding_does_not_spread_between_slices(read_tilted) -> None:
    stored = np.full((10, ROWS, COLUMNS), 1024 + 40, np.int16)
    stored[:, :8] = 0
    stored[::2, :4] = -1000  # -2024 HU that nobody declared, in every other slice
    volume, _ = read_tilted(stored, 0.33, UNEVEN)
    assert volume.hu.min() == -1024
    declared, _ = read_tilted(stored, 0.33, UNEVEN, PixelPaddingValue=-1000)
    np.testing.assert_array_equal(volume.hu, declared.hu)
    measured = 1 - 5 * 4 / (10 * ROWS)
    share = measured * ROWS / volume.hu.shape[1]
    assert volume.padding_fraction == pytest.approx(1 - share)
    assert declared.padding_fraction == pytest.approx(1 - share)


def test_the_air_that_fills_the_grid_is_no_measured_air(read_tilted) -> None:
    """Grey values of 0 to 255 are not HU, however much air surrounds their tilted slices."""
    grey = np.random.default_rng(0).integers(1024, 1280, (10, ROWS, COLUMNS)).astype(np.uint16)
    with pytest.raises(SeriesError) as caught:
        read_tilted(grey, 0.33, EVEN)
    assert caught.value.reason is Reason.NOT_HU
