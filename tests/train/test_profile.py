"""The profiler: exact counts against brute force, plausible rates, and outputs that agree."""

import io
import json
import struct
from collections import defaultdict

import numpy as np
import pytest
from rich.console import Console

from coralbay.views import ViewRecipe, ViewSpec
from shards.dataset import Dataset
from shards.testing import write_dataset
from train.loader.base import CTLoader
from train.loader.limits import LimitBench
from train.loader.settings import LoaderConfig
from train.loader.stages import N_SETS, StageBench, voxels_viewed
from train.profile import profile_loader
from train.profile.picture import plot_profile
from train.profile.render import render
from train.profile.trace import write_trace

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
    return profile_loader(dataset, VIEWS, CONFIG, seconds=0.4, keep_spans=True)


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
    # Ideal is then one request a set.
    assert result.request_amplification == pytest.approx(result.requests_per_set)


def test_json_has_what_others_rely_on(result):
    record = json.loads(json.dumps(result.to_json()))
    for name in ("sets_per_s", "data_wait", "decode_amplification", "read_amplification"):
        assert record[name] > 0
    assert set(record["stages"]) == {"plan", "fetch", "decode", "graph"}
    for stage in record["stages"].values():
        assert all(point["sets_per_s"] > 0 for point in stage["sweep"])
        assert stage["at"] in [point["at"] for point in stage["sweep"]]
    assert [point["at"] for point in record["stages"]["decode"]["sweep"]] == [1, 2, 4]
    assert [point["at"] for point in record["stages"]["fetch"]["sweep"]] == [1, 2, 4, 8, 16]
    assert record["limits"].keys() == {"read", "memcpy", "codec", "h2d", "cached_batches"}
    assert all(record["limits"][name] > 0 for name in ("read", "memcpy", "codec"))
    assert record["ratios"].keys() >= {"fetch_of_read", "decode_of_codec", "decode_of_memcpy"}
    assert record["ratios"]["loader_of"].keys() == {"read", "memcpy", "codec"}
    name = record["bottleneck"]["name"]
    assert name == max(record["stages"], key=lambda stage: record["time"][stage])
    assert record["bottleneck"]["sentence"].startswith(f"{name}-bound: ")
    assert "spans" not in record


def test_the_consumers_time_adds_up(result):
    assert sum(result.time.values()) == pytest.approx(1.0)
    assert all(share >= 0 for share in result.time.values())
    assert result.time["consumer"] == pytest.approx(1 - result.data_wait)


def test_people_get_a_table(result):
    text = io.StringIO()
    Console(file=text, width=120).print(render(result))
    for word in ("sets/s end to end", "decode", "of codec", "Bottleneck: ", "data wait"):
        assert word in text.getvalue()


def test_the_trace_is_whole_and_in_order(result, tmp_path):
    write_trace(result.spans, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {event["name"] for event in events if event["ph"] == "M"}
    assert names >= {"process_name", "thread_name"}
    pieces = [event for event in events if event["ph"] == "X"]
    by_thread = defaultdict(list)
    for piece in pieces:
        assert piece["ts"] >= 0
        assert piece["dur"] >= 0
        by_thread[piece["pid"], piece["tid"]].append(piece)
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    assert by_thread.keys() <= named
    rounding = 0.01
    for found in by_thread.values():
        ends = []
        for before, piece in zip([found[0], *found], found, strict=False):
            assert piece["ts"] >= before["ts"]
            while ends and ends[-1] <= piece["ts"] + rounding:
                ends.pop()
            # What has begun inside of another ends inside of it.
            assert not ends or piece["ts"] + piece["dur"] <= ends[-1] + rounding
            ends.append(piece["ts"] + piece["dur"])


def test_the_trace_has_the_time_of_the_stats(result, tmp_path):
    write_trace(result.spans, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    busy = dict.fromkeys(result.stages, 0.0)
    for event in events:
        if event["ph"] == "X" and event["cat"].endswith(".busy_s"):
            busy[event["cat"].removesuffix(".busy_s")] += event["dur"] / 1e6
    for name, stage in result.stages.items():
        assert busy[name] > 0
        assert busy[name] == pytest.approx(stage.run.busy * result.seconds, abs=1e-4)
    counters = defaultdict(list)
    for event in events:
        if event["ph"] == "C":
            counters[event["name"]].append((event["ts"], event["args"]["sets"]))
    assert len(counters) == 4
    for lengths in counters.values():
        assert lengths == sorted(lengths, key=lambda at: at[0])
        assert min(length for _, length in lengths) >= 0
        assert lengths[-1][1] == 0


def test_the_picture_is_a_png(result, tmp_path):
    plot_profile(result, tmp_path / "a.png", title="dense")
    head = (tmp_path / "a.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    assert width == 1500
    assert height > 800


@pytest.mark.parametrize("loader", ["reference", "dali"])
def test_every_stage_and_limit_does_its_work(dataset, loader):
    config = LoaderConfig(batch_size=2, threads=2, prefetch=2, loader=loader)
    with CTLoader(dataset, VIEWS, config) as ct, StageBench(ct) as bench:
        limits = LimitBench(bench)
        paces = [
            bench.plan(0.0),
            bench.fetch(0.0, 1),
            bench.fetch(0.0, 16),
            bench.decode(0.0, 3),
            limits.read(0.0, 3),
            limits.codec(0.0, 3),
            limits.memcpy(0.0, 3),
        ]
        with bench.graph(1) as graph:
            paces.append(graph(0.0))
        assert [round(pace.sets * len(bench.asked) / N_SETS) for pace in paces[4:5]] == [3]
        assert [pace.sets for pace in paces[3:4] + paces[5:]] == [3, 3, 3, 2]
        assert all(pace.sets_per_s > 0 for pace in paces)
        assert bench.counts.voxels_decoded == N_SETS * 8 * 64**3
