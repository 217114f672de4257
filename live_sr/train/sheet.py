"""Draws rows of images as one labelled PNG, pixel for pixel. Knows neither files nor networks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from live_sr.errors import InputError

Picture = NDArray[np.float32] | NDArray[np.float64]
"""(Y, X) grey values: 0 black, 1 white; what is outside is clipped."""

GAP = 6  # pixels between cells
TEXT = 15  # pixels; readable without zooming in


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Pictures that belong together, with what is written above them."""

    title: str
    pictures: Sequence[Picture]


def draw_sheet(columns: Sequence[str], rows: Sequence[Row], *, cell: int = 256) -> bytes:
    """A PNG with one labelled row of pictures below the other.

    Parameters
    ----------
    columns : sequence of str
        Written above the first row, one for each picture of the longest row.
    cell : int
        Edge of the square that each picture is drawn in, pixels. A smaller picture is enlarged by whole
        pixels; of a larger one, every n-th pixel is shown. Nothing is interpolated.

    Raises
    ------
    InputError
        When there is no picture.
    """
    if not any(row.pictures for row in rows):
        raise InputError("nothing to draw: there are no pictures")
    font = ImageFont.load_default(TEXT)
    across = max(len(columns), *(len(row.pictures) for row in rows))
    head, band = (TEXT + 2 * GAP if columns else GAP), TEXT + 2 * GAP
    size = (across * (cell + GAP) + GAP, head + len(rows) * (band + cell))
    canvas = Image.new("L", size, color=255)
    draw = ImageDraw.Draw(canvas)
    for i, text in enumerate(columns):
        draw.text((GAP + i * (cell + GAP), GAP), _plain(text), font=font, fill=0)
    for j, row in enumerate(rows):
        top = head + j * (band + cell)
        draw.text((GAP, top), _plain(row.title), font=font, fill=90)
        for i, picture in enumerate(row.pictures):
            canvas.paste(_fitted(picture, cell), (GAP + i * (cell + GAP), top + TEXT + GAP))
    out = io.BytesIO()
    canvas.save(out, "PNG")
    return out.getvalue()


def _fitted(picture: Picture, cell: int) -> Image.Image:
    grey = np.rint(np.clip(np.nan_to_num(picture), 0, 1) * 255).astype(np.uint8)
    longest = max(grey.shape)
    if longest > cell:
        grey = grey[:: -(-longest // cell), :: -(-longest // cell)]
    grow = max(1, cell // max(grey.shape))
    return Image.fromarray(np.ascontiguousarray(np.repeat(np.repeat(grey, grow, 0), grow, 1)))


def _plain(text: str) -> str:
    """The font that comes with Pillow has few letters beyond ASCII."""
    plain = text.replace("µ", "u").replace("×", "x").replace("²", "2")
    return plain.encode("latin-1", "replace").decode("latin-1")
