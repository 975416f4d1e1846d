"""A new generation of a dataset in a local folder: readers see the old one or the new, never a mix.

The files of the next generation are staged in a folder of their own. One rename, to ``.commit``,
decides that it is the dataset's next one. Then each file takes its place under its own name,
``index.parquet`` first and the manifest last, files that are no longer named are deleted, and
``.commit`` goes. A process killed at any point leaves a dataset that opens: before the rename as
the old generation, after it as one or the other; ``finish_commit`` completes what was decided.

A reader that meets an index which is not its manifest's looks into ``.commit`` and reads
the tables there; see ``shards.dataset``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from shards.failpoints import failpoint
from shards.files import sync_folder, write_atomically
from shards.schema import INDEX, MANIFEST, Manifest
from shards.versions import load_manifest

COMMITTED = ".commit"
"""In a dataset while a decided generation takes its place: its tables, report and manifest."""
_SHARD_FILES = "shard-*"


def commit(folder: Path, staged: Path) -> None:
    """Make the files in ``staged`` the next generation of the dataset in ``folder``.

    Args:
        folder: the dataset. A commit cut short there has to be finished before.
        staged: on the same file system: the new manifest, all tables, and new shards. Shards that
            stay as they are stay in ``folder``.
    """
    sync_folder(staged)
    failpoint("staged")
    staged.rename(folder / COMMITTED)
    sync_folder(folder)
    failpoint("decided")
    finish_commit(folder)


def finish_commit(folder: Path) -> bool:
    """Complete a decided generation, if there is one; whether there was."""
    decided = folder / COMMITTED
    if not decided.exists():
        return False
    if (decided / MANIFEST).exists():
        _take_place(folder, decided)
        # Gone first: without it nobody reads the other files here.
        (decided / MANIFEST).unlink()
        sync_folder(decided)
        failpoint("decision_removed")
    shutil.rmtree(decided)
    sync_folder(folder)
    return True


def _take_place(folder: Path, decided: Path) -> None:
    """Give every file of the new generation its name; remove shards that it does not have."""
    for shard_file in sorted(decided.glob(_SHARD_FILES)):
        shard_file.replace(folder / shard_file.name)
        failpoint("shard_moved")
    sync_folder(folder)
    tables = sorted(path.name for path in decided.iterdir() if path.name not in (INDEX, MANIFEST))
    # The index first: from here on the old manifest is seen to be old.
    for name in (INDEX, *tables):
        _copy(decided / name, folder / name)
        failpoint("file_replaced")
    sync_folder(folder)
    _copy(decided / MANIFEST, folder / MANIFEST)
    sync_folder(folder)
    failpoint("manifest_replaced")
    data = (folder / MANIFEST).read_bytes()
    kept = shard_files(load_manifest(data, str(folder / MANIFEST)))
    for path in folder.glob(_SHARD_FILES):
        if path.name not in kept:
            path.unlink()
    sync_folder(folder)
    failpoint("stale_removed")


def shard_files(manifest: Manifest) -> set[str]:
    """Names of the shards and their sidecars."""
    return {name for s in manifest.shards for name in (s.name, s.idx.name, s.refs.name)}


def _copy(source: Path, target: Path) -> None:
    """Copy, so that readers of ``.commit`` have all of it until the end."""
    with source.open("rb") as file:
        write_atomically(target, lambda out: shutil.copyfileobj(file, out))
