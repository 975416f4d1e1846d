"""Wire efficiency: bytes a second of our fetching over raw ranged GETs of the same bytes.

The loader runs as in training, but decodes nothing; what it asked for is then asked again, in the
same order and as many at a time, by the cheapest clients there are.
"""

from __future__ import annotations

import argparse
import http.client
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, local
from typing import Any

import numpy as np
import obstore
from obstore.store import S3Store

from benchmarks.stream_data import BUCKET
from benchmarks.stream_ours import no_views_loader
from benchmarks.stream_servers import NGINX, nginx
from shards.reading import open_fetcher
from shards.store import open_store
from shards.testing.emulator import emulator

IN_FLIGHT = 32
"""Requests at a time, for everybody: the loader's default."""
PART = 8 * 2**20
BATCH = 8
TURN_BYTES = 10**9
"""Read in a turn, at least."""
GATE = 0.9
CLIENTS = ("ours", "obstore", "http")

Ask = tuple[str, int, int]
"""(path, offset, bytes)"""


@dataclass
class Turn:
    """What one turn took."""

    seconds: float
    nbytes: int


class Recorder:
    """A fetcher that remembers what it was asked for, and can wait for all of it.

    It keeps no answer: memory that is not given back costs page faults.
    """

    def __init__(self, fetcher: Any) -> None:
        self._fetcher = fetcher
        self._changed = Condition()
        self._done = 0
        self.asks: list[Ask] = []

    def submit(
        self, path: str, offset: int, nbytes: int, priority: int = 0, *, fresh: bool = False
    ) -> Future[memoryview]:
        """See ``RangeFetcher``."""
        self.asks.append((path, offset, nbytes))
        answer: Future[memoryview] = self._fetcher.submit(
            path, offset, nbytes, priority, fresh=fresh
        )
        answer.add_done_callback(self._count)
        return answer

    def _count(self, answer: Future[memoryview]) -> None:
        with self._changed:
            self._done += 1
            self._changed.notify_all()

    def asked_bytes(self, before: int) -> int:
        """Bytes asked for since there were ``before`` asks."""
        return sum(nbytes for _, _, nbytes in self.asks[before:])

    def wait(self) -> None:
        """Until all that was asked for has come."""
        with self._changed:
            self._changed.wait_for(lambda: self._done == len(self.asks))

    def close(self) -> None:
        """See ``RangeFetcher``."""
        self._fetcher.close()


class _OnlyWait:
    """Stands for the decoder: the bytes have come, and that is all."""

    def decode(self, fetched: Any, out: Any) -> None:
        """Wait for the chunks' ranges; raises why one could not be read."""
        for part in fetched.parts:
            part.range.result()


@contextmanager
def loader_turns(url: str, mode: str, k: int) -> Iterator[Callable[[], tuple[Turn, list[Ask]]]]:
    """The loader's own fetching as it runs, from one rest to the next.

    Between turns all that was asked for ahead is there. A turn takes batches, whose places ahead
    are then asked for anew, until all of that has come.
    """
    options = argparse.Namespace(mode=mode, k=k, batch=BATCH, threads=None, copy=False)
    with no_views_loader(url, options) as loader:
        loader.decoder = _OnlyWait()
        recorder = Recorder(loader.inputs.open_fetcher())
        loader.inputs.open_fetcher = lambda: recorder

        def turn() -> tuple[Turn, list[Ask]]:
            before = len(recorder.asks)
            start = time.perf_counter()
            while recorder.asked_bytes(before) < TURN_BYTES:
                next(loader)
            recorder.wait()
            taken = time.perf_counter() - start
            return Turn(taken, recorder.asked_bytes(before)), recorder.asks[before:]

        yield turn


@contextmanager
def fetcher_turns(url: str, asks: Sequence[Ask]) -> Iterator[Callable[[], tuple[Turn, list[Ask]]]]:
    """The fetcher alone, asked for somewhat more than it has under way."""
    with closing(open_fetcher(open_store(url))) as fetcher:

        def turn() -> tuple[Turn, list[Ask]]:
            start = time.perf_counter()
            answers: deque[Future[memoryview]] = deque()
            nbytes = 0
            for ask in asks:
                answers.append(fetcher.submit(*ask))
                if len(answers) == 2 * IN_FLIGHT:
                    nbytes += len(answers.popleft().result())
            while answers:
                nbytes += len(answers.popleft().result())
            return Turn(time.perf_counter() - start, nbytes), list(asks)

        yield turn


def obstore_turn(store: S3Store, asks: Sequence[Ask]) -> Turn:
    """Sync ``get_range`` in as many threads as requests may be under way."""
    return _in_threads(
        lambda ask: len(obstore.get_range(store, ask[0], start=ask[1], length=ask[2])), asks
    )


