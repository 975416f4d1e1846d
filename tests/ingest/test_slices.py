"""A slice that decoded to garbage does not pass, and no real series is refused for it."""

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLossless, JPEGLosslessSV1

from ingest.errors import Reason, SeriesError
from ingest.reader import read_series
from ingest.scan import ScanConfig, scan
from ingest.slices import check_slices


@pytest.fixture(scope="session")
def chest(ct_data, id_key, only) -> np.ndarray:
    """40 slices of a real torso, every second row and column."""
    return read_series(only(scan([str(ct_data / "acrin-flt-breast-013")], id_key))).hu[:, ::2, ::2]


def reason_of(hu: np.ndarray) -> Reason:
    try:
        check_slices(hu)
    except SeriesError as exc:
        return exc.reason
    return Reason.OK


def swapped(plane: np.ndarray) -> np.ndarray:
    return (plane + 1024).astype(np.uint16).byteswap().astype(np.float32) - 1024


DAMAGE = [
    ("byte order", swapped, Reason.IMPLAUSIBLE_HU),
    ("sign lost", lambda p: np.where(p < 0, p + 65536, p), Reason.IMPLAUSIBLE_HU),
    ("zero HU", lambda p: p * 0, Reason.BLANK),
    ("all air", lambda p: p * 0 - 1024, Reason.BLANK),
    ("upside down", lambda p: p[::-1], Reason.INCONSISTENT_SLICE),
    ("intercept twice", lambda p: np.maximum(p - 1024, -1024), Reason.INCONSISTENT_SLICE),
    ("intercept lost", lambda p: p + 1024, Reason.INCONSISTENT_SLICE),
    ("half of it", lambda p: np.where(np.arange(256)[:, None] < 120, p, -1024),
     Reason.INCONSISTENT_SLICE),
    ("scrambled", lambda p: np.random.default_rng(0).permutation(p.ravel()).reshape(p.shape),
     Reason.INCONSISTENT_SLICE),
]  # fmt: skip


@pytest.mark.parametrize("at", [1, 24])
@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGE, ids=[d[0] for d in DAMAGE])
def test_one_damaged_slice(name, damage, reason, at, chest) -> None:
    hu = chest.copy()
    hu[at] = damage(hu[at])
    assert reason_of(hu) is reason


@pytest.mark.parametrize("at", [0, 48])
def test_a_damaged_end(at: int, chest) -> None:
    hu = chest.copy()
    hu[at] = hu[at][::-1]
    assert reason_of(hu) is Reason.INCONSISTENT_SLICE


def test_air_beyond_the_ends_is_fine() -> None:
    """Slices beyond a head hold clipped air, and the head begins slowly."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    z = np.linspace(-1.4, 1.4, 29)[:, None, None]
    head = np.where(x**2 + y**2 + z**2 < 1, 40.0, -1024.0).astype(np.float32)
    assert head[3].max() == -1024 < head[5].max()
    assert reason_of(head) is Reason.OK


def test_blank_ends_that_are_no_air(chest) -> None:
    hu = chest.copy()
    hu[-1] = 0
    assert reason_of(hu) is Reason.BLANK


def test_reformats_and_a_wrist_pass(ct_data, id_key) -> None:
    sources = [str(ct_data / "acrin-flt-breast-013"), str(ct_data / "rse-panimg")]
    found = scan(sources, id_key, ScanConfig(min_slices=6))
    taken = [row for row in found.series if row.reason is Reason.OK]
    assert sorted(row.n_slices for row in taken) == [6, 6, 7, 49]
    for row in taken:
        read_series(row)


def test_a_stream_in_the_wrong_byte_order_is_refused(noise_stack, tmp_path, id_key, only) -> None:
    """As in a known lossless JPEG whose pixels were swapped before it was compressed."""
    from imagecodecs import jpeg8_encode

    stack = noise_stack(side=64)
    ds = stack.slices[5]
    wrong = jpeg8_encode(ds.pixel_array.byteswap(), lossless=True, bitspersample=16)
    ds.file_meta.TransferSyntaxUID = JPEGLossless
    ds.PixelData = encapsulate([wrong])
    ds["PixelData"].is_undefined_length = True
    series = only(scan([str(stack.write(tmp_path / "s"))], id_key))
    with pytest.raises(SeriesError) as caught:
        read_series(series)
    assert caught.value.reason is Reason.IMPLAUSIBLE_HU
    right = jpeg8_encode(noise_stack(side=64).slices[5].pixel_array, lossless=True,
                         bitspersample=16)  # fmt: skip
    ds.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    ds.PixelData = encapsulate([right])
    ds["PixelData"].is_undefined_length = True
    read_series(only(scan([str(stack.write(tmp_path / "s"))], id_key)))
