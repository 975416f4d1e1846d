"""Makes the golden table of the real CT files: ``make golden-table``.

The table says, for every file of the data folder, what ingest makes of it: the verdict of headers
and pixels at native spacing, without resampling and cropping. ``golden_why.tsv`` beside it is
written by hand: which verdict each file must get, and why. A new table never changes that.
"""

from __future__ import annotations

import csv
import fnmatch
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from ingest.dicom import decode_file
from ingest.errors import Reason, SeriesError
from ingest.geometry import orientation_code
from ingest.headers import quiet_pydicom
from ingest.ids import IdKey
from ingest.intensity import check_hu, fill_low, hu_stats, to_stored
from ingest.prepare import to_spl
from ingest.reader import read_series
from ingest.scan import ScanConfig, scan
from ingest.series import Series
from ingest.sources import FileRef, read_files
from shards.digest import content_sha256

HERE = Path(__file__).parent
TABLE, PAGE, WHY = HERE / "golden_table.json", HERE / "golden_table.md", HERE / "golden_why.tsv"
KEY = IdKey(key=bytes(range(32)))
FEW = ScanConfig(min_slices=2)
"""Series refused for being short are looked at once more with this."""

Row = dict[str, Any]


def make_table(data: Path) -> list[Row]:
    """One row for each series or stray file under ``data``, in the order of their first files."""
    found = scan([str(data)], KEY).series
    again = _rescanned(found)
    rows = []
    for series in found:
        row = describe(series, data)
        if series.reason is Reason.TOO_FEW_SLICES:
            parts = [_short(part) for part in again if _files(part) <= _files(series)]
            row["at_min_slices_2"] = parts[0] if len(parts) == 1 else _phases(parts)
        rows.append(row)
    return sorted(rows, key=lambda row: (row["first"], row["reason"]))


def describe(series: Series, data: Path) -> Row:
    """What ingest makes of one series."""
    paths = Counter(str(Path(ref.path).relative_to(data)) for ref in set(series.refs))
    row: Row = {
        "first": min(_name(ref, data) for ref in series.refs),
        "files": dict(sorted(paths.items())),
        "n_files": series.n_files,
        "kind": series.source_kind,
        "n_slices": series.n_slices,
        "geometry": series.geometry,
    }
    return row | _verdict(series)


def _verdict(series: Series) -> Row:
    """Reason and detail, and of an accepted series its grid and HU."""
    row: Row = {"reason": str(series.reason), "detail": series.detail}
    if series.reason is not Reason.OK:
        return row
    try:
        return row | _pixels(series)
    except SeriesError as exc:
        return row | {"reason": str(exc.reason), "detail": exc.detail}


def _pixels(series: Series) -> Row:
    """The volume as it is stored before any resampling: turned, filled, rounded, clipped."""
    volume = read_series(series)
    found = check_hu(volume.hu, volume.padding_fraction)
    hu, affine = to_spl(volume.hu, volume.affine)
    stored, clipped = to_stored(fill_low(hu))
    stats = hu_stats(stored, clipped)
    return {
        "flags": sorted({*series.flags, *volume.flags, *found}),
        "orientation": orientation_code(volume.affine),
        "shape_zyx": list(stored.shape),
        "affine": np.round(affine[:3], 4).tolist(),
        "hu": {name: getattr(stats, name) for name in ("min", "p01", "p50", "p99", "max")}
        | {"mean": round(stats.mean, 2), "clipped": round(stats.clipped_fraction, 6)},
        "padding": round(volume.padding_fraction, 6),
        # Rounded, so that the last bit of an affine does not count.
        "content_sha256": content_sha256(stored, np.round(affine, 4)),
    }


def _rescanned(found: Sequence[Series]) -> list[Series]:
    """Short series judged as if two slices were enough; one may come apart into phases."""
    short = [series for series in found if series.reason is Reason.TOO_FEW_SLICES]
    paths = sorted({ref.path for series in short for ref in series.refs})
    wanted = frozenset().union(*map(_files, short))
    again = [series for series in scan(paths, KEY, FEW).series if _files(series) <= wanted]
    return sorted(again, key=lambda series: sorted(_files(series)))


def _files(series: Series) -> frozenset[tuple[str, int]]:
    return frozenset((ref.path, ref.index) for ref in series.refs)