def http_turn(endpoint: str, asks: Sequence[Ask]) -> Turn:
    """``http.client`` and nothing else: each thread keeps a connection."""
    mine, opened = local(), []
    host = endpoint.removeprefix("http://")

    def get(ask: Ask) -> int:
        path, offset, nbytes = ask
        if not hasattr(mine, "connection"):
            mine.connection = http.client.HTTPConnection(host)
            opened.append(mine.connection)
        wanted = {"Range": f"bytes={offset}-{offset + nbytes - 1}"}
        mine.connection.request("GET", f"/{BUCKET}/wide/{path}", headers=wanted)
        answer = mine.connection.getresponse()
        # Memory of its own for each answer, as everybody gives: a loader keeps what it reads.
        return len(answer.read()) if answer.status == 206 else 0

    try:
        return _in_threads(get, asks)
    finally:
        for connection in opened:
            connection.close()


def _in_threads(get: Callable[[Ask], int], asks: Sequence[Ask]) -> Turn:
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        start = time.perf_counter()
        nbytes = sum(pool.map(get, asks))
        return Turn(time.perf_counter() - start, nbytes)


def read_once(folder: Path) -> None:
    """Bring all shards into the page cache."""
    piece = bytearray(2**24)
    for path in folder.glob("shard-*.tar"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(piece):
                pass


def parts_of(folder: Path, nbytes: int) -> list[Ask]:
    """8 MiB parts of shards, in order, ``nbytes`` in all at least."""
    asks: list[Ask] = []
    for shard in sorted(folder.glob("shard-*.tar")):
        asks += [(shard.name, at, PART) for at in range(0, shard.stat().st_size - PART, PART)]
        if len(asks) * PART >= nbytes:
            break
    return asks


def measure(bucket: Path, rounds: int, k: int) -> dict[str, Any]:
    """Every way of ours against both baselines, on every server that is there."""
    result: dict[str, Any] = {}
    servers: dict[str, Any] = {"emulator": emulator(bucket.parent)}
    if NGINX is None:
        result["nginx"] = {"skipped": "nginx is not installed"}
        print("wire: nginx is not installed; skipped", file=sys.stderr)
    else:
        servers["nginx"] = nginx(bucket.parent)
    for name, starting in servers.items():
        with starting as server:
            os.environ.update(server.environment)
            result[name] = _on_server(server.endpoint, bucket, rounds, k)
    return result


def _on_server(endpoint: str, bucket: Path, rounds: int, k: int) -> dict[str, Any]:
    url = f"s3://{BUCKET}/wide"
    raw = S3Store(BUCKET, prefix="wide", client_options={"allow_http": True})
    runs: dict[str, list[dict[str, float]]] = {"fetcher": [], "stream": [], "range": []}
    facts: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        ways = {
            "fetcher": stack.enter_context(
                fetcher_turns(url, parts_of(bucket / "wide", TURN_BYTES))
            ),
            "stream": stack.enter_context(loader_turns(url, "stream", k)),
            "range": stack.enter_context(loader_turns(url, "range", k)),
        }
        for way, turn in ways.items():
            # From the second turn on a loader runs as it does for ever.
            asks = [turn() for _ in range(2)][-1][1]
            for number in range(rounds):
                read_once(bucket / "wide")
                speeds: dict[str, float] = {}
                # Each comes first in turn: nobody always finds what another has warmed up.
                for client in np.roll(CLIENTS, number).tolist():
                    if client == "ours":
                        done, asks = turn()
                    elif client == "obstore":
                        done = obstore_turn(raw, asks)
                    else:
                        done = http_turn(endpoint, asks)
                    speeds[client] = done.nbytes / done.seconds / 1e9
                runs[way].append(speeds)
                facts[way] = {"gets": len(asks), "bytes": sum(ask[2] for ask in asks)}
                print(f"wire round {number + 1} {way}: {speeds}", file=sys.stderr)
    return {way: facts[way] | summarise(runs[way]) for way in runs}


def summarise(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Medians, and the median of the rounds' ratios to the faster of the baselines."""
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    faster = max(("obstore", "http"), key=lambda name: medians[name])
    ratios = [run["ours"] / run[faster] for run in runs]
    best = {name: max(run[name] for run in runs) for name in runs[0]}
    return {
        "gb_per_s": {name: round(value, 3) for name, value in medians.items()},
        "best_gb_per_s": {name: round(value, 3) for name, value in best.items()},
        "baseline": faster,
        "efficiency": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "gate": GATE,
        "passed": statistics.median(ratios) >= GATE,
    }


def table(result: dict[str, Any]) -> list[str]:
    """Lines for people."""
    lines = [f"{'wire':22}{'ours':>8}{'obstore':>9}{'http':>8}  GB/s   ours / the faster"]
    for server, ways in result.items():
        if "skipped" in ways:
            lines.append(f"  {server}: {ways['skipped']}")
            continue
        for way, found in ways.items():
            speeds = found["gb_per_s"]
            line = f"  {server + ' ' + way:20}{speeds['ours']:8.2f}{speeds['obstore']:9.2f}"
            line += f"{speeds['http']:8.2f}{'':8}{found['efficiency']:.2f} (gate {found['gate']})"
            lines.append(line)
    return lines
