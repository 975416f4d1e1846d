"""The loader as a whole, on small datasets on disk: what comes when, whatever the timing."""

import gc
import itertools
import json
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from coralbay.augment import render_set
from coralbay.draws import draw_views
from coralbay.placement import Around
from coralbay.views import ViewRecipe, ViewSpec, identity_recipe
from shards.dataset import Dataset
from shards.errors import NotADatasetError
from shards.plan import Plan, PlanConfig
from shards.rng import VIEWS as VIEWS_STREAM
from shards.rng import uniforms
from shards.testing import write_dataset, write_toy_dataset
from train.data import StreamConfig
from train.errors import BadDataError, CheckpointError, UsageError
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig

VIEWS = ViewRecipe(
    global_=ViewSpec(size=64, extent=(48.0, 65.0), count=2),
    local=ViewSpec(size=33, extent=(20.0, 40.0), count=2),
    box_side=65,
)
N_SAMPLES = 5
TOLERANCE = 1e-3
"""See test_graph.py: DALI and the plain reference agree to this in float16."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    return write_toy_dataset(folder, N_SAMPLES, shape=(70, 100, 130), per_shard=2)


def make(url, **changes):
    options = {"batch_size": 2, "threads": 2, "prefetch": 3, "loader": "reference"} | changes
    options["stream"] = StreamConfig(mode=options.pop("mode", "auto"))
    return CTLoader(url, VIEWS, LoaderConfig(**options))


def take(loader, n):
    with loader:
        return list(itertools.islice(loader, n))


def assert_same(first, second, atol=0.0):
    assert [b.indices for b in first] == [b.indices for b in second]
    assert [b.keys for b in first] == [b.keys for b in second]
    for a, b in zip(first, second, strict=True):
        assert a.epoch == b.epoch
        for x, y in zip(a.views, b.views, strict=True):
            torch.testing.assert_close(x, y, atol=atol, rtol=0)


def corrupt(folder, key):
    """Flip a bit in the middle of every stored chunk of a sample."""
    dataset = Dataset.open(folder)
    row = dataset.keys().index(key)
    chunks = dataset.chunk_tables()
    base = dataset.index["offset"][row].as_py()
    path = folder / dataset.index["shard"][row].as_py()
    data = bytearray(path.read_bytes())
    for offset, nbytes in zip(chunks.offsets[row], chunks.nbytes[row], strict=True):
        if nbytes:
            data[base + offset + nbytes // 2] ^= 1
    path.write_bytes(data)


def test_views_are_those_the_plan_and_the_plain_reference_give(dataset):
    """From the stored volume to the view along a path of its own, with nothing of the loader."""
    opened = Dataset.open(dataset)
    config = PlanConfig(seed=3, global_batch=2, box_side=65, visits=2)
    plan = Plan(config, opened.plan_samples(), opened.manifest.generation_id)
    batches = take(make(dataset, seed=3, loader="dali"), 3)
    for batch in batches:
        globals_, locals_ = batch.views
        assert globals_.shape == (4, 1, 64, 64, 64)
        assert locals_.shape == (4, 1, 33, 33, 33)
        assert globals_.dtype == torch.float16
        for n, index in enumerate(batch.indices):
            item = plan.item(index)
            sample = opened.sample(opened.keys()[item.sample])
            assert batch.keys[n] == sample.meta.key
            padded = np.pad(sample.hu, 65, constant_values=-1024)
            box = padded[tuple(slice(65 + s, 130 + s) for s in item.box_start_zyx)]
            u = uniforms(3, VIEWS_STREAM, index, 0, VIEWS.n_uniforms)
            start = np.array(item.box_start_zyx, dtype=float)
            around = Around(
                low_zyx=np.maximum(0.0, -start),
                high_zyx=np.minimum(65.0, sample.hu.shape - start),
                lean_zyx=np.array(item.lean_zyx, dtype=float),
            )
            expected = render_set(box, VIEWS.sizes, draw_views(VIEWS, u, around))
            got = [globals_[n], globals_[2 + n], locals_[n], locals_[2 + n]]
            for view, reference in zip(got, expected, strict=True):
                np.testing.assert_allclose(view[0].float(), reference, atol=TOLERANCE, rtol=0)


def test_a_volume_smaller_than_the_box_is_padded_with_air(tmp_path):
    hu = np.full((40, 50, 200), 100, dtype=np.int16)
    folder = write_dataset(tmp_path, {"a": hu, "b": hu})
    views = identity_recipe(global_size=64, local_size=40, box_side=65)
    config = LoaderConfig(batch_size=1, threads=1, prefetch=1, precision="float32", seed=1)
    with CTLoader(folder, views, config) as loader:
        batch = next(loader)
        visit = loader.inputs.scheduler.visit(batch.indices[0], 0)
        start = visit.draws.start_zyx[0].astype(int)
    view = batch.views[0][0, 0].numpy()
    # 65 - 40 = 25: 12 before, 13 after; 65 - 50 = 15: 7 before, 8 after.
    expected = np.zeros((65, 65), dtype=np.float32)
    expected[12:52, 7:57] = 0.55
    z, y = start[0], start[1]
    np.testing.assert_allclose(view[:, :, 0], expected[z : z + 64, y : y + 64], atol=1e-6)


@pytest.mark.parametrize("loader", ["dali", "reference"])
def test_reusing_slots_changes_nothing(dataset, loader):
    """Freed slots are filled with garbage at once, and the ring turns many times."""
    clean = take(make(dataset, loader=loader), 12)
    poisoned = take(make(dataset, loader=loader, poison=True, prefetch=1), 12)
    assert_same(clean, poisoned)


def test_both_loaders_give_the_same_batches(dataset):
    assert_same(take(make(dataset, loader="dali"), 4), take(make(dataset), 4), atol=TOLERANCE)


def test_threads_and_prefetch_change_nothing(dataset):
    assert_same(
        take(make(dataset, threads=1, prefetch=1), 5), take(make(dataset, threads=4, prefetch=9), 5)
    )


@pytest.mark.parametrize("loader", ["dali", "reference"])
def test_resuming_in_the_middle_gives_the_batches_that_follow(dataset, loader):
    with make(dataset, loader=loader) as whole:
        batches = list(itertools.islice(whole, 3))
        state = json.loads(json.dumps(whole.state_dict()))
        rest = list(itertools.islice(whole, 4))
    assert state["next_index"] == 6
    assert state["epoch"] == rest[0].epoch
    resumed = make(dataset, loader=loader)
    resumed.load_state_dict(state)
    assert_same(rest, take(resumed, 4))
    again = make(dataset, loader=loader)
    assert_same(batches, take(again, 3))
    assert again.state_dict() == state
    assert_same(rest, take(again, 4))  # a closed loader goes on where it was


def test_two_ranks_give_the_sequence_of_one(dataset):
    """Batch 4 on one rank, 2 on each of two; the state of one serves the other."""
    one = make(dataset, batch_size=4)
    whole = list(itertools.islice(one, 4))
    state = one.state_dict()
    whole += list(itertools.islice(one, 2))
    one.close()
    parts = []
    for rank in range(2):
        early = take(make(dataset, batch_size=2, rank=rank, world=2), 4)
        loader = make(dataset, batch_size=2, rank=rank, world=2)
        loader.load_state_dict(state)
        parts.append(early + take(loader, 2))
    for step, batch in enumerate(whole):
        by_index = {}
        for part in parts:
            by_index |= {index: (part[step], n) for n, index in enumerate(part[step].indices)}
        assert sorted(by_index) == batch.indices
        for n, index in enumerate(batch.indices):
            got, row = by_index[index]
            assert got.keys[row] == batch.keys[n]
            for mine, theirs in zip(batch.views, got.views, strict=True):
                assert torch.equal(mine[n::4], theirs[row::2])


def test_both_ways_in_give_the_same_batches(dataset, tmp_path):
    """From the start, from any point, and with a sample that cannot be read."""
    folder = shutil.copytree(dataset, tmp_path / "copy")
    corrupt(folder, take(make(folder), 2)[1].keys[0])
    found = {}
    for mode in ("range", "stream"):
        with make(folder, mode=mode) as loader:
            assert loader.inputs.choice.mode == mode
            found[mode] = list(itertools.islice(loader, 14))
            assert loader.state_dict()["quarantine"] != []
        for stop in (3, 9):
            with make(folder, mode=mode) as begun:
                list(itertools.islice(begun, stop))
                state = begun.state_dict()
            other = make(folder, mode={"range": "stream", "stream": "range"}[mode])
            other.load_state_dict(state)
            assert_same(found[mode][stop:], take(other, 14 - stop))
    assert_same(found["range"], found["stream"])


def test_a_changed_dataset_is_not_resumed(dataset, tmp_path):
    state = make(dataset).state_dict()
    rebuilt = write_toy_dataset(tmp_path / "rebuilt", N_SAMPLES, shape=(70, 100, 130), seed=9)
    with pytest.raises(CheckpointError, match="not the data order of the checkpoint"):
        make(rebuilt).load_state_dict(state)
    with pytest.raises(CheckpointError):
        make(dataset, seed=1).load_state_dict(state)


def test_a_bad_sample_is_replaced_and_the_rest_is_untouched(dataset, tmp_path, caplog):
    folder = shutil.copytree(dataset, tmp_path / "copy")
    good = take(make(folder), 10)
    bad = good[1].keys[0]
    corrupt(folder, bad)
    with make(folder) as loader:
        batches = list(itertools.islice(loader, 10))
        counters, state = loader.stats.counters(), loader.state_dict()
    replaced = 0
    for before, after in zip(good, batches, strict=True):
        assert before.indices == after.indices
        assert bad not in after.keys
        for n, key in enumerate(before.keys):
            if key == bad:
                replaced += 1
            else:
                assert after.keys[n] == key
                assert torch.equal(before.views[0][n::2], after.views[0][n::2])
    assert replaced >= 2
    assert {key for _, key in state["quarantine"]} == {bad}
    assert counters["bad_samples"] == len(state["quarantine"])
    assert f"sample {bad} cannot be read and is replaced" in caplog.text
    # Known beforehand or found on the way: the same batches, at other speeds too.
    resumed = make(folder, threads=1, prefetch=1)
    resumed.load_state_dict(state | {"next_index": 0})
    assert_same(batches, take(resumed, 10))
    assert_same(batches, take(make(folder, threads=4, prefetch=12), 10))


def test_quarantine_is_resumed_as_it_was_at_the_batch(dataset, tmp_path):
    """What prefetching found about later batches must not change the earlier ones."""
    folder = shutil.copytree(dataset, tmp_path / "copy")
    bad = take(make(folder), 3)[2].keys[0]
    corrupt(folder, bad)
    with make(folder, prefetch=8) as loader:
        next(loader)
        state = loader.state_dict()
        rest = list(itertools.islice(loader, 4))
        assert state["quarantine"] == []
        assert loader.state_dict()["quarantine"] != []
    resumed = make(folder)
    resumed.load_state_dict(state)
    assert_same(rest, take(resumed, 4))


@pytest.mark.parametrize("loader", ["dali", "reference"])
def test_too_many_bad_samples_stop_the_run(dataset, tmp_path, loader):
    folder = shutil.copytree(dataset, tmp_path / "copy")
    for key in Dataset.open(folder).keys()[:3]:
        corrupt(folder, key)
    with (
        make(folder, max_bad_samples=2, loader=loader) as broken,
        pytest.raises(BadDataError, match="3 samples cannot be read, more than the 2 allowed"),
    ):
        list(itertools.islice(broken, 50))


def test_a_missing_shard_is_bad_samples(dataset, tmp_path):
    folder = shutil.copytree(dataset, tmp_path / "copy")
    gone = Dataset.open(folder)
    (folder / "shard-000000.tar").unlink()
    lost = {
        k for k, s in zip(gone.keys(), gone.index["shard"].to_pylist(), strict=True) if "0.t" in s
    }
    keys = {key for batch in take(make(folder), 10) for key in batch.keys}
    assert keys == set(gone.keys()) - lost


@pytest.mark.parametrize("mode", ["range", "stream"])
def test_counters_are_exact(dataset, mode):
    """The table says what the touched chunks take; boxes of 65 touch 8 chunks of 64 or fewer."""
    with make(dataset, prefetch=1, mode=mode, whole_boxes=True) as loader:
        batches = list(itertools.islice(loader, 3))
        for pending in loader._running.supply.feed._pending:
            assert pending.done.exception() is None
        loader.close()
        counters, stages = loader.stats.counters(), loader.stats.stages()
        loaded = stages["decode"].items
        table, opened = loader.dataset.chunk_tables(), loader.dataset
        chunks = ideal = 0
        for index in range(loaded):
            item = loader.plan.item(index)
            shape = opened.index["shape_zyx"][item.sample].as_py()
            grid = [-(-n // 64) for n in shape]
            nbytes = table.nbytes[item.sample].reshape(grid)
            touched = nbytes[
                tuple(slice(max(0, s) // 64, (s + 64) // 64 + 1) for s in item.box_start_zyx)
            ]
            chunks += np.count_nonzero(touched)
            ideal += touched.sum()
    assert len(batches) == 3
    assert counters["chunks"] == chunks
    assert counters["bytes_ideal"] == ideal
    assert counters["voxels_decoded"] == chunks * 64**3
    assert counters["bytes_asked"] == stages["fetch"].bytes >= ideal
    assert 0 < counters["answers"] <= counters["requests"] <= counters["ranges"]


def dali_threads():
    """DALI's threads are not Python's; they carry its name, unlike what other libraries keep."""
    tasks = Path("/proc/self/task").iterdir()
    return [name for task in tasks if "DALI" in (name := (task / "comm").read_text())]


@pytest.mark.parametrize("loader", ["dali", "reference"])
def test_closing_leaves_no_threads(dataset, loader):
    gc.collect()
    before = set(threading.enumerate())
    running = make(dataset, loader=loader, threads=3)
    next(running)
    names = [thread.name for thread in set(threading.enumerate()) - before]
    assert {re.sub(r"[-_]\d+$", "", name) for name in names} == {
        "coralbay-feed", "folder-fetcher"
    }  # fmt: skip
    assert bool(dali_threads()) == (loader == "dali")
    running.close()
    running.close()
    assert set(threading.enumerate()) == before
    assert dali_threads() == []


def test_too_few_volumes_for_a_batch(dataset):
    with pytest.raises(UsageError, match="5 trainable volumes, fewer than the 8 sets of a batch"):
        make(dataset, batch_size=4, world=2)


def test_no_dataset(tmp_path):
    with pytest.raises(NotADatasetError):
        make(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"batch_size": 0}, {"threads": 0}, {"rank": 1}, {"rank": -1, "world": 2}]
)
def test_settings_out_of_range(changes):
    with pytest.raises(UsageError):
        LoaderConfig(**({"batch_size": 2} | changes))
