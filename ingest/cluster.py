"""A Dask cluster that the user runs: whether it can do this build, and how to join it."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.errors import IngestError, Reason, UsageError
from ingest.output import open_output
from ingest.series import Series

if TYPE_CHECKING:
    from distributed import Client

CONNECT_S = 10
"""How long a scheduler may take to answer."""
FIRST_WORKER_S = 60
"""How long a cluster may take to get its first worker."""
MAX_ROOTS = 1000
"""Source folders that each worker of a cluster is asked to look for."""


@contextmanager
def join_cluster(address: str, complaint: Callable[[], str] | None = None) -> Iterator[Client]:
    """A client of the cluster whose scheduler is at ``address``, once its workers were looked at.

    Raises:
        UsageError: no scheduler answers, or its workers cannot do the work.
        IngestError: it has no worker.
    """
    from distributed import Client

    # What it logs with tracebacks of its own is said here in a line.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as exc:
        raise UsageError(
            f"--dask-scheduler {address}: no scheduler answers there; "
            "start one with `dask scheduler`, or leave the flag out"
        ) from exc
    with client:
        try:
            client.wait_for_workers(1, timeout=FIRST_WORKER_S)
        except TimeoutError as exc:
            raise IngestError(
                f"--dask-scheduler {address}: no worker joined it in {FIRST_WORKER_S} s; "
                f"start some with `dask worker {address} --nthreads 1`"
            ) from exc
        _check_threads(client, address)
        if complaint is not None:
            _check_workers(client, address, complaint)
        yield client


def _check_threads(client: Client, address: str) -> None:
    """Settings of pydicom are one a process, and results must not depend on timing."""
    if any(threads != 1 for threads in client.nthreads().values()):
        raise UsageError(
            f"--dask-scheduler {address}: its workers run several tasks in one process; "
            "start them with `dask worker --nthreads 1`"
        )


def _check_workers(client: Client, address: str, complaint: Callable[[], str]) -> None:
    """Ask every worker; one that cannot do the work would spoil the build hours later."""
    try:
        answers = client.run(complaint)
    except Exception as exc:  # Dask wraps what a worker fails with in kinds of its own
        raise UsageError(
            f"--dask-scheduler {address}: a worker has no working installation of coralbay, or "
            f"another version ({exc}); install the same one there"
        ) from exc
    for worker, answer in sorted(answers.items()):
        if answer:
            raise UsageError(f"--dask-scheduler {address}: worker {worker} {answer}")


def worker_complaint(
    versions: Mapping[str, str], python: Sequence[int], out: str, raw: Sequence[str]
) -> str:
    """Why this process cannot build shards of that build; empty if it can.

    Args:
        versions: of the packages that shape bytes, where the run was started.
        python: version there.
        out: address of the dataset, where the build has begun.
        raw: sources.
    """
    differing = [
        f"{name} {_version(name)} (here {version})"
        for name, version in sorted(versions.items())
        if _version(name) != version
    ]
    if tuple(sys.version_info[:2]) != tuple(python):
        differing.append(f"Python {_dotted(sys.version_info[:2])} (here {_dotted(python)})")
    if differing:
        return (
            f"has other packages, which may give other bytes: {', '.join(differing)}; "
            "install the same versions there"
        )
    for path in raw:
        if not Path(path).exists():
            return f"does not see RAW at {path}; mount it at the same path on every worker"
    return open_output(out).complaint()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def source_roots(series: Sequence[Series]) -> list[str]:
    """Folders that hold all files of the series that are read again, the fewest there are."""
    folders = {os.path.dirname(ref.path) for s in series if s.reason == Reason.OK for ref in s.refs}
    local = sorted(folder for folder in folders if "://" not in folder)
    roots: list[str] = []
    for folder in local:
        if not roots or not Path(folder).is_relative_to(roots[-1]):
            roots.append(folder)
    return roots[:MAX_ROOTS]
