"""The simulated dataset is one that a reader opens; the figures of the docs are those measured."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scale import LIMITED, MAX_PEAK_MB, MAX_S, best, limits
from benchmarks.scale_data import simulate
from benchmarks.scale_paper import RESULTS, table
from shards.codec import ENTRY_BYTES
from shards.dataset import Dataset
from shards.plan import Plan, PlanConfig

DOCS = Path(__file__).parents[2] / "docs/scale.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    simulate(folder, 200, 17)
    return folder


def test_a_simulated_dataset_is_sound(folder):
    dataset = Dataset.open(folder)
    samples = dataset.plan_samples()
    assert len(dataset) == dataset.manifest.totals.samples == 200
    assert np.bincount(samples.shard_number).tolist() == [
        s.samples for s in dataset.manifest.shards
    ]
    nbytes = dataset.index["nbytes"].to_numpy()
    with dataset.chunk_tables() as tables:
        for n in range(200):
            row = tables.row(n)
            assert row.nbytes.sum() + len(row.nbytes) * ENTRY_BYTES + 4 == nbytes[n]
            ends = np.sort(row.offsets + row.nbytes)
            assert np.array_equal(np.sort(row.offsets)[1:], ends[:-1])
    plan = Plan(PlanConfig(seed=0, global_batch=8, box_side=129), samples, "g")
    assert (
        len({plan.sample_of(n) for n in range(len(plan.epoch_rows(0)))}) == samples.trainable.sum()
    )


def test_a_step_is_measured_in_a_process_of_its_own(folder):
    found = best("plan", str(folder), 1)
    assert found["samples"] == Dataset.open(folder).plan_samples().trainable.sum()
    assert 0 < found["imports_mb"] <= found["peak_mb"]
    assert found["wall_s"] > 0


def test_limits_are_kept_or_not():
    steps = {step: {"cpu_s": MAX_S, "wall_s": MAX_S, "peak_mb": MAX_PEAK_MB} for step in LIMITED}
    assert all(limits(steps, load=0, cores=2).values())
    steps["plan"] = {"cpu_s": MAX_S + 0.1, "wall_s": MAX_S + 0.1, "peak_mb": MAX_PEAK_MB + 1}
    assert list(limits(steps, load=0, cores=2).values()) == [False, False, False, True, True]
    assert list(limits(steps, load=100, cores=2).values()) == [False, False, True, True]


def test_the_recorded_run_kept_its_limits():
    recorded = json.loads(RESULTS.read_text())
    assert recorded["dataset"]["series"] == 1_000_000
    assert recorded["dataset"]["shards"] == 33_000
    machine = recorded["machine"]
    assert recorded["kept"] == limits(recorded["steps"], machine["load_average"], machine["cores"])
    assert all(recorded["kept"].values())


def test_the_table_of_the_docs_is_computed():
    assert table(json.loads(RESULTS.read_text())) in DOCS.read_text()
