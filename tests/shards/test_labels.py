"""Label volumes in shards: written, read by us and by others, and checked."""

import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from shards import codec
from shards.copying import copy_samples, kept_shards
from shards.dataset import Dataset
from shards.digest import label_sha256
from shards.errors import CorruptShardError
from shards.labels import LabelVolume, is_public_code
from shards.profiles import PROFILES
from shards.schema import LABEL_SUFFIXES, SUFFIXES, LabelMeta, dump_json
from shards.testing import toy_label, toy_labels, toy_meta, toy_volume, withdraw, write_dataset
from shards.verify import verify
from shards.writer import ShardWriter
from tests.shards.foreign import SHARD, dali_samples, open_references, voxels, wds2idx

pytestmark = [
    # The gpu profile uses codecs that are not in the Zarr specification, and zarr says so.
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3"),
]
SHAPES = {"a": (70, 80, 90), "plain": (33, 40, 66), "c_3": (64, 64, 64)}


@pytest.fixture(scope="module")
def volumes():
    return {key: toy_volume(shape, seed) for seed, (key, shape) in enumerate(SHAPES.items())}


@pytest.fixture(scope="module")
def labels(volumes):
    """One that takes a byte a voxel and one that takes two; the second sample has none."""
    wide = toy_labels(volumes["c_3"]).astype(np.uint16)
    wide[wide == 3] = 700
    return {"a": toy_labels(volumes["a"]), "c_3": wide}


@pytest.fixture(scope="module", params=list(PROFILES))
def folder(request, tmp_path_factory, volumes, labels):
    """A dataset that was moved after it was written."""
    built = tmp_path_factory.mktemp("built") / "dataset"
    built.mkdir()
    write_dataset(built, volumes, profile=request.param, labels=labels)
    moved = tmp_path_factory.mktemp("moved") / "elsewhere"
    shutil.move(built, moved)
    return moved


def test_labels_come_back(folder, volumes, labels):
    dataset = Dataset.open(folder)
    assert dataset.manifest.format_version == 2
    assert dict(zip(dataset.keys(), dataset.index["labelled"].to_pylist(), strict=True)) == {
        "a": True,
        "plain": False,
        "c_3": True,
    }
    for key, hu in volumes.items():
        np.testing.assert_array_equal(dataset.sample(key).hu, hu)
    assert dataset.label("plain") is None
    with pytest.raises(KeyError):
        dataset.label("nobody")
    for key, values in labels.items():
        found = dataset.label(key)
        np.testing.assert_array_equal(found.values, values)
        assert found.values.dtype == values.dtype
        present = {int(v): int((values == v).sum()) for v in np.unique(values) if v}
        assert {one.value: one.voxels for one in found.meta.labels} == present
        assert found.names == {v: f"part {v}" for v in present}
    report = verify(folder)
    assert report.problems == []
    assert report.samples == 3


def test_without_labels_the_version_stays_1(tmp_path, volumes):
    write_dataset(tmp_path, volumes)
    assert Dataset.open(tmp_path).manifest.format_version == 1
    assert "labelled" not in pq.read_schema(tmp_path / "index.parquet").names


