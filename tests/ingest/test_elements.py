"""Our reader of a file's front says what pydicom says, or leaves the file to pydicom."""

import io
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

from ingest import elements, front, headers
from ingest.headers import Header, looks_like_dicom, quiet_pydicom, read_header
from ingest.sources import FileRef, OpenFile, walk

REF = FileRef(path="x")
FUZZED = 2000
KEPT_BYTES = 9000
"""Of a file that is damaged: its header, and some pixels."""


@pytest.fixture(scope="module")
def real_files(ct_data: Path) -> list[tuple[str, bytes, int]]:
    """(name, beginning, size) of every DICOM file, those in archives too."""
    found = []
    for item in walk([str(ct_data)]):
        if isinstance(item, OpenFile):
            data = item.stream.read()
            if looks_like_dicom(data[:540]):
                found.append((f"{item.ref.path}!{item.ref.member}", data, len(data)))
    return found


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the files that our reader took, and those that it left to pydicom."""
    counts: Counter[str] = Counter()
    read_front = front.read_front

    def counting(*args: Any) -> Any:
        found = read_front(*args)
        counts["left" if found is None else "taken"] += 1
        return found

    monkeypatch.setattr(headers, "read_front", counting)
    return counts


def by_us(data: bytes) -> Header | None:
    """The header as a scan reads it; None where the file is refused as damaged."""
    with quiet_pydicom():
        try:
            return read_header(REF, io.BytesIO(data), len(data))
        except Exception:
            return None


def by_pydicom(data: bytes) -> Header | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(headers, "read_front", lambda *_: None)
        return by_us(data)


def test_every_real_file_reads_as_pydicom_reads_it(
    real_files: list[tuple[str, bytes, int]], taken: Counter[str]
) -> None:
    different = [name for name, data, _ in real_files if by_us(data) != by_pydicom(data)]
    assert different == []
    assert taken.total() == len(real_files)
    # The rest: no pixels, several frames, deflated, no preamble, damaged, private syntax.
    assert taken["taken"] / len(real_files) > 0.85


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A bit flipped, a byte replaced, a cut, bytes lost or bytes added, once or a few times."""
    broken = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(min(len(broken), rng.choice([600, 8000])))
        width = rng.choice([1, 2, 4, 8])
        kind = rng.randrange(10)
        if kind < 4:
            broken[at] ^= 1 << rng.randrange(8)
        elif kind < 7:
            broken[at] = rng.choice(b"\0\1\xff\xfe\\ .1A\x1b\x80")
        elif kind == 7:
            return bytes(broken[:at])
        elif kind == 8:
            del broken[at : at + width]
        else:
            broken[at:at] = bytes(width)
    return bytes(broken)


def test_damaged_files_read_as_pydicom_reads_them(
    real_files: list[tuple[str, bytes, int]], taken: Counter[str]
) -> None:
    rng = random.Random(0)
    refused = 0
    for _ in range(FUZZED):
        name, data, _ = rng.choice(real_files)
        broken = damaged(data[:KEPT_BYTES], rng)
        ours, theirs = by_us(broken), by_pydicom(broken)
        assert ours == theirs, name
        refused += ours is None
    assert refused > FUZZED / 100
    assert taken["taken"] > FUZZED / 4


# ---------------------------------------------------------------- computed files


def write(dataset: Any, syntax: str | None = None) -> bytes:
    if syntax is not None:
        dataset.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    if syntax == ExplicitVRBigEndian:  # the pixels' own order does not matter here
        dataset.file_meta.FileMetaInformationGroupLength = 0  # there, so that it is written
        dcmwrite(buffer, dataset, force_encoding=True, implicit_vr=False, little_endian=False)
    else:
        dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def nested(defined: bool) -> Dataset:
    """An item with text, an empty sequence and a sequence of two items."""
    inner, outer = Dataset(), Dataset()
    inner.CodeValue = "110"
    inner.is_undefined_length_sequence_item = not defined
    outer.ReferencedSOPInstanceUID = "1.2.3"
    outer.PurposeOfReferenceCodeSequence = Sequence([inner, inner])
    outer.RequestAttributesSequence = Sequence([])
    outer["PurposeOfReferenceCodeSequence"].is_undefined_length = not defined
    outer.is_undefined_length_sequence_item = not defined
    return outer


@pytest.mark.parametrize("defined", [True, False])
@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_sequences_are_stepped_over(
    defined: bool, syntax: str | None, noise_stack: Any, taken: Counter[str]
) -> None:
    [ds] = noise_stack(1).slices
    ds.ReferencedImageSequence = Sequence([nested(True), nested(False), Dataset(), nested(defined)])
    ds["ReferencedImageSequence"].is_undefined_length = not defined
    data = write(ds, syntax)
    assert by_us(data) == by_pydicom(data)
    assert by_us(data).position == (0.0, 0.0, 0.0)
    assert taken == {"taken": 2}


def test_headers_longer_than_what_is_read_at_once(noise_stack: Any, taken: Counter[str]) -> None:
    [ds] = noise_stack(1).slices
    block = ds.private_block(0x0009, "NOISE", create=True)
    block.add_new(0x01, "OB", bytes(3 * elements.FRONT_BYTES))
    for step in (-300, -12, -8, -4, 0, 4):  # wanted elements lie across the window's edge
        block[0x01].value = bytes(elements.FRONT_BYTES + step - 900)
        data = write(ds)
        assert by_us(data) == by_pydicom(data)
    assert taken == {"taken": 6}


LEFT_TO_PYDICOM: dict[str, dict[str, Any]] = {
    "several frames": {"NumberOfFrames": 2},
    "a multi-frame class": {"SOPClassUID": EnhancedCTImageStorage},
    "functional groups": {"SharedFunctionalGroupsSequence": [Dataset()]},
    "no ASCII": {"SpecificCharacterSet": "ISO_IR 100", "PatientID": "M\xfcller"},
    "an escape": {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientID": "\u5c71\u7530"},
    "a character set of its own kind": {"SpecificCharacterSet": "ISO_IR 13"},
    "no pixels": {"PixelData": None},
}


@pytest.mark.parametrize("why", LEFT_TO_PYDICOM)
def test_what_is_left_to_pydicom(why: str, noise_stack: Any, taken: Counter[str]) -> None:
    [ds] = noise_stack(1).slices
    for keyword, value in LEFT_TO_PYDICOM[why].items():
        if value is None:
            del ds[keyword]
        else:
            setattr(ds, keyword, value)
    data = write(ds)
    assert by_us(data) == by_pydicom(data)
    assert taken == {"left": 1}


def test_deflated_and_without_a_preamble(noise_stack: Any, taken: Counter[str]) -> None:
    [ds] = noise_stack(1).slices
    plain = write(ds)
    for data in (plain[132:], write(ds, DeflatedExplicitVRLittleEndian)):
        assert by_us(data) == by_pydicom(data)
    assert taken == {"left": 2}
