"""Each page of code in `docs/examples` as a user runs it, on a bucket of a real S3 server.

What they print is compared with the volumes that were put in, what they cost with the chunks that
were stored, and both with what `docs/interop.md` says.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards.dataset import Dataset
from shards.testing import toy_affine, toy_labels, toy_volume, withdraw, write_dataset
from tests.examples.counted_s3 import Answer, serving

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs/examples"
PAGE = (ROOT / "docs/interop.md").read_text()
SHAPE = (130, 140, 150)
"""27 chunks, those at the far ends thin."""
LABELLED, WITHDRAWN = "toy-0001", "toy-0003"
MARKER_ZYX, MARKER_HU = (65, 70, 75), 3000
"""The middle."""
SIZES = {"shards": 3, "volumes": 4, "labels": 1}


@pytest.fixture(scope="module")
def written():
    """Volumes by key; the first has one voxel that is brighter than all others."""
    volumes = {f"toy-{n:04d}": toy_volume(SHAPE, n) for n in range(5)}
    volumes["toy-0000"][MARKER_ZYX] = MARKER_HU
    return volumes


@pytest.fixture(scope="module")
def labels(written):
    return {LABELLED: toy_labels(written[LABELLED])}


@pytest.fixture(scope="module")
def volumes(written):
    """Those that a reader may see."""
    return {key: hu for key, hu in written.items() if key != WITHDRAWN}


@pytest.fixture(scope="module")
def server(tmp_path_factory, written, labels):
    folder = tmp_path_factory.mktemp("buckets")
    (folder / "bucket/ct").mkdir(parents=True)
    write_dataset(folder / "bucket/ct", written, per_shard=2, labels=labels)
    withdraw(folder / "bucket/ct", [WITHDRAWN])
    with serving(folder, "bucket") as server:
        yield server


@pytest.fixture(scope="module")
def folder(server):
    return server.folder / "bucket/ct"


@pytest.fixture(scope="module")
def stored(folder):
    """Bytes of each chunk of each volume that is not withdrawn, in C order; 0 where absent."""
    rows = pq.read_table(folder / "chunks.parquet").to_pylist()
    return {row["key"]: np.array(row["chunk_nbytes"]).reshape(3, 3, 3) for row in rows}


@dataclass(frozen=True)
class Run:
    """What an example printed, and what the server sent."""

    lines: list[str]
    answers: list[Answer]

    @property
    def kinds(self) -> Counter[str]:
        """Requests by kind."""
        return Counter(answer.kind for answer in self.answers)

    @property
    def once(self) -> list[Answer]:
        """Without requests that were sent again because the first was slow."""
        return list({(a.kind, a.name, a.range): a for a in self.answers}.values())


@pytest.fixture(scope="module")
def run(server):
    """Runs an example on the bucket, once a module; any warning is an error."""
    done = {}

    def run(name: str, target: str = "s3://bucket/ct") -> Run:
        if (name, target) not in done:
            server.answers()
            ran = subprocess.run(
                [sys.executable, "-W", "error", EXAMPLES / f"{name}.py", target],
                env=os.environ | environment(server),
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert ran.returncode == 0, ran.stderr
            assert ran.stderr == ""
            done[name, target] = Run(ran.stdout.splitlines(), server.answers())
        return done[name, target]

    return run


def environment(server):
    """As a user has it: one name of the endpoint for all, and this checkout as the package."""
    given = server.environment
    given["AWS_ENDPOINT_URL"] = given.pop("AWS_ENDPOINT")
    return given | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def mean(values):
    return f"{values.mean(dtype=np.float64):.3f}"


def centre(values):
    """32 voxels a side: 8 chunks meet in it, for the first boundary is at 64."""
    return values[tuple(slice(n // 2 - 16, n // 2 + 16) for n in values.shape)]


def test_webdataset_and_torch(run, volumes, folder):
    found = run("webdataset_torch")
    assert sorted(found.lines) == [
        f"{key} {hu.shape} torch.int16 mean {mean(hu)} HU" for key, hu in volumes.items()
    ]
    # The manifest, then for each shard its size and all of it: none is over 8 MiB.
    shards = [entry.name for entry in Dataset.open(folder).manifest.shards]
    assert found.kinds == {"get": 1 + len(shards), "head": len(shards)}
    for shard in shards:
        size = (folder / shard).stat().st_size
        assert [a.bytes for a in found.answers if a.name == f"ct/{shard}"] == [0, size]


def regions(volumes, labels):
    values = volumes | {f"{key}.seg": label for key, label in labels.items()}
    return [
        f"{name} {SHAPE} {one.dtype} centre mean {centre(one).mean():.3f}"
        for name, one in sorted(values.items())
    ]


def label_chunks(labels):
    """Chunks of the label's centre region that hold anything."""
    values = labels[LABELLED]
    corners = [(z, y, x) for z in (0, 64) for y in (0, 64) for x in (0, 64)]
    return sum(bool(values[z : z + 64, y : y + 64, x : x + 64].any()) for z, y, x in corners)


