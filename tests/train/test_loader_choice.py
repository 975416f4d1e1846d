"""Which samples a loader takes: filters, shares by source, subjects kept apart."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from coralbay.views import ViewRecipe, ViewSpec
from shards.testing import toy as toy_module
from shards.testing import write_toy_dataset
from tests.train.test_sequence import NoViews
from train.data import DataConfig, parse_weights
from train.errors import CheckpointError, UsageError
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig

VIEWS = ViewRecipe(
    box_side=65,
    global_=ViewSpec(count=1, size=64, extent=(48.0, 65.0)),
    local=ViewSpec(count=1, size=33, extent=(20.0, 40.0)),
)
N = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Slices of 1 to 4 mm; every fourth with contrast, every third of unknown; three sources."""
    meta = toy_module.toy_meta

    def varied(key, hu):
        n = int(key[-4:])
        contrast = None if n % 3 == 0 else n % 4 == 0
        return replace(
            meta(key, hu), slice_mm=float(1 + n % 4), contrast=contrast, source="abc"[n % 3]
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy_module, "toy_meta", varied)
        return write_toy_dataset(
            tmp_path_factory.mktemp("toy"), N, shape=(40, 40, 40), per_shard=10
        )


@pytest.fixture(autouse=True)
def _no_views(monkeypatch):
    monkeypatch.setattr(CTLoader, "renderer", lambda self, pull: NoViews(pull))


def make(folder, **data):
    config = LoaderConfig(batch_size=2, threads=2, loader="reference", data=DataConfig(**data))
    return CTLoader(folder, VIEWS, config)


def keys_of(folder, batches, **data):
    with make(folder, **data) as loader:
        return [key for batch in itertools.islice(loader, batches) for key in batch.keys]


def numbers(keys):
    return {int(key[-4:]) for key in keys}


def test_a_filter_takes_what_it_says(folder):
    expected = {n for n in range(N) if 1 + n % 4 <= 2 and n % 3 and n % 4 == 0}
    found = keys_of(folder, 40, where="slice_mm <= 2 and contrast")
    assert numbers(found) == expected


def test_weights_give_the_shares(folder):
    weights = {"a": 2.0, "b": 1.0, "c": 1.0}
    found = keys_of(folder, 2 * N, weights=weights)  # two epochs with two visits each
    shares = Counter("abc"[int(key[-4:]) % 3] for key in found)
    assert shares == {"a": 2 * N, "b": N, "c": N}


def test_subjects_kept_apart_are_never_trained_on(folder):
    kept = numbers(keys_of(folder, 60, holdout=0.3, split="held_out"))
    trained = numbers(keys_of(folder, 80, holdout=0.3))
    assert kept
    assert not kept & trained
    assert kept | trained == set(range(N))


def test_the_choice_is_part_of_the_order(folder):
    with make(folder) as loader:
        state = loader.state_dict()
    for other in ({"where": "slice_mm < 4"}, {"holdout": 0.3}, {"weights": dict(a=1, b=1, c=1)}):
        with make(folder, **other) as loader, pytest.raises(CheckpointError):
            loader.load_state_dict(state)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"where": "slice_nm < 3"}, "slice_nm"),
        ({"where": "slice_mm <"}, "where"),
        ({"where": "slice_mm > 90"}, "no trainable sample, or none that filters and split"),
        ({"where": "key == 'toy-0001'"}, "1 trainable volumes by where, fewer than the 2 sets"),
        ({"weights": {"a": 1.0}}, "no weight for b, c; the sources to weigh are a, b, c"),
        ({"holdout": 1.0}, "give a share from 0 to below 1"),
        ({"split": "held_out"}, "say which share of the subjects with holdout"),
    ],
)
def test_what_does_not_fit_is_a_usage_error(folder, data, message):
    with pytest.raises(UsageError, match=message):
        make(folder, **data)


@pytest.mark.parametrize("given", ["lidc", "=2", "lidc=two", "lidc="])
def test_weights_that_are_none(given):
    with pytest.raises(UsageError, match="give SOURCE=NUMBER"):
        parse_weights([given])


def test_a_weight_given_twice():
    with pytest.raises(UsageError, match="comes twice"):
        parse_weights(["a=1", "a=2"])


def test_a_chunk_table_read_a_shard_at_a_time_changes_nothing(folder, monkeypatch):
    """As for a dataset whose chunk table is too large to be held."""
    import shards.chunk_groups
    import train.loader.inputs

    whole = keys_of(folder, 60)
    for module in (shards.chunk_groups, train.loader.inputs):
        monkeypatch.setattr(module, "WHOLE_BYTES", 0)
    with make(folder) as loader:
        assert loader.inputs.scheduler.tables is not None
        parts = [key for batch in itertools.islice(loader, 60) for key in batch.keys]
        requests = loader.stats.counters()["table_requests"]
    assert parts == whole
    # The footer, and each of the 4 shards' rows once.
    assert requests <= 3 + 4
