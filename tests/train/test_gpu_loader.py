"""The loader on a GPU: the same batches as on the CPU, through pinned slots that are reused."""

import itertools

import pytest
import torch

from coralbay.recipes import tiny
from shards.testing import write_toy_dataset
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig

pytestmark = pytest.mark.gpu

TOLERANCE = 2e-3
"""See test_graph.py."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("toy"), 5, shape=(70, 100, 130))


def take(dataset, n, **options):
    options = {"batch_size": 2, "threads": 4, "prefetch": 2} | options
    with CTLoader(dataset, tiny().views, LoaderConfig(**options)) as loader:
        return list(itertools.islice(loader, n))  # looked at only after all were made


@pytest.mark.parametrize("resampler", ["affine", "resize"])
def test_gpu_batches_are_the_reference_batches(dataset, resampler):
    expected = take(dataset, 4, loader="reference", precision="float32")
    got = take(dataset, 4, device="gpu", resampler=resampler)
    for a, b in zip(got, expected, strict=True):
        assert a.keys == b.keys
        for x, y in zip(a.views, b.views, strict=True):
            assert x.is_cuda
            assert x.dtype == torch.float16
            torch.testing.assert_close(x.float().cpu(), y, atol=TOLERANCE, rtol=0)


def test_reusing_pinned_slots_changes_nothing(dataset):
    clean = take(dataset, 20, device="gpu")
    poisoned = take(dataset, 20, device="gpu", poison=True, prefetch=1)
    for a, b in zip(clean, poisoned, strict=True):
        for x, y in zip(a.views, b.views, strict=True):
            assert torch.equal(x, y)


def test_the_smoke_benchmark_passes():
    from benchmarks.gpu_smoke import FULL, run

    result = run(FULL, "gpu")
    assert result["failures"] == {}
