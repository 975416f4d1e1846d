"""Inputs of the ingest benchmark: one real chest CT as several series, raw and JPEG lossless."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import JPEGLosslessSV1, generate_uid

SOURCE = Path("lidc-idri/LIDC-IDRI-0001.tar.bz2")
"""133 slices of 512 x 512, below the folder of real CT."""
KINDS = ("raw", "jpeg_lossless")


def make_inputs(ct_data: Path, folder: Path, series: int) -> dict[str, list[Path]]:
    """Folders of one series each, by kind; what is there from an earlier run is used again.

    Args:
        ct_data: folder of real CT.
        folder: where to write.
        series: how many, each with ids of its own, so that none is a duplicate of another.
    """
    made = {kind: [folder / kind / f"{n:02d}" for n in range(series)] for kind in KINDS}
    missing = [path for paths in made.values() for path in paths if not path.exists()]
    if missing:
        raw = _unpack(ct_data / SOURCE, folder / "source")
        packed = [_transcode(path, folder / "source-jpeg" / path.name) for path in raw]
        for kind, files in zip(KINDS, (raw, packed), strict=True):
            for number, path in enumerate(made[kind]):
                if path in missing:
                    _copy_series(files, path, f"{kind} {number}")
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


def _transcode(path: Path, out: Path) -> Path:
    """``path`` as JPEG lossless (1.2.840.10008.1.2.4.70), made by GDCM, checked to be the same.

    Raises:
        RuntimeError: GDCM failed, or its file decodes to other values.
    """
    import gdcm

    out.parent.mkdir(parents=True, exist_ok=True)
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
    return out


_RESCALE = ("RescaleSlope", "RescaleIntercept", "PixelRepresentation")


def _copy_series(files: list[Path], folder: Path, name: str) -> None:
    """``files`` as another patient's series in ``folder``."""
    draft = folder.with_name(f"{folder.name}.part")
    draft.mkdir(parents=True, exist_ok=True)
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.PatientID = name
        dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study", name])
        dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", name])
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=["image", name, path.name])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(draft / path.name)
    draft.rename(folder)
