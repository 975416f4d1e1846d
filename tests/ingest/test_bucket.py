"""Built straight into a bucket: the objects are the files of a local build."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from ingest.errors import UsageError
from ingest.output import open_output
from shards.failpoints import VARIABLE
from shards.verify import verify
from tests.ingest.conftest import snapshot
from tests.ingest.test_faults_cluster import Cluster


def objects(bucket: Any) -> dict[str, str]:
    """Digests of all objects, as the server keeps them."""
    return {
        str(path.relative_to(bucket.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in bucket.folder.rglob("*")
        if path.is_file()
    }


def said(done: Any) -> dict[str, Any]:
    """The line for machines."""
    [line] = [line for line in done.output.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(line)
    return found


def test_the_objects_are_the_files_of_a_local_build_and_each_request_is_known(
    bucket: Any, three_volumes: Path, three_built: Any, flags: Any
) -> None:
    bucket.server.requests()
    done = bucket.run("build-shards", three_volumes, bucket.out, *flags)
    assert done.status == 0, done.output
    assert objects(bucket) == three_built[0]
    shards, tables = 3, 6
    assert bucket.server.requests() == {
        # Each shard with two sidecars and its result; tables; the lock, once more to see that
        # conditions hold; whether writing is allowed; the build's name; which series are copies.
        "put": 4 * shards + tables + 2 + 1 + 1 + 1,
        # A worker looks for the build and for an earlier result of its group. Before: the lock, and
        # once it is ours; the manifest three times; the build's name; the copies. At the end: the
        # lock, and two tables for the closing line. Uploads in progress, twice.
        "get": 2 * shards + 2 + 3 + 1 + 1 + 1 + 2 + 2,
        # What is there, at first and under the lock (twice); earlier results; each group's series
        # prepared apart; all, before the manifest; the state, to be removed.
        "list": 3 + 1 + shards + 1 + 1,
        "post": 3,  # deletes: the trial, the state, the lock
    }
    again = bucket.run("build-shards", three_volumes, bucket.out, *flags)
    assert "already complete, nothing to do" in again.output
    assert bucket.server.requests() == {"get": 4, "list": 3}


def test_verify_and_inspect_read_there(
    bucket: Any, three_volumes: Path, flags: Any, tmp_path: Path
) -> None:
    assert bucket.run("build-shards", three_volumes, bucket.out, *flags).status == 0
    bucket.server.requests()
    checked = bucket.run("verify", bucket.out, "--json")
    assert (checked.status, said(checked)["samples"]) == (0, 3), checked.output
    # The manifest, the index to know it, three tables and the report; of each shard three files.
    assert bucket.server.requests() == Counter({"get": 1 + 1 + 4 + 3 * 3, "list": 1})
    listed = bucket.run("inspect", bucket.out)
    assert listed.output.count("shard-0000") == 3
    assert bucket.server.requests() == {"get": 2}
    key = next(line for line in listed.output.splitlines() if "shard-000001" in line).split()[0]
    shown = bucket.run("inspect", bucket.out, key, "--png", tmp_path / "one.png")
    assert json.loads(shown.output)["key"] == key
    # The index of its shard, and its members; once for the picture, once for the record.
    assert bucket.server.requests() == {"get": 2 + 1 + 2}
    assert (tmp_path / "one.png").stat().st_size > 1000


def test_damage_is_found_as_in_a_folder(
    bucket: Any, three_volumes: Path, flags: Any, tmp_path: Path
) -> None:
    assert bucket.run("build-shards", three_volumes, bucket.out, *flags).status == 0
    folder = bucket.folder
    (folder / "shard-000001.tar").unlink()
    data = bytearray((folder / "shard-000000.tar").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "shard-000000.tar").write_bytes(data)
    (folder / "shard-000009.tar").write_bytes(b"foreign")
    here = verify(folder)
    there = bucket.run("verify", bucket.out, "--json")
    assert there.status == 1
    found = said(there)["problems"]
    assert found == here.problems
    assert "shard-000001.tar: missing" in found
    assert "shard-000009.tar: not named in manifest.json" in found
    assert any("shard-000000.tar: SHA-256" in line for line in found)


def test_a_dry_run_writes_nothing_there(bucket: Any, three_volumes: Path, flags: Any) -> None:
    bucket.server.requests()
    done = bucket.run("build-shards", three_volumes, bucket.out, *flags, "--dry-run", "--json")
    assert said(done)["volumes"] == 3
    assert bucket.server.requests() == {"list": 1}


def test_every_option_gives_what_it_gives_in_a_folder(
    bucket: Any, three_volumes: Path, tmp_path: Path
) -> None:
    uid = pydicom.dcmread(next((three_volumes / "1").iterdir())).SeriesInstanceUID
    (tmp_path / "list").write_text(f"{uid}\n")
    (tmp_path / "key").write_text("ab" * 32)
    options = [
        *("--spacing-mm", "4,3,3", "--no-body-crop", "--resample", "linear", "--profile", "gpu"),
        *("--exclude", tmp_path / "list", "--heads", "drop", "--source", "somewhere", "--json"),
        *("--min-coverage-mm", "10", "--select", "thinnest-soft-tissue", "--workers", "1"),
        *("--id-key", tmp_path / "key", "--keep-paths", tmp_path / "paths"),
        *("--labels", labels_of(three_volumes, tmp_path)),
    ]
    there = bucket.run("build-shards", three_volumes, bucket.out, *options)
    assert there.status == 0, there.output
    paths = (tmp_path / "paths").read_bytes()
    here = bucket.run("build-shards", three_volumes, tmp_path / "here", *options)
    assert objects(bucket) == snapshot(tmp_path / "here")
    assert "exclusions.json" in objects(bucket)
    apart = ("out", "seconds", "worker_peak_bytes")
    told = [{k: v for k, v in said(run).items() if k not in apart} for run in (there, here)]
    assert told[0] == told[1]
    assert (told[0]["labelled"], told[0]["excluded"]["uid"]) == (1, 1)
    assert (tmp_path / "paths").read_bytes() == paths


def labels_of(archive: Path, folder: Path) -> Path:
    """A table of pairs: a label on the grid of the archive's NIfTI volume."""
    image = nibabel.load(archive / "3.nii.gz")
    values = (np.asarray(image.dataobj) > 0).astype(np.uint8)
    nibabel.Nifti1Image(values, image.affine).to_filename(folder / "label.nii.gz")
    table = folder / "pairs.csv"
    table.write_text(f"image,label\n{archive / '3.nii.gz'},{folder / 'label.nii.gz'}\n")
    return table


