"""From a stored volume to boxes of it, as a user of another loader would write it, and fast."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from benchmarks.stream_protocol import Arrived, Delivered
from shards.codec import chunk_grid, decode_chunk, parse_zarr_metadata, read_chunk_index

AIR_HU = -1024


def deliver(key: str, starts: np.ndarray, boxes: np.ndarray) -> Arrived:
    """Boxes (k, side, side, side) and their starts (k, 3), as they arrived."""

    def each() -> list[Delivered]:
        return [
            Delivered(partial(np.asarray, box), str(key), tuple(start))
            for start, box in zip(starts.tolist(), boxes, strict=True)
        ]

    return Arrived(len(boxes), each)


def draw_starts(rng: np.random.Generator, shape: tuple[int, ...], side: int, k: int) -> np.ndarray:
    """Starts of k boxes, (k, 3); a short axis is padded on both sides."""
    return np.array(
        [
            [int(rng.integers(n - side + 1)) if n >= side else -((side - n) // 2) for n in shape]
            for _ in range(k)
        ]
    )


def read_boxes(zarr_json: bytes, zshard: bytes, rng: np.random.Generator, side: int, k: int):
    """Starts and boxes of one volume by this project's codec; each touched chunk decoded once.

    Returns:
        Starts (k, 3) and int16 HU (k, side, side, side).
    """
    head = parse_zarr_metadata(zarr_json)
    step, grid = head.profile.chunk_side, chunk_grid(head.shape_zyx, head.profile.chunk_side)
    offsets, nbytes = read_chunk_index(zshard, math.prod(grid))
    offsets, nbytes = offsets.reshape(grid), nbytes.reshape(grid)
    starts = draw_starts(rng, head.shape_zyx, side, k)
    boxes = np.full((k, side, side, side), AIR_HU, dtype=np.int16)
    first = np.maximum(starts, 0) // step
    last = np.minimum((starts + side - 1) // step, np.array(grid) - 1)
    touched: dict[tuple[int, ...], list[int]] = {}
    for box in range(k):
        size = last[box] - first[box] + 1
        for place in np.ndindex(*size):
            touched.setdefault(tuple((first[box] + place).tolist()), []).append(box)
    chunk = np.empty((step, step, step), dtype=np.int16)
    view = memoryview(zshard)
    for place, wanted in touched.items():
        if nbytes[place]:
            at = int(offsets[place])
            decode_chunk(view[at : at + int(nbytes[place])], chunk, head.profile)
            for box in wanted:
                _copy(chunk, np.array(place) * step, boxes[box], starts[box])
    return starts, boxes


def _copy(chunk: np.ndarray, at: np.ndarray, box: np.ndarray, start: np.ndarray) -> None:
    """What of a chunk that lies at voxel ``at`` is in the box that starts at ``start``.

    The padding of a volume's last chunks is air, as is what a box has outside the volume.
    """
    low, high = np.maximum(at, start), np.minimum(at + chunk.shape[0], start + box.shape[0])
    source = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, at, strict=True))
    target = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, start, strict=True))
    box[target] = chunk[source]
