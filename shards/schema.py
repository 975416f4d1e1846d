"""The on-disk contract. Read this first; ``docs/format.md`` says it in words.

A dataset is a folder or a bucket prefix: a manifest, shards (USTAR tars of whole volumes), two
sidecars a shard, three Parquet tables and a report. Every name, member suffix, number and column
that a reader may rely on is defined here; ``shards/versions.py`` says which version has what.

Axis order is (z, y, x) everywhere. Arrays increase toward S, P, L (superior, posterior, left); an
affine maps ``(z, y, x, 1)`` to RAS millimetres.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import cattrs
import pyarrow as pa

from shards.errors import CorruptShardError

FORMAT = "coralbay-shards"
"""The manifest's ``format``."""

HU_MIN, HU_MAX = -1024, 3071
"""Stored range, HU, both ends included (12 bits of a scanner with intercept -1024)."""
FILL_HU = -1024
"""Value of everything outside the scanned volume; an absent chunk is all this."""
AIR_BELOW_HU = -500
"""A chunk with no voxel above this is air: nothing of a patient is in it."""
ORIENTATION = "SPL"
"""Directions in which (z, y, x) increase."""
MIN_TRAINABLE_SIDE = 33
"""Sides of 32 voxels or fewer collapse to one voxel in the 3D Swin, which its norms refuse."""

MANIFEST = "manifest.json"
INDEX = "index.parquet"
CHUNKS = "chunks.parquet"
SERIES = "series.parquet"
REPORT = "report.html"

META_SUFFIX = "json"
ZARR_SUFFIX = "ct.zarr.json"
DATA_SUFFIX = "ct.zshard"
"""Member names are ``KEY.<suffix>``, in this order: json, ct.zarr.json, ct.zshard."""

LABEL_META_SUFFIX = "seg.json"
LABEL_ZARR_SUFFIX = "seg.zarr.json"
LABEL_DATA_SUFFIX = "seg.zshard"
"""Since version 2 these three follow, in this order, where a sample has a label volume."""
SUFFIXES = (META_SUFFIX, ZARR_SUFFIX, DATA_SUFFIX)
LABEL_SUFFIXES = (LABEL_META_SUFFIX, LABEL_ZARR_SUFFIX, LABEL_DATA_SUFFIX)

KEY_PATTERN = re.compile(r"[a-z0-9_-]{1,64}")
LABEL_NAME_PATTERN = re.compile(r"[A-Za-z0-9 ._,()+/-]{0,64}")
"""Names of label values come from the user alone, never from a source file."""
CODE_PATTERNS = {
    "DCM": r"[0-9]{4,6}",
    "FMA": r"[0-9]{1,8}",
    "LN": r"(LP)?[0-9]{1,8}-[0-9]",
    "NCIt": r"C[0-9]{1,8}",
    "RADLEX": r"RID[0-9]{1,6}",
    "SCT": r"[0-9]{6,18}",
    "SNM3": r"[A-Z]-[0-9A-F]{4,6}",
    "SRT": r"[A-Z]-[0-9A-F]{4,6}",
    "UMLS": r"C[0-9]{7}",
}
"""Public coding schemes by designator (PS3.16 8-1), and what their codes look like: no other code
is stored, so that no text can pass for one."""
MAX_LABEL_VALUES = 512
"""Distinct values of a label volume: more are an image, not labels."""


def shard_name(number: int) -> str:
    """File name of shard ``number``, e.g. ``shard-000003.tar``."""
    return f"shard-{number:06d}.tar"


def shard_number(name: str) -> int:
    """Number of the shard with this file name."""
    return int(name.removeprefix("shard-").removesuffix(".tar"))


def idx_name(shard: str) -> str:
    """Name of the DALI index beside a shard."""
    return f"{shard}.idx"


def refs_name(shard: str) -> str:
    """Name of the kerchunk references beside a shard."""
    return f"{shard}.refs.json"


