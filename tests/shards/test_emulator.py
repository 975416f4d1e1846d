"""The emulated object storage: what it answers, at which pace, and what it counts."""

import http.client
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import boto3
import obstore
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store

from shards.testing.emulator import Emulator, emulator
from shards.testing.emulator_board import Counters
from shards.testing.emulator_faults import Faults

BODY = bytes(range(256)) * 1000
FAST = {"latency_s": 0.0, "mb_per_s": float("inf")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("emulator")
    (folder / "bucket").mkdir()
    with emulator(folder, **FAST) as running:
        yield running


@pytest.fixture
def bucket(server: Emulator) -> Path:
    path = server.folder / "bucket"
    (path / "big.bin").write_bytes(BODY)
    server.set_pace(0.0)
    server.reset()
    return path


def s3_store(server: Emulator, **config: object) -> S3Store:
    keys = server.environment
    return S3Store(
        "bucket",
        endpoint=server.endpoint,
        access_key_id=keys["AWS_ACCESS_KEY_ID"],
        secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        region=keys["AWS_REGION"],
        client_options={"allow_http": True},
        **config,
    )


def fetch(server: Emulator, method: str, path: str, **headers: str) -> http.client.HTTPResponse:
    host = server.endpoint.removeprefix("http://")
    with closing(http.client.HTTPConnection(host, timeout=60)) as connection:
        connection.request(method, path, headers=headers)
        with closing(connection.getresponse()) as answer:
            answer.read()
            return answer


def test_ranges_come_whole_and_are_counted_exactly(server: Emulator, bucket: Path) -> None:
    store = s3_store(server)
    assert bytes(obstore.get(store, "big.bin").bytes()) == BODY
    assert bytes(obstore.get_range(store, "big.bin", start=10, length=90)) == BODY[10:100]
    assert obstore.head(store, "big.bin")["size"] == len(BODY)
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "none.bin")
    counted = server.counters()
    assert (counted.get, counted.head, counted.requests) == (3, 1, 4)
    assert counted.bytes_sent == len(BODY) + 90
    assert counted.max_concurrent == 1
    assert 1 <= counted.connections <= 4  # a client may open one before it has the last one back


@pytest.mark.parametrize(
    ("asked", "status", "given"),
    [
        ("bytes=0-0", 206, "bytes 0-0/256000"),
        ("bytes=255990-", 206, "bytes 255990-255999/256000"),
        ("bytes=-7", 206, "bytes 255993-255999/256000"),
        ("bytes=255990-999999", 206, "bytes 255990-255999/256000"),
        ("bytes=256000-256001", 416, "bytes */256000"),
    ],
)
def test_the_forms_of_a_range(
    server: Emulator, bucket: Path, asked: str, status: int, given: str
) -> None:
    answer = fetch(server, "GET", "/bucket/big.bin", Range=asked)
    assert (answer.status, answer.getheader("Content-Range")) == (status, given)


def test_list_in_pages_and_by_folder(server: Emulator, bucket: Path) -> None:
    store = s3_store(server, prefix="listed")
    names = [f"{folder}/{number:04d}" for folder in ("a b", "c&d") for number in range(600)]
    (bucket / "listed").mkdir()
    for name in names:
        (bucket / "listed" / name).parent.mkdir(exist_ok=True)
        (bucket / "listed" / name).touch()
    found = [entry["path"] for page in obstore.list(store) for entry in page]
    assert sorted(found) == names
    assert server.counters().list == 2  # 1,000 keys a page
    assert sorted(obstore.list_with_delimiter(store)["common_prefixes"]) == ["a b", "c&d"]
    client = boto_client(server)
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket="bucket", Prefix="listed/", Delimiter="/", PaginationConfig={"PageSize": 1}
    )
    prefixes = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", [])]
    assert prefixes == ["listed/a b/", "listed/c&d/"]


def test_put_delete_and_the_first_writer_wins(server: Emulator, bucket: Path) -> None:
    store = s3_store(server)
    obstore.put(store, "new/key", b"one", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "new/key", b"two", mode="create")
    assert (bucket / "new/key").read_bytes() == b"one"
    obstore.put(store, "new/key", b"three")
    assert (bucket / "new/key").read_bytes() == b"three"
    obstore.delete(store, ["new/key", "never/there"])
    assert not (bucket / "new/key").exists()
    assert [path.name for path in server.folder.iterdir()] == ["bucket"]


