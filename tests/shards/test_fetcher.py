"""Ranges in the background: order, limits, and nothing left when it ends."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from random import Random

import pytest

from shards.errors import CorruptShardError, ShardError, StorageUnavailableError
from shards.fetcher import Fetcher, RangeFetcher
from shards.folder_fetcher import FolderFetcher
from shards.policy import RequestPolicy
from shards.reading import open_fetcher, open_reader
from shards.store import open_store
from shards.testing.clock import VirtualTimeLoop
from shards.testing.faults import PASSING, FaultyStore, Schedule, Trouble
from shards.testing.memory import MemoryStore
from tests.s3 import serving

DATA = Random(1).randbytes(200_000)
WAIT_S = 30


class Reader:
    """Gives `DATA`, when it is let; records the order of asking."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.asked: list[int] = []
        self.closed = 0
        self.busy = 0
        self.most = 0
        self.let = threading.Event()
        self._error = error

    async def get_range(self, path: str, offset: int, nbytes: int) -> memoryview:
        self.asked.append(offset)
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            while not self.let.is_set():
                await asyncio.sleep(0.001)
            if self._error is not None:
                raise self._error
            return memoryview(DATA)[offset : offset + nbytes]
        finally:
            self.busy -= 1

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "file").write_bytes(DATA)
    return tmp_path


@pytest.fixture(params=["loop", "folder"])
def fetcher(request, folder) -> Iterator[RangeFetcher]:
    if request.param == "folder":
        opened: RangeFetcher = FolderFetcher(folder)
    else:
        reader = Reader()
        reader.let.set()
        opened = Fetcher(reader)
    yield opened
    opened.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_it_gives_what_is_asked_for(fetcher):
    assert isinstance(fetcher, RangeFetcher)
    draw = Random(3)
    asks = [(draw.randrange(190_000), draw.randrange(1, 10_000)) for _ in range(500)]
    answers = [fetcher.submit("file", at, n, priority=draw.randrange(5)) for at, n in asks]
    for (at, n), answer in zip(asks, answers, strict=True):
        assert bytes(answer.result(WAIT_S)) == DATA[at : at + n]


def test_many_threads_may_ask(fetcher):
    wrong = []

    def ask(seed: int) -> None:
        draw = Random(seed)
        for _ in range(50):
            at = draw.randrange(100_000)
            if bytes(fetcher.submit("file", at, 100).result(WAIT_S)) != DATA[at : at + 100]:
                wrong.append(at)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_is_left_after_close(folder):
    gc.collect()
    threads, files = threading.active_count(), open_files()
    for _ in range(3):
        reader = Reader()
        reader.let.set()
        for fetcher in (Fetcher(reader), FolderFetcher(folder)):
            assert len(fetcher.submit("file", 0, 10).result(WAIT_S)) == 10
            assert threading.active_count() > threads
            fetcher.close()
            fetcher.close()
            assert threading.active_count() == threads
            with pytest.raises(ShardError, match="closed"):
                fetcher.submit("file", 0, 10)
        assert reader.closed == 1
    assert open_files() == files


def test_closing_what_never_started(folder):
    threads = threading.active_count()
    Fetcher(Reader()).close()
    FolderFetcher(folder).close()
    assert threading.active_count() == threads


def test_close_cancels_what_is_asked_for():
    threads, files = threading.active_count(), open_files()
    reader = Reader()
    fetcher = Fetcher(reader, in_flight=4)
    answers = [fetcher.submit("file", n, 1) for n in range(20)]
    while reader.busy < 4:
        time.sleep(0.001)
    fetcher.close()
    for answer in answers:
        with pytest.raises(CancelledError):
            answer.result(0)
    assert reader.busy == 0
    assert len(reader.asked) == 4
    assert (threading.active_count(), open_files()) == (threads, files)


def test_the_most_urgent_comes_first_and_so_many_at_once():
    reader = Reader()
    fetcher = Fetcher(reader, in_flight=2)
    first = [fetcher.submit("file", n, 1, priority=9) for n in (0, 1)]
    while reader.busy < 2:
        time.sleep(0.001)
    later = [fetcher.submit("file", n, 1, priority=p) for n, p in ((2, 5), (3, 1), (4, 5), (5, 0))]
    skipped = fetcher.submit("file", 6, 1, priority=-1)
    assert skipped.cancel()
    reader.let.set()
    for answer in (*first, *later):
        answer.result(WAIT_S)
    fetcher.close()
    assert sorted(reader.asked[:2]) == [0, 1]
    assert reader.asked[2:] == [5, 3, 2, 4]
    assert reader.most == 2


class Ctrl(BaseException):
    """As KeyboardInterrupt, which asyncio lets through to its loop."""


