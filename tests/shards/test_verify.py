"""Whatever is changed in a dataset is found, and said in one line each, without a traceback."""

import hashlib
import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shards import codec
from shards.dataset import Dataset
from shards.errors import CorruptShardError, FormatVersionError, NotADatasetError
from shards.profiles import PROFILES
from shards.schema import SampleMeta, canonical_json, dump_json
from shards.tables import parquet_bytes
from shards.testing import toy_volume, write_dataset, write_toy_dataset
from shards.verify import verify

SHAPE = (34, 40, 66)
SHARD = "shard-000000.tar"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("toy"), 3, SHAPE, per_shard=2)


@pytest.fixture
def folder(built, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(built, tmp_path / "copy")


def problems(folder):
    found = verify(folder).problems
    assert all("\n" not in problem for problem in found)
    return found


@pytest.mark.parametrize("profile", PROFILES)
def test_a_whole_dataset_has_no_problem(tmp_path, profile):
    volumes = {"a": toy_volume((33, 70, 129), 1), "air": np.full((5, 6, 7), -1024, np.int16)}
    write_dataset(tmp_path, volumes, per_shard=1, profile=profile)
    report = verify(tmp_path)
    assert report.problems == []
    assert report.ok
    assert (report.shards, report.samples) == (2, 2)
    assert report.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.tar"))


def test_progress_names_each_shard(built):
    seen = []
    verify(built, progress=seen.append)
    assert seen == ["shard-000000.tar", "shard-000001.tar"]


def places(folder):
    """A byte of each part of a shard, by name."""
    row = pq.read_table(folder / "index.parquet").to_pylist()[1]
    data, size = row["offset"], (folder / SHARD).stat().st_size
    return {
        "first header": 5,
        "header's checksum": 150,
        "unused end of a header": 511,
        "record": 512 + 100,
        "padding of the record": data - 512 - 512 - 1024 - 1,
        "header of the metadata": data - 512 - 1024 - 512 + 3,
        "array metadata": data - 512 - 1024 + 20,
        "padding of the metadata": data - 512 - 1,
        "header of the data": data - 512 + 130,
        "shard index": data + 9,
        "checksum of the index": data + 32,
        "chunk": data + 36 + 1000,
        "checksum of a chunk": data + row["nbytes"] - 2,
        "padding of the data": data + row["nbytes"],
        "end marker": data + row["nbytes"] + 600,
        "last byte": size - 1,
    }


PLACES = [
    "first header",
    "header's checksum",
    "unused end of a header",
    "record",
    "padding of the record",
    "header of the metadata",
    "array metadata",
    "padding of the metadata",
    "header of the data",
    "shard index",
    "checksum of the index",
    "chunk",
    "checksum of a chunk",
    "padding of the data",
    "end marker",
    "last byte",
]


def flip(path, at, bit):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def reseal(folder):
    """Make sizes and digests of the manifest true again: only the contents can now tell."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    shards = manifest["shards"]
    sidecars = [shard[kind] for shard in shards for kind in ("idx", "refs")]
    for entry in [*shards, *sidecars, *manifest["files"]]:
        data = (folder / entry["name"]).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["totals"]["shard_bytes"] = sum(shard["bytes"] for shard in shards)
    path.write_bytes(canonical_json(manifest))


@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_bit_is_found_by_digest_and_without_it(folder, place):
    at = places(folder)[place]
    assert set(places(folder)) == set(PLACES)
    flip(folder / SHARD, at, 2)
    found = problems(folder)
    assert f"{SHARD}: SHA-256 is not that in manifest.json" in found
    reseal(folder)
    found = problems(folder)
    assert found
    assert all(problem.startswith(f"{SHARD}: ") for problem in found)


@pytest.fixture(scope="module")
def scratch(built, tmp_path_factory):
    return shutil.copytree(built, tmp_path_factory.mktemp("scratch") / "copy")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), sealed=st.booleans())
@example(where=0.0, bit=0, sealed=True)
@example(where=0.40634678114930006, bit=0, sealed=True)  # a clipped fraction of 1.0 for 0.0
def test_any_flipped_bit_is_found(built, scratch, where, bit, sealed):
    for name in (SHARD, "manifest.json"):
        shutil.copy(built / name, scratch / name)
    flip(scratch / SHARD, int(where * (built / SHARD).stat().st_size), bit)
    if sealed:
        reseal(scratch)
    assert problems(scratch) or (sealed and changed_facts(built, scratch) <= TOLD)


TOLD = {"hu.clipped_fraction", "kvp", "modality", "source_kind", "flags", "original"}
"""Facts of the input that no stored voxel or table can confirm: if whoever changes them changes the
digests too, nobody can tell."""


def changed_facts(first, second):
    """Names of what differs between the records of two datasets."""
    found = set()
    for key in Dataset.open(first).keys():  # noqa: SIM118
        records = [asdict(Dataset.open(folder).meta(key)) for folder in (first, second)]
        flat = [record | {f"hu.{k}": v for k, v in record.pop("hu").items()} for record in records]
        found |= {name for name in flat[0] if flat[0][name] != flat[1][name]}
    return found


@pytest.mark.parametrize("keep", [0, 100, 512, 5000, -10240, -1])
def test_a_cut_shard(folder, keep):
    path = folder / SHARD
    path.write_bytes(path.read_bytes()[:keep])
    assert any(problem.startswith(f"{SHARD}: ") for problem in problems(folder))
    reseal(folder)
    assert any(problem.startswith(f"{SHARD}: ") for problem in problems(folder))


def test_a_longer_shard(folder):
    path = folder / SHARD
    path.write_bytes(path.read_bytes() + bytes(10240))
    size = path.stat().st_size
    assert f"{SHARD}: {size} bytes, but manifest.json says {size - 10240}" in problems(folder)


def test_missing_files_are_all_named(folder):
    names = [path.name for path in folder.iterdir() if path.name != "manifest.json"]
    for name in names:
        (folder / name).unlink()
    assert sorted(problems(folder)) == sorted(f"{name}: missing" for name in names)


@pytest.mark.parametrize("name", [f"{SHARD}.idx", f"{SHARD}.refs.json", "report.html"])
def test_a_changed_sidecar(folder, name):
    flip(folder / name, 10, 0)
    assert f"{name}: size or SHA-256 is not that in manifest.json" in problems(folder)


@pytest.mark.parametrize("suffix", [".idx", ".refs.json"])
def test_a_sidecar_that_points_elsewhere(folder, suffix):
    path = folder / f"{SHARD}{suffix}"
    text = path.read_text()
    offset = str(pq.read_table(folder / "index.parquet")["offset"][0].as_py())
    assert offset in text
    path.write_text(text.replace(offset, str(int(offset) + 512)))
    reseal(folder)
    assert problems(folder) == [f"{SHARD}: {path.name} does not describe this tar"]


@pytest.mark.parametrize(
    "name", ["shard-000002.tar", "shard-000001.tar.idx.idx", "shard-9.refs.json", "more.parquet"]
)
def test_a_file_too_many(folder, name):
    (folder / name).write_bytes(b"")
    (folder / "montage.png").write_bytes(b"")  # Not a name of the format: left alone.
    assert problems(folder) == [f"{name}: not named in manifest.json"]


def rewrite(path, change):
    """Change the rows of a Parquet file, keeping schema and row groups."""
    parquet = pq.ParquetFile(path)
    schema = parquet.schema_arrow
    groups = [parquet.read_row_group(n).to_pylist() for n in range(parquet.num_row_groups)]
    parquet.close()
    change(groups)
    path.write_bytes(parquet_bytes(groups, schema))


def setter(row, column, value):
    return lambda groups: groups[0][row].__setitem__(column, value)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("index", setter(1, "offset", 7), f"{SHARD}: toy-0001: its row of index.parquet"),
        ("index", setter(1, "kernel", "B"), f"{SHARD}: toy-0001: its row of index.parquet"),
        ("index", setter(0, "trainable", False), "totals.trainable"),
        ("index", setter(0, "shape_zyx", [1, 2, 3]), "totals.voxels"),
        ("index", setter(0, "shard", "shard-000001.tar"), "index.parquet: its rows are not those"),
        ("index", setter(0, "shard", "elsewhere"), "index.parquet: its rows are not those"),
        ("index", setter(0, "key", "toy-0001"), "index.parquet: a key occurs twice"),
        ("index", lambda groups: groups[0].pop(), "index.parquet: its rows are not those"),
        ("chunks", setter(0, "key", "x"), f"{SHARD}: its samples are not those of the chunk"),
        ("chunks", setter(1, "chunk_offsets", [1, 2]), f"{SHARD}: toy-0001: its row of chunks"),
        ("chunks", setter(1, "air_mask", [True, True]), f"{SHARD}: toy-0001: its row of chunks"),
        ("chunks", lambda groups: groups[0].pop(), "chunks.parquet: its row groups are not one"),
        ("chunks", lambda groups: groups.pop(), "chunks.parquet: its row groups are not one"),
        ("series", setter(0, "n_files", 2), "series.parquet: files do not agree"),
        ("series", setter(0, "verdict", "refused"), "series.parquet: refused series do not agree"),
        ("series", setter(0, "key", "x"), "series.parquet: keys do not agree"),
    ],
)
def test_a_changed_table_is_found_by_digest_and_without_it(folder, name, change, expected):
    path = folder / f"{name}.parquet"
    rewrite(path, change)
    assert f"{path.name}: size or SHA-256 is not that in manifest.json" in problems(folder)
    reseal(folder)
    found = problems(folder)
    assert any(expected in problem for problem in found), found


@pytest.mark.parametrize("name", ["index", "chunks", "series"])
def test_a_table_that_cannot_be_read_hides_nothing_else(folder, name):
    (folder / f"{name}.parquet").write_bytes(b"nothing")
    flip(folder / "shard-000001.tar", 512 + 30, 0)
    found = problems(folder)
    assert any(p.startswith(f"{name}.parquet: not a readable Parquet") for p in found), found
    assert any(problem.startswith("shard-000001.tar: ") for problem in found)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m["totals"].update(samples=4), "totals.samples"),
        (lambda m: m["totals"].update(files_in=4), "totals.files_in"),
        (lambda m: m["totals"].update(shard_bytes=4), "totals.shard_bytes"),
        (lambda m: m["shards"].reverse(), "order of shards"),
        (lambda m: m["shards"].append(m["shards"][0]), "order of shards"),
        (lambda m: m["contract"]["must_match"].update(hu_range=[0, 1]), "contract_sha256"),
        (lambda m: m["shards"][0].update(samples=1), f"{SHARD}: 2 samples, but manifest.json says"),
        (lambda m: m["files"].pop(0), "names no index.parquet"),
    ],
)
def test_a_changed_manifest(folder, change, expected):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_bytes(canonical_json(manifest))
    assert any(expected in problem for problem in problems(folder))


def forge(tmp_path, monkeypatch, meta=lambda meta: meta, stored=lambda hu: hu):
    """A dataset whose digests are all true but whose one sample is not what its record says."""
    hu = toy_volume(SHAPE, 0)
    monkeypatch.setattr(
        "shards.writer.dump_json",
        lambda record: dump_json(meta(record) if isinstance(record, SampleMeta) else record),
    )
    encode = codec.encode_volume
    monkeypatch.setattr("shards.writer.encode_volume", lambda hu, p: encode(stored(hu), p))
    return write_dataset(tmp_path, {"a": hu})


@pytest.mark.parametrize(
    ("meta", "stored", "expected"),
    [
        (None, lambda hu: hu ^ 1, "voxels and affine are not those of its content_sha256"),
        (None, lambda hu: hu[1:], "shape (33, 40, 66), but its record says (34, 40, 66)"),
        (None, lambda hu: hu - np.int16(1), "HU -1025.."),
        (lambda m: replace(m, key="b"), None, "its record is that of b"),
        (lambda m: replace(m, affine=((0.0,) * 4,) * 4), None, "voxels and affine are not"),
        (lambda m: replace(m, hu=replace(m.hu, max=5)), None, "but its record says -1024..5"),
    ],
)
def test_a_sample_that_is_not_its_record(tmp_path, monkeypatch, meta, stored, expected):
    same = lambda value: value  # noqa: E731
    forge(tmp_path, monkeypatch, meta or same, stored or same)
    assert any(expected in problem for problem in problems(tmp_path))


def test_chunks_in_another_order(tmp_path, monkeypatch):
    monkeypatch.setattr(codec, "morton_order", lambda grid: np.arange(np.prod(grid))[::-1])
    write_dataset(tmp_path, {"a": toy_volume((70, 80, 90), 0)})
    assert problems(tmp_path) == [
        f"{SHARD}: a: its chunks do not follow each other in Morton order"
    ]


def test_padding_and_absent_chunks_follow_the_rule(tmp_path, monkeypatch):
    real = codec._padded_chunk

    def careless(hu, position, side, fill):
        chunk = real(hu, position, side, fill)
        chunk[-1, -1, -1] = -1000
        return chunk

    monkeypatch.setattr(codec, "_padded_chunk", careless)
    write_dataset(tmp_path, {"a": np.full((70, 5, 5), -1024, np.int16)})
    assert f"{SHARD}: a: a voxel outside the volume is not -1024" in problems(tmp_path)


def test_what_is_no_dataset_of_ours_is_an_error(folder, tmp_path):
    with pytest.raises(NotADatasetError):
        verify(tmp_path)
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format_version":1', '"format_version":3'))
    with pytest.raises(FormatVersionError):
        verify(folder)
    path.write_text("{")
    with pytest.raises(CorruptShardError):
        verify(folder)
