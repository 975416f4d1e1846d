"""Inputs that were made to do harm, not damaged by chance: ``python -m tests.fuzz.hostile FOLDER``.

Each is scanned and built in this process, whose greatest memory is then known; prints one JSON line
an input. Kept apart from the tests, so that what they hold in memory does not hide anything.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import resource
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pydicom
from pydicom import uid

from tests.fuzz.seeds import (
    Files,
    dicom_slice,
    encapsulated,
    jpeg_2000,
    series,
    tarred,
    to_bytes,
    voxels,
    zipped,
)

FLOOR_BYTES = 32 << 20
"""What an archive may always expand to, here: a gibibyte takes long to write."""
ZEROS = 2 * FLOOR_BYTES
BOMB_BYTES = 400 << 20
"""What is read into memory at once by a reader that does not look first."""


def lying_zip(claimed: int) -> bytes:
    """A member of 64 MiB of zeros that says it has ``claimed`` bytes."""
    data = bytearray(zipped({"zeros": bytes(ZEROS)}))
    size = struct.pack("<L", ZEROS)
    at = data.find(size)
    while at >= 0:
        struct.pack_into("<L", data, at, claimed)
        at = data.find(size, at + 4)
    return bytes(data)


def overlapping_zip(members: int) -> bytes:
    """Many entries of the directory name one and the same compressed megabytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(8 << 20))
        [info] = archive.infolist()
        archive.filelist += [info] * (members - 1)
        archive._didModify = True
    return buffer.getvalue()


def tar_header_bomb(kind: bytes) -> bytes:
    """A header member (a long name, an extended header) of 400 MiB of zeros, in gzip."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, BOMB_BYTES
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(info.tobuf(tarfile.GNU_FORMAT))]
    parts += [packer.compress(bytes(1 << 20)) for _ in range(BOMB_BYTES >> 20)]
    return b"".join([*parts, packer.flush()])


def headers_without_end() -> bytes:
    """A tar of 5,000 long names in a row, and no member."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2
    return (info.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")) * 5_000


def many_claims(count: int) -> Files:
    """A series whose slices claim 5,600 x 5,600 pixels each: 37 GiB, in half a megabyte."""
    ds = dicom_slice(voxels()[0], 0)
    ds.compress(uid.RLELossless, generate_instance_uid=False)
    ds.Rows = ds.Columns = 5_600
    ds.PixelSpacing = [0.1, 0.1]
    files = {}
    for k in range(count):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k}"
        ds.ImagePositionPatient = [0, 0, 3 * k]
        files[f"{k}.dcm"] = to_bytes(ds)
    return files


def sparse_tar() -> bytes:
    """A GNU sparse member: 10 TiB of holes in one block."""
    buf = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    buf[156:157] = tarfile.GNUTYPE_SPARSE
    buf[386:410] = b"%011o\0%011o\0" % (0, 0)
    buf[483:495] = (b"\x80" + (10 << 40).to_bytes(11, "big"))[:12]
    buf[148:156] = b" " * 8
    buf[148:156] = b"%06o\0 " % sum(buf)
    return bytes(buf) + bytes(1024)


