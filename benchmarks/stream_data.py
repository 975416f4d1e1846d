"""Volumes for the streaming benchmarks: two real chest CT at 1.0 mm, in variants, as datasets.

``wide`` has many shards of 77 MB, so that 16 workers of a peer have two each; ``big`` has shards of
512 MB. A variant is the volume mirrored and with its first voxels cut off, which changes every
chunk and keeps how a real CT compresses; keys, not bytes, differ between equal variants.
"""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.dataset import Dataset, Sample
from shards.digest import content_sha256
from shards.schema import Contract, SampleMeta, Totals, dump_json
from shards.writer import EncodedSample, ShardResult, ShardWriter, encode_sample, publish

SOURCES = ("lidc-idri", "acrin-flt-breast-013")
"""Below the folder of real CT: a chest of 2.5 mm slices and a torso of 5 mm slices."""
SPACING_MM = 1.0
VARIANTS = 4
"""Of each volume that are encoded; later ones are stored again under other keys."""
BUCKET = "bench"
PROFILE = "balanced"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How many volumes a dataset has, and how many bytes or volumes a shard."""

    shards: int
    samples: int = 0
    """Of a shard; 0: as many as ``nbytes`` hold."""
    nbytes: int = 0


DATASETS = {
    "wide": Shape(shards=32, samples=3),
    "big": Shape(shards=4, nbytes=512 * 10**6),
}


def make_data(ct_data: Path, folder: Path) -> Path:
    """Write the datasets into a bucket folder; what an earlier run left is used again.

    Args:
        ct_data: folder of real CT.
        folder: where to write: the root that a server serves.

    Returns:
        The bucket's folder, with a dataset in each sub-folder.
    """
    bucket = folder / BUCKET
    missing = [name for name in DATASETS if not (bucket / name / "manifest.json").exists()]
    if missing:
        source = Dataset.open(build_source(ct_data, folder / ".source", SPACING_MM))
        encoded = list(_encode_variants(list(source)))
        for name in missing:
            (bucket / name).mkdir(parents=True, exist_ok=True)
            write_dataset(bucket / name, DATASETS[name], encoded, source.manifest.contract)
    return bucket


def describe(bucket: Path) -> dict[str, Any]:
    """What the datasets hold, for the record."""
    found = {}
    for name in DATASETS:
        manifest = Dataset.open(bucket / name).manifest
        sizes = [shard.bytes for shard in manifest.shards]
        found[name] = {
            "shards": len(sizes),
            "shard_bytes": sizes[0],
            "volumes": manifest.totals.samples,
            "bytes": sum(sizes),
            "volume_voxels": manifest.totals.voxels // manifest.totals.samples,
        }
    return found


def build_source(ct_data: Path, folder: Path, spacing_mm: float) -> Path:
    """The two real CT as a dataset, built once."""
    if not (folder / "manifest.json").exists():
        command = [sys.executable, "-c", "from ingest.cli import entry; entry()", "build-shards"]
        raw = [str(ct_data / name) for name in SOURCES]
        flags = ["--spacing-mm", str(spacing_mm), "--profile", PROFILE]
        subprocess.run([*command, *raw, str(folder), *flags], check=True, stdout=sys.stderr)
    return folder


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A volume as stored, to be put under any key."""

    meta: SampleMeta
    sample: EncodedSample

    def under(self, key: str) -> EncodedSample:
        """The same bytes under another key, of another person."""
        meta = replace(self.meta, key=key, subject_id=_id("subject", key), study_id=_id("s", key))
        names = [name.partition(".")[2] for name, _ in self.sample.members]
        data = [dump_json(meta), *(data for _, data in self.sample.members[1:])]
        who = {"key": key, "subject_id": meta.subject_id, "study_id": meta.study_id}
        return EncodedSample(
            members=[(f"{key}.{name}", part) for name, part in zip(names, data, strict=True)],
            index_row=self.sample.index_row | who,
            chunk_row=self.sample.chunk_row | {"key": key},
        )


def _encode_variants(samples: Sequence[Sample]) -> Iterator[Encoded]:
    for number, sample in itertools.product(range(VARIANTS), samples):
        print(f"encoding variant {number + 1} of {VARIANTS}", file=sys.stderr)
        yield variant(sample, number, cut=7 * number)


def variant(sample: Sample, number: int, cut: int = 0) -> Encoded:
    """Mirrored along y, x and z as the bits of ``number`` say, without its first voxels."""
    along_y, along_x, along_z = (slice(None, None, -1 if number >> n & 1 else 1) for n in range(3))
    hu = np.ascontiguousarray(sample.hu[cut:, cut:, cut:][along_z, along_y, along_x])
    z, y, x = hu.shape
    meta = replace(
        sample.meta,
        shape_zyx=(z, y, x),
        body_box_zyx=((0, z), (0, y), (0, x)),
        content_sha256=content_sha256(hu, sample.affine),
    )
    return Encoded(meta=meta, sample=encode_sample(meta, hu, PROFILE))


def write_dataset(
    folder: Path, shape: Shape, encoded: Sequence[Encoded], contract: Contract
) -> None:
    """Write and publish a dataset of a shape; the volumes come round again under other keys."""
    results: list[ShardResult] = []
    source = itertools.cycle(encoded)
    for number in range(shape.shards):
        with ShardWriter(folder, number, PROFILE) as writer:
            while writer.nbytes < shape.nbytes or writer.samples < shape.samples:
                # The name of a shard's sample sorts as it is stored.
                key = f"ct-{number:03d}-{writer.samples:03d}"
                sample = next(source).under(key)
                writer.add_stored(sample.members, sample.index_row, sample.chunk_row)
            results.append(writer.close())
    keys = [row["key"] for result in results for row in result.index_rows]
    publish(
        folder,
        results,
        series_rows=[_series_row(row) for result in results for row in result.index_rows],
        report_html=b"<!doctype html><title>benchmark</title>\n",
        contract=contract,
        build_sha256=_id("build", str(asdict(shape))),
        id_key_fingerprint="benchmark",
        totals=_totals(results, len(keys)),
    )


def _series_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "series_id": _id("series", row["key"]),
        "source_kind": "dicom",
        "verdict": "accepted",
        "reason": "ok",
        "detail": "",
        "n_files": 1,
        "n_slices": row["shape_zyx"][0],
        "key": row["key"],
        "modality": "CT",
        "geometry": "uniform",
        "shape_zyx": row["shape_zyx"],
        "spacing_zyx_mm": row["spacing_zyx_mm"],
        "flags": [],
    }


def _totals(results: Sequence[ShardResult], samples: int) -> Totals:
    rows = [row for result in results for row in result.index_rows]
    return Totals(
        samples=samples,
        trainable=sum(row["trainable"] for row in rows),
        shard_bytes=sum(result.entry.bytes for result in results),
        voxels=sum(int(np.prod(row["shape_zyx"])) for row in rows),
        files_in=samples,
        files_used=samples,
        files_refused=0,
        series_accepted=samples,
        series_refused=0,
    )


def _id(kind: str, text: str) -> str:
    return hashlib.sha256(f"{kind} {text}".encode()).hexdigest()[:24]
