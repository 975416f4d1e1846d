"""Command line ``ingest``: parse, call one function, map errors to exit codes 0, 1 and 2.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import tyro

from ingest.cli_build import run_build, run_scan
from ingest.cli_edit import run_append, run_compact, run_forget, run_merge
from ingest.cli_fingerprint import run_fingerprint
from ingest.cli_look import run_demo_archive, run_inspect, run_verify
from ingest.commands import (
    Append,
    BuildShards,
    Command,
    Compact,
    DemoArchive,
    Fingerprint,
    Forget,
    Inspect,
    Merge,
    Scan,
    Verify,
)
from ingest.errors import IngestError, UsageError
from ingest.exits import DONE, FAILED, USAGE

STORAGE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # full
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE),
)
"""What a disk does to a sound program."""
_SAID_OTHERWISE = ("distributed", "tornado", "asyncio")
"""What their logs tell of workers and connections, a run says in its own words, or ends with."""
RESUME_HINT = "the same command goes on from here"


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    command: Any = tyro.cli(
        Command,
        args=args,
        prog="ingest",
        description="CT archives in, shards of volumes out.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)  # Dask's loggers have a level of their own, below the root's
    handler.addFilter(lambda record: not record.name.startswith(_SAID_OTHERWISE))
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", handlers=[handler])
    # What they warn of becomes a verdict, or is handled.
    for name in ("pydicom", "nibabel"):
        logging.getLogger(name).setLevel(logging.ERROR)
    run = {
        Scan: run_scan,
        BuildShards: run_build,
        Fingerprint: run_fingerprint,
        Append: run_append,
        Forget: run_forget,
        Compact: run_compact,
        Merge: run_merge,
        Verify: run_verify,
        Inspect: run_inspect,
        DemoArchive: run_demo_archive,
    }[type(command)]
    from shards.errors import NotADatasetError, ShardError

    try:
        return int(run(command))  # type: ignore[operator]
    except (UsageError, NotADatasetError) as exc:
        return _fail(str(exc), USAGE)
    except (IngestError, ShardError) as exc:
        return _fail(str(exc), FAILED)
    except OSError as exc:
        if exc.errno not in STORAGE_ERRORS:
            raise
        return _fail(f"{exc.filename or 'storage'}: {exc.strerror}; {RESUME_HINT}", FAILED)
    except MemoryError:
        hint = "take fewer --workers, or a machine with more memory"
        return _fail(f"out of memory: {hint}; {RESUME_HINT}", FAILED)
    except KeyboardInterrupt:
        return _fail(f"stopped; {RESUME_HINT}", FAILED)


def _fail(message: str, code: int) -> int:
    print(f"ingest: {message}", file=sys.stderr)
    return code


def entry() -> NoReturn:
    """The console script: `main`, then out at once.

    Everything is closed by then. Daemon threads of libraries that wake while Python takes itself
    down have ended finished builds with SIGABRT, so that step is left out.
    """
    try:
        code = main()
    except SystemExit as exc:  # tyro's, after a usage error or --help
        code = exc.code if isinstance(exc.code, int) else USAGE if exc.code else DONE
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # whoever read it has gone
            stream.flush()
    os._exit(code)
