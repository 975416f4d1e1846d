"""Raw archives in a bucket: a real S3 server on loopback gives the rows and bytes of the folder."""

import functools
import gzip
import http.server
import io
import re
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest import remote
from ingest.cli import main
from ingest.errors import IngestError, SeriesError, UsageError
from ingest.scan import ScanConfig, ScanResult, scan
from ingest.sources import FileRef, read_files, walk
from tests.s3 import Server, serving

TINY = ScanConfig(min_slices=3)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("buckets")
    with serving(folder, "raw") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    remote._store.cache_clear()


@pytest.fixture(autouse=True)
def _fresh_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_RETRIES", 1)
    remote._store.cache_clear()


@pytest.fixture(scope="module")
def folder(server: Server, noise_stack: Any) -> Path:
    """A folder of every kind of source, in the bucket ``raw`` and on this disk."""
    root = server.folder / "raw" / "study"
    noise_stack(8, name="plain").write(root / "plain")
    long = noise_stack(8, name="long header")
    for ds in long.slices:  # pixels begin behind the first range
        ds.private_block(0x0009, "NOISE", create=True).add_new(1, "OB", bytes(remote.HEAD_BYTES))
    long.write(root / "long")
    loose = noise_stack(8, name="packed").write(server.folder / "loose")
    for mode in ("", ":gz", ":bz2", ":xz"):
        with tarfile.open(root / f"a.tar{mode.replace(':', '.')}", f"w{mode}") as archive:
            for path in sorted(loose.iterdir()):
                archive.add(path, f"{mode}{path.name}")
    with zipfile.ZipFile(root / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(noise_stack(8, name="zipped").write(server.folder / "z").iterdir()):
            archive.write(path, path.name)
    (root / "one.dcm.gz").write_bytes(gzip.compress((loose / "000.dcm").read_bytes()))
    (root / "note.txt").write_bytes(b"hello " * 300_000)
    (root / "empty").write_bytes(b"")
    (root / "broken.zip").write_bytes((root / "a.zip").read_bytes()[:-40])
    return root


def told(result: ScanResult, root: str) -> list[tuple[object, ...]]:
    """Rows and places, places relative to the root."""
    return [
        (row.series_id, row.key, row.reason, row.detail, row.n_files, row.shape_zyx,
         [(ref.path.removeprefix(root), ref.member, ref.kind, ref.size, ref.index, ref.offset)
          for ref in row.refs])
        for row in result.series
    ]  # fmt: skip


def test_a_bucket_has_the_rows_of_its_folder(folder: Path, id_key: Any) -> None:
    there = scan(["s3://raw/study"], id_key, TINY)
    here = scan([str(folder)], id_key, TINY)
    assert there.n_files == here.n_files > 50
    assert told(there, "s3://raw/study") == told(here, str(folder))
    assert sum(row.reason == "ok" for row in there.series) == 4


def test_the_bytes_are_those_of_the_folder(folder: Path) -> None:
    for name in ("plain", "a.tar", "a.zip", "a.tar.xz", "one.dcm.gz", "note.txt", "empty"):
        far = bytes_of(f"s3://raw/study/{name}", "s3://raw/study")
        assert far == bytes_of(str(folder / name), str(folder))
        assert len(far) in (1, 8)


def bytes_of(source: str, root: str) -> dict[tuple[str, int], bytes]:
    refs = [item.ref for item in walk([source])]
    return {(ref.path.removeprefix(root), ref.index): data for ref, data in read_files(refs)}


def test_a_dataset_from_a_bucket_has_the_same_bytes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text("ab" * 32)
    options = ["--min-slices", "3", "--spacing-mm", "native", "--id-key", str(tmp_path / "key"),
               "--max-failures", "1"]  # fmt: skip
    for raw, out in (("s3://raw/study", "far"), (str(folder), "near")):
        assert main(["build-shards", raw, str(tmp_path / out), "--workers", "1", *options]) == 0
    names = sorted(path.name for path in (tmp_path / "near").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "far").iterdir())
    for name in names:
        assert (tmp_path / "far" / name).read_bytes() == (tmp_path / "near" / name).read_bytes()
    capsys.readouterr()


