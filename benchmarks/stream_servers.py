"""nginx as an object storage that only reads: no latency, and faster than any loader."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shards.testing.emulator import for_anyone

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
START_S = 10
_CONFIG = """
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
daemon off;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root "{root}"; }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """A running server of the buckets in a folder."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to know; signatures are not looked at."""
        return for_anyone(self.endpoint)


@contextmanager
def nginx(root: Path) -> Iterator[Nginx]:
    """Serve the sub-folders of ``root`` as buckets.

    Raises:
        RuntimeError: it is not installed, or does not start.
    """
    if NGINX is None:
        raise RuntimeError("nginx is not installed")
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        config = Path(folder) / "nginx.conf"
        config.write_text(_CONFIG.format(folder=folder, port=port, root=root.absolute()))
        errors = Path(folder) / "error.log"
        process = subprocess.Popen([NGINX, "-c", config, "-e", errors], stderr=subprocess.DEVNULL)
        try:
            _wait(port, process, errors)
            yield Nginx(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait(port: int, process: subprocess.Popen[bytes], errors: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    said = errors.read_text() if errors.exists() else ""
    raise RuntimeError(f"nginx did not start: {said[-500:]}")
