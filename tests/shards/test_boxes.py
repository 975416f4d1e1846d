"""Base boxes: legal places, weighted by foreground, no end of a volume left out."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.boxes import BEYOND, BOX_DRAWS, draw_box
from shards.rng import BOX, uniforms

CHUNK = 16
shapes = st.tuples(*[st.integers(1, 90)] * 3)
sides = st.integers(1, 70)


def no_air(shape):
    return np.zeros([-(-n // CHUNK) for n in shape], bool)


def draw(shape, side, air=None, at=(3, 0, 0)):
    air = no_air(shape) if air is None else air
    return draw_box(shape=np.array(shape, np.int32), side=side, air=air, chunk_side=CHUNK, at=at)


def slow_box(shape, side, air, at):
    """The same box by loops over places and chunks; None where one is drawn around a chunk."""
    words = uniforms(at[0], BOX, at[1], at[2], 4 * (BOX_DRAWS + 1)).reshape(-1, 4).tolist()
    for *draw, accept in words[:-1]:
        starts, leans, touched = [], [], []
        for length, u in zip(shape, draw, strict=True):
            pad = max(0, side - length)
            beyond = max(0, side // BEYOND - pad)
            places = range(-beyond - pad // 2, max(0, length - side) + beyond - pad // 2 + 1)
            drawn = places[int(u * len(places))]
            start = min(max(drawn, -(pad // 2)), max(length - side, -(pad // 2)))
            starts.append(start)
            leans.append(drawn - start)
            touched.append(sorted({v // CHUNK for v in range(start, start + side) if v >= 0}))
        chunks = [c for c in product(*touched) if all(np.less(c, air.shape))]
        if accept < sum(not air[c] for c in chunks) / len(chunks):
            return tuple(starts), tuple(leans)
    return None


@settings(max_examples=60, deadline=None)
@given(shape=shapes, side=sides, index=st.integers(0, 500), data=st.data())
def test_a_slow_second_way_gives_the_same_box(shape, side, index, data):
    solid = data.draw(st.lists(st.booleans(), min_size=1, max_size=40))
    air = np.resize(~np.array(solid), no_air(shape).shape)
    expected = slow_box(shape, side, air, (3, index, 1))
    box = draw(shape, side, air, at=(3, index, 1))
    if expected is not None:
        assert (box.start_zyx, box.lean_zyx) == expected
    else:
        assert box.lean_zyx == (0, 0, 0) or air.all()


@settings(max_examples=60, deadline=None)
@given(shape=shapes, side=sides, index=st.integers(0, 500))
def test_a_box_is_inside_or_in_the_middle_of_its_padding(shape, side, index):
    box = draw(shape, side, at=(3, index, 0))
    for length, start, lean in zip(shape, box.start_zyx, box.lean_zyx, strict=True):
        if length >= side:
            assert 0 <= start <= length - side
            # Only a box at an end was drawn beyond it.
            assert lean >= 0 or start == 0
            assert lean <= 0 or start == length - side
        else:
            before, after = -start, side - length + start
            assert 0 <= after - before <= 1
        assert abs(lean) <= side // BEYOND


@settings(max_examples=60, deadline=None)
@given(shape=shapes, side=sides, solid=st.integers(0, 10**6), index=st.integers(0, 500))
def test_no_box_is_all_air(shape, side, solid, index):
    air = ~no_air(shape)
    place = np.unravel_index(solid % air.size, air.shape)
    air[place] = False
    box = draw(shape, side, air, at=(3, index, 0))
    for length, start, chunk in zip(shape, box.start_zyx, place, strict=True):
        first = int(chunk) * CHUNK
        assert start < min(first + CHUNK, length)
        assert start + side > first
        assert 0 <= start <= length - side or (length < side and start <= 0)


def test_all_air_still_gives_a_box():
    assert draw((20, 20, 20), 16, ~no_air((20, 20, 20))).start_zyx < (5, 5, 5)


def test_boxes_are_weighted_by_foreground():
    # Body in half of the volume: a box there has twice the weight of one that is half in air.
    air = np.zeros((1, 1, 16), bool)
    air[..., 8:] = True
    starts = np.array(
        [draw((16, 16, 256), 16, air, at=(3, i, 0)).start_zyx[2] for i in range(6000)]
    )
    # Boxes of 16 on chunks of 16 touch two chunks, except at the chunks' own starts.
    inside = np.mean((starts >= 1) & (starts <= 112))
    half = np.mean((starts > 112) & (starts < 128))
    air_alone = np.mean(starts >= 128)
    assert air_alone == 0
    assert inside / half == pytest.approx(112 / 15 * 2, rel=0.25)


def test_ends_of_a_volume_are_in_a_fair_share_of_boxes():
    """Without pushing, an end voxel would be in one box of 172 (300 - 129 + 1)."""
    starts = [draw((300, 129, 129), 129, at=(3, i, 0)).start_zyx[0] for i in range(2000)]
    at_ends = [np.mean(np.array(starts) == end) for end in (0, 171)]
    # 129 // 3 = 43 places beyond each end and one at it, of 172 + 2 * 43.
    assert at_ends == pytest.approx([44 / 258] * 2, abs=0.03)
