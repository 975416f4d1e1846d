"""Batches without equal subjects, runs that can be read at once, shares by source, and measures."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ShardError
from shards.order import repeated_in_groups
from shards.quality import measure_shuffle
from tests.shards.test_plan import make_plan, make_samples


def batches(plan, epochs):
    """Rows of each batch, over the ends of epochs."""
    rows = [row for e in range(epochs) for row in plan.epoch_rows(e).tolist()]
    size = plan.config.global_batch
    return [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(128, 300),
    each=st.integers(1, 4),
    batch=st.sampled_from([2, 4, 8]),
    seed=st.integers(0, 99),
)
def test_no_subject_twice_in_a_batch(n, each, batch, seed):
    # Worst case: a subject's volumes lie side by side.
    samples = make_samples(n, per_shard=10, subject=np.arange(n) // each)
    plan = make_plan(samples=samples, global_batch=batch, seed=seed)
    for rows in batches(plan, 5):
        subjects = samples.subject[rows].tolist()
        assert len(set(subjects)) == batch


def test_a_subject_comes_twice_when_it_must():
    # Half of 40 volumes are of one subject: 8 in a batch must hold about 4 of it.
    subject = [0] * 20 + list(range(1, 21))
    plan = make_plan(samples=make_samples(40, per_shard=10, subject=subject))
    for epoch in range(3):
        assert sorted(plan.epoch_rows(epoch).tolist()) == list(range(40))


def test_subjects_of_the_epoch_before_are_known():
    """Batches that two epochs share hold no volume twice."""
    plan = make_plan(samples=make_samples(44, per_shard=5))
    for rows in batches(plan, 20):
        assert len(set(rows)) == 8


def test_repeated_in_groups_counts_what_came_before():
    subjects = np.array([1, 1, 2, 2, 2, 3, 1], np.int32)
    # phase 1: groups [1 1] [2 2 2] [3 1]
    found = repeated_in_groups(subjects, 3, 1)
    assert found.tolist() == [False, True, False, True, True, False, False]


def test_a_lane_reads_runs():
    """What a lane takes one after another lies side by side in its shard."""
    samples = make_samples(960, per_shard=40)
    plan = make_plan(samples=samples, global_batch=8, run=4)
    rows = plan.epoch_rows(0)
    for lane in range(8):
        taken = rows[lane::8]
        runs = Counter(zip(samples.shard_number[taken], taken % 40 // 4, strict=True))
        # A run is cut in two where a lane's part of a block ends.
        assert sum(count == 4 for count in runs.values()) > 0.8 * len(taken) / 4


def test_shares_follow_weights():
    source = ["a"] * 10 + ["b"] * 30
    samples = make_samples(40, source=source)
    plan = make_plan(samples=samples, global_batch=4, weights=(("a", 3.0), ("b", 1.0)))
    counts = Counter()
    for epoch in range(3):
        rows = plan.epoch_rows(epoch).tolist()
        assert len(rows) == 40
        assert Counter(source[row] for row in rows) == {"a": 30, "b": 10}
        assert Counter(row for row in rows if row < 10) == dict.fromkeys(range(10), 3)
        counts.update(row for row in rows if row >= 10)
    # Three epochs hold one whole round of the source that comes at a third of its size.
    assert counts == dict.fromkeys(range(10, 40), 1)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    weights=st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 7.0])] * 3),
)
def test_no_volume_comes_again_before_all_of_its_source_came(sizes, weights):
    source = [name for name, size in zip("abc", sizes, strict=True) for _ in range(size)]
    plan = make_plan(
        samples=make_samples(len(source), source=source),
        global_batch=1,
        weights=tuple(zip("abc", weights, strict=True)),
    )
    counts = Counter(row for e in range(6) for row in plan.epoch_rows(e).tolist())
    for name, size in zip("abc", sizes, strict=True):
        own = [counts[row] for row, of in enumerate(source) if of == name]
        assert len(own) == size
        assert max(own) - min(own) <= 1


def test_weight_0_leaves_a_source_out():
    samples = make_samples(6, source=["a", "b"] * 3)
    plan = make_plan(samples=samples, global_batch=2, weights=(("a", 0.0), ("b", 1.0)))
    assert set(plan.epoch_rows(0).tolist()) == {1, 3, 5}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((("a", 1.0),), "no weight for b; the sources to weigh are a, b"),
        ((("a", 1.0), ("b", 1.0), ("c", 1.0)), "no source 'c'"),
        ((("a", 0.0), ("b", 0.0)), "at least one above 0"),
        ((("a", -1.0), ("b", 1.0)), "numbers from 0 on"),
    ],
)
def test_wrong_weights(weights, message):
    with pytest.raises(ShardError, match=message):
        make_plan(samples=make_samples(6, source=["a", "b"] * 3), weights=weights)


def test_measures_tell_a_shuffle_from_none():
    samples = make_samples(960, per_shard=40, subject=np.arange(960) // 3)
    good = measure_shuffle(make_plan(samples=samples, global_batch=8), samples)
    assert good.repeated_subjects == 0
    assert good.batches == 240
    assert good.visit_distance == 4
    assert good.shards_per_batch > 0.6
    assert good.file_order < 0.2
    assert good.neighbours_again < 0.35
    assert 0 < good.epoch_distance_min < good.epoch_distance_median < 2 * 240

    # One shard after another, in file order, subjects side by side.
    class Unshuffled:
        config, samples_per_epoch = make_plan(samples=samples, global_batch=8).config, 960

        def epoch_rows(self, epoch):
            return np.arange(960, dtype=np.int32)

    bad = measure_shuffle.__wrapped__(Unshuffled(), samples)
    assert bad.repeated_subjects > 600
    assert bad.file_order == pytest.approx(1)
    assert bad.neighbours_again == 1
    assert bad.shards_per_batch < 0.2


def test_the_order_does_not_hang_on_row_numbers_of_others():
    """Samples that take no part change nothing but the numbers."""
    trainable = np.ones(30, bool)
    trainable[::7] = False
    plan = make_plan(samples=replace(make_samples(30), trainable=trainable))
    assert sorted(plan.epoch_rows(0).tolist()) == np.flatnonzero(trainable).tolist()
