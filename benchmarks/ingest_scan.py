"""Header scan: files a second on one core, against pydicom and GDCM on the same files.

Every method reads every file in each round, in turn, with warm caches; CPU seconds count, best of
the rounds. `headers` is one file to one header: ours, pydicom's (`dcmread`, which converts no value
yet), pydicom's to the very same header, and gdcm.Scanner on the same tags. `scan` is the whole
of `ingest scan`, from the folder to verdicts on series, against the loop that it replaces: walk,
`dcmread`, look up the series.

    python -m benchmarks.ingest_scan [--raw FOLDER] [--rounds 5] [--out FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gdcm
import pydicom

from ingest import headers
from ingest.headers import Header, looks_like_dicom, quiet_pydicom, read_header
from ingest.ids import IdKey
from ingest.scan import scan
from ingest.sources import FileRef, OpenFile, walk

MIN_SERIES_FILES = 10
"""Files of shorter series are left out: the oddities of a test folder are no archive."""
KEY = IdKey(key=b"a key for benchmarks alone, 32 b.")
TAGS = headers._TAGS
TARGETS = {"headers: pydicom": 3.0, "headers: gdcm.Scanner": 1.0}
"""Least speed, as a multiple; below it the exit code is 1."""
SYNTHETIC_SLICES = 200


def main() -> int:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--raw", default=default_data(), help="folder or archive of real CT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--synthetic", type=int, default=100_000, help="headers to group")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, quiet_pydicom():
        files = unpack(args.raw, Path(folder))
        print(f"{len(files)} files of real CT, {args.rounds} rounds, CPU seconds, one core")
        seconds = measure(methods(files, folder), args.rounds)
    result = report(seconds, len(files)) | grouping(args.synthetic)
    line = json.dumps(result)
    print(line)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(line + "\n")
    return int(any(result["ours_over"][name] < least for name, least in TARGETS.items()))


def default_data() -> str:
    """The folder of real CT that the tests use."""
    beside = Path(__file__).parents[1].parent / "shared/data/ct"
    return os.environ.get("CORALBAY_CT_DATA", str(beside))


def unpack(raw: str, folder: Path) -> list[str]:
    """Every DICOM file of the volumes under ``raw`` as a file of its own, a folder a series."""
    series: dict[str, list[bytes]] = {}
    for item in walk([raw]):
        if isinstance(item, OpenFile):
            data = item.stream.read()
            header = header_of(data) if looks_like_dicom(data[:540]) else None
            if header is not None and header.rows:
                series.setdefault(f"{header.study} {header.series}", []).append(data)
    paths = []
    for number, files in enumerate(series.values()):
        if len(files) < MIN_SERIES_FILES:
            continue
        (folder / f"{number:04d}").mkdir()
        for k, data in enumerate(files):
            path = folder / f"{number:04d}" / f"{k:06d}.dcm"
            path.write_bytes(data)
            paths.append(str(path))
    if not paths:
        sys.exit(f"{raw}: no CT series there; give --raw a folder of CT")
    return paths


def header_of(data: bytes) -> Header | None:
    """The header of a file's bytes, if they are in order."""
    try:
        return read_header(FileRef(path=""), io.BytesIO(data), len(data))
    except Exception:  # test folders hold files that are damaged on purpose
        return None


def methods(files: Sequence[str], folder: str) -> dict[str, Callable[[], object]]:
    """What is compared, by name."""
    tags = list(TAGS)
    gdcm_tags = [gdcm.Tag(tag >> 16, tag & 0xFFFF) for tag in headers._WANTED.keywords]

    def ours() -> list[Header | None]:
        return [read(path) for path in files]

    def pydicom_to_headers() -> list[Header | None]:
        with patch.object(headers, "read_front", lambda *_: None):
            return ours()

    def pydicom_alone() -> list[Any]:
        return [load(path, tags) for path in files]

    def gdcm_scanner() -> bool:
        scanner = gdcm.Scanner()
        for tag in gdcm_tags:
            scanner.AddTag(tag)
        return bool(scanner.Scan(list(files)))

    def whole_scan() -> int:
        return scan([folder], KEY).n_files

    def loop() -> int:
        series: dict[tuple[str, str], list[str]] = {}
        for at, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(at, name)
                if (ds := load(path, tags)) is not None:
                    key = (str(ds.get("StudyInstanceUID")), str(ds.get("SeriesInstanceUID")))
                    series.setdefault(key, []).append(path)
        return len(series)

    return {
        "headers: ours": ours,
        "headers: pydicom": pydicom_alone,
        "headers: pydicom to the same header": pydicom_to_headers,
        "headers: gdcm.Scanner": gdcm_scanner,
        "scan: ours": whole_scan,
        "scan: pydicom loop": loop,
    }


