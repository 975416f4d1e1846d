"""Bombs, lies and escapes: each input has its verdict, in little memory."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pydicom
import pytest

from ingest.scan import ScanConfig, scan
from tests.fuzz import hostile, seeds

ROOT = Path(__file__).parents[2]
LIMIT_MIB = 200
"""A member is held in memory up to 64 MiB, and there is one more copy while it grows."""
EXPECTED = {
    "zip that claims too little": {"corrupt_archive": 1},
    "zip that claims too much": {"archive_limit": 1},
    "zip bomb": {"archive_limit": 1},
    # The members before the limit were read: they are zeros.
    "overlapping zip": {"archive_limit": 1, "not_medical_image": 4},
    "zip of a gzip bomb": {"archive_limit": 1},
    "gzip bomb": {"archive_limit": 1},
    "bzip2 bomb": {"archive_limit": 1},
    "xz bomb": {"archive_limit": 1},
    "xz dictionary": {"not_medical_image": 1},
    "tar.gz bomb": {"archive_limit": 1},
    "tar of long names": {"corrupt_archive": 1},
    "tar of extended headers": {"corrupt_archive": 1},
    "tar of headers without end": {"corrupt_archive": 1},
    "sparse tar": {"archive_limit": 1},
    "20,000 empty members": {"not_medical_image": 20_000},
    "deflated DICOM bomb": {"unreadable_file": 1},
    "5,000 nested sequences": {"unreadable_file": 1},
    "65535 x 65535, raw": {"truncated_file": 5},
    "65535 x 65535, RLE": {"archive_limit": 5},
    "65535 x 65535, deflated": {"archive_limit": 5},
    "300 times 5,600 x 5,600": {"decode_failed": 300},
    "2^31 - 1 frames": {"multi_frame": 5},
    "JPEG-LS frame of 65500": {"decode_failed": 5},
    "JPEG lossless frame of 65500": {"decode_failed": 5},
    "JPEG 2000 frame of 65500": {"decode_failed": 5},
    "NIfTI of 32767^3": {"truncated_file": 2},
    "NIfTI-2 of 2^22 cubed": {"truncated_file": 2},
    "NIfTI-2 of 2^32 squared": {"truncated_file": 2},
}


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("hostile")
    hostile.write(folder)
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.hostile", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert not (folder / "escaped").exists()
    return {row["name"]: row for row in rows}


def test_all_are_expected() -> None:
    assert set(EXPECTED) == set(hostile.HOSTILE)


@pytest.mark.parametrize("name", EXPECTED)
def test_verdict_in_little_memory(name: str, judged) -> None:
    row = judged[name]
    assert (row["error"], row["reasons"]) == ("", EXPECTED[name])
    assert row["mib"] < LIMIT_MIB


# ---------------------------------------------------------------- members that would escape


def test_members_are_never_written_by_name(id_key, tmp_path) -> None:
    """Names that climb, absolute ones, links: read as members or passed over, never followed."""
    (tmp_path / "in").mkdir()
    for name in ("escape-zip", "escape-tar"):
        for file, data in seeds.seed(name).files.items():
            (tmp_path / "in" / file).write_bytes(data)
    before = sorted(path for path in tmp_path.rglob("*"))
    found = scan([str(tmp_path / "in")], id_key, ScanConfig(min_slices=3))
    assert {(str(row.reason), row.n_files) for row in found.series} == {
        ("ok", 5),
        ("duplicate_file", 5),
    }
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert not Path(seeds.OUTSIDE).exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
)
def test_members_that_are_no_files_are_passed_over(kind: bytes, id_key, tmp_path) -> None:
    secret = tmp_path / "secret.dcm"
    secret.write_bytes(seeds.seed("explicit").files["0.dcm"])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, str(secret)
        archive.addfile(info)
    (tmp_path / "in.tar").write_bytes(buffer.getvalue())
    [row] = scan([str(tmp_path / "in.tar")], id_key).series
    assert (row.reason, row.detail) == ("not_medical_image", "an archive without files")


# ---------------------------------------------------------------- files that end early


@pytest.mark.parametrize(
    "name", ["explicit", "implicit", "big-endian", "rle", "jpeg-ls", "jpeg-2000", "jpeg-lossless"]
)
def test_cut_at_every_element(name: str, id_key, tmp_path) -> None:
    """A slice that ends where an element begins, ends its length or ends is refused; the others
    are a volume without it."""
    files = seeds.seed(name).files
    whole, middle = files["2.dcm"], seeds.seed(name).marks["2.dcm"]
    cuts = sorted({min(m + d, len(whole) - 1) for m in middle for d in (0, 2, 4, 6, 8, 12)})
    pixels = whole.rindex(pixel_tag(name))
    (tmp_path / "in").mkdir()
    for file in ("0.dcm", "1.dcm", "3.dcm", "4.dcm"):
        (tmp_path / "in" / file).write_bytes(files[file])
    for cut in cuts:
        (tmp_path / f"in/cut{cut}").write_bytes(whole[:cut])
    found = scan([str(tmp_path / "in")], id_key, ScanConfig(min_slices=3))
    assert found.n_files == 4 + len(cuts) == sum(row.n_files for row in found.series)
    [volume] = [row for row in found.series if row.reason == "ok"]
    lengths = {ref.size for row in found.series if row is not volume for ref in row.refs}
    late = {cut for cut in cuts if cut not in lengths}
    # In the volume only what has its whole header, and of whose pixels only a decoder can judge.
    assert all(cut > pixels + 8 for cut in late)
    assert volume.n_slices in (4, 5)
    allowed = {"truncated_file", "not_medical_image", "unreadable_file", "not_an_image",
               "duplicate_file", "not_ct", "missing_geometry", "too_few_slices", "ok",
               "unsupported_transfer_syntax", "implausible_spacing"}  # fmt: skip
    assert {str(row.reason) for row in found.series} <= allowed


def pixel_tag(name: str) -> bytes:
    return b"\x7f\xe0\x00\x10" if name == "big-endian" else b"\xe0\x7f\x10\x00"


def test_the_marks_are_elements() -> None:
    """Each element that pydicom finds begins at a mark: the cuts miss none."""
    data = seeds.seed("explicit").files["2.dcm"]
    ds = pydicom.dcmread(io.BytesIO(data))
    marks = seeds.seed("explicit").marks["2.dcm"]
    assert len(ds) > 20
    for tag in list(ds.keys()):
        # 8 bytes of tag, VR and length before a value, or 12 (PS3.5 7.1.2).
        at = ds.get_item(tag).value_tell
        assert {at - 8, at - 12} & set(marks), tag
