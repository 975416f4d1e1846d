"""Which files are labels, and which volume the user says that each belongs to.

A label file is never written anywhere by name; its path serves to pair it and is then forgotten.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ingest.errors import UsageError
from shards.schema import LABEL_NAME_PATTERN

_COLUMNS = ("image", "label")
_MAX_VALUE = 65535


@dataclass(frozen=True, kw_only=True)
class LabelSources:
    """Where labels are. All paths are real ones.

    Attributes:
        roots: folders, archives and files whose content is labels.
        raw: the sources of volumes. In a root that holds one of them only DICOM segmentations are
            labels, so that an archive with both can be given twice.
        pairs: the image of each label file that the user has paired.
    """

    roots: tuple[str, ...] = ()
    raw: tuple[str, ...] = field(default=(), repr=False)
    pairs: Mapping[str, str] = field(default_factory=dict, repr=False)

    def claims(self, path: str, *, segmentation: bool) -> bool:
        """Whether the file at ``path`` is a label."""
        if not self.roots:
            return False
        real = os.path.realpath(path)
        for root in self.roots:
            if _holds(root, real):
                shared = any(_holds(root, raw) and _holds(raw, real) for raw in self.raw)
                if segmentation or not shared:
                    return True
        return False


def label_sources(labels: Sequence[str], raw: Sequence[str]) -> LabelSources:
    """Read what ``--labels`` names: folders, archives, files, and tables of pairs (``.csv``).

    Raises:
        UsageError: a path does not exist, or a table is not one of pairs.
    """
    roots: list[str] = []
    pairs: dict[str, str] = {}
    for name in labels:
        if not os.path.exists(name):
            raise UsageError(f"--labels {name}: no such file or folder")
        if name.lower().endswith(".csv"):
            for image, label in _read_pairs(Path(name)):
                if label in pairs:
                    raise UsageError(f"--labels {name}: {label} is there twice")
                pairs[label] = image
                roots.append(label)
        else:
            roots.append(os.path.realpath(name))
    real_raw = tuple(os.path.realpath(name) for name in raw)
    return LabelSources(roots=tuple(roots), raw=real_raw, pairs=pairs)


def load_label_names(path: Path | None) -> tuple[tuple[int, str], ...]:
    """Names of NIfTI label values from a JSON object of value to name, ascending by value.

    Raises:
        UsageError: not such a file, or a name that is too long or has unusual characters.
    """
    if path is None:
        return ()
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        names = sorted((int(value), name) for value, name in read.items())
    except OSError as exc:
        raise UsageError(f"--label-names {path}: cannot be read ({exc.strerror})") from exc
    except (ValueError, TypeError, AttributeError) as exc:
        raise UsageError(
            f'--label-names {path}: not a JSON object of value to name, such as {{"1": "liver"}}'
        ) from exc
    for value, name in names:
        if not isinstance(name, str) or not LABEL_NAME_PATTERN.fullmatch(name):
            raise UsageError(
                f"--label-names {path}: the name of {value} is not up to 64 of the characters "
                "A-Z a-z 0-9 space . _ , ( ) + / -"
            )
        if not 1 <= value <= _MAX_VALUE:
            raise UsageError(f"--label-names {path}: value {value} is not from 1 to {_MAX_VALUE}")
    return tuple(names)


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    """Real paths of (image, label); those in the table are relative to its folder."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            columns = set(table.fieldnames or ())
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise UsageError(f"--labels {path}: cannot be read ({type(exc).__name__})") from exc
    if not set(_COLUMNS) <= columns:
        raise UsageError(f"--labels {path}: its first line must name the columns image,label")
    pairs = []
    for number, row in enumerate(rows, start=2):
        image, label = (str(path.parent / (row[column] or "")) for column in _COLUMNS)
        for name in (image, label):
            if not os.path.exists(name) or os.path.samefile(name, path.parent):
                raise UsageError(f"--labels {path}: line {number}: {name}: no such file")
        pairs.append((os.path.realpath(image), os.path.realpath(label)))
    return pairs


def _holds(folder: str, path: str) -> bool:
    """Whether ``path`` is ``folder`` or lies in it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
