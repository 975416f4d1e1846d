"""A writer of small CT series of any geometry, independent of the code under test."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ingest.ids import IdKey
from ingest.phantom import Torso
from ingest.series import Series
from ingest.testing import SeriesSpec, write_nifti, write_series_at
from tests.s3_conditional import ConditionalServer, serving_conditional

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class Stack:
    """Data sets of one series: change them at will, then write them."""

    def __init__(
        self,
        stored: np.ndarray,
        positions: Sequence[Sequence[float]] | None = None,
        orientation: Sequence[float] = AXIAL,
        pixel_spacing: Sequence[float] = (1.0, 1.0),
        name: str = "a",
        intercept: float = -1024.0,
    ) -> None:
        if positions is None:
            positions = [(0.0, 0.0, 2.0 * k) for k in range(len(stored))]
        self.slices = [
            _slice(plane, position, orientation, pixel_spacing, f"{name} {k}", name, intercept)
            for k, (plane, position) in enumerate(zip(stored, positions, strict=True))
        ]

    def set(self, **values: Any) -> "Stack":
        for ds in self.slices:
            for keyword, value in values.items():
                setattr(ds, keyword, value)
        return self

    def write(self, folder: Path, names: Sequence[str] | None = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for k, ds in enumerate(self.slices):
            ds.save_as(folder / (names[k] if names else f"{k:03d}.dcm"), enforce_file_format=True)
        return folder


def _slice(
    plane: np.ndarray,
    position: Sequence[float],
    orientation: Sequence[float],
    pixel_spacing: Sequence[float],
    name: str,
    series: str,
    intercept: float,
) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["image", name])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID = generate_uid(entropy_srcs=["study", series])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=["series", series])
    ds.PatientID, ds.PatientName = f"patient {series}", "Planted^Name"
    ds.Modality, ds.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SliceThickness = 7.25  # never the slice spacing: nothing may be derived from it
    ds.ImagePositionPatient = [round(float(v), 9) for v in position]
    ds.ImageOrientationPatient = [round(float(v), 12) for v in orientation]
    ds.PixelSpacing = [float(v) for v in pixel_spacing]
    ds.Rows, ds.Columns = plane.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(plane.dtype.kind == "i")
    ds.RescaleSlope, ds.RescaleIntercept = 1.0, intercept
    ds.PixelData = plane.astype(plane.dtype.newbyteorder("<")).tobytes()
    return ds


@pytest.fixture(scope="session")
def id_key() -> IdKey:
    return IdKey(key=b"a key for tests only, 32 bytes..")


@pytest.fixture(scope="session")
def make_stack() -> type[Stack]:
    return Stack


@pytest.fixture(scope="session")
def noise_stack() -> Callable[..., Stack]:
    """A stack of distinct slices, half air and half tissue."""

    def make(n: int = 12, side: int = 16, **options: Any) -> Stack:
        rng = np.random.default_rng(len(options) + n)
        stored = rng.integers(900, 1200, (n, side, side)).astype(np.uint16)
        stored[:, : side // 2] = rng.integers(0, 60, (n, side // 2, side))
        return Stack(stored, **options)

    return make


@pytest.fixture(scope="session")
def only() -> Callable[..., Series]:
    """The single accepted series of a scan result."""

    def pick(result: Any) -> Series:
        [series] = [row for row in result.series if row.reason == "ok"]
        return series

    return pick


class Zygote:
    """Runs `ingest` commands, each in a process of its own; see zygote.py."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("zygote.py")
        environment = {**os.environ, "PYTHONPATH": str(script.parents[2]), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __call__(self, *args: object, **order: Any) -> SimpleNamespace:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"args": [str(a) for a in args], **order}) + "\n")
        self.process.stdin.flush()
        return SimpleNamespace(**json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="session")
def ingest_run() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    assert zygote.process.stdin is not None
    assert zygote.process.stdout is not None
    zygote.process.stdin.close()
    zygote.process.wait(30)
    zygote.process.stdout.close()


