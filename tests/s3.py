"""A real S3 server on loopback, which checks signatures, for the tests that need a bucket."""

import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
START_S = 60
ACCESS_KEY = "someone"
SECRET_KEY = "a secret of one's own"


class Server:
    """A server of the buckets in a folder (one folder each), and the requests that it answered."""

    def __init__(self, folder: Path, log: Path, port: int) -> None:
        self.folder = folder
        self.endpoint = f"http://127.0.0.1:{port}"
        self._log = log
        self._read = 0

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to know, as the AWS tools and obstore take it."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }

    def requests(self) -> Counter[str]:
        """Since the last call: lists, and the rest by method in lower case."""
        time.sleep(0.1)  # the server writes a line after its answer
        lines = self._log.read_text().splitlines()
        found: Counter[str] = Counter()
        for line in lines[self._read :]:
            if match := re.search(r'"(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP', line):
                listed = match[1] == "GET" and "list-type" in match[2]
                found["list" if listed else match[1].lower()] += 1
        self._read = len(lines)
        return found


@contextmanager
def serving(folder: Path, *buckets: str) -> Iterator[Server]:
    """Serve ``folder``, with these buckets made in it, on a free port."""
    log = folder.with_name(f"{folder.name}-access.log")
    command = ["nanio", "serve", "--host", "127.0.0.1", "--data-dir", str(folder), "--port"]
    with log.open("w") as out, running(folder, buckets, *command, out=out) as port:
        yield Server(folder, log, port)


@contextmanager
def running(
    folder: Path, buckets: Iterable[str], module: str, *arguments: str, out: IO[str] | None = None
) -> Iterator[int]:
    """Run a module of Python that serves ``folder``; the free port, its last argument."""
    for bucket in buckets:
        (folder / bucket).mkdir(parents=True, exist_ok=True)
    port = _free_port()
    settings = {
        "NANIO_ACCESS_KEY": ACCESS_KEY,
        "NANIO_SECRET_KEY": SECRET_KEY,
        "NANIO_DATA_DIR": str(folder),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments, str(port)],
        cwd=ROOT,
        env={**os.environ, **settings},
        stdout=out,
        stderr=out and subprocess.STDOUT,
    )
    try:
        _wait(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(START_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert process.poll() is None, "the S3 server ended"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.1)
