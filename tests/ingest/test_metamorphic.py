"""What must not matter does not: the same content, whatever the packing, names, codec and axes.

And what must matter does: a slice less, a slice twice.
"""

import bz2
import gzip
import io
import itertools
import lzma
import random
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom import uid

from ingest.config import BuildConfig
from ingest.errors import SeriesError
from ingest.headers import quiet_pydicom
from ingest.sample import make_sample
from ingest.scan import ScanConfig, scan
from shards.schema import SampleMeta

NATIVE = BuildConfig(spacing_zyx_mm=None, body_crop=False, min_slices=3)
SYNTAXES = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "RLE": uid.RLELossless,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG 2000": uid.JPEG2000Lossless,
    "JPEG lossless": uid.JPEGLosslessSV1,
}


@dataclass(frozen=True)
class Seen:
    """What ingest made of some files: content and verdicts, and nothing of where they were."""

    content: tuple[str, ...]
    keys: tuple[str, ...]
    flags: tuple[tuple[str, ...], ...]
    reasons: tuple[tuple[str, int], ...]


@pytest.fixture(scope="module")
def look(id_key) -> Callable[..., tuple[Seen, list]]:
    """Scan and read at native spacing; the volumes too, as (facts, HU)."""

    def run(*raw: Path) -> tuple[Seen, list[tuple[SampleMeta, np.ndarray]]]:
        found = scan([str(path) for path in raw], id_key, ScanConfig(min_slices=3))
        reasons: Counter[str] = Counter()
        samples = []
        for series in found.series:
            reason = str(series.reason)
            if reason == "ok":
                try:
                    samples.append(make_sample(series, NATIVE)[:2])
                except SeriesError as exc:
                    reason = str(exc.reason)
            reasons[reason] += series.n_files
        assert sum(reasons.values()) == found.n_files
        metas = [meta for meta, _ in samples]
        return Seen(
            content=tuple(sorted(meta.content_sha256 for meta in metas)),
            keys=tuple(sorted(meta.key for meta in metas)),
            flags=tuple(tuple(flag for flag in m.flags if "kernel" not in flag) for m in metas),
            reasons=tuple(sorted(reasons.items())),
        ), samples

    return run


@pytest.fixture
def files(noise_stack, tmp_path) -> list[Path]:
    """Twelve slices of a series."""
    return sorted(noise_stack().write(tmp_path / "plain").iterdir())


@pytest.fixture
def plain(files, look) -> Seen:
    seen, _ = look(files[0].parent)
    assert seen.reasons == (("ok", 12),)
    return seen


def packed(paths: Iterable[Path], pack: str) -> bytes:
    """The files in an archive, under names that say nothing."""
    buffer = io.BytesIO()
    if pack == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for k, path in enumerate(paths):
                archive.write(path, f"f{k % 3}/{k}")
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for k, path in enumerate(paths):
            tar.add(path, f"f{k % 3}/{k}")
    compress = {"tar": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    return compress[pack](buffer.getvalue())


# ---------------------------------------------------------------- where and how files lie


@pytest.mark.parametrize("pack", ["zip", "tar", "gz", "bz2", "xz"])
def test_packing_changes_nothing(pack, files, plain, look, tmp_path) -> None:
    shuffled = random.Random(1).sample(files, len(files))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/archive").write_bytes(packed(shuffled, pack))
    assert look(tmp_path / "in")[0] == plain


def test_names_and_folders_change_nothing(files, plain, look, tmp_path) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "half.zip").write_bytes(packed(files[::2], "zip"))
    for k, path in enumerate(files[1::2]):
        (mixed / f"{k % 2}/deeper").mkdir(parents=True, exist_ok=True)
        target = mixed / f"{k % 2}/deeper/{9 - k}"
        target.write_bytes(gzip.compress(path.read_bytes()) if k == 3 else path.read_bytes())
    assert look(mixed)[0] == plain
    assert look(*sorted(mixed.iterdir(), reverse=True))[0] == plain


# ---------------------------------------------------------------- how files are written


def rewritten(data: bytes, syntax: str) -> bytes:
    """A file in another lossless transfer syntax, by encoders that are not ours."""
    with quiet_pydicom():
        ds = pydicom.dcmread(io.BytesIO(data))
        if ds.file_meta.TransferSyntaxUID.is_compressed:
            ds.decompress(generate_instance_uid=False)
        stored, syntax = ds.pixel_array, uid.UID(syntax)
        if syntax == uid.RLELossless:
            ds.compress(syntax, generate_instance_uid=False)
        elif syntax.is_encapsulated:
            ds.PixelData = pydicom.encaps.encapsulate([_encode(stored, syntax)])
            ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        else:
            order = "<" if syntax.is_little_endian else ">"
            ds.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
            ds["PixelData"].VR = "OW"
        ds.file_meta.TransferSyntaxUID = syntax
        out = io.BytesIO()
        pydicom.dcmwrite(
            out, ds, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian
        )
    return out.getvalue()


