"""Which URLs open, and where credentials and endpoints come from."""

import builtins
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards import upload
from shards.bucket import ObjectStore
from shards.credentials import aws_settings
from shards.errors import AccessDeniedError, NotADatasetError, ShardError
from shards.folder import FolderStore
from shards.policy import RequestPolicy
from shards.store import get, names, open_store
from shards.upload import open_bucket
from shards.urls import client_options, shown
from tests.s3 import ACCESS_KEY, SECRET_KEY, Server, serving

QUICK = RequestPolicy(first_backoff_s=0.001, max_backoff_s=0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("s3") / "server", "bucket") as found:
        yield found


@pytest.fixture(autouse=True)
def _bare(monkeypatch, tmp_path) -> None:
    """No credentials of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    # Nobody is asked at the address of the clouds' metadata service.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def keys(monkeypatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


def roundtrip(url: str = "s3://bucket/x") -> None:
    bucket = open_bucket(url, QUICK)
    upload.put(bucket, "object", b"content")
    assert get(open_store(url, QUICK), "object") == b"content"
    upload.delete(bucket, ["object"])


def test_folders_and_their_urls(tmp_path, monkeypatch):
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "object").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    for url in (tmp_path / "a b", str(tmp_path / "a b"), "a b", f"file://{tmp_path}/a%20b"):
        store = open_store(url)
        assert store.folder == tmp_path / "a b"
        assert get(store, "object") == b"x"


def test_a_folder_has_to_be_there(tmp_path):
    with pytest.raises(NotADatasetError, match="no such folder"):
        open_store(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(NotADatasetError, match="a file"):
        open_store(tmp_path / "file")


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "a/../../outside", "", "."])
def test_paths_stay_in_the_folder(tmp_path, path):
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    store = open_store(tmp_path / "in")
    with pytest.raises((ShardError, FileNotFoundError)):
        get(store, path)


@pytest.mark.parametrize("url", ["ftp://host/x", "s4://b/x", "memory://", "s3://", "x://"])
def test_other_urls_are_refused_in_a_line(url):
    with pytest.raises(ShardError) as excinfo:
        open_store(url)
    assert str(excinfo.value).startswith(url.rstrip("/"))
    assert "\n" not in str(excinfo.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a/b",
        "s3a://bucket",
        "gs://bucket/a",
        "az://container/a",
        "abfs://container@account.dfs.core.windows.net/a",
        "https://account.blob.core.windows.net/container/a",
        "https://bucket.s3.us-west-2.amazonaws.com/a",
        "https://host/a",
        "http://127.0.0.1:8000/a",
    ],
)
def test_buckets_and_web_servers_open_without_a_request(url, monkeypatch, keys):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    store = open_store(url)
    assert isinstance(store, ObjectStore)
    assert store.folder is None


@pytest.mark.parametrize("name", ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_endpoints_in_the_environment(server, keys, monkeypatch, name):
    """A plain http:// endpoint that somebody named is allowed without AWS_ALLOW_HTTP."""
    monkeypatch.setenv(name, server.endpoint)
    roundtrip()


