"""Turns 8-bit planes into images for the eye: encoding, scale bars. Opens no socket, writes no file."""

from __future__ import annotations

import io
import math
from typing import Literal, NamedTuple

from PIL import Image

from live_sr.view.contrast import Grey

JPEG_QUALITY = 90  # no block edges at fit-to-screen; exact pixels travel as PNG
PNG_LEVEL = 1  # noise does not compress; higher levels only take longer


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
