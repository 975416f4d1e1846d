"""A computed torso: CT-like Hounsfield units as a function of millimetres.

Every organ is an ellipsoid, a tube or a shell with a soft edge, so the torso can be sampled on any
grid in any orientation. Only sums, products, square roots and floors are used: IEEE rounds them
alike on every CPU, which lets a golden file be rebuilt anywhere. Positions are RAS millimetres;
S = 0 is near the top of the diaphragm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int16
from numpy import ndarray

from shards import rng

EDGE_MM = 1.5
"""Width over which one tissue gives way to the next, as a scanner's blur would do."""
NOISE_PITCH_MM = 3.0
"""Lattice pitch of the noise: what makes neighbouring voxels alike."""
NOISE_SIDE = 32
"""The noise repeats after this many lattice steps."""
_ANATOMY, _NOISE = 101, 102
"""Streams of the counter generator, apart from those of training."""

Points = tuple[ndarray, ndarray, ndarray]
"""R, A and S of every voxel in mm; axes of length one broadcast."""


@dataclass(frozen=True, kw_only=True)
class Torso:
    """One person: a seed, and whether the blood carries contrast agent."""

    seed: int
    contrast: bool = False
    noise_hu: float = 14.0

    @property
    def build(self) -> Float64[ndarray, " 40"]:
        """Numbers in [0, 1) that set size and organ positions."""
        return rng.uniforms(self.seed, _ANATOMY, 0, 0, 40)


def sample_torso(
    torso: Torso, affine: Float64[ndarray, "4 4"], shape: Sequence[int]
) -> Int16[ndarray, "z y x"]:
    """HU of ``torso`` on a grid.

    Args:
        torso: who.
        affine: array index (i, j, k, 1) to RAS mm.
        shape: length of each array axis.
    """
    points = grid_points(affine, shape)
    hu = np.full(tuple(shape), -1000.0, np.float32)
    _paint_trunk(hu, torso, points)
    _paint_chest(hu, torso, points)
    _paint_abdomen(hu, torso, points)
    _paint_spine(hu, torso, points)
    _paint_table(hu, points)
    # Air is quieter than tissue, as it is behind less of the body.
    hu += _noise(torso, points) * np.where(hu < -950, np.float32(0.4), np.float32(1))
    rounded: Int16[ndarray, "z y x"] = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    return rounded


def grid_points(affine: Float64[ndarray, "4 4"], shape: Sequence[int]) -> Points:
    """RAS mm of every voxel; array axes that do not move a coordinate keep length one in it."""
    axes = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij", sparse=True)

    def coordinate(row: Float64[ndarray, " 4"]) -> ndarray:
        moving = [c * axis for c, axis in zip(row[:3], axes, strict=True) if c != 0]
        total: ndarray = sum(moving, start=np.full((1, 1, 1), row[3]))
        return total.astype(np.float32)

    r, a, s = (coordinate(row) for row in np.asarray(affine, np.float64)[:3])
    return r, a, s


def _blend(hu: ndarray, inside: ndarray, value: float | ndarray) -> None:
    """Paint ``value`` in place, in the proportion that ``inside`` (0 to 1) says."""
    hu += inside * (value - hu)


def _soft(depth_mm: ndarray) -> ndarray:
    """Depth below a surface to a share of tissue: 1 well inside, 0 well outside."""
    share: ndarray = np.clip(depth_mm / np.float32(EDGE_MM) + np.float32(0.5), 0, 1)
    return share


def _ellipsoid(points: Points, centre: Sequence[float], radii: Sequence[float]) -> ndarray:
    """Share of each voxel inside an ellipsoid; a radius of ``inf`` makes it a cylinder."""
    squares = [
        ((p - np.float32(c)) / np.float32(r)) ** 2
        for p, c, r in zip(points, centre, radii, strict=True)
        if np.isfinite(r)
    ]
    smallest = min(r for r in radii if np.isfinite(r))
    return _soft((1 - np.sqrt(sum(squares[1:], start=squares[0]))) * np.float32(smallest))


def _tube(points: Points, start: Sequence[float], end: Sequence[float], radius: float) -> ndarray:
    """Share of each voxel inside a round tube with round ends, from ``start`` to ``end``."""
    along = [e - s for s, e in zip(start, end, strict=True)]
    offsets = [p - np.float32(s) for p, s in zip(points, start, strict=True)]
    length2 = sum(a * a for a in along)
    scaled = [o * np.float32(a / length2) for o, a in zip(offsets, along, strict=True)]
    t = np.clip(scaled[0] + scaled[1] + scaled[2], 0, 1)
    gaps = [(o - t * np.float32(a)) ** 2 for o, a in zip(offsets, along, strict=True)]
    return _soft(np.float32(radius) - np.sqrt(gaps[0] + gaps[1] + gaps[2]))