@pytest.mark.parametrize(
    "error", [ShardError("x"), ValueError("bug"), Ctrl(), KeyboardInterrupt(), SystemExit(3)]
)
def test_an_error_of_the_reader_reaches_the_caller_and_harms_nobody_else(error):
    threads, files = threading.active_count(), open_files()
    failing = Reader(error)
    failing.let.set()
    fetcher = Fetcher(failing)
    answers = [fetcher.submit("file", n, 1) for n in range(5)]
    for answer in answers:
        with pytest.raises(type(error)):
            answer.result(WAIT_S)
    failing._error = None
    assert bytes(fetcher.submit("file", 5, 3).result(WAIT_S)) == DATA[5:8]
    fetcher.close()
    assert failing.closed == 1
    assert (threading.active_count(), open_files()) == (threads, files)


def test_a_fetcher_that_is_dropped_ends(folder):
    threads = threading.active_count()
    reader = Reader()
    for make in (lambda: Fetcher(reader), lambda: FolderFetcher(folder)):
        fetcher = make()
        dropped = weakref.ref(fetcher)
        answer = fetcher.submit("file", 0, 1)
        del fetcher
        gc.collect()
        assert dropped() is None
        assert threading.active_count() == threads
        assert answer.done()


def test_answers_may_ask_again():
    """A callback runs in the fetcher's own thread."""
    reader = Reader()
    reader.let.set()
    fetcher = Fetcher(reader, in_flight=1)
    second: Future[memoryview] = Future()

    def again(first: Future[memoryview]) -> None:
        fetcher.submit("file", 1, 1).add_done_callback(lambda f: second.set_result(f.result()))

    fetcher.submit("file", 0, 1).add_done_callback(again)
    assert bytes(second.result(WAIT_S)) == DATA[1:2]
    fetcher.close()


def test_hours_of_trouble_pass_on_virtual_time():
    memory = MemoryStore()
    memory.put("file", DATA)
    store = FaultyStore(memory, Schedule(rate=0.3, troubles=PASSING, seed=2))
    loops: list[VirtualTimeLoop] = []

    def new_loop() -> VirtualTimeLoop:
        loops.append(VirtualTimeLoop())
        return loops[-1]

    policy = RequestPolicy(hedge_share=0)
    fetcher = Fetcher(open_reader(store, policy), 16, new_loop=new_loop)
    answers = [fetcher.submit("file", 100 * n, 100) for n in range(1000)]
    for n, answer in enumerate(answers):
        assert bytes(answer.result(WAIT_S)) == DATA[100 * n : 100 * n + 100]
    assert loops[0].time() > 60
    assert store.most_in_flight <= 16
    fetcher.close()
    assert loops[0].is_closed()


def test_faults_of_a_folder(folder):
    quick = RequestPolicy(first_backoff_s=0.001, attempts=3)
    fetcher = FolderFetcher(folder, policy=quick)
    with pytest.raises(FileNotFoundError, match="absent: no such object"):
        fetcher.submit("absent", 0, 1).result(WAIT_S)
    with pytest.raises(CorruptShardError, match="file: ends before byte 200001"):
        fetcher.submit("file", 199_999, 2).result(WAIT_S)
    (folder / "sub").mkdir()
    with pytest.raises(FileNotFoundError):
        fetcher.submit("sub", 0, 1).result(WAIT_S)
    fetcher.close()
    assert fetcher.stats.counters()["requests"] == 1 + 2 + 1


def test_a_file_server_that_fails_is_tried_again(folder, monkeypatch):
    fails = iter([True, True, False] + [True] * 100)
    pread = os.pread

    def flaky(*args):
        if next(fails):
            raise OSError(5, "Input/output error")
        return pread(*args)

    monkeypatch.setattr(os, "pread", flaky)
    fetcher = FolderFetcher(folder, policy=RequestPolicy(first_backoff_s=0.001, attempts=3))
    assert bytes(fetcher.submit("file", 0, 10).result(WAIT_S)) == DATA[:10]
    with pytest.raises(StorageUnavailableError, match="Input/output error"):
        fetcher.submit("file", 0, 10).result(WAIT_S)
    fetcher.close()


def test_the_quickest_way_to_a_store(folder):
    local = open_fetcher(open_store(folder))
    assert isinstance(local, FolderFetcher)
    local.close()
    wrapped = open_fetcher(open_store(folder), wrap=lambda reader: reader)
    assert isinstance(wrapped, Fetcher)
    assert bytes(wrapped.submit("file", 7, 9).result(WAIT_S)) == DATA[7:16]
    wrapped.close()
    memory = MemoryStore()
    memory.put("file", DATA)
    other = open_fetcher(memory)
    assert bytes(other.submit("file", 7, 9).result(WAIT_S)) == DATA[7:16]
    other.close()


