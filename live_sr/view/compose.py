"""From what is on show to what one page gets: images of the visible part, histograms, grey values.

Functions of frozen values, called in worker threads. Opens no socket, knows no browser.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from live_sr.frame import Pixels
from live_sr.view.colours import Colour, Rgb, mark, overlay, paint, signed
from live_sr.view.contrast import Grey, Histogram, Window, histogram, to_8bit
from live_sr.view.region import Area, Cut, Fit, cut, extremes, mean, raw_pixels, reduction, shown
from live_sr.view.render import Encoding, encode
from live_sr.view.request import Ask, Look, PlaneName
from live_sr.view.watcher import OnShow, Picture

EXACT_PIXELS = 256 * 256  # so few that a PNG costs no more than a JPEG: enlarged pixels are always exact


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A plane and how it is drawn."""

    picture: Picture
    window: Window
    look: Look
    colour: Rgb


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """An image to be made. Drawings with equal keys become equal images.

    Attributes
    ----------
    layers : tuple of Layer
        One is painted with its look-up table, several are laid over each other; of a difference the first
        minus the second.
    spread : float
        Of a difference: grey values of full colour.
    """

    name: PlaneName
    layers: tuple[Layer, ...]
    area: Area
    canvas: tuple[int, int]
    exact: bool
    mask: bool
    bits: int
    composite: bool
    spread: float = 0.0

    @property
    def fit(self) -> Fit:
        """Marks must not be made paler by a browser that shrinks the image."""
        if self.mask:
            return "coarse"
        return "fine" if self.exact else "near"

    @property
    def key(self) -> tuple[object, ...]:
        """Names its pixels."""
        layers = tuple((*one.picture.key, one.window, one.look, one.colour) for one in self.layers)
        asked = (self.area, self.canvas, self.exact, self.mask, self.bits, self.composite, self.spread)
        return (self.name == "difference", layers, asked)


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """An encoded image, and what is told about it.

    Attributes
    ----------
    area : Area
        What it covers, in raw pixels.
    factor : int
        So many of the frame's pixels per drawn pixel and side.
    low, high : int
        Pixels of the whole frame that are empty and saturated, as far as they were counted.
    """

    data: bytes
    encoding: Encoding
    area: Area
    factor: int
    low: int
    high: int


def channels(on_show: OnShow, ask: Ask) -> dict[str, OnShow]:
    """What a page shows, by channel: all of them, the one that it asks for, or the newest."""
    newest = next((p for p in (on_show.left, on_show.right) if p is not None), None)
    if newest is None:
        return {}
    if ask.channel is not None and ask.channel in on_show.channels:
        on_show = on_show.channels[ask.channel]
        newest = on_show.left or on_show.right or newest
    own = {newest.frame.channel: on_show}
    if not ask.composite:
        return own
    return {
        name: show
        for name, show in {**own, **on_show.channels}.items()
        if (p := show.left or show.right) is not None and p.frame.shape == newest.frame.shape
    }


def drawings(shows: Mapping[str, OnShow], ask: Ask) -> list[Drawing]:
    """The images that a page asks for, as far as there are frames for them."""
    made = []
    for name in dict.fromkeys(ask.planes):
        layers = _difference(shows, ask) if name == "difference" else _layers(shows, ask, name)
        if layers:
            width = layers[0].window.high - layers[0].window.low
            field = layers[0].picture.frame.shape
            area = Area(*(ask.area or (0, 0, *field))).within(field)
            made.append(
                Drawing(
                    name=name,
                    layers=tuple(layers),
                    area=area,
                    canvas=ask.canvas,
                    exact=ask.exact,
                    mask=ask.mask,
                    bits=ask.bits,
                    composite=ask.composite and name != "difference",
                    spread=ask.spread * width if name == "difference" else 0.0,
                )
            )
    return made


def _layers(shows: Mapping[str, OnShow], ask: Ask, name: Literal["left", "right"]) -> list[Layer]:
    found = []
    for channel, show in shows.items():
        looks = ask.look(channel)
        picture = show.left if name == "left" else show.right
        if picture is not None and (looks.on or not ask.composite):
            look = looks.of(name)
            found.append(Layer(picture, _window(show, look, name, shared=looks.shared), look, looks.colour))
    shapes = {layer.picture.pixels.shape for layer in found[:1]}
    return [layer for layer in found if layer.picture.pixels.shape in shapes]


def _window(show: OnShow, look: Look, name: Literal["left", "right"], *, shared: bool) -> Window:
    if not look.auto:
        return Window(look.low, look.high)
    if shared or show.apart is None:
        return show.window
    return show.apart[0 if name == "left" else 1]


def _difference(shows: Mapping[str, OnShow], ask: Ask) -> list[Layer]:
    """The super-resolved plane and the acquired one that it was computed from; none when they do not fit."""
    channel, show = next(iter(shows.items()))
    right = show.right
    left = show.source or show.left
    if right is None or left is None or left.frame.seq != right.frame.seq:
        return []
    if math.fmod(_ratio(left, right), 1) != 0 or _ratio(left, right) < 1:
        return []
    look = ask.look(channel).of("left")
    window = _window(show, look, "left", shared=True)
    return [Layer(picture, window, Look(), (0, 0, 0)) for picture in (right, left)]