def xz_dictionary() -> bytes:
    """An xz stream that asks for a dictionary of 1.5 GiB for a few bytes."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 3 << 29}]
    packer = lzma.LZMACompressor(lzma.FORMAT_XZ, filters=[{**filters[0], "dict_size": 1 << 20}])
    data = bytearray(packer.compress(b"ustar") + packer.flush())
    # Block header: size, flags, filter id, property size, dictionary bits (xz format 3.1, 5.3.1).
    assert data[14:16] == b"\x21\x01"
    data[16] = 37  # (2 | 1) << (37 // 2 + 11): 1.5 GiB
    data[20:24] = zlib.crc32(bytes(data[12:20])).to_bytes(4, "little")
    return bytes(data)


def deflated_bomb() -> Files:
    """A deflated DICOM file that inflates to 400 MiB."""
    ds = dicom_slice(voxels()[0], 0, uid.DeflatedExplicitVRLittleEndian)
    data = to_bytes(ds)
    start = 144 + int.from_bytes(data[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = packer.compress(b"\x09\x00\x01\x00OB\0\0" + struct.pack("<L", BOMB_BYTES))
    body = [packer.compress(bytes(1 << 20)) for _ in range(BOMB_BYTES >> 20)]
    return {"a.dcm": data[:start] + head + b"".join(body) + packer.flush()}


def nested_sequences(depth: int) -> Files:
    """Sequences in sequences, implicit VR, undefined lengths."""
    ds = dicom_slice(voxels()[0], 0, uid.ImplicitVRLittleEndian)
    data = to_bytes(ds)
    start = 144 + int.from_bytes(data[140:144], "little")
    level = struct.pack("<HHLHHL", 0x0008, 0x1140, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    return {"a.dcm": data[:start] + level * depth + data[start:]}


def huge_matrix(files: Files, rows: int = 65535, columns: int = 65535) -> Files:
    """The same files, whose headers claim another matrix."""
    out = {}
    for name, data in files.items():
        ds = pydicom.dcmread(io.BytesIO(data))
        ds.Rows, ds.Columns = rows, columns
        out[name] = to_bytes(ds)
    return out


def huge_frames(marker: Callable[[bytes], int], files: Files, side: int = 65500) -> Files:
    """The same files, whose compressed streams claim a huge image; headers stay as they are."""
    out = {}
    for name, data in files.items():
        ds = pydicom.dcmread(io.BytesIO(data))
        stream = bytearray(next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)))
        at = marker(bytes(stream))
        if stream[:2] == b"\xff\x4f":  # JPEG 2000: 4 bytes each
            struct.pack_into(">LL", stream, at, side, side)
            struct.pack_into(">LL", stream, at + 16, side, side)  # and one tile of that size
        else:
            struct.pack_into(">HH", stream, at, side, side)
        ds.PixelData = pydicom.encaps.encapsulate([bytes(stream)])
        out[name] = to_bytes(ds)
    return out


def frame_header(*codes: int) -> Callable[[bytes], int]:
    """Where the height stands in a JPEG or JPEG-LS stream: after marker, length and precision."""

    def find(stream: bytes) -> int:
        return next(at for c in codes if (at := stream.find(bytes([0xFF, c]))) >= 0) + 5

    return find


def nifti_claims(kind: type, sides: tuple[int, int, int]) -> Files:
    """A NIfTI header that claims ``sides`` voxels, over a few bytes."""
    affine = np.diag([1.0, 1, 2, 1])
    data = bytearray(kind(np.zeros((4, 4, 4), np.int16), affine).to_bytes())
    if kind is nibabel.Nifti2Image:
        struct.pack_into("<3q", data, 16 + 8, *sides)
    else:
        struct.pack_into("<3h", data, 40 + 2, *sides)
    return {"a.nii": bytes(data), "a.nii.gz": gzip.compress(bytes(data))}


def many_frames() -> Files:
    files = {}
    for name, data in series().items():
        ds = pydicom.dcmread(io.BytesIO(data))
        ds.NumberOfFrames = 2**31 - 1
        files[name] = to_bytes(ds)
    return files


HOSTILE: dict[str, Callable[[], Files]] = {
    "zip that claims too little": lambda: {"a.zip": lying_zip(100)},
    "zip that claims too much": lambda: {"a.zip": lying_zip(0xFFFFFFF0)},
    "zip bomb": lambda: {"a.zip": zipped({"zeros": bytes(ZEROS)})},
    "overlapping zip": lambda: {"a.zip": overlapping_zip(3000)},
    "zip of a gzip bomb": lambda: {"a.zip": zipped({"z.nii.gz": gzip.compress(bytes(ZEROS))})},
    "gzip bomb": lambda: {"a.nii.gz": gzip.compress(bytes(ZEROS))},
    "bzip2 bomb": lambda: {"a.nii.bz2": bz2.compress(bytes(ZEROS))},
    "xz bomb": lambda: {"a.nii.xz": lzma.compress(bytes(ZEROS))},
    "xz dictionary": lambda: {"a.xz": xz_dictionary()},
    "tar.gz bomb": lambda: {"a.tgz": gzip.compress(tarred({"zeros": bytes(ZEROS)}))},
    "tar of long names": lambda: {"a.tgz": tar_header_bomb(tarfile.GNUTYPE_LONGNAME)},
    "tar of extended headers": lambda: {"a.tgz": tar_header_bomb(tarfile.XHDTYPE)},
    "tar of headers without end": lambda: {"a.tar": headers_without_end()},
    "sparse tar": lambda: {"a.tar": sparse_tar()},
    "20,000 empty members": lambda: {"a.zip": zipped({str(k): b"" for k in range(20_000)})},
    "deflated DICOM bomb": deflated_bomb,
    "5,000 nested sequences": lambda: nested_sequences(5_000),
    "65535 x 65535, raw": lambda: huge_matrix(series()),
    "65535 x 65535, RLE": lambda: huge_matrix(series(compress=uid.RLELossless)),
    "65535 x 65535, deflated": lambda: huge_matrix(series(uid.DeflatedExplicitVRLittleEndian)),
    "300 times 5,600 x 5,600": lambda: many_claims(300),
    "2^31 - 1 frames": many_frames,
    "JPEG-LS frame of 65500": lambda: huge_frames(
        frame_header(0xF7), series(compress=uid.JPEGLSLossless)
    ),
    "JPEG lossless frame of 65500": lambda: huge_frames(
        frame_header(0xC3), encapsulated(imagecodecs.ljpeg_encode, uid.JPEGLossless)
    ),
    "JPEG 2000 frame of 65500": lambda: huge_frames(
        lambda stream: 8, encapsulated(jpeg_2000, uid.JPEG2000Lossless)
    ),
    "NIfTI of 32767^3": lambda: nifti_claims(nibabel.Nifti1Image, (32767,) * 3),
    "NIfTI-2 of 2^22 cubed": lambda: nifti_claims(nibabel.Nifti2Image, (1 << 22,) * 3),
    "NIfTI-2 of 2^32 squared": lambda: nifti_claims(nibabel.Nifti2Image, (1 << 32, 1 << 32, 12)),
}


def main(folder: Path) -> None:
    """Judge what `write` wrote, each input in a folder of its own."""
    from ingest import streams
    from tests.fuzz.check import unharmed

    streams.RATIO_FLOOR_BYTES = FLOOR_BYTES
    unharmed(False)  # so that imports and first calls do not count
    for number, name in enumerate(HOSTILE):
        before, began = _peak_mib(), time.monotonic()
        row = judge(folder / f"{number}", folder / f"out{number}")
        row |= {"name": name, "mib": _peak_mib() - before}
        row |= {"s": round(time.monotonic() - began, 1)}
        sys.stdout.write(json.dumps(row) + "\n")


def judge(raw: Path, out: Path) -> dict[str, Any]:
    """Files by reason; ``ok`` for the accepted ones."""
    from ingest.errors import IngestError
    from ingest.pipeline import Job, build, plan_build
    from tests.fuzz.check import CONFIGS, KEY, Silent

    ear, error = Silent(), ""
    try:
        plan = plan_build([str(raw)], CONFIGS[False], KEY, ear)
        build(plan, CONFIGS[False], KEY, Job(out=out, max_failures=1), ear)
    except IngestError as exc:
        error = "" if "none accepted" in str(exc) else str(exc)
    except Exception as exc:  # the very thing that must not happen
        error = f"{type(exc).__name__}: {exc}"
    found = ear.found.n_files if ear.found else -1
    reasons = dict(ear.reasons) | {"ok": found - sum(ear.reasons.values())}
    return {"error": error, "reasons": {name: n for name, n in reasons.items() if n}}


def write(folder: Path) -> None:
    """Write the inputs: in another process than the one whose memory is looked at."""
    for number, make in enumerate(HOSTILE.values()):
        (folder / f"{number}").mkdir(parents=True)
        for file, data in make().items():
            (folder / f"{number}" / file).write_bytes(data)


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
