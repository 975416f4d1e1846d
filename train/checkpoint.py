"""Checkpoints: ``checkpoint-000100.pt`` (tensors) and ``checkpoint-000100.json`` (facts).

Each file appears whole or not at all; the JSON comes last, so a checkpoint exists exactly when its
JSON does, and holds the digest of the tensors.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cattrs
import torch

from shards.schema import Contract, converter
from train.errors import CheckpointError
from train.files import write_durably, write_json

logger = logging.getLogger(__name__)

FORMAT = "coralbay-checkpoint"
"""The JSON's ``format``."""
FORMAT_VERSION = 1
"""Raised by one for every change of the tensors' layout."""

_NAME = re.compile(r"checkpoint-(\d{6,})\.json")


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """The JSON beside the tensors."""

    format: str
    format_version: int
    step: int
    """Finished steps."""
    loss: float
    """Of the last step."""
    bytes: int
    sha256: str
    """Of the ``.pt`` file."""
    data_position: dict[str, Any]
    """The loader's state: where in the data order the run stands."""
    generation_id: str
    """Names the dataset's shards (``Manifest.generation_id``)."""
    contract: Contract
    """Preprocessing that the weights were trained on."""
    versions: dict[str, str]


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the tensors of ``step`` are: ``run/checkpoint-000100.pt``."""
    return run / f"checkpoint-{step:06d}.pt"


def save(
    run: Path,
    state: dict[str, Any],
    *,
    step: int,
    loss: float,
    data_position: dict[str, Any],
    generation_id: str,
    contract: Contract,
    versions: dict[str, str],
    keep: int,
) -> Path:
    """Write a checkpoint atomically, then delete all but the newest ``keep``.

    Args:
        run: the run folder.
        state: tensors and plain Python values only: it is loaded with ``weights_only=True``.
        step: finished steps; names the file.
        loss: of the last step, for the JSON.
        data_position: the loader's state, for the JSON; ``state`` holds it too.
        generation_id: of the dataset.
        contract: of the dataset.
        versions: package versions, for the record.
        keep: how many checkpoints stay; at least 1.

    Returns:
        Path of the ``.pt`` file.
    """
    path = checkpoint_path(run, step)
    # Saved again at the same step: without its JSON the old pair stops existing before it changes.
    path.with_suffix(".json").unlink(missing_ok=True)
    write_durably(path, lambda file: torch.save(state, file))
    info = CheckpointInfo(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        step=step,
        loss=loss,
        bytes=path.stat().st_size,
        sha256=_sha256(path),
        data_position=data_position,
        generation_id=generation_id,
        contract=contract,
        versions=versions,
    )
    write_json(path.with_suffix(".json"), converter.unstructure(info))
    for old in _steps(run)[:-keep]:
        checkpoint_path(run, old).with_suffix(".json").unlink()
        checkpoint_path(run, old).unlink(missing_ok=True)
    return path


def latest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run folder, by the step in its name; None without one."""
    steps = _steps(run)
    return checkpoint_path(run, steps[-1]) if steps else None


def load(path: Path) -> tuple[CheckpointInfo, dict[str, Any]]:
    """Read a checkpoint, its version and digest checked first. Tensors land on the CPU.

    Raises:
        CheckpointError: missing, corrupt, or of another format version.
    """
    info = read_info(path.with_suffix(".json"))
    try:
        intact = path.stat().st_size == info.bytes and _sha256(path) == info.sha256
    except OSError as exc:
        raise CheckpointError(f"{path}: cannot be read ({exc.strerror}); {_WAY_OUT}") from exc
    if not intact:
        raise CheckpointError(f"{path}: its bytes are not those its JSON names; {_WAY_OUT}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as exc:  # unpickling raises an open family; the digest held, so this is foreign
        raise CheckpointError(f"{path}: not a checkpoint of this program; {_WAY_OUT}") from exc
    return info, state


_WAY_OUT = "delete it and its .json to go on from the checkpoint before it"


def read_info(path: Path) -> CheckpointInfo:
    """Read the JSON beside a checkpoint, its format and version checked before the rest.

    Raises:
        CheckpointError: missing, not such a JSON, or of another version.
    """
    try:
        record = json.loads(path.read_bytes())
        found = (record["format"], record["format_version"])
    except OSError as exc:
        raise CheckpointError(f"{path}: cannot be read ({exc.strerror}); {_WAY_OUT}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise CheckpointError(f"{path}: not a checkpoint's JSON ({exc!r}); {_WAY_OUT}") from exc
    if found != (FORMAT, FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: format {found[0]!r} version {found[1]!r}, but this program knows {FORMAT!r} "
            f"version {FORMAT_VERSION}; go on with the coralbay that wrote it"
        )
    try:
        return converter.structure(record, CheckpointInfo)
    except Exception as exc:  # cattrs raises an open family: any means "not our schema"
        why = "; ".join(cattrs.transform_error(exc))
        raise CheckpointError(f"{path}: not a checkpoint's JSON ({why}); {_WAY_OUT}") from exc


def _steps(run: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    names = (_NAME.fullmatch(path.name) for path in run.glob("checkpoint-*.json"))
    return sorted(int(match[1]) for match in names if match)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
