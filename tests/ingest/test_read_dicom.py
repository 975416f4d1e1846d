"""Stored pixels to HU, slice by slice."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import RLELossless

from ingest.dicom import decode_slice, rescaled
from ingest.errors import Reason, SeriesError
from ingest.headers import quiet_pydicom
from ingest.reader import read_series
from ingest.scan import scan
from ingest.volume import Volume


@pytest.fixture
def read(tmp_path: Path, id_key, only):
    """Write a stack, scan it and read it back."""

    def run(stack) -> Volume:
        return read_series(only(scan([str(stack.write(tmp_path / "s"))], id_key)))

    return run


def stored_of(stack) -> np.ndarray:
    return np.stack([ds.pixel_array for ds in stack.slices]).astype(np.float64)


def test_rescale_is_per_slice(noise_stack, read) -> None:
    stack = noise_stack()
    for k, ds in enumerate(stack.slices):
        ds.RescaleSlope, ds.RescaleIntercept = 1 + 0.0002441 * k, -1024.5 - k
    volume = read(stack)
    k = np.arange(12).reshape(-1, 1, 1)
    expected = stored_of(stack) * (1 + 0.0002441 * k) + (-1024.5 - k)
    np.testing.assert_array_equal(volume.hu, expected.astype(np.float32))
    assert volume.hu.dtype == np.float32
    assert volume.flags == ()


def test_slices_land_at_their_positions(noise_stack, read) -> None:
    stack = noise_stack(positions=[(5, 6, 100 - 2.0 * k) for k in range(12)])
    volume = read(stack)
    np.testing.assert_array_equal(volume.hu, (stored_of(stack) - 1024)[::-1])
    # LPS (5, 6, 78) is the lowest slice's origin; RAS negates the first two.
    np.testing.assert_array_equal(volume.affine[:3, 3], (-5, -6, 78))


def test_mixed_signedness_and_compression(noise_stack, read) -> None:
    stack = noise_stack()
    expected = stored_of(stack) - 1024
    for k, ds in enumerate(stack.slices):
        if k % 3 == 0:
            ds.PixelRepresentation, ds.RescaleIntercept = 1, 0
            ds.PixelData = expected[k].astype("<i2").tobytes()
        if k % 2 == 0:
            ds.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(read(stack).hu, expected)


@pytest.mark.parametrize(
    ("rescale_type", "fine"), [("HU", True), ("US", True), ("", True), ("MGML", False)]
)
def test_rescale_type(rescale_type: str, fine: bool, noise_stack, read) -> None:
    stack = noise_stack().set(RescaleType=rescale_type)
    if fine:
        assert read(stack).hu.max() > 0
    else:
        with pytest.raises(SeriesError, match="not_hu"):
            read(stack)


def test_missing_rescale_is_flagged(noise_stack, read) -> None:
    stack = noise_stack()
    for ds in stack.slices:
        del ds.RescaleSlope, ds.RescaleIntercept
    volume = read(stack)
    np.testing.assert_array_equal(volume.hu, stored_of(stack))
    assert volume.flags == ("rescale_missing",)


def test_modality_lut(noise_stack, read) -> None:
    stack = noise_stack()
    table = np.arange(1200, dtype=np.uint16)[::-1].copy()
    for ds in stack.slices:
        del ds.RescaleSlope, ds.RescaleIntercept
        item = Dataset()
        item.LUTDescriptor, item.LUTData, item.ModalityLUTType = (
            [1200, 0, 16],
            table.tobytes(),
            "HU",
        )
        ds.ModalityLUTSequence = Sequence([item])
    np.testing.assert_array_equal(read(stack).hu, 1199 - stored_of(stack))


# name, signed, stored padding, PixelPaddingValue, its VR, RangeLimit, intercept, becomes air, flag
PADDING = [
    ("signed written as US", True, -2000, 63536, "US", None, -1024, True, None),
    ("signed", True, -1500, -1500, "SS", None, 0, True, None),
    ("unsigned zero", False, 0, 0, "US", None, -1024, True, None),
    ("unsigned written as SS", False, 65535, -1, "SS", None, -1024, True, None),
    ("range", True, -1900, -2000, "SS", -1800, 0, True, None),
    ("range, reversed", True, -1900, -1800, "SS", -2000, 0, True, None),
    # 0 HU is water: the mask may cover anatomy
    ("in tissue", True, 0, 0, "SS", None, 0, False, "padding_in_tissue_range"),
]


@pytest.mark.parametrize("case", PADDING, ids=[case[0] for case in PADDING])
def test_padding(case, make_stack, read) -> None:
    _, signed, pad, value, vr, limit, intercept, to_air, flag = case
    rng = np.random.default_rng(1)
    stored = rng.integers(900, 1100, (12, 8, 8)).astype(np.int16 if signed else np.uint16)
    if signed:
        stored[:, :4] -= 1000 + intercept + 1000
    stored[:, 0, :3] = pad
    stack = make_stack(stored, intercept=intercept)
    for ds in stack.slices:
        ds.add_new("PixelPaddingValue", vr, value)
        if limit is not None:
            ds.add_new("PixelPaddingRangeLimit", vr, limit)
    volume = read(stack)
    expected = stored.astype(np.float64) + intercept
    mask = stored == pad
    if to_air:
        expected[mask] = -1024
    np.testing.assert_array_equal(volume.hu, expected)
    assert volume.padding_fraction == pytest.approx(mask.mean() if to_air else 0)
    assert volume.flags == ((flag,) if flag else ())


def test_identical_repeats_are_dropped(noise_stack, read) -> None:
    single = noise_stack(name="x")
    stack = noise_stack(n=12, name="x")
    extra = noise_stack(n=12, name="x").slices[3]
    extra.SOPInstanceUID = extra.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    stack.slices.append(extra)
    volume = read(stack)
    assert volume.flags == ("duplicates_dropped",)
    np.testing.assert_array_equal(volume.hu, stored_of(single) - 1024)


def test_different_repeats_are_refused(noise_stack, tmp_path, id_key) -> None:
    stack = noise_stack(n=13, positions=[(0, 0, 2.0 * min(k, 11)) for k in range(13)])
    [row] = scan([str(stack.write(tmp_path / "s"))], id_key).series
    assert (row.reason, row.n_files) == (Reason.DUPLICATE_POSITIONS, 13)


def test_repeats_of_which_only_some_are_copies_are_refused(noise_stack, read) -> None:
    """The scan looks at one repeated position; the rest is seen when all are read."""
    stack, again = noise_stack(), noise_stack()
    for k, ds in enumerate(again.slices):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k}"
    again.slices[7].PixelData = bytes(len(again.slices[7].PixelData))
    stack.slices += again.slices
    with pytest.raises(SeriesError) as caught:
        read(stack)
    assert caught.value.reason is Reason.DUPLICATE_POSITIONS


def test_broken_compressed_pixels(noise_stack, read) -> None:
    stack = noise_stack()
    stack.slices[5].compress(RLELossless, generate_instance_uid=False)
    stack.slices[5].PixelData = pydicom.encaps.encapsulate([b"no RLE frame at all here" * 4])
    with pytest.raises(SeriesError) as caught:
        read(stack)
    assert caught.value.reason is Reason.DECODE_FAILED


def hu_of(path: Path) -> np.ndarray:
    data = path.read_bytes()
    with quiet_pydicom():
        shape = (lambda ds: (ds.Rows, ds.Columns))(pydicom.dcmread(io.BytesIO(data)))
        return decode_slice(data, shape, set())[0]


LOSSLESS = [
    "BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2",
    "DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99",
    "LittleEndianImplicitTransferSyntax_1.2.840.10008.1.2",
    "JPEGProcess14TransferSyntax_1.2.840.10008.1.2.4.57",
    "JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70",
    "JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80",
    "JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90",
    "RLELosslessTransferSyntax_1.2.840.10008.1.2.5",
]


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_syntaxes_give_the_same_hu(name: str, ct_data: Path) -> None:
    folder = ct_data / "transfer-syntaxes/ctimage"
    plain = hu_of(folder / "CTImage.dcm_LittleEndianExplicitTransferSyntax_1.2.840.10008.1.2.1.dcm")
    assert plain.min() < -900
    np.testing.assert_array_equal(hu_of(folder / f"CTImage.dcm_{name}.dcm"), plain)


@pytest.mark.parametrize("name", ["CT1_J2KR", "CT1_JLSL", "CT1_JPLL", "CT1_RLE",
                                  "CT2_J2KR", "CT2_JLSL", "CT2_JPLL", "CT2_RLE"])  # fmt: skip
def test_nema_lossless_equals_uncompressed(name: str, ct_data: Path) -> None:
    folder = ct_data / "transfer-syntaxes/nema-wg04"
    np.testing.assert_array_equal(hu_of(folder / name), hu_of(folder / f"{name[:3]}_UNC"))


def test_stream_signedness_that_contradicts_the_header(ct_data: Path) -> None:
    hu = hu_of(ct_data / "oddities/pydicom/J2K_pixelrep_mismatch.dcm")
    assert (hu.min(), hu.max()) == (-2000, 1896)


@pytest.mark.parametrize("member", ["1.dcm", "2.dcm"])
def test_fractional_slope(member: str, ct_data: Path) -> None:
    """Against the arithmetic by hand on a real file with slope and intercept of its own."""
    for folder in ("dicom_slope", "dicom_intercept"):
        path = ct_data / "rse-panimg" / folder / member
        with quiet_pydicom():
            ds = pydicom.dcmread(path)
            expected = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        np.testing.assert_allclose(hu_of(path), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
@pytest.mark.parametrize("intercept", [0.0, -1024.0, 31.0, -8388608.0, 8388608.0])
def test_whole_hu_are_exact_in_half_the_bytes(dtype, intercept):
    """Slope 1 and a whole intercept: float32 holds every value that float64 does."""
    info = np.iinfo(dtype)
    stored = np.arange(info.min, info.max + 1).astype(dtype).reshape(256, 256)
    hu = rescaled(stored, 1.0, intercept)
    assert hu.dtype == np.float32
    np.testing.assert_array_equal(hu.astype(np.float64), stored.astype(np.float64) + intercept)


@pytest.mark.parametrize(("slope", "intercept"), [(1.0002441, 0.0), (1.0, 0.5), (1.0, 1e9)])
def test_other_hu_are_computed_in_float64(slope, intercept):
    stored = np.arange(4, dtype=np.int16).reshape(2, 2)
    hu = rescaled(stored, slope, intercept)
    assert hu.dtype == np.float64
    np.testing.assert_array_equal(hu, stored.astype(np.float64) * slope + intercept)
    assert rescaled(stored.astype(np.int32), 1.0, 0.0).dtype == np.float64
