"""GETs and bytes of a loader, counted by the storage: exact, in both modes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.stream_counters import count
from shards.dataset import Dataset
from shards.schema import CHUNKS
from shards.testing import write_toy_dataset
from shards.testing.emulator import Emulator, emulator

N_SAMPLES, PER_SHARD, VISITS, BATCH = 16, 4, 2, 4
SHAPE = (40, 70, 140)
"""At most three chunks of 64 an axis, so that a box of 129 leaves none out."""
URL = "s3://bucket/toy"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("storage")
    write_toy_dataset(folder / "bucket/toy", N_SAMPLES, SHAPE, PER_SHARD)
    with (
        emulator(folder, latency_s=0.0, mb_per_s=float("inf")) as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


def stored_spans(folder: Path) -> list[list[tuple[int, int]]]:
    """First and last byte of each volume's stored chunks, shard by shard."""
    dataset = Dataset.open(folder)
    table = dataset.chunk_table()
    assert table.num_rows == N_SAMPLES, CHUNKS
    spans = []
    for at, offsets, nbytes in zip(
        dataset.index["offset"].to_pylist(),
        table["chunk_offsets"].to_pylist(),
        table["chunk_nbytes"].to_pylist(),
        strict=True,
    ):
        ends = [o + n for o, n in zip(offsets, nbytes, strict=True) if n]
        starts = [o for o, n in zip(offsets, nbytes, strict=True) if n]
        spans.append((at + min(starts), at + max(ends)))
    return [spans[n : n + PER_SHARD] for n in range(0, N_SAMPLES, PER_SHARD)]


def test_a_stream_takes_a_request_a_run_and_each_byte_once(server: Emulator) -> None:
    counted = count(server, URL, "stream", VISITS, BATCH)
    # A run is the four volumes of a shard here, and what lies between them is small.
    assert counted["gets"] == N_SAMPLES // PER_SHARD
    shards = stored_spans(server.folder / "bucket/toy")
    assert counted["bytes"] == sum(shard[-1][1] - shard[0][0] for shard in shards)
    assert counted["sets"] == N_SAMPLES * VISITS
    assert counted["loader_counts_the_same"]


def test_by_range_a_visit_takes_the_touched_chunks(server: Emulator) -> None:
    counted = count(server, URL, "range", VISITS, BATCH)
    # The volumes are shorter than a box on two axes, and 11 voxels longer on the third: every
    # visit touches all chunks of its volume, which lie together.
    assert counted["gets"] == N_SAMPLES * VISITS
    shards = stored_spans(server.folder / "bucket/toy")
    every = np.array([stop - start for shard in shards for start, stop in shard])
    assert counted["bytes"] == VISITS * int(every.sum())
    assert counted["loader_counts_the_same"]
