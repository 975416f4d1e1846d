"""The global sequence: one for every number of ranks, way in, and point to resume from."""

import gc
import itertools
import shutil
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coralbay.views import ViewRecipe, ViewSpec
from shards.dataset import Dataset
from shards.testing import write_toy_dataset
from tests.train.test_loader import corrupt
from train.data import StreamConfig
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig
from train.loader.supply import feed_limits

VIEWS = ViewRecipe(
    box_side=65,
    global_=ViewSpec(count=1, size=64, extent=(48.0, 65.0)),
    local=ViewSpec(count=1, size=33, extent=(20.0, 40.0)),
)
BATCH = 8
BAD = ("toy-0003", "toy-0010")


class NoViews:
    """Takes the slots and renders nothing."""

    def __init__(self, pull):
        self.pull = pull
        self.waiting = []

    def render(self, counts):
        self.pull()
        return [], None

    def close(self):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = write_toy_dataset(tmp_path_factory.mktemp("toy"), 13, shape=(40, 50, 70), per_shard=5)
    broken = shutil.copytree(made, tmp_path_factory.mktemp("broken") / "data")
    for key in BAD:
        corrupt(broken, key)
    return {"sound": made, "broken": broken}


@pytest.fixture(autouse=True)
def _no_views(monkeypatch):
    monkeypatch.setattr(CTLoader, "renderer", lambda self, pull: NoViews(pull))


def make(url, mode, world, rank, **changes):
    config = LoaderConfig(
        batch_size=BATCH // world, world=world, rank=rank, threads=2, prefetch=3,
        loader="reference", stream=StreamConfig(mode=mode), **changes,
    )  # fmt: skip
    return CTLoader(url, VIEWS, config)


def sequence(url, mode, world, states, steps):
    """(index, key) of all ranks' batches, and the states they end with."""
    found, ends = [], []
    for rank in range(world):
        with make(url, mode, world, rank) as loader:
            if states is not None:
                merged = [pair for state in states for pair in state["quarantine"]]
                loader.load_state_dict(states[0] | {"quarantine": merged})
            for batch in itertools.islice(loader, steps):
                found += zip(batch.indices, batch.keys, strict=True)
            ends.append(loader.state_dict())
    return sorted(found), ends


def expected(url, bad, first, stop):
    """From the plan alone: a bad sample is replaced by the first attempt that is not."""
    with make(url, "range", 1, 0) as loader:
        keys = loader.dataset.keys()
        found = []
        for index in range(first * BATCH, stop * BATCH):
            tried = (keys[loader.plan.item(index, n).sample] for n in itertools.count())
            found.append((index, next(key for key in tried if key not in bad)))
    return found


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    worlds=st.tuples(*[st.sampled_from([1, 2, 4, 8])] * 2),
    modes=st.tuples(*[st.sampled_from(["range", "stream"])] * 2),
    stop=st.integers(1, 9),
    which=st.sampled_from(["sound", "broken"]),
)
def test_one_sequence(folder, worlds, modes, stop, which):
    url, bad = folder[which], BAD if which == "broken" else ()
    before, states = sequence(url, modes[0], worlds[0], None, stop)
    assert before == expected(url, bad, 0, stop)
    after, _ = sequence(url, modes[1], worlds[1], states, 3)
    assert after == expected(url, bad, stop, stop + 3)


def test_every_sample_comes_once_an_epoch(folder):
    with make(folder["sound"], "stream", 1, 0) as loader:
        # 13 volumes, two visits each: 13 * 2 * 8 sets are 8 whole epochs.
        seen = [
            (loader.plan.item(index).epoch, key, loader.plan.item(index).visit)
            for batch in itertools.islice(loader, 13 * 2 * 8 // BATCH * 2)
            for index, key in zip(batch.indices, batch.keys, strict=True)
        ]
    keys = Dataset.open(folder["sound"]).keys()
    assert len(set(seen)) == len(seen)
    for epoch in range(4):
        assert {(k, v) for e, k, v in seen if e == epoch} == set(itertools.product(keys, (0, 1)))


class Watched:
    """A fetcher that takes its time, and whose answers are known to be dropped."""

    def __init__(self, fetcher):
        self.fetcher, self.answers, self.pool = fetcher, [], ThreadPoolExecutor(8)

    def submit(self, *args, **options):
        def late():
            time.sleep(0.1)  # slower than sets are taken: they are waited for
            return self.fetcher.submit(*args, **options).result()

        answer = self.pool.submit(late)
        self.answers.append(weakref.ref(answer))
        return answer

    def close(self):
        self.pool.shutdown(cancel_futures=True)
        self.fetcher.close()

    def kept(self):
        return sum(answer() is not None for answer in self.answers)


@pytest.mark.parametrize("mode", ["range", "stream"])
def test_what_was_read_goes_at_once(folder, mode, monkeypatch):
    """Without the collector of cycles: a set is megabytes, and the collector counts objects."""
    with make(folder["sound"], mode, 8, 0) as loader:
        watched = Watched(loader.inputs.open_fetcher())
        monkeypatch.setattr(loader.inputs, "open_fetcher", lambda: watched)
        gc.collect()
        gc.disable()
        try:
            list(itertools.islice(loader, 150))
            kept = watched.kept()
        finally:
            gc.enable()
        limits = feed_limits(loader.inputs, loader.config)
        assert kept <= limits.ahead + limits.fetch_ahead
        assert kept < len(watched.answers) / 2
