"""The committed dataset of version 2 with labels: it stays readable, and is still made alike."""

import hashlib
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from ingest.testing_labels import CODES, torso_labels
from shards.dataset import Dataset
from shards.verify import verify

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDER = GOLDEN / "v2-labels"
SHARD_SHA256 = "569f1fb326b1c8792e81968c017ac12abdd9d25b044177310bc07904e717624f"
"""For ever: a new format is a new folder, never a new digest here."""


@pytest.fixture(scope="module")
def maker():
    return runpy.run_path(str(GOLDEN / "make_golden_labels.py"))


def test_the_shard_is_the_one_that_was_committed():
    data = (FOLDER / "shard-000000.tar").read_bytes()
    assert hashlib.sha256(data).hexdigest() == SHARD_SHA256
    recorded = json.loads((GOLDEN / "v2-labels.digest.json").read_text())
    assert recorded["shards"] == {"shard-000000.tar": SHARD_SHA256}
    assert Dataset.open(FOLDER).manifest.generation_id == recorded["generation_id"]
    assert Dataset.open(FOLDER).manifest.format_version == 2
    assert verify(FOLDER).problems == []


def test_its_labels_are_those_that_were_drawn(maker):
    dataset = Dataset.open(FOLDER)
    (sample,) = [one for one in dataset if one.hu.shape == (20, 36, 36)]
    seg = dataset.label(sample.meta.key)
    np.testing.assert_array_equal(seg.values, torso_labels(sample.affine, (20, 36, 36)))
    assert seg.values.dtype == np.uint8
    assert seg.names == {n: f"SCT:{code}" for n, (code, _) in CODES.items()}
    others = [row for row in dataset.index.to_pylist() if row["key"] != sample.meta.key]
    keys = {row["labelled"]: row["key"] for row in others}
    nifti = dataset.label(keys[True])
    np.testing.assert_array_equal(nifti.values, maker["nifti_labels"]()[:, ::-1])
    assert nifti.values.dtype == np.uint16
    assert nifti.names == {1: "", 3: "", 300: "heart"}
    assert dataset.label(keys[False]) is None


def test_it_is_still_made_bit_by_bit(maker, tmp_path):
    """Fails when the writer changed without a new version, or when a codec's version did."""
    maker["build_golden"](tmp_path / "again")
    for name in ("shard-000000.tar", "shard-000000.tar.idx", "shard-000000.tar.refs.json"):
        assert (tmp_path / "again" / name).read_bytes() == (FOLDER / name).read_bytes(), name
