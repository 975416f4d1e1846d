"""Kernel names: an allow-list by vendor, and a class."""

import pytest

from ingest.kernels import kernel_class, kernel_of
from ingest.private import KVP_RANGE, bounded, modality_of
from ingest.scan import scan


@pytest.mark.parametrize(
    ("stated", "name", "flags"),
    [
        ("STANDARD", "STANDARD", ("kernel_soft",)),
        ("Std+", "STD+", ("kernel_soft",)),
        ("HD LUNG", "HD LUNG", ("kernel_sharp",)),
        ("DETAIL", "DETAIL", ()),
        ("B10f", "B10f", ("kernel_soft",)),
        ("B49s", "B49s", ("kernel_soft",)),
        ("B50s", "B50s", ("kernel_sharp",)),
        ("Br38f/3", "Br38f/3", ("kernel_soft",)),
        ("Bl57d/2", "Bl57d/2", ("kernel_sharp",)),
        ("T20s", "T20s", ()),
        ("UB", "UB", ("kernel_soft",)),
        ("YA", "YA", ("kernel_sharp",)),
        ("FC08-H", "FC08-H", ("kernel_soft",)),
        ("FC51", "FC51", ("kernel_sharp",)),
        ("FC62", "FC62", ()),
        ("B_VSHARP_C", "B_VSHARP_C", ("kernel_sharp",)),
        ("", "", ()),
        # Everything else is dropped, whatever it looks like.
        ("Mustermann", "", ("kernel_unknown",)),
        ("ANNA", "", ("kernel_unknown",)),
        ("19550317", "", ("kernel_unknown",)),
        ("042", "", ("kernel_unknown",)),
        ("B30f Mustermann", "", ("kernel_unknown",)),
        ("B30f/Meier", "", ("kernel_unknown",)),
        ("59 .10.AB50", "", ("kernel_unknown",)),
        ("b30f", "", ("kernel_unknown",)),
    ],
)
def test_a_name_is_kept_if_a_vendor_gives_it(stated, name, flags):
    assert kernel_of([stated, stated]) == (name, flags)


def test_slices_of_several_kernels_have_none():
    assert kernel_of(["B30f", "B70f"]) == ("", ("kernel_unknown",))
    assert kernel_of(["B30f", ""]) == ("", ("kernel_unknown",))


def test_what_is_stored_is_in_the_list_again():
    for text in ("Std+", "HD Bone", "Br38f/3", "FC21", "UB"):
        name, flag = kernel_class(text)
        assert kernel_class(name) == (name, flag)


def test_real_kernels_are_kept(ct_data, id_key):
    folders = ("lidc-idri", "totalsegmentator", "dcm_qa_ct", "acrin-flt-breast-013")
    found = scan([str(ct_data / name) for name in folders], id_key)
    kernels = {row.kernel: row.flags for row in found.series if row.reason == "ok"}
    assert kernels.keys() == {"STANDARD", "Br38f/3", "STD+", "UB", "B10f", ""}  # "": NIfTI
    assert all("kernel_soft" in flags for kernel, flags in kernels.items() if kernel)


def test_codes_and_numbers_are_bounded(noise_stack, tmp_path, id_key, only):
    assert modality_of("CT") == "CT"
    assert modality_of("ANNA") == ""
    assert [bounded(v, KVP_RANGE) for v in (None, 0.0, 120.0, 19550317.0)] == [
        None,
        None,
        120,
        None,
    ]
    stack = noise_stack().set(KVP="19550317", SliceThickness="19550317")
    row = only(scan([str(stack.write(tmp_path / "s"))], id_key))
    assert (row.kvp, row.slice_mm) == (None, 2.0)
