"""The S3 server of the tests with what S3 has and it lacks: puts under a condition.

And with what a test wants to go wrong: a file of faults says which requests are refused, from the
how-many-th on. Signatures are checked as ever.
"""

import asyncio
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.s3 import Server, running


class ConditionalServer(Server):
    """As `Server`; refuses what it is told to refuse."""

    def refuse(self, *faults: dict[str, Any]) -> None:
        """From now on; each is {"method", "path": a pattern, "status", "code"}.

        And maybe "after" and "before": only requests with such a number, from 1 on.
        """
        path = _faults(self.folder)
        path.with_suffix(".new").write_text(json.dumps(faults))
        path.with_suffix(".new").replace(path)

    def uploads(self) -> list[str]:
        """Keys of the uploads that nobody has completed or aborted."""
        begun = (self.folder / ".nanio/multipart").glob("*/init.json")
        return sorted(json.loads(path.read_text())["key"] for path in begun)


@contextmanager
def serving_conditional(folder: Path, *buckets: str) -> Iterator[ConditionalServer]:
    """Serve ``folder``, with these buckets made in it, on a free port."""
    log = folder.with_name(f"{folder.name}-access.log")
    with (
        log.open("w") as out,
        running(folder, buckets, "tests.s3_conditional", out=out) as port,
    ):
        yield ConditionalServer(folder, log, port)


def _faults(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-faults.json")


class Conditional:
    """Answers what the server below does not know, and passes on the rest."""

    def __init__(self, app: Any, folder: Path) -> None:
        self.app = app
        self.folder = folder
        self.lock = asyncio.Lock()
        self.text = ""
        self.passed: Counter[int] = Counter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if (fault := self.fault(scope)) is not None:
            await refuse(send, fault["status"], fault["code"])
            return
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        absent, match = headers.get("if-none-match"), headers.get("if-match")
        if scope["method"] != "PUT" or not (absent or match):
            await self.app(scope, receive, send)
            return
        async with self.lock:
            e_tag = self.e_tag(scope["path"])
            if (absent == "*" and e_tag) or (match and match != e_tag):
                await refuse(send, 412, "PreconditionFailed")
            else:
                await self.app(scope, receive, send)

    def e_tag(self, path: str) -> str:
        """Of an object; empty where there is none."""
        bucket, _, key = path.lstrip("/").partition("/")
        try:
            return self.app.state.storage.head_object(bucket, key).etag
        except Exception:
            return ""

    def fault(self, scope: Any) -> dict[str, Any] | None:
        """The first fault that this request is to meet."""
        path = _faults(self.folder)
        text = path.read_text() if path.exists() else "[]"
        if text != self.text:
            self.text, self.passed = text, Counter()
        what = f"{scope['path']}?{scope['query_string'].decode()}"
        for number, fault in enumerate(json.loads(text)):
            if scope["method"] in fault["method"] and re.search(fault["path"], what):
                self.passed[number] += 1
                if fault.get("after", 0) < self.passed[number] <= fault.get("before", 10**9):
                    return fault
        return None


async def refuse(send: Any, status: int, code: str) -> None:
    """An error as S3 says it."""
    declaration = '<?xml version="1.0" encoding="UTF-8"?>'
    body = f"{declaration}\n<Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
    headers = [(b"content-type", b"application/xml"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main(port: int) -> None:
    import uvicorn
    from nanio.app import build_app

    folder = Path(os.environ["NANIO_DATA_DIR"])
    uvicorn.run(Conditional(build_app(), folder), host="127.0.0.1", port=port)


if __name__ == "__main__":
    main(int(sys.argv[1]))
