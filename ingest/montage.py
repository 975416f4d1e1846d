"""Pictures of volumes: three planes in a soft-tissue window, as a radiologist expects them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int16, Integer, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

from shards.codec import LabelArray

LOW_HU, HIGH_HU = -160, 240
"""Soft-tissue window: width 400, level 40."""
_GAP, _LABEL = 4, 18
_BACKGROUND = (16, 18, 22)
_COLOURS = np.array(
    [
        (86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167),
        (0, 114, 178),
    ],
    np.uint8,
)  # fmt: skip
"""Outlines of label values 1, 2, ...: told apart also by people who see few colours."""


def planes_of(volume: Integer[ndarray, "z y x"]) -> list[Integer[ndarray, "_h _w"]]:
    """Axial, coronal and sagittal mid-planes of an S, P, L volume.

    Axial: anterior up, the patient's left on the right. Coronal and sagittal: superior up, and
    sagittal with anterior on the left.
    """
    z, y, x = (n // 2 for n in volume.shape)
    return [volume[z], volume[::-1, y], volume[::-1, :, x]]


def grey(hu: Int16[ndarray, "h w"]) -> UInt8[ndarray, "h w"]:
    """Window HU to 0-255."""
    share = (hu.astype(np.float32) - LOW_HU) / (HIGH_HU - LOW_HU)
    levels: UInt8[ndarray, "h w"] = (np.clip(share, 0, 1) * 255).astype(np.uint8)
    return levels


def strip(
    hu: Int16[ndarray, "z y x"],
    spacing_zyx_mm: Sequence[float],
    side: int,
    label: LabelArray | None = None,
) -> Image.Image:
    """The three planes side by side, true to scale, each inside ``side`` × ``side`` pixels.

    With ``label``, values on the same grid, the outline of each is drawn in its colour.
    """
    dz, dy, dx = spacing_zyx_mm
    canvas = Image.new("L" if label is None else "RGB", (3 * side + 2 * _GAP, side), 0)
    drawn = [None] * 3 if label is None else planes_of(label)
    # One scale for the three planes, so that a body looks the same size in each.
    extent = max(n * mm for n, mm in zip(hu.shape, spacing_zyx_mm, strict=True))
    steps = ((dy, dx), (dz, dx), (dz, dy))
    for number, (plane, (down, across)) in enumerate(zip(planes_of(hu), steps, strict=True)):
        height, width = (
            max(1, round(n * mm / extent * side))
            for n, mm in zip(plane.shape, (down, across), strict=True)
        )
        tile = Image.fromarray(grey(plane)).resize((width, height), Image.Resampling.BILINEAR)
        if (values := drawn[number]) is not None:
            tile = outlined(tile, values)
        canvas.paste(tile, (number * (side + _GAP) + (side - width) // 2, (side - height) // 2))
    return canvas


def outlined(image: Image.Image, values: Integer[ndarray, "h w"]) -> Image.Image:
    """``image`` in colour, with the outlines of the labels of ``values``, stretched to fit."""
    width, height = image.size
    down = np.arange(height) * values.shape[0] // height
    across = np.arange(width) * values.shape[1] // width
    fitted = np.pad(values[np.ix_(down, across)], 1, mode="edge")
    inner = fitted[1:-1, 1:-1]
    neighbours = (fitted[:-2, 1:-1], fitted[2:, 1:-1], fitted[1:-1, :-2], fitted[1:-1, 2:])
    edge = (inner != 0) & np.logical_or.reduce([inner != other for other in neighbours])
    pixels = np.array(image.convert("RGB"))
    pixels[edge] = _COLOURS[(inner[edge].astype(np.int64) - 1) % len(_COLOURS)]
    return Image.fromarray(pixels)


def montage(
    volumes: Iterable[tuple[str, Int16[ndarray, "_z _y _x"], Sequence[float], LabelArray | None]],
    side: int = 200,
) -> Image.Image:
    """One captioned strip a volume, in two columns.

    Args:
        volumes: (caption, HU in S, P, L, spacing in mm, labels if there are any) of each.
        side: pixels of a plane's frame.
    """
    tiles = [_captioned(text, strip(hu, mm, side, label)) for text, hu, mm, label in volumes]
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


def _captioned(text: str, image: Image.Image) -> Image.Image:
    """``image`` under a line of text."""
    tile = Image.new("RGB", (image.width, image.height + _LABEL), _BACKGROUND)
    tile.paste(image.convert("RGB"), (0, _LABEL))
    font = ImageFont.load_default(12)
    ImageDraw.Draw(tile).text((1, 2), text, fill=(210, 214, 220), font=font)
    return tile
