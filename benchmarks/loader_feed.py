"""Threads or a subprocess: which feed suits the consumer beside it?

    python -m benchmarks.loader_feed /data/shards --preset tiny --out loader-feed.json

Both feeds and a batch that is simply kept (``cached``) take turns beside the same consumer, every
round in the other order, and only the ratios within a round count. Consumers: ``train``, real steps
of the preset; ``python``, a loop that holds the interpreter for as long as it runs; ``none``, which
takes batches as they come. Works on the CPU, where torch gets one thread so that the loader has a
core as well, and on a GPU. Ends with a line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_smoke import machine
from coralbay.schedules import build_schedules
from train.config import RunConfig
from train.data import StreamConfig
from train.loader.base import QUEUED_BATCHES, Batch, CTLoader
from train.loader.process import ProcessSupply
from train.loop import settings_at, train_step
from train.presets import configure
from train.run import loader_config, manifest_of, pick_device
from train.state import new_state

ARMS = ("threads", "subprocess", "cached")
CONSUMERS = ("train", "python", "none")
PYTHON_S = 0.03
"""How long the loop of ``python`` holds the interpreter for a batch, when it is alone."""
MANY_STEPS = 100_000

Consume = Callable[[Batch], None]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one arm did beside a consumer in one round."""

    steps_per_s: float
    data_wait: float
    """Share of the time spent waiting for a batch."""
    cpu_s_per_set: float
    """Processor time of all that is involved, consumer included."""
    own_cpu_s_per_set: float
    """That of the consumer's process alone."""


def main(args: Sequence[str] | None = None) -> int:
    """Measure, print a table and end with a line of JSON."""
    options = _parser().parse_args(args)
    torch.set_num_threads(options.torch_threads)
    config = configure(
        options.preset, options.url, threads=options.threads, batch_size=options.batch_size
    )
    if options.batch_size is None:
        volumes = manifest_of(options.url).totals.trainable
        config = replace(config, batch_size=min(config.batch_size, volumes))
    result = measure(config, options.consumers, rounds=options.rounds, seconds=options.seconds)
    for line in table(result):
        print(line)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


def measure(
    config: RunConfig, consumers: Sequence[str], *, rounds: int, seconds: float
) -> dict[str, Any]:
    """All arms beside each of the consumers; ``seconds`` a turn."""
    result: dict[str, Any] = {
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "preset": config.preset,
        "device": pick_device(config.device).type,
        "batch_size": config.batch_size,
        "threads": config.threads,
        "torch_threads": torch.get_num_threads(),
        "rounds": rounds,
        "seconds": seconds,
        "consumers": {},
    }
    for name in consumers:
        consume = _consumer(name, config)
        # Keeping a batch costs nothing: without a consumer there is nothing to compare.
        arms = ARMS[:2] if name == "none" else ARMS
        turns: dict[str, list[Turn]] = {arm: [] for arm in arms}
        for number in range(rounds):
            for arm in arms if number % 2 == 0 else reversed(arms):
                turns[arm].append(_turn(arm, config, consume, seconds))
        result["consumers"][name] = _summary(turns)
    return result


def table(result: dict[str, Any]) -> Iterator[str]:
    """What a person reads."""
    yield (
        f"{result['preset']} on {result['device']}, batch {result['batch_size']}, "
        f"{result['threads']} threads, {result['machine']['cpu_count']} cores; "
        f"medians of {result['rounds']} rounds"
    )
    yield (
        f"{'':8}{'steps/s':>30}{'data wait':>22}{'cpu s a set':>22}{'in its process':>22}"
        f"{'subprocess is':>15}"
    )
    arms = "".join(f"{arm:>11}" for arm in ARMS)
    yield f"{'':8}{arms[3:]}{arms[:22] * 3}"
    for name, found in result["consumers"].items():
        rates = "".join(f"{turn['steps_per_s']:11.2f}" for turn in found["arms"].values())
        waits = "".join(f"{found['arms'][arm]['data_wait']:11.1%}" for arm in ARMS[:2])
        cpu = "".join(f"{found['arms'][arm]['cpu_s_per_set']:11.3f}" for arm in ARMS[:2])
        own = "".join(f"{found['arms'][arm]['own_cpu_s_per_set']:11.3f}" for arm in ARMS[:2])
        yield f"{name:8}{rates[3:]:30}{waits}{cpu}{own}{found['subprocess_of_threads']:13.2f} x"