@dataclass(frozen=True, kw_only=True)
class MustMatch:
    """What weights and data have to agree on; a difference is an error, never a warning."""

    hu_range: tuple[int, int] = (HU_MIN, HU_MAX)
    spacing_zyx_mm: tuple[float, float, float] | None = (1.5, 1.5, 1.5)
    """Target spacing; None when every volume kept its own (``native``)."""
    orientation: str = ORIENTATION
    axis_order: str = "zyx"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """How the data were made, for the record: differences are allowed."""

    resampler: str
    body_crop: bool
    profile: str
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the packages that shape bytes (numcodecs, numpy, torch, ...)."""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """The preprocessing contract of a dataset."""

    must_match: MustMatch
    recorded: Recorded

    @property
    def sha256(self) -> str:
        """Digest of ``must_match`` in canonical JSON: equal digests may be mixed in one run."""
        return hashlib.sha256(canonical_json(converter.unstructure(self.must_match))).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """A file of the dataset other than a shard."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """One shard and its two sidecars."""

    name: str
    bytes: int
    sha256: str
    samples: int
    idx: FileEntry
    refs: FileEntry


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums a person asks for first. ``files_in == files_used + files_refused``."""

    samples: int
    trainable: int
    shard_bytes: int
    voxels: int
    files_in: int
    files_used: int
    files_refused: int
    series_accepted: int
    series_refused: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """``manifest.json``. Written last: its presence means the dataset is complete."""

    format: str
    format_version: int
    generation: int
    """1 for a first build; every later change of the dataset adds one."""
    contract: Contract
    contract_sha256: str
    build_sha256: str
    """Digest of the inputs' identities, the id key's fingerprint and the whole configuration."""
    id_key_fingerprint: str
    levels: list[str]
    """Reserved for further spacings of the same volume; ``["ct"]`` in version 1."""
    shards: list[ShardEntry]
    files: list[FileEntry]
    totals: Totals
    tombstones: list[str] = field(default_factory=list)
    """Since version 2: sorted keys that are withdrawn, though their bytes are still in a shard."""

    @property
    def generation_id(self) -> str:
        """Digest of the shards' digests and the tombstones: names what a run was trained on."""
        return generation_id(self.shards, self.tombstones)


def generation_id(shards: Sequence[ShardEntry], tombstones: Sequence[str] = ()) -> str:
    """The generation id of a dataset of these shards and tombstones, both in order."""
    lines = [f"{shard.name} {shard.sha256}" for shard in shards]
    lines += [f"tombstone {key}" for key in tombstones]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class HuStats:
    """Over the stored voxels, HU; ``clipped_fraction`` is the share that the range cut off."""

    min: int
    max: int
    mean: float
    p01: float
    p50: float
    p99: float
    clipped_fraction: float


@dataclass(frozen=True, kw_only=True)
class Original:
    """The volume before resampling and cropping, on its own grid, already in S, P, L order."""

    shape_zyx: tuple[int, int, int]
    spacing_zyx_mm: tuple[float, float, float]
    orientation: str
    """Directions in which the source's stored (slice, row, column) increase, e.g. ``IAR``."""
    geometry: str
    """Geometry verdict: ``uniform``, ``oblique``, ..."""


@dataclass(frozen=True, kw_only=True)
class SampleMeta:
    """``KEY.json``: provenance without PHI. An allow-list, so nothing else can slip in."""

    key: str
    subject_id: str
    study_id: str
    source: str
    """Name of the collection, given by ``--source``; ``default`` otherwise."""
    source_kind: str
    """``dicom`` or ``nifti``."""
    modality: str
    shape_zyx: tuple[int, int, int]
    spacing_zyx_mm: tuple[float, float, float]
    affine: tuple[tuple[float, ...], ...]
    """4 by 4, row by row: (z, y, x, 1) to RAS mm."""
    original: Original
    hu: HuStats
    body_box_zyx: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    """``[start, stop)`` per axis of the stored box on the resampled, uncropped grid."""
    slice_mm: float
    """Slice thickness if the source states one, else the slice spacing, mm."""
    kernel: str
    """Reconstruction kernel, ``""`` when unknown."""
    contrast: bool | None
    """Whether a contrast agent is stated; None when the source does not say."""
    kvp: float | None
    flags: tuple[str, ...]
    """Stable lower-case codes of what was noticed and handled, e.g. ``duplicates_dropped``."""
    content_sha256: str
    """Of the int16 little-endian voxels in C order, then shape and affine (see format.md)."""


