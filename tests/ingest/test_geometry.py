"""Geometry without files: tables, laws, and nibabel as the reference for orientations."""

import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ingest.errors import Reason
from ingest.geometry import (
    SPL_IN_RAS,
    is_oblique,
    is_orthogonal,
    orientation_code,
    spacing_of,
    spl_axes,
    unit_axes,
)
from ingest.prepare import to_spl
from ingest.stack import measure_stack

AXIAL = np.array([1.0, 0, 0, 0, 1, 0])
PIXEL = (0.7, 0.7)


def along_z(z: list[float], shift_per_mm: float = 0.0) -> np.ndarray:
    return np.array([(10.0, -20.0 + shift_per_mm * v, v) for v in z])


def steps(n: int, step: float) -> list[float]:
    return [k * step for k in range(n)]


TILT = np.tan(np.radians(18.5))
SIDEWAYS = np.array([[0, 0, 0]] * 3 + [[4, 0, 0]] * 3)
CASES = [
    # name, positions, geometry or reason of refusal
    ("regular", along_z(steps(10, 2.5)), "uniform"),
    ("reversed", along_z(steps(10, 2.5)[::-1]), "uniform"),
    # 1 % of 2.5 mm is 0.025
    ("within 1 %", along_z([0, 2.5, 5.02, 7.5, 10]), "uniform"),
    ("beyond 1 %", along_z([0, 2.5, 5.04, 7.5, 10]), "variable_spacing"),
    # thin slices: 0.01 mm counts, not 1 % of 0.4 mm
    ("thin, rounded to 0.01 mm", along_z([0, 0.41, 0.8, 1.21, 1.6]), "uniform"),
    # each step is within 1 % of the mean, but the middle is 0.3 of a voxel off the grid
    (
        "drift",
        along_z([*np.cumsum([0.0] + [1.0] * 70 + [1.0099] * 70).tolist()]),
        "variable_spacing",
    ),
    ("one missing", along_z([0, 5, 10, 20]), "missing_slices"),
    ("every second missing", along_z([0, 5, 15, 20, 30, 35]), "missing_slices"),
    # A gap of 3 spacings is bridged, one of 3.1 is not.
    ("two missing in a row", along_z([0, 5, 10, 25, 30]), "missing_slices"),
    ("too much missing", along_z([0, 5, 10, 25.5, 30.5]), Reason.MISSING_SLICES),
    ("two spacings", along_z([0, 4, 8, 9.08, 16, 23]), "variable_spacing"),
    ("two scans of unrelated steps", along_z([0, 3, 6, 10, 14]), "variable_spacing"),
    ("tilted", along_z(steps(20, 2.4), TILT), "tilted"),
    ("tilted and irregular", along_z([0, 4, 8, 9.08, 16, 23], TILT), "tilted_variable"),
    ("tilted and too much missing", along_z([0, 5, 10, 25.5], TILT), Reason.MISSING_SLICES),
    ("more than any gantry", along_z(steps(20, 2.4), 1.1), Reason.TILTED),
    # 0.1 degree over 48 mm is 0.08 mm: less than a quarter of a pixel
    ("rounding of the orientation", along_z(steps(20, 2.4), np.tan(np.radians(0.1))), "uniform"),
    ("one position", along_z([3.0, 3.0, 3.0]), Reason.TOO_FEW_SLICES),
    ("table moved sideways", along_z(steps(6, 2)) + SIDEWAYS, Reason.VARIABLE_SPACING),
]