def test_a_group_is_shared_by_workers_through_the_bucket(
    bucket: Any, three_volumes: Path, tmp_path: Path
) -> None:
    one_group = ("--spacing-mm", "2", "--workers", "2")
    settings = {"ingest.work.SHARED_FROM_VOXELS": 1}
    alone = (*one_group[:-1], "1")
    assert bucket.run("build-shards", three_volumes, tmp_path / "here", *alone).status == 0
    bucket.server.requests()
    done = bucket.run("build-shards", three_volumes, bucket.out, *one_group, settings=settings)
    assert done.status == 0, done.output
    assert objects(bucket) == snapshot(tmp_path / "here")
    # Three series on their way besides a shard with its sidecars and result, and as ever.
    assert bucket.server.requests()["put"] == 3 + 4 + 6 + 5
    assert bucket.left_over() == []


def test_a_cluster_builds_into_a_bucket(
    bucket: Any, three_volumes: Path, three_built: Any, flags: Any, tmp_path: Path
) -> None:
    cluster = Cluster(tmp_path)
    try:
        cluster.worker()  # without credentials
        over = ("--dask-scheduler", cluster.address)
        refused = bucket.run("build-shards", three_volumes, bucket.out, *flags, *over)
        assert refused.status == 2
        line = refused.output.splitlines()[-1]
        assert "cannot use OUT" in line
        assert "in the environment of each worker" in line
        cluster.stop_workers()
        environment = {**bucket.server.environment, "TMPDIR": str(bucket.temporary)}
        doomed = cluster.worker(**environment, **{VARIABLE: "delivered:2"})
        cluster.worker(**environment)
        cluster.wait_for_workers(2)
        done = bucket.run("build-shards", three_volumes, bucket.out, *flags, *over)
        assert done.status == 0, done.output
        assert objects(bucket) == three_built[0]
        assert doomed.wait(10) == -9
        assert bucket.left_over() == []
    finally:
        cluster.stop()


def test_real_series_in_a_bucket(bucket: Any, ct_data: Path, tmp_path: Path) -> None:
    places = (
        *("totalsegmentator/example_ct_dicom", "totalsegmentator/example_ct.nii.gz"),
        "dcm_qa_ct/Philips_S21570_partial.tar.gz",
    )
    raw = [ct_data / place for place in places]
    options = ("--workers", "1", "--shard-mib", "4")
    assert bucket.run("build-shards", *raw, tmp_path / "here", *options).status == 0
    done = bucket.run("build-shards", *raw, bucket.out, *options)
    assert done.status == 0, done.output
    assert len(list(bucket.folder.glob("*.tar"))) > 1
    assert objects(bucket) == snapshot(tmp_path / "here")
    checked = said(bucket.run("verify", bucket.out, "--json"))
    assert (checked["problems"], checked["samples"]) == ([], 3)
    assert bucket.left_over() == []


def test_a_file_url_is_a_folder_and_a_bucket_has_no_slash_at_its_end(tmp_path: Path) -> None:
    assert open_output(f"file://{tmp_path}/a%20b").address == f"{tmp_path}/a b"
    assert open_output("s3://data/ct/").address == "s3://data/ct"
    for url in ("s3://", "s3://data//ct", "s3://data/./ct", "s3://data/ct?x=1", "memory:///x"):
        with pytest.raises(UsageError):
            open_output(url)
