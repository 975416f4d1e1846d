"""Pictures of volumes: three planes in a soft-tissue window, as a radiologist expects them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int16, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

LOW_HU, HIGH_HU = -160, 240
"""Soft-tissue window: width 400, level 40."""
_GAP, _LABEL = 4, 18
_BACKGROUND = (16, 18, 22)


def planes(hu: Int16[ndarray, "z y x"]) -> list[UInt8[ndarray, "_h _w"]]:
    """Axial, coronal and sagittal mid-planes of an S, P, L volume as grey levels.

    Axial: anterior up, the patient's left on the right. Coronal and sagittal: superior up, and
    sagittal with anterior on the left.
    """
    z, y, x = (n // 2 for n in hu.shape)
    return [grey(plane) for plane in (hu[z], hu[::-1, y], hu[::-1, :, x])]


def grey(hu: Int16[ndarray, "h w"]) -> UInt8[ndarray, "h w"]:
    """Window HU to 0-255."""
    share = (hu.astype(np.float32) - LOW_HU) / (HIGH_HU - LOW_HU)
    levels: UInt8[ndarray, "h w"] = (np.clip(share, 0, 1) * 255).astype(np.uint8)
    return levels


def strip(hu: Int16[ndarray, "z y x"], spacing_zyx_mm: Sequence[float], side: int) -> Image.Image:
    """The three planes side by side, true to scale, each inside ``side`` × ``side`` pixels."""
    dz, dy, dx = spacing_zyx_mm
    canvas = Image.new("L", (3 * side + 2 * _GAP, side), 0)
    # One scale for the three planes, so that a body looks the same size in each.
    extent = max(n * mm for n, mm in zip(hu.shape, spacing_zyx_mm, strict=True))
    steps = ((dy, dx), (dz, dx), (dz, dy))
    for number, (plane, (down, across)) in enumerate(zip(planes(hu), steps, strict=True)):
        height, width = (
            max(1, round(n * mm / extent * side))
            for n, mm in zip(plane.shape, (down, across), strict=True)
        )
        tile = Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR)
        canvas.paste(tile, (number * (side + _GAP) + (side - width) // 2, (side - height) // 2))
    return canvas


def montage(
    volumes: Iterable[tuple[str, Int16[ndarray, "_z _y _x"], Sequence[float]]], side: int = 200
) -> Image.Image:
    """One labelled strip a volume, in two columns.

    Args:
        volumes: (label, HU in S, P, L, spacing in mm) of each.
        side: pixels of a plane's frame.
    """
    tiles = [_labelled(label, strip(hu, mm, side)) for label, hu, mm in volumes]
    if not tiles:
        raise ValueError("no volume to draw")
    columns = 1 if len(tiles) < 3 else 2
    rows = -(-len(tiles) // columns)
    width, height = tiles[0].size
    sheet = Image.new(
        "RGB", (columns * (width + 3 * _GAP) + _GAP, rows * (height + 2 * _GAP) + _GAP), _BACKGROUND
    )
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(
            tile, (2 * _GAP + column * (width + 3 * _GAP), _GAP + row * (height + 2 * _GAP))
        )
    return sheet


def png_bytes(image: Image.Image) -> bytes:
    """``image`` as PNG, without a date or any other metadata."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def _labelled(label: str, image: Image.Image) -> Image.Image:
    """``image`` under a line of text."""
    tile = Image.new("RGB", (image.width, image.height + _LABEL), _BACKGROUND)
    tile.paste(image.convert("RGB"), (0, _LABEL))
    font = ImageFont.load_default(12)
    ImageDraw.Draw(tile).text((1, 2), label, fill=(210, 214, 220), font=font)
    return tile
