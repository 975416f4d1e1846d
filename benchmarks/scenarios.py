"""The named benchmarks, frozen: what each measures, how it runs quickly, and what must not fall.

A scenario is one entry here. Its command writes a JSON file; the numbers named under ``ratios`` are
compared with those of the file recorded in ``benchmarks/results``. No time is ever compared: on
shared machines it moves by 40 % from run to run, and ratios taken inside one run do not. How the
tolerances were chosen is in ``docs/benchmarks.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "same"]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Numbers of a result that are compared with the recorded ones."""

    path: tuple[str, ...]
    """Keys down to it in the JSON; ``*`` stands for every key that is recorded there."""
    tolerance: float
    """How much worse it may be, as a share of the recorded one; 0: not at all."""
    better: Better = "higher"
    """``same``: neither more nor less is right."""
    wall_clock: bool = False
    """By the clock on the wall: on a machine that others keep busy, a loss says nothing."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A benchmark by name."""

    name: str
    measures: str
    """In a line, for people."""
    command: tuple[str, ...]
    """Module and arguments of the quick form. ``{out}`` is the file to write; ``{peers}``,
    ``{envs}``, ``{ct_data}`` and ``{data}`` are those of ``benchmarks.bench``."""
    result: str
    """File in ``benchmarks/results``, as the full form has recorded it."""
    ratios: tuple[Ratio, ...]
    minutes: float
    """Of the quick form, on two cores."""
    needs: tuple[Literal["ct-data", "peers", "envs", "gpu"], ...] = ()
    """What must be there; else it is said that the scenario was not run."""


SCENARIOS = (
    Scenario(
        name="stream",
        measures="wire efficiency, regions/s against other loaders, GETs and bytes a set",
        command=(
            *("benchmarks.stream", "wire", "regions", "counters", "--rounds", "3"),
            *("--peers", "{peers}", "--ct-data", "{ct_data}", "--folder", "{data}/stream"),
            *("--out", "{out}"),
        ),
        result="stream.json",
        ratios=(
            Ratio(path=("wire", "*", "*", "efficiency"), tolerance=0.25, wall_clock=True),
            Ratio(path=("regions", "ratios", "ours stream", "*"), tolerance=0.35, wall_clock=True),
            Ratio(path=("counters", "*", "*", "gets_per_set"), tolerance=0.0, better="same"),
            Ratio(path=("counters", "*", "*", "mb_per_set"), tolerance=0.0, better="same"),
        ),
        minutes=6,
        needs=("ct-data", "peers"),
    ),
    Scenario(
        name="loader",
        measures="sets of crops a second and core beside MONAI, torchio, nnU-Net and others",
        command=(
            *("benchmarks.loader", "--rounds", "3", "--runs", "1.5mm", "--envs", "{envs}"),
            *("--ct-data", "{ct_data}", "--folder", "{data}/loader", "--out", "{out}"),
        ),
        result="loader.json",
        ratios=(
            Ratio(path=("runs", "1.5mm", "cases", "*", "ours_over_it_by_cpu_time"), tolerance=0.3),
        ),
        minutes=5,
        needs=("ct-data", "envs"),
    ),
    Scenario(
        name="decode",
        measures="decoding against the bare codec on the same chunks, by processor time",
        command=(
            *("benchmarks.decode", "--rounds", "5", "--ct-data", "{ct_data}"),
            *("--data", "{data}/decode", "--out", "{out}"),
        ),
        result="decode.json",
        ratios=(
            Ratio(
                path=("profiles", "*", "by_threads", "*", "cpu_of_codec", "decode"),
                tolerance=0.08,
            ),
            Ratio(path=("profiles", "*", "chunks_per_set"), tolerance=0.0, better="same"),
        ),
        minutes=1,
        needs=("ct-data",),
    ),
    Scenario(
        name="ingest",
        measures="ingest against reading and decoding alone, and against dcm2niix + MONAI",
        command=(
            *("benchmarks.ingest", "--repeats", "1", "--ct-data", "{ct_data}"),
            *("--folder", "{data}/ingest", "--out", "{out}"),
        ),
        result="ingest.json",
        ratios=(Ratio(path=("kinds", "*", "ratios", "work_cpu_s", "*"), tolerance=0.35),),
        minutes=2,
        needs=("ct-data",),
    ),
    Scenario(
        name="scan",
        measures="header scan against pydicom and gdcm.Scanner, processor time of one core",
        command=(
            *("benchmarks.ingest_scan", "--rounds", "3", "--raw", "{ct_data}"),
            *("--out", "{out}"),
        ),
        result="ingest-scan.json",
        ratios=(Ratio(path=("ours_over", "*"), tolerance=0.15),),
        minutes=1,
        needs=("ct-data",),
    ),
    Scenario(
        name="scale",
        measures="loading a simulated million series for planning: memory, requests and bytes",
        command=(
            *("benchmarks.scale", "--rounds", "1", "--folder", "{data}/scale"),
            *("--out", "{out}"),
        ),
        result="scale.json",
        ratios=(
            Ratio(path=("steps", "*", "own_mb"), tolerance=0.1, better="lower"),
            Ratio(path=("steps", "*", "ways", "*", "*"), tolerance=0.0, better="same"),
            Ratio(path=("steps", "*", "table_requests"), tolerance=0.0, better="same"),
        ),
        minutes=2,
    ),
    Scenario(
        name="gpu",
        measures="copies to the GPU, the graph, the loader and training steps, against its aims",
        command=("benchmarks.gpu", "--out", "{out}"),
        result="gpu.json",
        ratios=(Ratio(path=("ratios", "*"), tolerance=0.15, wall_clock=True),),
        minutes=9,
        needs=("gpu",),
    ),
)
"""In the order in which they run."""


def by_name(name: str) -> Scenario:
    """The scenario called ``name``.

    Raises:
        ValueError: there is none.
    """
    for scenario in SCENARIOS:
        if scenario.name == name:
            return scenario
    known = ", ".join(scenario.name for scenario in SCENARIOS)
    raise ValueError(f"no scenario {name!r}; there are {known}")
