"""Writes archives of the computed torso: real DICOM and NIfTI files for tests and for the demo.

Everything is a function of the arguments: UIDs, dates and voxels are the same on every machine.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int16
from numpy import ndarray

from ingest.phantom import Torso, sample_torso

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
HEAD_FIRST_SUPINE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
FEET_FIRST_SUPINE = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""ImageOrientationPatient, LPS: direction along a row, then down a column (PS3.3 C.7.6.2.1.1)."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class SeriesSpec:
    """One axial CT series of one phantom person, and how its files are written."""

    patient: int
    study: int = 1
    number: int = 1
    torso: Torso = field(default_factory=lambda: Torso(seed=0))
    slices: int = 40
    side: int = 192
    """Rows and columns."""
    pixel_mm: float = 1.7
    gap_mm: float = 2.5
    """Distance between slices; ``thickness_mm`` is another matter, as in real archives."""
    thickness_mm: float = 2.5
    bottom_mm: float = -80.0
    """S of the lowest slice."""
    orientation: tuple[float, ...] = HEAD_FIRST_SUPINE
    top_first: bool = False
    """InstanceNumber runs from head to feet."""
    syntax: str = EXPLICIT_LE
    kernel: str = "B30f"
    padding: int | None = None
    """Stored value outside the reconstruction circle, declared as PixelPaddingValue."""
    slice_rescale: bool = False
    """Slope and intercept differ from slice to slice, with the same HU."""
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL")

    @property
    def affine(self) -> Float64[ndarray, "4 4"]:
        """(slice from the bottom, row, column, 1) to RAS mm; the grid is centred on R = A = 0."""
        columns, rows = np.reshape(self.orientation, (2, 3)) * self.pixel_mm
        affine = np.eye(4)
        affine[:3, 0] = 0, 0, self.gap_mm
        affine[:3, 1] = _LPS_TO_RAS @ rows
        affine[:3, 2] = _LPS_TO_RAS @ columns
        half = (self.side - 1) / 2
        affine[:3, 3] = (0, 0, self.bottom_mm) - half * (affine[:3, 1] + affine[:3, 2])
        return affine

    def hu(self) -> Int16[ndarray, "z y x"]:
        """True HU, (slice from the bottom, row, column); -1024 in the padding."""
        hu = sample_torso(self.torso, self.affine, (self.slices, self.side, self.side))
        if self.padding is not None:
            hu[:, ~self.circle()] = -1024
        return hu

    def circle(self) -> ndarray:
        """Which pixels lie inside the circle of reconstruction."""
        steps = np.arange(self.side) - (self.side - 1) / 2
        inside: ndarray = steps[:, None] ** 2 + steps**2 <= (self.side / 2) ** 2
        return inside


def uid(*parts: object) -> str:
    """A valid UID that depends on ``parts`` alone."""
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=["coralbay phantom", *map(str, parts)]))


def write_dicom_series(folder: Path, spec: SeriesSpec, extension: str = ".dcm") -> list[Path]:
    """Write one file a slice, bottom slice first, under ``folder``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, hu in enumerate(spec.hu()):
        instance = spec.slices - index if spec.top_first else index + 1
        paths.append(folder / f"IM{instance:04d}{extension}")
        dicom_slice(spec, hu, index, instance).save_as(paths[-1], enforce_file_format=True)
    return paths


def dicom_slice(spec: SeriesSpec, hu: Int16[ndarray, "y x"], index: int, instance: int) -> Any:
    """One CT Image Storage data set; ``index`` counts slices from the bottom."""
    from pydicom.dataset import FileDataset, FileMetaDataset

    names = (spec.patient, spec.study, spec.number)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CT_IMAGE_STORAGE
    meta.MediaStorageSOPInstanceUID = uid("image", *names, instance)
    meta.TransferSyntaxUID = spec.syntax
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = CT_IMAGE_STORAGE, meta.MediaStorageSOPInstanceUID
    _identify(ds, spec, instance)
    position = spec.affine @ (index, 0, 0, 1)
    ds.ImagePositionPatient = [round(float(v), 6) for v in _LPS_TO_RAS @ position[:3]]
    ds.ImageOrientationPatient = list(spec.orientation)
    ds.PixelSpacing = [spec.pixel_mm, spec.pixel_mm]
    ds.SliceThickness = spec.thickness_mm
    _pixels(ds, spec, hu, index)
    return ds


def _identify(ds: Any, spec: SeriesSpec, instance: int) -> None:
    """Patient, study, series, equipment and acquisition (PS3.3 A.3)."""
    names = (spec.patient, spec.study, spec.number)
    ds.ImageType = list(spec.image_type)
    ds.PatientName, ds.PatientID = f"Phantom^P{spec.patient}", f"PHANTOM-{spec.patient}"
    ds.PatientBirthDate, ds.PatientSex, ds.PatientPosition = "", "O", "HFS"
    if spec.orientation == FEET_FIRST_SUPINE:
        ds.PatientPosition = "FFS"
    ds.StudyInstanceUID = uid("study", spec.patient, spec.study)
    ds.SeriesInstanceUID = uid("series", *names)
    ds.FrameOfReferenceUID = uid("frame", spec.patient, spec.study)
    ds.PositionReferenceIndicator = ""
    ds.StudyDate, ds.StudyTime, ds.StudyID = "20200101", "120000", str(spec.study)
    ds.AccessionNumber, ds.ReferringPhysicianName = "", ""
    ds.StudyDescription, ds.SeriesDescription = "Computed torso", f"Series {spec.number}"
    ds.Modality, ds.Manufacturer, ds.BodyPartExamined = "CT", "Computed phantom", "CHEST"
    ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = spec.number, 1, instance
    ds.KVP, ds.ConvolutionKernel = 120, spec.kernel
    if spec.torso.contrast:
        ds.ContrastBolusAgent = "Computed"