def test_zarr_and_kerchunk(run, volumes, labels, stored):
    found = run("zarr_kerchunk")
    assert found.lines == regions(volumes, labels)
    chunks = sum((sizes[:2, :2, :2] > 0).sum() for sizes in stored.values()) + label_chunks(labels)
    arrays = len(volumes) + len(labels)
    # References: a request for their size and one for them. The group lists the withdrawn, too.
    expected = 1 + SIZES["shards"] + (arrays + 1) + arrays + chunks
    assert found.kinds == {"head": SIZES["shards"], "get": expected}


@pytest.mark.parametrize("name", ["zarr_kerchunk", "zarr_store"])
def test_a_folder_is_a_url_too(run, volumes, labels, folder, name):
    assert run(name, f"file://{folder}").lines == regions(volumes, labels)


def test_zarr_over_our_store(run, volumes, labels, stored, folder):
    found = run("zarr_store")
    assert found.lines == regions(volumes, labels)
    chunks = sum((sizes[:2, :2, :2] > 0).sum() for sizes in stored.values()) + label_chunks(labels)
    # Manifest, index; a chunk index for each array; for labels the .idx and their metadata.
    arrays = len(volumes) + len(labels)
    assert {a.kind for a in found.answers} == {"get"}
    assert len(found.once) == 2 + arrays + 2 * len(labels) + chunks
    shards = sum(a.bytes for a in found.once if a.name.endswith(".tar"))
    of_chunks = sum(sizes[:2, :2, :2].sum() for sizes in stored.values())
    # The rest is chunk indexes, and the label.
    assert of_chunks < shards < of_chunks + 100_000
    assert len(found.once) < len(run("zarr_kerchunk").answers)


def test_histogram_by_dask(run, volumes, stored):
    found = run("dask_histogram")
    voxels = np.concatenate([hu.ravel() for hu in volumes.values()])
    expected = [
        f"{voxels.size} voxels, manifest {voxels.size}",
        f"mean {mean(voxels)} HU, {(voxels == -1024).mean():.4f} air",
    ]
    for low in range(-1024, 3072, 256):
        count = np.count_nonzero((voxels >= low) & (voxels < low + 256))
        expected.append(f"{low:6d} to {low + 255:5d} HU: {count}")
    assert found.lines == expected
    chunks = sum((sizes > 0).sum() for sizes in stored.values())
    assert chunks < 27 * len(stored)
    assert {a.kind for a in found.answers} == {"get"}
    assert len(found.once) == 2 + len(stored) + chunks


def test_dali(run, volumes, folder):
    found = run("dali_webdataset")
    assert found.lines == [
        f"{key} {hu.shape} int16 mean {mean(hu)} HU" for key, hu in volumes.items()
    ]
    # Sizes of shards and .idx, each .idx, and each member, also of the withdrawn sample.
    shards = SIZES["shards"]
    assert Counter(a.kind for a in first_round(found.answers)) == {
        "head": 2 * shards,
        "get": 1 + shards + 3 * (len(volumes) + 1),
    }


