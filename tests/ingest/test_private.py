"""Identifiers planted everywhere a file can hold text reach no byte of the output.

The planted names, dates, numbers and UIDs stand in every text-valued tag of the DICOM dictionary,
in nested sequences and private tags, in NIfTI descriptors, in the headers of archives and in the
names of files and folders. Then every byte of the dataset is searched, unpacked where it is packed.
"""

import base64
import gzip
import io
import json
import logging
import re
import stat
import tarfile
import zipfile
from dataclasses import replace

import nibabel
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset as DicomDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

import ingest.group
import ingest.pipeline
from ingest.cli import main
from ingest.errors import UsageError
from ingest.headers import quiet_pydicom
from ingest.paths import check_paths_file, write_paths
from ingest.phantom import Torso
from ingest.scan import scan
from ingest.testing import SeriesSpec, dicom_slice, write_dicom_series
from shards.dataset import Dataset
from shards.verify import verify

NAME, DATE, TIME, NUMBER = "Mustermann", "19550317", "235959", "19550317"
SECRET_UID = "1.2.826.0.1.9876543210"
SMALL = SeriesSpec(patient=1, slices=10, side=40, pixel_mm=8.0, gap_mm=5.0)
PLANTS = {
    **dict.fromkeys(("PN", "LO", "SH", "LT", "ST", "UT", "UC", "UR"), NAME),
    **dict.fromkeys(("CS", "AE"), NAME.upper()),
    **dict.fromkeys(("IS", "DS"), NUMBER),
    "DA": DATE, "DT": f"{DATE}{TIME}", "TM": TIME, "AS": "067Y", "UI": SECRET_UID,
}  # fmt: skip
"""What is planted, by value representation (PS3.5 6.2)."""
STRUCTURE = {
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID",
    "SeriesInstanceUID", "Modality", "ImageType", "BurnedInAnnotation", "ScanOptions",
    "NumberOfFrames", "PhotometricInterpretation", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "RescaleType",
}  # fmt: skip
"""Tags without which a file is no CT slice: their values are planted in other files."""


def planted_dataset(depth=0):
    """Every text-valued tag of the dictionary, and a sequence of the same inside some."""
    found = DicomDataset()
    for number, (vr, _, _, _, keyword) in DicomDictionary.items():
        tag = Tag(number)
        if tag.group <= 2 or tag.group == 0xFFFE or keyword in STRUCTURE or not keyword:
            continue
        kinds = vr.split(" or ")
        if kinds[0] in PLANTS:
            found.add(DataElement(tag, kinds[0], PLANTS[kinds[0]]))
    if depth < 2:
        inner = planted_dataset(depth + 1) if depth == 0 else DicomDataset()
        inner.PatientName = NAME
        for keyword in ("ReferencedStudySequence", "RequestAttributesSequence"):
            setattr(found, keyword, Sequence([inner]))
    block = found.private_block(0x0099, NAME, create=True)
    for offset, vr in enumerate(("LO", "PN", "UN", "DA", "UI", "LT")):
        block.add_new(offset, vr, NAME.encode() if vr == "UN" else PLANTS[vr])
    return found


EVERYTHING = planted_dataset()


def test_the_plants_are_in_all_text(tmp_path):
    """The test plants what it says: by the dictionary, not by a list of ours."""
    kinds = {element.VR for element in EVERYTHING}
    assert kinds >= PLANTS.keys() - {"UC"}
    assert len(EVERYTHING) > 2500
    for keyword in (
        "PatientName", "PatientID", "ConvolutionKernel", "ContrastBolusAgent", "BodyPartExamined",
        "AcquisitionTime", "KVP", "SliceThickness", "FrameOfReferenceUID", "ImageComments",
    ):  # fmt: skip
        assert str(EVERYTHING[keyword].value) in PLANTS.values(), keyword


def planted_slice(spec, hu, index):
    """A slice of the phantom in which all else is planted; the series stays one."""
    ds = dicom_slice(spec, hu, index, index + 1)
    for element in EVERYTHING:
        if index == 0 or element.VR != "SQ":  # thousands of tags: nested once a series
            ds.add(element)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", NAME.upper()]
    ds.ScanOptions = NAME.upper()
    ds.file_meta.ImplementationVersionName = NAME.upper()
    ds.file_meta.SourceApplicationEntityTitle = NAME.upper()
    ds.preamble = (NAME * 20).encode()[:128]
    return ds