def _encode(stored: np.ndarray, syntax: str) -> bytes:
    unsigned = stored.view(f"u{stored.itemsize}")
    if syntax == uid.JPEGLSLossless:
        return imagecodecs.jpegls_encode(unsigned)
    if syntax == uid.JPEG2000Lossless:
        return imagecodecs.jpeg2k_encode(stored, codecformat="j2k", reversible=True, resolutions=1)
    assert syntax == uid.JPEGLosslessSV1
    return imagecodecs.ljpeg_encode(unsigned)


@pytest.mark.parametrize("name", SYNTAXES)
def test_lossless_syntaxes_change_nothing(name, files, plain, look, tmp_path) -> None:
    target = tmp_path / "again"
    target.mkdir()
    for path in files:
        (target / path.name).write_bytes(rewritten(path.read_bytes(), SYNTAXES[name]))
    assert look(target)[0] == plain


def test_a_real_series_in_every_lossless_syntax(ct_data, look, tmp_path) -> None:
    """Ten slices of JPEG 2000 from a scanner, each slice in another syntax than its neighbour."""
    source = ct_data / "totalsegmentator/example_ct_dicom"
    positions = {
        float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2]): path
        for path in source.iterdir()
    }
    chosen = [positions[z] for z in sorted(positions)[5:15]]
    (tmp_path / "plain").mkdir()
    for path in chosen:
        shutil.copy(path, tmp_path / "plain")
    expected, _ = look(tmp_path / "plain")
    assert expected.reasons == (("ok", 10),)
    (tmp_path / "mixed").mkdir()
    for k, path in enumerate(chosen):
        syntax = list(SYNTAXES.values())[k % len(SYNTAXES)]
        (tmp_path / f"mixed/{k}").write_bytes(rewritten(path.read_bytes(), syntax))
    seen, _ = look(tmp_path / "mixed")
    # Not the key: these files have no UIDs, and are named by their bytes.
    assert (seen.content, seen.reasons) == (expected.content, expected.reasons)


def test_without_preamble_and_meta_header(files, plain, look, tmp_path) -> None:
    """Files of before DICOM part 10: the data set alone, implicit or explicit."""
    (tmp_path / "bare").mkdir()
    for k, path in enumerate(files):
        data = path.read_bytes()
        if k % 2:
            data = rewritten(data, uid.ImplicitVRLittleEndian)
        # The meta group's length stands at 140 and counts from 144 (PS3.10 7.1).
        start = 144 + int.from_bytes(data[140:144], "little")
        (tmp_path / f"bare/{k}").write_bytes(data[start:] if k % 3 else data[132:])
    assert look(tmp_path / "bare")[0] == plain


# ---------------------------------------------------------------- how voxels are stored


def cube(n: int = 12, rows: int = 10, columns: int = 14) -> np.ndarray:
    """Stored values; no two slices, rows or columns are alike."""
    values = np.random.default_rng(5).integers(0, 60, (n, rows, columns)).astype(np.uint16)
    values[:, 3:8, 4:11] += 1000
    return values


# Dyadic numbers: positions computed in another order are the same to the last bit.
ORIGIN, ALONG, DOWN = np.array([-64.0, 32.5, 250.0]), np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
ROW_MM, COLUMN_MM, SLICE_MM = 1.5, 0.75, 2.25


def store(make_stack, turn: tuple[bool, bool, bool], name="a"):
    """The same anatomy with rows and columns swapped, columns reversed, rows reversed."""
    swap, flip_columns, flip_rows = turn
    values, along, down = cube(), ALONG, DOWN
    row_mm, column_mm = ROW_MM, COLUMN_MM
    normal = np.cross(ALONG, DOWN)
    origins = ORIGIN + SLICE_MM * np.arange(len(values))[:, None] * normal
    if flip_columns:
        origins = origins + (values.shape[2] - 1) * column_mm * along
        values, along = values[:, :, ::-1], -along
    if flip_rows:
        origins = origins + (values.shape[1] - 1) * row_mm * down
        values, down = values[:, ::-1], -down
    if swap:
        values, along, down = values.transpose(0, 2, 1), down, along
        row_mm, column_mm = column_mm, row_mm
    return make_stack(
        np.ascontiguousarray(values), origins, [*along, *down], (row_mm, column_mm), name
    )


