"""The loader in a training loop of one's own, by the convention of stateful data loaders.

That is torchdata's: ``state_dict`` between batches, ``load_state_dict`` before iterating, and
``iter`` as often as one likes. torch has the same protocol for what a checkpoint can hold.
"""

import contextlib
import io
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.stateful import Stateful

from shards.testing import write_toy_dataset
from tests.train.test_loader import VIEWS, assert_same
from train.loader import Batch, CTLoader, LoaderConfig, StreamConfig

ROOT = Path(__file__).parents[2]
FEEDS = ("threads", "subprocess")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("toy"), 5, shape=(70, 80, 90), per_shard=2)


def make(dataset, feed):
    config = LoaderConfig(
        batch_size=2, threads=2, prefetch=2, loader="reference", precision="float32",
        stream=StreamConfig(feed=feed),
    )  # fmt: skip
    return CTLoader(dataset, VIEWS, config)


class Training:
    """A plain torch loop: a model, an optimiser, a loader, and a checkpoint of all three."""

    def __init__(self, dataset, feed):
        torch.manual_seed(0)
        self.model = nn.Conv3d(1, 1, 3)
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.loader = make(dataset, feed)

    def run(self, epochs, steps):
        losses = []
        for _ in range(epochs):
            for batch in itertools.islice(self.loader, steps):  # calls iter() each time
                loss = self.model(batch.views[1]).square().mean()
                self.optimiser.zero_grad()
                loss.backward()
                self.optimiser.step()
                losses.append(loss.item())
        return losses

    def save(self, path):
        parts = {name: part.state_dict() for name, part in vars(self).items()}
        torch.save(parts, path)

    def load(self, path):
        for name, state in torch.load(path, weights_only=True).items():
            getattr(self, name).load_state_dict(state)


@pytest.mark.parametrize("feed", FEEDS)
def test_a_plain_torch_loop_is_resumed_from_its_own_checkpoint(dataset, feed, tmp_path):
    whole, begun, resumed = (Training(dataset, feed) for _ in range(3))
    with whole.loader, begun.loader, resumed.loader:
        expected = whole.run(epochs=3, steps=2)
        losses = begun.run(epochs=1, steps=2)
        begun.save(tmp_path / "checkpoint.pt")
        resumed.load(tmp_path / "checkpoint.pt")
        assert losses + resumed.run(epochs=2, steps=2) == expected


@pytest.mark.parametrize("feed", FEEDS)
def test_the_convention(dataset, feed):
    with make(dataset, feed) as loader:
        assert isinstance(loader, Stateful)
        start = loader.state_dict()
        batches = list(itertools.islice(iter(loader), 2))
        between = loader.state_dict()
        assert loader.state_dict() == between  # asking changes nothing
        batches += itertools.islice(iter(loader), 2)  # goes on, nothing is lost
        assert [i for batch in batches for i in batch.indices] == list(range(8))
        assert isinstance(batches[0], Batch)
    with make(dataset, feed) as loader:
        loader.load_state_dict(between)
        assert loader.state_dict() == between
        assert_same(batches[2:], list(itertools.islice(loader, 2)))
        loader.load_state_dict(start)  # also after iterating
        assert_same(batches[:1], [next(loader)])


def test_the_example_of_the_readme_runs(dataset):
    [block] = re.findall(r"```python\n(.*?CTLoader.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert "/data/shards" in block
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(block.replace("/data/shards", str(dataset)), {})
    *steps, last = out.getvalue().splitlines()
    assert [line[0] for line in steps] == ["0", "1", "2"]
    assert all("toy-" in line and "(4, 1, 64, 64, 64)" in line for line in steps)
    assert last in re.search(r"print\(next\(loader\)\.indices\)  # (\[.*?\])", block)[1]


def test_names_of_the_package_are_imported_when_they_are_asked_for():
    code = """
import sys
import train.loader
assert "torch" not in sys.modules
assert {"Batch", "CTLoader", "LoaderConfig"} < set(train.loader.__all__)
for name in train.loader.__all__:
    assert getattr(train.loader, name).__name__ == name
assert not hasattr(train.loader, "Loder")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
