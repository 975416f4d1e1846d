"""The Zarr store over shards: the same arrays as elsewhere, and no byte that was not asked for."""

import asyncio
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.buffer import default_buffer_prototype

from shards import zarr_arrays
from shards.codec import index_nbytes
from shards.dataset import Dataset
from shards.errors import CorruptShardError, ShardError
from shards.profiles import PROFILES
from shards.testing import toy_labels, toy_volume, withdraw, write_dataset
from shards.zarr_store import ZarrStore
from tests.shards.foreign import SHARD, open_references

pytestmark = [
    # The gpu profile uses codecs that are not in the Zarr specification, and zarr says so.
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3"),
]
SHAPES = {"a": (70, 80, 90), "b-2": (33, 130, 129), "c_3": (64, 64, 64)}
PROTOTYPE = default_buffer_prototype()


@pytest.fixture(scope="module")
def volumes():
    return {key: toy_volume(shape, seed) for seed, (key, shape) in enumerate(SHAPES.items())}


@pytest.fixture(scope="module")
def labels(volumes):
    wide = toy_labels(volumes["c_3"]).astype(np.uint16)
    wide[wide == 3] = 700
    return {"a": toy_labels(volumes["a"]), "c_3": wide}


@pytest.fixture(scope="module")
def built(tmp_path_factory, volumes, labels):
    folder = tmp_path_factory.mktemp("dataset")
    return write_dataset(folder, volumes, per_shard=2, labels=labels)