@pytest.fixture(scope="session")
def flags() -> tuple[str, ...]:
    """Of a build of ``three_volumes`` into three shards, in one process."""
    return ("--spacing-mm", "2", "--shard-mib", "1", "--workers", "1")


@pytest.fixture(scope="session")
def three_volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of three volumes, and a stray file."""
    raw = tmp_path_factory.mktemp("raw")
    for n in (1, 2):
        spec = SeriesSpec(
            patient=n, torso=Torso(seed=n), slices=24, side=80, pixel_mm=4.2, gap_mm=4.0
        )
        write_series_at(raw / f"{n}", spec)
    write_nifti(raw / "3.nii.gz", Torso(seed=3), (70, 60, 24), 5.0, -60.0)
    (raw / "notes.txt").write_text("nothing to see")
    return raw


def snapshot(folder: Path) -> dict[str, str]:
    """Digests of all files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="session")
def three_built(
    three_volumes: Path,
    tmp_path_factory: pytest.TempPathFactory,
    ingest_run: Zygote,
    flags: tuple[str, ...],
) -> tuple[dict[str, str], float]:
    """Digests of an undisturbed build, and how long it took."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = ingest_run("build-shards", three_volumes, out, *flags)
    assert done.status == 0, done.output
    files = snapshot(out)
    assert sum(name.endswith(".tar") for name in files) == 3
    return files, done.seconds


@pytest.fixture(scope="session")
def complete(ingest_run: Zygote, flags: tuple[str, ...]) -> Callable[..., None]:
    """The same command again: to the same bytes, with nothing left over."""

    def run(archive: Path, out: Path, files: dict[str, str], *more: object) -> None:
        done = ingest_run("build-shards", archive, out, *flags, *more)
        assert done.status == 0, done.output
        assert snapshot(out) == files
        assert sorted(p.name for p in out.iterdir()) == sorted(files)  # no folder is left either

    return run


class Bucket:
    """A prefix of a bucket, empty at first, and commands that reach it."""

    def __init__(self, server: ConditionalServer, zygote: Zygote, folder: Path) -> None:
        self.server = server
        self.out = f"s3://data/{folder.name}/ct"
        self.folder = server.folder / "data" / folder.name / "ct"
        """Where the server keeps the objects."""
        self.temporary = folder / "temporary files"
        self.temporary.mkdir()
        self.zygote = zygote

    def run(self, *args: object, **order: Any) -> SimpleNamespace:
        """A command in a process of its own."""
        env = self.server.environment | order.pop("env", {})
        settings = {"tempfile.tempdir": str(self.temporary)} | order.pop("settings", {})
        return self.zygote(*args, env=env, settings=settings, **order)

    def put(self, name: str, data: bytes) -> None:
        """An object that somebody else writes."""
        import boto3

        env = self.server.environment
        client = boto3.client(
            "s3",
            endpoint_url=self.server.endpoint,
            region_name=env["AWS_REGION"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        )
        key = str((self.folder / name).relative_to(self.server.folder / "data"))
        client.put_object(Bucket="data", Key=key, Body=data)

    def left_over(self) -> list[str]:
        """What no finished run may leave: temporary files, and uploads in progress."""
        files = [str(path) for path in self.temporary.glob("coralbay-*")]
        return files + [key for key in self.server.uploads() if self.folder.parent.name in key]


@pytest.fixture(scope="session")
def bucket_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConditionalServer]:
    folder = tmp_path_factory.mktemp("s3") / "buckets"
    with serving_conditional(folder, "data") as server:
        yield server


@pytest.fixture
def bucket(
    bucket_server: ConditionalServer, ingest_run: Zygote, tmp_path: Path
) -> Iterator[Bucket]:
    bucket_server.refuse()
    yield Bucket(bucket_server, ingest_run, tmp_path)
    bucket_server.refuse()
