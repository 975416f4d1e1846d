"""Inputs of the ingest benchmark: one real chest CT as several series, raw and JPEG lossless."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import JPEGLosslessSV1, generate_uid

SOURCE = Path("lidc-idri/LIDC-IDRI-0001.tar.bz2")
"""133 slices of 512 x 512, below the folder of real CT."""
KINDS = ("raw", "jpeg_lossless")
_RESCALE = ("RescaleSlope", "RescaleIntercept", "PixelRepresentation")


def make_inputs(ct_data: Path, folder: Path, series: int) -> dict[str, list[Path]]:
    """Folders of one series each, by kind; what is there from an earlier run is used again.

    Args:
        ct_data: folder of real CT.
        folder: where to write.
        series: how many.
    """
    made = {kind: [folder / kind / f"{n:02d}" for n in range(series)] for kind in KINDS}
    if not all(path.exists() for paths in made.values() for path in paths):
        source = _unpack(ct_data / SOURCE, folder / "source")
        for number, (raw, packed) in enumerate(
            zip(made["raw"], made["jpeg_lossless"], strict=True)
        ):
            write_copy(source, raw, number)
            transcode(raw, packed)
    return made


def file_bytes(folders: list[Path]) -> int:
    """Bytes of all files in ``folders``."""
    return sum(path.stat().st_size for folder in folders for path in folder.iterdir())


def _unpack(archive: Path, folder: Path) -> list[Path]:
    """The archive's files as plain files."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        return sorted(_write_members(tar, folder))


def _write_members(tar: tarfile.TarFile, folder: Path) -> Iterator[Path]:
    for number, member in enumerate(m for m in tar if m.isfile()):
        stream = tar.extractfile(member)
        assert stream is not None
        path = folder / f"{number:04d}.dcm"
        path.write_bytes(stream.read())
        yield path


def write_copy(files: list[Path], folder: Path, number: int) -> None:
    """``files`` as another patient's series in ``folder``.

    A row in the middle of each slice differs: equal volumes would be refused as duplicates.
    """
    with _whole(folder) as draft:
        for path in files:
            dataset = pydicom.dcmread(path)
            pixels = dataset.pixel_array.copy()
            pixels[len(pixels) // 2] += number
            dataset.PixelData = pixels.tobytes()
            dataset.PatientID = f"patient {number}"
            dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study", str(number)])
            dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", str(number)])
            dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(number), path.name])
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.save_as(draft / path.name)


def transcode(source: Path, folder: Path) -> None:
    """The files of ``source`` as JPEG lossless (1.2.840.10008.1.2.4.70), made by GDCM.

    Raises:
        RuntimeError: GDCM failed, or a file decodes to other values.
    """
    with _whole(folder) as draft:
        for path in sorted(source.iterdir()):
            _transcode(path, draft / path.name)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder that becomes ``folder`` when it is complete."""
    shutil.rmtree(folder, ignore_errors=True)
    draft = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    yield draft
    draft.rename(folder)


def _transcode(path: Path, out: Path) -> None:
    """One file; what it decodes to is checked."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        raise RuntimeError(f"{path}: GDCM cannot read it")
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise RuntimeError(f"{path}: GDCM cannot transcode it")
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(out))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise RuntimeError(f"{out}: GDCM cannot write it")
    before, after = pydicom.dcmread(path), pydicom.dcmread(out)
    if after.file_meta.TransferSyntaxUID != JPEGLosslessSV1:
        raise RuntimeError(f"{out}: its transfer syntax is {after.file_meta.TransferSyntaxUID}")
    same_rescale = all(before[name].value == after[name].value for name in _RESCALE)
    if not same_rescale or not np.array_equal(before.pixel_array, after.pixel_array):
        raise RuntimeError(f"{out}: does not decode to the values of {path}")
