"""The committed datasets of format versions 1 and 2: still readable, and still made alike."""

import hashlib
import json
import runpy
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards.dataset import Dataset
from shards.verify import verify
from shards.writer import ShardWriter

GOLDEN = Path(__file__).parents[1] / "golden"
V1, V2 = GOLDEN / "v1", GOLDEN / "v2"
SHARD_SHA256 = "06f1096448ea915fcd67cded1fab713710b67683fa8c66a3a1ac3bbba9f031b5"
"""Of version 1, for ever. A new format is a new folder, never a new digest here."""


@pytest.fixture(scope="module")
def maker():
    return runpy.run_path(str(GOLDEN / "make_golden.py"))


def expected_volumes(maker):
    """(voxels, affine) in S, P, L by kernel: turned by hand from what the raw files hold."""
    first, second = maker["HEAD_FIRST"], maker["FEET_FIRST"]
    feet = second.affine.copy()  # Columns run to R: turned about the last one.
    feet[:3, 3] += feet[:3, 2] * (second.side - 1)
    feet[:3, 2] *= -1
    hu, affine = maker["third_volume"]()
    return {
        34 * 44 * 44: (first.hu(), first.affine),
        34 * 40 * 40: (second.hu()[:, :, ::-1], feet),
        34 * 36 * 72: (hu.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]]),
    }


def test_the_shard_is_the_one_that_was_committed():
    data = (V1 / "shard-000000.tar").read_bytes()
    assert hashlib.sha256(data).hexdigest() == SHARD_SHA256
    recorded = json.loads((GOLDEN / "v1.digest.json").read_text())
    assert recorded["shards"] == {"shard-000000.tar": SHARD_SHA256}
    assert Dataset.open(V1).manifest.generation_id == recorded["generation_id"]
    assert sum(path.stat().st_size for path in V1.iterdir()) < 400_000


def test_it_verifies():
    assert verify(V1).problems == []


def test_its_voxels_are_the_phantoms(maker):
    expected = expected_volumes(maker)
    samples = list(Dataset.open(V1))
    assert len(samples) == 3
    for sample in samples:
        hu, affine = expected.pop(sample.hu.size)
        np.testing.assert_array_equal(sample.hu, hu)
        np.testing.assert_allclose(sample.affine, affine, atol=1e-4)
        content = hashlib.sha256(hu.astype("<i2").tobytes())
        content.update(np.array(hu.shape, "<i8").tobytes())
        content.update(sample.affine.astype("<f8").tobytes())
        assert sample.meta.content_sha256 == content.hexdigest()


def test_a_chunk_of_fill_is_absent():
    by_key = {row["key"]: row for row in pq.read_table(V1 / "chunks.parquet").to_pylist()}
    wide = next(s.meta for s in Dataset.open(V1) if s.hu.shape == (34, 36, 72))
    first, second = by_key[wide.key]["chunk_nbytes"]
    assert first > 0
    assert second == 0


def test_members_and_table_rows_are_as_the_format_says():
    with tarfile.open(V1 / "shard-000000.tar") as tar:
        names = tar.getnames()
    keys = sorted({name.split(".")[0] for name in names})
    suffixes = ("json", "ct.zarr.json", "ct.zshard")
    assert names == [f"{key}.{suffix}" for key in keys for suffix in suffixes]
    rows = pq.read_table(V1 / "series.parquet").to_pylist()
    assert sorted(row["reason"] for row in rows) == ["not_medical_image", "ok", "ok", "ok"]


def test_it_is_still_made_bit_by_bit(maker, tmp_path):
    """Fails when the format changed without a new version, or when a codec's version did.

    Flags are the one thing that may be added without a version (docs/format.md), so the committed
    ones are put back before the bytes are compared.
    """
    maker["build_golden"](tmp_path / "built")
    committed = {sample.meta.key: sample.meta for sample in Dataset.open(V1)}
    again = tmp_path / "v1"
    again.mkdir()
    with ShardWriter(again, 0, "balanced") as writer:
        for sample in Dataset.open(tmp_path / "built"):
            flags = committed[sample.meta.key].flags
            assert set(flags) <= set(sample.meta.flags)
            writer.add(replace(sample.meta, flags=flags), sample.hu)
        writer.close()
    for name in ("shard-000000.tar", "shard-000000.tar.idx", "shard-000000.tar.refs.json"):
        assert (again / name).read_bytes() == (V1 / name).read_bytes(), name


def test_the_flags_added_since_are_these(maker, tmp_path):
    maker["build_golden"](tmp_path / "built")
    kernels = {s.meta.kernel: s.meta.flags for s in Dataset.open(tmp_path / "built")}
    assert kernels == {"B30f": ("kernel_soft",), "": ()}


def test_version_2_is_read_and_still_made(maker, tmp_path):
    recorded = json.loads((GOLDEN / "v2.digest.json").read_text())
    maker["build_golden_v2"](tmp_path / "v2")
    for folder in (V2, tmp_path / "v2"):
        assert verify(folder).problems == []
        dataset = Dataset.open(folder)
        manifest = dataset.manifest
        assert (manifest.format_version, manifest.generation) == (2, 2)
        assert manifest.generation_id == recorded["generation_id"]
        assert {s.name: s.sha256 for s in manifest.shards} == recorded["shards"]
        assert len(manifest.tombstones) == 1
        # The first patient's volume is the one of 44 x 44 pixels.
        assert sorted(s.hu.shape for s in dataset) == [(34, 36, 72), (34, 40, 40)]


def test_version_1_and_2_have_the_same_voxels():
    old = {sample.meta.key: sample for sample in Dataset.open(V1)}
    for sample in Dataset.open(V2):
        assert sample.meta == old[sample.meta.key].meta
        np.testing.assert_array_equal(sample.hu, old[sample.meta.key].hu)
