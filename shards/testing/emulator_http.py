"""HTTP/1.1 with the pace of an object storage: a late first byte, one speed for a connection."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

from shards.testing.emulator_board import Board
from shards.testing.emulator_faults import Fault, Faults, FaultSchedule
from shards.testing.emulator_s3 import Answer, Buckets, Request, error

SLICE = 2**20
"""Bytes sent between two looks at the clock: 11 ms at 90 MB/s."""
MAX_HEAD = 2**16
_RECEIVE = 2**18
_REFUSED = {"slow_down": (503, "SlowDown"), "expired": (403, "ExpiredToken")}


class Pace:
    """Lets bytes go no faster than a rate, with at most one slice of catching up."""

    def __init__(self, bytes_per_s: float) -> None:
        self._rate = bytes_per_s
        self._due = time.monotonic()

    async def wait(self, nbytes: int) -> None:
        """Until the last of the next ``nbytes`` bytes may go."""
        takes = nbytes / self._rate
        now = time.monotonic()
        self._due = max(self._due + takes, now)
        if self._due > now:
            await asyncio.sleep(self._due - now)
        else:
            self._due = now - takes


class Server:
    """Answers on a listening socket until the process ends.

    Args:
        root: folder of buckets.
        board: settings, and where requests are counted.
        faults: what goes wrong.
    """

    def __init__(self, root: Path, board: Board, faults: Faults | None) -> None:
        self._buckets = Buckets(root)
        self._board = board
        self._schedule = FaultSchedule(faults) if faults else None
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> None:
        """Accept connections, each in a task of its own."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            connection, _ = await loop.sock_accept(listener)
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._board.add(connections=1)
            task = loop.create_task(self._connection(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connection(self, connection: socket.socket) -> None:
        try:
            buffered = bytearray()
            while (request := await _receive(connection, buffered)) is not None:
                if not await self._exchange(connection, request):
                    break
        except (ConnectionError, ValueError):
            pass  # the client went away, or does not speak HTTP
        finally:
            connection.close()

    async def _exchange(self, connection: socket.socket, request: Request) -> bool:
        """Answer one request; whether the connection lives on."""
        self._board.begin(request.kind)
        try:
            return await self._answer(connection, request)
        finally:
            self._board.end()

    async def _answer(self, connection: socket.socket, request: Request) -> bool:
        settings = self._board.settings()
        fault = self._fault(request)
        if settings.latency_s:
            await asyncio.sleep(settings.latency_s)
        pace = Pace(settings.bytes_per_s)
        await pace.wait(len(request.body))
        answer = error(*_REFUSED[fault]) if fault in _REFUSED else self._buckets.answer(request)
        closing = request.headers.get("connection", "").lower() == "close"
        await self._send(connection, _head(answer, closing))
        if request.method == "HEAD":
            return not closing
        broken = fault in ("reset", "stall", "short_body") and answer.nbytes > 0
        if not broken:
            await self._body(connection, answer, 0, answer.nbytes, pace)
            return not closing
        await self._body(connection, answer, 0, answer.nbytes // 2, pace)
        if fault == "stall" and self._schedule:
            await _stall(connection, self._schedule.faults.stall_s)
            await self._body(connection, answer, answer.nbytes // 2, answer.nbytes, pace)
            return not closing
        if fault == "reset":
            # Linger for 0 s: close() sends RST, and no FIN.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def _fault(self, request: Request) -> Fault | None:
        if self._schedule is None or not request.place[1]:
            return None
        name = f"{request.method} {request.target} {request.headers.get('range', '')}"
        fault = self._schedule.next(name)
        if fault:
            self._board.add(**{fault: 1})
        return fault

    async def _body(
        self, connection: socket.socket, answer: Answer, start: int, stop: int, pace: Pace
    ) -> None:
        """Send bytes ``[start, stop)`` of the body."""
        file = answer.file.open("rb", buffering=0) if answer.file else None
        try:
            for first in range(start, stop, SLICE):
                nbytes = min(SLICE, stop - first)
                await pace.wait(nbytes)
                if file is None:
                    await self._send(connection, answer.body[first : first + nbytes])
                else:
                    await self._send_file(connection, file, answer.start + first, nbytes)
        finally:
            if file is not None:
                file.close()

    async def _send(self, connection: socket.socket, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(connection, data)

    async def _send_file(
        self, connection: socket.socket, file: BinaryIO, offset: int, nbytes: int
    ) -> None:
        """From the page cache to the socket.

        Counted beforehand, less what the kernel did not take: a client that has all bytes finds
        them counted. No ``loop.sock_sendfile``: it does not say how much went when it hangs up.
        """
        while nbytes:
            self._board.add(bytes_sent=nbytes)
            sent, blocked = 0, False
            try:
                sent = os.sendfile(connection.fileno(), file.fileno(), offset, nbytes)
            except BlockingIOError:
                blocked = True
            finally:
                self._board.add(bytes_sent=sent - nbytes)
            if blocked:
                await _writable(connection)
                continue
            if sent == 0:
                raise ConnectionError("the file became shorter")
            offset, nbytes = offset + sent, nbytes - sent


def _head(answer: Answer, closing: bool) -> bytes:
    reason = HTTPStatus(answer.status).phrase
    lines = [f"HTTP/1.1 {answer.status} {reason}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    lines += [
        f"Content-Length: {answer.nbytes}",
        f"Connection: {'close' if closing else 'keep-alive'}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _receive(connection: socket.socket, buffered: bytearray) -> Request | None:
    """The next request, or None when the client has ended; ``buffered`` keeps what came early."""
    loop = asyncio.get_running_loop()
    while (end := buffered.find(b"\r\n\r\n")) < 0:
        if len(buffered) > MAX_HEAD:
            raise ValueError("no end of the headers")
        if not (data := await loop.sock_recv(connection, _RECEIVE)):
            return None
        buffered += data
    first, *lines = buffered[:end].decode("latin-1").split("\r\n")
    del buffered[: end + 4]
    method, target, _ = first.split(" ")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if headers.get("expect", "").lower() == "100-continue":
        await loop.sock_sendall(connection, b"HTTP/1.1 100 Continue\r\n\r\n")
    nbytes = int(headers.get("content-length", 0))
    while len(buffered) < nbytes:
        if not (data := await loop.sock_recv(connection, _RECEIVE)):
            return None
        buffered += data
    body = bytes(buffered[:nbytes])
    del buffered[:nbytes]
    return Request(method=method, target=target, headers=headers, body=body)


async def _writable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(connection)


async def _stall(connection: socket.socket, seconds: float) -> None:
    """Say nothing for so long, or until the client hangs up."""
    hung_up = asyncio.get_running_loop().sock_recv(connection, 1)
    try:
        if not await asyncio.wait_for(hung_up, seconds):
            raise ConnectionError("the client hung up")
    except TimeoutError:
        return
