"""What determines a run, and the record of it in the run folder.

``RunConfig`` is complete: with it and the dataset it names, a run can be repeated. ``RunRecord``
adds what made it and what it was made from, and is ``config.json`` of the run folder.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import cattrs

from coralbay.recipes import Recipe
from shards.schema import Contract, Manifest, MustMatch, converter
from train.data import DataConfig, StreamConfig
from train.errors import UsageError
from train.files import write_json

Device = Literal["auto", "cpu", "cuda"]
LoaderKind = Literal["dali", "reference"]

CONFIG = "config.json"
"""Name of the run record in the run folder."""
RECORD_VERSION = 1
"""Raised by one for every change that an older reader would misread."""


_AT_LEAST_ONE = (
    "batch_size",
    "total_steps",
    "visits",
    "threads",
    "checkpoint_every",
    "keep_checkpoints",
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A complete description of one pretraining run."""

    shards: str
    """Folder or URL of the dataset."""
    preset: str
    """Name of the function of ``presets`` that the other values started from."""
    recipe: Recipe
    expects: MustMatch = field(default_factory=MustMatch)
    """Preprocessing that the recipe was written for; shards with another are refused."""
    seed: int = 0
    batch_size: int
    """View sets a step, over all ranks."""
    total_steps: int
    """Length of the run: the schedules span it."""
    visits: int = 2
    """Base boxes drawn from a volume each time it is read."""
    data: DataConfig = field(default_factory=DataConfig)
    """Which samples of the dataset."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """How they are read; no batch depends on it."""
    device: Device = "auto"
    """``auto`` takes CUDA when there is one."""
    loader: LoaderKind = "dali"
    threads: int = 2
    """Threads that fetch and decode."""
    checkpoint_every: int
    """Steps between checkpoints."""
    keep_checkpoints: int = 3
    """Older ones are deleted."""

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: give 1 or more")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"seed {self.seed}: give 0 to 2**64 - 1")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """``config.json``: the configuration, the code and the data of a run."""

    record_version: int
    config: RunConfig
    coralbay_version: str
    git_commit: str | None
    """Commit of the source tree, ``-dirty`` appended when it had changes; None when installed."""
    torch_version: str
    generation: int | None = None
    """Of the dataset; None: the run was begun before this was recorded."""
    generation_id: str
    """Names the dataset's shards and tombstones (``Manifest.generation_id``)."""
    contract: Contract


def record_run(config: RunConfig, manifest: Manifest) -> RunRecord:
    """The record of a run that starts now on the dataset of ``manifest``."""
    return RunRecord(
        record_version=RECORD_VERSION,
        config=config,
        coralbay_version=version("coralbay"),
        git_commit=_git_commit(),
        torch_version=version("torch"),
        generation=manifest.generation,
        generation_id=manifest.generation_id,
        contract=manifest.contract,
    )


def create_run(run: Path, record: RunRecord) -> None:
    """Make the run folder and write its record.

    Raises:
        UsageError: the folder holds a run already, or cannot be written.
    """
    path = run / CONFIG
    if path.exists():
        same = read_run(run).config == record.config
        raise UsageError(
            f"{run}: already holds a run{'' if same else ' with another configuration'}; "
            f"go on with `coralbay resume {run}`, or give --run a new folder"
        )
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_json(path, converter.unstructure(record))
    except OSError as exc:
        raise UsageError(
            f"{run}: cannot be written ({exc.strerror}); give --run another folder"
        ) from exc


def read_run(run: Path) -> RunRecord:
    """Read the record of a run folder; an unknown or missing field is an error.

    Raises:
        UsageError: no run there, or not a record this program can read.
    """
    path = run / CONFIG
    try:
        record = json.loads(path.read_bytes())
    except OSError as exc:
        raise UsageError(
            f"{path}: no run there ({exc.strerror}); start one with `coralbay pretrain --run {run}`"
        ) from exc
    except ValueError as exc:
        raise UsageError(f"{path}: not JSON ({exc}); restore it or start a new run") from exc
    found = record.get("record_version") if isinstance(record, dict) else None
    if found != RECORD_VERSION:
        raise UsageError(
            f"{path}: run record version {found!r}, but this program knows {RECORD_VERSION}; "
            "go on with the coralbay that wrote it"
        )
    try:
        return converter.structure(record, RunRecord)
    except Exception as exc:  # cattrs raises an open family: any means "not our schema"
        why = "; ".join(cattrs.transform_error(exc, path="config.json"))
        raise UsageError(
            f"{path}: not a run record ({why}); undo the edit or start a new run"
        ) from exc


def check_data(config: RunConfig, manifest: Manifest, where: str) -> None:
    """Refuse a dataset that the configuration cannot train on.

    Raises:
        UsageError: preprocessed in another way than ``config.expects``, or fewer trainable volumes
            than a batch has sets.
    """
    found = manifest.contract.must_match
    if found != config.expects:
        raise UsageError(_mismatch(found, config.expects, where, config.preset))
    if manifest.totals.trainable < config.batch_size:
        raise UsageError(
            f"{where}: {manifest.totals.trainable} trainable volumes, fewer than the batch size "
            f"{config.batch_size}; add volumes or give a smaller --batch-size"
        )


def _mismatch(found: MustMatch, expected: MustMatch, where: str, preset: str) -> str:
    """One line naming the first field that differs, and the way out."""
    name = next(
        field.name
        for field in fields(MustMatch)
        if getattr(found, field.name) != getattr(expected, field.name)
    )
    got, want = (_shown(getattr(contract, name)) for contract in (found, expected))
    flag = f" --spacing-mm {want}" if name == "spacing_zyx_mm" else ""
    return (
        f"{where}: its {name} is {got}, but preset {preset!r} needs {want}; "
        f"rebuild the shards with `ingest build-shards{flag}`"
    )


def _shown(value: object) -> str:
    """A contract value as the command line writes it."""
    if value is None:
        return "native"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _git_commit() -> str | None:
    """Commit of the tree this package is run from; None when it is installed or git is absent."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    # Optional locks off: describing a tree must not get in the way of someone's commit.
    command = ["git", "--no-optional-locks", "-C", str(root), "describe"]
    options = ["--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command + options, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
