"""Checks of one stored array, volume or labels: order of chunks, padding, absent chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int32, Int64, Integer
from numpy import ndarray

from shards.codec import (
    LABEL_KINDS,
    ArrayHead,
    any_in_chunk,
    chunk_grid,
    decode_padded,
    index_nbytes,
    morton_order,
    parse_zarr_metadata,
    read_chunk_index,
)
from shards.errors import ShardError
from shards.labels import LabelVolume, label_problems
from shards.schema import LABEL_META_SUFFIX, LabelMeta, SampleMeta, dump_json, load_json


def order_problems(
    offsets: Int64[ndarray, " n"],
    nbytes: Int32[ndarray, " n"],
    order: Int64[ndarray, " n"],
    zshard_nbytes: int,
) -> Iterator[str]:
    """Chunks lie one after the other in Morton order, from the index to the end."""
    stored = order[nbytes[order] > 0]
    ends = index_nbytes(len(order)) + np.cumsum(nbytes[stored], dtype=np.int64)
    end = ends[-1] if len(ends) else index_nbytes(len(order))
    if not np.array_equal(offsets[stored] + nbytes[stored], ends) or end != zshard_nbytes:
        yield "its chunks do not follow each other in Morton order"


def fill_problems(
    padded: Integer[ndarray, "z y x"], head: ArrayHead, nbytes: Int32[ndarray, " n"]
) -> Iterator[str]:
    """What lies outside the volume is fill, and a chunk that is all fill is absent."""
    fill, side = head.kind.fill, head.profile.chunk_side
    written = padded != fill
    inside = written[tuple(slice(n) for n in head.shape_zyx)]
    if np.count_nonzero(written) != np.count_nonzero(inside):
        yield f"a voxel outside the volume is not {fill}"
    if not np.array_equal(any_in_chunk(written, side), nbytes > 0):
        yield f"a chunk that is all {fill} is stored"


def stored_label_problems(members: Sequence[bytes], sample: SampleMeta) -> Iterator[str]:
    """What is wrong with a sample's label members: record, metadata and zshard."""
    record, zarr_json, zshard = members
    try:
        meta = load_json(record, LabelMeta, LABEL_META_SUFFIX)
        head = parse_zarr_metadata(zarr_json, LABEL_KINDS)
        padded = decode_padded(zarr_json, zshard, LABEL_KINDS)
    except ShardError as exc:
        yield str(exc)
        return
    if dump_json(meta) != record:
        yield "its record is not in canonical JSON"
    grid = chunk_grid(head.shape_zyx, head.profile.chunk_side)
    offsets, nbytes = read_chunk_index(zshard, math.prod(grid))
    yield from order_problems(offsets, nbytes, morton_order(grid), len(zshard))
    yield from fill_problems(padded, head, nbytes)
    values = padded[tuple(slice(n) for n in head.shape_zyx)]
    if (int(values.max()) > np.iinfo(np.uint8).max) != (head.kind.dtype == "uint16"):
        yield f"its values do not call for {head.kind.dtype}"
    yield from label_problems(LabelVolume(meta=meta, values=values), sample)
