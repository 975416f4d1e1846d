"""Segmentations of the computed torso: the same shapes on any grid, as NIfTI or DICOM SEG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Integer, Shaped, UInt8
from numpy import ndarray

from ingest.phantom import grid_points
from ingest.testing import uid

SHAPES = {
    1: ((58.0, 4.0, -30.0), (46.0, 52.0, 34.0)),
    2: ((-20.0, 26.0, 8.0), (40.0, 34.0, 30.0)),
    3: ((0.0, -50.0, -10.0), (18.0, 15.0, 60.0)),
}
"""Ellipsoids: RAS centre and radii in mm of each value, apart from each other."""
CODES = {1: ("10200004", "Liver"), 2: ("80891009", "Heart"), 3: ("421060004", "Vertebral column")}
"""SNOMED CT code and meaning of each value."""


def torso_labels(affine: Float64[ndarray, "4 4"], shape: Sequence[int]) -> UInt8[ndarray, "z y x"]:
    """Values 1 to 3 in `SHAPES` on a grid, (i, j, k, 1) to RAS mm by ``affine``."""
    points = grid_points(affine, shape)
    values: UInt8[ndarray, "z y x"] = np.zeros(tuple(shape), np.uint8)
    for value, (centre, radii) in SHAPES.items():
        distance = sum(
            ((p - np.float32(c)) / np.float32(r)) ** 2
            for p, c, r in zip(points, centre, radii, strict=True)
        )
        values[np.asarray(distance < 1)] = value
    return values


def write_nifti_labels(
    path: Path, values: Shaped[ndarray, "z y x"], affine_zyx: Float64[ndarray, "4 4"]
) -> None:
    """A NIfTI label map of ``values`` on (z, y, x)."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0), affine_zyx[:, [2, 1, 0, 3]])
    image.header.set_xyzt_units("mm")
    image.to_filename(path)


def write_seg(
    path: Path,
    images: Sequence[Path],
    values: Integer[ndarray, "n rows columns"],
    kind: str = "BINARY",
    **changes: Any,
) -> None:
    """A DICOM segmentation of ``values``, one plane an image, made by highdicom.

    Args:
        path: where to write it.
        images: the slices that are segmented, in the order of ``values``.
        values: labels; frames without any are left out, as most programs do.
        kind: ``BINARY``, ``FRACTIONAL`` or ``LABELMAP``.
        changes: DICOM attributes to set on the result.
    """
    import highdicom as hd
    import pydicom

    path.parent.mkdir(parents=True, exist_ok=True)
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"free text {number}",
            segmented_property_category=hd.sr.CodedConcept("123037004", "SCT", "Body structure"),
            segmented_property_type=hd.sr.CodedConcept(code, "SCT", meaning),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, (code, meaning) in CODES.items()
    ]
    seg = hd.seg.Segmentation(
        source_images=[pydicom.dcmread(image) for image in images],
        pixel_array=values.astype(np.float32 if kind == "FRACTIONAL" else np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues[kind],
        segment_descriptions=described if kind != "FRACTIONAL" else described[:1],
        series_instance_uid=uid("seg series", path.name),
        series_number=100,
        sop_instance_uid=uid("seg", path.name),
        instance_number=1,
        manufacturer="Computed phantom",
        manufacturer_model_name="Computed",
        software_versions="1",
        device_serial_number="1",
    )
    for name, value in changes.items():
        setattr(seg, name, value)
    seg.save_as(path)