def test_requests_of_a_scan(server: Server, folder: Path, id_key: Any) -> None:
    server.requests()
    result = scan(["s3://raw/study/plain"], id_key, TINY)
    assert server.requests() == {"list": 1, "get": result.n_files}
    # One range more where the header is longer than the first, and none where a file is empty.
    result = scan(["s3://raw/study/long"], id_key, TINY)
    assert server.requests() == {"list": 1, "get": 2 * result.n_files}
    [row] = [row for row in result.series if row.reason == "ok"]
    assert len(dict(read_files(row.refs))) == 8
    assert server.requests() == {"get": 8}
    # A single object: the listing finds nothing below it.
    scan(["s3://raw/study/empty"], id_key, TINY)
    assert server.requests() == {"list": 1, "head": 1}


def test_sources_that_overlap_are_read_once(folder: Path, id_key: Any) -> None:
    once = scan(["s3://raw/study/plain"], id_key, TINY)
    twice = scan(["s3://raw/study/plain", "s3://raw/study/plain/003.dcm"], id_key, TINY)
    assert told(once, "") == told(twice, "")


def test_a_file_url_is_a_path(folder: Path, id_key: Any) -> None:
    here = scan([str(folder / "plain")], id_key, TINY)
    assert told(scan([f"file://{folder / 'plain'}"], id_key, TINY), "") == told(here, "")


def test_a_web_server_gives_single_objects(folder: Path, id_key: Any) -> None:
    handler = functools.partial(_Ranged, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{web.server_port}"
        there = scan([f"{root}/a.tar.gz"], id_key, TINY)
        assert told(there, root) == told(
            scan([str(folder / "a.tar.gz")], id_key, TINY), str(folder)
        )
        with pytest.raises(UsageError, match=r"nothing\.dcm: no such object"):
            scan([f"{root}/nothing.dcm"], id_key, TINY)
        web.shutdown()
    with pytest.raises(UsageError, match="signed links"):
        scan([f"{root}/a.zip?X-Amz-Signature=secret"], id_key, TINY)


class _Ranged(http.server.SimpleHTTPRequestHandler):
    """Python's own server, with ranges."""

    def send_head(self) -> Any:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        path = Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            return super().send_head()
        data = path.read_bytes()
        part = data[int(asked[1]) : int(asked[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {asked[1]}-{asked[2]}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        return io.BytesIO(part)

    def log_message(self, *args: Any) -> None:
        pass


# ---------------------------------------------------------------- what goes wrong


ERRORS: dict[str, tuple[str, dict[str, str], str]] = {
    # name: (URL, settings, what the line says)
    "no such bucket": ("s3://nowhere", {}, "no such bucket"),
    "no such prefix": ("s3://raw/nothing", {}, "no such object or prefix"),
    "bad credentials": ("s3://raw/study", {"AWS_SECRET_ACCESS_KEY": "x"}, "SignatureDoesNotMatch"),
    "nobody answers": ("s3://raw", {"AWS_ENDPOINT": "http://127.0.0.1:9"}, "cannot be listed"),
    "no such scheme": ("ftp://host/x", {}, "cannot open this URL as storage"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_line(
    name: str,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, settings, message = ERRORS[name]
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    assert main(["scan", url]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
    assert url.removesuffix("/x") in err


@pytest.fixture
def silent() -> Iterator[str]:
    """Address of a server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_storage_that_falls_silent_stops_the_run(
    folder: Path, silent: str, id_key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a verdict on a file: what a dataset holds must not hang on the network's mood."""
    refs = [item.ref for item in walk(["s3://raw/study/plain"])]
    monkeypatch.setenv("AWS_ENDPOINT", silent)
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(remote, "RETRY_TIMEOUT_S", 1.0)
    remote._store.cache_clear()
    with pytest.raises(IngestError, match="the storage does not answer") as caught:
        list(read_files(refs))
    assert "\n" not in str(caught.value)


def test_an_object_that_went_away_refuses_its_series(folder: Path) -> None:
    ref = FileRef(path="s3://raw/study/plain/gone.dcm", size=10)
    with pytest.raises(SeriesError, match="unreadable_file"):
        list(read_files([ref]))


def test_refs_pickle(folder: Path) -> None:
    import pickle

    refs = [item.ref for item in walk(["s3://raw/study/a.zip"])]
    assert pickle.loads(pickle.dumps(refs)) == refs
