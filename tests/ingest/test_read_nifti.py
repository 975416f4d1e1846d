"""NIfTI headers and voxels, with nibabel as writer and reference reader."""

import gzip
import io
import struct
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy.spatial.transform import Rotation

from ingest.errors import Reason, SeriesError
from ingest.geometry import is_orthogonal
from ingest.nifti import looks_like_nifti, read_grid, read_nifti

VOXELS = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7) - 100
AFFINE = np.array([[-0.8, 0, 0, 40], [0, 0.9, 0, -50], [0, 0, 2.5, 60], [0, 0, 0, 1.0]])


def image(data=VOXELS, affine=AFFINE, kind=nibabel.Nifti1Image, **codes):
    made = kind(data, affine, dtype=np.asarray(data).dtype)
    made.set_sform(affine, codes.get("sform", 1))
    made.set_qform(affine, codes.get("qform", 1))
    made.header.set_xyzt_units("mm")
    return made


def refusal(data: bytes) -> Reason:
    with pytest.raises(SeriesError) as at_header:
        read_grid(io.BytesIO(data), len(data))
    with pytest.raises(SeriesError) as at_voxels:
        read_nifti(data)
    assert at_header.value.reason is at_voxels.value.reason
    return at_header.value.reason


def same_as_nibabel(made) -> None:
    data = made.to_bytes()
    assert looks_like_nifti(data[:540])
    volume = read_nifti(data)
    reference = type(made).from_bytes(data)
    np.testing.assert_allclose(volume.hu, reference.get_fdata().squeeze().T, rtol=1e-6)
    for index in [(0, 0, 0), (6, 5, 4), (3, 1, 2)]:
        expected = apply_affine(reference.affine, index[::-1])
        np.testing.assert_allclose((volume.affine @ (*index, 1))[:3], expected, atol=1e-5)


@pytest.mark.parametrize(
    "dtype", ["u1", "i2", "<i2", ">i2", "u2", "i4", "f4", "f8", ">f4", "i8", "u4"]
)
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_voxels_and_places(dtype: str, kind: type) -> None:
    same_as_nibabel(image(np.abs(VOXELS).astype(dtype), kind=kind))


def test_big_endian_header() -> None:
    made = image()
    swapped = nibabel.Nifti1Image(VOXELS, AFFINE, made.header.as_byteswapped(">"))
    same_as_nibabel(swapped)


def test_scaling() -> None:
    made = image()
    made.header.set_slope_inter(2.2086, -1024.5)
    volume = read_nifti(made.to_bytes())
    slope = float(np.float32(2.2086))  # the header holds a float32
    np.testing.assert_allclose(volume.hu, VOXELS.T * slope - 1024.5, rtol=1e-6)
    same_as_nibabel(made)


def test_trailing_axes_of_one_are_dropped() -> None:
    same_as_nibabel(image(VOXELS[..., None, None]))


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 7, 2), (5, 6, 1, 1, 3)])
def test_not_3d(shape: tuple[int, ...]) -> None:
    assert refusal(image(np.zeros(shape, np.int16)).to_bytes()) is Reason.NOT_3D


def test_oblique() -> None:
    rotation = Rotation.from_euler("xz", [10, 20], degrees=True).as_matrix()
    made = image(affine=from_matvec(rotation * (0.8, 0.9, 2.5), [1, 2, 3]))
    assert read_nifti(made.to_bytes()).geometry == "oblique"
    same_as_nibabel(made)


@pytest.mark.parametrize(("sform", "qform"), [(0, 1), (2, 0), (4, 1)])
def test_either_form_is_enough(sform: int, qform: int) -> None:
    same_as_nibabel(image(sform=sform, qform=qform))


def test_neither_form() -> None:
    assert refusal(image(sform=0, qform=0).to_bytes()) is Reason.MISSING_GEOMETRY


def test_forms_that_disagree() -> None:
    made = image()
    moved = AFFINE.copy()
    moved[0, 3] += 0.1  # under a quarter of the 0.8 mm voxel
    made.set_qform(moved, 1)
    same_as_nibabel(made)
    moved[0, 3] += 0.2
    made.set_qform(moved, 1)
    assert refusal(made.to_bytes()) is Reason.BAD_AFFINE