@dataclass(frozen=True, kw_only=True)
class LabelValue:
    """One value of a label volume, and what it stands for."""

    value: int
    name: str
    """Given by the user; ``""`` otherwise."""
    code: str
    """Of the segmented property type, ``""`` when unknown or not of a public scheme."""
    scheme: str
    """Coding scheme designator, e.g. ``SCT``; ``""`` with the code."""
    voxels: int
    """Stored voxels that have the value; may be 0."""


@dataclass(frozen=True, kw_only=True)
class LabelMeta:
    """``KEY.seg.json``: provenance of a label volume. An allow-list, as `SampleMeta` is."""

    key: str
    source_kind: str
    """``nifti`` or ``dicom_seg``."""
    labels: tuple[LabelValue, ...]
    """Ascending by value; every value but 0, which is background."""
    content_sha256: str
    """Of the values as uint16 little-endian in C order, then shape and affine (see format.md)."""


INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("subject_id", pa.string()),
        ("study_id", pa.string()),
        ("source", pa.string()),
        ("shape_zyx", pa.list_(pa.int32(), 3)),
        ("spacing_zyx_mm", pa.list_(pa.float64(), 3)),
        ("slice_mm", pa.float64()),
        ("kernel", pa.string()),
        ("contrast", pa.bool_()),
        ("trainable", pa.bool_()),
        ("offset", pa.int64()),
        ("nbytes", pa.int64()),
    ]
)
"""``index.parquet``: a thin row a sample; ``offset``/``nbytes`` of the zshard's data in the tar."""

CHUNKS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("chunk_offsets", pa.list_(pa.int64())),
        ("chunk_nbytes", pa.list_(pa.int32())),
        ("air_mask", pa.list_(pa.bool_())),
    ]
)
"""``chunks.parquet``: a row a sample, a row group a shard; chunks in C order of the chunk grid."""

SERIES_SCHEMA = pa.schema(
    [
        ("series_id", pa.string()),
        ("source_kind", pa.string()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("n_files", pa.int32()),
        ("n_slices", pa.int32()),
        ("key", pa.string()),
        ("modality", pa.string()),
        ("geometry", pa.string()),
        ("shape_zyx", pa.list_(pa.int32(), 3)),
        ("spacing_zyx_mm", pa.list_(pa.float64(), 3)),
        ("flags", pa.list_(pa.string())),
    ]
)
"""``series.parquet``: a row a series or stray file; ``n_files`` adds up to every file found."""

converter = cattrs.Converter(forbid_extra_keys=True)
"""Dataclass to JSON-able and back; an unknown key is an error, so no typo is ever ignored."""

T = TypeVar("T")


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values, equal bytes. NaN is refused."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def dump_json(record: Any) -> bytes:
    """A dataclass as canonical JSON."""
    return canonical_json(converter.unstructure(record))


def load_json(data: bytes, record: type[T], where: str) -> T:
    """Parse ``data`` as ``record``; ``where`` names the file or member in the error.

    Raises:
        CorruptShardError: not JSON, or not the fields of ``record``.
    """
    try:
        return converter.structure(json.loads(data), record)
    except Exception as exc:  # cattrs raises an open family of errors: any means "not our schema"
        raise CorruptShardError(f"{where}: not a valid {record.__name__} ({exc!r})") from exc
