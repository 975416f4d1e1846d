"""An S3-shaped server on loopback with the pace of a real bucket, for tests and benchmarks.

Without latency no test shows a loader that waits for one request at a time, and a server on
loopback has none. Against this one a request's first byte comes after 25 ms and a connection gives
90 MB/s, as S3 does; both can be set. Requests and bytes are counted exactly, and faults are played
by a seeded schedule::

    with emulator(folder) as server:  # a bucket is a folder in it
        os.environ |= server.environment
        open_store("s3://bucket/prefix")
        server.counters().get
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path

from shards.testing.emulator_board import Board, Counters, Settings
from shards.testing.emulator_faults import Faults
from shards.testing.emulator_http import Server

START_S = 60
_BACKLOG = 1024


def for_anyone(endpoint: str) -> dict[str, str]:
    """The environment of clients of a server that looks at no signature."""
    return {
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": endpoint,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }


class Emulator:
    """A running server.

    Attributes:
        folder: where the buckets are.
        pids: of its processes.
        endpoint: its URL.
    """

    def __init__(self, folder: Path, port: int, board: Board, pids: list[int]) -> None:
        self.folder = folder
        self.pids = pids
        self.endpoint = f"http://127.0.0.1:{port}"
        self._board = board

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to know, as the AWS tools and obstore take it; any key is good."""
        return for_anyone(self.endpoint)

    def counters(self) -> Counters:
        """What was asked for and sent, exactly, so far."""
        return self._board.counters()

    def reset(self) -> None:
        """Count from zero."""
        self._board.reset()

    def set_pace(self, latency_s: float, mb_per_s: float = math.inf) -> None:
        """For the requests that come from now on."""
        self._board.set(_settings(latency_s, mb_per_s))


@contextmanager
def emulator(
    folder: str | Path,
    latency_s: float = 0.025,
    mb_per_s: float = 90.0,
    *,
    processes: int = 1,
    faults: Faults | None = None,
) -> Iterator[Emulator]:
    """Serve ``folder``, whose sub-folders are the buckets, from processes of its own.

    Args:
        folder: served as it is at each request; made if it is not there.
        latency_s: from a request to the first byte of its answer.
        mb_per_s: of each connection, MB = 10⁶ bytes; ``math.inf`` for as fast as it goes.
        processes: that share the connections; one sends some GB/s.
        faults: what goes wrong; with one process only, which counts the attempts.

    Raises:
        RuntimeError: the server did not start.
    """
    if faults and processes != 1:
        raise ValueError("faults are counted in one process; give processes=1")
    root = Path(folder).absolute()
    root.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    board = Board(context, _settings(latency_s, mb_per_s))
    ready = context.Barrier(processes + 1)
    with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listener:
        port = listener.getsockname()[1]
        workers = [
            context.Process(target=_run, args=(root, listener, board, faults, ready), daemon=True)
            for _ in range(processes)
        ]
        for worker in workers:
            worker.start()
        try:
            _wait_for(ready, workers)
        except BaseException:
            _stop(workers)
            raise
    try:
        yield Emulator(root, port, board, [worker.pid or 0 for worker in workers])
    finally:
        _stop(workers)


def _settings(latency_s: float, mb_per_s: float) -> Settings:
    return Settings(latency_s=latency_s, bytes_per_s=mb_per_s * 1e6)


def _wait_for(ready: Barrier, workers: list[SpawnProcess]) -> None:
    try:
        ready.wait(START_S)
    except Exception as exc:
        codes = [worker.exitcode for worker in workers]
        raise RuntimeError(f"the emulator did not start (exit codes {codes})") from exc


def _stop(workers: list[SpawnProcess]) -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()
        worker.close()


def _run(
    root: Path, listener: socket.socket, board: Board, faults: Faults | None, ready: Barrier
) -> None:
    """The whole life of a server's process."""
    # Ctrl-C reaches the whole group; whoever started the server ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ready.wait(START_S)
    asyncio.run(_serve(Server(root, board, faults), listener))


async def _serve(server: Server, listener: socket.socket) -> None:
    """Serve until told to end, or the process that started this one is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(server.serve(listener))
    loop.add_reader(parent.sentinel, serving.cancel)
    # In order, and not killed: a process that dies with the counters' lock takes it along.
    loop.add_signal_handler(signal.SIGTERM, serving.cancel)
    with suppress(asyncio.CancelledError):
        await serving