def test_the_endpoint_of_s3_goes_before_that_of_all_services(server, keys, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    roundtrip()


def test_plain_http_can_be_forbidden(server, keys, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
    with pytest.raises(ShardError, match="AWS_ALLOW_HTTP"):
        get(open_store("s3://bucket", QUICK), "object")


def write_profiles(home: Path, endpoint: str) -> None:
    (home / ".aws").mkdir(parents=True)
    (home / ".aws/credentials").write_text(
        f"[good]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
        "[bad]\naws_access_key_id = someone\naws_secret_access_key = wrong\n"
    )
    (home / ".aws/config").write_text(
        f"[profile good]\nregion = eu-central-1\nendpoint_url = {endpoint}\n"
        f"[profile service]\nsource_profile = good\nservices = local\n"
        f"[services local]\ns3 =\n  endpoint_url = {endpoint}\n"
    )


def test_a_profile_gives_keys_region_and_endpoint(server, monkeypatch, tmp_path):
    write_profiles(tmp_path / "home", server.endpoint)
    monkeypatch.setenv("AWS_PROFILE", "good")
    config, provider, endpoint = aws_settings()
    assert (config["region"], endpoint) == ("eu-central-1", server.endpoint)
    assert provider is not None
    roundtrip()


def test_keys_in_the_environment_go_before_a_profile(server, keys, monkeypatch, tmp_path):
    write_profiles(tmp_path / "home", server.endpoint)
    monkeypatch.setenv("AWS_PROFILE", "bad")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    assert aws_settings()[1] is None
    roundtrip()


def test_the_default_profile_is_found(server, monkeypatch, tmp_path):
    home = tmp_path / "home/.aws"
    home.mkdir(parents=True)
    (home / "credentials").write_text(
        f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    roundtrip()


@pytest.mark.parametrize(
    "call",
    [
        lambda bucket, store: get(store, "there"),
        lambda bucket, store: upload.put(bucket, "object", b"content"),
        lambda bucket, store: upload.put(bucket, "in parts", bytes(3000)),
        lambda bucket, store: upload.create(bucket, "created", b"x"),
    ],
)
def test_renewed_credentials_of_a_profile_are_read_again(server, monkeypatch, tmp_path, call):
    write_profiles(tmp_path / "home", server.endpoint)
    monkeypatch.setenv("AWS_PROFILE", "good")
    monkeypatch.setattr("shards.connection.RENEW_EVERY_S", 0.0)
    monkeypatch.setattr("shards.upload.PART_BYTES", 1000)
    url = "s3://bucket/x"
    upload.put(open_bucket(url, QUICK), "there", b"1")
    file = tmp_path / "home/.aws/credentials"
    good = file.read_text()
    file.write_text(good.replace(SECRET_KEY, "expired"))
    bucket, store = open_bucket(url, QUICK), open_store(url, QUICK)
    with pytest.raises(AccessDeniedError, match="secret key"):
        call(bucket, store)
    file.write_text(good)
    call(bucket, store)
    assert get(store, "there") == b"1"


def test_an_unknown_profile(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ShardError, match="nobody"):
        open_store("s3://bucket")


def test_a_profile_without_boto3_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_boto3(name, *args, **kwargs):
        if "boto3" in name:
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setenv("AWS_PROFILE", "good")
    monkeypatch.delitem(sys.modules, "obstore.auth.boto3", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_boto3)
    with pytest.raises(ShardError, match=r"coralbay\[aws\]"):
        open_store("s3://bucket")


def test_wrong_keys_are_refused_in_a_line_without_secrets(server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    url = "s3://bucket/x"
    calls = (
        lambda: get(open_store(url, QUICK), "x"),
        lambda: names(open_store(url, QUICK)),
        lambda: upload.put(open_bucket(url, QUICK), "x", b""),
        lambda: upload.stamp(open_bucket(url, QUICK), "x"),
    )
    for call in calls:
        with pytest.raises(AccessDeniedError) as excinfo:
            call()
        said = str(excinfo.value)
        assert "s3://bucket/x" in said
        assert "not-the-secret" not in said
        assert "\n" not in said


def test_no_secret_in_what_is_shown():
    url = "https://someone:pass@host/container?sig=5ec4e7"
    assert shown(url) == "https://host/container"
    store = open_store(url)
    assert not {"pass", "5ec4e7"} & set(repr(store).split("@"))
    assert "pass" not in store.name
    assert shown("s3://bucket/a/") == "s3://bucket/a"
    assert shown("s3://") == "s3://"


def test_a_bucket_that_is_not_there(server, keys, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    with pytest.raises(ShardError, match="no such bucket"):
        get(open_store("s3://absent/x", QUICK), "object")


def test_each_request_is_sent_once(server, keys, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    store = open_store("s3://bucket/x", QUICK)
    upload.put(open_bucket("s3://bucket/x", QUICK), "object", b"content")
    server.requests()
    get(store, "object")
    with pytest.raises(FileNotFoundError):
        get(store, "absent")
    names(store)
    assert server.requests() == {"get": 2, "list": 1}


def test_stores_go_to_other_processes_without_credentials(tmp_path, keys):
    bucket = open_store("s3://bucket/x", RequestPolicy(attempts=3))
    data = pickle.dumps(bucket)
    assert SECRET_KEY.encode() not in data
    again = pickle.loads(data)
    assert (again.name, again.policy.attempts) == ("s3://bucket/x", 3)
    folder = pickle.loads(pickle.dumps(open_store(tmp_path)))
    assert isinstance(folder, FolderStore)
    assert folder.folder == tmp_path


def test_http_settings_of_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_PROXY_URL", "http://proxy")
    monkeypatch.setenv("GOOGLE_ALLOW_INVALID_CERTIFICATES", "true")
    assert client_options("s3://b", 5)["proxy_url"] == "http://proxy"
    assert "proxy_url" not in client_options("gs://b", 5)
    assert client_options("gs://b", 5)["allow_invalid_certificates"] is True
    assert client_options("http://host/x", 5)["allow_http"] is True


def test_help_does_not_wait_for_boto3():
    code = "import sys, shards.store, shards.reading; sys.exit('boto3' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
