"""The scenarios that need a GPU, all in one run of less than nine minutes on a card.

Correctness against the plain reference; copies to the GPU; the graph alone and the loader end to
end from the page cache and from the emulated bucket; profile ``gpu`` against ``balanced``; training
steps of ``small`` and ``base`` with the loader and with cached batches. A part that fails leaves a
hole and the others still run; one that would begin too late is not run, and said to be.

    python -m benchmarks.gpu --out benchmarks/results/gpu.json
    python -m benchmarks.gpu --rehearse     # everything in tiny form on the CPU: tries the script
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import gpu_aims, gpu_smoke
from benchmarks.gpu_smoke import Size, compare_poisoned, compare_views, machine, measure_copy
from benchmarks.gpu_steps import headspace
from coralbay.recipes import Recipe, base, small, tiny
from shards.testing import write_toy_dataset
from shards.testing.emulator import emulator
from train.loader.base import CTLoader
from train.loader.settings import LoaderConfig
from train.profile import profile_loader

BUCKET = "bench"
RESULTS = Path(__file__).parent / "results"
LAST_START_S = 8 * 60.0
"""No part begins later: a lent card is taken back."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much to do."""

    checks: Size
    """For correctness and copies."""
    samples: int
    batch_size: int
    threads: int
    seconds: float
    """End to end; stages and limits together take as long again."""
    presets: dict[str, Recipe]
    """For training steps, by the name that the result gives them."""
    pairs: int
    steps: int
    latency_s: float
    """Of the emulated bucket."""
    mb_per_s: float
    """Of one of its connections."""


FULL = Scale(
    checks=replace(gpu_smoke.FULL, samples=8, batches=4),
    samples=32,
    batch_size=16,
    threads=min(16, os.cpu_count() or 1),
    seconds=15.0,
    presets={"small": small(), "base": base()},
    pairs=5,
    steps=12,
    latency_s=0.025,
    mb_per_s=90.0,
)
_ONE_LOCAL = replace(tiny().views.local, count=1)
REHEARSAL = Scale(
    checks=gpu_smoke.REHEARSAL,
    samples=3,
    batch_size=1,
    threads=2,
    seconds=0.2,
    presets={"small": replace(tiny(), views=replace(tiny().views, local=_ONE_LOCAL))},
    pairs=1,
    steps=1,
    latency_s=0.001,
    mb_per_s=math.inf,
)


def main(args: Sequence[str] | None = None) -> int:
    """Run everything; 0 when every part ran and was right, else 1. A missed aim is reported."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="file to write the JSON to")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    options = parser.parse_args(args)
    if options.rehearse and options.out and options.out.resolve().parent == RESULTS.resolve():
        parser.error("a rehearsal is no result: give --out another folder")
    if not options.rehearse and not torch.cuda.is_available():
        print("gpu: this machine has no CUDA GPU; nothing was run (--rehearse uses the CPU)")
        return 0
    if options.rehearse:
        torch.set_num_threads(1)
    result = run(REHEARSAL, "cpu") if options.rehearse else run(FULL, "gpu")
    print("\n".join(gpu_aims.table(result)))
    return gpu_smoke.finish(result, options.out)


def run(scale: Scale, device: str) -> dict[str, Any]:
    """All parts, one after another, and what they say about the aims."""
    result: dict[str, Any] = {
        "rehearsal": device != "gpu",
        "device": device,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "parts": {},
        "seconds": {},
        "failures": {},
    }
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, storage(Path(scratch), scale) as bucket:
        for name, part in parts(bucket, scale, device).items():
            started = time.perf_counter()
            if started - began > LAST_START_S:
                result["failures"][name] = "not run: no time left"
                continue
            try:
                result["parts"][name] = part()
            except Exception as exc:  # a report with one hole beats no report from a rare machine
                result["failures"][name] = f"{type(exc).__name__}: {exc}"
            result["seconds"][name] = round(time.perf_counter() - started, 1)
            print(f"gpu: {name} {result['seconds'][name]} s", file=sys.stderr, flush=True)
    result["aims"] = gpu_aims.judge(result["parts"], rehearsal=result["rehearsal"])
    result["ratios"] = gpu_aims.ratios(result["parts"])
    result["passed"] = not result["failures"]
    return result


@contextmanager
def storage(folder: Path, scale: Scale) -> Iterator[Path]:
    """A dataset of each profile in a bucket folder, which the emulator serves."""
    bucket = folder / BUCKET
    for profile in ("balanced", "gpu"):
        shape = scale.checks.shape
        write_toy_dataset(bucket / profile, scale.samples, shape=shape, profile=profile)
    with (
        emulator(
            folder, scale.latency_s, 90.0 if scale is FULL else math.inf, processes=2
        ) as server,
        patch.dict(os.environ, server.environment),
    ):
        yield bucket


def parts(bucket: Path, scale: Scale, device: str) -> dict[str, Callable[[], Any]]:
    """What is measured, by name; the cheapest and most telling first."""
    balanced = bucket / "balanced"
    profile = partial(end_to_end, scale=scale, device=device)
    found: dict[str, Callable[[], Any]] = {
        "views": partial(compare_views, balanced, scale.checks, device),
        "poison": partial(compare_poisoned, balanced, scale.checks, device),
        "h2d": partial(copies, balanced, scale, device),
        "folder": partial(profile, balanced),
        "gpu_profile": partial(profile, bucket / "gpu"),
        "bucket": partial(profile, f"s3://{BUCKET}/balanced"),
    }
    for name, recipe in scale.presets.items():
        found[f"headspace_{name}"] = partial(
            headspace,
            balanced,
            recipe,
            _config(scale, device),
            pairs=scale.pairs,
            steps=scale.steps,
        )
    return found


def copies(dataset: Path, scale: Scale, device: str) -> dict[str, float]:
    """Copies to the device, GB/s, and how much a set takes of them."""
    views = scale.checks.recipe.views
    with CTLoader(dataset, views, _config(scale, device)) as loader:
        voxels = math.prod(loader.inputs.chunks_shape)
    return measure_copy(dataset, scale.checks, device) | {"gb_per_set": 2 * voxels / 1e9}


def end_to_end(dataset: Path | str, *, scale: Scale, device: str) -> dict[str, Any]:
    """The loader's profile; ``stages.graph`` is the graph alone."""
    config = _config(scale, device)
    views = scale.checks.recipe.views
    return profile_loader(dataset, views, config, seconds=scale.seconds).to_json()


def _config(scale: Scale, device: str) -> LoaderConfig:
    return LoaderConfig(
        batch_size=scale.batch_size,
        threads=scale.threads,
        prefetch=2 * scale.batch_size,
        device="gpu" if device == "gpu" else "cpu",
        # Weights are float32 on a CPU, and views must be as they are.
        precision="float16" if device == "gpu" else "float32",
    )


if __name__ == "__main__":
    sys.exit(main())
