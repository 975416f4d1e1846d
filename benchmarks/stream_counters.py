"""GETs and bytes a set takes, exactly: the same on every machine."""

from __future__ import annotations

import argparse
import os
from contextlib import closing
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from benchmarks.stream_data import BUCKET
from benchmarks.stream_ours import no_views_loader
from shards.reading import open_fetcher
from shards.testing.emulator import Emulator, emulator

VISITS = (1, 2, 4)
MODES = ("stream", "range")
BATCH = 8


def measure(bucket: Path) -> dict[str, Any]:
    """One epoch of visits in each mode, for some k."""
    result: dict[str, Any] = {}
    with emulator(bucket.parent, 0.0, inf) as server:
        os.environ.update(server.environment)
        url = f"s3://{BUCKET}/wide"
        for k in VISITS:
            ways = {mode: count(server, url, mode, k) for mode in MODES}
            auto = argparse.Namespace(mode="auto", k=k, batch=BATCH, threads=None, copy=False)
            with no_views_loader(url, auto) as loader:
                result[f"k={k}"] = ways | {"auto": loader.inputs.choice.sentence}
    return result


def count(server: Emulator, url: str, mode: str, k: int, batch: int = BATCH) -> dict[str, Any]:
    """Ask for an epoch's sets as the loader does, one after another; the server counts.

    An epoch of positions holds all visits of its volumes, and no others, where the plan's spread
    times ``batch`` divides the number of volumes.
    """
    options = argparse.Namespace(mode=mode, k=k, batch=batch, threads=None, copy=False)
    with no_views_loader(url, options) as loader:
        sets = loader.plan.samples_per_epoch * k
        visits = [loader.inputs.scheduler.visit(index, 0) for index in range(sets)]
        # A second request for a slow one would be counted too, and depends on the machine.
        policy = replace(loader.dataset.store.policy, hedge_share=0.0)
        with closing(open_fetcher(loader.dataset.store, policy, stats=loader.stats)) as fetcher:
            source = loader.inputs.source(fetcher, loader.stats)
            before, asked = server.counters(), loader.stats.counters()
            fetched = []
            for visit in visits:
                fetched.append(source.fetch(visit.item, visit.region))
                if len(fetched) > loader.config.batch_size:
                    fetched.pop(0).wait()
                source.done(visit.item)
            for one in fetched:
                one.wait()
        sent = server.counters() - before
    now = loader.stats.counters()
    ranges = now["ranges"] - asked.get("ranges", 0)
    nbytes = now["bytes_asked"] - asked.get("bytes_asked", 0)
    return {
        "sets": sets,
        "gets": sent.get,
        "bytes": sent.bytes_sent,
        "gets_per_set": round(sent.get / sets, 4),
        "mb_per_set": round(sent.bytes_sent / sets / 1e6, 4),
        "loader_counts_the_same": (ranges, nbytes) == (sent.get, sent.bytes_sent),
    }


def table(result: dict[str, Any]) -> list[str]:
    """Lines for people."""
    lines = [f"{'counters':22}{'GETs/set':>10}{'MB/set':>8}   exact, over one epoch"]
    for k, ways in result.items():
        for mode in MODES:
            found = ways[mode]
            line = f"  {k + ' ' + mode:20}{found['gets_per_set']:10.2f}{found['mb_per_set']:8.2f}"
            lines.append(line + ("" if found["loader_counts_the_same"] else "   NOT as counted"))
        lines.append(f"    auto: {ways['auto']}")
    return lines
