"""Laws of the stack geometry: verdict and grid as constructed, whatever the order and the frame."""

import math
from dataclasses import dataclass

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ingest.errors import Reason
from ingest.geometry import spacing_of
from ingest.regrid import plan_regridding, regrid
from ingest.stack import Stack, measure_stack

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
ROWS, COLUMNS = 12, 10


@dataclass(frozen=True)
class Built:
    """A stack made to order, and what has to be said of it."""

    positions: np.ndarray
    orientation: np.ndarray
    pixel: tuple[float, float]
    travel: np.ndarray
    geometry: str | Reason
    spacing: float

    @property
    def accepted(self) -> bool:
        return not isinstance(self.geometry, Reason)

    def measure(self, order: list[int] | None = None) -> Stack:
        places = self.positions if order is None else self.positions[order]
        return measure_stack(places, self.orientation, self.pixel)


angles = st.floats(-180, 180, allow_nan=False)
rotations = st.one_of(
    st.sampled_from([np.eye(3), np.eye(3)[[1, 2, 0]], np.diag([-1.0, 1, -1])]),
    st.tuples(angles, angles, angles).map(
        lambda degrees: Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    ),
)


@st.composite
def gaps_of(draw: st.DrawFn, spacing: float) -> tuple[np.ndarray, str | Reason]:
    """Distances between neighbours, and the verdict that they were made for."""
    n = draw(st.integers(6, 24))
    kind = draw(st.sampled_from(["even", "missing", "uneven", "torn"]))
    steps = np.full(n - 1, spacing)
    at = draw(st.lists(st.integers(0, n - 2), min_size=1, max_size=(n - 2) // 3, unique=True))
    if kind == "even":
        return steps, ""
    if kind == "missing":
        steps[at] *= draw(st.sampled_from([2.0, 3.0]))
        return steps, "missing_slices"
    if kind == "torn":
        steps[at] *= draw(st.floats(3.1, 40))
        return steps, Reason.MISSING_SLICES
    steps[at] *= draw(st.floats(1.15, 1.85))
    return steps, "variable_spacing"


@st.composite
def stacks(draw: st.DrawFn, refused: bool = True) -> Built:
    """Any orientation, spacing, lean of the gantry and kind of gaps."""
    spacing = draw(st.floats(0.4, 6))
    pixel = (draw(st.floats(0.3, 2)), draw(st.floats(0.3, 2)))
    steps, geometry = draw(gaps_of(spacing))
    travel = np.concatenate([[0.0], np.cumsum(steps)])
    along, down, normal = draw(rotations).T
    degrees = draw(st.sampled_from([0.0, 0.0, 10.0, -18.5, 30.0, 44.0, 46.0, 60.0]))
    heading = draw(st.floats(0, 6.2))
    lean = math.tan(math.radians(degrees)) * np.array([math.sin(heading), math.cos(heading)])
    # Between a quarter of a pixel and none lies what counts as none.
    assume(degrees == 0 or abs(lean).max() * travel[-1] > 0.3 * min(pixel))
    if abs(degrees) > 45:
        geometry = Reason.TILTED
    elif degrees and not isinstance(geometry, Reason):
        geometry = "tilted_variable" if geometry else "tilted"
    assume(refused or not isinstance(geometry, Reason))
    origin = np.array(draw(st.tuples(*[st.floats(-300, 300)] * 3)))
    positions = origin + travel[:, None] * (normal + lean[0] * along + lean[1] * down)
    return Built(positions, np.concatenate([along, down]), pixel, travel, geometry, spacing)


def same_kind(geometry: str, expected: str) -> bool:
    """An even stack is `uniform` or `oblique`: which one is a matter of the patient's axes."""
    return geometry in ("uniform", "oblique") if expected == "" else geometry == expected


@settings(max_examples=150, deadline=None)
@given(built=stacks())
def test_verdict_and_grid_are_as_constructed(built: Built) -> None:
    stack = built.measure()
    assert stack.slice_of.tolist() == list(range(len(built.travel)))
    if not built.accepted:
        assert (stack.reason, stack.affine) == (built.geometry, None)
        return
    assert stack.reason is Reason.OK
    assert same_kind(stack.geometry, built.geometry)
    # The median gap: every kind of gap here leaves more than half of them as they were.
    assert stack.spacing_mm is not None
    assert abs(stack.spacing_mm - built.spacing) <= 1e-6 * built.spacing
    np.testing.assert_allclose(spacing_of(stack.affine), (built.spacing, *built.pixel), rtol=1e-6)
    # The first pixel of the first slice is where the file says (PS3.3 C.7.6.2.1-1).
    np.testing.assert_allclose(
        stack.affine[:3, 3], built.positions[0] * LPS_TO_RAS, rtol=0, atol=1e-6
    )


@settings(max_examples=80, deadline=None)
@given(built=stacks(), data=st.data())
def test_order_of_files_does_not_matter(built: Built, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(built.travel))))
    stack, other = built.measure(), built.measure(list(order))
    assert other.slice_of.tolist() == list(order)
    for name in ("reason", "detail", "geometry", "n_slices", "spacing_mm"):
        assert getattr(other, name) == getattr(stack, name)
    for name in ("affine", "offsets_mm"):
        one, two = getattr(stack, name), getattr(other, name)
        assert (one is None) == (two is None)
        if one is not None:
            np.testing.assert_array_equal(one, two)