def as_bytes(ds):
    buffer = io.BytesIO()
    with quiet_pydicom():
        ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write_archive(root):
    """Series that are taken, refused by their headers, and refused by their pixels."""
    raw = root / f"{NAME}_raw" / DATE
    raw.mkdir(parents=True)
    members = []
    for index, hu in enumerate(SMALL.hu()):
        ds = planted_slice(SMALL, hu, index)
        (raw / f"{NAME}{index}.dcm").write_bytes(as_bytes(ds))
        # The same in an archive, with other UIDs: refused at its pixels, whose unit has a name.
        ds.RescaleType = NAME.upper()
        ds.SOPInstanceUID, ds.SeriesInstanceUID = f"1.2.3.{index}", "1.2.3.77.1955"
        members.append((f"{NAME}/{DATE}/{index}", as_bytes(ds)))
    with zipfile.ZipFile(raw / f"{NAME}.zip", "w") as archive:
        archive.comment = NAME.encode()
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.comment, info.extra = NAME.encode(), b"\xfe\xca\x0a\0" + NAME.encode()
            archive.writestr(info, data)
    spec = replace(SMALL, patient=2, torso=Torso(seed=2))
    write_tar(raw / f"{NAME}.tar", spec)
    write_refused(raw, SMALL.hu()[0])
    write_planted_nifti(raw / f"{NAME}.nii.gz")
    (raw / f"{NAME}.txt").write_text(f"{NAME} {DATE}")
    (raw / f"{NAME}.broken.zip").write_bytes(b"PK\x03\x04" + NAME.encode() * 9)
    return raw