@pytest.mark.parametrize("entry", [(0, 1, 0.1), (0, 0, 0.0), (1, 1, np.inf)])
def test_sheared_within_slices_or_degenerate(entry) -> None:
    row, column, value = entry
    affine = AFFINE.copy()
    affine[row, column] = value
    data = bytearray(image(qform=0).to_bytes())
    struct.pack_into("<8f", data, 280, *affine[:2].ravel())  # srow_x, srow_y
    assert refusal(bytes(data)) is Reason.BAD_AFFINE


@pytest.mark.parametrize("turn", [0, 10])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (1, 1, -1)])
def test_a_stack_that_leans_is_put_upright(flips, turn) -> None:
    """A field that is linear in space reads the same at every place, whatever the grid."""
    lean = np.diag([0.8, 0.9, 2.5]) * flips
    lean[1, 2] = 2.5 * np.tan(np.radians(18.5))
    lean = Rotation.from_euler("xz", [turn, 2 * turn], degrees=True).as_matrix() @ lean
    affine = from_matvec(lean, [40, -50, 60])
    shape = (30, 32, 12)
    places = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    field = (places @ [1.5, -2.0, 1.0] - 300).astype(np.float32)
    field[:3] = -1000  # air: below, nothing would be HU
    made = image(field, affine, qform=0)
    grid = read_grid(io.BytesIO(made.to_bytes()), len(made.to_bytes()))
    assert (grid.geometry, grid.n_slices) == ("tilted", 12)
    assert grid.detail == "slices are sheared by 18.5 degrees (gantry tilt)"
    volume = read_nifti(made.to_bytes())
    assert volume.geometry == "tilted"
    assert volume.regrid_error_hu is not None
    assert is_orthogonal(volume.affine)
    at = apply_affine(volume.affine, np.moveaxis(np.indices(volume.hu.shape), 0, -1))
    back = apply_affine(np.linalg.inv(affine), at)
    inside = ((back > (4, 1, 0)) & (back < np.array(shape) - (2, 2, 1))).all(axis=-1)
    assert inside.sum() > 5000
    expected = at @ [1.5, -2.0, 1.0] - 300
    np.testing.assert_allclose(volume.hu[inside], expected[inside], atol=0.01)


def test_a_stack_that_leans_too_far() -> None:
    affine = AFFINE.copy()
    affine[1, 2] = 2.6
    assert refusal(image(affine=affine, qform=0).to_bytes()) is Reason.TILTED


def test_a_real_tilted_series_reads_the_same_as_nifti(ct_data, tmp_path, id_key, only) -> None:
    """The Philips phantom through a sheared sform, as a converter without regridding writes it."""
    from ingest.reader import read_series
    from ingest.scan import scan

    archive = str(ct_data / "dcm_qa_ct/Philips_S21610_tilt-18.5.tar.gz")
    series = only(scan([archive], id_key))
    volume = read_series(series)
    plan = series.regridding
    unsheared = replace(series, regridding=None, shape_zyx=plan.stored_shape_zyx)
    stored = read_series(unsheared).hu.astype(np.int16)
    first = volume.affine @ (0, *plan.slice_yx[0], 1)
    step = volume.affine[:3, :3] @ (
        np.array([plan.slice_z[-1], *np.subtract(plan.slice_yx[-1], plan.slice_yx[0])]) / 29
    )
    sheared = from_matvec(
        np.stack([volume.affine[:3, 2], volume.affine[:3, 1], step], axis=1), first[:3]
    )
    path = tmp_path / "tilted.nii.gz"
    nibabel.save(image(stored.T, sheared, qform=0), path)
    row = only(scan([str(path)], id_key))
    assert (row.geometry, row.flags, row.n_slices) == ("tilted", ("tilted",), 30)
    other = read_series(row)
    assert other.hu.shape == volume.hu.shape
    np.testing.assert_allclose(other.affine, volume.affine, atol=1e-3)
    assert np.abs(other.hu - volume.hu).mean() < 0.5  # float32 in the sform, and rounding to int16
    assert other.regrid_error_hu == pytest.approx(volume.regrid_error_hu, abs=0.1)


