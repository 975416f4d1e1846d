"""The nearest label at each voxel, against the definition written out voxel by voxel."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.labels_grid import Grid, grid_planes, overlap, sample_labels

SPL = np.array([[0.0, 0.0, -1.0, 0.0], [0.0, -1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0, 0, 0, 1]])
"""(z, y, x) toward S, P, L in steps of 1 mm."""
VALUES = np.random.default_rng(0).integers(1, 250, (5, 6, 7)).astype(np.uint8)


def spl_grid(spacing, origin=(0, 0, 0)):
    affine = SPL @ np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def rotation(axis, degrees):
    turn, (a, b) = np.eye(4), [n for n in range(3) if n != axis]
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[a, a] = turn[b, b] = cos
    turn[a, b], turn[b, a] = -sin, sin
    return turn


def stored_otherwise(values, affine, order, flips):
    """The same labels in the same places, with the array's axes permuted and turned."""
    values, affine = values.transpose(order), affine[:, [*order, 3]].copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (values.shape[axis] - 1)
        affine[:3, axis] *= -1
        values = np.flip(values, axis)
    return np.ascontiguousarray(values), affine


def by_definition(values, label_affine, affine, shape):
    """Value of the nearest voxel, and how far each centre is from the border of two cells."""
    index = np.indices(shape).reshape(3, -1)
    world = affine[:3, :3] @ index + affine[:3, 3:]
    inverse = np.linalg.inv(label_affine)
    at = inverse[:3, :3] @ world + inverse[:3, 3:]
    nearest = np.rint(at).astype(int)
    inside = ((nearest >= 0) & (nearest < np.array(values.shape)[:, None])).all(axis=0)
    out = np.where(inside, values[tuple(np.where(inside, nearest, 0))], 0)
    margin = np.abs(at - np.floor(at) - 0.5).min(axis=0)
    return out.reshape(shape), margin.reshape(shape)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_the_same_grid_gives_the_same_labels_however_they_are_stored(order, flips):
    affine = spl_grid((2.5, 0.7, 0.8), (3, -4, 5))
    stored, own = stored_otherwise(VALUES, affine, order, flips)
    found = sample_labels(grid_planes(stored, own), affine, VALUES.shape)
    np.testing.assert_array_equal(found, VALUES)
    # Halves lie on borders all over: the rule does not depend on the storage either.
    finer = spl_grid((1.25, 0.35, 0.4), (3, -4, 5))
    expected = VALUES.repeat(2, 0).repeat(2, 1).repeat(2, 2)[1:, 1:, 1:]
    found = sample_labels(grid_planes(stored, own), finer, expected.shape)
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=60, deadline=None)
@given(
    spacing=st.tuples(*[st.floats(0.4, 4)] * 3),
    turns=st.tuples(*[st.sampled_from([0.0, 0.0, 3.0, -18.5, 40.0])] * 3),
    origin=st.tuples(*[st.floats(-6, 6)] * 3),
    order=st.permutations(range(3)),
    flips=st.sets(st.integers(0, 2)),
)
def test_nearest_is_by_definition(spacing, turns, origin, order, flips):
    label = np.linalg.multi_dot([rotation(axis, turn) for axis, turn in enumerate(turns)])
    label = label @ spl_grid(spacing)
    stored, own = stored_otherwise(VALUES, label, tuple(order), sorted(flips))
    affine, shape = spl_grid((1.5, 1.1, 0.9), origin), (7, 8, 9)
    expected, margin = by_definition(VALUES, label, affine, shape)
    found = sample_labels(grid_planes(stored, own), affine, shape)
    clear = margin > 0.01
    np.testing.assert_array_equal(found[clear], expected[clear])


def test_outside_is_background():
    affine = spl_grid((2, 2, 2))
    found = sample_labels(grid_planes(VALUES, affine), spl_grid((2, 2, 2), (0, 0, -6)), (11, 6, 7))
    np.testing.assert_array_equal(found[3:8], VALUES)
    assert not found[:3].any()
    assert not found[8:].any()
    far = sample_labels(grid_planes(VALUES, affine), spl_grid((2, 2, 2), (500, 0, 0)), (4, 4, 4))
    assert not far.any()


def test_two_bytes_stay_two_bytes():
    wide = VALUES.astype(np.uint16) * 200
    affine = spl_grid((1, 1, 1))
    for turned in (affine, rotation(0, 2.0) @ affine):
        found = sample_labels(grid_planes(wide, turned), turned, VALUES.shape)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, wide)


def test_cosines_that_are_rounded_are_taken_as_exact():
    # A volume's affine drops such rounding; labels on the same grid must follow it to the voxel.
    affine = spl_grid((1.0, 0.5, 0.5))
    rounded = affine @ np.linalg.inv(affine) @ rotation(1, 0.004) @ affine
    values = np.arange(400 * 4 * 3, dtype=np.uint16).reshape(400, 4, 3)
    found = sample_labels(grid_planes(values, rounded), affine, values.shape)
    np.testing.assert_array_equal(found, values)


def test_overlap_is_the_share_of_the_smaller_grid():
    whole = Grid(affine=spl_grid((2, 2, 2)), shape_zyx=(40, 40, 40))
    part = Grid(affine=spl_grid((2, 2, 2), (0, 0, 20)), shape_zyx=(5, 40, 40))
    half = Grid(affine=spl_grid((2, 2, 2), (-40, 0, 0)), shape_zyx=(40, 40, 40))
    away = Grid(affine=spl_grid((2, 2, 2), (-400, 0, 0)), shape_zyx=(40, 40, 40))
    assert overlap(part, whole) == overlap(whole, part) == 1
    assert overlap(half, whole) == pytest.approx(0.5, abs=0.04)
    assert overlap(away, whole) == 0
