"""One frame's stored values, by decoders that are named here: never by what is installed.

| compression | first decoder | why |
|---|---|---|
| none, deflated, big endian | pydicom | |
| JPEG (.50 .51 .53 .55 .57 .70) | imagecodecs (libjpeg-turbo 3) | 4 to 5 times GDCM's speed |
| JPEG-LS | pyjpegls (CharLS) | 2 to 3.5 times GDCM's and pylibjpeg's |
| JPEG 2000, HTJ2K | pylibjpeg-openjpeg | |
| RLE | pylibjpeg-rle | |

GDCM, by SimpleITK, is asked where the first one fails. Lossy 12-bit JPEG (.51): libjpeg-turbo and
GDCM agree to the bit and differ from pylibjpeg-libjpeg by one stored value in 4 % of the pixels
(rounding of the inverse cosine transform, which the standard leaves open); against the slice before
compression the two are as far off, 4.47 and 4.46 HU, so neither is wrong.
"""

from __future__ import annotations

import io
import struct
import tempfile
from typing import Any

import numpy as np
from jaxtyping import Num
from numpy import ndarray
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import get_decoder
from pydicom.pixels.utils import get_j2k_parameters

SECOND_DECODER = "second_decoder"
"""Flag: the first decoder failed on a slice, and GDCM did not."""
RAW_AFTER_ALL = "transfer_syntax_corrected"
"""Flag: the file says that its pixels are compressed, and they are not."""
GE_PRIVATE = "1.2.840.113619.5.2"
"""Implicit VR little endian, but for the pixels, which are big endian."""
_NATIVE = {
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
}
_LITTLE = _NATIVE - {uid.ExplicitVRBigEndian}
_JPEG = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55, 57, 70)}
_JPEG_2000 = {f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203)}
_PLUGIN = {
    **dict.fromkeys(_JPEG_2000, "pylibjpeg"),
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.RLELossless: "pylibjpeg",
}
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_FRAME_HEADERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
"""Markers before precision, rows and columns (T.81 B.2.2; 0xF7 is JPEG-LS, T.87 C.2.2)."""
_J2K_START = b"\xff\x4f\xff\x51"
"""Start of codestream and of its size segment (T.800 A.5.1)."""
_IMAGE_PIXEL = (
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip


def can_decode(transfer_syntax: str) -> bool:
    """Whether pixels in this transfer syntax are read."""
    known = _NATIVE | _JPEG | _PLUGIN.keys() | {GE_PRIVATE}
    return transfer_syntax in known


def decode_frame(dataset: Any, frame: int, flags: set[str]) -> Num[ndarray, "rows columns"]:
    """Stored values of one frame, before any rescale.

    Args:
        dataset: with pixel data and file meta information.
        frame: counted from 0.
        flags: what is noticed is added here.

    Raises:
        Exception: no decoder could; an open family of errors. What the first decoder said is the
            cause of what the second one says.
    """
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    if syntax in _LITTLE and _is_simple(dataset):
        return _plain(dataset, frame, "<")
    if syntax in _NATIVE:
        return _native(dataset, frame)
    if syntax == GE_PRIVATE:
        return _plain(dataset, frame, ">")
    if _is_raw(dataset):
        flags.add(RAW_AFTER_ALL)
        return _plain(dataset, frame, "<")
    _check_matrix(_stream(dataset, frame), dataset)
    try:
        return _compressed(dataset, frame, syntax)
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as first:  # an open family of errors; panics of Rust are no Exception
        try:
            stored = _by_gdcm(dataset, frame, syntax)
        except Exception as second:
            raise second from first
        flags.add(SECOND_DECODER)
        return stored


def _native(dataset: Any, frame: int) -> Num[ndarray, "rows columns"]:
    decoder = get_decoder(uid.UID(dataset.file_meta.TransferSyntaxUID))
    stored, _ = decoder.as_array(dataset, index=frame, raw=True, correct_unused_bits=False)
    stored = np.asarray(stored)
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    return _unused_bits(stored, dataset, int(dataset.BitsStored))


def _is_raw(dataset: Any) -> bool:
    """Whether "compressed" pixels are no fragments, but as many bytes as plain ones are."""
    element = dataset["PixelData"]
    plain = _frame_bytes(dataset) * _frames(dataset)
    return not element.is_undefined_length and len(element.value) in (plain, plain + plain % 2)


def _is_simple(dataset: Any) -> bool:
    """Whether the pixels are plain integers, one after another: most uncompressed files.

    What pydicom would do besides costs half of reading such a slice.
    """
    return (
        "PixelData" in dataset
        and int(dataset.BitsAllocated) in (8, 16)
        and int(dataset.get("SamplesPerPixel") or 1) == 1
    )


def _plain(dataset: Any, frame: int, order: str) -> Num[ndarray, "rows columns"]:
    """Uncompressed pixels in a byte order that the transfer syntax does not tell pydicom."""
    nbytes = _frame_bytes(dataset)
    kind = "i" if int(dataset.get("PixelRepresentation") or 0) else "u"
    dtype = np.dtype(f"{order}{kind}{int(dataset.BitsAllocated) // 8}")
    data = dataset.PixelData[frame * nbytes : (frame + 1) * nbytes]
    stored = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
    plane = stored.reshape(int(dataset.Rows), int(dataset.Columns))
    return _unused_bits(plane, dataset, int(dataset.BitsStored))


def _compressed(dataset: Any, frame: int, syntax: str) -> Num[ndarray, "rows columns"]:
    if syntax not in _JPEG_2000 and syntax != uid.RLELossless:
        _check_end(_stream(dataset, frame))
    if syntax in _JPEG:
        return _jpeg(dataset, frame)
    decoder = get_decoder(uid.UID(syntax))
    options = {"decoding_plugin": _PLUGIN[syntax], "raw": True}
    if syntax not in _JPEG_2000:
        return np.asarray(decoder.as_array(dataset, index=frame, **options)[0])
    options["apply_j2k_sign_correction"] = False
    stored = np.asarray(decoder.as_array(dataset, index=frame, **options)[0])
    stream = get_j2k_parameters(_stream(dataset, frame))
    if stream.get("is_signed"):  # whatever the header says
        stored = stored.view(f"i{stored.dtype.itemsize}")
    bits = min(int(dataset.BitsStored), int(stream.get("precision") or 16))
    return _unused_bits(stored, dataset, bits)


def _check_matrix(stream: bytes, dataset: Any) -> None:
    """Refuse a stream of another matrix than the header's: decoders allocate what it claims.

    Raises:
        ValueError: it is of another one.
    """
    stated = _matrix_of(stream)
    if stated is not None and stated != (int(dataset.Rows), int(dataset.Columns)):
        raise ValueError(f"a stream of {stated[0]} x {stated[1]} pixels")


def _matrix_of(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream states; None for other streams."""
    at = stream.find(_J2K_START)
    if at >= 0 and (at == 0 or stream[:4] == bytes(3) + b"\x0c"):
        if len(stream) < at + 24:
            return None
        x, y, x0, y0 = struct.unpack_from(">4L", stream, at + 8)
        return y - y0, x - x0
    if stream[:2] != _JPEG_START:
        return None
    at = 2
    while at + 9 <= len(stream) and stream[at] == 0xFF:
        if stream[at + 1] in _FRAME_HEADERS:
            rows, columns = struct.unpack_from(">HH", stream, at + 5)
            return rows, columns
        # 0xFF may be repeated before a marker; else a segment's length counts itself.
        filler = stream[at + 1] == 0xFF
        at += 1 if filler else 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None


def _check_end(stream: bytes) -> None:
    """Refuse a JPEG or JPEG-LS stream that is cut off.

    libjpeg makes up what is missing and says nothing; CharLS takes 4 s to find out.
    """
    if not stream.rstrip(b"\0").endswith(_JPEG_END):
        raise ValueError("the stream is cut off")


def _jpeg(dataset: Any, frame: int) -> Num[ndarray, "rows columns"]:
    import imagecodecs  # here: its import costs as much as a hundred slices

    decoded = imagecodecs.jpeg8_decode(_stream(dataset, frame))
    nbytes = int(dataset.BitsAllocated) // 8
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    stored = decoded.astype(f"u{nbytes}", copy=False)
    if signed:
        stored = stored.view(f"i{nbytes}")
    return _unused_bits(stored, dataset, int(dataset.BitsStored))


def _unused_bits(
    stored: Num[ndarray, "rows columns"], dataset: Any, bits: int
) -> Num[ndarray, "rows columns"]:
    """Values without what else lies in their bits: old overlays, or a sign that was cut off.

    Nothing else is masked: a value too large for BitsStored is not made to look plausible.
    """
    unused = 8 * stored.dtype.itemsize - bits
    if stored.dtype.kind == "f" or not 0 < unused < 8 * stored.dtype.itemsize or not stored.size:
        return stored
    signed = stored.dtype.kind == "i"
    low, high = int(stored.min()), int(stored.max())
    sign_cut_off = signed and low >= 0 and 1 << (bits - 1) <= high < 1 << bits
    if sign_cut_off or _overlay_in_pixels(dataset, bits):
        shifted: Num[ndarray, "rows columns"] = np.right_shift(
            np.left_shift(stored, unused), unused
        )
        return shifted
    return stored


def _overlay_in_pixels(dataset: Any, bits: int) -> bool:
    """Whether an overlay is kept in the unused bits (PS3.3 C.9.2, retired in 2004)."""
    for group in range(0x6000, 0x6020, 2):
        position = dataset.get((group, 0x0102))
        if position is not None and (group, 0x3000) not in dataset and int(position.value) >= bits:
            return True
    return False


def _by_gdcm(dataset: Any, frame: int, syntax: str) -> Num[ndarray, "rows columns"]:
    """Ask GDCM for one frame.

    It gets a file of its own with nothing but pixels: from the real one it would apply the rescale
    itself, with types that depend on it, and of a multi-frame file always the first frame's.
    """
    import SimpleITK as sitk

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.UID(syntax)
    meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = uid.UID("2.25.1")
    bare = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    bare.SOPClassUID, bare.SOPInstanceUID = meta.MediaStorageSOPClassUID, uid.UID("2.25.1")
    for name in _IMAGE_PIXEL:
        setattr(bare, name, dataset[name].value)
    bare.PixelData = encapsulate([_stream(dataset, frame)])
    bare["PixelData"].VR, bare["PixelData"].is_undefined_length = "OB", True
    buffer = io.BytesIO()
    bare.save_as(buffer, enforce_file_format=True)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        file.write(buffer.getvalue())
        file.flush()
        image = sitk.ReadImage(file.name, imageIO="GDCMImageIO")
    return np.asarray(sitk.GetArrayFromImage(image)[0])


def _stream(dataset: Any, frame: int) -> bytes:
    """The compressed bytes of one frame."""
    offsets = None
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    n = _frames(dataset)
    return bytes(get_frame(dataset.PixelData, frame, number_of_frames=n, extended_offsets=offsets))


def _frames(dataset: Any) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def _frame_bytes(dataset: Any) -> int:
    bits = int(dataset.BitsAllocated) * int(dataset.get("SamplesPerPixel") or 1)
    return int(dataset.Rows) * int(dataset.Columns) * bits // 8
