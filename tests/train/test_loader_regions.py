"""Regions against brute force on the chunk grid, ranges against the gap rule's wording."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coralbay.draws import draw_views
from coralbay.views import identity_recipe
from shards.regions import OUTSIDE, chunks_per_axis, coalesce, cover
from train.loader.params import GAMMA, LOW_HU, N_PARAMS, WIDTH_HU, pack_params

starts = st.tuples(*[st.integers(-70, 200)] * 3)


@pytest.mark.parametrize(
    ("box", "chunk", "expected"),
    [(129, 64, 3), (65, 64, 2), (64, 64, 2), (1, 64, 1), (66, 64, 3), (129, 32, 5)],
)
def test_chunks_per_axis_is_the_most_a_box_can_touch(box, chunk, expected):
    touched = [(start + box - 1) // chunk - start // chunk + 1 for start in range(chunk)]
    assert chunks_per_axis(box, chunk) == max(touched) == expected


@given(start=starts, box=st.integers(5, 90), chunk=st.sampled_from([16, 64]))
def test_a_box_read_through_its_region_is_the_box(start, box, chunk):
    shape = (70, 90, 130)
    grid = tuple(-(-n // chunk) for n in shape)
    region = cover(start, box, shape, chunk)
    n = chunks_per_axis(box, chunk)
    number_at = np.full((n, n, n), 10**6)
    number_at.ravel()[region.places] = region.chunks
    corners = np.array([[0, 0, 0], [box - 1, 0, box - 1], [box // 2, box - 1, 0]])
    for corner in corners:
        position = (np.array(start) + corner) // chunk
        expected = OUTSIDE
        if all(0 <= p < g for p, g in zip(position, grid, strict=True)):
            expected = np.arange(np.prod(grid)).reshape(grid)[tuple(position)]
        within = (region.origin_zyx.astype(int) + corner) // chunk
        assert number_at[tuple(within)] == expected
    assert np.all((region.origin_zyx >= 0) & (region.origin_zyx < chunk))


def test_ranges_merge_over_small_gaps_only():
    # [0, 10) [15, 25) | gap 6 > 5 | [31, 41); given out of order
    offsets, nbytes = np.array([31, 0, 15]), np.array([10, 10, 10], np.int32)
    ranges = coalesce(offsets, nbytes, max_gap=5, max_range=1000)
    assert [(r.start, r.stop, r.pieces) for r in ranges] == [(0, 25, (1, 2)), (31, 41, (0,))]


def test_ranges_stay_below_their_limit_unless_one_piece_is_larger():
    offsets, nbytes = np.array([0, 60, 120, 400]), np.array([60, 60, 60, 300], np.int32)
    ranges = coalesce(offsets, nbytes, max_gap=1000, max_range=130)
    assert [(r.start, r.stop) for r in ranges] == [(0, 120), (120, 180), (400, 700)]


@given(data=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 200)), max_size=30))
def test_every_piece_lies_whole_in_its_range(data):
    ends = np.cumsum([gap + size for gap, size in data], dtype=np.int64)
    sizes = np.array([size for _, size in data], dtype=np.int32)
    ranges = coalesce(ends - sizes, sizes, max_gap=100, max_range=1000)
    assert sorted(piece for r in ranges for piece in r.pieces) == list(range(len(data)))
    for span in ranges:
        for piece in span.pieces:
            assert span.start <= ends[piece] - sizes[piece]
            assert ends[piece] <= span.stop


def test_matrices_map_output_corners_to_window_corners():
    views = identity_recipe()
    rng = np.random.default_rng(3)
    draws = draw_views(views, rng.random(views.n_uniforms))
    draws.flip_zyx[:] = rng.random((10, 3)) < 0.5
    packed = pack_params(draws, np.array([3.0, 5.0, 60.0]), views.sizes, "affine")
    assert packed.shape == (10, N_PARAMS)
    for view, size in enumerate(views.sizes):
        matrix = packed[view, :12].reshape(3, 4)
        first_xyz = matrix @ [0, 0, 0, 1]
        last_xyz = matrix @ [size, size, size, 1]
        low = draws.start_zyx[view] + [3, 5, 60]
        corners = np.array([low, low + draws.extent_zyx[view]])
        for axis, flipped in enumerate(draws.flip_zyx[view]):
            expected = corners[::-1, axis] if flipped else corners[:, axis]
            np.testing.assert_allclose([first_xyz[2 - axis], last_xyz[2 - axis]], expected)
    np.testing.assert_array_equal(packed[:, [LOW_HU, WIDTH_HU, GAMMA]], [[-1000, 2000, 1]] * 10)