def test_what_a_stalled_request_holds_is_freed():
    threads, files = threading.active_count(), open_files()
    store = FaultyStore(MemoryStore(), Schedule(rate=1.0, troubles=(Trouble.STALL,)))
    fetcher = Fetcher(open_reader(store))
    answers = [fetcher.submit("file", n, 1) for n in range(50)]
    while store.in_flight < 32:
        time.sleep(0.001)
    fetcher.close()
    assert all(answer.done() for answer in answers)
    assert store.in_flight == 0
    assert (threading.active_count(), open_files()) == (threads, files)


FORKED = """
import os, sys, warnings
from shards.errors import ShardError
from shards.fetcher import Fetcher
from shards.folder_fetcher import FolderFetcher
from shards.store import open_store, get
from shards.reading import open_fetcher

warnings.simplefilter("ignore")
folder = sys.argv[1]
fetchers = [FolderFetcher(__import__("pathlib").Path(folder)),
            open_fetcher(open_store(folder), wrap=lambda reader: reader)]
for fetcher in fetchers:
    fetcher.submit("file", 0, 5).result()
bucket = open_store(sys.argv[2])
get(bucket, "file")
if os.fork() == 0:
    said = 0
    for fetcher in fetchers:
        try:
            fetcher.submit("file", 0, 5)
        except ShardError as exc:
            said += 'get_context("spawn")' in str(exc)
        fetcher.close()
    try:
        get(bucket, "file")
    except ShardError as exc:
        said += 'get_context("spawn")' in str(exc)
    # A folder needs no threads.
    said += get(open_store(folder), "file")[:5] == b"01234"
    os._exit(said)
_, status = os.wait()
print(os.waitstatus_to_exitcode(status))
"""


def test_after_a_fork_the_error_says_to_spawn(folder, tmp_path_factory):
    (folder / "file").write_bytes(b"0123456789")
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        command = [sys.executable, "-c", FORKED, str(folder), url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        server.shutdown()
        thread.join()
    assert done.stdout.strip() == "4", done.stderr


LEFT_OPEN = """
import sys
from pathlib import Path
from shards.folder_fetcher import FolderFetcher
from shards.reading import open_fetcher
from shards.store import open_store

store = open_store(sys.argv[1])
kept = [FolderFetcher(Path(sys.argv[1])), open_fetcher(store, wrap=lambda reader: reader)]
answers = [f.submit("file", n, 1000) for f in kept for n in range(100)]
kept[0].submit("file", 0, 1).result()
print("asked", flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "code"), [("", 0), ("raise SystemExit(3)", 3), ("raise ValueError", 1)]
)
def test_a_program_that_never_closes_ends_all_the_same(folder, end, code):
    command = [sys.executable, "-X", "dev", "-c", LEFT_OPEN.format(end=end), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "asked\n"
    assert done.returncode == code, done.stderr
    assert "Fatal" not in done.stderr
    assert code == 1 or not done.stderr


def test_a_program_that_is_interrupted_ends(folder):
    # Python notices a signal that comes just before a long sleep only after it.
    code = LEFT_OPEN.format(end="import time\nfor _ in range(600):\n    time.sleep(0.1)")
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"asked\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode in (-signal.SIGINT, 130)
    assert said.count(b"Traceback") == 1


ENDS_AT_ONCE = """
import sys
from shards.reading import open_fetcher
from shards.store import open_store

fetcher = open_fetcher(open_store("s3://bucket/x"))
answers = [fetcher.submit("file", n, 1000) for n in range(40)]
if sys.argv[1] == "done":
    for answer in answers:
        answer.result()
    fetcher.close()
answers[0].result()
"""


@pytest.mark.parametrize("when", ["done", "half done"])
def test_a_program_that_ends_right_after_reading_a_bucket_does_not_crash(tmp_path, when):
    """Threads of obstore that come back into an interpreter that is gone end it with SIGABRT."""
    with serving(tmp_path / "server", "bucket") as server:
        (server.folder / "bucket/x").mkdir()
        (server.folder / "bucket/x/file").write_bytes(bytes(100_000))
        command = [sys.executable, "-c", ENDS_AT_ONCE, when]
        environment = {**os.environ, **server.environment}
        for _ in range(5):
            done = subprocess.run(command, env=environment, capture_output=True, timeout=120)
            assert (done.returncode, done.stderr) == (0, b"")


STALLED = """
import socket, sys
from shards.store import get, open_store

with socket.create_server(("127.0.0.1", 0)) as silent:
    print("asking", flush=True)
    get(open_store(f"http://127.0.0.1:{silent.getsockname()[1]}/"), "file")
"""


def test_ctrl_c_ends_a_request_that_gets_no_answer():
    command = [sys.executable, "-c", STALLED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"asking\n"
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        # The request itself would wait for its deadline of 30 s, and then for others.
        _, said = process.communicate(timeout=25)
    assert process.returncode in (-signal.SIGINT, 130)
    assert b"KeyboardInterrupt" in said
