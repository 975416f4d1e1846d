"""Decoding against the bare codec and memcpy, by profile and number of threads.

Everybody decodes the chunks of the same sets of two real chest CT (1.5 mm, views of ``small``), in
turns, one after another in every round and in the other order in the next; ratios are medians over
rounds. ``codec`` decompresses and nothing else; ``codec+crc`` sums first, as a decoder that refuses
damaged chunks must. ``steps`` (profile ``gpu``) is numcodecs' LZ4, then its shuffle. ``pack`` puts
stored chunks into a slot for the GPU to decode.

    python -m benchmarks.decode [--threads 1 2] [--rounds 15] [--data FOLDER] [--out FILE]

Ends with exit code 1 if ``decode`` is below 0.8 of ``codec``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numcodecs.lz4
import numpy as np
from crc32c import crc32c
from numcodecs.shuffle import Shuffle

from benchmarks.decode_held import held_us
from coralbay.recipes import small
from shards.codec import CRC_BYTES
from shards.decoding import ChunkDecoder
from shards.fetched import Fetched
from shards.profiles import PROFILES, get_profile
from shards.stats import Stats
from train.loader.base import CTLoader
from train.loader.filling import PROFILE, StoredFiller
from train.loader.settings import LoaderConfig
from train.loader.slots import Slot

N_SETS = 16
GATE = 0.8
"""Of ``codec``, that ``decode`` reaches at the least."""
SOURCES = ("lidc-idri", "acrin-flt-breast-013")
"""Below the folder of real CT, as in ``stream_data``."""

Subject = Callable[[int, Slot], object]
"""Does its work for a set, by number, in a slot."""


def main() -> int:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--ct-data", type=Path, default=Path("../shared/data/ct"))
    parser.add_argument("--data", type=Path, default=Path("runs/decode"), help="datasets")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    profiles = {
        name: measure(_dataset(args.data / name, name, args.ct_data), args.threads, args.rounds)
        for name in PROFILES
    }
    result = {
        "machine": {
            "cpus": os.cpu_count(),
            "arch": platform.machine(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("numcodecs", "crc32c", "numpy")},
            "load_before_and_after": [round(load, 1), round(os.getloadavg()[0], 1)],
        },
        "rounds": args.rounds,
        "sets": N_SETS,
        "profiles": profiles,
    }
    for name, found in profiles.items():
        _print(name, found)
    line = json.dumps(result)
    print(line)
    if args.out is not None:
        args.out.write_text(line + "\n")
    ratios = [turn["of_codec"]["decode"] for p in profiles.values() for turn in p["by_threads"]]
    return 0 if min(ratios) >= GATE else 1


def _dataset(folder: Path, profile: str, ct_data: Path) -> Path:
    """The dataset of a profile, built from real CT if it is not there."""
    if not (folder / "manifest.json").exists():
        command = [sys.executable, "-c", "from ingest.cli import entry; entry()", "build-shards"]
        raw = [str(ct_data / name) for name in SOURCES]
        subprocess.run(
            [*command, *raw, str(folder), "--profile", profile], check=True, stdout=sys.stderr
        )
    return folder


def measure(folder: Path, threads: list[int], rounds: int) -> dict[str, Any]:
    """All subjects on one dataset."""
    config = LoaderConfig(batch_size=1, loader="reference")
    with CTLoader(folder, small().views, config) as loader:
        fetched = _fetch(loader)
        profile = loader.inputs.profile
        subjects = _subjects(profile, fetched)
        layout = loader.inputs.slot_layout
        by_threads = [
            {"threads": n} | _in_turns(subjects, n, rounds, layout, _voxel_bytes(profile, fetched))
            for n in threads
        ]
        stats = Stats()
        (slot,) = layout.carve(np.zeros(layout.nbytes, dtype=np.uint8))
        decoder = ChunkDecoder(profile, stats)
        fullest = min(fetched, key=lambda one: len(one.absent))
        allocated = _allocated(lambda: decoder.decode(fullest, slot.chunks))
        counted = stats.counters()
        return {
            "chunks_per_set": sum(len(p.places) for f in fetched for p in f.parts) / N_SETS,
            "stored_bytes_per_set": sum(sum(p.nbytes) for f in fetched for p in f.parts) // N_SETS,
            "by_threads": by_threads,
            "held_us_per_set": held_us(loader, fullest),
            "held_chunks": sum(len(part.places) for part in fullest.parts),
            "allocated_bytes_at_most": allocated,
            "copied_of_stored_bytes": round(counted["bytes_copied"] / counted["bytes_ideal"], 3),
        }


def _fetch(loader: CTLoader) -> list[Fetched]:
    fetcher = loader.inputs.open_fetcher()
    source = loader.inputs.source(fetcher, Stats())
    visits = [loader.inputs.scheduler.visit(index, 0) for index in range(N_SETS)]
    fetched = [source.fetch(visit.item, visit.region) for visit in visits]
    for one in fetched:
        one.wait()
    fetcher.close()
    return fetched


def _voxel_bytes(profile: str, fetched: list[Fetched]) -> int:
    chunks = sum(len(part.places) for one in fetched for part in one.parts)
    return int(chunks * get_profile(profile).chunk_side ** 3 * 2)


def _subjects(profile: str, fetched: list[Fetched]) -> dict[str, Subject]:
    decoder, codec = ChunkDecoder(profile, Stats()), get_profile(profile).decompress
    chunks = [list(one.stored()) for one in fetched]
    shuffle = Shuffle(elementsize=2)

    def each(work: Callable[[memoryview, Any], object]) -> Subject:
        def subject(number: int, slot: Slot) -> None:
            flat = slot.chunks.reshape(-1, *slot.chunks.shape[3:])
            for place, chunk in chunks[number]:
                work(chunk[:-CRC_BYTES], flat[place])

        return subject

    def summed(body: memoryview, out: Any) -> None:
        crc32c(body)
        codec(body, out)

    ones = np.ones((get_profile(profile).chunk_side,) * 3 + (N_SETS,), dtype=np.int16)
    sources = np.ascontiguousarray(np.moveaxis(ones, -1, 0))
    numbers = iter(range(10**9))
    subjects: dict[str, Subject] = {
        "memcpy": each(lambda body, out: np.copyto(out, sources[next(numbers) % N_SETS])),
        "codec": each(codec),
        "codec+crc": each(summed),
        "decode": lambda number, slot: decoder.decode(fetched[number], slot.chunks),
    }
    if profile == PROFILE:
        filler = StoredFiller(Stats())
        subjects["steps"] = each(
            lambda body, out: shuffle.decode(numcodecs.lz4.decompress(body), out)
        )
        subjects["pack"] = lambda number, slot: filler.fill(fetched[number], slot)
    return subjects


def _in_turns(
    subjects: dict[str, Subject], threads: int, rounds: int, layout: Any, nbytes: int
) -> dict[str, Any]:
    """GB/s of voxels, and ratios by the clock.

    ``cpu``: by processor time, which others on the machine disturb less, and which waiting for the
    GIL is no part of.
    """
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    cpu: dict[str, list[float]] = {name: [] for name in subjects}
    own = threading.local()

    def work(subject: Subject, number: int) -> None:
        if not hasattr(own, "slot"):
            (own.slot,) = layout.carve(np.zeros(layout.nbytes, dtype=np.uint8))
        subject(number, own.slot)

    with ThreadPoolExecutor(threads) as pool:
        for turn in range(-1, rounds):
            for name in list(subjects)[:: 1 if turn % 2 else -1]:
                subject = subjects[name]
                start, cpu_start = time.perf_counter(), time.process_time()
                list(pool.map(work, [subject] * N_SETS, range(N_SETS)))
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - start)
                    cpu[name].append(time.process_time() - cpu_start)
    rates = {name: nbytes / statistics.median(taken) / 1e9 for name, taken in seconds.items()}

    return {
        "gb_per_s": {name: round(rate, 2) for name, rate in rates.items()},
        "of_codec": _over(seconds, "codec"),
        "of_codec_and_crc": _over(seconds, "codec+crc"),
        "of_memcpy": _over(seconds, "memcpy"),
        "cpu_of_codec": _over(cpu, "codec"),
    }


def _over(taken: dict[str, list[float]], base: str) -> dict[str, float]:
    """Median over rounds of everybody's rate over that of ``base``."""
    return {
        name: round(statistics.median(b / a for a, b in zip(own, taken[base], strict=True)), 3)
        for name, own in taken.items()
    }


def _allocated(task: Callable[[], object]) -> int:
    """Most memory of Python and NumPy that a task holds at once, in its second turn."""
    task()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        task()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def _print(name: str, found: dict[str, Any]) -> None:
    for turn in found["by_threads"]:
        rates = ", ".join(f"{who} {rate:.2f}" for who, rate in turn["gb_per_s"].items())
        print(
            f"{name}, {turn['threads']} threads: {rates} GB/s of voxels; decode is "
            f"{turn['of_codec']['decode']:.2f} of codec "
            f"({turn['cpu_of_codec']['decode']:.2f} by processor time), "
            f"{turn['of_codec_and_crc']['decode']:.2f} of codec+crc, "
            f"{turn['of_memcpy']['decode']:.2f} of memcpy"
        )
    held = ", ".join(f"{stage} {us:.0f}" for stage, us in found["held_us_per_set"].items())
    print(f"{name}: microseconds under the GIL, set of {found['held_chunks']} chunks: {held}")


if __name__ == "__main__":
    sys.exit(main())
