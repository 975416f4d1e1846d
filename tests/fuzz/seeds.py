"""The unharmed inputs of the fuzzer: small DICOM series, NIfTI files and archives of them.

Each seed is a folder of files, name to bytes. All are functions of nothing but the code here and
the encoders' versions.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import imagecodecs
import nibabel
import numpy as np
import pydicom
from numpy import ndarray
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence

SLICES, ROWS, COLUMNS = 5, 18, 14
Files = dict[str, bytes]


@dataclass(frozen=True)
class Seed:
    """One unharmed input.

    Attributes:
        name: of the seed.
        files: relative name to bytes.
        marks: per file, where something begins that is worth cutting at or overwriting: elements,
            length fields, headers of members.
        raw: whether voxels are stored as they are, so that no codec stands between.
    """

    name: str
    files: Files
    marks: dict[str, tuple[int, ...]]
    raw: bool = False


def voxels() -> ndarray:
    """HU of a computed block: air around, soft tissue and bone within, every slice another."""
    rng = np.random.Generator(np.random.Philox(7))
    hu = rng.integers(-1010, -980, (SLICES, ROWS, COLUMNS))
    hu[:, 4:15, 3:11] = rng.integers(20, 70, (SLICES, 11, 8))
    hu[:, 7:9, 5:7] = rng.integers(600, 900, (SLICES, 2, 2))
    return hu.astype(np.int16)


def _new(sop_class: str, number: int, syntax: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = sop_class, syntax
    meta.MediaStorageSOPInstanceUID = f"1.2.3.4.5.{100 + number}"
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.4.6", "1.2.3.4.7"
    ds.PatientID, ds.PatientName, ds.Modality = "fuzz", "Fuzz^Case", "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Rows, ds.Columns, ds.SamplesPerPixel = ROWS, COLUMNS, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    return ds


def dicom_slice(hu: ndarray, number: int, syntax: str = uid.ExplicitVRLittleEndian) -> FileDataset:
    """A classic CT image, uncompressed."""
    ds = _new(uid.CTImageStorage, number, syntax)
    ds.ImagePositionPatient, ds.ImageOrientationPatient = (
        [-50, -60, 3 * number],
        [1, 0, 0, 0, 1, 0],
    )
    ds.PixelSpacing, ds.SliceThickness, ds.KVP = [9, 9], 3, 120
    ds.ConvolutionKernel, ds.AcquisitionNumber, ds.InstanceNumber = "B30f", 1, number + 1
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    ds.PixelData = (hu.astype(np.int32) + 1024).astype(f"{order}u2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def multi_frame() -> FileDataset:
    """All slices as one Enhanced CT image (PS3.3 A.38)."""
    ds = _new(uid.EnhancedCTImageStorage, 0, uid.ExplicitVRLittleEndian)
    ds.NumberOfFrames = SLICES
    shared, measures, plane, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [9, 9], 3
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([plane])
    shared.PixelValueTransformationSequence = Sequence([rescale])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k in range(SLICES):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [-50, -60, 3 * k]
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    ds.PixelData = (voxels().astype(np.int32) + 1024).astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def to_bytes(ds: FileDataset) -> bytes:
    buffer = io.BytesIO()
    syntax = ds.file_meta.TransferSyntaxUID
    # Not save_as: a new data set is little endian to it, whatever its syntax says.
    pydicom.dcmwrite(
        buffer,
        ds,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        enforce_file_format=True,
    )
    return buffer.getvalue()


def series(syntax: str = uid.ExplicitVRLittleEndian, compress: str = "") -> Files:
    """A classic series in one transfer syntax."""
    files = {}
    for number, hu in enumerate(voxels()):
        ds = dicom_slice(hu, number, syntax)
        if compress:
            ds.compress(compress, generate_instance_uid=False)
        files[f"{number}.dcm"] = to_bytes(ds)
    return files


def encapsulated(encode: Callable[[ndarray], bytes], syntax: str) -> Files:
    """A series whose frames ``encode`` makes: small images, which pydicom's encoders refuse."""
    files = {}
    for number, hu in enumerate(voxels()):
        ds = dicom_slice(hu, number)
        frame = encode((hu.astype(np.int32) + 1024).astype(np.uint16))
        ds.PixelData = pydicom.encaps.encapsulate([frame])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        ds.file_meta.TransferSyntaxUID = syntax
        files[f"{number}.dcm"] = to_bytes(ds)
    return files


def jpeg_2000(stored: ndarray) -> bytes:
    data: bytes = imagecodecs.jpeg2k_encode(
        stored, codecformat="j2k", reversible=True, resolutions=1
    )
    return data


def nifti(kind: type, dtype: str, name: str) -> Files:
    """One NIfTI file, packed as its name says."""
    affine = np.array([[-9.0, 0, 0, 50], [0, -9, 0, 60], [0, 0, 3, 0], [0, 0, 0, 1]])
    image = kind(voxels().T.astype(dtype), affine, dtype=np.dtype(dtype))
    image.header.set_xyzt_units("mm")
    data = image.to_bytes()
    return {name: gzip.compress(data, mtime=0) if name.endswith(".gz") else data}


