"""Reason codes in words, for the report and the terminal."""

from __future__ import annotations

from ingest.errors import Reason

SENTENCES: dict[Reason, str] = {
    Reason.OK: "Taken as a volume.",
    Reason.WITHDRAWN: "Its subject is withdrawn from the dataset.",
    Reason.ALREADY_STORED: "The series is stored already, from other files; it stays as it was.",
    Reason.UNREADABLE_FILE: "The file could not be opened or parsed.",
    Reason.TRUNCATED_FILE: "The file ends before its pixel data do.",
    Reason.CORRUPT_ARCHIVE: "The archive is damaged and could not be unpacked.",
    Reason.DECODE_FAILED: "The compressed pixels could not be decoded.",
    Reason.NOT_MEDICAL_IMAGE: "Neither DICOM nor NIfTI.",
    Reason.ARCHIVE_LIMIT: "The archive is larger, or unpacks to more, than is safe to read.",
    Reason.NESTED_ARCHIVE: "An archive inside an archive; unpack the outer one.",
    Reason.DICOMDIR: "A DICOM directory: an index of other files, without an image.",
    Reason.DUPLICATE_FILE: "The same image was found before; one copy is used.",
    Reason.DUPLICATE_SERIES: "The same volume was found before; one copy is used.",
    Reason.EXCLUDED: "On the list of --exclude, so that it never enters training.",
    Reason.NOT_SELECTED: "Another reconstruction of the same acquisition was selected.",
    Reason.TOO_LITTLE_COVERAGE: "Covers less from feet to head than --min-coverage-mm.",
    Reason.HEAD: "Shows a head, from which a face could be made; --heads drop refuses it.",
    Reason.NOT_CT: "Another modality than CT.",
    Reason.NOT_AN_IMAGE: "A DICOM object without pixels, such as a report or a plan.",
    Reason.SECONDARY_CAPTURE: "A screen capture or a rendering, not the scanner's own image.",
    Reason.LOCALIZER: "A localizer (scout, topogram): a projection, not a volume.",
    Reason.NOT_GREYSCALE: "Colour, or more than one sample a pixel.",
    Reason.MULTI_FRAME: "Several frames in one file, without a place for each.",
    Reason.BURNED_IN_ANNOTATION: "Text is burned into the pixels and may identify a person.",
    Reason.UNSUPPORTED_TRANSFER_SYNTAX: "The pixels are encoded in a way that is not read.",
    Reason.MISSING_GEOMETRY: "Position, orientation or pixel spacing is not stated.",
    Reason.TOO_FEW_SLICES: "Fewer slices than --min-slices.",
    Reason.DUPLICATE_POSITIONS: "Different images share a position, as phases of a scan do.",
    Reason.MISSING_SLICES: "A gap of more than three slice spacings is not bridged.",
    Reason.VARIABLE_SPACING: "The slices shift irregularly within their plane: no grid.",
    Reason.TILTED: "The slices are sheared by more than any gantry tilts.",
    Reason.NOT_3D: "Not a three-dimensional image.",
    Reason.BAD_AFFINE: "The stated affine places no orthogonal grid.",
    Reason.IMPLAUSIBLE_SPACING: "The voxel spacing is not that of a CT of a person.",
    Reason.BLANK: "All voxels, or those of a slice inside, are equal or nearly so.",
    Reason.NOT_HU: "The values are not Hounsfield units.",
    Reason.INCONSISTENT_SLICE: "A slice does not continue its neighbours: damaged or foreign.",
    Reason.IMPLAUSIBLE_HU: "The values lie outside what Hounsfield units can be.",
    Reason.NOT_A_LABEL: "Given as a label, but neither NIfTI nor a DICOM segmentation.",
    Reason.LABEL_WITHOUT_CT: "The volume that the label belongs to is not there, or was refused.",
    Reason.LABEL_AMBIGUOUS: "A label for several volumes, or several labels for one volume.",
    Reason.LABEL_MISMATCH: "The label lies elsewhere than its volume, or in another frame.",
    Reason.LABEL_GEOMETRY: "The segmentation's frames lie on no common grid.",
    Reason.LABEL_VALUES: "The label's values are not whole numbers from 0 up, or too many.",
    Reason.LABEL_FRACTIONAL: "A fractional segmentation: shares or probabilities, not labels.",
    Reason.LABEL_OVERLAP: "Segments overlap, so that a voxel has no single label.",
}
"""A sentence for each reason."""


def sentence(reason: str) -> str:
    """The reason in words."""
    return SENTENCES[Reason(reason)]
