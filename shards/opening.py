"""Finds out which generation a dataset is in: its manifest and its index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shards.digest import sha256
from shards.errors import CorruptShardError, NotADatasetError
from shards.generations import COMMITTED
from shards.schema import INDEX, MANIFEST, FileEntry, Manifest
from shards.store import Store, get
from shards.versions import load_manifest


def read_manifest(store: Store, url: str | Path) -> Manifest:
    """The manifest of the dataset in ``store``, which was opened from ``url``.

    Raises:
        NotADatasetError: there is none.
        FormatVersionError: another format or version.
        CorruptShardError: not a manifest.
    """
    try:
        data = get(store, MANIFEST)
    except FileNotFoundError as exc:
        raise NotADatasetError(
            f"{url}: no {MANIFEST} there; give the output of `ingest build-shards` "
            "(a build that did not finish has none)"
        ) from exc
    return load_manifest(data, f"{url}: {MANIFEST}")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One state of a dataset: its manifest, its index, and where its tables are."""

    manifest: Manifest
    index: bytes | None
    """Content of ``index.parquet``, unchecked; None when it is missing."""
    tables: str
    """Put before the names of the tables and the report."""


def read_generation(store: Store, url: str | Path) -> Generation:
    """The generation that the dataset in ``store`` is in, also while a writer changes it.

    Raises:
        NotADatasetError, FormatVersionError, CorruptShardError: see ``read_manifest``.
    """
    manifest = read_manifest(store, url)
    while True:
        index = get_if_there(store, INDEX)
        if _is_index_of(manifest, index):
            return Generation(manifest=manifest, index=index, tables="")
        # Either the files are just changing, or have changed since the manifest was read, or the
        # index is broken.
        if (decided := _read_decided(store, url)) is not None:
            return decided
        before, manifest = manifest, read_manifest(store, url)
        if manifest == before:
            return Generation(manifest=manifest, index=index, tables="")


def _read_decided(store: Store, url: str | Path) -> Generation | None:
    """The generation whose files are just taking their places; None when there is none."""
    tables = f"{COMMITTED}/"
    data, index = get_if_there(store, tables + MANIFEST), get_if_there(store, tables + INDEX)
    if data is None or index is None:
        return None
    manifest = load_manifest(data, f"{url}: {tables}{MANIFEST}")
    if not _is_index_of(manifest, index):
        return None
    return Generation(manifest=manifest, index=index, tables=tables)


def _is_index_of(manifest: Manifest, index: bytes | None) -> bool:
    named = [entry.sha256 for entry in manifest.files if entry.name == INDEX]
    return index is not None and named == [sha256(index)]


def get_if_there(store: Store, path: str) -> bytes | None:
    """A whole object; None when there is none."""
    try:
        return get(store, path)
    except FileNotFoundError:
        return None


def file_entry(manifest: Manifest, name: str) -> FileEntry:
    """What the manifest says of file ``name``; CorruptShardError when it names no such file."""
    for entry in manifest.files:
        if entry.name == name:
            return entry
    raise CorruptShardError(f"{MANIFEST}: names no {name}")


def checked_index(found: Generation, where: str) -> bytes:
    """The index's bytes: planning from another dataset's index would read garbage.

    Raises:
        CorruptShardError: it is missing, or not the one that the manifest names.
    """
    data = found.index
    if data is None:
        raise CorruptShardError(f"{where}: missing; copy the dataset again")
    if sha256(data) != file_entry(found.manifest, INDEX).sha256:
        raise CorruptShardError(
            f"{where}: SHA-256 is not that in {MANIFEST}; copy the dataset again, "
            "or run `ingest verify` to see what else differs"
        )
    return data


def check_same(manifest: Manifest, store: Store, url: str) -> None:
    """Refuse to go on with a dataset that has changed since it was opened.

    Raises:
        CorruptShardError: its manifest is another one now.
        ShardError: as `read_generation`.
    """
    now = read_generation(store, url).manifest
    if now != manifest:
        raise CorruptShardError(
            f"{url}: was opened as generation {manifest.generation} and is "
            f"generation {now.generation} now; open it again"
        )
