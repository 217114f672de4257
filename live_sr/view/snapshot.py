"""Makes files of what is shown: labelled PNG for the eye, TIFF with every grey value. Writes to memory only.

Whatever leaves the page says on the image, and in the file, whether it was acquired or computed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from live_sr import __version__
from live_sr.client.feed import FeedFrame
from live_sr.errors import InputError
from live_sr.frame import Pixels
from live_sr.view.contrast import grey_window, to_8bit
from live_sr.view.history import Side
from live_sr.view.render import PNG_LEVEL, encode, scale_bar

Drawn = NDArray[np.uint8]
"""(Y, X) grey or (Y, X, 3) red, green, blue; uint8, as drawn."""

MIN_PANEL = 512  # pixels; a smaller snapshot leaves no room for its labels
UM_PER_CM = 1e4  # TIFF's finest unit of resolution is pixels per centimetre
STATEMENTS: dict[Side, str] = {
    "raw": "Acquired image: pixels as the camera delivered them.",
    "sr": "Computed image: a neural network estimated its pixels from a low-dose raw image. Detail that is "
    "not in the raw data may have been invented; check findings against raw.",
}


@dataclass(frozen=True, slots=True)
class Panel:
    """One view of the field.

    Attributes
    ----------
    drawn : (Y, X) or (Y, X, 3) uint8, or None
        None draws an empty field.
    label : str
        Written on the image: what it is, and by which model.
    note : str
        Written in an empty field: why it is empty.
    """

    drawn: Drawn | None
    label: str
    note: str = ""


def label(side: Side, model: str = "") -> str:
    """What stands on an image."""
    if side == "raw":
        return "low-dose, as acquired"
    return f"computed image · {model}" if model else "computed image"


def panel_shape(shape: tuple[int, ...], most_px: int | None = None) -> tuple[int, int]:
    """(Y, X) at which a panel of (Y, X) pixels is drawn: enlarged by whole pixels until its labels have room.

    With `most_px` its longer side is no longer than that.
    """
    height, width = shape
    longer = max(shape)
    if most_px is not None and longer > most_px:
        return max(1, height * most_px // longer), max(1, width * most_px // longer)
    grow = -(-MIN_PANEL // width) if most_px is None else max(1, most_px // longer)
    return height * grow, width * grow


def compose(
    panels: Sequence[Panel],
    *,
    field_um: float | None,
    field_px: int,
    shape: tuple[int, int] | None = None,
    stamp: str = "",
) -> Image.Image:
    """Several views of one field side by side, equally large, each with its label and a scale bar.

    Parameters
    ----------
    panels : sequence of Panel
    field_um : float or None
        Width of the field in micrometres; None when unknown, the bar is then in raw pixels.
    field_px : int
        Width of the field in raw pixels.
    shape : (Y, X), optional
        Size of each panel in pixels. Without it every pixel of the largest is drawn.
    stamp : str
        Written at the lower left: which frame, when.

    Raises
    ------
    InputError
        When all panels are empty and no `shape` is given.
    """
    if shape is None:
        shapes = [panel.drawn.shape[:2] for panel in panels if panel.drawn is not None]
        if not shapes:
            raise InputError("nothing to draw: all panels are empty")
        shape = panel_shape(max(shapes))
    height, width = shape
    gap = max(4, width // 128)
    coloured = any(panel.drawn is not None and panel.drawn.ndim == 3 for panel in panels)
    size = (len(panels) * (width + gap) - gap, height)
    canvas = Image.new("RGB", size, (255, 255, 255)) if coloured else Image.new("L", size, 255)
    for i, panel in enumerate(panels):
        x = i * (width + gap)
        if panel.drawn is None:
            canvas.paste(0 if not coloured else (0, 0, 0), (x, 0, x + width, height))
        else:
            canvas.paste(Image.fromarray(_fit(panel.drawn, height, width)), (x, 0))
        _annotate(canvas, x, width, panel, field_um, field_px)
    if stamp:
        _text(canvas, stamp, _size(width), left=_size(width), bottom=height - _size(width))
    return canvas


def _fit(drawn: Drawn, height: int, width: int) -> Drawn:
    """Repeat whole pixels where it is smaller, average where it is larger; interpolates nothing."""
    if drawn.shape[0] > height or drawn.shape[1] > width:
        return np.asarray(Image.fromarray(drawn).resize((width, height), Image.Resampling.BOX))
    rows = np.arange(height) * drawn.shape[0] // height
    columns = np.arange(width) * drawn.shape[1] // width
    return np.ascontiguousarray(drawn[rows][:, columns])


def _size(width: int) -> int:
    """Of the letters, in pixels."""
    return max(14, width // 42)


def _annotate(
    canvas: Image.Image, x: int, width: int, panel: Panel, field_um: float | None, field_px: int
) -> None:
    size = _size(width)
    pad = size // 2
    _text(canvas, panel.label, size, left=x + 2 * pad, top=2 * pad)
    if panel.drawn is None:
        _text(canvas, panel.note, size, left=x + 2 * pad, top=canvas.height // 2)
        return
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size)
    bar = scale_bar(field_um / width if field_um else None, field_px / width, width / 4)
    right, bottom = x + width - 2 * pad, canvas.height - 2 * pad
    text = bar.text.replace("µ", "u")  # the font that comes with Pillow has no micro sign
    box = draw.textbbox((0, 0), text, font=font)
    text_width = box[2] - box[0]
    wide = max(bar.length, text_width)
    draw.rectangle(
        (right - wide - pad, bottom - 2.2 * size - pad, right + pad, bottom + pad), fill=_grey(canvas, 0)
    )
    middle = right - wide / 2
    draw.text((middle - text_width / 2, bottom - 2.0 * size), text, font=font, fill=_grey(canvas, 255))
    draw.rectangle(
        (round(middle - bar.length / 2), bottom - size // 4, round(middle + bar.length / 2) - 1, bottom),
        fill=_grey(canvas, 255),
    )


def _text(
    canvas: Image.Image, text: str, size: int, *, left: int, top: int | None = None, bottom: int | None = None
) -> None:
    """White on black, its box beginning `size` / 2 before it."""
    if not text:
        return
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size)
    text = text.replace("µ", "u")
    box = draw.textbbox((0, 0), text, font=font)
    y = top if top is not None else (bottom or 0) - box[3]
    pad = size // 2
    draw.rectangle((left - pad, y + box[1] - pad, left + box[2] + pad, y + box[3] + pad), fill=_grey(canvas, 0))
    draw.text((left, y), text, font=font, fill=_grey(canvas, 255))


def _grey(canvas: Image.Image, value: int) -> int | tuple[int, int, int]:
    return (value, value, value) if canvas.mode == "RGB" else value


# -------------------------------------------------------------------- files


def thumbnail(pixels: Pixels, most_px: int) -> bytes:
    """A JPEG in the contrast of its own, its longer side at most `most_px`."""
    step = max(1, min(pixels.shape) // (4 * most_px))  # a few pixels of each block are enough for its mean
    thin: Pixels = np.ascontiguousarray(pixels[::step, ::step])  # type: ignore[assignment]  # says any dtype
    image = Image.fromarray(to_8bit(thin, grey_window([pixels])))
    image.thumbnail((most_px, most_px), Image.Resampling.BOX)
    return encode(np.asarray(image), "image/jpeg")


def png(image: Image.Image, facts: Mapping[str, Any]) -> bytes:
    """A PNG with `facts` as its text entries, beside what it is and who wrote it."""
    text = PngInfo()
    text.add_itxt("Description", STATEMENTS["sr"])
    text.add_itxt("Software", f"live-sr {__version__}")
    for key, value in facts.items():
        text.add_itxt(key, str(value))
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=PNG_LEVEL, pnginfo=text)
    return out.getvalue()


def tiff(pixels: Pixels, frame: FeedFrame, side: Side, *, model_sha256: str = "") -> bytes:
    """An OME-TIFF of one plane, unchanged.

    Parameters
    ----------
    pixels : (Y, X) uint8 or uint16
        Of `frame`, every one or every nth: the pixel size follows from how many there are.
    """
    scale = frame.scale if side == "sr" else 1
    per_pixel = frame.shape[1] * scale / pixels.shape[1]  # above 1 where pixels were left out
    size_um = frame.pixel_size_um / scale * per_pixel if frame.pixel_size_um else None
    metadata: dict[str, Any] = {
        "axes": "YX",
        "Name": file_name(frame, side),
        "Description": STATEMENTS[side],
        "MapAnnotation": {
            key: str(value) for key, value in facts(frame, side, model_sha256=model_sha256).items()
        },
    }
    if frame.channel:
        metadata["Channel"] = {"Name": [frame.channel]}
    resolution: dict[str, Any] = {}
    if size_um is not None:
        metadata |= {f"PhysicalSize{axis}": size_um for axis in "XY"}
        metadata |= {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
        resolution = {"resolution": (UM_PER_CM / size_um,) * 2, "resolutionunit": "CENTIMETER"}
    out = io.BytesIO()
    tifffile.imwrite(
        out, pixels, ome=True, photometric="minisblack", software="live-sr", metadata=metadata, **resolution
    )
    return out.getvalue()


def facts(frame: FeedFrame, side: Side, *, model_sha256: str = "") -> dict[str, Any]:
    """What is known of a frame's image, by name; unknown things are left out."""
    computed = side == "sr"
    known: dict[str, Any] = {
        "computed": computed,
        "model": frame.model if computed else None,
        "model_sha256": model_sha256 if computed else None,
        "scale": frame.scale if computed else None,
        "session": frame.session,
        "run": frame.run or None,
        "frame": frame.seq,
        "index": _index(frame.index),
        "place": _index(frame.place) if frame.place and frame.place != frame.index else None,
        "channel": frame.channel,
        "raw_pixel_size_um": frame.pixel_size_um,
        "exposure_ms": frame.exposure_ms,
        "stage_um": frame.stage_um,
    }
    return {key: value for key, value in known.items() if value not in (None, "")}


def file_name(frame: FeedFrame, what: str, suffix: str = "") -> str:
    """Such as "live-sr_1f3a77c2_run1_t3_c0_sr.ome.tif": sorts by run, then by frame."""
    index = frame.place or frame.index
    parts = [
        "live-sr",
        frame.session[:8],
        f"run{frame.run}" if frame.run else frame.kind,
        *(f"{axis}{i}" for axis, i in index.items()),
        *([] if index else [f"frame{frame.seq}"]),
        what,
    ]
    return "_".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part) for part in parts if part) + suffix


def _index(index: Mapping[str, int]) -> str:
    return " ".join(f"{axis}={i}" for axis, i in index.items())
