"""The committed verdict on every real file, held against ingest as it is and against a hand's."""

import json
import runpy
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from ingest.words import SENTENCES

HERE = Path(__file__).parent
MAKER = runpy.run_path(str(HERE / "make_golden_table.py"))
COMMITTED = json.loads(MAKER["TABLE"].read_text())
LIDC_MEMBERS = 133
"""Counted once by hand: unpacking the bzip2 takes seconds."""


def behind(row: dict) -> str:
    """The verdict behind `too_few_slices`, empty for other rows."""
    return row.get("at_min_slices_2", {}).get("reason", "")


def test_every_verdict_is_the_one_written_by_hand() -> None:
    reasons = MAKER["read_reasons"]()
    used = Counter()
    for row in COMMITTED:
        why = MAKER["expectation"](row, reasons)
        used[why["pattern"]] += 1
        assert (row["reason"], behind(row)) == (why["reason"], why["at_min_slices_2"]), row["first"]
        assert why["why"]
    assert {why["pattern"] for why in reasons} == set(used)
    assert {row["reason"] for row in COMMITTED} <= set(SENTENCES)


def test_an_accepted_row_says_all() -> None:
    accepted = [row for row in COMMITTED if row["reason"] == "ok"]
    assert len(accepted) >= 8
    for row in accepted:
        assert set(row) >= {"shape_zyx", "affine", "hu", "flags", "geometry", "content_sha256"}
        assert row["hu"]["min"] < row["hu"]["p50"] < row["hu"]["max"]
    assert len({row["content_sha256"] for row in accepted}) == len(accepted)


def test_the_page_is_that_of_the_table() -> None:
    assert MAKER["as_json"](COMMITTED) == MAKER["TABLE"].read_text()
    assert MAKER["as_page"](COMMITTED, MAKER["read_reasons"]()) == MAKER["PAGE"].read_text()


def files_in(path: Path) -> int:
    """Files in an archive, or one, counted without the code under test."""
    if path.suffix == ".bz2":
        return LIDC_MEMBERS
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            return sum(member.isfile() for member in archive)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return sum(not info.is_dir() for info in archive.infolist())
    return 1


def test_every_file_of_the_manifest_is_there_once(ct_data: Path) -> None:
    lines = (ct_data / "MANIFEST.tsv").read_text().splitlines()[1:]
    paths = {line.split("\t")[2] for line in lines} | {"MANIFEST.tsv", "README.md"}
    assert len(paths) == len(lines) + 2 > 250
    counts: Counter[str] = Counter()
    for row in COMMITTED:
        counts.update(row["files"])
        assert sum(row["files"].values()) == row["n_files"]
    assert counts == {path: files_in(ct_data / path) for path in paths}


@pytest.fixture(scope="module")
def made(ct_data: Path) -> list[dict]:
    return json.loads(MAKER["as_json"](MAKER["make_table"](ct_data)))


def test_ingest_still_says_what_is_committed(made) -> None:
    """`make golden-table` writes it anew; look at the difference before it is committed."""
    assert [row["first"] for row in made] == [row["first"] for row in COMMITTED]
    changed = {
        row["first"]: {
            name: (old.get(name), row.get(name))
            for name in {*old, *row}
            if old.get(name) != row.get(name)
        }
        for old, row in zip(COMMITTED, made, strict=True)
        if old != row
    }
    assert changed == {}