# webdataset leaves the file it reads to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset(folder, volumes, labels):
    samples = list(webdataset.WebDataset(str(folder / SHARD), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == list(volumes)
    for sample in samples:
        key = sample["__key__"]
        assert np.array_equal(voxels(sample["ct.zarr.json"], sample["ct.zshard"]), volumes[key])
        assert ("seg.json" in sample) == (key in labels)
        if key in labels:
            assert json.loads(sample["seg.json"])["key"] == key
            assert np.array_equal(
                voxels(sample["seg.zarr.json"], sample["seg.zshard"]), labels[key]
            )


def test_tar_and_zarr(folder, volumes, labels):
    with tarfile.open(folder / SHARD) as tar:
        assert tar.getnames() == [
            f"{key}.{suffix}"
            for key in volumes
            for suffix in (*SUFFIXES, *(LABEL_SUFFIXES if key in labels else ()))
        ]
        for key, values in labels.items():
            array, data = (tar.extractfile(f"{key}.{s}").read() for s in LABEL_SUFFIXES[1:])
            assert np.array_equal(voxels(array, data), values)


def test_zarr_through_kerchunk_references(folder, volumes, labels):
    group = open_references(folder)
    for key, hu in volumes.items():
        assert np.array_equal(group[key][:], hu)
        assert (f"{key}.seg" in group) == (key in labels)
    for key, values in labels.items():
        assert group[f"{key}.seg"].metadata.dimension_names == ("z", "y", "x")
        assert np.array_equal(group[f"{key}.seg"][3:50, 7:], values[3:50, 7:])


@pytest.mark.parametrize("with_labels", [False, True])
def test_dali(folder, volumes, labels, with_labels):
    names = ["json", "ct.zarr.json", "ct.zshard"]
    names += ["seg.zarr.json", "seg.zshard"] * with_labels
    missing = "empty" if with_labels else "error"
    samples = dali_samples(folder, names, len(volumes), missing)
    for (_, array, data, *seg), (key, hu) in zip(samples, volumes.items(), strict=True):
        assert np.array_equal(voxels(array, data), hu)
        if with_labels and key in labels:
            assert np.array_equal(voxels(*seg), labels[key])
        elif with_labels:
            assert [part.size for part in seg] == [0, 0]


def test_dali_index_is_that_of_wds2idx(folder, tmp_path):
    assert (folder / f"{SHARD}.idx").read_bytes() == wds2idx(folder, tmp_path)


def test_a_tombstoned_sample_with_labels_is_not_served(tmp_path, volumes, labels):
    write_dataset(tmp_path, volumes, labels=labels)
    withdraw(tmp_path, ["a"])
    assert verify(tmp_path).problems == []
    dataset = Dataset.open(tmp_path)
    with pytest.raises(KeyError):
        dataset.label("a")
    np.testing.assert_array_equal(dataset.label("c_3").values, labels["c_3"])


def test_a_copied_sample_keeps_its_labels(tmp_path, volumes, labels):
    source = tmp_path / "source"
    source.mkdir()
    write_dataset(source, volumes, labels=labels)
    dataset = Dataset.open(source)
    (kept,) = kept_shards(dataset, ["plain"])
    (tmp_path / "copy").mkdir()
    result = copy_samples(dataset.store, kept, tmp_path / "copy", 7, "balanced")
    assert [row["labelled"] for row in result.index_rows] == [True, True]
    with tarfile.open(tmp_path / "copy/shard-000007.tar") as tar:
        expected = [f"{key}.{s}" for key in labels for s in (*SUFFIXES, *LABEL_SUFFIXES)]
        assert tar.getnames() == expected


def forged(tmp_path, monkeypatch, meta=lambda meta: meta, values=None):
    """A labelled dataset whose digests are true but whose label is not as it should be."""
    hu = toy_volume((34, 40, 66), 0)
    own = toy_labels(hu)
    monkeypatch.setattr("shards.writer.label_problems", lambda label, sample: [])
    if values is not None:
        monkeypatch.setattr(
            "shards.testing.toy.LabelVolume",
            lambda meta, values: LabelVolume(meta=meta, values=changed),
        )
        changed = values(own)
    monkeypatch.setattr(
        "shards.writer.dump_json",
        lambda record: dump_json(meta(record) if isinstance(record, LabelMeta) else record),
    )
    write_dataset(tmp_path, {"a": hu}, labels={"a": own})
    return verify(tmp_path).problems


def first(meta, **changes):
    return replace(meta, labels=(replace(meta.labels[0], **changes), *meta.labels[1:]))


@pytest.mark.parametrize(
    ("meta", "values", "expected"),
    [
        (None, lambda v: v[1:], "label: shape (33, 40, 66), but the volume's is"),
        (None, lambda v: v ^ 1, "values and affine are not those of its content_sha256"),
        (None, lambda v: v ^ 1, "its voxels are not those that its record counts"),
        (lambda m: replace(m, key="b"), None, "its record is that of b"),
        (lambda m: replace(m, source_kind="rtstruct"), None, "source_kind 'rtstruct' is none of"),
        (lambda m: replace(m, labels=m.labels[1:]), None, "not those that its record counts"),
        (lambda m: replace(m, labels=m.labels[::-1]), None, "its values are not in order"),
        (lambda m: first(m, value=0), None, "its values are not in order"),
        (lambda m: first(m, name="a\nb"), None, "the name of value 1"),
        (lambda m: first(m, code="DOE^JOHN", scheme="SCT"), None, "the code of value 1"),
        (lambda m: first(m, code="1", scheme="99HOSPITAL"), None, "the code of value 1"),
        (lambda m: first(m, voxels=-1), None, "not those that its record counts"),
    ],
)
def test_verify_finds_wrong_labels(tmp_path, monkeypatch, meta, values, expected):
    found = forged(tmp_path, monkeypatch, meta or (lambda meta: meta), values)
    assert any(f"{SHARD}: a: label: " in line and expected in line for line in found), found


def test_verify_finds_a_needless_second_byte(tmp_path, monkeypatch):
    hu = toy_volume((34, 40, 66), 0)
    with monkeypatch.context() as patch:
        patch.setattr(codec, "LABEL_KINDS", codec.LABEL_KINDS[1:] * 2)
        write_dataset(tmp_path, {"a": hu}, labels={"a": toy_labels(hu)})
    assert any("label: its values do not call for uint16" in p for p in verify(tmp_path).problems)


def test_verify_finds_padding_and_empty_chunks_of_labels(tmp_path, monkeypatch):
    hu = toy_volume((70, 40, 40), 0)
    real = codec._padded_chunk

    def careless(voxels, position, side, fill):
        chunk = real(voxels, position, side, fill)
        if fill == 0:
            chunk[-1, -1, -1] = 9
        return chunk

    with monkeypatch.context() as patch:
        patch.setattr(codec, "_padded_chunk", careless)
        write_dataset(tmp_path, {"a": hu}, labels={"a": toy_labels(hu)})
    assert f"{SHARD}: a: label: a voxel outside the volume is not 0" in verify(tmp_path).problems


def test_a_flipped_bit_in_a_label_is_found_without_the_digest(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    with tarfile.open(copy / SHARD) as tar:
        places = [tar.getmember(f"a.{suffix}") for suffix in LABEL_SUFFIXES]
    whole = (copy / SHARD).read_bytes()
    for member in places:
        for at in np.linspace(0, member.size - 1, 5).astype(int):
            data = bytearray(whole)
            data[member.offset_data + at] ^= 1
            (copy / SHARD).write_bytes(data)
            found = [p for p in verify(copy).problems if "SHA-256 is not that in" not in p]
            assert any(p.startswith(f"{SHARD}: a: label: ") for p in found), (member.name, at)
    label = bytearray(whole)
    label[places[2].offset_data + places[2].size // 2] ^= 1
    (copy / SHARD).write_bytes(label)
    with pytest.raises(CorruptShardError, match=r"shard-000000\.tar: a: "):
        Dataset.open(copy).label("a")


def test_an_index_that_denies_a_label_is_found(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    table = pq.read_table(copy / "index.parquet")
    column = table.column_names.index("labelled")
    denied = table.set_column(column, table.schema.field(column), [[False] * 3])
    pq.write_table(denied, copy / "index.parquet")
    assert f"{SHARD}: a: its row of index.parquet says otherwise" in verify(copy).problems


def test_the_writer_refuses_a_label_that_is_not_the_samples(tmp_path, volumes):
    hu = volumes["plain"]
    meta, values = toy_meta("a", hu), toy_labels(hu)
    good = toy_label(meta, values)
    wrong = [
        replace(good, meta=replace(good.meta, key="b")),
        replace(good, values=values[1:]),
        replace(good, values=values ^ 1),
        replace(good, meta=first(good.meta, name="x" * 65)),
    ]
    with ShardWriter(tmp_path, 0, "balanced") as writer:
        for label in wrong:
            with pytest.raises(ValueError, match="a: label: "):
                writer.add(meta, hu, label)
        writer.add(meta, hu, good)


def test_a_label_digest_does_not_depend_on_the_type():
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    affine = np.eye(4)
    digest = label_sha256(values, affine)
    assert digest == label_sha256(values.astype(np.uint16), affine)
    assert digest != label_sha256(values, affine * 2)
    assert digest != label_sha256(values.reshape(3, 2, 4), affine)


@pytest.mark.parametrize(
    ("code", "scheme", "public"),
    [
        ("10200004", "SCT", True),
        ("T-62000", "SRT", True),
        ("C0023884", "UMLS", True),
        ("Liver", "SCT", False),
        ("10200004", "99LOCAL", False),
        ("10200004\n", "SCT", False),
        ("", "", False),
    ],
)
def test_public_codes(code, scheme, public):
    assert is_public_code(code, scheme) is public
