"""Positions that repeat: phases of a scan in time, or copies of the same images.

Several scans of one place in one series are told apart by the first tag that sorts them into parts
with every position once. Copies sent again may differ in such tags too, so the images of one
position are decoded and compared before parts count as phases.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from ingest.dicom import decode_file
from ingest.errors import SeriesError
from ingest.headers import PHASE_TAGS, Header
from ingest.sources import read_files


def split_phases(members: Sequence[Header], slice_of: Sequence[int]) -> list[list[Header]]:
    """Parts that hold every position exactly once, in the order of the tag that sorts them.

    Tags are tried in the order of ``PHASE_TAGS``, then blocks of consecutive InstanceNumbers.

    Args:
        members: slices of one orientation.
        slice_of: slice number of each, from 0 without a gap.

    Returns:
        One part with all of them where nothing sorts them.
    """
    n_slices = max(slice_of) + 1
    n_parts, rest = divmod(len(members), n_slices)
    if rest or n_parts < 2:
        return [list(members)]
    numbered = list(zip(members, slice_of, strict=True))
    for tag in range(len(PHASE_TAGS)):
        labels = sorted({header.phase[tag] for header in members}, key=_in_time)
        if not all(labels):
            continue  # what only some files state sorts nothing
        parts = [[pair for pair in numbered if pair[0].phase[tag] == label] for label in labels]
        if len(parts) == n_parts and _all_whole(parts, n_slices):
            return [_spatial(part) for part in parts]
    numbered.sort(key=lambda pair: (pair[0].instance, pair[0].frame))
    blocks = [numbered[start : start + n_slices] for start in range(0, len(numbered), n_slices)]
    if _distinct_instances(members) and _all_whole(blocks, n_slices):
        return [_spatial(block) for block in blocks]
    return [list(members)]


def drop_copied_phases(parts: Sequence[list[Header]], sample: int) -> list[list[Header]]:
    """Join the parts whose images at position ``sample`` are the same: those are copies.

    That the other positions are copies too is checked where all pixels are read.
    """
    if len(parts) < 2:
        return list(parts)
    joined: dict[str, list[Header]] = {}
    digests = _image_digests([part[sample] for part in parts])
    for number, (part, digest) in enumerate(zip(parts, digests, strict=True)):
        joined.setdefault(digest or f"unlike the others: {number}", []).extend(part)
    return list(joined.values())


def copies_differ(members: Sequence[Header], slice_of: Sequence[int]) -> bool:
    """Whether the images at the first repeated position are different ones."""
    repeated = min(number for number, count in Counter(slice_of).items() if count > 1)
    same = [header for header, k in zip(members, slice_of, strict=True) if k == repeated]
    return len({digest for digest in _image_digests(same) if digest}) > 1


def _all_whole(parts: Sequence[Sequence[tuple[Header, int]]], n_slices: int) -> bool:
    return all(sorted(k for _, k in part) == list(range(n_slices)) for part in parts)


def _distinct_instances(members: Sequence[Header]) -> bool:
    return len({(header.instance, header.frame) for header in members}) == len(members)


def _spatial(part: Sequence[tuple[Header, int]]) -> list[Header]:
    return [header for header, _ in sorted(part, key=lambda pair: pair[1])]


def _in_time(label: str) -> tuple[bool, float, str]:
    """Numbers and times of day in their order, then text."""
    try:
        return False, float(label), label
    except ValueError:
        return True, 0.0, label


def _image_digests(headers: Sequence[Header]) -> list[str]:
    """sha256 of each image in HU; empty for one that is blank or cannot be decoded."""
    return [_image_digest(header) for header in headers]


def _image_digest(header: Header) -> str:
    shape = (header.rows, header.columns)
    try:
        [(_, data)] = read_files([header.ref])
        [(hu, _)] = decode_file(data, (header.frame,), shape, set())
    except SeriesError:
        return ""
    return "" if hu.min() == hu.max() else hashlib.sha256(hu.tobytes()).hexdigest()
