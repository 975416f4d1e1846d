"""The S3 server of `tests/s3.py`, which also says how many bytes each of its answers had.

Run as a script it is that server: the arguments are the file for the log and the port.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tests import s3


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the server sent, and for what; a list has no name."""

    method: str
    name: str
    range: str
    bytes: int

    @property
    def kind(self) -> str:
        """``list``, else the method in lower case."""
        return self.method.lower() if self.name else "list"


class CountedServer(s3.Server):
    """A server whose answers are known one by one."""

    def answers(self) -> list[Answer]:
        """Since the last call, in the order in which they ended."""
        time.sleep(0.1)  # a line is written after its answer
        lines = self._log.read_text().splitlines()
        fresh, self._read = lines[self._read :], len(lines)
        return [Answer(**json.loads(line)) for line in fresh]


@contextmanager
def serving(folder: Path, *buckets: str) -> Iterator[CountedServer]:
    """Serve ``folder``, with these buckets made in it, on a free port."""
    log = folder.with_name(f"{folder.name}-answers.jsonl")
    log.write_text("")
    with s3.running(folder, buckets, "tests.examples.counted_s3", str(log)) as port:
        yield CountedServer(folder, log, port)


def counted(app: Any, log: TextIO) -> Any:
    """``app``, an ASGI application, with a line in ``log`` for each of its answers."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        sent = 0

        async def counting_send(message: Any) -> None:
            nonlocal sent
            sent += len(message.get("body", b""))
            await send(message)

        await app(scope, receive, counting_send)
        if scope["type"] == "http":
            _, _, name = scope["path"].strip("/").partition("/")
            asked = dict(scope["headers"]).get(b"range", b"").decode()
            line = {"method": scope["method"], "name": name, "range": asked, "bytes": sent}
            log.write(json.dumps(line) + "\n")
            log.flush()

    return answer


if __name__ == "__main__":
    import uvicorn
    from nanio.app import build_app

    with open(sys.argv[1], "a") as out:
        uvicorn.run(
            counted(build_app(), out), host="127.0.0.1", port=int(sys.argv[2]), log_level="error"
        )