def read(path: str) -> Header | None:
    """A header as the scan reads it."""
    with open(path, "rb") as file:
        try:
            return read_header(FileRef(path=path), file, os.fstat(file.fileno()).st_size)
        except Exception:  # damaged on purpose, or too odd for every reader
            return None


def load(path: str, tags: list[str]) -> Any:
    """A header as pydicom reads it."""
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
    except Exception:  # as above
        return None


def measure(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each run in each round, after one that warms the caches."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - started)
    return seconds


def report(seconds: dict[str, list[float]], n_files: int) -> dict[str, Any]:
    """Rates of the best round, and ratios round by round (median)."""
    rates = {name: n_files / min(times) for name, times in seconds.items()}
    for name, rate in rates.items():
        print(f"  {name:<38} {rate:>8.0f} files/s")
    ratios = {}
    for other in list(seconds):
        kind = other.split(":")[0]
        if not other.endswith(": ours"):
            own = seconds[f"{kind}: ours"]
            pairs = sorted(b / a for a, b in zip(own, seconds[other], strict=True))
            ratios[other] = pairs[len(pairs) // 2]
            print(f"  ours is {ratios[other]:.2f} x {other} (median of rounds)")
    return {
        "files": n_files,
        "files_per_s": {name: round(rate) for name, rate in rates.items()},
        "ours_over": {name: round(ratio, 2) for name, ratio in ratios.items()},
    }


def grouping(n_headers: int) -> dict[str, Any]:
    """Seconds and memory to group many headers, of computed series of 200 slices."""
    from ingest.group import group_series

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = [computed(number) for number in range(n_headers)]
    started = time.process_time()
    rows = group_series(made, [], KEY, min_slices=10)
    taken = time.process_time() - started
    mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"  grouping {n_headers} headers into {len(rows)} series: {taken:.2f} s, {mib:.0f} MiB")
    return {"grouped": n_headers, "grouping_s": round(taken, 2), "grouping_mib": round(mib)}


def computed(number: int) -> Header:
    """Header of one slice of a regular series."""
    series, k = divmod(number, SYNTHETIC_SLICES)
    return Header(
        ref=FileRef(path=f"/archive/patient-{series:08d}/series/{k:06d}.dcm", size=526_000),
        sop_instance=f"1.2.826.0.1.3680043.8.498.{series:030d}.{k:06d}",
        series=_same(f"1.2.826.0.1.3680043.8.498.{series:036d}"),
        study=_same(f"1.2.826.0.1.3680043.8.499.{series:036d}"),
        series_hint="",
        patient=_same(f"patient {series}"),
        issuer="",
        sop_class="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax="1.2.840.10008.1.2.1",
        modality="CT",
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
        scan_options="HELICAL",
        burned_in="",
        frames=1,
        instance=k + 1,
        samples=1,
        photometric="MONOCHROME2",
        rows=512,
        columns=512,
        pixel_spacing=(0.7, 0.7),
        position=(-170.0, -170.0, 2.5 * k),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        phase=("",) * len(headers.PHASE_TAGS),
        rescaled=True,
        kernel="STANDARD",
        contrast_agent="",
        kvp=120.0,
        slice_thickness=2.5,
        pixel_bytes_missing=0,
    )


_same = sys.intern


if __name__ == "__main__":
    sys.exit(main())
