"""The decode benchmark on a toy dataset: it runs, and it sees what it is there to see."""

import time

import pytest

from benchmarks import decode, decode_held
from benchmarks.decode_held import held_us
from coralbay.recipes import small
from shards import decoding
from shards.codec import decode_chunk
from shards.testing import write_toy_dataset
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy")
    return write_toy_dataset(path, 1, shape=(200, 200, 200), profile="gpu")


def test_everybody_has_a_turn_and_ratios_are_of_rates(folder):
    found = decode.measure(folder, [1, 2], rounds=1)
    assert [turn["threads"] for turn in found["by_threads"]] == [1, 2]
    for turn in found["by_threads"]:
        rates = turn["gb_per_s"]
        assert set(rates) == {"memcpy", "codec", "codec+crc", "decode", "steps", "pack"}
        assert turn["of_codec"]["codec"] == turn["of_memcpy"]["memcpy"] == 1
        for name, ratio in turn["of_codec"].items():  # of one round, so of these very rates
            assert ratio == pytest.approx(rates[name] / rates["codec"], rel=0.05, abs=0.02)
    assert set(found["held_us_per_set"]) == {"plan", "fetch", "params", "decode", "pack"}
    assert 0.9 < found["copied_of_stored_bytes"] <= 1
    assert found["allocated_bytes_at_most"] < 64 * 1024


def test_python_under_the_gil_shows(folder, monkeypatch):
    """A tenth of a millisecond of Python for each chunk."""

    def slow(buf, out, profile):
        end = time.thread_time() + 1e-4
        while time.thread_time() < end:
            pass
        return decode_chunk(buf, out, profile)

    monkeypatch.setattr(decode_held, "TURNS", 3)
    config = LoaderConfig(batch_size=1, loader="reference")
    with CTLoader(folder, small().views, config) as loader:
        fetched = decode._fetch(loader)[0]
        chunks = sum(len(part.places) for part in fetched.parts)
        before = held_us(loader, fetched)
        monkeypatch.setattr(decoding, "decode_chunk", slow)
        after = held_us(loader, fetched)
    # What was planted is the least; other work on the machine only adds to it.
    assert after["decode"] >= 100 * chunks
    assert before["decode"] < after["decode"]
    assert after["pack"] < after["decode"]
