"""From a volume to a sample: places, padding, verdicts, crop."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.affines import from_matvec
from scipy.spatial.transform import Rotation

from ingest.body import body_box
from ingest.errors import Reason, SeriesError
from ingest.prepare import PrepareConfig, Prepared, prepare
from ingest.reader import read_series
from ingest.scan import scan
from ingest.volume import Volume

NATIVE = PrepareConfig(spacing_zyx_mm=None, body_crop=False)
SPL = from_matvec(np.array([[0, 0, -1.0], [0, -1.0, 0], [1.0, 0, 0]]), [0, 0, 0])


def body(shape: tuple[int, int, int] = (40, 48, 56)) -> np.ndarray:
    """Air with a block of water in it."""
    hu = np.full(shape, -1000, np.float32)
    hu[tuple(slice(n // 6, n - n // 6) for n in shape)] = 0
    return hu


def marker_place(sample: Prepared) -> np.ndarray:
    """RAS mm of the marker: the centroid of what is far denser than water."""
    weight = np.maximum(sample.hu.astype(np.float64) - 60, 0)
    centre = [(np.indices(weight.shape)[k] * weight).sum() / weight.sum() for k in range(3)]
    return np.asarray(sample.affine @ (*centre, 1))[:3]


# ---------------------------------------------------------------- marker at a known place

R10 = Rotation.from_euler("xz", [10, 15], degrees=True).as_matrix()
ORIENTATIONS = {
    # ImageOrientationPatient, step between files in mm, along the normal (negative: other order)
    "head first supine": ([1, 0, 0, 0, 1, 0], 2.5),
    "feet to head last": ([1, 0, 0, 0, 1, 0], -2.5),
    "prone": ([-1, 0, 0, 0, -1, 0], 2.5),
    "feet first": ([-1, 0, 0, 0, 1, 0], -2.5),
    "decubitus": ([0, -1, 0, 1, 0, 0], 2.5),
    "sagittal": ([0, 1, 0, 0, 0, -1], 2.5),
    "coronal": ([1, 0, 0, 0, 0, -1], -2.5),
    "oblique": ([*R10[:, 0], *R10[:, 1]], 2.5),
}
CONFIGS = {
    "native": NATIVE,
    "1.5 mm, cropped": PrepareConfig(),
    "linear": PrepareConfig(resample="linear"),
    "not cubic": PrepareConfig(spacing_zyx_mm=(3.0, 1.0, 1.4)),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_marker_stays_where_it_is(name: str, make_stack, tmp_path: Path, id_key, only) -> None:
    orientation, step = ORIENTATIONS[name]
    along, down = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(along, down)
    rows_mm, columns_mm = 1.1, 0.9
    origin = np.array([-20.0, 35.0, 410.0])
    k, j, i = 17, 29, 21
    stored = (body() + 1024).astype(np.uint16)
    stored[k, j, i] = 1024 + 3000
    positions = [origin + normal * step * n for n in range(len(stored))]
    stack = make_stack(stored, positions, orientation, (rows_mm, columns_mm))
    row = only(scan([str(stack.write(tmp_path / "s"))], id_key))
    volume = read_series(row)
    # PS3.3 equation C.7.6.2.1-1 gives the marker's centre in LPS; RAS negates the first two.
    lps = positions[k] + along * columns_mm * i + down * rows_mm * j
    truth = lps * (-1, -1, 1)
    for config_name, config in CONFIGS.items():
        sample = prepare(volume, config)
        assert "".join(nibabel.aff2axcodes(sample.affine)) == "SPL"
        off = np.abs(marker_place(sample) - truth)
        # Half a voxel of the coarser grid, along each patient axis.
        spacing = np.maximum(np.array(sample.spacing_zyx_mm)[[2, 1, 0]], 0.9)
        assert (off <= spacing / 2).all(), (config_name, off)
    exact = prepare(volume, NATIVE)
    if name != "oblique":
        assert exact.hu.max() == 3000
        np.testing.assert_allclose(marker_place(exact), truth, atol=1e-6)
    assert (exact.original.geometry == "oblique") == (name == "oblique")


def test_original_says_how_it_was_stored() -> None:
    affine = from_matvec(np.array([[0, 0, 1.0], [0, 2.0, 0], [-3.0, 0, 0]]), [0, 0, 0])
    original = prepare(Volume(hu=body((10, 20, 30)), affine=affine), NATIVE).original
    assert original.orientation == "IAR"
    assert original.shape_zyx == (10, 20, 30)
    assert original.spacing_zyx_mm == (3.0, 2.0, 1.0)


def test_the_volume_is_left_alone() -> None:
    hu = body()
    hu[0, 0, 0] = -3024
    volume = Volume(hu=hu.copy(), affine=SPL)
    prepare(volume, PrepareConfig())
    np.testing.assert_array_equal(volume.hu, hu)


# ---------------------------------------------------------------- intensity


def test_padding_does_not_reach_the_neighbours() -> None:
    """A -3024 corner next to -1000 air: after resampling nothing is below -1024."""
    hu = body()
    hu[:, :4] = -3024
    sample = prepare(Volume(hu=hu, affine=SPL), PrepareConfig(body_crop=False))
    clean = np.maximum(hu, -1024)
    expected = prepare(Volume(hu=clean, affine=SPL), PrepareConfig(body_crop=False))
    np.testing.assert_array_equal(sample.hu, expected.hu)
    assert sample.hu_stats.clipped_fraction == 0


def test_native_is_rounding_and_clipping_alone() -> None:
    hu = body()
    hu[20, 20, 20:25] = 3071.4, 3072, 9000, 41.5, -2000.0
    sample = prepare(Volume(hu=hu, affine=SPL), NATIVE)
    assert sample.hu[20, 20, 20:25].tolist() == [3071, 3071, 3071, 42, -1024]
    assert sample.hu_stats.clipped_fraction == pytest.approx(2 / hu.size)
    assert sample.hu.dtype == np.int16
    assert sample.hu.flags.c_contiguous


def test_stats_equal_numpy() -> None:
    hu = body() + np.random.default_rng(0).normal(0, 90, (40, 48, 56)).astype(np.float32)
    sample = prepare(Volume(hu=hu, affine=SPL), PrepareConfig())
    stats, voxels = sample.hu_stats, sample.hu
    assert (stats.min, stats.max) == (voxels.min(), voxels.max())
    assert stats.mean == pytest.approx(voxels.mean(dtype=np.float64))
    expected = np.percentile(voxels, [1, 50, 99], method="inverted_cdf")
    assert [stats.p01, stats.p50, stats.p99] == expected.tolist()
    assert all(type(v) in (int, float) for v in vars(stats).values())


def noisy(low: float, high: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, (20, 20, 20)).astype(np.float32)


VERDICTS = [
    ("constant", np.full((9, 9, 9), 5, np.float32), 0.0, Reason.BLANK),
    ("only air", noisy(-1020, -950), 0.0, Reason.BLANK),
    ("0 to 255", noisy(0, 255), 0.0, Reason.NOT_HU),
    ("0 to 1", noisy(0, 1), 0.0, Reason.NOT_HU),
    ("1024 too high", body() + 1024, 0.0, Reason.NOT_HU),
    ("soft-tissue window", noisy(-160, 240), 0.0, Reason.NOT_HU),
    (
        "0 to 255 in declared padding",
        np.where(noisy(0, 1) < 0.3, -1024, noisy(0, 255)),
        (noisy(0, 1) < 0.3).mean(),
        Reason.NOT_HU,
    ),
    (
        "0 to 255 in undeclared padding",
        np.where(noisy(0, 1) < 0.3, -2000, noisy(0, 255)),
        0.0,
        Reason.NOT_HU,
    ),
    ("scaled by 10", body((20, 20, 20)) * 10 + noisy(-300, 300), 0.0, Reason.IMPLAUSIBLE_HU),
    ("random 16 bits", noisy(-32768, 32767), 0.0, Reason.IMPLAUSIBLE_HU),
    ("CT", body(), 0.0, None),
    ("padding of -32768", np.where(noisy(0, 1) < 0.3, -32768, body((20, 20, 20))), 0.0, None),
    ("0.5 % of metal", np.where(noisy(0, 1) < 0.005, 20000, body((20, 20, 20))), 0.0, None),
    ("2 % of metal", np.where(noisy(0, 1) < 0.02, 20000, body((20, 20, 20))), 0.0,
     Reason.IMPLAUSIBLE_HU),
]  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS, ids=[case[0] for case in VERDICTS])
def test_hu_verdict(case) -> None:
    _, hu, padding, reason = case
    volume = Volume(hu=hu.astype(np.float32), affine=SPL, padding_fraction=float(padding))
    if reason is None:
        prepare(volume, NATIVE)
        return
    with pytest.raises(SeriesError) as caught:
        prepare(volume, NATIVE)
    assert caught.value.reason is reason


def test_real_file_that_is_not_hu(ct_data: Path, id_key, only) -> None:
    volume = read_series(only(scan([str(ct_data / "nifti/CT_AVM.nii.gz")], id_key)))
    with pytest.raises(SeriesError, match="not_hu"):
        prepare(volume, PrepareConfig())


# ---------------------------------------------------------------- crop


def test_body_box_by_hand() -> None:
    hu = np.full((60, 80, 90), -1000, np.int16)
    hu[20:40, 30:50, 10:85] = 30
    # 10 mm are 7, 10 and 5 voxels; every 2nd, 3rd and 1st voxel is looked at, so that the last one
    # seen is 38 and 48, and 1 and 2 voxels are added on both sides for those not seen.
    box = body_box(hu, (1.5, 1.0, 2.0))
    assert box == ((20 - 8, 39 + 8), (30 - 12, 49 + 12), (10 - 5, 90))


def test_body_box_leaves_out_specks_and_keeps_legs() -> None:
    hu = np.full((60, 60, 60), -1000, np.int16)
    hu[10:50, 25:35, 5:20] = 30
    hu[10:50, 25:35, 35:50] = 30  # the other leg
    hu[0:3, 0:3, 0:3] = 200  # a cable
    box = body_box(hu, (5.0, 5.0, 5.0))
    assert box == ((8, 52), (23, 37), (3, 52))


def test_box_of_nothing_is_everything() -> None:
    assert body_box(np.full((4, 5, 6), -1024, np.int16), (1.5,) * 3) == ((0, 4), (0, 5), (0, 6))


def test_crop_is_a_cut_of_the_uncropped() -> None:
    hu = body() + np.random.default_rng(0).normal(0, 30, (40, 48, 56)).astype(np.float32)
    affine = SPL.copy()
    affine[:3, :3] *= 2.2
    affine[:3, 3] = (7, 8, 9)
    volume = Volume(hu=hu, affine=affine)
    whole = prepare(volume, PrepareConfig(body_crop=False))
    cut = prepare(volume, PrepareConfig())
    assert whole.body_box_zyx == tuple((0, n) for n in whole.hu.shape)
    (z0, z1), (y0, y1), (x0, x1) = cut.body_box_zyx
    assert (z0, y0, x0) != (0, 0, 0)
    np.testing.assert_array_equal(cut.hu, whole.hu[z0:z1, y0:y1, x0:x1])
    np.testing.assert_allclose(cut.affine @ (0, 0, 0, 1), whole.affine @ (z0, y0, x0, 1), atol=1e-9)


@pytest.mark.parametrize("options", [{"resample": "cubic"}, {"spacing_zyx_mm": (1.5, 0.0, 1.5)}])
def test_config_is_checked(options) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        PrepareConfig(**options)
