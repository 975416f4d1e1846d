"""The fuzzer: ``python -m tests.fuzz.run --cases 12000 --record tests/fuzz/last_run.json``.

Cases run in a few worker processes, one after another, watched from outside: a case that takes too
long is a hang, a worker that dies is a crash, and either is a failure like a traceback is.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import queue
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIMIT_S = 30.0
"""A case takes 0.05 s; this leaves room for a busy machine."""
ADDRESS_BYTES = 5 << 30
"""What a worker may reserve beyond what it holds when it starts. Python reserves, and never
touches, what a damaged 32-bit length asks it to read: just under 4 GiB."""
GROWTH_MIB = 256
"""What a worker's memory may really grow by, over all cases: headers promise, files are small."""
START_S = 120.0
"""Given to a worker for its imports."""
MAX_FAILURES = 100
"""A run with more of them stops: something is wrong altogether."""
PACKAGES = ("coralbay", "imagecodecs", "nibabel", "numpy", "pydicom", "SimpleITK")


@dataclass
class Tally:
    """What a run found."""

    cases: int = 0
    places: set[tuple[Any, ...]] = field(default_factory=set)
    seeds: Counter[str] = field(default_factory=Counter)
    harms: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    content: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)
    peak_mib: int = 0

    def add(self, case: dict[str, Any]) -> None:
        """Count one finished case."""
        self.cases += 1
        self.places.add((case["seed"], case["harm"], tuple(case["harmed"]), case["place"]))
        self.seeds[case["seed"]] += 1
        self.harms[case["harm"]] += 1
        self.reasons.update(case["reasons"])
        self.content.update(case["content"])
        self.peak_mib = max(self.peak_mib, case["peak_mib"])
        if case["problems"]:
            names = ("index", "seed", "harm", "place", "problems")
            self.failures.append({name: case[name] for name in names})


@dataclass
class _Worker:
    """A process and what it is at: index of the case, when it began."""

    process: Any
    at: Any
    step: int


def fuzz(run: int, cases: int, workers: int, start: int = 0, checked: bool = True) -> Tally:
    """Run cases ``start`` to ``start + cases`` of run ``run``.

    Args:
        run: names the sequence of cases.
        cases: how many.
        workers: processes.
        start: the first one.
        checked: whether every call is checked against its signature, as in the tests.
    """
    context = multiprocessing.get_context("spawn")
    done: Any = context.Queue()
    # In memory, where there is such a place: a build syncs each of its files to the disk.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="coralbay-fuzz-", dir=memory))
    end, tally = start + cases, Tally()

    def begin(first: int, step: int) -> _Worker:
        at = context.Array("d", [first, time.monotonic() + START_S])
        args = (run, range(first, end, step), at, done, str(folder), checked)
        process = context.Process(target=work, args=args, daemon=True)
        process.start()
        return _Worker(process, at, step)

    running = [begin(start + k, workers) for k in range(min(workers, cases))]
    try:
        while running and len(tally.failures) < MAX_FAILURES:
            _collect(done, tally)
            for worker in list(running):
                problem = _problem(worker)
                if problem is None:
                    continue
                running.remove(worker)
                worker.process.join()
                if problem:
                    _collect(done, tally)
                    index = int(worker.at[0])
                    tally.add(_lost(run, index, problem))
                    if index + worker.step < end:
                        running.append(begin(index + worker.step, worker.step))
        _collect(done, tally)
    finally:
        for worker in running:
            worker.process.kill()
        shutil.rmtree(folder, ignore_errors=True)
    return tally


def _collect(done: Any, tally: Tally) -> None:
    """Take in what is finished; wait a moment for the first."""
    try:
        case = done.get(timeout=0.2)
        while True:
            tally.add(case)
            case = done.get_nowait()
    except queue.Empty:
        pass


def _problem(worker: _Worker) -> str | None:
    """None while a worker is at work, empty when it is through, else what went wrong."""
    if not worker.process.is_alive():
        code = worker.process.exitcode
        return "" if code == 0 else f"the process died with exit code {code}"
    if time.monotonic() - worker.at[1] > LIMIT_S:
        worker.process.kill()
        return f"a hang: more than {LIMIT_S:g} s"
    return None


def _lost(run: int, index: int, problem: str) -> dict[str, Any]:
    from tests.fuzz.harm import make_case

    return _record(make_case(run, index), [problem], Counter(), [])


def _record(case: Any, problems: Any, reasons: Any, content: Any) -> dict[str, Any]:
    return {
        "index": case.index,
        "seed": case.seed.name,
        "harm": case.harm,
        "place": case.place,
        "harmed": case.harmed,
        "problems": problems,
        "reasons": dict(reasons),
        "content": content,
        "peak_mib": _peak_mib(),
    }


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def work(run: int, indices: range, at: Any, done: Any, folder: str, checked: bool) -> None:
    """Run the cases ``indices`` in this process."""
    _prepare_process(checked)
    from tests.fuzz.check import own_box, run_case, unharmed
    from tests.fuzz.harm import make_case

    for default_config in (False, True):
        unharmed(default_config)
    _limit_memory()
    allowed = _peak_mib() + GROWTH_MIB
    for index in indices:
        at[0], at[1] = index, time.monotonic()
        case = make_case(run, index)
        box = own_box(Path(folder), index)
        result = run_case(case, box)
        shutil.rmtree(box.parent, ignore_errors=True)
        if _peak_mib() > allowed:
            result.problems.append(f"memory grew by more than {GROWTH_MIB} MiB")
            allowed = _peak_mib()
        done.put(_record(case, result.problems, result.reasons, result.content))


def _prepare_process(checked: bool) -> None:
    """One thread, warnings are errors as in the tests, signatures checked if asked for."""
    import warnings

    os.environ["OMP_NUM_THREADS"] = "1"
    if checked:
        from jaxtyping import install_import_hook

        from tests import typechecking

        install_import_hook(("ingest", "shards"), f"{typechecking.__name__}.checked")
    import ingest.resample  # torch, before memory is limited  # noqa: F401

    warnings.simplefilter("error")


def _limit_memory() -> None:
    """No reserving of address space without end: it fails, and the failure is seen."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            limit = int(line.split()[1]) * 1024 + ADDRESS_BYTES
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def as_record(tally: Tally, run: int) -> dict[str, Any]:
    """What is committed of a run."""
    return {
        "command": "make fuzz",
        "run": run,
        "cases": tally.cases,
        "distinct_places": len(tally.places),
        "failures": tally.failures,
        "cases_by_seed": dict(sorted(tally.seeds.items())),
        "cases_by_harm": dict(sorted(tally.harms.items())),
        "files_by_reason": dict(sorted(tally.reasons.items())),
        "accepted_volumes": dict(sorted(tally.content.items())),
        "case_limit_s": LIMIT_S,
        "growth_limit_mib": GROWTH_MIB,
        "peak_mib": tally.peak_mib,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def main() -> int:
    """Run, say what was found, record it; 1 when something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=12_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--run", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--checked", action="store_true", help="check signatures: half as fast")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    tally = fuzz(options.run, options.cases, options.workers, options.start, options.checked)
    record = as_record(tally, options.run) | {"signatures_checked": options.checked}
    text = json.dumps(record, indent=1) + "\n"
    sys.stdout.write(text)
    if options.record is not None:
        options.record.write_text(text)
    return 1 if tally.failures or tally.cases != options.cases else 0


if __name__ == "__main__":
    sys.exit(main())
