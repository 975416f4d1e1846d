"""The commands of ``ingest`` and their flags, as data; tyro reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Raw = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RAW...")]
Target = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT|URL")]
Key = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[KEY]")]
Paths = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RAW... OUT")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Files = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE"), tyro.conf.UseAppendAction]
Select = Literal["all", "thinnest-soft-tissue"]
Folder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
Labels = Annotated[
    tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FOLDER_OR_FILE")
]
New = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """List what is there, series by series, and why each would be taken or not (no pixels)."""

    raw: Raw
    """Folders, archives (zip, tar, tar.gz, tar.bz2, tar.xz), files and URLs (s3://, ...)."""
    min_slices: int = 10
    """Fewest slices of a volume."""
    min_coverage_mm: float = 0.0
    """Least distance of the first and the last slice from feet to head, mm."""
    select: Select = "all"
    """Of the reconstructions of one acquisition take all, or the thinnest of a soft kernel."""
    exclude: Files = ()
    """List of UIDs and hashes that must not be taken, as ingest fingerprint writes; may repeat."""
    labels: Labels = ()
    """Segmentations to pair with the volumes (see build-shards); may be given several times."""
    workers: int | None = None
    """Processes that read headers, one a core by default; they change nothing."""
    id_key: File = None
    """File with the key behind the identifiers; by default one of your own, made once."""
    json: bool = False
    """End with one line of JSON on stdout."""


@dataclass(frozen=True, kw_only=True)
class BuildShards:
    """Build a dataset from raw archives; resumable, and the same bytes every time."""

    paths: Paths
    """Folders, archives, files and URLs to read, then the folder or URL (s3://, ...) to write."""
    spacing_mm: Annotated[str, tyro.conf.arg(metavar="MM|z,y,x|native")] = "1.5"
    """Target spacing in mm: one number, three as z,y,x, or native to keep each volume's own."""
    body_crop: bool = True
    """Crop to the body."""
    resample: Literal["antialias", "linear"] = "antialias"
    """How a volume is brought to the target spacing."""
    profile: Literal["balanced", "ratio", "gpu"] = "balanced"
    """Codec: balanced (fast to read), ratio (smaller), gpu (decoded on the GPU)."""
    shard_mib: int = 384
    """Size of a shard, about, in MiB."""
    workers: int | None = None
    """Worker processes, one a core by default; they change no byte."""
    dask_scheduler: Annotated[str | None, tyro.conf.arg(metavar="ADDR")] = None
    """Address of a running Dask scheduler: its workers are used; they must see RAW and OUT."""
    take_lock: bool = False
    """Take over the lock of a run on another machine that is dead; only where OUT is a URL."""
    scratch_gib: float = 4.0
    """Temporary disk space of each worker, for what compressed archives hold; 0 for none."""
    max_failures: float = 0.1
    """Share of broken series (unreadable, truncated, undecodable) above which the run fails."""
    min_slices: int = 10
    """Fewest slices of a volume."""
    min_coverage_mm: float = 0.0
    """Least distance of the first and the last slice from feet to head, mm."""
    select: Select = "all"
    """Of the reconstructions of one acquisition take all, or the thinnest of a soft kernel."""
    heads: Literal["keep", "drop"] = "keep"
    """Volumes that show a head, from which a face can be made: keep (flagged) or drop."""
    exclude: Files = ()
    """List of UIDs and hashes that must not be taken, as ingest fingerprint writes; may repeat."""
    source: str = "default"
    """Name of the collection, stored with each sample: no personal data in it."""
    keep_paths: File = None
    """Write which files each series is made of to this file (mode 0600), outside OUT."""
    labels: Labels = ()
    """Segmentations to store with their volumes: a folder, an archive or a file (NIfTI, DICOM SEG),
    or a table of pairs (.csv with columns image,label); may be given several times."""
    label_names: File = None
    """Names of NIfTI label values, a JSON object such as {"1": "liver"}: no personal data in it."""
    id_key: File = None
    """File with the key behind the identifiers; by default one of your own, made once."""
    verbose: bool = False
    """Name every refused series, not the first few of each reason."""
    dry_run: bool = False
    """Say what would be built, and write nothing."""
    json: bool = False
    """End with one line of JSON on stdout."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Print a list for --exclude: UIDs and pixel hashes of raw data, such as evaluation cases."""

    raw: Raw
    """Folders, archives and files to look into."""
    patients: bool = False
    """List PatientIDs too, so that every study of these patients is excluded."""
    workers: int | None = None
    """Worker processes, one a core by default."""
    dask_scheduler: Annotated[str | None, tyro.conf.arg(metavar="ADDR")] = None
    """Address of a running Dask scheduler: its workers are used; they must see RAW."""


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check a dataset: every checksum, every index, every sample decodes."""

    url: Target
    """Folder or URL (s3://, gs://, az://, file://) of a dataset."""
    json: bool = False
    """End with one line of JSON on stdout."""


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show what a dataset holds, or one sample of it."""

    url: Target
    """Folder or URL of a dataset."""
    key: Key = None
    """A sample's key."""
    png: File = None
    """Write a montage of the first volumes, or of the one sample, to this file."""
    json: bool = False
    """End with one line of JSON on stdout."""


@dataclass(frozen=True, kw_only=True)
class DemoArchive:
    """Write a small raw archive of a computed torso: DICOM, NIfTI and the usual clutter."""

    out: New
    """A new or empty folder."""


@dataclass(frozen=True, kw_only=True)
class Append:
    """Add what is new in raw archives to a dataset, in new shards; what is there stays as it is."""

    paths: Paths
    """Folders, archives and files to read, then the dataset's folder."""
    spacing_mm: Annotated[str | None, tyro.conf.arg(metavar="MM|z,y,x|native")] = None
    """Only to make sure: must be what the dataset was built with, as all settings but two."""
    body_crop: bool | None = None
    """Only to make sure."""
    resample: Literal["antialias", "linear"] | None = None
    """Only to make sure."""
    profile: Literal["balanced", "ratio", "gpu"] | None = None
    """Only to make sure."""
    min_slices: int | None = None
    """Only to make sure."""
    min_coverage_mm: float | None = None
    """Only to make sure."""
    select: Select | None = None
    """Only to make sure."""
    heads: Literal["keep", "drop"] | None = None
    """Only to make sure."""
    exclude: Files = ()
    """The list of cases to keep out that the dataset was built with, if there was one."""
    shard_mib: int | None = None
    """Size of a new shard, about, in MiB; by default as before."""
    source: str | None = None
    """Name of the collection of the new series; by default as before."""
    workers: int | None = None
    """Worker processes, one a core by default; they change no byte."""
    dask_scheduler: Annotated[str | None, tyro.conf.arg(metavar="ADDR")] = None
    """Address of a running Dask scheduler: its workers are used; they must see RAW and OUT."""
    max_failures: float = 0.1
    """Share of broken series (unreadable, truncated, undecodable) above which the run fails."""
    id_key: File = None
    """File with the key behind the identifiers: the one the dataset was built with."""
    json: bool = False
    """End with one line of JSON on stdout."""


@dataclass(frozen=True, kw_only=True)
class Forget:
    """Withdraw subjects: no reader is served their samples any more, and no append takes them."""

    out: Folder
    """The dataset's folder."""
    subject: tuple[str, ...] = ()
    """Ids of subjects, as in index.parquet."""
    patient_id: tuple[str, ...] = ()
    """The hospital's PatientIDs instead; the id key turns them into subject ids."""
    issuer: str = ""
    """Their IssuerOfPatientID, if the files state one."""
    id_key: File = None
    """For --patient-id: the key that the dataset was built with."""
    json: bool = False
    """End with one line of JSON on stdout."""


@dataclass(frozen=True, kw_only=True)
class Compact:
    """Remove the bytes of withdrawn subjects: shards that hold some are written anew."""

    out: Folder
    """The dataset's folder."""
    json: bool = False
    """End with one line of JSON on stdout."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Make one new dataset of several; these stay as they are."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="A B... OUT")]
    """Folders of datasets, then the folder to write."""
    json: bool = False
    """End with one line of JSON on stdout."""


Command = (
    Annotated[Scan, tyro.conf.subcommand("scan")]
    | Annotated[BuildShards, tyro.conf.subcommand("build-shards")]
    | Annotated[Fingerprint, tyro.conf.subcommand("fingerprint")]
    | Annotated[Append, tyro.conf.subcommand("append")]
    | Annotated[Forget, tyro.conf.subcommand("forget")]
    | Annotated[Compact, tyro.conf.subcommand("compact")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[DemoArchive, tyro.conf.subcommand("demo-archive")]
)