@pytest.mark.parametrize(("positions", "found"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_verdict(positions: np.ndarray, found: Reason | str) -> None:
    stack = measure_stack(positions, AXIAL, PIXEL)
    accepted = not isinstance(found, Reason)
    assert stack.reason is (Reason.OK if accepted else found)
    assert (stack.affine is not None) == accepted
    if accepted:
        assert stack.geometry == found
    assert (stack.offsets_mm is not None) == (accepted and found != "uniform")


def test_grid_spacing_is_the_median_gap() -> None:
    def spacing(z: list[float]) -> float | None:
        return measure_stack(along_z(z), AXIAL, PIXEL).spacing_mm

    assert spacing([0, 5, 10, 20]) == 5
    # Half are 5 and half 10: a spacing that is there, not 7.5.
    assert spacing([0, 5, 10, 20, 30]) == 5
    assert spacing([0, 4, 8, 9.08, 16, 23]) == 4


def test_detail_names_the_numbers() -> None:
    assert "1 slice(s) missing at a spacing of 5.000 mm" in (
        measure_stack(along_z([0, 5, 10, 20]), AXIAL, PIXEL).detail
    )
    assert "18.5 degrees" in measure_stack(along_z(steps(9, 2.0), -TILT), AXIAL, PIXEL).detail


def test_repeated_positions_share_a_slice() -> None:
    stack = measure_stack(along_z([4, 0, 2, 2.005, 4, 0]), AXIAL, PIXEL)
    assert stack.slice_of.tolist() == [2, 0, 1, 1, 2, 0]
    assert (stack.n_slices, stack.repeated, stack.reason) == (3, True, Reason.OK)
    assert stack.spacing_mm == 2.0


def test_affine_by_hand() -> None:
    # Axial, LPS origin (10, -20, 0): RAS is (-10, 20, 0); columns run to L (-R), rows to P (-A).
    affine = measure_stack(along_z(steps(5, 2.5)), AXIAL, (0.6, 0.7)).affine
    expected = [[0, 0, -0.7, -10], [0, -0.6, 0, 20], [2.5, 0, 0, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(affine, expected)


@pytest.mark.parametrize(
    "orientation",
    [[1, 0, 0, 1, 0, 0], [2, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0.01, 1, 0]],
    ids=["parallel", "not unit", "zero", "not orthogonal"],
)
def test_no_orientation(orientation: list[float]) -> None:
    with pytest.raises(ValueError, match="orthonormal"):
        unit_axes(np.array(orientation, float))


rotations = st.tuples(*[st.floats(-180, 180)] * 3).map(
    lambda angles: Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
)


@settings(max_examples=60, deadline=None)
@given(
    rotation=rotations,
    n=st.integers(2, 40),
    spacing=st.floats(0.2, 10),
    rows=st.floats(0.3, 2),
    columns=st.floats(0.3, 2),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    data=st.data(),
)
def test_any_regular_stack(rotation, n, spacing, rows, columns, origin, data) -> None:
    """Whatever the orientation, spacing and order: each voxel is where DICOM's equation puts it."""
    along, down, normal = rotation.T
    truth = np.array(origin) + np.arange(n)[:, None] * spacing * normal
    order = data.draw(st.permutations(range(n)))
    orientation = np.concatenate([along, down])
    stack = measure_stack(truth[order], orientation, (rows, columns))
    assert stack.reason is Reason.OK
    assert stack.slice_of.tolist() == list(order)
    assert stack.spacing_mm == pytest.approx(spacing, rel=1e-6)
    k, j, i = n - 1, 7, 11
    # PS3.3 equation C.7.6.2.1-1, in LPS; RAS negates the first two.
    lps = truth[k] + along * columns * i + down * rows * j
    np.testing.assert_allclose(
        (stack.affine @ (k, j, i, 1))[:3], lps * (-1, -1, 1), rtol=0, atol=1e-5
    )
    assert spacing_of(stack.affine) == pytest.approx((spacing, rows, columns), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(5, 30), spacing=st.floats(0.5, 8))
def test_a_dropped_inner_slice_is_missed(data, n, spacing) -> None:
    gone = data.draw(st.integers(1, n - 2))
    z = [spacing * k for k in range(n) if k != gone]
    stack = measure_stack(along_z(z), AXIAL, PIXEL)
    assert (stack.reason, stack.geometry) == (Reason.OK, "missing_slices")
    assert stack.spacing_mm == pytest.approx(spacing, rel=1e-9)


def axis_affines() -> list[np.ndarray]:
    """All 48 ways to store a volume along the patient's axes."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = 0
            for axis in range(3):
                affine[order[axis], axis] = signs[axis] * (1.0 + axis)
            affine[:3, 3] = (11, 22, 33)
            found.append(affine)
    return found


@pytest.mark.parametrize("affine", axis_affines())
def test_orientation_agrees_with_nibabel(affine: np.ndarray) -> None:
    assert orientation_code(affine) == "".join(nibabel.aff2axcodes(affine))
    assert not is_oblique(affine)


@pytest.mark.parametrize("affine", axis_affines())
def test_to_spl_moves_no_voxel(affine: np.ndarray) -> None:
    hu = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    turned, moved = to_spl(hu, affine)
    assert "".join(nibabel.aff2axcodes(moved)) == "SPL"
    for index in np.ndindex(turned.shape):
        place = moved @ (*index, 1)
        source = np.rint(np.linalg.solve(affine, place)[:3]).astype(int)
        assert hu[tuple(source)] == turned[index]


@given(rotation=rotations)
@settings(max_examples=60, deadline=None)
def test_spl_axes_of_any_rotation(rotation: np.ndarray) -> None:
    affine = np.eye(4)
    affine[:3, :3] = rotation * (1.0, 2.0, 3.0)
    order, flips = spl_axes(affine)
    assert sorted(order) == [0, 1, 2]
    unit = SPL_IN_RAS @ (affine[:3, list(order)] / np.linalg.norm(affine[:3, list(order)], axis=0))
    # The chosen pairing is the best of all: its cosines sum to at least every other pairing's.
    best = sum(abs(unit[k, k]) for k in range(3))
    for other in itertools.permutations(range(3)):
        assert best >= sum(abs(unit[k, other[k]]) for k in range(3)) - 1e-9
    assert [bool(unit[k, k] < 0) for k in range(3)] == list(flips)


@pytest.mark.parametrize(("degrees", "oblique"), [(0.004, False), (0.02, True), (10, True)])
def test_oblique_threshold(degrees: float, oblique: bool) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("x", degrees, degrees=True).as_matrix() * (2, 1, 1)
    assert is_oblique(affine) is oblique
    assert is_orthogonal(affine)


def test_shear_is_not_orthogonal() -> None:
    affine = np.eye(4)
    affine[1, 0] = 0.01
    assert not is_orthogonal(affine)
    assert not is_orthogonal(np.diag([1.0, 0, 1, 1]))
    assert not is_orthogonal(np.full((4, 4), np.nan))
