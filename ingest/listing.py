"""Which files there are under the sources, in a stable order, each one once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ingest.errors import UsageError
from ingest.refs import SourceProblem, unreadable
from ingest.remote import is_url, list_objects, local_path


class Source(NamedTuple):
    """A file or archive: its path or URL, and its size where the listing says it."""

    path: str
    size: int | None = None


def find_sources(raw: Sequence[str]) -> Iterator[Source | SourceProblem]:
    """Every file under ``raw``: folders sorted, links followed, nothing twice.

    Raises:
        UsageError: a path does not exist, or a bucket cannot be listed.
    """
    names = [local_path(name) for name in raw]
    for name in names:
        if not is_url(name) and not os.path.exists(name):
            raise UsageError(f"{name}: no such file or folder")
    seen = _Seen()
    urls: list[str] = []
    for name in names:
        if is_url(name):
            yield from (Source(*one) for one in list_objects(name) if not _under(one[0], urls))
            urls.append(name.rstrip("/"))
        else:
            # Absolute: workers on other machines or in other folders open the same path.
            yield from _find_local(os.path.abspath(name), seen)


def _under(url: str, prefixes: Sequence[str]) -> bool:
    return any(url == prefix or url.startswith(f"{prefix}/") for prefix in prefixes)


class _Seen:
    """Real paths: of folders listed, and of files that were found outside of their folder.

    A million files of one folder are remembered as one folder.
    """

    def __init__(self) -> None:
        self.folders: set[str] = set()
        self.files: set[str] = set()

    def add_file(self, path: str) -> bool:
        """Whether a file that is named by itself, or linked to, is new."""
        real = os.path.realpath(path)
        if real in self.files:
            return False
        if os.path.dirname(real) in self.folders and os.path.isfile(real):
            return False  # found there, by its own name
        self.files.add(real)
        return True


def _find_local(root: str, seen: _Seen) -> Iterator[Source | SourceProblem]:
    if not os.path.isdir(root):
        if seen.add_file(root):
            yield Source(root)
        return
    unlistable: list[tuple[str, OSError]] = []
    folders = [(root, os.path.realpath(root))]
    while folders:
        folder, real = folders.pop()
        if real in seen.folders:
            continue
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as exc:
            unlistable.append((folder, exc))
            continue
        seen.folders.add(real)
        inner: list[tuple[str, str]] = []
        for entry in listed:
            if _is_folder(entry):
                link = entry.is_symlink()
                place = os.path.realpath(entry.path) if link else f"{real}/{entry.name}"
                inner.append((entry.path, place))
            elif _is_new_file(entry, real, seen):
                yield Source(entry.path)
        folders += reversed(inner)
    for folder, error in unlistable:
        yield unreadable(folder, error)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_new_file(entry: os.DirEntry[str], folder: str, seen: _Seen) -> bool:
    """Whether this is a file, or a link to one or to nothing, that nobody met before.

    A pipe or socket would block for ever; a dangling link is reported when opened.
    """
    if not entry.is_symlink():
        return entry.is_file() and (not seen.files or f"{folder}/{entry.name}" not in seen.files)
    if os.path.exists(entry.path) and not os.path.isfile(entry.path):
        return False
    return seen.add_file(entry.path)
