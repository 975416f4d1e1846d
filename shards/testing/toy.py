"""Small valid datasets straight through the writer, for tests and benchmarks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float64, Int16, Integer, UInt8
from numpy import ndarray

from shards.dataset import Dataset
from shards.digest import content_sha256, label_sha256
from shards.labels import LabelVolume, count_values
from shards.schema import (
    CHUNKS,
    HU_MAX,
    HU_MIN,
    ORIENTATION,
    REPORT,
    SERIES,
    Contract,
    HuStats,
    LabelMeta,
    LabelValue,
    Manifest,
    MustMatch,
    Original,
    Recorded,
    SampleMeta,
    Totals,
)
from shards.tables import Row
from shards.writer import ShardResult, ShardWriter, publish

SPACING_MM = 1.5
TOY_SHAPE = (70, 80, 90)
"""Two chunks of 64 along each axis, none of them full."""
Triple = tuple[int, int, int]


def toy_volume(shape: Triple, seed: int) -> Int16[ndarray, "z y x"]:
    """Tissue-like HU with noise in an ellipsoid, -1024 outside: compresses like a body in air."""
    rng = np.random.default_rng(seed)
    place = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij")
    waves = sum(np.cos(rng.uniform(2, 9) * axis + rng.uniform(0, 6)) for axis in place)
    hu = 40 + 150 * np.asarray(waves) + rng.normal(0, 12, shape)
    inside = sum(axis**2 for axis in place) < rng.uniform(0.7, 0.95)
    return np.where(inside, np.clip(np.rint(hu), HU_MIN, HU_MAX), HU_MIN).astype(np.int16)


def toy_affine(shape: Triple) -> Float64[ndarray, "4 4"]:
    """(z, y, x) toward S, P, L to RAS mm, the volume's centre at the origin."""
    affine = np.zeros((4, 4))
    # RAS rows: right is -x (x runs to the left), anterior is -y, superior is z.
    affine[0, 2], affine[1, 1], affine[2, 0], affine[3, 3] = -SPACING_MM, -SPACING_MM, SPACING_MM, 1
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def toy_meta(key: str, hu: Int16[ndarray, "z y x"]) -> SampleMeta:
    """A true record of ``hu``: shape, statistics and digest are its own."""
    z, y, x = hu.shape
    spacing = (SPACING_MM, SPACING_MM, SPACING_MM)
    affine = toy_affine((z, y, x))
    p01, p50, p99 = np.percentile(hu, [1, 50, 99]).tolist()
    return SampleMeta(
        key=key,
        subject_id=_toy_id("subject", key),
        study_id=_toy_id("study", key),
        source="toy",
        source_kind="nifti",
        modality="CT",
        shape_zyx=(z, y, x),
        spacing_zyx_mm=spacing,
        affine=tuple(tuple(row) for row in affine.tolist()),
        original=Original(
            shape_zyx=(z, y, x),
            spacing_zyx_mm=spacing,
            orientation=ORIENTATION,
            geometry="uniform",
        ),
        hu=HuStats(
            min=int(hu.min()),
            max=int(hu.max()),
            mean=float(hu.mean()),
            p01=p01,
            p50=p50,
            p99=p99,
            clipped_fraction=0.0,
        ),
        body_box_zyx=((0, z), (0, y), (0, x)),
        slice_mm=SPACING_MM,
        kernel="",
        contrast=None,
        kvp=None,
        flags=(),
        content_sha256=content_sha256(hu, affine),
    )


