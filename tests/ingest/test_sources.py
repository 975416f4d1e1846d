"""Files are found in every container, once each; damage is a problem with a reason."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest import streams
from ingest.errors import Reason, SeriesError, UsageError
from ingest.sources import FileRef, OpenFile, SourceProblem, read_files, walk

FILES = {"a/one.dcm": b"first" * 700, "a/two": b"second" * 900, "b/three.bin": os.urandom(4000)}


def tar_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("a/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("a")
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def write_folder(root: Path) -> Path:
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


CONTAINERS: dict[str, Callable[[], bytes]] = {
    "x.zip": lambda: zip_bytes(FILES),
    "x.tar": lambda: tar_bytes(FILES),
    "x.tar.gz": lambda: gzip.compress(tar_bytes(FILES)),
    "x.tgz": lambda: gzip.compress(tar_bytes(FILES)),
    "x.tar.bz2": lambda: bz2.compress(tar_bytes(FILES)),
    "x.tar.xz": lambda: lzma.compress(tar_bytes(FILES)),
    "no-suffix-at-all": lambda: gzip.compress(tar_bytes(FILES)),
}


def found(*raw: Path) -> tuple[dict[str, bytes], list[SourceProblem]]:
    files, problems = {}, []
    for item in walk([str(path) for path in raw]):
        if isinstance(item, OpenFile):
            files[item.ref.member or Path(item.ref.path).name] = item.stream.read()
        else:
            problems.append(item)
    return files, problems


def refs(*raw: Path) -> list[FileRef]:
    return [item.ref for item in walk([str(path) for path in raw])]


@pytest.mark.parametrize("name", CONTAINERS)
def test_archives(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(CONTAINERS[name]())
    assert found(path) == (FILES, [])
    # Reading again, in another order and only some, gives the same bytes.
    wanted = refs(path)[::-1][:2]
    assert {ref.member: data for ref, data in read_files(wanted)} == {
        ref.member: FILES[str(ref.member)] for ref in wanted
    }


def test_folder_and_single_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    names = {Path(name).name: data for name, data in FILES.items()}
    assert found(folder) == (names, [])
    assert found(folder / "b/three.bin") == ({"three.bin": FILES["b/three.bin"]}, [])
    assert [data for _, data in read_files(refs(folder))] == list(FILES.values())


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_singly_compressed(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(pack(b"voxels" * 1000))
    (tmp_path / "in.zip").write_bytes(zip_bytes({"scan2.nii.gz": pack(b"more" * 1000)}))
    files, problems = found(tmp_path)
    assert files == {"scan.nii.gz": b"voxels" * 1000, "scan2.nii.gz": b"more" * 1000}
    assert not problems
    assert sorted(data[:4] for _, data in read_files(refs(tmp_path))) == [b"more", b"voxe"]


def test_same_file_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    (folder / "link").symlink_to(folder / "a/two")
    (folder / "loop").symlink_to(folder)
    assert len(refs(folder, folder, folder / "a", folder / "a/one.dcm")) == len(FILES)


def test_dangling_link_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    _, [problem] = found(tmp_path)
    assert problem.reason is Reason.UNREADABLE_FILE


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere: no such file or folder"):
        list(walk([str(tmp_path), str(tmp_path / "nowhere")]))


PROBLEMS: dict[str, tuple[Callable[[], bytes], Reason, int]] = {
    # name: (bytes, reason, members found before the damage)
    "text.zip": (lambda: b"this is no zip", Reason.CORRUPT_ARCHIVE, 0),
    "cut.zip": (lambda: zip_bytes(FILES)[:-30], Reason.CORRUPT_ARCHIVE, 0),
    # The version needed to unpack stands 6 bytes into the directory's first entry.
    "of-another-age.zip": (
        lambda: zip_bytes(FILES).replace(b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\xa8"),
        Reason.CORRUPT_ARCHIVE,
        0,
    ),
    "cut-in-data.tar": (lambda: tar_bytes(FILES)[:6000], Reason.CORRUPT_ARCHIVE, 1),
    # 512 (folder) + 512 + 3584 (first file) + half a header
    "cut-in-header.tar": (lambda: tar_bytes(FILES)[:4864], Reason.CORRUPT_ARCHIVE, 1),
    "cut-between-members.tar": (lambda: tar_bytes(FILES)[:4608], Reason.CORRUPT_ARCHIVE, 1),
    "bad-header.tar": (
        lambda: tar_bytes(FILES)[:4608] + b"\x07" * 512 + tar_bytes(FILES)[5120:],
        Reason.CORRUPT_ARCHIVE,
        1,
    ),
    "cut.tar.gz": (
        lambda: gzip.compress(tar_bytes({"x": os.urandom(9000), "y": os.urandom(99000)}))[:-9000],
        Reason.CORRUPT_ARCHIVE,
        1,
    ),
    "text.tar.gz": (lambda: gzip.compress(b"this is no tar"), Reason.CORRUPT_ARCHIVE, 0),
    "cut.nii.gz": (lambda: gzip.compress(os.urandom(9000))[:-900], Reason.TRUNCATED_FILE, 0),
    "bad-crc.nii.gz": (
        lambda: gzip.compress(b"voxels")[:-8] + b"\0" * 8,
        Reason.UNREADABLE_FILE,
        0,
    ),
    "empty.zip": (lambda: zip_bytes({}), Reason.NOT_MEDICAL_IMAGE, 0),
    "empty.tar": (lambda: tar_bytes({}), Reason.NOT_MEDICAL_IMAGE, 0),
    "zip-in.zip": (lambda: zip_bytes({"x.zip": zip_bytes(FILES)}), Reason.NESTED_ARCHIVE, 0),
    "tar-in.zip": (lambda: zip_bytes({"x": tar_bytes(FILES)}), Reason.NESTED_ARCHIVE, 0),
    "tgz-in.tar": (
        lambda: tar_bytes({"x.tgz": gzip.compress(tar_bytes(FILES))}),
        Reason.NESTED_ARCHIVE,
        0,
    ),
    "gz-in-gz.gz": (lambda: gzip.compress(gzip.compress(b"x")), Reason.NESTED_ARCHIVE, 0),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems(name: str, tmp_path: Path) -> None:
    make, reason, before = PROBLEMS[name]
    (tmp_path / name).write_bytes(make())
    files, problems = found(tmp_path / name)
    assert [problem.reason for problem in problems] == [reason]
    assert len(files) == before
    assert str(tmp_path) not in problems[0].detail


def test_damaged_zip_member_leaves_the_others(tmp_path: Path) -> None:
    data = bytearray(zip_bytes(FILES))
    data[data.index(FILES["b/three.bin"][:50]) + 100] ^= 1  # random bytes are stored as they are
    (tmp_path / "x.zip").write_bytes(bytes(data))
    files, [problem] = found(tmp_path / "x.zip")
    assert sorted(files) == ["a/one.dcm", "a/two"]
    assert problem.reason is Reason.CORRUPT_ARCHIVE
    assert problem.ref.member == "b/three.bin"


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("x.zip", lambda: zip_bytes({"zeros": bytes(1 << 20)})),
        ("x.tar.gz", lambda: gzip.compress(tar_bytes({"zeros": bytes(1 << 20)}))),
        ("x.nii.gz", lambda: gzip.compress(bytes(1 << 20))),
    ],
)
def test_bombs(
    name: str, make: Callable[[], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(make())
    assert found(tmp_path)[1] == []
    monkeypatch.setattr(streams, "RATIO_FLOOR_BYTES", 1 << 10)
    _, [problem] = found(tmp_path)
    assert problem.reason is Reason.ARCHIVE_LIMIT


def test_a_dicom_prefix_beats_a_tar_magic(tmp_path: Path) -> None:
    head = bytearray(600)
    head[128:132], head[257:262] = b"DICM", b"ustar"
    (tmp_path / "image.tar").write_bytes(bytes(head))
    assert found(tmp_path)[0] == {"image.tar": bytes(head)}


def test_file_that_went_away(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    wanted = refs(folder)
    (folder / "a/two").unlink()
    with pytest.raises(SeriesError, match="unreadable_file"):
        list(read_files(wanted))
