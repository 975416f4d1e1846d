"""Stored values: exact, by the decoder that is named, or an error."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from imagecodecs import jpeg2k_encode, jpeg8_encode
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, RLELossless

from ingest import decode
from ingest.decode import RAW_AFTER_ALL, SECOND_DECODER, can_decode, decode_frame
from ingest.dicom import decode_slice
from ingest.errors import Reason, SeriesError
from ingest.headers import quiet_pydicom, read_dataset

ZOO = "transfer-syntaxes/ctimage"


def dataset_of(path: Path) -> Dataset:
    with quiet_pydicom():
        return read_dataset(io.BytesIO(path.read_bytes()), header_only=False)


def stored_of(path: Path, flags: set[str] | None = None) -> np.ndarray:
    with quiet_pydicom():
        return decode_frame(dataset_of(path), 0, set() if flags is None else flags)


def hu_of(data: bytes, flags: set[str] | None = None) -> np.ndarray:
    with quiet_pydicom():
        return decode_slice(data, (512, 512), set() if flags is None else flags)[0]


def zoo(ct_data: Path, number: str) -> Path:
    [path] = (ct_data / ZOO).glob(f"*_1.2.840.10008.1.2.{number}.dcm")
    return path


def one(stack, **values) -> Dataset:
    """The first slice, changed."""
    [ds] = stack.set(**values).slices
    return ds


@pytest.fixture
def plain(ct_data: Path) -> np.ndarray:
    return dataset_of(zoo(ct_data, "1")).pixel_array


@pytest.mark.parametrize("number", ["1.99", "2", "4.57", "4.70", "4.80", "4.90", "5"])
def test_lossless_is_exact(number: str, ct_data: Path, plain: np.ndarray) -> None:
    stored = stored_of(zoo(ct_data, number))
    assert stored.dtype == plain.dtype
    np.testing.assert_array_equal(stored, plain)


@pytest.mark.parametrize("number", ["4.50", "4.51", "4.53", "4.55", "4.81", "4.91"])
def test_lossy_is_gdcms_and_near_the_slice(number: str, ct_data: Path, plain: np.ndarray) -> None:
    """GDCM rescales: what is compared is HU."""
    path = zoo(ct_data, number)
    ds = dataset_of(path)
    hu = stored_of(path) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    gdcm = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]
    np.testing.assert_allclose(hu, gdcm, atol=1e-6)
    error = np.abs(hu - (plain - 1024.0))
    assert error.mean() < (20 if number == "4.50" else 4)  # .50 has 8 bits: steps of 31 HU


def test_no_other_decoder_is_asked(ct_data: Path) -> None:
    """With GDCM and Pillow out of reach every syntax still reads, and none prints anything."""
    code = """
import sys
for name in ("gdcm", "PIL", "SimpleITK"):
    sys.modules[name] = None
from pathlib import Path
from ingest.dicom import decode_slice
for path in sorted(Path(sys.argv[1]).iterdir()):
    flags = set()
    hu, _ = decode_slice(path.read_bytes(), (512, 512), flags)
    assert not flags and hu.min() < -900 < 900 < hu.max(), (path, flags)
