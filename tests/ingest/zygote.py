"""Runs `ingest` commands in forks of a process that has imported everything: 0.1 s, not 3 s.

One JSON line in, one out: {"args", and maybe "env", "settings", "kill_after_s", "when",
"max_file_bytes"} -> {"status", "seconds", "output"}; status as of subprocess, so -9 for a process
that was killed. "settings" are module constants to change; "when" is {"folder", "glob", "signal",
"pid", ...}: a signal to send (to the command if no pid is given) once such a file is there.
"""

import contextlib
import importlib
import json
import os
import pathlib
import resource
import signal
import sys
import tempfile
import time

import boto3  # noqa: F401

import ingest.cli
import ingest.output_bucket
import ingest.pipeline
import ingest.prepare
import ingest.reader
import ingest.resample
import ingest.terminal
import shards.verify  # noqa: F401


def child(order, output):
    os.environ.update(order.get("env", {}))
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    for name, value in order.get("settings", {}).items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, value)
    if (limit := order.get("max_file_bytes")) is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    code = 70
    try:
        code = ingest.cli.main(order["args"])
    except SystemExit as exc:
        code = exc.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def send_when(child_pid, folder, glob, signal, count=1, delay_s=0.0, victim="main", pid=None):
    """Send a signal some time after files are there, or never if the command ends before."""
    while len(list(pathlib.Path(folder).glob(glob))) < count:
        if os.waitid(os.P_PID, child_pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.002)
    time.sleep(delay_s)
    if victim == "worker":
        # The youngest: it is never the resource tracker, and Dask's workers have no children.
        children = pathlib.Path(f"/proc/{child_pid}/task").glob("*/children")
        pids = [int(one) for path in children for one in path.read_text().split()]
        pid = max(pids, default=None)
        if pid is None:
            return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid or child_pid, signal)


def run(order):
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(order, output)
        if (moment := order.get("kill_after_s")) is not None:
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
        if "when" in order:
            send_when(pid, **order["when"])
        _, status = os.waitpid(pid, 0)
        output.seek(0)
        return {
            "status": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - started,
            "output": output.read().decode(),
        }


if __name__ == "__main__":  # the workers of a run import this file too
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()