@pytest.mark.parametrize("turn", list(itertools.product((False, True), repeat=3)))
def test_turned_storage_is_the_same_volume(turn, make_stack, look, tmp_path) -> None:
    expected, _ = look(store(make_stack, (False, False, False)).write(tmp_path / "plain"))
    seen, [(meta, hu)] = look(store(make_stack, turn).write(tmp_path / "turned"))
    assert seen.content == expected.content
    assert (meta.affine[0][3], meta.affine[1][3], meta.affine[2][3]) == (64.0, -32.5, 250.0)
    np.testing.assert_array_equal(hu, cube().astype(np.int16) - 1024)


def test_nifti_in_all_48_orientations_is_the_dicom_series(make_stack, look, tmp_path) -> None:
    expected, _ = look(store(make_stack, (False, False, False)).write(tmp_path / "dicom"))
    hu = (cube().astype(np.int16) - 1024).transpose(2, 1, 0)  # (x, y, z) of NIfTI
    affine = np.diag([-COLUMN_MM, -ROW_MM, SLICE_MM, 1.0])
    affine[:3, 3] = ORIGIN * (-1, -1, 1)
    (tmp_path / "nifti").mkdir()
    image = nibabel.Nifti1Image(hu, affine)
    for k, (order, signs) in enumerate(
        itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    ):
        turned = image.as_reoriented([[axis, sign] for axis, sign in zip(order, signs)])  # noqa: B905
        turned.to_filename(tmp_path / f"nifti/{k}.nii")
    seen, _ = look(tmp_path / "nifti")
    assert seen.reasons == (("ok", 48),)
    assert set(seen.content) == set(expected.content)


@pytest.mark.parametrize(
    ("slope", "intercept", "signed"),
    [(1, 0, True), (0.5, -1024, False), (0.25, -1500, True), (1, -2048, False), (-1, 900, True)],
)
def test_another_rescale_is_the_same_hu(
    slope, intercept, signed, noise_stack, plain, look, tmp_path
) -> None:
    stack = noise_stack()
    for ds in stack.slices:
        hu = ds.pixel_array.astype(np.float64) - 1024
        stored = (hu - intercept) / slope
        ds.PixelData = np.rint(stored).astype("<i2" if signed else "<u2").tobytes()
        ds.PixelRepresentation = int(signed)
        ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
    assert look(stack.write(tmp_path / "again"))[0] == plain


# ---------------------------------------------------------------- slices less, slices twice


@pytest.mark.parametrize("gone", [1, 5, 10])
def test_without_an_inner_slice_the_others_stay(gone, files, look, tmp_path) -> None:
    _, [(whole, truth)] = look(files[0].parent)
    files[gone].unlink()
    seen, [(meta, hu)] = look(files[0].parent)
    assert seen.reasons == (("ok", 11),)
    assert seen.flags == (("missing_slices",),)
    assert meta.original.geometry == "missing_slices"
    assert meta.affine == whole.affine
    rest = [k for k in range(12) if k != gone]
    np.testing.assert_array_equal(hu[rest], truth[rest])
    between = (truth[gone - 1].astype(np.float64) + truth[gone + 1]) / 2
    assert np.abs(hu[gone] - between).max() <= 0.5


@pytest.mark.parametrize("gone", [0, 11])
def test_without_an_end_slice_the_volume_is_shorter(gone, files, look) -> None:
    _, [(whole, truth)] = look(files[0].parent)
    files[gone].unlink()
    seen, [(meta, hu)] = look(files[0].parent)
    assert (seen.reasons, seen.flags) == ((("ok", 11),), ((),))
    np.testing.assert_array_equal(hu, np.delete(truth, gone, axis=0))
    moved = np.array(whole.affine)
    moved[2, 3] += 2.0 * (gone == 0)
    np.testing.assert_array_equal(meta.affine, moved)


def test_a_copy_is_dropped_and_said(files, plain, look) -> None:
    shutil.copy(files[4], files[4].with_name("copy.dcm"))
    seen, _ = look(files[0].parent)
    assert seen.reasons == (("duplicate_file", 1), ("ok", 12))
    assert (seen.content, seen.keys) == (plain.content, plain.keys)


def test_the_same_pixels_under_another_uid_are_dropped_and_flagged(files, plain, look) -> None:
    ds = pydicom.dcmread(files[4])
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    ds.save_as(files[4].with_name("copy.dcm"))
    seen, _ = look(files[0].parent)
    assert seen.reasons == (("ok", 13),)
    assert seen.flags == (("duplicates_dropped",),)
    assert seen.content == plain.content


@pytest.mark.parametrize("same_uid", [True, False])
def test_other_pixels_at_the_same_place_are_refused(same_uid, files, look) -> None:
    ds = pydicom.dcmread(files[4])
    ds.PixelData = pydicom.dcmread(files[5]).PixelData
    if not same_uid:
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    ds.save_as(files[4].with_name("other.dcm"))
    seen, _ = look(files[0].parent)
    assert seen.reasons == (("duplicate_positions", 13),)
