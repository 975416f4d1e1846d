"""The output folder: whether a build may write there, goes on there, or is done already."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ingest.errors import IngestError, UsageError
from ingest.lock import LOCK_FILE, waiting_lock
from ingest.remote import is_url, local_path
from ingest.work import STATE_FILE, STATE_FOLDER
from shards.failpoints import failpoint
from shards.files import write_atomic
from shards.schema import MANIFEST, Manifest, canonical_json
from shards.versions import load_manifest

REMOVAL_TRIES = 5
"""A task that a killed run left on a cluster may put a last file where one is just removed."""


def check_sources(raw: Sequence[str]) -> None:
    """Every source is given and exists; of a URL, the scan finds out.

    Raises:
        UsageError: otherwise.
    """
    if not raw:
        raise UsageError("no RAW given; name a folder, an archive or a file")
    for name in raw:
        path = local_path(name)
        if not is_url(path) and not Path(path).exists():
            raise UsageError(f"{name}: no such file or folder; check the path to the raw archive")


def check_paths(raw: Sequence[str], out: str) -> Path:
    """``out`` as a path, once every source exists and neither lies in the other.

    Raises:
        UsageError: otherwise.
    """
    check_sources(raw)
    if "://" in out:
        raise UsageError(
            f"{out}: OUT must be a local folder; build there, then copy it to the bucket"
        )
    target = Path(out).resolve()
    for name in raw:
        if is_url(local_path(name)):
            continue
        source = Path(local_path(name)).resolve()
        if target == source or target.is_relative_to(source):
            raise UsageError(
                f"{out}: OUT lies inside RAW {name}; give a folder outside the archive"
            )
        if source.is_relative_to(target):
            raise UsageError(
                f"{name}: RAW lies inside OUT {out}; give an OUT apart from the archive"
            )
    return Path(out)


def untouched_build(out: Path, build_sha256: str) -> Manifest | None:
    """As `complete_build`, where nothing is left to clear away, so that no lock is needed.

    A complete dataset may lie where nobody can write any more.

    Raises:
        UsageError: ``out`` holds something else.
    """
    if any((out / name).exists() for name in (STATE_FOLDER, LOCK_FILE)):
        return None
    return complete_build(out, build_sha256)


def complete_build(out: Path, build_sha256: str) -> Manifest | None:
    """The manifest in ``out`` if this very build is complete there; None if it is not.

    Hold the lock: what a run left that was stopped right after its manifest is cleared away.

    Raises:
        UsageError: ``out`` holds something else.
    """
    if (out / MANIFEST).exists():
        manifest = load_manifest((out / MANIFEST).read_bytes(), str(out / MANIFEST))
        if manifest.build_sha256 == build_sha256:
            end_build(out)  # A run may have been stopped between the manifest and this.
            return manifest
        raise UsageError(f"{out}: holds a dataset of other inputs or settings; give another OUT")
    return None


def start_build(out: Path, build_sha256: str, versions: dict[str, str]) -> None:
    """Make ``out`` and its state folder, or go on in those of an interrupted run of the same build.

    Raises:
        UsageError: ``out`` cannot be written, or holds something else.
    """
    state = out / STATE_FOLDER / STATE_FILE
    identity = canonical_json({"build_sha256": build_sha256, "versions": versions})
    try:
        if state.exists():
            if state.read_bytes() != identity:
                raise UsageError(
                    f"{out}: holds an unfinished build of other inputs, settings or package "
                    "versions; delete it or give another OUT"
                )
            return
        ours = {STATE_FOLDER, LOCK_FILE}
        if out.exists() and any(path.name not in ours for path in out.iterdir()):
            raise UsageError(f"{out}: not empty and no dataset of ours; give a new or empty folder")
        state.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(state, identity)
        failpoint("state_written")
    except PermissionError as exc:
        raise UsageError(f"{out}: cannot write there ({exc.strerror}); give another OUT") from exc


def clear_partials(out: Path) -> None:
    """Remove half-written files of shards on which nobody is at work any more.

    Ending a run ends its local workers wherever they are. On a cluster they go on to the end of
    their shard, and keep its lock until then.
    """
    for path in out.glob(".shard-*.tmp"):
        group = out / STATE_FOLDER / f"group-{path.name[len('.shard-') :].split('.')[0]}.lock"
        with suppress(OSError, IngestError), waiting_lock(group, 0):
            path.unlink()


def end_build(out: Path) -> None:
    """Remove the state of a build that is now complete."""
    for _ in range(REMOVAL_TRIES):
        shutil.rmtree(out / STATE_FOLDER, ignore_errors=True)
        if not (out / STATE_FOLDER).exists():
            break
    failpoint("state_removed")
