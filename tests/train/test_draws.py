"""What is drawn for a set depends on (seed, position, attempt) alone, and never comes again."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from coralbay.draws import ViewDraws
from coralbay.recipes import small
from shards.rng import VIEWS as VIEWS_STREAM
from shards.rng import raw
from shards.testing import write_toy_dataset
from train.data import StreamConfig
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig
from train.loader.supply import FeedSettings

VIEWS = small().views
FIELDS = list(ViewDraws.__annotations__)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("toy"), 8, shape=(70, 80, 90), per_shard=3)


def make(dataset, **options):
    options = {"batch_size": 4, "threads": 1, "prefetch": 1, "loader": "reference"} | options
    options["stream"] = StreamConfig(mode=options.pop("mode", "range"))
    return CTLoader(dataset, VIEWS, LoaderConfig(**options))


def row(draws: ViewDraws) -> np.ndarray:
    """All numbers of a set, in one row."""
    return np.concatenate([np.ravel(getattr(draws, name)).astype(np.float64) for name in FIELDS])


def test_no_uniform_comes_twice_over_positions_and_attempts():
    """2,000 positions and 2 attempts: 1.1 million words of 64 bits, all different."""
    words = [
        raw(3, VIEWS_STREAM, index, attempt, VIEWS.n_uniforms)
        for index, attempt in itertools.product(range(2000), range(2))
    ]
    assert len(np.unique(words)) == 4000 * VIEWS.n_uniforms


def test_no_set_is_drawn_twice_over_ranks_epochs_attempts_and_seeds(dataset):
    """8 volumes, two visits: 128 positions are 8 epochs; each set differs from every other.

    Two single views may be equal: those that are pushed to the same end of a volume.
    """
    windows, places = [], []
    for seed in (0, 1):
        with make(dataset, seed=seed) as loader:
            for index, attempt in itertools.product(range(128), (0, 1)):
                draws = loader.inputs.scheduler.visit(index, attempt).draws
                windows.append(np.concatenate([draws.start_zyx, draws.extent_zyx], axis=1))
                places.append(draws.noise_start_zyx)
    for drawn in (windows, places):
        assert len(np.unique(np.reshape(drawn, (512, -1)), axis=0)) == 512


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_the_positions_and_draw_what_one_rank_would(dataset, world):
    with make(dataset) as one:
        expected = [row(one.inputs.scheduler.visit(index, 0).draws) for index in range(40)]
    found = {}
    for rank in range(world):
        with make(dataset, batch_size=4 // world, world=world, rank=rank) as loader:
            settings = FeedSettings(
                views=VIEWS,
                config=loader.config,
                resampler=loader.resampler,
                decode_on="cpu",
                step=0,
                quarantine=(),
            )
            for index in itertools.islice(settings.indices(loader.plan), 40 // world):
                assert index not in found
                found[index] = row(loader.inputs.scheduler.visit(index, 0).draws)
    assert sorted(found) == list(range(40))
    for index, values in found.items():
        np.testing.assert_array_equal(values, expected[index])


@pytest.mark.parametrize(
    "options",
    [{"threads": 3, "prefetch": 7}, {"mode": "stream"}, {"visits": 3}, {"batch_size": 2}],
)
def test_draws_depend_on_nothing_else(dataset, options):
    """Nor on the order in which positions are asked for."""
    with make(dataset) as plain, make(dataset, **options) as other:
        for index in (37, 0, 5, 5, 36):
            np.testing.assert_array_equal(
                row(plain.inputs.scheduler.visit(index, 1).draws),
                row(other.inputs.scheduler.visit(index, 1).draws),
            )


def test_another_seed_attempt_or_position_changes_every_view(dataset):
    with make(dataset) as one, make(dataset, seed=1) as other:
        base = one.inputs.scheduler.visit(7, 0).draws
        for draws in (
            one.inputs.scheduler.visit(7, 1).draws,
            one.inputs.scheduler.visit(8, 0).draws,
            other.inputs.scheduler.visit(7, 0).draws,
        ):
            assert (draws.start_zyx != base.start_zyx).all()


def test_options_leave_the_rest_of_a_view_as_it_was(dataset):
    """A run whose recipe names no blur, noise or rotation has the draws it had before."""
    off = replace(VIEWS, rotate_p=0.0, blur_p=0.0, noise_p=0.0)
    config = LoaderConfig(batch_size=4, loader="reference")
    with CTLoader(dataset, off, config) as without, make(dataset) as loader:
        for index in range(20):
            plain = without.inputs.scheduler.visit(index, 0).draws
            full = loader.inputs.scheduler.visit(index, 0).draws
            np.testing.assert_array_equal(
                plain.start_zyx[~full.turned], full.start_zyx[~full.turned]
            )
            np.testing.assert_array_equal(plain.gamma, full.gamma)