def _summary(turns: dict[str, list[Turn]]) -> dict[str, Any]:
    def ratios(over: str, under: str) -> list[float]:
        pairs = zip(turns[over], turns[under], strict=True)
        return [a.steps_per_s / b.steps_per_s for a, b in pairs]

    fields = Turn.__dataclass_fields__
    return {
        "arms": {
            arm: {name: statistics.median(getattr(t, name) for t in found) for name in fields}
            for arm, found in turns.items()
        },
        "subprocess_of_threads": statistics.median(ratios("subprocess", "threads")),
        "subprocess_of_threads_each": ratios("subprocess", "threads"),
        "headspace": {
            arm: statistics.median(ratios(arm, "cached")) for arm in ARMS[:2] if "cached" in turns
        },
        "turns": {arm: [asdict(turn) for turn in found] for arm, found in turns.items()},
    }


def _turn(arm: str, config: RunConfig, consume: Consume, seconds: float) -> Turn:
    with _batches(arm, config) as (batches, cpu_s):
        *_, batch = itertools.islice(batches, QUEUED_BATCHES)
        consume(batch)
        steps, waited, sets = 0, 0.0, 0
        cpu_before, own_before, began = cpu_s(), time.process_time(), time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            consume(batch)
            steps, sets = steps + 1, sets + len(batch.keys)
        spent, own = cpu_s() - cpu_before, time.process_time() - own_before
    return Turn(
        steps_per_s=steps / elapsed,
        data_wait=waited / elapsed,
        cpu_s_per_set=spent / sets,
        own_cpu_s_per_set=own / sets,
    )


@contextmanager
def _batches(arm: str, config: RunConfig) -> Iterator[tuple[Iterator[Batch], Callable[[], float]]]:
    """An arm's batches, and the processor time spent so far on them and on the consumer."""
    feed = "subprocess" if arm == "subprocess" else "threads"
    loading = loader_config(config, pick_device(config.device))
    loading = replace(loading, stream=replace(StreamConfig(), feed=feed))
    with CTLoader(config.shards, config.recipe.views, loading) as loader:
        first = next(loader)
        supply = loader._running.supply if loader._running else None
        pid = supply.pid if isinstance(supply, ProcessSupply) else None
        if arm == "cached":
            loader.close()
            yield itertools.repeat(first), time.process_time
        else:
            yield loader, lambda: time.process_time() + (_cpu_s(pid) if pid else 0.0)


def _cpu_s(pid: int) -> float:
    """Processor time of another process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _consumer(name: str, config: RunConfig) -> Consume:
    on_gpu = pick_device(config.device).type == "cuda"
    if name == "train":
        return _train_steps(config)
    if name == "python":
        return _python_loop()

    def wait(batch: Batch) -> None:
        if on_gpu:
            torch.cuda.synchronize()

    return wait


def _train_steps(config: RunConfig) -> Consume:
    state = new_state(config.recipe, seed=0, device=pick_device(config.device))
    schedules = build_schedules(config.recipe, steps=MANY_STEPS, global_batch=config.batch_size)

    def consume(batch: Batch) -> None:
        train_step(state, batch, settings_at(schedules, state.step))

    return consume


def _python_loop() -> Consume:
    def spin(turns: int) -> float:
        began, total = time.perf_counter(), 0
        for n in range(turns):
            total += n * n
        return time.perf_counter() - began

    turns = 100_000
    turns = int(turns * PYTHON_S / min(spin(turns) for _ in range(5)))

    def consume(batch: Batch) -> None:
        spin(turns)

    return consume


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="dataset: a folder or URL")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--consumers", nargs="+", choices=CONSUMERS, default=CONSUMERS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0, help="a turn")
    parser.add_argument("--torch-threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
