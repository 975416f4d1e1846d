"""The plan's laws, and known answers from a slow second implementation."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ShardError
from shards.plan import Plan, PlanConfig, PlanSamples
from shards.rng import ORDER, raw

# Seed 3, 5 samples of 40 x 50 x 60, B = 2, boxes of 16: worked out with `slow_epoch_order`, the
# rule for volumes by hand and `slow_box` of test_boxes.py.
KNOWN_ITEMS = [
    (0, 3, 0, (21, 21, 17), (0, 0, 0)),
    (0, 2, 0, (10, 30, 0), (0, 0, -3)),
    (1, 4, 0, (19, 4, 2), (0, 0, 0)),
    (0, 3, 1, (2, 15, 44), (0, 0, 0)),
    (99, 1, 1, (24, 30, 23), (5, 0, 0)),
]
KNOWN_HASH = "6d16bd9021bfc59cd723b5bc6593bed6077a4c9a21aa240f97ef88976a24dbcd"


def make_samples(
    n, per_shard=3, shape=(40, 50, 60), chunk_side=16, trainable=None, subject=None, source=None
):
    grid = [-(-length // chunk_side) for length in shape]
    names = sorted(set(source or ["one"]))
    return PlanSamples(
        keys=[f"s{i}" for i in range(n)],
        trainable=np.ones(n, bool) if trainable is None else np.array(trainable),
        shard_number=np.arange(n, dtype=np.int32) // per_shard,
        offset=np.arange(n, dtype=np.int64) % per_shard * 1000,
        shapes=np.tile(np.array(shape, np.int32), (n, 1)),
        source=np.array([names.index(name) for name in source or ["one"] * n], np.int32),
        source_names=tuple(names),
        subject=np.arange(n, dtype=np.int32) if subject is None else np.array(subject, np.int32),
        air_mask=[np.zeros(np.prod(grid), bool) for _ in range(n)],
        chunk_side=chunk_side,
    )


def make_plan(n=10, generation_id="g", samples=None, **config):
    settings = {"seed": 3, "global_batch": 8, "box_side": 16} | config
    return Plan(PlanConfig(**settings), samples or make_samples(n), generation_id)


def slow_epoch_order(seed, epoch, shard_number, *, batch, shuffle_shards, run):
    """The order of an epoch of samples without common subjects, by sorting tuples."""
    n, shards = len(shard_number), sorted(set(shard_number))
    words = raw(seed, ORDER, epoch, 0, len(shards) + n).tolist()
    shard_words, own = words[: len(shards)], words[len(shards) :]
    place = {s: p for p, (_, s) in enumerate(sorted(zip(shard_words, shards, strict=True)))}
    blocks = {}
    for shard in shards:
        members = [i for i in range(n) if shard_number[i] == shard]
        for first in range(0, len(members), run):
            together = members[first : first + run]
            blocks.setdefault(place[shard] // shuffle_shards, []).append(
                (own[together[0]], sorted(together, key=own.__getitem__))
            )
    order, phase = [None] * n, epoch * n % batch
    dealt = 0
    for _, runs in sorted(blocks.items()):
        reading = iter([i for _, together in sorted(runs) for i in together])
        places = range(dealt, dealt + sum(len(together) for _, together in runs))
        for p in sorted(places, key=lambda p: ((phase + p) % batch, p)):
            order[p] = next(reading)
        dealt = places.stop
    return order


def test_order_is_the_documented_one():
    n, batch, visits, spread, shuffle, run = 23, 4, 2, 3, 2, 2
    samples = make_samples(n, per_shard=5)
    plan = make_plan(samples=samples, global_batch=batch, visits=visits, spread=spread,
                     shuffle_shards=shuffle, run=run)  # fmt: skip
    shard_number = samples.shard_number.tolist()
    orders = {
        e: slow_epoch_order(3, e, shard_number, batch=batch, shuffle_shards=shuffle, run=run)
        for e in range(12)
    }
    for epoch in range(12):  # but for the batch that two epochs share
        found = plan.epoch_rows(epoch).tolist()
        assert sorted(found) == list(range(n))
        assert sum(a != b for a, b in zip(found, orders[epoch], strict=True)) <= 2 * batch
        orders[epoch] = found
    # Walk every lane: blocks of `spread` volumes, each block gone through `visits` times.
    for lane in range(batch):
        steps = iter(range(10**6))
        for block in range(8):
            turns = [block * spread + r for r in range(spread)]
            for visit, turn in product(range(visits), turns):
                volume = turn * batch + lane
                item = plan.item(next(steps) * batch + lane)
                assert (item.epoch, item.visit, item.lane) == (volume // n, visit, lane)
                assert item.sample == orders[volume // n][volume % n]


def test_known_answers():
    items = [make_plan(5, global_batch=2).item(i) for i in (0, 1, 7, 8, 1000)]
    assert [(i.epoch, i.sample, i.visit, i.box_start_zyx, i.lean_zyx) for i in items] == KNOWN_ITEMS
    assert make_plan(5, global_batch=2).hash == KNOWN_HASH


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 13),
    batch=st.sampled_from([1, 2, 3, 8]),
    visits=st.integers(1, 3),
    spread=st.integers(1, 4),
    shuffle=st.integers(1, 5),
)
def test_each_sample_and_visit_comes_once_an_epoch(n, batch, visits, spread, shuffle):
    plan = make_plan(n, global_batch=batch, visits=visits, spread=spread, shuffle_shards=shuffle)
    # Whole blocks of the volume sequence, long enough for two whole epochs.
    per_block = batch * spread
    blocks = -(-2 * n // per_block)
    items = [plan.item(i) for i in range(blocks * per_block * visits)]
    seen = Counter((item.epoch, item.sample, item.visit) for item in items)
    assert set(seen.values()) == {1}
    for epoch in range(2):
        assert {(s, v) for e, s, v in seen if e == epoch} == set(product(range(n), range(visits)))


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_any_number_of_ranks_gives_the_same_global_sequence(world):
    plan = make_plan(10)
    for step in range(5):
        ranks = [plan.rank_indices(step, rank, world) for rank in range(world)]
        everyone = sorted(i for indices in ranks for i in indices)
        assert everyone == list(range(8 * step, 8 * step + 8))
        for rank, indices in enumerate(ranks):
            assert {i % world for i in indices} == {rank}
            assert len(indices) == 8 // world


def test_ranks_must_divide_the_batch():
    with pytest.raises(ValueError, match="rank 0 of 3 cannot share a global batch of 8"):
        make_plan().rank_indices(0, 0, 3)


def test_visits_stay_in_their_lane_and_are_spread_apart():
    visits, spread, batch = 3, 4, 8
    plan = make_plan(40, global_batch=batch, visits=visits, spread=spread)
    steps = {}
    for i in range(40 * visits):
        item = plan.item(i)
        steps.setdefault((item.epoch, item.sample, item.lane), []).append((item.visit, i // batch))
    complete = [found for found in steps.values() if len(found) == visits]
    assert len(complete) >= 32
    for found in complete:
        first = found[0][1]
        assert found == [(v, first + v * spread) for v in range(visits)]


def test_any_position_is_found_without_the_ones_before():
    forward = make_plan()
    expected = [forward.item(i) for i in range(200)]
    backward = make_plan()
    assert [backward.item(i) for i in reversed(range(200))] == expected[::-1]
    far = make_plan().item(10**12)
    assert far == make_plan().item(10**12)
    # v = t // (m k) * m + ..., N = 10, k = 2: about i / 20 epochs.
    assert far.epoch == pytest.approx(10**12 / 20, rel=1e-6)


def test_only_trainable_samples_come():
    samples = make_samples(6, trainable=[True, False, True, False, False, True])
    plan = make_plan(samples=samples)
    assert {plan.item(i).sample for i in range(100)} == {0, 2, 5}
    assert plan.samples_per_epoch == 3


def test_nothing_trainable_is_an_error():
    with pytest.raises(ShardError, match="no trainable sample, or none"):
        make_plan(samples=make_samples(2, trainable=[False, False]))


def test_a_replacement_is_another_sample_in_the_same_place():
    plan = make_plan(5)
    for index in range(60):
        first = plan.item(index)
        others = [plan.item(index, attempt) for attempt in range(1, 9)]
        assert first.sample not in {other.sample for other in others}
        assert len({other.sample for other in others}) > 1
        for other in others:
            assert (other.epoch, other.visit, other.lane) == (first.epoch, first.visit, first.lane)
    assert make_plan(1).item(0, 1).sample == 0


def test_hash_covers_what_decides_the_sequence():
    plan = make_plan(4)
    assert plan.hash == make_plan(4).hash
    others = [
        make_plan(4, generation_id="other"),
        make_plan(5),
        make_plan(samples=make_samples(4, trainable=[True, True, True, False])),
        *(
            make_plan(4, **{name: 5})
            for name in (
                "seed",
                "global_batch",
                "box_side",
                "visits",
                "spread",
                "shuffle_shards",
                "run",
            )
        ),
        make_plan(4, weights=(("one", 1.0),)),
    ]
    assert len({plan.hash, *(other.hash for other in others)}) == len(others) + 1


@pytest.mark.parametrize(
    "name", ["global_batch", "box_side", "visits", "spread", "shuffle_shards", "run"]
)
def test_config_refuses_nothing_at_all(name):
    with pytest.raises(ValueError, match=name):
        make_plan(**{name: 0})


def test_config_refuses_a_seed_that_is_no_uint64():
    with pytest.raises(ValueError, match="seed"):
        make_plan(seed=-1)
