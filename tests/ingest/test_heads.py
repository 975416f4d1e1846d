"""Heads are seen by their skull; the header's word is a hint only."""

from dataclasses import replace

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest

from ingest.cli import main
from ingest.heads import MIN_EXTENT_MM, body_part_is_head, head_evidence, shows_head
from ingest.phantom import Torso, sample_torso
from ingest.reader import read_series
from ingest.scan import ScanConfig, scan
from ingest.testing import SeriesSpec, write_dicom_series
from ingest.volume import Volume
from shards.dataset import Dataset

SPL = np.array([[0, 0, -1.0, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def volume_of(hu, spacing):
    return Volume(hu=hu.astype(np.float32), affine=SPL @ np.diag([*spacing, 1.0]))


def paint_head(hu, spacing, top_mm, *, width=75.0, depth=92.0, height=120.0, inside=35.0):
    """A skull of 7 mm with a brain, under skin of 5 mm, its vertex at ``top_mm`` of the volume."""
    z, y, x = np.meshgrid(
        *[np.arange(n) * mm for n, mm in zip(hu.shape, spacing, strict=True)], indexing="ij"
    )
    middle = [(n - 1) * mm / 2 for n, mm in zip(hu.shape, spacing, strict=True)]
    z, y, x = z - (top_mm - height), y - middle[1], x - middle[2]
    for inset, value in ((0.0, 20.0), (5.0, 1100.0), (12.0, inside)):
        radii = (height - inset, depth - inset, width - inset)
        hu[(z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2 < 1] = value
    return hu


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (5.0, 0.7, 0.7), (1.0, 3.0, 3.0)])
def test_a_skull_is_a_head_whatever_the_grid(spacing):
    shape = tuple(int(side / mm) for side, mm in zip((200, 240, 220), spacing, strict=True))
    hu = paint_head(np.full(shape, -1000.0), spacing, 190.0)
    volume = volume_of(hu, spacing)
    assert shows_head(volume, stated=False)
    # The ellipse inside the bone, 63 x 80 mm: cells of 3 mm take some of its edge away.
    assert head_evidence(volume).enclosed_cm2 == pytest.approx(np.pi * 6.3 * 8.0, rel=0.12)
    turned = Volume(hu=volume.hu.transpose(1, 2, 0)[::-1], affine=volume.affine[:, [1, 2, 0, 3]])
    turned.affine[:, 0] *= -1  # stored as coronal planes, backwards
    assert shows_head(turned, stated=False)


def test_a_whole_body_scan_with_a_head_is_flagged_and_one_without_is_not():
    spacing, torso = (4.0, 3.0, 3.0), (90, 140, 140)
    affine = SPL @ np.diag([*spacing, 1.0])
    affine[:3, 3] = 210, 210, -180
    body = sample_torso(Torso(seed=3, contrast=True), affine, torso).astype(np.float64)
    air = np.full((60, 140, 140), -1000.0)
    head = paint_head(air.copy(), spacing, 200.0)
    with_head = volume_of(np.concatenate([body, head]), spacing)
    assert shows_head(with_head, stated=False)
    without = volume_of(np.concatenate([body, air]), spacing)
    evidence = head_evidence(without)
    assert evidence.extent_mm == 0
    assert evidence.enclosed_cm2 < 10


def test_what_bone_encloses_must_be_soft_tissue_and_long_enough():
    spacing = (3.0, 2.0, 2.0)
    empty = np.full((70, 110, 110), -1000.0)
    dry = volume_of(paint_head(empty.copy(), spacing, 200.0, inside=-1000.0), spacing)
    assert head_evidence(dry).extent_mm == 0
    assert not shows_head(dry, stated=False)
    assert shows_head(dry, stated=True)  # a dry skull: the header decides
    whole = volume_of(paint_head(empty.copy(), spacing, 200.0), spacing)
    vertex = replace(whole, hu=whole.hu[-24:])  # the upper 60 mm of a head
    assert shows_head(vertex, stated=False)
    sliver = replace(whole, hu=whole.hu[30:33])
    assert head_evidence(sliver).extent_mm < MIN_EXTENT_MM


@pytest.mark.parametrize(
    ("stated", "is_head"),
    [("HEAD", True), ("Head/Neck", True), ("BRAIN", True), ("SKULL", True), ("CHEST", False),
     ("", False), ("HEADACHE", False), ("FEMORALHEAD", False), ("WHOLEBODY", False)],
)  # fmt: skip
def test_body_parts(stated, is_head):
    assert body_part_is_head(stated) == is_head


def test_real_scans(ct_data, id_key):
    """(enclosed cm², mm of scan): what the module's docstring says was measured."""
    places = {
        "dcm_qa_ct": {(28, "STD+"): True, (28, "UB"): True, (30, "UB"): True},
        "lidc-idri": {(133, "STANDARD"): False},
        "acrin-flt-breast-013": {(49, "B10f"): False},
        "totalsegmentator": {(20, "Br38f/3"): False, (112, ""): False, (30, ""): False},
    }
    for place, expected in places.items():
        seen = {}
        found = scan([str(ct_data / place)], id_key, ScanConfig(min_slices=20))
        for series in (s for s in found.series if s.reason == "ok"):
            volume = read_series(series)
            evidence = head_evidence(volume)
            name = (series.n_slices, series.kernel)
            seen[name] = shows_head(volume, stated=series.head_stated)
            if name == (28, "STD+"):  # the only real head with a brain
                assert evidence.extent_mm == pytest.approx(100, abs=2)
                assert evidence.enclosed_cm2 == pytest.approx(181, abs=2)
                cut = replace(volume, hu=volume.hu[: -round(100 / 4)])
                assert shows_head(cut, stated=False)  # without its upper 100 mm
            else:
                assert evidence.extent_mm == 0
            if not expected[name]:
                assert evidence.enclosed_cm2 < 16
                assert not shows_head(volume, stated=True)  # a lie is seen through
        assert seen == expected


def test_heads_are_flagged_or_dropped(tmp_path):
    raw = tmp_path / "raw"
    spacing = (4.0, 3.0, 3.0)
    hu = paint_head(np.full((50, 80, 80), -1000.0), spacing, 190.0)
    hu += np.random.default_rng(0).normal(0, 5, hu.shape)
    raw.mkdir()
    image = nibabel.Nifti1Image(
        np.clip(hu, -1024, 3071).astype(np.int16).transpose(2, 1, 0),
        (SPL @ np.diag([*spacing, 1.0]))[:, [2, 1, 0, 3]],
    )
    image.to_filename(raw / "head.nii")
    chest = SeriesSpec(patient=1, slices=12, side=40, pixel_mm=8.0, gap_mm=5.0)
    write_dicom_series(raw / "chest", chest)
    flags = ("--spacing-mm", "6", "--workers", "1")
    assert main(["build-shards", str(raw), str(tmp_path / "keep"), *flags]) == 0
    flagged = {s.meta.source_kind: "head" in s.meta.flags for s in Dataset.open(tmp_path / "keep")}
    assert flagged == {"nifti": True, "dicom": False}
    assert main(["build-shards", str(raw), str(tmp_path / "drop"), *flags, "--heads", "drop"]) == 0
    rows = pq.read_table(tmp_path / "drop/series.parquet").to_pylist()
    assert {row["source_kind"]: row["reason"] for row in rows} == {"nifti": "head", "dicom": "ok"}
