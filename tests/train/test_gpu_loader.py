"""The loader on a GPU: the same batches as on the CPU, through pinned slots that are reused."""

import itertools

import pytest
import torch

from coralbay.recipes import tiny
from shards.testing import write_toy_dataset
from train.data import StreamConfig
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig

pytestmark = pytest.mark.gpu

TOLERANCE = 2e-3
"""See test_graph.py."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("toy"), 5, shape=(70, 100, 130))


def take(dataset, n, feed="threads", **options):
    options["stream"] = StreamConfig(feed=feed)
    options = {"batch_size": 2, "threads": 4, "prefetch": 2} | options
    with CTLoader(dataset, tiny().views, LoaderConfig(**options)) as loader:
        return list(itertools.islice(loader, n))  # looked at only after all were made


@pytest.mark.parametrize("feed", ["threads", "subprocess"])
@pytest.mark.parametrize("resampler", ["affine", "resize"])
def test_gpu_batches_are_the_reference_batches(dataset, resampler, feed):
    expected = take(dataset, 4, loader="reference", precision="float32")
    got = take(dataset, 4, device="gpu", resampler=resampler, feed=feed)
    for a, b in zip(got, expected, strict=True):
        assert a.keys == b.keys
        for x, y in zip(a.views, b.views, strict=True):
            assert x.is_cuda
            assert x.dtype == torch.float16
            torch.testing.assert_close(x.float().cpu(), y, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("feed", ["threads", "subprocess"])
def test_reusing_pinned_slots_changes_nothing(dataset, feed):
    clean = take(dataset, 20, device="gpu")
    poisoned = take(dataset, 20, device="gpu", poison=True, prefetch=1, feed=feed)
    for a, b in zip(clean, poisoned, strict=True):
        for x, y in zip(a.views, b.views, strict=True):
            assert torch.equal(x, y)


def test_shared_slots_are_pinned(dataset, caplog):
    """Opened, closed and opened again: what was pinned is let go."""
    config = LoaderConfig(batch_size=2, device="gpu", stream=StreamConfig(feed="subprocess"))
    with CTLoader(dataset, tiny().views, config) as loader:
        for _ in range(2):
            next(loader)
            assert torch.from_numpy(loader._running.supply._block).is_pinned()
            loader.close()
    assert "does not pin" not in caplog.text


def test_the_smoke_benchmark_passes():
    from benchmarks.gpu_smoke import FULL, run

    result = run(FULL, "gpu")
    assert result["failures"] == {}