def write_tar(path, spec):
    """A plain series, excluded by its PatientID below, in a tar whose own headers have names."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": NAME}) as tar:
        for index, hu in enumerate(spec.hu()):
            data = as_bytes(dicom_slice(spec, hu, index, index + 1))
            info = tarfile.TarInfo(f"{NAME}/{index}")
            info.size, info.uname, info.gname = len(data), NAME, NAME
            info.pax_headers = {"comment": NAME}
            tar.addfile(info, io.BytesIO(data))


def write_refused(raw, hu):
    """Single files whose structural tags have names in them, one tag a file."""
    for number, keyword in enumerate(sorted(STRUCTURE)):
        ds = planted_slice(replace(SMALL, patient=3 + number), hu, 1)
        vr = pydicom.datadict.dictionary_VR(keyword)
        with quiet_pydicom():
            setattr(ds, keyword, PLANTS[vr] if vr not in ("DS", "IS") else NUMBER)
            (raw / f"{NAME}-{keyword}").write_bytes(as_bytes(ds))
    (raw / f"{NAME}-cut.dcm").write_bytes(as_bytes(ds)[:4000])


def write_planted_nifti(path):
    """All text that NIfTI has, and the name inside the gzip header."""
    spec = replace(SMALL, torso=Torso(seed=5))
    image = nibabel.Nifti1Image(spec.hu().transpose(2, 1, 0), spec.affine[:, [2, 1, 0, 3]])
    for field in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        image.header[field] = NAME[:10]
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", NAME.encode() * 9))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("dicom", DATE.encode() * 9))
    with path.open("wb") as file, gzip.GzipFile(f"{NAME}.nii", "wb", fileobj=file) as packed:
        packed.write(image.to_bytes())


# ---------------------------------------------------------------- the search


def readable(path):
    """(where, bytes) of a file as it is and of all that is packed in it."""
    data = path.read_bytes()
    yield path.name, data
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        for column in table.column_names:
            yield f"{path.name}:{column}", str(table[column].to_pylist()).encode()
        yield f"{path.name}:schema", str(pq.read_metadata(path).metadata).encode()
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            for member in tar:
                yield f"{path.name}:{member.name}", str(member.get_info()).encode()
    for number, packed in enumerate(re.findall(rb"base64,([A-Za-z0-9+/=]+)", data)):
        yield from in_picture(f"{path.name}:picture {number}", base64.b64decode(packed))
    if path.suffix == ".json":
        for number, packed in enumerate(re.findall(rb'"(iVBOR[A-Za-z0-9+/=]+)"', data)):
            yield from in_picture(f"{path.name}:picture {number}", base64.b64decode(packed))


def in_picture(where, png):
    yield where, png
    with Image.open(io.BytesIO(png)) as image:
        yield f"{where}:text", str(image.info).encode()


def leaks(folder, secrets):
    """(place, secret) of each secret found in or under ``folder``, whatever the case."""
    tokens = {secret: secret.encode().lower() for secret in secrets}
    found = set()
    for path in folder.rglob("*"):
        found |= {
            (f"name of {path.name}", s)
            for s, t in tokens.items()
            if t.decode() in path.name.lower()
        }
        if path.is_file():
            for where, data in readable(path):
                low = data.lower()
                wide = low.replace(b"\0", b"")  # UTF-16 and UTF-32 too
                found |= {(where, s) for s, t in tokens.items() if t in low or t in wide}
    return found


@pytest.fixture
def keep_state(monkeypatch):
    """What lies in OUT while a build is under way stays there, to be searched as well."""
    monkeypatch.setattr(ingest.pipeline, "end_build", lambda out: None)


def build(raw, out, *more):
    return main(["build-shards", str(raw), str(out), "--spacing-mm", "8", "--workers", "1", *more])


def test_nothing_planted_reaches_the_output(tmp_path, caplog, keep_state):
    caplog.set_level(logging.INFO)
    raw = write_archive(tmp_path / NAME)
    out, paths, list_ = tmp_path / "out", tmp_path / "paths.jsonl", tmp_path / "list.txt"
    list_.write_text(f"patient:PHANTOM-2\n{SECRET_UID}.1\n")
    flags = ("--keep-paths", str(paths), "--exclude", str(list_))
    assert build(raw, out, *flags) == 0

    uids = {ds.SeriesInstanceUID for ds in map(pydicom.dcmread, raw.glob(f"{NAME}?.dcm"))}
    secrets = {NAME, DATE, TIME, "067Y", SECRET_UID, "PHANTOM-2", str(tmp_path), "1.2.3.77.1955"}
    assert uids
    assert leaks(out, secrets | uids) == set()
    assert not [r for r in caplog.records if any(s in r.getMessage() for s in (NAME, DATE))]

    # The archive went through all stages, and what was written is whole.
    rows = pq.read_table(out / "series.parquet").to_pylist()
    reasons = {row["reason"] for row in rows}
    assert {"ok", "not_hu", "excluded", "not_ct", "corrupt_archive", "truncated_file"} <= reasons
    kinds = {row["source_kind"] for row in rows if row["verdict"] == "accepted"}
    assert kinds == {"dicom", "nifti"}
    assert verify(out).problems == []
    (kernel,) = {sample.meta.kernel for sample in Dataset.open(out)}
    assert kernel == ""
    assert (out / ".build").is_dir()
    # Paths are where they were asked for, and only there.
    assert NAME in paths.read_text()
    assert json.loads((out / "exclusions.json").read_text())["excluded"]["patient"] == 1


def test_the_search_finds_what_leaks(tmp_path, monkeypatch, keep_state):
    write_dicom_series(tmp_path / "raw", SMALL)
    for path in (tmp_path / "raw").iterdir():
        ds = pydicom.dcmread(path)
        ds.ConvolutionKernel = NAME
        path.write_bytes(as_bytes(ds))
    monkeypatch.setattr(ingest.group, "kernel_of", lambda stated: (next(iter(stated)), (DATE,)))
    monkeypatch.setattr(ingest.group, "modality_of", lambda text: TIME)
    assert build(tmp_path / "raw", tmp_path / "out") == 0
    places = {
        (where.split(":")[0], secret)
        for where, secret in leaks(tmp_path / "out", {NAME, DATE, TIME})
    }
    assert places >= {
        ("shard-000000.tar", NAME), ("shard-000000.tar", DATE), ("index.parquet", NAME),
        ("series.parquet", DATE), ("series.parquet", TIME),
    }  # fmt: skip


def test_the_search_unpacks(tmp_path):
    """Compressed columns, text chunks of pictures in pages and in state files, names."""
    pq.write_table(pa.table({"a": [NAME] * 9}), tmp_path / "zstd.parquet", compression="zstd")
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", NAME, zip=True)
    png = io.BytesIO()
    Image.new("L", (4, 4)).save(png, "PNG", pnginfo=text)
    packed = base64.b64encode(png.getvalue()).decode()
    (tmp_path / "page.html").write_text(f'<img src="data:image/png;base64,{packed}">')
    (tmp_path / "state.json").write_text(json.dumps({"key": packed}))
    (tmp_path / "wide.bin").write_bytes(NAME.encode("utf-16"))
    (tmp_path / f"{NAME}.empty").touch()
    places = {where.split(":")[0] for where, _ in leaks(tmp_path, {NAME.lower()})}
    assert places == {
        "zstd.parquet",
        "page.html",
        "state.json",
        "wide.bin",
        f"name of {NAME}.empty",
    }


# ---------------------------------------------------------------- --keep-paths


def test_paths_are_kept_where_the_user_says(tmp_path, id_key):
    write_dicom_series(tmp_path / "raw", SMALL)
    (tmp_path / "raw/notes.txt").write_text("x")
    found = scan([str(tmp_path / "raw")], id_key)
    target = tmp_path / "paths.jsonl"
    write_paths(target, found.series)
    write_paths(target, found.series)  # again, over its own
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    records = [json.loads(line) for line in target.read_text().splitlines()]
    assert {r["series_id"] for r in records} == {s.series_id for s in found.series}
    (volume,) = [r for r in records if r["key"]]
    assert volume["reason"] == "ok"
    assert volume["paths"] == sorted(str(p) for p in (tmp_path / "raw").glob("*.dcm"))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("out/paths", "inside OUT"),
        ("link/paths", "inside OUT"),
        ("raw/paths", "inside RAW"),
        ("none/paths", "make it first"),
        ("thesis.doc", "something else"),
    ],
)
def test_places_that_would_give_paths_away_are_refused(tmp_path, place, message):
    for name in ("out", "raw"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "thesis.doc").write_text("a thesis")
    with pytest.raises(UsageError, match=message):
        check_paths_file(tmp_path / place, [str(tmp_path / "raw")], tmp_path / "out")
