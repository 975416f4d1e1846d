"""Errors of ingest, and the reason codes that reach ``series.parquet`` and the report.

IngestError                the run cannot go on; the message is one line for the user
├── UsageError             wrong arguments or paths (exit code 2)
└── FailureBudgetError     too many broken inputs (exit code 1)
SeriesError                one series or file is refused; carries a reason code, never stops the run
"""

from __future__ import annotations

from enum import StrEnum


class IngestError(Exception):
    """The run cannot go on; ``str()`` says what, where and what to do."""


class UsageError(IngestError):
    """Arguments or paths that cannot work."""


class FailureBudgetError(IngestError):
    """More broken inputs than ``--max-failures`` allows."""


class Reason(StrEnum):
    """Stable lower-case codes. New ones may be added; none is ever renamed or reused."""

    OK = "ok"
    WITHDRAWN = "withdrawn"
    ALREADY_STORED = "already_stored"
    # The file cannot be read: broken input, which counts against the failure budget.
    UNREADABLE_FILE = "unreadable_file"
    TRUNCATED_FILE = "truncated_file"
    CORRUPT_ARCHIVE = "corrupt_archive"
    DECODE_FAILED = "decode_failed"
    # Refused by rule: nothing is broken, this is just not a CT volume to train on.
    NOT_MEDICAL_IMAGE = "not_medical_image"
    ARCHIVE_LIMIT = "archive_limit"
    NESTED_ARCHIVE = "nested_archive"
    DICOMDIR = "dicomdir"
    DUPLICATE_FILE = "duplicate_file"
    DUPLICATE_SERIES = "duplicate_series"
    EXCLUDED = "excluded"
    NOT_SELECTED = "not_selected"
    TOO_LITTLE_COVERAGE = "too_little_coverage"
    HEAD = "head"
    NOT_CT = "not_ct"
    NOT_AN_IMAGE = "not_an_image"
    SECONDARY_CAPTURE = "secondary_capture"
    LOCALIZER = "localizer"
    NOT_GREYSCALE = "not_greyscale"
    MULTI_FRAME = "multi_frame"
    BURNED_IN_ANNOTATION = "burned_in_annotation"
    UNSUPPORTED_TRANSFER_SYNTAX = "unsupported_transfer_syntax"
    MISSING_GEOMETRY = "missing_geometry"
    TOO_FEW_SLICES = "too_few_slices"
    DUPLICATE_POSITIONS = "duplicate_positions"
    # Tilt, gaps and variable spacing are regridded and flagged; these are what cannot be.
    MISSING_SLICES = "missing_slices"
    VARIABLE_SPACING = "variable_spacing"
    TILTED = "tilted"
    NOT_3D = "not_3d"
    BAD_AFFINE = "bad_affine"
    IMPLAUSIBLE_SPACING = "implausible_spacing"
    BLANK = "blank"
    NOT_HU = "not_hu"
    IMPLAUSIBLE_HU = "implausible_hu"
    INCONSISTENT_SLICE = "inconsistent_slice"
    # Labels: the file is refused, its volume is taken without it.
    NOT_A_LABEL = "not_a_label"
    LABEL_WITHOUT_CT = "label_without_ct"
    LABEL_AMBIGUOUS = "label_ambiguous"
    LABEL_MISMATCH = "label_mismatch"
    LABEL_GEOMETRY = "label_geometry"
    LABEL_VALUES = "label_values"
    LABEL_FRACTIONAL = "label_fractional"
    LABEL_OVERLAP = "label_overlap"


BROKEN = frozenset(
    {
        Reason.UNREADABLE_FILE,
        Reason.TRUNCATED_FILE,
        Reason.CORRUPT_ARCHIVE,
        Reason.DECODE_FAILED,
    }
)
"""Reasons that count against ``--max-failures``: refusals by rule never do."""


class SeriesError(Exception):
    """A series is refused. ``detail`` is for a person and holds no identifier, path or date."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[SeriesError], tuple[Reason, str]]:
        """Pickled by its two fields: workers send it to the main process."""
        return type(self), (self.reason, self.detail)
