"""Where a dataset is built: whether a build may write there, goes on there, or is done already."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

from ingest.errors import UsageError
from ingest.lock import LOCK_FILE
from ingest.remote import is_url, local_path
from shards.failpoints import failpoint
from shards.schema import MANIFEST, FileEntry, Manifest, canonical_json
from shards.versions import load_manifest

STATE_FOLDER = ".build"
"""Inside OUT while a build is unfinished: what a second run needs to go on."""
STATE_FILE = "build.json"
"""In the state folder: which build this is."""
STATE = f"{STATE_FOLDER}/{STATE_FILE}"


@runtime_checkable
class Hold(Protocol):
    """A lock that is held."""

    def check(self) -> None:
        """Make sure that it still is.

        Raises:
            IngestError: another run has taken it over.
        """


@runtime_checkable
class Output(Protocol):
    """A folder, or a prefix of a bucket. Paths are relative, with ``/`` between folders."""

    name: str
    """As messages say it."""
    address: str
    """Opens it again, in any process that reaches it."""

    def check(self, *, writing: bool, take: bool = False) -> None:
        """Say early, before hours of scanning, that nothing can be built here.

        Args:
            writing: something will be written; else only reading is tried.
            take: as of `locked`.

        Raises:
            UsageError: another run is at it, or it cannot be reached or written.
        """

    def complaint(self) -> str:
        """Why a worker in this process cannot build here; empty if it can."""

    def locked(self, *, take: bool, say: Callable[[str], None]) -> AbstractContextManager[Hold]:
        """Hold it for writing.

        Args:
            take: take over the lock of a run that the user knows to be dead.
            say: told, in a line, what the user should know.

        Raises:
            UsageError: another run holds it, or nothing can be written there.
        """

    def group_lock(self, number: int) -> AbstractContextManager[None]:
        """Hold one group, where two workers at the same one would disturb each other."""

    def names(self, folder: str = "") -> set[str]:
        """Names of files and folders directly in ``folder``, which need not be there."""

    def read(self, path: str) -> bytes | None:
        """A whole file; None where there is none."""

    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Write a file, whole or not at all.

        Args:
            path: where.
            data: its content.
            durable: it has to survive a power cut; what can be made again does not.
        """

    def remove(self, paths: Collection[str]) -> None:
        """Remove files, whether they are there or not."""

    def remove_state(self) -> None:
        """Remove the state folder."""

    def workspace(self) -> AbstractContextManager[Path]:
        """A local folder in which files are made that `deliver` brings here."""

    def deliver(self, folder: Path) -> dict[str, str]:
        """Bring the files of a workspace here, the manifest last; ETags by name, if there are."""

    def changed(self, files: Sequence[FileEntry], e_tags: Mapping[str, str]) -> set[str]:
        """Names of those files that are missing or have another content."""

    def confirm(self, files: Sequence[FileEntry], e_tags: Mapping[str, str]) -> None:
        """Make sure, before the manifest, that nobody has touched what was delivered.

        Raises:
            IngestError: someone has.
        """

    def clear_partials(self) -> None:
        """Remove half-written files of shards on which nobody is at work any more."""

    def naming(self) -> AbstractContextManager[None]:
        """What the storage raises meanwhile names this output, and says how to go on."""


def open_output(out: str | Path) -> Output:
    """The output at a path or URL; nothing is read or written yet.

    Raises:
        UsageError: a URL that nothing can be written to.
    """
    name = local_path(str(out)) if isinstance(out, str) else out
    if isinstance(name, str) and is_url(name):
        from ingest.output_bucket import BucketOutput

        return BucketOutput(name)
    from ingest.output_folder import FolderOutput

    return FolderOutput(Path(name))


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


def check_paths(raw: Sequence[str], out: str) -> Output:
    """The output ``out``, once every source exists and neither lies in the other.

    Raises:
        UsageError: otherwise.
    """
    check_sources(raw)
    output = open_output(out)
    target = _place(out)
    for name in raw:
        source = _place(name)
        if target == source or _lies_in(target, source):
            raise UsageError(f"{out}: OUT lies inside RAW {name}; give a place outside the archive")
        if _lies_in(source, target):
            raise UsageError(
                f"{name}: RAW lies inside OUT {out}; give an OUT apart from the archive"
            )
    return output


def check_folder(out: str) -> Path:
    """``out`` as a local folder, for commands that change a dataset.

    Raises:
        UsageError: it is a URL.
    """
    path = local_path(out)
    if is_url(path):
        raise UsageError(
            f"{out}: only datasets in local folders are changed or merged; copy it to one, change "
            "it there, and copy it back"
        )
    return Path(path)


def _place(name: str) -> tuple[str, ...]:
    """What a path or URL names, in parts from the root down."""
    path = local_path(name)
    if not is_url(path):
        return Path(path).resolve().parts
    scheme, rest = path.split("://", 1)
    scheme = {"s3a": "s3"}.get(scheme.lower(), scheme.lower())
    return scheme, *(part for part in rest.split("/") if part)


def _lies_in(inner: Sequence[str], outer: Sequence[str]) -> bool:
    return len(inner) > len(outer) and list(inner[: len(outer)]) == list(outer)


def untouched_build(output: Output, build_sha256: str) -> Manifest | None:
    """As `complete_build`, where nothing is left to clear away, so that no lock is needed.

    A complete dataset may lie where nobody can write any more.

    Raises:
        UsageError: ``output`` holds something else.
    """
    if output.names().isdisjoint((STATE_FOLDER, LOCK_FILE)):
        return complete_build(output, build_sha256)
    return None


def complete_build(output: Output, build_sha256: str) -> Manifest | None:
    """The manifest in ``output`` if this very build is complete there; None if it is not.

    Hold the lock: what a run left that was stopped right after its manifest is cleared away.

    Raises:
        UsageError: ``output`` holds something else.
    """
    if (data := output.read(MANIFEST)) is None:
        return None
    manifest = load_manifest(data, f"{output.name}: {MANIFEST}")
    if manifest.build_sha256 != build_sha256:
        raise UsageError(
            f"{output.name}: holds a dataset of other inputs or settings; give another OUT"
        )
    # A run may have been stopped between the manifest and this.
    if STATE_FOLDER in output.names():
        end_build(output)
    return manifest


def start_build(output: Output, build_sha256: str, versions: Mapping[str, str]) -> None:
    """Begin a build in ``output``, or go on there with an interrupted run of the same one.

    Raises:
        UsageError: ``output`` cannot be written, or holds something else.
    """
    identity = canonical_json({"build_sha256": build_sha256, "versions": dict(versions)})
    try:
        if (found := output.read(STATE)) is not None:
            if found != identity:
                raise UsageError(
                    f"{output.name}: holds an unfinished build of other inputs, settings or "
                    "package versions; delete it or give another OUT"
                )
            return
        if output.names() - {STATE_FOLDER, LOCK_FILE}:
            raise UsageError(
                f"{output.name}: not empty and no dataset of ours; give a new or empty place"
            )
        output.write(STATE, identity)
        failpoint("state_written")
    except PermissionError as exc:
        raise UsageError(
            f"{output.name}: cannot write there ({exc.strerror}); give another OUT"
        ) from exc


def end_build(output: Output) -> None:
    """Remove the state of a build that is now complete."""
    output.remove_state()
    failpoint("state_removed")
