"""A label volume as it is stored with a sample, and everything that must be true of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from shards.codec import LabelArray, decode_labels
from shards.digest import label_sha256
from shards.errors import CorruptShardError
from shards.schema import (
    CODE_PATTERNS,
    LABEL_META_SUFFIX,
    LABEL_NAME_PATTERN,
    MAX_LABEL_VALUES,
    LabelMeta,
    LabelValue,
    SampleMeta,
    load_json,
)

LABEL_SOURCE_KINDS = ("nifti", "dicom_seg")


@dataclass(frozen=True, kw_only=True)
class LabelVolume:
    """Labels on the grid of their sample; 0 is background."""

    meta: LabelMeta
    values: LabelArray

    @property
    def names(self) -> dict[int, str]:
        """What each value stands for: its name, else ``SCHEME:CODE``, else ``""``."""
        return {
            one.value: one.name or (f"{one.scheme}:{one.code}" if one.code else "")
            for one in self.meta.labels
        }


def parse_label(members: Sequence[bytes], shape_zyx: tuple[int, ...]) -> LabelVolume:
    """A label volume from its three members: record, array metadata, zshard.

    Raises:
        CorruptShardError: they are not as written, or not on a grid of ``shape_zyx``.
    """
    record, zarr_json, zshard = members
    meta = load_json(record, LabelMeta, LABEL_META_SUFFIX)
    values = decode_labels(zarr_json, zshard)
    if values.shape != shape_zyx:
        raise CorruptShardError(f"labels of shape {values.shape}, the volume's is {shape_zyx}")
    return LabelVolume(meta=meta, values=values)


def is_public_code(code: str, scheme: str) -> bool:
    """Whether a code has the form of one of the public schemes, which no free text has."""
    pattern = CODE_PATTERNS.get(scheme)
    return pattern is not None and re.fullmatch(pattern, code) is not None


def count_values(values: LabelArray) -> Int64[ndarray, " n"]:
    """Voxels of each value from 0 to the largest that the type holds."""
    counts: Int64[ndarray, " n"] = np.bincount(
        values.ravel(), minlength=int(np.iinfo(values.dtype).max) + 1
    )
    return counts


def label_problems(label: LabelVolume, sample: SampleMeta) -> Iterator[str]:
    """Where a label volume, its record and its sample disagree."""
    meta, values = label.meta, label.values
    if meta.key != sample.key:
        yield f"its record is that of {meta.key}"
    if meta.source_kind not in LABEL_SOURCE_KINDS:
        yield f"source_kind {meta.source_kind!r} is none of {', '.join(LABEL_SOURCE_KINDS)}"
    if values.shape != tuple(sample.shape_zyx):
        yield f"shape {values.shape}, but the volume's is {sample.shape_zyx}"
    if label_sha256(values, np.array(sample.affine, np.float64)) != meta.content_sha256:
        yield "values and affine are not those of its content_sha256"
    listed = [one.value for one in meta.labels]
    if listed != sorted(set(listed)) or len(listed) > MAX_LABEL_VALUES or 0 in listed:
        yield f"its values are not in order, or more than {MAX_LABEL_VALUES}"
    counts = count_values(values)
    said = {one.value: one.voxels for one in meta.labels if one.voxels}
    found = {int(value): int(counts[value]) for value in np.flatnonzero(counts) if value}
    if said != found:
        yield "its voxels are not those that its record counts"
    for one in meta.labels:
        yield from _value_problems(one)


def _value_problems(one: LabelValue) -> Iterator[str]:
    if not LABEL_NAME_PATTERN.fullmatch(one.name):
        yield f"the name of value {one.value} is not {LABEL_NAME_PATTERN.pattern}"
    if (one.code or one.scheme) and not is_public_code(one.code, one.scheme):
        yield f"the code of value {one.value} is not one of a public scheme"
