"""Scenario ``augment``: views by our DALI graph and by torch ``grid_sample``, in turn.

Both start from the same decoded regions in (pinned) memory and deliver the same float16 views:
crop, zoom, mirroring, rotation, window, contrast, brightness, gamma; no blur and no noise. Each is
a process of its own, which compares its first batch with the reference before anything is timed.
``--device cpu`` rehearses what is meant for a GPU. A table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.loader import CT_DATA, ROOT, machine
from benchmarks.loader_data import make_data
from benchmarks.stream_protocol import Arrived, Subject, keep_answers_apart, serve
from coralbay.recipes import small

SUBJECTS = ("our graph", "grid_sample")
TOLERANCE = 2e-3
"""float16, and coordinates in float32."""
BATCH = {"cuda": 8, "cpu": 1}
WARM_S, MEASURE_S = 1.0, 3.0


def main(args: Sequence[str] | None = None) -> int:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader_augment")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ct-data", type=Path, default=CT_DATA, help="folder of real CT")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/loader", help="of the volumes")
    parser.add_argument("--out", type=Path, help="file to write the JSON to")
    parser.add_argument("--subject", choices=SUBJECTS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    if options.subject:
        keep_answers_apart()
        arrivals, error = subject(options.subject, options.url, options.device)
        serve(arrivals, subject=options.subject, largest_error=error)
        return 0
    data = make_data(options.ct_data, options.folder, 1.5)
    result = measure(str(data / "shards"), options.device, options.rounds)
    print("\n".join(table(result)))
    line = json.dumps(result)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(line + "\n")
    print(line)
    return 0


def measure(url: str, device: str, rounds: int) -> dict[str, Any]:
    """Both, in turn."""
    turns: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coralbay-bench-")))
        started = {}
        for name in SUBJECTS:
            command = [sys.executable, "-m", "benchmarks.loader_augment", "--subject", name]
            command += ["--device", device, "--url", url]
            log = scratch / f"{name}.log"
            started[name] = stack.enter_context(Subject(name, command, {}, log))
        for number in range(rounds):
            for name in SUBJECTS[:: -1 if number % 2 else 1]:
                found = started[name].run(WARM_S, MEASURE_S)
                turns[name].append(round(found["units"] / found["seconds"], 3))
        errors = {name: one.facts["largest_error"] for name, one in started.items()}
    ours, theirs = (turns[name] for name in SUBJECTS)
    return {
        "scenario": "augment",
        "device": _device_name(device),
        "rehearsal": device == "cpu",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "rounds": rounds,
        "batch": BATCH[device],
        "sets_per_s": {name: statistics.median(done) for name, done in turns.items()},
        "turns": turns,
        "ours_over_it": round(
            statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3
        ),
        "largest_error": errors,
        "machine": machine(None),
    }


def subject(name: str, url: str, device: str) -> tuple[Iterator[Arrived], float]:
    """Batches of views without end, and how far the first is from the reference at most.

    Raises:
        ValueError: farther than ``TOLERANCE``.
    """
    import torch

    from benchmarks.loader_grid_sample import GridSampleRenderer
    from train.loader.base import CTLoader
    from train.loader.renderer import DaliRenderer
    from train.loader.settings import LoaderConfig

    batch = BATCH[device]
    recipe = replace(small().views, blur_p=0.0, noise_p=0.0)
    config = LoaderConfig(batch_size=batch, loader="reference")
    with CTLoader(url, recipe, config) as loader:
        # Batches in turn, more than are under way at once: none is overwritten.
        items = decoded(loader, recipe, 4 * batch, pinned=device == "cuda")
        chunks_shape = loader.inputs.chunks_shape
    rotation = itertools.cycle([items[n : n + batch] for n in range(0, len(items), batch)])
    renderer: Any
    if name == "grid_sample":
        renderer = GridSampleRenderer(recipe, lambda: next(rotation), torch.device(device))
    else:
        renderer = DaliRenderer(
            views=recipe,
            chunks_shape=chunks_shape,
            batch_size=batch,
            pull=lambda: [loaded.slot for loaded in next(rotation)],
            device="gpu" if device == "cuda" else "cpu",
            resampler="affine",
        )
    counts = (recipe.global_.count, recipe.local.count)
    error = largest_error(renderer.render(counts)[0], items[:batch], recipe)
    if error > TOLERANCE:
        raise ValueError(f"{name}: views are {error} from the reference")
    return _batches(lambda: renderer.render(counts)[0], batch, device), error


def decoded(loader: Any, recipe: Any, count: int, *, pinned: bool) -> list[Any]:
    """The first visits, decoded into slots."""
    from train.loader.feed import Loaded
    from train.loader.params import pack_params
    from train.loader.ring import SlotRing

    ring = SlotRing(n_slots=count, layout=loader.inputs.slot_layout, pinned=pinned)
    source = loader.inputs.source(loader.inputs.open_fetcher(), loader.stats)
    items = []
    for index in range(count):
        visit, slot = loader.inputs.scheduler.visit(index, 0), ring.wait()
        loader.decoder.decode(source.fetch(visit.item, visit.region), slot.chunks)
        origin = visit.region.origin_zyx
        slot.params[:] = pack_params(visit.draws, origin, recipe.sizes, "affine")
        items.append(Loaded(visit=visit, slot=slot))
    return items


def largest_error(groups: Sequence[Any], batch: Sequence[Any], recipe: Any) -> float:
    """Of any voxel of a batch, against the reference."""
    import torch

    from train.loader.reference import ReferenceRenderer

    reference = ReferenceRenderer(
        views=recipe, pull=lambda: batch, device=torch.device("cpu"), dtype=torch.float32
    )
    expected, _ = reference.render([len(group) // len(batch) for group in groups])
    return max(
        float((group.cpu().float() - wanted).abs().max())
        for group, wanted in zip(groups, expected, strict=True)
    )


def _batches(render: Callable[[], Any], batch: int, device: str) -> Iterator[Arrived]:
    """A batch counts once the device has made it; the next one is under way by then."""
    import torch

    waiting: list[Any] = []
    while True:
        views = render()
        if device == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            waiting.append((event, views))
            if len(waiting) < 2:
                continue
            waiting.pop(0)[0].synchronize()
        yield Arrived(batch, list)


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def table(result: dict[str, Any]) -> list[str]:
    """What a person reads."""
    lines = [f"views of decoded regions on {result['device']}, batches of {result['batch']}"]
    if result["rehearsal"]:
        lines.append("a rehearsal on the CPU: it shows that all of this works, and no speed")
    for name, speed in result["sets_per_s"].items():
        error = result["largest_error"][name]
        lines.append(f"  {name:16}{speed:10.2f} sets/s   largest error {error:.1e}")
    lines.append(f"  our graph over grid_sample: {result['ours_over_it']} x")
    return lines


if __name__ == "__main__":
    sys.exit(main())
