"""Batches from a bucket on a real S3 server: those of the folder, at a known number of requests."""

import gc
import itertools
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coralbay.views import ViewRecipe, ViewSpec
from shards.errors import AccessDeniedError, NotADatasetError
from shards.testing import write_toy_dataset
from tests.s3 import serving
from train.data import StreamConfig
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig

VIEWS = ViewRecipe(
    box_side=65,
    global_=ViewSpec(count=1, size=64, extent=(40.0, 60.0)),
    local=ViewSpec(count=1, size=33, extent=(30.0, 40.0)),
)
CONFIG = LoaderConfig(batch_size=2, threads=2, prefetch=2, loader="reference")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("buckets")
    with serving(folder, "scans") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        write_toy_dataset(folder / "scans" / "toy", 6, shape=(70, 100, 130), per_shard=3)
        yield server


def batches(url, n, mode, **changes):
    config = replace(CONFIG, stream=StreamConfig(mode=mode), **changes)
    with CTLoader(url, VIEWS, config) as loader:
        found = list(itertools.islice(loader, n))
        return found, loader.stats.counters()


@pytest.mark.parametrize("mode", ["range", "stream"])
def test_a_bucket_gives_the_batches_of_the_folder(server, mode):
    here, _ = batches(server.folder / "scans" / "toy", 6, mode)
    server.requests()
    there, counters = batches("s3://scans/toy", 6, mode)
    for mine, theirs in zip(here, there, strict=True):
        assert (mine.keys, mine.indices) == (theirs.keys, theirs.indices)
        for a, b in zip(mine.views, theirs.views, strict=True):
            assert torch.equal(a, b)
    made = server.requests()
    assert set(made) <= {"get", "head"}
    assert counters["answers"] <= counters["requests"] <= counters["ranges"]
    # Manifest, index and chunk table; the rest are ranges of shards.
    tables = made["get"] + made["head"] - counters["requests"]
    assert tables == 3


def sockets():
    """Of this process: open, whatever their state."""
    links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum(link.startswith("socket:") for link in links)


def test_a_loader_on_a_bucket_leaves_nothing_behind(server):
    gc.collect()
    threads, before = set(threading.enumerate()), sockets()
    for mode in ("stream", "range", "stream"):
        batches("s3://scans/toy", 2, mode)
    assert set(threading.enumerate()) == threads
    # Idle connections belong to the store and go with it.
    gc.collect()
    deadline = time.monotonic() + 10
    while sockets() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sockets() <= before


def test_a_missing_shard_in_a_bucket_is_bad_samples(server, tmp_path):
    copy = server.folder / "scans" / "gap"
    shutil.copytree(server.folder / "scans" / "toy", copy)
    (copy / "shard-000001.tar").unlink()
    found, counters = batches("s3://scans/gap", 8, "range")
    assert {key for batch in found for key in batch.keys} <= {f"toy-000{n}" for n in range(3)}
    assert counters["bad_samples"] >= 1


def test_credentials_that_are_refused_stop_the_run(server, monkeypatch):
    with CTLoader("s3://scans/toy", VIEWS, CONFIG) as loader:
        next(loader)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(AccessDeniedError):
        CTLoader("s3://scans/toy", VIEWS, CONFIG)


def test_no_dataset_in_the_bucket(server):
    with pytest.raises(NotADatasetError, match="s3://scans/nothing"):
        CTLoader("s3://scans/nothing", VIEWS, CONFIG)


def test_a_cache_answers_the_second_time_and_mends_what_rots(server, tmp_path):
    config = replace(CONFIG, stream=StreamConfig(cache_dir=str(tmp_path / "cache"), cache_gib=1.0))

    def run():
        with CTLoader("s3://scans/toy", VIEWS, config) as loader:
            found = list(itertools.islice(loader, 6))
            return [batch.keys for batch in found], loader.stats.counters()

    plain, _ = batches("s3://scans/toy", 6, "auto")
    first, counters = run()
    assert first == [batch.keys for batch in plain]
    assert counters["cache_misses"] >= 1
    server.requests()
    again, counters = run()
    assert again == first
    assert counters.get("cache_misses", 0) == 0
    assert server.requests()["get"] == 3  # manifest, index and chunk table
    for path in (tmp_path / "cache").rglob("*.shard"):
        data = bytearray(path.read_bytes())
        for at in range(20_000, 400_000, 5_000):
            data[at] ^= 255
        path.write_bytes(data)
    mended, counters = run()
    assert mended == first
    assert "bad_samples" not in counters
    assert counters["cache_bytes_fetched"] > 0