def _pixel(picture: Picture) -> float:
    scale = 1 if picture.key[0] == "raw" else picture.frame.scale
    return raw_pixels(picture.plane, scale)


def _ratio(left: Picture, right: Picture) -> float:
    """SR pixels per acquired pixel, as both are shown."""
    return _pixel(left) / _pixel(right)


def draw(drawing: Drawing) -> Drawn:
    """Make an image."""
    first = drawing.layers[0].picture
    if drawing.name == "difference":
        image, part = _draw_difference(drawing)
    else:
        pixel = _pixel(first)
        factor = reduction(drawing.area, pixel, drawing.canvas, drawing.fit)
        part = cut(first.plane.shape, pixel, drawing.area, factor)
        image = _draw_layers(drawing, part)
    low = high = 0
    if drawing.mask:
        under = np.zeros(part.shape, bool)
        over = np.zeros(part.shape, bool)
        for layer in drawing.layers[:1] if drawing.name == "difference" else drawing.layers:
            pixels = layer.picture.pixels
            top = full(pixels, drawing.bits)
            n_low, n_high = int(np.count_nonzero(pixels == 0)), int(np.count_nonzero(pixels >= top))
            low, high = low + n_low, high + n_high
            if n_low or n_high:
                more = extremes(pixels, part, 0, top)
                under |= more[0]
                over |= more[1]
        if low or high:
            image = mark(image, under, over)
    few = part.factor == 1 and part.shape[0] * part.shape[1] <= EXACT_PIXELS
    encoding: Encoding = "image/png" if drawing.exact or few else "image/jpeg"
    return Drawn(encode(image, encoding), encoding, part.area(_pixel(first)), part.factor, low, high)


def full(pixels: Pixels, bits: int) -> int:
    """The grey value at which the detector is saturated; `bits` 0 takes the dtype for it."""
    top = int(np.iinfo(pixels.dtype).max)
    return min(top, 2**bits - 1) if bits else top


def _draw_layers(drawing: Drawing, part: Cut) -> Grey | Colour:
    greys = [
        to_8bit(shown(layer.picture.pixels, part), layer.window, layer.look.gamma) for layer in drawing.layers
    ]
    if drawing.composite:
        return overlay([(grey, layer.colour) for grey, layer in zip(greys, drawing.layers, strict=True)])
    return paint(greys[0], drawing.layers[0].look.lut)


def _draw_difference(drawing: Drawing) -> tuple[Colour, Cut]:
    """SR minus acquired; acquired pixels are repeated, or reduced alike, so that both cover the same places."""
    sr, raw = (layer.picture for layer in drawing.layers)
    ratio = round(_ratio(raw, sr))
    wanted = reduction(drawing.area, _pixel(sr), drawing.canvas, drawing.fit)
    if wanted < ratio:  # several drawn pixels per acquired one
        factor, of_raw = max(k for k in range(1, wanted + 1) if ratio % k == 0), 1
    else:
        factor, of_raw = wanted // ratio * ratio, wanted // ratio
    part = cut(raw.plane.shape, _pixel(raw), drawing.area, of_raw)
    acquired = mean(raw.pixels, part)
    if factor < ratio:
        acquired = acquired.repeat(ratio // factor, 0).repeat(ratio // factor, 1)
    rows, columns = (slice(s.start * ratio, s.stop * ratio) for s in (part.rows, part.columns))
    part = Cut(rows, columns, factor)
    return signed(mean(sr.pixels, part) - acquired, drawing.spread), part


# -------------------------------------------------------------------- numbers


def histograms(shows: Mapping[str, OnShow]) -> dict[str, dict[str, Histogram | None]]:
    """Of both sides of each channel that is shown, whole frames."""
    return {
        name: {
            "left": histogram(show.left.pixels) if show.left is not None else None,
            "right": histogram(show.right.pixels) if show.right is not None else None,
        }
        for name, show in shows.items()
    }


def grey_values(shows: Mapping[str, OnShow], y: float, x: float) -> list[dict[str, Any]]:
    """Of each channel that is shown, what the frames hold at a place in raw pixels."""
    return [
        {
            "channel": name,
            **{
                side: _value(picture, y, x) if picture is not None else None
                for side, picture in (("left", show.left), ("right", show.right))
            },
        }
        for name, show in shows.items()
    ]


def _value(picture: Picture, y: float, x: float) -> int | None:
    row, column = (math.floor(at / _pixel(picture)) for at in (y, x))
    height, width = picture.plane.shape
    if not (0 <= row < height and 0 <= column < width):
        return None
    return int(picture.pixels[row, column])


def statistics(shows: Mapping[str, OnShow], area: Area) -> list[dict[str, Any]]:
    """Of each channel that is shown: mean, extremes and standard deviation of the pixels in `area`."""
    return [
        {
            "channel": name,
            **{
                side: _statistics(picture, area) if picture is not None else None
                for side, picture in (("left", show.left), ("right", show.right))
            },
        }
        for name, show in shows.items()
    ]


def _statistics(picture: Picture, area: Area) -> dict[str, float]:
    seen = cut(picture.plane.shape, _pixel(picture), area.within(picture.frame.shape), 1).of(picture.pixels)
    return {
        "mean": float(seen.mean(dtype=np.float64)),
        "min": int(seen.min()),
        "max": int(seen.max()),
        "std": float(seen.std(dtype=np.float64)),
        "pixels": seen.size,
    }
