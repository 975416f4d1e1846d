"""Readers that know nothing of us get the voxels that were put in, for every profile."""

import json
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import webdataset
from fsspec.implementations.reference import ReferenceNotReachable

from shards.profiles import PROFILES
from shards.testing import toy_volume, write_dataset
from tests.shards.foreign import SHARD, dali_samples, open_references, voxels, wds2idx

pytestmark = [
    # The gpu profile uses codecs that are not in the Zarr specification, and zarr says so.
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3"),
]
SHAPES = {"a": (70, 80, 90), "b-2": (33, 40, 129), "c_3": (64, 64, 64)}


@pytest.fixture(scope="module")
def volumes():
    return {key: toy_volume(shape, seed) for seed, (key, shape) in enumerate(SHAPES.items())}


@pytest.fixture(scope="module", params=list(PROFILES))
def folder(request, tmp_path_factory, volumes):
    """A dataset that was moved after it was written."""
    built = tmp_path_factory.mktemp("built") / "dataset"
    built.mkdir()
    write_dataset(built, volumes, profile=request.param)
    moved = tmp_path_factory.mktemp("moved") / "elsewhere"
    shutil.move(built, moved)
    return moved


# webdataset leaves the file it reads to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset(folder, volumes):
    samples = list(webdataset.WebDataset(str(folder / SHARD), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == list(volumes)
    for sample in samples:
        key = sample["__key__"]
        assert json.loads(sample["json"])["key"] == key
        assert np.array_equal(voxels(sample["ct.zarr.json"], sample["ct.zshard"]), volumes[key])


def test_tar_and_zarr(folder, volumes):
    with tarfile.open(folder / SHARD) as tar:
        suffixes = ("json", "ct.zarr.json", "ct.zshard")
        assert tar.getnames() == [f"{key}.{suffix}" for key in volumes for suffix in suffixes]
        for key, hu in volumes.items():
            array, data = (tar.extractfile(f"{key}.ct.{s}").read() for s in ("zarr.json", "zshard"))
            assert np.array_equal(voxels(array, data), hu)


def test_zarr_through_kerchunk_references(folder, volumes):
    group = open_references(folder)
    for key, hu in volumes.items():
        assert group[key].metadata.dimension_names == ("z", "y", "x")
        assert np.array_equal(group[key][:], hu)
        assert np.array_equal(group[key][5:9, 30:, 7:20], hu[5:9, 30:, 7:20])


def test_references_to_a_missing_shard_are_no_air(tmp_path, volumes):
    write_dataset(tmp_path, {"a": volumes["a"]})
    array = open_references(tmp_path)["a"]
    (tmp_path / SHARD).unlink()
    for read in (lambda: array[:], lambda: array[:5]):
        with pytest.raises(ReferenceNotReachable, match=SHARD):
            read()


def test_dali(folder, volumes):
    samples = dali_samples(folder, ["json", "ct.zarr.json", "ct.zshard"], len(volumes))
    for (meta, array, data), (key, hu) in zip(samples, volumes.items(), strict=True):
        assert json.loads(bytes(meta))["key"] == key
        assert np.array_equal(voxels(array, data), hu)


def test_dali_index_is_that_of_wds2idx(folder, tmp_path):
    assert (folder / f"{SHARD}.idx").read_bytes() == wds2idx(folder, tmp_path)


def test_tar_lists_it_as_deterministic_files(folder):
    listing = subprocess.run(
        ["tar", "--list", "--verbose", "--numeric-owner", "--utc", "--file", folder / SHARD],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.splitlines()
    assert len(listing) == 3 * len(SHAPES)
    for line in listing:
        assert line.startswith("-rw-r--r-- 0/0 ")
        assert " 1970-01-01 00:00 " in line


def test_the_tar_is_byte_for_byte_that_of_tarfile(folder, tmp_path):
    with (
        tarfile.open(folder / SHARD) as source,
        tarfile.open(tmp_path / "copy.tar", "w", format=tarfile.USTAR_FORMAT) as copy,
    ):
        for found in source:
            info = tarfile.TarInfo(found.name)
            info.size = found.size
            copy.addfile(info, source.extractfile(found))
    assert (tmp_path / "copy.tar").read_bytes() == (folder / SHARD).read_bytes()