def zipped(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def tarred(files: Files, links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, target in (links or {}).items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


OUTSIDE = "/tmp/coralbay-fuzz-escaped"
ESCAPES = ("../../escaped", OUTSIDE, "..\\..\\escaped", "a/../../../escaped", "out/manifest.json")
"""Member names that would leave the folder of a reader that believes them."""


def _escaping() -> Files:
    return dict(zip(ESCAPES, series().values(), strict=True))


def _archives() -> dict[str, Callable[[], Files]]:
    plain = series
    links = {"link": "/etc/passwd", "up": "../../escaped"}
    return {
        "zip": lambda: {"a.zip": zipped(plain())},
        "zip-stored": lambda: {"a.zip": zipped(plain(), zipfile.ZIP_STORED)},
        "tar": lambda: {"a.tar": tarred(plain())},
        "tar.gz": lambda: {"a.tar.gz": gzip.compress(tarred(plain()), mtime=0)},
        "tar.bz2": lambda: {"a.tar.bz2": bz2.compress(tarred(plain()))},
        "tar.xz": lambda: {"a.tar.xz": lzma.compress(tarred(plain()))},
        "dcm.gz": lambda: {f"{n}.gz": gzip.compress(d, mtime=0) for n, d in plain().items()},
        "nested": lambda: {"a.zip": zipped({"b.zip": zipped(plain()), **plain()})},
        "nested-tar": lambda: {
            "a.tar": tarred({"b.tar.gz": gzip.compress(tarred(plain()), mtime=0), **plain()})
        },
        "escape-zip": lambda: {"a.zip": zipped(_escaping())},
        "escape-tar": lambda: {"a.tar": tarred(_escaping(), links)},
        "bomb-zip": lambda: {"a.zip": zipped({"zeros": bytes(4 << 20), **plain()})},
        "bomb-tar.gz": lambda: {
            "a.tgz": gzip.compress(tarred({"zeros": bytes(4 << 20), **plain()}), mtime=0)
        },
        "bomb-nii.gz": lambda: {"a.nii.gz": gzip.compress(bytes(4 << 20), mtime=0)},
    }


def _images() -> dict[str, Callable[[], Files]]:
    return {
        "explicit": series,
        "implicit": lambda: series(uid.ImplicitVRLittleEndian),
        "big-endian": lambda: series(uid.ExplicitVRBigEndian),
        "deflated": lambda: series(uid.DeflatedExplicitVRLittleEndian),
        "rle": lambda: series(compress=uid.RLELossless),
        "jpeg-ls": lambda: series(compress=uid.JPEGLSLossless),
        "jpeg-2000": lambda: encapsulated(jpeg_2000, uid.JPEG2000Lossless),
        "jpeg-lossless": lambda: encapsulated(imagecodecs.ljpeg_encode, uid.JPEGLossless),
        "multi-frame": lambda: {"all.dcm": to_bytes(multi_frame())},
        "nii": lambda: nifti(nibabel.Nifti1Image, "int16", "a.nii"),
        "nii-2": lambda: nifti(nibabel.Nifti2Image, "int16", "a.nii"),
        "nii-float": lambda: nifti(nibabel.Nifti1Image, "float32", "a.nii"),
        "nii.gz": lambda: nifti(nibabel.Nifti1Image, "int16", "a.nii.gz"),
    }


IMAGES, ARCHIVES = tuple(_images()), tuple(_archives())
NAMES = IMAGES + ARCHIVES
_RAW = {"explicit", "implicit", "big-endian", "nii", "nii-2", "nii-float"}


@cache
def seed(name: str) -> Seed:
    """The seed of that name."""
    files = (_images() | _archives())[name]()
    marks = {file: marks_of(data) for file, data in files.items()}
    return Seed(name, files, marks, raw=name in _RAW)


def marks_of(data: bytes) -> tuple[int, ...]:
    """Where the elements of a DICOM file begin; where the members of an archive do."""
    if data[128:132] == b"DICM":
        return element_offsets(data)
    found = {0}
    for magic in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"ustar"):
        at = data.find(magic)
        while at >= 0:
            found.add(max(0, at - 257 if magic == b"ustar" else at))
            at = data.find(magic, at + 1)
    return tuple(sorted(found))


def element_offsets(data: bytes) -> tuple[int, ...]:
    """Offset of the first byte of every element of a DICOM file, in sequences too.

    By brute force, on purpose without a parser: every place at which a known element's tag (and, if
    the file is explicit, its VR) is written.
    """
    ds = pydicom.dcmread(io.BytesIO(data), force=True)
    syntax = ds.file_meta.TransferSyntaxUID
    if syntax.is_deflated:
        return (132, 144)
    found = {132, len(data)}
    everything = [*ds.file_meta.iterall(), *ds.iterall()]
    for element in everything:
        meta = element.tag.group == 2
        order = "big" if syntax == uid.ExplicitVRBigEndian and not meta else "little"
        tag = element.tag.group.to_bytes(2, order) + element.tag.elem.to_bytes(2, order)
        if meta or not syntax.is_implicit_VR:
            tag += element.VR.encode()
        at = data.find(tag, 132)
        while at >= 0:
            found.add(at)
            at = data.find(tag, at + 1)
    return tuple(sorted(found))