def _pixels(ds: Any, spec: SeriesSpec, hu: Int16[ndarray, "y x"], index: int) -> None:
    """Image pixel and Modality LUT modules; the stored values give back ``hu`` exactly."""
    slope, intercept = 1.0, -1024.0
    if spec.slice_rescale:
        slope, intercept = (0.5, -1024.0 - index % 3) if index % 2 else (1.0, -1000.0)
    stored = (hu.astype(np.float64) - intercept) / slope
    signed = spec.slice_rescale or spec.padding is not None
    if spec.padding is not None:
        stored[~spec.circle()] = spec.padding
    ds.Rows, ds.Columns, ds.SamplesPerPixel = spec.side, spec.side, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(signed)
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = slope, intercept, "HU"
    if spec.padding is not None:
        ds.PixelPaddingValue = spec.padding
    ds.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()


def write_nifti(
    path: Path, torso: Torso, shape_xyz: Sequence[int], spacing_mm: float, bottom_mm: float
) -> None:
    """A NIfTI whose array runs toward L, A, S, as many converters write them."""
    import nibabel

    affine = np.diag([-spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = (
        spacing_mm * (shape_xyz[0] - 1) / 2,
        -spacing_mm * (shape_xyz[1] - 1) / 2,
        bottom_mm,
    )
    image = nibabel.Nifti1Image(sample_torso(torso, affine, shape_xyz), affine)
    image.header.set_xyzt_units("mm")
    # gzip would write the clock and the file's name into its header.
    path.write_bytes(_gzip(image.to_bytes()))


def _gzip(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data, compresslevel=6, mtime=0)


DEMO_SERIES = {
    "clinic-a/P1/chest": SeriesSpec(patient=1, torso=Torso(seed=1), slices=60),
    "clinic-a/P1/chest-thick": SeriesSpec(
        patient=1, number=2, torso=Torso(seed=1), slices=30, gap_mm=5.0, thickness_mm=5.0,
        kernel="B70f", syntax=IMPLICIT_LE,
    ),
    "clinic-a/P2/feet-first": SeriesSpec(
        patient=2, torso=Torso(seed=2, contrast=True), slices=48, gap_mm=3.0, thickness_mm=4.0,
        orientation=FEET_FIRST_SUPINE, top_first=True,
    ),
    "clinic-b/P3.zip": SeriesSpec(
        patient=3, torso=Torso(seed=3), slices=64, side=160, pixel_mm=2.0, gap_mm=2.0,
        slice_rescale=True,
    ),
    "clinic-b/P4.tar.gz": SeriesSpec(
        patient=4, torso=Torso(seed=4, contrast=True), slices=40, side=176, pixel_mm=1.9,
        gap_mm=3.5, thickness_mm=3.0, padding=-2000, bottom_mm=-100.0,
    ),
    "clinic-b/P5/abdomen": SeriesSpec(
        patient=5, torso=Torso(seed=5, contrast=True), slices=56, bottom_mm=-140.0, top_first=True,
    ),
}  # fmt: skip
"""Where a series lies in the demo archive; a name with a suffix is an archive of its files."""


def write_demo_archive(folder: Path) -> None:
    """The archive of ``make demo``: six DICOM series, a NIfTI, and what clutters real archives."""
    for place, spec in DEMO_SERIES.items():
        write_series_at(folder / place, spec)
    write_nifti(folder / "clinic-b/P6.nii.gz", Torso(seed=6), (120, 100, 56), 2.6, -70.0)
    _write_clutter(folder)


def write_series_at(target: Path, spec: SeriesSpec) -> None:
    """One series as a folder, or as a ``.zip`` or ``.tar.gz`` when ``target`` is called so."""
    if target.suffix not in (".zip", ".gz"):
        write_dicom_series(target, spec, extension="" if spec.syntax == IMPLICIT_LE else ".dcm")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    members = []
    for index, hu in enumerate(spec.hu()):
        buffer = io.BytesIO()
        dicom_slice(spec, hu, index, index + 1).save_as(buffer, enforce_file_format=True)
        members.append((f"DICOM/I{index + 1:05d}", buffer.getvalue()))
    pack(target, members)


def pack(target: Path, members: Sequence[tuple[str, bytes]]) -> None:
    """A zip or tar.gz of ``members``, with fixed dates."""
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w") as archive:
            for name, data in members:
                archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        return
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive_tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive_tar.addfile(info, io.BytesIO(data))
    target.write_bytes(_gzip(buffer.getvalue()))


def _write_clutter(folder: Path) -> None:
    """A localizer, a duplicate, a truncated file and a text file."""
    chest = DEMO_SERIES["clinic-a/P1/chest"]
    scout = replace(chest, number=9, slices=1, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    write_dicom_series(folder / "clinic-a/P1/scout", scout)
    image = (folder / "clinic-a/P1/chest/IM0010.dcm").read_bytes()
    (folder / "clinic-a/P1/copy-of-10.dcm").write_bytes(image)
    (cut,) = write_dicom_series(
        folder / "clinic-a/P2/broken", replace(chest, patient=2, number=7, slices=1)
    )
    cut.write_bytes(cut.read_bytes()[:20_000])
    (folder / "README.txt").write_text("A computed torso phantom: no person was scanned.\n")
