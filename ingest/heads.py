"""Does a volume show a head? From the voxels, with the header's word as a hint.

A face can be reconstructed from a CT of the head, and BodyPartExamined lies both ways, so the skull
itself is looked for: an axial slice in which bone encloses 40 cm² or more of soft tissue. No other
part of the body does that, for ribs, pelvis and shoulders leave gaps of centimetres in any axial
slice, and the spinal canal encloses a few cm².

Measured, cm² of the largest enclosed area, and mm of scan with 40 cm² of soft tissue or more:
head with gantry tilt (GE) 181 and 100, head (InVesalius's Cranium) 156 and 50; chest (LIDC-IDRI) 10
and 0, torso (ACRIN) 7 and 0, abdomen (TotalSegmentator, DICOM and NIfTI) 15 and 0. With their upper
100 mm cut away the heads still have 16 and 22 mm, with 120 mm 0 and 18. Noise of 100 HU changes no
answer, of 150 HU the Cranium's. It takes 0.02 to 0.6 s of a core a volume.

What it does not see: a head cut off below the brain (face and neck only), a skull opened by surgery
or cut by the edge of the field of view, and a dry skull without content. There the header's word
decides, unless the cross-section is a torso's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64
from numpy import ndarray
from scipy import ndimage

from ingest.prepare import to_spl
from ingest.volume import Volume

HEAD = "head"
"""The flag."""
BODY_PARTS = {
    "HEAD", "BRAIN", "SKULL", "CRANIUM", "FACE", "FACIALBONES", "HEADNECK", "ORBIT", "ORBITS",
    "EYE", "SINUS", "SINUSES", "PARANASALSINUS", "PARANASALSINUSES", "NOSE", "EAR", "IAC", "TMJ",
    "MAXILLA", "MANDIBLE", "JAW", "TEMPORALBONE", "PETROUSBONE", "CEREBRALARTERIES",
}  # fmt: skip
"""Values of BodyPartExamined (letters only) that name a part of the head."""
BONE_HU, BODY_HU, AIR_HU = 200, -300, -200
STEP_MM = 4.0
"""Slices looked at are this far apart, about."""
CELL_MM = 3.0
"""Bone is looked for in cells of this side, about, so that sutures and thin bone do not leak."""
SAMPLE_MM = 1.5
MIN_AREA_CM2 = 40.0
"""Skulls measured 156 and 181 cm² at their widest, torsos 15 at most."""
MIN_EXTENT_MM = 15.0
SOFT_TISSUE_HU = (-50.0, 130.0)
"""Mean of what is enclosed: brain has 20 to 40, with contrast agent and partial volume more."""
MAX_AIR_SHARE = 0.2
MAX_HEAD_CM2 = 400.0
"""Median cross-section above which a stated head is none: heads measured 237 and 266, torsos 580 to
872."""


@dataclass(frozen=True, kw_only=True)
class HeadEvidence:
    """What the voxels show.

    Attributes:
        enclosed_cm2: largest soft-tissue area that bone encloses in one axial slice.
        extent_mm: of the scan where that is ``MIN_AREA_CM2`` or more.
        body_cm2: median cross-section of the body.
    """

    enclosed_cm2: float
    extent_mm: float
    body_cm2: float


def body_part_is_head(stated: str) -> bool:
    """Whether a BodyPartExamined names a part of the head.

    >>> body_part_is_head("HEAD/NECK"), body_part_is_head("CHEST")
    (True, False)
    """
    return "".join(filter(str.isalpha, stated.upper())) in BODY_PARTS


def shows_head(volume: Volume, *, stated: bool) -> bool:
    """Whether a head is in the volume.

    Args:
        volume: as read, before any resampling, so that the answer depends on no setting.
        stated: the header names a part of the head.
    """
    evidence = head_evidence(volume)
    if evidence.extent_mm >= MIN_EXTENT_MM:
        return True
    return stated and evidence.body_cm2 <= MAX_HEAD_CM2


def head_evidence(volume: Volume) -> HeadEvidence:
    """Look for the skull on a coarse grid of axial slices."""
    hu, affine = to_spl(volume.hu, volume.affine)
    dz, dy, dx = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    step = max(1, round(STEP_MM / dz))
    stride = (max(1, int(SAMPLE_MM / dy)), max(1, int(SAMPLE_MM / dx)))
    planes = np.ascontiguousarray(hu[::step, :: stride[0], :: stride[1]])
    mm = (dy * stride[0], dx * stride[1])
    pool = (max(1, round(CELL_MM / mm[0])), max(1, round(CELL_MM / mm[1])))
    cell_cm2 = mm[0] * pool[0] * mm[1] * pool[1] / 100
    densest, mean = _cells(planes, pool)
    bone = densest > BONE_HU
    largest = np.zeros(len(planes))
    for slices, area, content, air in zip(*_enclosed(bone, mean), strict=True):
        low, high = SOFT_TISSUE_HU
        if low < content < high and air <= MAX_AIR_SHARE:
            largest[slices] = max(largest[slices], area * cell_cm2)
    body = _outside(mean < BODY_HU)
    return HeadEvidence(
        enclosed_cm2=float(largest.max()),
        extent_mm=float(np.count_nonzero(largest >= MIN_AREA_CM2) * step * dz),
        body_cm2=float(np.median(np.count_nonzero(~body, axis=(1, 2)))) * cell_cm2,
    )


def _cells(
    planes: Float32[ndarray, "z y x"], pool: tuple[int, int]
) -> tuple[Float32[ndarray, "z _y _x"], Float32[ndarray, "z _y _x"]]:
    """Largest value and mean of each cell of ``pool`` rows and columns; air fills the far edges."""
    _, y, x = planes.shape
    padding = ((0, 0), (0, -y % pool[0]), (0, -x % pool[1]))
    padded = np.pad(planes, padding, constant_values=-1024)
    # Whole planes of every n-th pixel: numpy is five times slower along short inner axes.
    parts = [padded[:, i :: pool[0], j :: pool[1]] for i in range(pool[0]) for j in range(pool[1])]
    largest, total = parts[0].copy(), parts[0].copy()
    for part in parts[1:]:
        np.maximum(largest, part, out=largest)
        total += part
    total /= np.float32(len(parts))
    return largest, total


def _regions(free: Bool[ndarray, "z y x"]) -> tuple[ndarray, int, ndarray]:
    """Regions of each slice by itself: labels, their number, and which reach the slice's edge.

    A frame of free cells is put around each slice first, so that edges are one region.
    """
    framed = np.pad(free, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, n = ndimage.label(framed, in_plane)
    at_edge = np.zeros(n + 1, bool)
    at_edge[labels[:, 0, 0]] = True
    return labels, n, at_edge


def _outside(free: Bool[ndarray, "z y x"]) -> Bool[ndarray, "z y x"]:
    """What is free and reaches the edge of its slice."""
    labels, _, at_edge = _regions(free)
    outside: Bool[ndarray, "z y x"] = at_edge[labels[:, 1:-1, 1:-1]]
    return outside


def _enclosed(
    bone: Bool[ndarray, "z y x"], mean: Float32[ndarray, "z y x"]
) -> tuple[ndarray, Float64[ndarray, " n"], Float64[ndarray, " n"], Float64[ndarray, " n"]]:
    """Of each region that bone encloses: its slice, cells, mean HU and share of air."""
    labels, n, at_edge = _regions(~bone)
    inner = labels[:, 1:-1, 1:-1]
    cells = np.bincount(inner.ravel(), minlength=n + 1).astype(np.float64)
    total = np.bincount(inner.ravel(), mean.ravel(), minlength=n + 1)
    air = np.bincount(inner.ravel(), (mean < AIR_HU).ravel(), minlength=n + 1)
    first = np.zeros(n + 1, np.int64)
    first[inner.ravel()[::-1]] = np.repeat(np.arange(len(inner)), inner[0].size)[::-1]
    numbers = np.flatnonzero(~at_edge & (cells > 0))
    numbers = numbers[numbers > 0]
    size = cells[numbers]
    return first[numbers], size, total[numbers] / size, air[numbers] / size
