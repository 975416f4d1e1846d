"""Objects are written whole or not at all, and nothing of a failed upload stays."""

import builtins
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shards import upload
from shards.errors import AccessDeniedError, ServiceError, StorageUnavailableError
from shards.policy import RequestPolicy
from shards.upload import Bucket, open_bucket
from shards.upload_sweep import sweep_uploads
from tests.s3_conditional import ConditionalServer, serving_conditional

WRITERS = 8
HASTY = RequestPolicy(patience_s=0.5, first_patience_s=0.5, attempts=3, first_backoff_s=0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConditionalServer]:
    folder = tmp_path_factory.mktemp("s3") / "buckets"
    with serving_conditional(folder, "data") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def bucket(server: ConditionalServer, tmp_path: Path) -> Iterator[Bucket]:
    server.refuse()
    server.requests()
    yield open_bucket(f"s3://data/{tmp_path.name}/x", HASTY)
    server.refuse()


def test_a_file_goes_in_parts_and_a_small_one_in_one(
    bucket: Bucket, server: ConditionalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PART_BYTES", 100_000)
    data = bytes(range(250)) * 1000
    (tmp_path / "file").write_bytes(data)
    tag = upload.put_file(bucket, "large", tmp_path / "file")
    assert server.requests() == {"post": 2, "put": 3}
    assert upload.put(bucket, "large again", data) == tag != ""
    assert server.requests() == {"post": 2, "put": 3}
    (tmp_path / "file").write_bytes(data[:100_000])
    upload.put_file(bucket, "small", tmp_path / "file")
    assert server.requests() == {"put": 1}
    found = upload.list_all(bucket)
    assert {name: stamp.nbytes for name, stamp in found.items()} == {
        "large": 250_000, "large again": 250_000, "small": 100_000,
    }  # fmt: skip
    assert found["large"].e_tag == tag
    read = upload.read_versioned(bucket, "large")
    assert read is not None
    assert hashlib.sha256(read[0]).digest() == hashlib.sha256(data).digest()


def test_parts_grow_where_there_would_be_too_many(
    bucket: Bucket, server: ConditionalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PART_BYTES", 1000)
    monkeypatch.setattr(upload, "MAX_PARTS", 4)
    upload.put(bucket, "large", bytes(30_000))
    assert server.requests() == {"post": 2, "put": 4}


def test_puts_under_a_condition(bucket: Bucket) -> None:
    first = upload.create(bucket, "a", b"1")
    assert first is not None
    assert upload.create(bucket, "a", b"2") is None
    second = upload.replace(bucket, "a", b"3", first)
    assert second is not None
    assert upload.replace(bucket, "a", b"4", first) is None
    read = upload.read_versioned(bucket, "a")
    assert read is not None
    assert (read[0], read[1]["e_tag"]) == (b"3", second["e_tag"])
    upload.delete(bucket, ["a", "never there"])
    assert upload.replace(bucket, "a", b"5", second) is None
    assert upload.read_versioned(bucket, "a") is upload.stamp(bucket, "a") is None
    upload.delete(bucket, [])


def test_one_of_many_writers_wins(bucket: Bucket) -> None:
    tokens = [f"writer {n}".encode() for n in range(WRITERS)]
    with ThreadPoolExecutor(WRITERS) as pool:
        won = list(pool.map(lambda token: upload.create(bucket, "race", token) is not None, tokens))
    assert sum(won) == 1
    read = upload.read_versioned(bucket, "race")
    assert read is not None
    assert read[0] == tokens[won.index(True)]


def test_names_at_the_top_are_objects_and_folders(bucket: Bucket) -> None:
    for path in ("b", ".build/x", ".build/y/z"):
        upload.put(bucket, path, b"")
    assert upload.top_names(bucket) == {"b", ".build"}
    assert set(upload.list_all(bucket, ".build")) == {".build/x", ".build/y/z"}


def test_a_refused_part_aborts_the_upload(
    bucket: Bucket, server: ConditionalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PART_BYTES", 1000)
    server.refuse({"method": "PUT", "path": "partNumber=2", "status": 403, "code": "AccessDenied"})
    with pytest.raises(AccessDeniedError, match=r"s3://data/.*/x/a: AccessDenied"):
        upload.put(bucket, "a", bytes(5000))
    assert server.uploads() == []
    assert upload.list_all(bucket) == {}


def test_what_the_service_does_for_a_while_is_tried_again(
    bucket: Bucket, server: ConditionalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = {"method": "PUT", "path": "/x/a", "before": 1, "status": 503, "code": "SlowDown"}
    server.refuse(once)
    upload.put(bucket, "a", b"1")
    assert server.requests() == {"put": 2}
    server.refuse({"method": ["PUT", "GET"], "path": "", "status": 503, "code": "SlowDown"})
    for write in (
        lambda: upload.put(bucket, "a", b"1"),
        lambda: upload.create(bucket, "b", b"1"),
        lambda: upload.list_all(bucket),
    ):
        with pytest.raises(StorageUnavailableError, match="SlowDown"):
            write()
    server.refuse()
    with pytest.raises(ServiceError, match="no such bucket"):
        upload.put(open_bucket("s3://nowhere/x", HASTY), "a", b"")
    with pytest.raises(ServiceError, match="no such bucket"):
        upload.top_names(open_bucket("s3://nowhere/x", HASTY))


def begin_uploads(server: ConditionalServer, *keys: str) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1")
    for key in keys:
        client.create_multipart_upload(Bucket="data", Key=key)


def test_uploads_left_over_are_aborted_where_they_are_ours(
    server: ConditionalServer, tmp_path: Path
) -> None:
    name = tmp_path.name
    ours = [f"{name}/shard-000003.tar", f"{name}/chunks.parquet", f"{name}/.build/spool-0/k"]
    others = [f"{name}-2/shard-000003.tar", f"{name}/thesis.doc", f"{name}/a/shard-000003.tar"]
    begin_uploads(server, *ours, *others)
    assert sweep_uploads(f"s3://data/{name}") == ""
    assert server.uploads() == sorted(others)


def test_where_uploads_cannot_be_listed_there_is_advice(
    server: ConditionalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.refuse({"method": "GET", "path": "uploads", "status": 501, "code": "NotImplemented"})
    advice = sweep_uploads("s3://data/x")
    assert "NotImplemented" in advice
    assert "lifecycle rule that aborts incomplete multipart uploads" in advice
    assert "\n" not in advice
    server.refuse()
    real = builtins.__import__

    def without_boto3(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("boto"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without_boto3)
    assert "without boto3 (pip install 'coralbay[aws]')" in sweep_uploads("s3://data/x")
    assert sweep_uploads("gs://data/x") == sweep_uploads("az://data/x") == ""