print(len(list(Path(sys.argv[1]).iterdir())))
"""
    command = [sys.executable, "-c", code, str(ct_data / ZOO)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "16\n", "")


COMPRESSED = ["4.50", "4.51", "4.53", "4.55", "4.57", "4.70", "4.80", "4.81", "4.90", "4.91", "5"]


@pytest.mark.parametrize("number", COMPRESSED)
def test_the_second_decoder_gives_the_same(number: str, ct_data: Path, monkeypatch) -> None:
    path = zoo(ct_data, number)
    first = stored_of(path)

    def broken(*_: object) -> None:
        raise RuntimeError("the first decoder fails")

    monkeypatch.setattr(decode, "_compressed", broken)
    flags: set[str] = set()
    second = stored_of(path, flags)
    assert flags == {SECOND_DECODER}
    assert second.dtype == first.dtype
    np.testing.assert_array_equal(second, first)


def test_the_second_decoder_leaves_the_rescale_alone(noise_stack, monkeypatch) -> None:
    """Slices with their own slope and intercept, which GDCM would apply and promote types for."""
    stack = noise_stack(n=3)
    expected = [ds.pixel_array * (1 + 0.5 * k) - 1024.5 - k for k, ds in enumerate(stack.slices)]
    monkeypatch.setattr(decode, "_compressed", lambda *_: 1 / 0)
    for k, ds in enumerate(stack.slices):
        ds.RescaleSlope, ds.RescaleIntercept = 1 + 0.5 * k, -1024.5 - k
        ds.compress(RLELossless, generate_instance_uid=False)
        buffer = io.BytesIO()
        ds.save_as(buffer)
        flags: set[str] = set()
        hu, _ = decode_slice(buffer.getvalue(), (16, 16), flags)
        np.testing.assert_array_equal(hu, expected[k])
        assert flags == {SECOND_DECODER}


@pytest.mark.parametrize("number", COMPRESSED)
@pytest.mark.parametrize("share", [0.2, 0.6, 0.999])
def test_cut_streams_are_errors(number: str, share: float, ct_data: Path) -> None:
    """Also of JPEG, where libjpeg makes up the rest and reports success."""
    ds = dataset_of(zoo(ct_data, number))
    stream = next(generate_frames(ds.PixelData, number_of_frames=1))
    ds.PixelData = encapsulate([stream[: int(share * len(stream))]])
    buffer = io.BytesIO()
    ds.save_as(buffer)
    with pytest.raises(SeriesError) as caught:
        hu_of(buffer.getvalue())
    assert caught.value.reason is Reason.DECODE_FAILED


def test_a_panic_of_a_decoder_is_an_error(noise_stack) -> None:
    """Runs of RLE beyond the image: what the Rust decoder raises then is no Exception."""
    ds = one(noise_stack(n=1))
    ds.compress(RLELossless, generate_instance_uid=False)
    stream = bytearray(next(generate_frames(ds.PixelData, number_of_frames=1)))
    ds.PixelData = encapsulate([bytes(stream[:64]) + b"\x81\x07" * ((len(stream) - 64) // 2)])
    buffer = io.BytesIO()
    ds.save_as(buffer)
    with quiet_pydicom(), pytest.raises(SeriesError) as caught:
        decode_slice(buffer.getvalue(), (16, 16), set())
    assert caught.value.reason is Reason.DECODE_FAILED


def test_raw_pixels_that_claim_to_be_compressed(ct_data: Path) -> None:
    path = ct_data / "oddities/misc/20-wrong-transfer-syntax.dcm"
    flags: set[str] = set()
    hu = hu_of(path.read_bytes(), flags)
    assert flags == {RAW_AFTER_ALL}
    np.testing.assert_array_equal(hu, sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0])


def test_ges_private_syntax(ct_data: Path) -> None:
    """Implicit little endian, with pixels in big endian."""
    name = "PrivateGEImplicitVRBigEndianTransferSyntax16Bits.dcm"
    path = ct_data / "oddities/misc" / name
    hu = hu_of(path.read_bytes())
    np.testing.assert_array_equal(hu, sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0])


@pytest.mark.parametrize(("header", "stream"), [(0, True), (1, True), (1, False), (0, False)])
def test_signedness_of_jpeg_2000(header: int, stream: bool, make_stack) -> None:
    """Signed if the header or the stream says so: otherwise -2000 would read as 63536."""
    signed = bool(header) or stream
    true = np.arange(-2000, -2000 + 16 * 16).reshape(16, 16).astype(np.int16)
    if not signed:
        true += 2048
    coded = jpeg2k_encode(
        true if stream else true.astype(np.uint16), level=0, reversible=True, codecformat="j2k"
    )
    ds = one(make_stack(true[None].astype(np.uint16)), PixelRepresentation=header)
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.PixelData = encapsulate([coded])
    ds["PixelData"].is_undefined_length = True
    np.testing.assert_array_equal(decode_frame(ds, 0, set()), true)


def test_a_sign_cut_off_by_13_bits(ct_data: Path) -> None:
    stored = stored_of(ct_data / "oddities/pydicom/J2K_pixelrep_mismatch.dcm")
    assert (stored.min(), stored.max()) == (-2000, 1896)


@pytest.mark.parametrize("bits", [12, 16])
def test_signed_jpeg_lossless(bits: int, make_stack) -> None:
    """JPEG knows no sign: -1000 in 12 bits is 3096 in the stream."""
    true = np.linspace(-1000, 1000, 256).astype(np.int16).reshape(16, 16)
    coded = jpeg8_encode(
        true.view(np.uint16) & ((1 << bits) - 1), lossless=True, bitspersample=bits
    )
    ds = one(make_stack(true[None]), BitsStored=bits, HighBit=bits - 1)
    ds.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    ds.PixelData = encapsulate([coded])
    ds["PixelData"].is_undefined_length = True
    np.testing.assert_array_equal(decode_frame(ds, 0, set()), true)


def test_an_overlay_in_the_unused_bits_is_removed(make_stack) -> None:
    true = np.arange(256, dtype=np.uint16).reshape(1, 16, 16) * 16
    ds = one(make_stack(true | 0x1000), BitsStored=12, HighBit=11)
    ds.add_new((0x6000, 0x0100), "US", 16)
    ds.add_new((0x6000, 0x0102), "US", 12)
    np.testing.assert_array_equal(decode_frame(ds, 0, set()), true[0])


def test_values_beyond_bits_stored_are_not_masked(make_stack) -> None:
    """63536, padding in 12 bits, would become 2096: bone. As it is, the HU check sees it."""
    true = np.full((1, 16, 16), 63536, np.uint16)
    ds = one(make_stack(true), BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(decode_frame(ds, 0, set()), true[0])


def test_what_can_be_decoded_is_known_without_pixels(ct_data: Path) -> None:
    for path in (ct_data / ZOO).iterdir():
        assert can_decode(pydicom.dcmread(path, stop_before_pixels=True).file_meta[2, 16].value)
    for other in ("", "1.2.3", "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.92"):
        assert not can_decode(other)