class Counted:
    """A fetcher that writes down what is asked of it, and answers a little later."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[tuple[str, int, int]] = []
        self.fails = False
        self._folder = folder
        self._pool = ThreadPoolExecutor(4)

    def submit(self, path: str, offset: int, nbytes: int, priority: int = 0) -> Future[memoryview]:
        self.asked.append((path, offset, nbytes))
        return self._pool.submit(self._read, path, offset, nbytes)

    def _read(self, path: str, offset: int, nbytes: int) -> memoryview:
        time.sleep(0.01)
        if self.fails:
            raise ShardError(f"{path}: cannot be read")
        return memoryview((self._folder / path).read_bytes()[offset : offset + nbytes])

    def close(self) -> None:
        self._pool.shutdown()

    def take(self) -> list[tuple[str, int, int]]:
        asked, self.asked = self.asked, []
        return asked


@pytest.fixture
def counted(built):
    fetcher = Counted(built)
    with ZarrStore(Dataset.open(built), fetcher) as store:
        yield store, fetcher


@pytest.mark.parametrize("profile", PROFILES)
def test_every_array_is_what_was_put_in(tmp_path, volumes, labels, profile):
    write_dataset(tmp_path, volumes, per_shard=2, profile=profile, labels=labels)
    store = ZarrStore.open_url(f"file://{tmp_path}")
    expected = volumes | {f"{key}.seg": values for key, values in labels.items()}
    group = zarr.open_group(store, mode="r")
    assert set(group.array_keys()) == set(expected)
    assert list(group.group_keys()) == []
    for name, values in expected.items():
        array = zarr.open_array(store, path=name)
        assert array.dtype == values.dtype
        assert array.read_only
        assert array.metadata.dimension_names == ("z", "y", "x")
        assert np.array_equal(array[:], values)
        assert np.array_equal(array[3:20, 30:, 7:21], values[3:20, 30:, 7:21])
        assert np.array_equal(array[::7, -1], values[::7, -1])


def test_it_says_what_the_references_say(built):
    """Metadata that follow from the index are, to the byte, those in the tar."""
    store, group = ZarrStore.open_url(built), open_references(built)
    for name in ("a", "b-2", "a.seg"):
        references = group.store
        for rest in ("zarr.json", "c/0/0/0"):
            ours, theirs = (
                asyncio.run(one.get(f"{name}/{rest}", PROTOTYPE)).to_bytes()
                for one in (store, references)
            )
            assert ours == theirs
            assert asyncio.run(store.getsize(f"{name}/{rest}")) == len(theirs)


def chunks_of(folder, key):
    dataset = Dataset.open(folder)
    table = dataset.chunk_tables()
    row = table.keys.index(key)
    offset = dataset.index["offset"][row].as_py()
    shard = dataset.index["shard"][row].as_py()
    return shard, offset, table.offsets[row], table.nbytes[row]


def test_a_region_reads_the_index_once_and_the_chunks_it_meets(counted, built, volumes):
    store, fetcher = counted
    array = zarr.open_array(store, path="b-2")
    assert fetcher.take() == []
    shard, offset, at, nbytes = chunks_of(built, "b-2")
    index = (shard, offset, index_nbytes(len(at)))
    # The grid is 1 by 3 by 3 chunks: this region meets the last two along y, the middle one of x.
    assert np.array_equal(array[5:9, 100:, 64:80], volumes["b-2"][5:9, 100:, 64:80])
    wanted = [n for n in (4, 7) if nbytes[n]]
    assert wanted
    expected = [index, *((shard, offset + at[n], nbytes[n]) for n in wanted)]
    assert sorted(fetcher.take()) == sorted(expected)
    array[5:9, 100:, 64:80]
    assert sorted(fetcher.take()) == sorted(expected[1:])


def test_absent_chunks_cost_nothing(tmp_path):
    hu = np.full((64, 64, 128), -1024, np.int16)
    hu[:, :, 70] = 40
    fetcher = Counted(write_dataset(tmp_path, {"half": hu}))
    array = zarr.open_array(ZarrStore(Dataset.open(tmp_path), fetcher), path="half")
    assert (array[:, :, :60] == -1024).all()
    assert len(fetcher.take()) == 1  # the index


def test_a_whole_array_is_one_request_or_parts_of_it(counted, built, volumes, monkeypatch):
    store, fetcher = counted
    shard, offset, *_ = chunks_of(built, "a")
    size = asyncio.run(store.getsize("a/c/0/0/0"))
    array = zarr.open_array(store, path="a")
    array[:]
    assert fetcher.take() == [(shard, offset, size)]
    monkeypatch.setattr(zarr_arrays, "PART_BYTES", 50_000)
    assert np.array_equal(array[:], volumes["a"])
    parts = fetcher.take()
    assert len(parts) == -(-size // 50_000) > 2
    assert [(shard, offset + 50_000 * n) for n in range(len(parts))] == [p[:2] for p in parts]
    assert sum(part[2] for part in parts) == size


def test_labels_cost_the_idx_of_their_shard_once(counted, labels):
    store, fetcher = counted
    zarr.open_array(store, path="a.seg")[1:3]
    asked = fetcher.take()
    assert asked[0][0] == f"{SHARD}.idx"
    assert {path for path, *_ in asked[1:]} == {SHARD}
    zarr.open_array(store, path="a.seg")
    assert fetcher.take() == []


def test_what_is_asked_for_at_the_same_time_is_read_once(counted):
    store, fetcher = counted

    async def several() -> None:
        index = RangeByteRequest(0, index_nbytes(8))
        await asyncio.gather(*(store.get("a/c/0/0/0", PROTOTYPE, index) for _ in range(5)))
        await asyncio.gather(*(store.get("a.seg/zarr.json", PROTOTYPE) for _ in range(5)))

    asyncio.run(several())
    assert len(fetcher.take()) == 3  # the chunk index, the .idx, the metadata
    asyncio.run(several())  # in another event loop
    assert fetcher.take() == []


def test_a_read_that_failed_is_tried_again(counted):
    store, fetcher = counted
    fetcher.fails = True
    for _ in range(2):
        with pytest.raises(ShardError, match="cannot be read"):
            asyncio.run(store.get("a.seg/zarr.json", PROTOTYPE))
    fetcher.fails = False
    assert asyncio.run(store.get("a.seg/zarr.json", PROTOTYPE)) is not None


def test_one_who_gives_up_does_not_end_it_for_others(counted):
    store, fetcher = counted

    async def one_of_two() -> bytes:
        first, second = (
            asyncio.create_task(store.get("a.seg/zarr.json", PROTOTYPE)) for _ in range(2)
        )
        await asyncio.sleep(0)
        first.cancel()
        return (await second).to_bytes()

    assert asyncio.run(one_of_two()).startswith(b"{")
    assert len(fetcher.take()) == 2  # the .idx, the metadata


def test_byte_ranges(counted, built):
    store, _ = counted
    for key in ("a/c/0/0/0", "a/zarr.json", "a.seg/zarr.json", "zarr.json"):
        whole = asyncio.run(store.get(key, PROTOTYPE)).to_bytes()
        requests = {
            RangeByteRequest(3, 10): whole[3:10],
            RangeByteRequest(5, len(whole) + 9): whole[5:],
            RangeByteRequest(4, 4): b"",
            OffsetByteRequest(7): whole[7:],
            OffsetByteRequest(len(whole) + 1): b"",
            SuffixByteRequest(11): whole[-11:],
            SuffixByteRequest(len(whole) + 1): whole,
        }
        found = asyncio.run(store.get_partial_values(PROTOTYPE, [(key, r) for r in requests]))
        assert [one.to_bytes() for one in found] == list(requests.values())
    missing = asyncio.run(store.get_partial_values(PROTOTYPE, [("nobody/zarr.json", None)]))
    assert missing == [None]


def test_names(counted):
    store, fetcher = counted

    async def collect(listing):
        return [name async for name in listing]

    def keys(array):
        return [f"{array}/zarr.json", f"{array}/c/0/0/0"]

    names = ["a", "a.seg", "b-2", "c_3", "c_3.seg"]
    everything = ["zarr.json", *(key for name in names for key in keys(name))]
    assert asyncio.run(collect(store.list())) == everything
    for prefix, expected in {
        "a": keys("a") + keys("a.seg"),
        "a/": keys("a"),
        "a.seg/c": keys("a.seg")[1:],
        "z": ["zarr.json"],
        "b-2.seg/": [],
        "b-2/c/0/0/0": keys("b-2")[1:],
    }.items():
        assert asyncio.run(collect(store.list_prefix(prefix))) == expected
    for folder, expected in {
        "": ["zarr.json", *names],
        "a": ["zarr.json", "c"],
        "a/": ["zarr.json", "c"],
        "a/c/0": ["0"],
        "nobody": [],
    }.items():
        assert asyncio.run(collect(store.list_dir(folder))) == expected
    for key in everything:
        assert asyncio.run(store.exists(key))
    for key in ("", "a", "a/c/0/0", "b-2.seg/zarr.json", "nobody/zarr.json", ".seg/zarr.json"):
        assert not asyncio.run(store.exists(key))
        assert asyncio.run(store.get(key, PROTOTYPE)) is None
        with pytest.raises(FileNotFoundError):
            asyncio.run(store.getsize(key))
    assert asyncio.run(store.getsize("zarr.json")) > 0
    assert fetcher.take() == []


def test_nothing_can_be_written(built):
    store = ZarrStore.open_url(built)
    assert store.with_read_only(True) is store
    for refused in (
        lambda: store.with_read_only(False),
        lambda: asyncio.run(store.delete("a/zarr.json")),
        lambda: asyncio.run(store.set("a/zarr.json", PROTOTYPE.buffer.from_bytes(b"{}"))),
        lambda: zarr.open_array(store, path="a", mode="r+"),
    ):
        with pytest.raises(ValueError, match="read-only"):
            refused()
    with pytest.raises(ValueError, match="read-only"):
        zarr.open_array(store, path="a")[0] = 1
    assert not store.supports_writes
    assert not store.supports_deletes
    assert store.supports_listing


def test_withdrawn_samples_are_not_there(tmp_path, volumes, labels):
    write_dataset(tmp_path, volumes, labels=labels)
    withdraw(tmp_path, ["a"])
    group = zarr.open_group(ZarrStore.open_url(tmp_path), mode="r")
    assert set(group.array_keys()) == {"b-2", "c_3", "c_3.seg"}
    assert "a" not in group


def test_a_missing_shard_is_not_air(tmp_path, built):
    folder = shutil.copytree(built, tmp_path / "copy")
    (folder / SHARD).unlink()
    array = zarr.open_array(ZarrStore.open_url(folder), path="a")
    for read in (lambda: array[:], lambda: array[:5]):
        with pytest.raises(CorruptShardError, match=f"{SHARD}: missing"):
            read()


def test_damage_is_an_error(tmp_path, built):
    folder = shutil.copytree(built, tmp_path / "copy")
    shard, offset, at, nbytes = chunks_of(folder, "a")
    data = bytearray((folder / shard).read_bytes())
    data[offset + at[0] + nbytes[0] // 2] ^= 1
    (folder / shard).write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(ZarrStore.open_url(folder), path="a")[:5, :5, :5]
    (folder / shard).write_bytes(data[: offset + 100])
    with pytest.raises(ShardError, match=f"{shard}: "):
        zarr.open_array(ZarrStore.open_url(folder), path="a")[:5, :5, :5]
    idx = folder / f"{shard}.idx"
    idx.write_bytes(idx.read_bytes().replace(b"zarr", b"zorr", 1))
    with pytest.raises(CorruptShardError, match="SHA-256 is not that of the manifest"):
        zarr.open_array(ZarrStore.open_url(folder), path="a.seg")


def test_it_is_pickled_by_its_place(tmp_path, built, volumes):
    folder = shutil.copytree(built, tmp_path / "copy")
    store = ZarrStore.open_url(folder)
    other = ZarrStore.open_url(folder)
    assert (store, hash(store)) == (other, hash(other))
    assert store != ZarrStore.open_url(built)
    assert str(folder) in str(store)
    # Where it was pickled it is itself; elsewhere it is opened again.
    assert pickle.loads(pickle.dumps(store)) is store
    store.close()
    with pickle.loads(pickle.dumps(store)) as again:
        assert again == store
        assert np.array_equal(zarr.open_array(again, path="a")[:5], volumes["a"][:5])
    data = pickle.dumps(zarr.open_array(store, path="a"))
    script = "import pickle, sys; print(pickle.load(sys.stdin.buffer)[:].sum(dtype='int64'))"
    command = [sys.executable, "-W", "error", "-c", script]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(command, input=data, capture_output=True, env=env)
    assert ran.stdout.decode().strip() == str(volumes["a"].sum(dtype=np.int64)), ran.stderr
    withdraw(folder, ["c_3"])
    ran = subprocess.run(command, input=data, capture_output=True, env=env)
    assert b"has changed since it was opened" in ran.stderr


def test_its_threads_end(built):
    before = set(threading.enumerate())

    def threads():
        # zarr keeps one of its own, for its event loop.
        return {
            one for one in set(threading.enumerate()) - before if not one.name.startswith("zarr")
        }

    with ZarrStore.open_url(built) as store:
        array = zarr.open_array(store, path="a")
        array[:3]
        assert threads()
    assert threads() == set()
    with pytest.raises(ShardError, match="closed"):
        array[:]
    store = ZarrStore.open_url(built)
    zarr.open_array(store, path="a")[:3]
    assert threads()
    del store
    assert threads() == set()


FORKED = """
import os, sys, zarr
from shards.zarr_store import ZarrStore
array = zarr.open_array(ZarrStore.open_url(sys.argv[1]), path="a")
array[:1]
if os.fork() == 0:
    try:
        array[:1]
    except Exception as exc:
        print(exc, flush=True)
    os._exit(0)
os.wait()
"""


def test_after_a_fork_it_says_what_to_do(built):
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", FORKED, built]
    ran = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert "after a fork" in ran.stdout, ran.stderr
    assert "spawn" in ran.stdout