def _trunk_radii(torso: Torso) -> tuple[float, float]:
    """Half width and half depth of the trunk, mm."""
    u = torso.build
    return float(136 + 16 * u[0]), float(92 + 12 * u[1])


def _paint_trunk(hu: ndarray, torso: Torso, points: Points) -> None:
    """Skin, fat, muscle, ribs and breastbone."""
    width, depth = _trunk_radii(torso)
    fat = float(9 + 8 * torso.build[2])
    for inset, value in ((0.0, 35.0), (2.5, -105.0), (2.5 + fat, 52.0)):
        _blend(hu, _ellipsoid(points, (0, 0, 0), (width - inset, depth - inset, np.inf)), value)
    r, a, s = points
    outer = (width - fat - 7, depth - fat - 7)
    wall = _ellipsoid(points, (0, 0, 0), (*outer, np.inf))
    cavity = _ellipsoid(points, (0, 0, 0), (outer[0] - 7, outer[1] - 7, np.inf))
    # Ribs run down toward the front: rings of a tilted stack, 25 mm apart and about 11 mm high.
    height = (s + np.float32(0.45) * a) / np.float32(25)
    from_ring = np.abs(height - np.floor(height) - np.float32(0.5)) * np.float32(25)
    rib = _soft(np.float32(5.5) - from_ring) * _soft((s + 75 + np.float32(0.3) * np.abs(r)) / 2)
    _blend(hu, wall * (1 - cavity) * rib, 480.0)
    sternum = _ellipsoid(points, (0, outer[1] - 3, 75), (16, 6, 75))
    _blend(hu, sternum, 320.0)


