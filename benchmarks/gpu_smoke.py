"""What only a machine with a CUDA GPU can show, in one run of a few minutes: ``--help`` for more.

Checks: views made on the GPU equal those of the plain reference; reused slots change nothing; views
are float16. Measures: host-to-device copy, the graph alone, the loader, and one training step with
its peak memory. The last line of output is the result as JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from coralbay.recipes import Recipe, small, tiny
from coralbay.schedules import build_schedules
from shards.testing import write_toy_dataset
from train.loader.base import Batch, CTLoader
from train.loader.settings import LoaderConfig
from train.loop import settings_at, train_step
from train.profile import profile_loader
from train.state import new_state

TOLERANCE = 2e-3
"""Between a float16 view from the GPU and the float32 reference; values lie in [0, 1]."""
PACKAGES = ("torch", "numpy", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "numcodecs", "obstore")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much to do."""

    recipe: Recipe
    shape: tuple[int, int, int]
    """Of each volume, voxels."""
    samples: int
    batch_size: int
    batches: int
    """Batches compared."""
    seconds: float
    """For the profile of the loader."""
    copy_mib: int
    threads: int


FULL = Size(
    recipe=small(),
    shape=(200, 260, 260),
    samples=16,
    batch_size=4,
    batches=8,
    seconds=30.0,
    copy_mib=256,
    threads=min(16, os.cpu_count() or 1),
)
REHEARSAL = Size(
    recipe=tiny(),
    shape=(70, 80, 90),
    samples=3,
    batch_size=1,
    batches=2,
    seconds=0.2,
    copy_mib=4,
    threads=2,
)


