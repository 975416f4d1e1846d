"""Keeps views to the part of their base box that the volume fills, and lets them see its ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy import ndarray


@dataclass(frozen=True, kw_only=True)
class Around:
    """What lies around a base box.

    Attributes:
        low_zyx: where the volume begins in the box, voxels; 0 where it reaches beyond the box.
        high_zyx: where it ends; the box's side where it reaches beyond.
        lean_zyx: how far beyond its place the box was drawn, voxels; views move by as much.
    """

    low_zyx: Float64[ndarray, " 3"]
    high_zyx: Float64[ndarray, " 3"]
    lean_zyx: Float64[ndarray, " 3"]

    @classmethod
    def of(
        cls,
        *,
        box_start_zyx: tuple[int, int, int],
        lean_zyx: tuple[int, int, int],
        shape_zyx: tuple[int, int, int],
        box_side: int,
    ) -> Around:
        """Of a box in a volume."""
        start = np.asarray(box_start_zyx, dtype=np.float64)
        return cls(
            low_zyx=np.maximum(0.0, -start),
            high_zyx=np.minimum(float(box_side), np.asarray(shape_zyx) - start),
            lean_zyx=np.asarray(lean_zyx, dtype=np.float64),
        )


def keep_to_volume(
    start_zyx: Float64[ndarray, "v 3"],
    extent_zyx: Float64[ndarray, "v 3"],
    margin_zyx: Float64[ndarray, "v 3"],
    box_side: int,
    around: Around,
) -> Float64[ndarray, "v 3"]:
    """Move source windows with the box's lean, then into the volume, and in any case into the box.

    A window that is longer than the volume takes in all of it, so that no view holds more padding
    than it must.

    Args:
        start_zyx: corners of the windows, voxels of the box.
        extent_zyx: their sides.
        margin_zyx: how far they stay from the ends.
        box_side: voxels.
        around: where the volume lies.
    """
    first = around.low_zyx + margin_zyx
    last = around.high_zyx - extent_zyx - margin_zyx
    low, high = np.minimum(first, last), np.maximum(first, last)
    moved = np.clip(start_zyx + around.lean_zyx, low, high)
    kept: Float64[ndarray, "v 3"] = np.clip(moved, margin_zyx, box_side - extent_zyx - margin_zyx)
    return kept
