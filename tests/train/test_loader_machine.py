"""What the machine lacks is said in one line with the way out; the plain loader needs little."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from shards.testing import write_toy_dataset
from train.data import StreamConfig
from train.errors import UsageError
from train.loader import machine
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("toy"), 2)


def refused(monkeypatch, dataset, **options):
    """The one line that says why a loader cannot be made."""
    from coralbay.recipes import tiny

    with pytest.raises(UsageError) as caught:
        CTLoader(dataset, tiny().views, LoaderConfig(batch_size=1, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_dali_is_not_installed(monkeypatch, dataset):
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    said = refused(monkeypatch, dataset)
    assert "not installed: `pip install 'coralbay[cuda13]'`" in said
    assert "--loader reference" in said


def test_dali_cannot_be_imported(monkeypatch, dataset):
    def fail(name):
        raise OSError("libnvcuda.so.9: cannot open shared object file\nand more")

    monkeypatch.setattr(machine, "import_module", fail)
    said = refused(monkeypatch, dataset)
    assert "cannot be imported (OSError: libnvcuda.so.9: cannot open shared object file)" in said
    assert "coralbay[cuda13]" in said
    assert "--loader reference" in said


def test_dali_lacks_what_the_graphs_are_made_of(monkeypatch, dataset):
    monkeypatch.setattr(machine, "import_module", lambda name: object())
    said = refused(monkeypatch, dataset)
    assert "no operators that part a batch: install 2.4" in said
    assert "--loader reference" in said


def test_dali_on_another_platform(monkeypatch, dataset):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    said = refused(monkeypatch, dataset)
    assert said.startswith("NVIDIA DALI exists for Linux only, not Darwin: use --loader reference")


@pytest.mark.parametrize(
    ("built_for", "cause"),
    [(None, "is a build without CUDA; install one with it"), ("13.0", "see that `nvidia-smi`")],
)
def test_no_gpu(monkeypatch, dataset, built_for, cause):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    said = refused(monkeypatch, dataset, device="gpu")
    assert said.startswith("device gpu: no CUDA GPU")
    assert cause in said
    assert said.endswith("or use the CPU")


def test_no_shared_memory(monkeypatch, dataset):
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    stream = StreamConfig(feed="subprocess")
    said = refused(monkeypatch, dataset, loader="reference", stream=stream)
    assert "Linux only, not Darwin: use --feed threads" in said


WITHOUT_DALI = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "nvidia":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())

from coralbay.recipes import tiny
from train.loader import CTLoader, LoaderConfig

with CTLoader(sys.argv[1], tiny().views, LoaderConfig(batch_size=1, loader="reference")) as loader:
    print([tuple(views.shape) for views in next(loader).views])
"""


def test_the_plain_loader_needs_no_dali(dataset):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DALI, str(dataset)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("[(2, 1, 64, 64, 64), (")
