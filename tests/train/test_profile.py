"""The profiler: exact counts against brute force, plausible rates, and a readable verdict."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from coralbay.views import ViewRecipe, ViewSpec
from shards.dataset import Dataset
from shards.testing import write_dataset
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig
from train.loader.stages import N_SETS, StageBench, voxels_viewed
from train.profile import StageRate, _bottleneck, _Flow, profile_loader, render

VIEWS = ViewRecipe(
    global_=ViewSpec(size=64, extent=(64.0, 64.0), count=2),
    local=ViewSpec(size=33, extent=(20.0, 33.0), count=1),
    box_side=65,
)
CONFIG = LoaderConfig(batch_size=2, threads=2, prefetch=2, loader="reference")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two chunks a side and no chunk absent: every box touches and decodes all 8."""
    rng = np.random.default_rng(0)
    volumes = {f"v{n}": rng.integers(-500, 500, (128,) * 3).astype(np.int16) for n in range(3)}
    return write_dataset(tmp_path_factory.mktemp("dense"), volumes)


@pytest.fixture(scope="module")
def result(dataset):
    return profile_loader(dataset, VIEWS, CONFIG, seconds=0.3)


def test_amplifications_are_exact(result, dataset):
    with CTLoader(dataset, VIEWS, CONFIG) as loader:
        visits = [loader.inputs.scheduler.visit(index, 0) for index in range(N_SETS)]
    viewed = 0
    for visit in visits:
        draws = visit.draws
        # The samples of a view lie between the centres of these voxels and their neighbours.
        seen = set()
        for start, extent in zip(draws.start_zyx, draws.extent_zyx, strict=True):
            axes = [
                np.flatnonzero((np.arange(65) + 1 > s) & (np.arange(65) < s + e))
                for s, e in zip(start, extent, strict=True)
            ]
            grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
            seen.update((grid @ [65 * 65, 65, 1]).tolist())
        assert voxels_viewed(VIEWS, visit) == len(seen)
        viewed += len(seen)
    assert result.decode_amplification == pytest.approx(N_SETS * 8 * 64**3 / viewed)
    nbytes = Dataset.open(dataset).chunk_tables().nbytes
    stored = np.mean([int(nbytes[n].sum()) for n in range(3)])
    # All chunks of a volume lie side by side, and each volume is read once for its two visits.
    assert result.mode.startswith("stream, the cheaper way: ")
    assert result.read_amplification == pytest.approx(0.5, rel=0.02)
    assert result.bytes_per_set == pytest.approx(stored / 2, rel=0.02)
    assert 0.25 <= result.requests_per_set <= 0.5  # 8 chunks of 0.3 MB fit one range of 8 MiB


def test_json_has_what_others_rely_on(result):
    record = json.loads(json.dumps(result.to_json()))
    for name in ("sets_per_s", "data_wait", "decode_amplification", "read_amplification"):
        assert record[name] > 0
    assert set(record["stages"]) == {"plan", "fetch", "decode", "graph"}
    assert all(stage["sets_per_s"] > 0 for stage in record["stages"].values())
    assert set(record["limits"]) == {"read", "memcpy", "codec"}
    assert all(limit > 0 for limit in record["limits"].values())
    assert set(record["ratios"]) >= {"fetch_of_read", "decode_of_codec", "decode_of_memcpy"}
    assert record["bottleneck"]["name"] == "graph"  # the plain reference is the slow one
    assert record["bottleneck"]["sentence"]


def test_people_get_a_table(result):
    text = io.StringIO()
    Console(file=text, width=100).print(render(result))
    for word in ("sets/s end to end", "decode alone", "codec", "Bottleneck: graph", "data wait"):
        assert word in text.getvalue()


def test_a_slow_consumer_sets_the_pace(dataset):
    slow = profile_loader(dataset, VIEWS, CONFIG, seconds=0.5, consumer_sets_per_s=2.0)
    # Two sets take the consumer at least a second, whatever the loader does.
    assert slow.sets_per_s <= 2.0


def test_the_verdict_names_the_slowest_stage_or_the_consumer():
    stages = {
        "fetch": StageRate(sets_per_s=10, gb_per_s=1.0),
        "decode": StageRate(sets_per_s=50, gb_per_s=1.0),
    }
    busy = _Flow(sets=90, seconds=10.0, waited=9.0)
    assert _bottleneck(busy, stages, "fetch").name == "fetch"
    idle = _Flow(sets=90, seconds=10.0, waited=0.1)
    assert _bottleneck(idle, stages, "fetch").name == "consumer"


@pytest.mark.parametrize("loader", ["reference", "dali"])
def test_every_stage_does_its_work(dataset, loader):
    config = LoaderConfig(batch_size=2, threads=2, prefetch=2, loader=loader)
    with CTLoader(dataset, VIEWS, config) as ct, StageBench(ct) as bench:
        for task in bench.tasks().values():
            task()
        with bench.graph() as graph:
            for _ in range(5):
                graph()
        assert bench.counts.voxels_decoded == N_SETS * 8 * 64**3
