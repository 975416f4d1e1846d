"""``--keep-paths``: which files a series was made of, in a file of the user's own choice.

The only thing that ingest writes about where data came from. It never lies in OUT, is readable by
its owner alone, and appears whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ingest.errors import UsageError
from ingest.remote import is_url, local_path
from ingest.series import Series
from ingest.sources import FileRef
from shards.files import sync_folder, temporary

OWNER_ONLY = 0o600


def check_paths_file(path: Path, raw: Sequence[str], out: str | Path) -> None:
    """Refuse a place that would give paths away or be taken for input.

    Raises:
        UsageError: inside OUT or RAW, in no folder, or a file that is something else.
    """
    real = path.resolve()
    for name, place in (("OUT", out), *(("RAW", one) for one in raw)):
        folder = local_path(str(place))
        if not is_url(folder) and real.is_relative_to(Path(folder).resolve()):
            raise UsageError(f"--keep-paths {path}: lies inside {name}; give a file elsewhere")
    if not real.parent.is_dir():
        raise UsageError(f"--keep-paths {path}: its folder does not exist; make it first")
    if path.is_symlink() or (path.exists() and not _is_ours(path)):
        raise UsageError(f"--keep-paths {path}: is something else already; give a new file")


def _is_ours(path: Path) -> bool:
    """Whether a file is a former list of paths, which a new one may replace."""
    try:
        with path.open("rb") as file:
            first = file.readline(1 << 20)
        return not first or "series_id" in json.loads(first)
    except (OSError, ValueError, TypeError):
        return False


def write_paths(path: Path, rows: Iterable[Series]) -> None:
    """One line of JSON a row: series id, key, the scan's reason, and the files in their order.

    ``key`` is null for rows that the scan refused. A file in an archive is ``ARCHIVE!MEMBER``. A
    volume's label file, if there is one, is ``label``.

    Raises:
        UsageError: it cannot be written.
    """
    partial = temporary(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(partial, flags, OWNER_ONLY), "wb") as file:
            os.fchmod(file.fileno(), OWNER_ONLY)  # a leftover of an interrupted run may differ
            for row in rows:
                file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as exc:
        raise UsageError(f"--keep-paths {path}: cannot be written ({exc.strerror})") from exc


def place(ref: FileRef) -> str:
    """A file's path, with its name inside an archive."""
    return f"{ref.path}!{ref.member}" if ref.member else ref.path


def _line(row: Series) -> bytes:
    record = {
        "series_id": row.series_id,
        "key": row.key or None,
        "reason": str(row.reason),
        "paths": [place(ref) for ref in dict.fromkeys(row.refs)],
    }
    if row.label is not None:
        record["label"] = place(row.label.refs[0])
    # Names that are no UTF-8 keep their bytes as lone surrogates, which JSON escapes.
    return json.dumps(record, sort_keys=True).encode() + b"\n"
