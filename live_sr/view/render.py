"""Turns 8-bit planes into images for the eye: encoding, labels, scale bars. Opens no socket, writes no file."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from live_sr.errors import InputError
from live_sr.view.contrast import Grey

JPEG_QUALITY = 90  # no block edges at fit-to-screen; exact pixels travel as PNG
PNG_LEVEL = 1  # noise does not compress; higher levels only take longer
MIN_PANEL = 512  # pixels; a smaller snapshot leaves no room for its labels


Encoding = Literal["image/jpeg", "image/png"]


def encode(pixels: Grey, encoding: Encoding) -> bytes:
    """Encode (Y, X) or (Y, X, 3) uint8: JPEG for the running view, PNG where each pixel must be exact."""
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    if encoding == "image/jpeg":
        image.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)  # colours carry the data: none is thinned
    else:
        image.save(out, "PNG", compress_level=PNG_LEVEL)
    return out.getvalue()


@dataclass(frozen=True, slots=True)
class Panel:
    """One half of a snapshot.

    Attributes
    ----------
    grey : (Y, X) uint8 or None
        None draws an empty field.
    label : str
        Written on the image.
    """

    grey: Grey | None
    label: str


def side_by_side(*panels: Panel, field_um: float | None, field_px: int) -> bytes:
    """A PNG of several views of one field, equally large, labelled, each with a scale bar.

    Parameters
    ----------
    field_um : float or None
        Width of the field in micrometres; None when unknown, the bar is then in raw pixels.
    field_px : int
        Width of the field in raw pixels.

    Raises
    ------
    InputError
        When all panels are empty.
    """
    shapes = [panel.grey.shape for panel in panels if panel.grey is not None]
    if not shapes:
        raise InputError("nothing to draw: all panels are empty")
    height, width = max(shapes)
    grow = -(-MIN_PANEL // width)
    height, width = height * grow, width * grow
    gap = max(4, width // 128)
    canvas = Image.new("L", (len(panels) * (width + gap) - gap, height), color=255)
    for i, panel in enumerate(panels):
        x = i * (width + gap)
        half = np.zeros((height, width), np.uint8) if panel.grey is None else _grow(panel.grey, height, width)
        canvas.paste(Image.fromarray(half), (x, 0))
        _annotate(canvas, x, width, panel.label, field_um, field_px)
    out = io.BytesIO()
    canvas.save(out, "PNG", compress_level=PNG_LEVEL)
    return out.getvalue()


def _grow(grey: Grey, height: int, width: int) -> Grey:
    """Repeat or drop whole pixels; interpolates nothing."""
    rows = np.arange(height) * grey.shape[0] // height
    columns = np.arange(width) * grey.shape[1] // width
    return np.ascontiguousarray(grey[rows][:, columns])


def _annotate(
    canvas: Image.Image, x: int, width: int, label: str, field_um: float | None, field_px: int
) -> None:
    draw = ImageDraw.Draw(canvas)
    size = max(14, width // 42)
    font = ImageFont.load_default(size)
    pad = size // 2
    box = draw.textbbox((x + 2 * pad, 2 * pad), label, font=font)
    draw.rectangle((box[0] - pad, box[1] - pad, box[2] + pad, box[3] + pad), fill=0)
    draw.text((x + 2 * pad, 2 * pad), label, font=font, fill=255)

    bar = scale_bar(field_um / width if field_um else None, field_px / width, width / 4)
    right, bottom = x + width - 2 * pad, canvas.height - 2 * pad
    text = bar.text.replace("µ", "u")  # the font that comes with Pillow has no micro sign
    box = draw.textbbox((0, 0), text, font=font)
    text_width = box[2] - box[0]
    wide = max(bar.length, text_width)
    draw.rectangle((right - wide - pad, bottom - 2.2 * size - pad, right + pad, bottom + pad), fill=0)
    middle = right - wide / 2
    draw.text((middle - text_width / 2, bottom - 2.0 * size), text, font=font, fill=255)
    draw.rectangle(
        (round(middle - bar.length / 2), bottom - size // 4, round(middle + bar.length / 2) - 1, bottom),
        fill=255,
    )


class ScaleBar(NamedTuple):
    """A bar `length` drawn pixels long, and what it says."""

    length: float
    text: str


def scale_bar(um_per_px: float | None, raw_per_px: float, room: float) -> ScaleBar:
    """The longest bar of 1, 2 or 5 times a power of ten that fits in `room` drawn pixels.

    Parameters
    ----------
    um_per_px : float or None
        Micrometres per drawn pixel; None gives a bar in raw pixels.
    raw_per_px : float
        Raw pixels per drawn pixel.
    """
    unit = um_per_px if um_per_px is not None else raw_per_px
    value = _round_down(room * unit)
    if um_per_px is None:
        text = f"{value:g} px"
    elif value >= 1000:
        text = f"{value / 1000:g} mm"
    elif value >= 1:
        text = f"{value:g} µm"
    else:
        text = f"{value * 1000:g} nm"
    return ScaleBar(value / unit, text)


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    # The small excess keeps 4.9999999 from becoming 2: lengths come out of divisions.
    step = max(s for s in (1, 2, 5, 10) if s == 1 or s * power <= value * (1 + 1e-9))
    return float(f"{step * power:.6g}")