def main(args: list[str] | None = None) -> int:
    """Run everything; 0 when all checks passed or there is no GPU, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_smoke", description=__doc__)
    parser.add_argument("--out", type=Path, help="file to write the JSON to")
    parser.add_argument(
        "--rehearse", action="store_true", help="small sizes on the CPU: tries this script itself"
    )
    options = parser.parse_args(args)
    if not options.rehearse and not torch.cuda.is_available():
        print("gpu_smoke: this machine has no CUDA GPU; nothing was run (--rehearse uses the CPU)")
        return 0
    result = run(REHEARSAL if options.rehearse else FULL, "cpu" if options.rehearse else "gpu")
    return finish(result, options.out)


def finish(result: dict[str, Any], out: Path | None) -> int:
    """Write the result, print it as the last line, and give the exit code that it means."""
    line = json.dumps(result)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(line + "\n")
    print(line)
    return 0 if result["passed"] else 1


def run(size: Size, device: str) -> dict[str, Any]:
    """All parts, one after another. A part that fails is recorded and the others still run."""
    result: dict[str, Any] = {"device": device, "machine": machine(), "failures": {}}
    parts: dict[str, Callable[[Path, Size, str], Any]] = {
        "views": compare_views,
        "poison": compare_poisoned,
        "h2d": measure_copy,
        "train_step": measure_step,
        "loader": measure_loader,
    }
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_toy_dataset(Path(folder), size.samples, shape=size.shape)
        for name, part in parts.items():
            started = time.perf_counter()
            try:
                result[name] = part(dataset, size, device)
            except Exception as exc:  # a report with one hole beats no report from a rare machine
                result["failures"][name] = f"{type(exc).__name__}: {exc}"
            print(f"gpu_smoke: {name} {time.perf_counter() - started:.1f} s", file=sys.stderr)
    result["passed"] = not result["failures"]
    return result


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "gpu": gpu.name if gpu else None,
        "gpu_memory_gib": round(gpu.total_memory / 2**30, 1) if gpu else None,
        "cuda": torch.version.cuda,
        "cpu": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def compare_views(dataset: Path, size: Size, device: str) -> dict[str, float]:
    """Largest difference to the plain reference, for both resamplers.

    Raises:
        AssertionError: it is above ``TOLERANCE``, or the views are not float16 on the device.
    """
    expected = _batches(dataset, size, device="cpu", loader="reference", precision="float32")
    worst: dict[str, float] = {}
    for resampler in ("affine", "resize"):
        got = _batches(dataset, size, device=device, resampler=resampler)
        for batch in got:
            for views in batch.views:
                assert views.dtype == torch.float16, f"views are {views.dtype}"
                assert views.is_cuda == (device == "gpu"), f"views are on {views.device}"
        worst[resampler] = _difference(got, expected)
        assert worst[resampler] <= TOLERANCE, f"{resampler}: views differ by {worst[resampler]}"
    return worst


def compare_poisoned(dataset: Path, size: Size, device: str) -> dict[str, float]:
    """Freed slots filled with garbage at once: the batches must stay the same to the bit.

    Raises:
        AssertionError: they do not.
    """
    # Kept apart from each other by reading late: no batch is looked at before all are made.
    clean = _batches(dataset, size, device=device, prefetch=1)
    poisoned = _batches(dataset, size, device=device, prefetch=1, poison=True)
    worst = _difference(clean, poisoned)
    assert worst == 0, f"reused slots change views by {worst}"
    return {"difference": worst, "batches": len(clean)}


def measure_copy(dataset: Path, size: Size, device: str) -> dict[str, float]:
    """Copies from page-locked and from ordinary memory to the device, GB/s, best of 5."""
    n = size.copy_mib * 2**20
    rates = {}
    for kind, pinned in (("pinned", device == "gpu"), ("pageable", False)):
        source = torch.ones(n, dtype=torch.uint8, pin_memory=pinned)
        target = torch.empty(n, dtype=torch.uint8, device=_torch_device(device))
        rates[f"{kind}_gb_per_s"] = n / min(_copy_seconds(target, source) for _ in range(5)) / 1e9
    return rates


def measure_step(dataset: Path, size: Size, device: str) -> dict[str, Any]:
    """Training steps on one batch that stays the same, and their peak of device memory."""
    batch = _batches(dataset, size, device=device)[0]
    if device == "cpu":
        batch = replace(batch, views=[views.float() for views in batch.views])
    state = new_state(size.recipe, seed=0, device=_torch_device(device))
    schedules = build_schedules(size.recipe, steps=10, global_batch=size.batch_size)
    if device == "gpu":
        torch.cuda.reset_peak_memory_stats()
    steps, seconds = (5 if device == "gpu" else 1), []
    for step in range(steps):
        began = time.perf_counter()
        signs = train_step(state, batch, settings_at(schedules, step))
        _synchronize()
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "gpu" else None
    return {
        "feature_size": size.recipe.feature_size,
        "batch_size": size.batch_size,
        "sets_per_s": size.batch_size / min(seconds),
        "peak_memory_gib": peak,
        "loss": signs.loss,
    }


def measure_loader(dataset: Path, size: Size, device: str) -> dict[str, Any]:
    """The loader's profile; ``stages.graph`` is the graph alone."""
    config = _config(size, device=device, prefetch=2 * size.batch_size)
    return profile_loader(dataset, size.recipe.views, config, seconds=size.seconds).to_json()


def _config(size: Size, **changes: Any) -> LoaderConfig:
    return LoaderConfig(batch_size=size.batch_size, threads=size.threads, **changes)


def _batches(dataset: Path, size: Size, **changes: Any) -> list[Batch]:
    with CTLoader(dataset, size.recipe.views, _config(size, **changes)) as loader:
        return list(itertools.islice(loader, size.batches))


def _difference(got: list[Batch], expected: list[Batch]) -> float:
    assert [batch.keys for batch in got] == [batch.keys for batch in expected]
    return max(
        (a.float().cpu() - b.float().cpu()).abs().max().item()
        for first, second in zip(got, expected, strict=True)
        for a, b in zip(first.views, second.views, strict=True)
    )


def _copy_seconds(target: torch.Tensor, source: torch.Tensor) -> float:
    _synchronize()
    began = time.perf_counter()
    target.copy_(source, non_blocking=True)
    _synchronize()
    return time.perf_counter() - began


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _torch_device(device: str) -> torch.device:
    return torch.device("cuda" if device == "gpu" else "cpu")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
