"""How a loader under test is driven: a process of its own, commands and answers as lines of JSON.

A loader runs in the environment that it needs, and stands still between its turns, so that all of
them can take turns on one machine. This file imports nothing but the standard library.

Commands: ``{"do": "run", "warm_s": 2, "measure_s": 4}`` and ``{"do": "check", "units": 3, "folder":
"/tmp/x"}``; the end of the input ends the process. A unit is what is counted: a region, or a set of
views.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).parents[1]
PATIENCE_S = 10
"""How long a loader may take to end by itself."""


class Array(Protocol):
    """A numpy array of one box."""

    @property
    def dtype(self) -> Any:
        """Type of its voxels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(z, y, x)."""

    def tobytes(self) -> bytes:
        """Its voxels in C order."""


@dataclass(frozen=True)
class Delivered:
    """A box that has arrived."""

    box: Callable[[], Array]
    """Gives the box alone; slow for a loader that hands over whole chunks."""
    key: str | None = None
    """Of its volume, if the loader says it."""
    start_zyx: tuple[int, int, int] | None = None
    """Its first voxel, if the loader says it; negative where it is padded."""


@dataclass(frozen=True)
class Arrived:
    """Some units at a time."""

    units: int
    boxes: Callable[[], Sequence[Delivered]]
    """What they hold; asked for by checks alone, before the next ones are taken."""


def serve(arrivals: Iterator[Arrived], **facts: Any) -> None:
    """Answer commands until the input ends.

    Args:
        arrivals: gives units as they arrive.
        facts: said of this loader before anything else.
    """
    say(**facts)
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "run":
            say(**_run(arrivals, command["warm_s"], command["measure_s"]))
        else:
            say(**_check(arrivals, command["units"], Path(command["folder"])))


def _run(arrivals: Iterator[Arrived], warm_s: float, measure_s: float) -> dict[str, Any]:
    """Take units as fast as they come; count between two arrivals, after a while."""
    start = time.perf_counter()
    first, warm = start, 0
    while first < start + warm_s:
        warm += next(arrivals).units
        first = time.perf_counter()
    count, now = 0, first
    while now < first + measure_s:
        count += next(arrivals).units
        now = time.perf_counter()
    return {"units": count, "seconds": now - first, "units_all": warm + count}


def _check(arrivals: Iterator[Arrived], least: int, folder: Path) -> dict[str, Any]:
    """What arrived, ``least`` units or some more, as files of voxels that others can compare."""
    units = 0
    found: list[dict[str, Any]] = []
    while units < least:
        arrived = next(arrivals)
        units += arrived.units
        for delivered in arrived.boxes():
            box, file = delivered.box(), folder / f"{len(found)}.box"
            file.write_bytes(box.tobytes())
            found.append(
                {
                    "file": str(file),
                    "dtype": str(box.dtype),
                    "shape": list(box.shape),
                    "key": delivered.key,
                    "start_zyx": delivered.start_zyx,
                }
            )
    return {"units": units, "boxes": found}


def say(**answer: Any) -> None:
    """One line of JSON to the benchmark."""
    print(json.dumps(answer), file=_OUT, flush=True)


# Libraries print: answers go to the real standard output, everything else to standard error.
_OUT = sys.stdout


def keep_answers_apart() -> None:
    """Send what libraries and child processes print to standard error. Call it first."""
    global _OUT
    _OUT = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)


class Subject:
    """A loader under test, from the side of the benchmark. A context manager.

    Args:
        name: of the loader.
        command: starts it.
        environment: added to this process's own.
        log: file for what it prints.

    Attributes:
        facts: what it says of itself.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: dict[str, str], log: Path
    ) -> None:
        self.name = name
        self._log = log
        with log.open("w") as err:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                start_new_session=True,
            )
        self.facts = self._answer()

    def run(self, warm_s: float, measure_s: float) -> dict[str, Any]:
        """Units and seconds of one turn."""
        return self._ask(do="run", warm_s=warm_s, measure_s=measure_s)

    def check(self, units: int, folder: Path) -> dict[str, Any]:
        """How many units came, and their boxes: file, dtype, shape, and key and start if known."""
        return self._ask(do="check", units=units, folder=str(folder))

    def cpu_s(self) -> float:
        """Processor time so far of all its processes, also of those that have ended."""
        return session_cpu_s(self._process.pid)

    def close(self) -> None:
        """End it and all processes that it started."""
        with suppress(BrokenPipeError):
            if self._process.stdin:
                self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its session: workers, openers
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it ended, and _answer says how
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text()[-2000:]
            raise RuntimeError(f"{self.name} ended; the last it printed:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def session_cpu_s(leader: int) -> float:
    """Processor time so far of all processes in the session that ``leader`` leads."""
    found = (_stat(folder) for folder in Path("/proc").glob("[0-9]*"))
    return sum(cpu_s for session, cpu_s in found if session == leader)


def process_cpu_s(pid: int) -> float:
    """Processor time so far of one process, children that ended included."""
    return _stat(Path(f"/proc/{pid}"))[1]


def _stat(folder: Path) -> tuple[int, float]:
    """Session and processor time: fields 6 and 14 to 17 of ``/proc/PID/stat``, see proc(5)."""
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return -1, 0.0
    return int(fields[3]), sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