def _paint_chest(hu: ndarray, torso: Torso, points: Points) -> None:
    """Lungs with vessels, mediastinum, heart, aorta, windpipe."""
    u = torso.build
    width, depth = _trunk_radii(torso)
    lung_radii = (width * 0.37, depth * 0.68, float(112 + 16 * u[4]))
    blood = 190.0 if torso.contrast else 42.0
    for side in (1, -1):
        centre = (side * width * 0.43, 2.0, float(40 + 10 * u[5]))
        lung = _ellipsoid(points, centre, lung_radii)
        _blend(hu, lung, float(-870 + 30 * u[6]))
        for n in range(9):
            v = u[8 + n]
            reach = (0.75 - 0.35 * abs(n % 3 - 1), (n % 3 - 1) * 0.6, (n // 3 - 1) * 0.65 + 0.3 * v)
            tip = [
                c + side_ * k * x
                for c, side_, k, x in zip(centre, (side, 1, 1), reach, lung_radii, strict=True)
            ]
            vessel = _tube(points, (side * 24, -5, 42), tip, float(2.0 + 1.6 * v))
            _blend(hu, vessel * lung, blood)
    heart = (float(-24 - 8 * u[20]), float(24 + 6 * u[21]), float(28 + 8 * u[22]))
    _blend(hu, _ellipsoid(points, (-4, 6, 80), (26, 34, 90)), 30.0)
    _blend(hu, _ellipsoid(points, heart, (46, 39, 44)), 50.0)
    _blend(hu, _ellipsoid(points, (heart[0] - 8, heart[1], heart[2]), (28, 24, 28)), blood)
    for start, end in (
        ((-25, -23, -260), (-25, -23, 95)),
        ((-25, -23, 95), (10, 18, 105)),
        ((10, 18, 105), heart),
    ):
        _blend(hu, _tube(points, start, end, 12.0), blood)
    for start, end, bore in (
        ((0, -12, 70), (0, -4, 260), 8.5),
        ((0, -12, 70), (34, -10, 48), 6),
        ((0, -12, 70), (-34, -10, 46), 6),
    ):
        _blend(hu, _tube(points, start, end, bore), -985.0)


def _paint_abdomen(hu: ndarray, torso: Torso, points: Points) -> None:
    """Peritoneal fat under the lungs, liver, stomach with its air bubble, spleen, kidneys."""
    u = torso.build
    width, depth = _trunk_radii(torso)
    boost = 45.0 if torso.contrast else 0.0
    liver = (width * 0.36, 6.0, float(-58 + 8 * u[24]))
    stomach = (-width * 0.36, 22.0, float(-62 + 8 * u[25]))
    spleen = (-width * 0.56, -28.0, float(-62 + 6 * u[26]))
    _blend(hu, _ellipsoid(points, (0, 8, -135), (width * 0.74, depth * 0.66, 85)), -95.0)
    _blend(hu, _ellipsoid(points, liver, (width * 0.46, depth * 0.66, 72)), 58.0 + boost)
    _blend(hu, _ellipsoid(points, (0.0, 26.0, -48), (width * 0.4, depth * 0.36, 34)), 58.0 + boost)
    _blend(hu, _ellipsoid(points, (width * 0.3, 40, -84), (14, 20, 26)), 8.0)
    _blend(hu, _ellipsoid(points, stomach, (width * 0.3, depth * 0.42, 52)), 24.0)
    # Lying on the back, gas gathers at the front.
    bubble = _ellipsoid(points, stomach, (width * 0.26, depth * 0.37, 46))
    _blend(hu, bubble * _soft(points[1] - np.float32(stomach[1] + 10)), -960.0)
    _blend(hu, _ellipsoid(points, spleen, (26, 32, 44)), 52.0 + boost)
    for side in (1, -1):
        kidney = (side * 56.0, -40.0, float(-128 + 8 * u[27]))
        _blend(hu, _ellipsoid(points, kidney, (23, 20, 48)), 34.0 + 3 * boost)
        _blend(hu, _ellipsoid(points, kidney, (9, 8, 26)), -60.0)


def _paint_spine(hu: ndarray, torso: Torso, points: Points) -> None:
    """Vertebral bodies with a dense rim, discs between them, canal, arch and spinous process."""
    back = -_trunk_radii(torso)[1] * 0.5
    s = points[2]
    pitch = np.float32(27 + 3 * torso.build[30])
    height = s / pitch
    into = np.abs(height - np.floor(height) - np.float32(0.5)) * pitch
    bone = _soft(pitch * np.float32(0.5) - 4 - into)
    _blend(hu, _ellipsoid(points, (0, back - 22, 0), (26, 12, np.inf)) * bone, 380.0)
    _blend(hu, _ellipsoid(points, (0, back - 31, 0), (4.5, 9, np.inf)) * bone, 420.0)
    body = _ellipsoid(points, (0, back, 0), (20, 16, np.inf))
    _blend(hu, body, 85.0)
    _blend(hu, body * bone, 620.0)
    marrow = _ellipsoid(points, (0, back, 0), (17.5, 13.5, np.inf))
    _blend(hu, marrow * _soft(pitch * np.float32(0.5) - 6 - into), 190.0)
    _blend(hu, _ellipsoid(points, (0, back - 22, 0), (9, 8, np.inf)), 28.0)


def _paint_table(hu: ndarray, points: Points) -> None:
    """A curved, thin-walled couch below the back, apart from the body."""
    r, a, _ = points
    dip = r * r * np.float32(1 / 900)
    depth = -a - np.float32(128) + dip
    shell = _soft(np.float32(2) - np.abs(depth)) * _soft(np.float32(150) - np.abs(r))
    _blend(hu, shell * np.ones_like(hu), -350.0)


def _noise(torso: Torso, points: Points) -> ndarray:
    """Trilinear interpolation of a periodic lattice of counter-generated values, HU."""
    values = rng.uniforms(torso.seed, _NOISE, 0, 0, NOISE_SIDE**3).astype(np.float32)
    # A uniform value has a deviation of 0.29, and interpolation takes about half of it away.
    lattice = ((values - np.float32(0.5)) * np.float32(torso.noise_hu * 6)).reshape(
        (NOISE_SIDE,) * 3
    )
    cells, shares = [], []
    for p in points:
        steps = p / np.float32(NOISE_PITCH_MM)
        low = np.floor(steps)
        cells.append(low.astype(np.int64) % NOISE_SIDE)
        shares.append(steps - low)
    total = np.zeros(np.broadcast_shapes(*(p.shape for p in points)), np.float32)
    for corner in np.ndindex(2, 2, 2):
        index = tuple((c + k) % NOISE_SIDE for c, k in zip(cells, corner, strict=True))
        weight = [f if k else 1 - f for f, k in zip(shares, corner, strict=True)]
        total += lattice[index] * (weight[0] * weight[1] * weight[2])
    return total