def first_round(answers):
    """DALI reads on when it has read all, and is ended in the middle of it."""
    members = [n for n, a in enumerate(answers) if a.name.endswith(".tar") and a.kind == "get"]
    return answers[: members[3 * (SIZES["volumes"] + 1) - 1] + 1]


def test_monai(run, volumes, folder):
    found = run("monai_dataset")
    affine = toy_affine(SHAPE)
    *crops, place, as_stored, turned = found.lines
    assert len(crops) == 2 * len(volumes)
    for line, key in zip(crops, np.repeat(list(volumes), 2), strict=True):
        corner, value = re.fullmatch(
            rf"{key} crop \(1, 64, 64, 64\) from \[(.*)\] mm, (\S+)", line
        ).groups()
        ras_mm = [float(mm) for mm in corner.split(",")]
        z, y, x = np.rint(np.linalg.solve(affine, [*ras_mm, 1])[:3]).astype(int)
        crop = volumes[key][z : z + 64, y : y + 64, x : x + 64]
        assert crop.shape == (64, 64, 64)
        windowed = np.clip((crop.astype(np.float64) + 1000) / 2000, 0, 1)
        assert float(value) == pytest.approx(windowed.mean(), abs=1e-4)
    assert place == f"RAS mm: {(affine @ [*MARKER_ZYX, 1])[:3].tolist()}"
    assert as_stored == f"as stored (z, y, x): {list(MARKER_ZYX)} {MARKER_HU}"
    # S, P, L to R, A, S: x and y are counted from their other ends.
    z, y, x = MARKER_ZYX
    ras = [SHAPE[2] - 1 - x, SHAPE[1] - 1 - y, z]
    assert turned == f"turned to (R, A, S): {ras} {MARKER_HU}"
    # Manifest, index, an .idx a shard, a volume each; one more for the first again.
    assert found.kinds == {"get": 2 + SIZES["shards"] + len(volumes) + 1}


def test_plain_tar(run, volumes, folder):
    lines = run("plain_tar", str(folder / "shard-000001.tar")).lines
    hu = volumes["toy-0002"]
    middle = [n // 2 for n in SHAPE]
    r, a, s = (toy_affine(SHAPE) @ [*middle, 1])[:3]
    assert lines == [
        f"toy-0002 {SHAPE} int16 mean {mean(hu)} HU",
        f"voxel {middle} lies at R {r:.3f} A {a:.3f} S {s:.3f} mm",
    ]


def test_the_page_lists_every_example():
    linked = set(re.findall(r"\(examples/(\w+)\.py\)", PAGE))
    assert linked == {path.stem for path in EXAMPLES.glob("*.py")}
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 60, path.name


ROWS = re.findall(r"^\| \[(\w+)\]\(examples/\w+\.py\) \| (\d+) \| ([\d.]+) \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("name", "requests", "mb"), ROWS, ids=[row[0] for row in ROWS])
def test_the_page_says_what_each_costs(run, name, requests, mb):
    found = run(name)
    answers = {
        "dali_webdataset": lambda: first_round(found.answers),
        "monai_dataset": lambda: found.answers,  # it reads the first volume twice
    }.get(name, lambda: found.once)()
    assert len(answers) == int(requests)
    # Compressed sizes may differ a little with the version of the compressor.
    assert sum(a.bytes for a in answers) / 1e6 == pytest.approx(float(mb), rel=0.05)


def test_the_page_has_a_row_for_every_example_on_a_bucket():
    assert [row[0] for row in ROWS] == [
        "webdataset_torch",
        "zarr_kerchunk",
        "zarr_store",
        "dask_histogram",
        "dali_webdataset",
        "monai_dataset",
    ]
