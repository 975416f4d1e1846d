"""Runs `ingest` commands in forks of a process that has imported everything: 0.1 s, not 3 s.

One JSON line in, one out: {"args", "env", "kill_after_s", "max_file_bytes"} -> {"status",
"seconds", "output"}; status as of subprocess, so -9 for a process that was killed.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import time

import ingest.cli
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


def run(order):
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(order, output)
        if (moment := order.get("kill_after_s")) is not None:
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
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