def test_uint8_is_no_hu() -> None:
    from ingest.prepare import PrepareConfig, prepare

    grey = np.random.default_rng(0).integers(0, 256, (20, 20, 20)).astype(np.uint8)
    with pytest.raises(SeriesError, match="not_hu"):
        prepare(read_nifti(image(grey).to_bytes()), PrepareConfig())


@pytest.mark.parametrize(("unit", "scale"), [("meter", 1000), ("micron", 0.001), ("unknown", 1)])
def test_units(unit: str, scale: float) -> None:
    affine = AFFINE.copy()
    affine[:3] /= scale
    made = image(affine=affine)
    made.header.set_xyzt_units(unit)
    np.testing.assert_allclose(
        read_nifti(made.to_bytes()).affine, AFFINE[:, [2, 1, 0, 3]], rtol=1e-5
    )


def test_metres_called_millimetres() -> None:
    affine = AFFINE.copy()
    affine[:3] /= 1000
    assert refusal(image(affine=affine).to_bytes()) is Reason.IMPLAUSIBLE_SPACING


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_not_numbers(dtype) -> None:
    assert refusal(image(np.zeros((5, 6, 7), dtype)).to_bytes()) is Reason.NOT_GREYSCALE


def test_cut_anywhere() -> None:
    data = image().to_bytes()
    assert refusal(data[:-1]) is Reason.TRUNCATED_FILE
    for cut in range(348, len(data), 17):
        assert refusal(data[:cut]) is Reason.TRUNCATED_FILE


def test_random_header_damage() -> None:
    data = image().to_bytes()
    rng = np.random.default_rng(3)
    for _ in range(300):
        hurt = np.frombuffer(data, np.uint8).copy()
        hurt[rng.integers(4, 344, rng.integers(1, 20))] = rng.integers(0, 256)
        try:
            volume = read_nifti(hurt.tobytes())
        except SeriesError:
            continue
        assert volume.hu.size <= len(data)


@pytest.mark.parametrize("offset", [-5.0, 0.0, np.nan, 1e30])
def test_voxel_offset_that_cannot_be(offset: float) -> None:
    data = bytearray(image().to_bytes())
    struct.pack_into("<f", data, 108, offset)
    assert refusal(bytes(data)) in (Reason.UNREADABLE_FILE, Reason.TRUNCATED_FILE)


def test_values_beyond_float32_are_not_finite() -> None:
    data = VOXELS.astype(np.float64)
    data[2, 3, 4] = 1e300
    assert read_nifti(image(data).to_bytes()).flags == ("nonfinite_filled",)


def test_header_and_voxels_apart() -> None:
    pair = nibabel.Nifti1Pair(VOXELS, AFFINE)
    assert refusal(bytes(pair.header.binaryblock) + bytes(4)) is Reason.UNREADABLE_FILE


def test_nonfinite_voxels_become_air() -> None:
    data = VOXELS.astype(np.float32)
    data[0, 0, :4] = np.nan, np.inf, -np.inf, 7
    volume = read_nifti(image(data).to_bytes())
    assert volume.hu[:4, 0, 0].tolist() == [-1024, -1024, -1024, 7]
    assert volume.flags == ("nonfinite_filled",)
    assert volume.padding_fraction == 3 / data.size
    data[:] = np.nan
    with pytest.raises(SeriesError, match="not_hu"):
        read_nifti(image(data).to_bytes())


def test_real_file_equals_nibabel(ct_data: Path) -> None:
    path = ct_data / "totalsegmentator/example_ct.nii.gz"
    volume = read_nifti(gzip.decompress(path.read_bytes()))
    reference = nibabel.load(path)
    np.testing.assert_array_equal(volume.hu, reference.get_fdata().T)
    assert (volume.hu.min(), volume.hu.max()) == (-1207, 3382)  # as the README says