@settings(max_examples=80, deadline=None)
@given(built=stacks(), turn=rotations, shift=st.tuples(*[st.floats(-200, 200)] * 3))
def test_a_patient_who_lies_otherwise_is_judged_alike(built: Built, turn, shift) -> None:
    """A rigid motion moves the grid with it, and nothing else."""
    stack = built.measure()
    moved = measure_stack(
        built.positions @ turn.T + shift,
        np.concatenate([turn @ built.orientation[:3], turn @ built.orientation[3:]]),
        built.pixel,
    )
    assert (moved.reason, moved.n_slices) == (stack.reason, stack.n_slices)
    assert moved.slice_of.tolist() == stack.slice_of.tolist()
    if stack.affine is None:
        return
    assert same_kind(moved.geometry, built.geometry)
    assert stack.geometry in (moved.geometry, "uniform", "oblique")
    motion = np.eye(4)
    motion[:3, :3] = LPS_TO_RAS[:, None] * turn * LPS_TO_RAS
    motion[:3, 3] = np.array(shift) * LPS_TO_RAS
    np.testing.assert_allclose(moved.affine, motion @ stack.affine, rtol=0, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(built=stacks())
def test_the_other_direction_is_judged_alike(built: Built) -> None:
    """Images stored upside down: the normal turns round, and slices are numbered from the top."""
    along, down = built.orientation[:3], built.orientation[3:]
    positions = built.positions + (ROWS - 1) * built.pixel[0] * down
    stack = built.measure()
    other = measure_stack(positions, np.concatenate([along, -down]), built.pixel)
    assert (other.reason, other.n_slices) == (stack.reason, stack.n_slices)
    assert other.slice_of.tolist() == stack.slice_of.tolist()[::-1]
    if stack.affine is None:
        return
    assert other.geometry == stack.geometry
    assert abs(other.spacing_mm - stack.spacing_mm) < 1e-6
    # The same voxel: the last row of the last slice of one is the first row of the first.
    last = positions[-1] * LPS_TO_RAS
    np.testing.assert_allclose(other.affine[:3, 3], last, rtol=0, atol=1e-6)
    np.testing.assert_allclose(other.affine[:3, :2], -stack.affine[:3, :2], rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(built=stacks(refused=False), slopes=st.tuples(*[st.floats(-4, 4)] * 3))
def test_a_linear_field_survives_regridding(built: Built, slopes) -> None:
    """HU that are linear in R, A and S: inside the slices every voxel of the grid has its own."""
    stack = built.measure()
    assume(stack.offsets_mm is not None)
    along, down = built.orientation[:3], built.orientation[3:]
    centre = built.positions.mean(axis=0)
    j, i = np.mgrid[:ROWS, :COLUMNS][..., None]
    plane = j * built.pixel[0] * down + i * built.pixel[1] * along
    lps = built.positions[:, None, None, :] + plane
    hu = ((lps - centre) @ slopes).astype(np.float32)
    plan, affine = plan_regridding(stack.offsets_mm, stack.affine, (ROWS, COLUMNS))
    out = regrid(hu, plan)
    index = np.stack(np.meshgrid(*map(np.arange, out.shape), indexing="ij"), -1)
    ras = index @ affine[:3, :3].T + affine[:3, 3]
    truth = (ras * LPS_TO_RAS - centre) @ slopes
    inside = _inside(built, ras * LPS_TO_RAS)
    assume(inside.any())  # slices that lean beyond their neighbours share no place
    scale = 1 + np.abs(hu).max()
    assert np.abs(out - truth)[inside].max() < 2e-3 * scale


def _inside(built: Built, lps: np.ndarray) -> np.ndarray:
    """Whether the slices below and above a point both have pixels around it."""
    along, down = built.orientation[:3], built.orientation[3:]
    normal = np.cross(along, down)
    t = (lps - built.positions[0]) @ normal
    upper = np.clip(np.searchsorted(built.travel, t - 1e-6), 1, len(built.travel) - 1)
    ok = t <= built.travel[-1] + 1e-6
    for number in (upper - 1, upper):
        local = lps - built.positions[number]
        for axis, step, n in ((down, built.pixel[0], ROWS), (along, built.pixel[1], COLUMNS)):
            place = local @ axis / step
            ok &= (place >= 1e-3) & (place <= n - 1 - 1e-3)
    return ok