def toy_labels(hu: Int16[ndarray, "z y x"]) -> UInt8[ndarray, "z y x"]:
    """Three labels by HU, in the half of the volume that is low in z; 0 elsewhere."""
    values: UInt8[ndarray, "z y x"] = np.digitize(hu, [-20, 40, 100]).astype(np.uint8)
    values[hu.shape[0] // 2 :] = 0
    return values


def toy_label(meta: SampleMeta, values: Integer[ndarray, "z y x"]) -> LabelVolume:
    """``values`` with a true record, as the labels of the sample that ``meta`` describes."""
    counts = count_values(values)
    return LabelVolume(
        meta=LabelMeta(
            key=meta.key,
            source_kind="nifti",
            labels=tuple(
                LabelValue(value=v, name=f"part {v}", code="", scheme="", voxels=int(counts[v]))
                for v in np.flatnonzero(counts).tolist()
                if v
            ),
            content_sha256=label_sha256(values, np.array(meta.affine)),
        ),
        values=values,
    )


def toy_key(number: int) -> str:
    """Key of the toy sample ``number``."""
    return f"toy-{number:04d}"


def write_toy_dataset(
    folder: Path,
    n_samples: int,
    shape: Triple = TOY_SHAPE,
    per_shard: int = 4,
    profile: str = "balanced",
    seed: int = 0,
) -> Path:
    """Write and publish a dataset of toy volumes; sample ``n`` is seeded ``seed + n``.

    Returns:
        ``folder``, made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    volumes = {toy_key(n): toy_volume(shape, seed + n) for n in range(n_samples)}
    return write_dataset(folder, volumes, per_shard=per_shard, profile=profile)


def write_dataset(
    folder: Path,
    volumes: dict[str, Int16[ndarray, "_z _y _x"]],
    per_shard: int = 4,
    profile: str = "balanced",
    labels: Mapping[str, Integer[ndarray, "_z _y _x"]] | None = None,
) -> Path:
    """Write and publish given volumes, by key, as a dataset; ``folder`` again.

    ``labels`` are label volumes of some of them.
    """
    keys = list(volumes)
    labels = labels or {}
    results = []
    for number, first in enumerate(range(0, len(keys), per_shard)):
        with ShardWriter(folder, number, profile) as writer:
            for key in keys[first : first + per_shard]:
                meta = toy_meta(key, volumes[key])
                label = toy_label(meta, labels[key]) if key in labels else None
                writer.add(meta, volumes[key], label)
            results.append(writer.close())
    contract = Contract(
        must_match=MustMatch(),
        recorded=Recorded(resampler="none", body_crop=False, profile=profile),
    )
    publish(
        folder,
        results,
        series_rows=[_series_row(key, hu.shape) for key, hu in volumes.items()],
        report_html=b"<!doctype html><title>toy</title>\n",
        contract=contract,
        build_sha256=hashlib.sha256("\n".join(keys).encode()).hexdigest(),
        id_key_fingerprint="toy",
        totals=_totals(results),
    )
    return folder


def _toy_id(kind: str, key: str) -> str:
    return hashlib.sha256(f"{kind} {key}".encode()).hexdigest()[:24]


def _series_row(key: str, shape: tuple[int, ...]) -> Row:
    return {
        "series_id": _toy_id("series", key),
        "source_kind": "nifti",
        "verdict": "accepted",
        "reason": "ok",
        "detail": "",
        "n_files": 1,
        "n_slices": shape[0],
        "key": key,
        "modality": "CT",
        "geometry": "uniform",
        "shape_zyx": list(shape),
        "spacing_zyx_mm": [SPACING_MM] * 3,
        "flags": [],
    }


def _totals(results: list[ShardResult]) -> Totals:
    rows = [row for result in results for row in result.index_rows]
    return Totals(
        samples=len(rows),
        trainable=sum(row["trainable"] for row in rows),
        shard_bytes=sum(result.entry.bytes for result in results),
        voxels=sum(int(np.prod(row["shape_zyx"])) for row in rows),
        files_in=len(rows),
        files_used=len(rows),
        files_refused=0,
        series_accepted=len(rows),
        series_refused=0,
    )


def withdraw(folder: Path, keys: Sequence[str]) -> Manifest:
    """Publish the toy dataset in ``folder`` anew as its next generation, with ``keys`` tombstoned.

    A plain writer for tests of the format; ``ingest forget`` does it safely.
    """
    dataset = Dataset.open(folder)
    before = dataset.manifest
    chunks = pq.read_table(folder / CHUNKS).to_pylist()
    results = []
    for entry in before.shards:
        live = [r for r in dataset.index.to_pylist() if r["shard"] == entry.name]
        live = [row for row in live if row["key"] not in keys]
        kept = {row["key"] for row in live}
        rows = [row for row in chunks if row["key"] in kept]
        results.append(ShardResult(entry=entry, index_rows=live, chunk_rows=rows))
    series = pq.read_table(folder / SERIES).to_pylist()
    for row in series:
        if row["key"] in keys:
            row |= {"verdict": "refused", "reason": "withdrawn", "key": None}
    refused = sum(row["verdict"] == "refused" for row in series)
    used = len(series) - refused
    return publish(
        folder,
        results,
        series_rows=series,
        report_html=(folder / REPORT).read_bytes(),
        contract=before.contract,
        build_sha256=before.build_sha256,
        id_key_fingerprint=before.id_key_fingerprint,
        totals=replace(
            _totals(results),
            files_in=len(series),
            files_used=used,
            files_refused=refused,
            series_accepted=used,
            series_refused=refused,
        ),
        generation=before.generation + 1,
        tombstones=[*before.tombstones, *keys],
    )
