"""What the ingest benchmark compares: the whole command, its limit, and the peer. One run each."""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ingest.allocator import keep_freed_memory

SPACING_MM = 1.5


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One run.

    Attributes:
        wall_s: from the first process's start to the last result.
        work_s: the same without the start of processes and their imports.
        cpu_s: user and system time of all its processes.
        work_cpu_s: the same without their start.
        stored_bytes: what it wrote, 0 where it writes nothing.
    """

    wall_s: float
    work_s: float
    cpu_s: float
    work_cpu_s: float
    stored_bytes: int = 0


def run_ingest(
    folders: Sequence[Path],
    out: Path,
    cores: int,
    startup: Timing | None = None,
    flags: Sequence[str] = (),
) -> Timing:
    """``ingest build-shards`` with its default settings.

    Args:
        folders: series, one folder each.
        out: made anew.
        cores: worker processes.
        startup: the same command with an archive of next to nothing.
        flags: further ones.
    """
    shutil.rmtree(out, ignore_errors=True)
    key = out.with_name("id.key")
    key.write_text("00" * 32)
    command = [
        *(sys.executable, "-c", "import sys; from ingest.cli import main; sys.exit(main())"),
        *("build-shards", *map(str, folders), str(out)),
        *("--workers", str(cores), "--id-key", str(key), "--min-slices", "2", "--json", *flags),
    ]
    with _Clock() as clock:
        done = subprocess.run(command, check=True, capture_output=True)
    result = json.loads(done.stdout.splitlines()[-1])
    if result["samples"] != len(folders):
        raise RuntimeError(f"ingest made {result['samples']} samples of {len(folders)} series")
    return Timing(
        wall_s=clock.wall_s,
        work_s=clock.wall_s - (startup.wall_s if startup else 0.0),
        cpu_s=clock.cpu_s,
        work_cpu_s=clock.cpu_s - (startup.cpu_s if startup else 0.0),
        stored_bytes=result["shard_bytes"],
    )


def run_limit(folders: Sequence[Path], cores: int) -> Timing:
    """Read and decode alone, by ingest's own code, in as many processes."""
    return _in_processes(_import_ingest, _read_and_decode, [str(f) for f in folders], cores)


def run_pydicom(folders: Sequence[Path], cores: int) -> Timing:
    """Read and decode alone, as pydicom's ``pixel_array`` does it with the decoders it prefers."""
    return _in_processes(_import_ingest, _read_with_pydicom, [str(f) for f in folders], cores)


def run_peer(folders: Sequence[Path], out: Path, cores: int) -> Timing:
    """dcm2niix, then MONAI's ``PersistentDataset`` with orientation and spacing, one core each."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    items = [(str(folder), str(out / f"{n:02d}")) for n, folder in enumerate(folders)]
    timing = _in_processes(_import_monai, _convert_and_cache, items, cores)
    stored = sum(path.stat().st_size for path in out.glob("*/cache/*.pt"))
    if len(list(out.glob("*/cache/*.pt"))) != len(folders):
        raise RuntimeError("the peer did not cache every series")
    shutil.rmtree(out)
    return replace(timing, stored_bytes=stored)


class _Clock:
    """Wall time and CPU time of child processes that ended, over a ``with`` block."""

    wall_s = 0.0
    cpu_s = 0.0

    def __enter__(self) -> _Clock:
        self._began = time.perf_counter()
        self._cpu = _used_s(resource.RUSAGE_CHILDREN)
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s = time.perf_counter() - self._began
        self.cpu_s = _used_s(resource.RUSAGE_CHILDREN) - self._cpu


def _used_s(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def _in_processes(
    prepare: Callable[[], None], work: Callable[[Any], None], items: Sequence[Any], cores: int
) -> Timing:
    """``work`` on every item in ``cores`` processes that did their imports before."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(cores + 1)
    with _Clock() as clock, ProcessPoolExecutor(cores, context, _start, (prepare, barrier)) as pool:
        results = pool.map(functools.partial(_cpu_of, work), items)
        barrier.wait()
        began = time.perf_counter()
        work_cpu_s = sum(results)
        work_s = time.perf_counter() - began
    return Timing(wall_s=clock.wall_s, work_s=work_s, cpu_s=clock.cpu_s, work_cpu_s=work_cpu_s)


def _cpu_of(work: Callable[[Any], None], item: Any) -> float:
    """Processor time of ``work``, and of the programs it runs."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    before = sum(map(_used_s, who))
    work(item)
    return sum(map(_used_s, who)) - before


def _start(prepare: Callable[[], None], barrier: Any) -> None:
    keep_freed_memory()  # the same allocator for everybody
    prepare()
    barrier.wait()


def _import_ingest() -> None:
    import ingest.dicom  # noqa: F401


def _read_and_decode(folder: str) -> None:
    from ingest.decode import decode_frame
    from ingest.headers import quiet_pydicom, read_dataset

    with quiet_pydicom():
        for name in os.listdir(folder):
            data = Path(folder, name).read_bytes()
            decode_frame(read_dataset(io.BytesIO(data), header_only=False), 0, set())


def _read_with_pydicom(folder: str) -> None:
    import pydicom

    for name in os.listdir(folder):
        _ = pydicom.dcmread(Path(folder, name)).pixel_array


def _import_monai() -> None:
    import torch

    torch.set_num_threads(1)
    _monai_transform()


@functools.cache
def _monai_transform() -> Any:
    """What a MONAI user caches: the volume on axes R, A, S at the target spacing."""
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of readers that are not used here
        load = LoadImaged("image", reader="NibabelReader")
    return Compose(
        [
            load,
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(SPACING_MM,) * 3, mode="bilinear"),
        ]
    )


def _convert_and_cache(item: tuple[str, str]) -> None:
    """Uncompressed NIfTI and an uncompressed cache: the quickest that either tool offers."""
    from monai.data import PersistentDataset

    folder, out = item
    os.makedirs(out)
    subprocess.run(
        [_dcm2niix(), "-b", "n", "-z", "n", "-f", "volume", "-o", out, folder],
        check=True,
        capture_output=True,
    )
    records = [{"image": str(Path(out, "volume.nii"))}]
    cached = PersistentDataset(records, _monai_transform(), cache_dir=Path(out, "cache"))
    shape = cached[0]["image"].shape
    if len(shape) != 4:
        raise RuntimeError(f"{folder}: the peer made a volume of shape {shape}")


def _dcm2niix() -> str:
    beside = Path(sys.executable).with_name("dcm2niix")
    return str(beside) if beside.exists() else "dcm2niix"