def test_multipart_upload_and_abort(server: Emulator, bucket: Path) -> None:
    store = s3_store(server)
    body = BODY * 50
    obstore.put(store, "parts.bin", body, chunk_size=5 * 2**20, use_multipart=True)
    assert (bucket / "parts.bin").read_bytes() == body
    client = boto_client(server)
    upload = client.create_multipart_upload(Bucket="bucket", Key="gone.bin")["UploadId"]
    client.abort_multipart_upload(Bucket="bucket", Key="gone.bin", UploadId=upload)
    with pytest.raises(ClientError, match="NoSuchUpload"):
        client.upload_part(
            Bucket="bucket", Key="gone.bin", UploadId=upload, PartNumber=1, Body=b"x"
        )


def test_first_byte_late_and_each_connection_of_one_speed(server: Emulator, bucket: Path) -> None:
    """Lower bounds only: a slow machine makes it slower, never faster."""
    (bucket / "slow.bin").write_bytes(bytes(4 * 2**20))
    server.set_pace(0.05, mb_per_s=20.0)
    store = s3_store(server)
    start = time.monotonic()
    obstore.get(store, "slow.bin").bytes()
    alone = time.monotonic() - start
    assert alone >= 0.05 + 4 * 2**20 / 20e6
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: obstore.get_range(store, "slow.bin", start=0, length=1), range(4)))
    assert server.counters().max_concurrent == 4


def test_faults_are_played_as_drawn_and_then_the_request_succeeds(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket/big.bin").write_bytes(BODY)
    faults = Faults(first=("slow_down", "expired", "reset", "short_body", "stall"), stall_s=0.05)
    with emulator(tmp_path, **FAST, faults=faults) as server:
        for status in (503, 403):
            assert fetch(server, "GET", "/bucket/big.bin").status == status
        with pytest.raises(ConnectionResetError):
            fetch(server, "GET", "/bucket/big.bin")
        with pytest.raises(http.client.IncompleteRead):
            fetch(server, "GET", "/bucket/big.bin")
        assert fetch(server, "GET", "/bucket/big.bin").status == 200  # after the stall
        before = server.counters()
        assert fetch(server, "GET", "/bucket/big.bin").status == 200
        played = Counters(get=1, bytes_sent=len(BODY), connections=1, max_concurrent=1)
        assert server.counters() - before == played
        assert (before.slow_down, before.expired, before.reset) == (1, 1, 1)
        assert (before.short_body, before.stall, before.get) == (1, 1, 5)


def test_faults_depend_on_the_seed_and_on_nothing_else() -> None:
    shares = {"slow_down": 0.2, "reset": 0.1, "stall": 0.1, "short_body": 0.1}
    requests = [f"GET /bucket/{n}" for n in range(2000)]
    drawn = [Faults(seed=3, **shares).draw(request, 0) for request in requests]
    assert drawn == [Faults(seed=3, **shares).draw(request, 0) for request in requests]
    assert drawn != [Faults(seed=4, **shares).draw(request, 0) for request in requests]
    assert 0.17 < drawn.count("slow_down") / len(drawn) < 0.23
    always = Faults(reset=1.0, in_a_row=2)
    assert [always.draw("GET", n) for n in range(4)] == ["reset", "reset", None, "reset"]
    with pytest.raises(ValueError, match="shares"):
        Faults(slow_down=0.7, reset=0.7)


def test_several_processes_count_together(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket/big.bin").write_bytes(BODY)
    with emulator(tmp_path, **FAST, processes=2) as server:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: fetch(server, "GET", "/bucket/big.bin"), range(40)))
        assert {answer.status for answer in answers} == {200}
        counted = server.counters()
    assert (counted.get, counted.bytes_sent) == (40, 40 * len(BODY))
    assert counted.connections == 40


def boto_client(server: Emulator):  # type: ignore[no-untyped-def]
    keys = server.environment
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        region_name=keys["AWS_REGION"],
        config=Config(s3={"addressing_style": "path"}),
    )