def _phases(parts: Sequence[Row]) -> Row:
    """What all phases of a short series share, and each of them."""
    [reason] = {part["reason"] for part in parts}
    return {"reason": reason, "phases": list(parts)}


def _short(series: Series) -> Row:
    """The verdict on a short series; of single slices, what each decodes to."""
    if series.reason is not Reason.TOO_FEW_SLICES:
        return _verdict(series)
    places = zip(series.refs, series.frame_of_ref, strict=True)
    return {"reason": str(series.reason), "slices": [_slice(*place, series) for place in places]}


def _slice(ref: FileRef, frame: int, series: Series) -> str:
    """Smallest, mean and greatest HU of one slice, or why it cannot be decoded."""
    assert series.shape_zyx is not None
    with quiet_pydicom():
        [(_, data)] = read_files([ref])
        try:
            [(hu, _)] = decode_file(data, (frame,), series.shape_zyx[1:], set())
        except SeriesError as exc:
            return f"{Path(ref.path).name}: {exc.reason}: {exc.detail}"
    return f"{Path(ref.path).name}: {_number(hu.min())} {_number(hu.mean())} {_number(hu.max())}"


def _number(value: ndarray | float) -> str:
    return f"{float(value):.2f}".removesuffix(".00")


def _name(ref: FileRef, data: Path) -> str:
    path = Path(ref.path).relative_to(data).as_posix()
    return path if ref.member is None else f"{path}!{ref.member}"


# ---------------------------------------------------------------- as text


def as_json(rows: Sequence[Row]) -> str:
    """One line a fact, so that a diff shows what changed."""
    blocks = []
    for row in rows:
        facts = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in row.items()]
        blocks.append(" {\n" + ",\n".join(facts) + "\n }")
    return "[\n" + ",\n".join(blocks) + "\n]\n"


def as_page(rows: Sequence[Row], reasons: Sequence[dict[str, str]]) -> str:
    """The table for people: verdict, grid, HU and the reason written by hand."""
    lines = [
        "# Golden table",
        "",
        "What ingest makes of every file in the folder of real CT, at native spacing. Written by",
        "`make golden-table` from `golden_table.json` (all facts) and `golden_why.tsv` (by hand).",
        "A star: `too_few_slices` by default; what follows is said with `--min-slices 2`.",
        "",
        "| files | n | verdict | grid (z, y, x) | mm | HU min, median, max | why |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_page_row(row, expectation(row, reasons)) for row in rows]
    return "\n".join(lines) + "\n"


def _page_row(row: Row, why: dict[str, str]) -> str:
    shown, verdict = row, row["reason"]
    if "at_min_slices_2" in row:
        shown = row["at_min_slices_2"]
        verdict = f"{verdict} * {shown['reason']}"
    verdict += "".join(f", {flag}" for flag in shown.get("flags", ()))
    grid = spacing = values = ""
    if "hu" in shown:
        steps = np.linalg.norm(np.array(shown["affine"])[:, :3], axis=0)
        grid = " x ".join(map(str, shown["shape_zyx"]))
        spacing = " ".join(f"{mm:.3f}" for mm in steps)
        values = f"{shown['hu']['min']}, {shown['hu']['p50']:.0f}, {shown['hu']['max']}"
    first = row["first"].replace("|", "/")
    return (
        f"| {first} | {row['n_files']} | {verdict} | {grid} | {spacing} | {values} | {why['why']} |"
    )


def read_reasons() -> list[dict[str, str]]:
    """Rows of ``golden_why.tsv``: pattern, reason, reason with two slices, why."""
    with WHY.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def expectation(row: Row, reasons: Sequence[dict[str, str]]) -> dict[str, str]:
    """The one row of ``golden_why.tsv`` that speaks of this series."""
    found = [why for why in reasons if fnmatch.fnmatchcase(row["first"], why["pattern"])]
    if len(found) != 1:
        raise ValueError(f"{row['first']}: {len(found)} rows of {WHY.name}, not one")
    return found[0]


def main(data: Path) -> None:
    """Write both files."""
    rows = make_table(data)
    TABLE.write_text(as_json(rows))
    PAGE.write_text(as_page(rows, read_reasons()))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
