"""Volumes for the loader benchmark: two real chest CT, each mirrored in some ways.

At 1.5 mm, as ingest builds them by default, and at 1.0 mm, where a volume is 3.4 times as large.
Ours is a dataset of shards; the peers' own forms are made from the same voxels by the peers
themselves, each in its environment.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stream_data import Shape, build_source, variant, write_dataset
from shards.dataset import Dataset

MIRRORS = {1.5: 8, 1.0: 4}
"""Variants of each CT by spacing in mm: together they are larger than the caches."""
PEERS = Path(__file__).parent / "peers"


def make_data(ct_data: Path, folder: Path, spacing_mm: float) -> Path:
    """Write ``shards`` and ``volumes`` into a folder; what an earlier run left is used again."""
    folder = folder / f"{spacing_mm}mm"
    if not (folder / "shards/manifest.json").exists():
        source = Dataset.open(build_source(ct_data, folder / "source", spacing_mm))
        samples = list(source)
        encoded = [variant(sample, n) for n in range(MIRRORS[spacing_mm]) for sample in samples]
        (folder / "shards").mkdir(parents=True, exist_ok=True)
        shape = Shape(shards=1, samples=len(encoded))
        write_dataset(folder / "shards", shape, encoded, source.manifest.contract)
    export_volumes(folder)
    return folder


def export_volumes(folder: Path) -> None:
    """The voxels of ``shards`` as ``volumes/KEY.npy``, int16 HU: what peers make their forms of."""
    if (folder / "volumes").exists():
        return
    unfinished = folder / "volumes.part"
    unfinished.mkdir(exist_ok=True)
    for sample in Dataset.open(folder / "shards"):
        np.save(unfinished / f"{sample.meta.key}.npy", sample.hu)
    unfinished.rename(folder / "volumes")


def make_form(folder: Path, python: Path, script: str, form: str) -> None:
    """Have a peer write its own form of the volumes, once."""
    if (folder / form).exists():
        return
    print(f"writing {form}", file=sys.stderr)
    unfinished = folder / f"{form}.part"
    unfinished.mkdir(exist_ok=True)
    command = [python, PEERS / script, "write", "--data", folder, "--out", unfinished]
    environment = {"PYTHONPATH": str(PEERS.parents[1]), "PATH": "/usr/bin:/bin"}
    subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
    unfinished.rename(folder / form)


def volumes(folder: Path) -> dict[str, Any]:
    """All volumes, by key; read when touched."""
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("volumes/*"))}


def warm(folder: Path) -> None:
    """Read every file once: the page cache then has it."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def describe(folder: Path) -> dict[str, Any]:
    """What the dataset holds, and the bytes of each form, for the record."""
    forms = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name != "source"]
    found = volumes(folder)
    return {
        "volumes": len(found),
        "shapes_zyx": sorted({tuple(hu.shape) for hu in found.values()}),
        "voxels": sum(hu.size for hu in found.values()),
        "bytes": {
            path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            for path in forms
        },
    }
