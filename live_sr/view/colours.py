"""Colours: look-up tables, signed differences, channels laid over each other. Knows pixels only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from live_sr.view.contrast import Grey

Colour: TypeAlias = NDArray[np.uint8]
"""(Y, X, 3) uint8, red, green, blue."""

Lut = Literal["grey", "inverted", "viridis", "magma", "fire", "glow"]
Rgb = tuple[int, int, int]

OVER: Rgb = (255, 32, 64)  # saturated: the detector's, or the window's upper end
UNDER: Rgb = (32, 112, 255)  # at or below the lower end
LESS: Rgb = (64, 160, 255)  # computed darker than acquired
MORE: Rgb = (255, 150, 40)  # computed brighter than acquired

# Colours at equal steps, between which is interpolated. viridis and magma: every 17th entry of the maps of
# Smith, van der Walt and Firing (matplotlib, CC0), at most 7 of 255 off. fire: black to white over violet, red
# and yellow, the order that ImageJ's map of this name made familiar.
KNOTS: dict[Lut, str] = {
    "grey": "000000 ffffff",
    "inverted": "ffffff 000000",
    "viridis": "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e 1f988b 22a884 35b779 54c568 7ad151 "
    "a5db36 d2e21b fde725",
    "magma": "000004 0b0924 20114b 3b0f70 57157e 721f81 8c2981 a8327d c43c75 de4968 f1605d fa7f5e fe9f6d "
    "febf84 fddea0 fcfdbf",
    "fire": "000000 2b0066 7a00b0 c01060 ee4a00 ff9a00 ffe03c ffffff",
    "glow": "000000 5a0c00 b03200 e87400 ffb43c ffe6a0 ffffff",
}


@cache
def table(lut: Lut) -> NDArray[np.uint8]:
    """(256, 3) uint8. ``glow`` marks both ends of the window: what is cut off below, and above."""
    knots = np.array([list(bytes.fromhex(knot)) for knot in KNOTS[lut].split()], np.float64)
    at = np.linspace(0, 255, len(knots))
    colours = np.stack([np.interp(np.arange(256), at, knots[:, i]) for i in range(3)], axis=1)
    if lut == "glow":
        colours[0], colours[255] = UNDER, OVER
    return np.rint(colours).astype(np.uint8)


def paint(grey: Grey, lut: Lut) -> Grey | Colour:
    """Colours of (Y, X) uint8; the grey maps stay one plane."""
    if lut == "grey":
        return grey
    if lut == "inverted":
        return ~grey
    return np.take(table(lut), grey, axis=0)


def tint(grey: Grey, colour: Rgb) -> NDArray[np.uint16]:
    """(Y, X, 3) uint16: black to `colour`."""
    ramp = np.rint(np.arange(256)[:, None] / 255 * np.array(colour)).astype(np.uint16)
    return np.take(ramp, grey, axis=0)


def overlay(layers: Sequence[tuple[Grey, Rgb]]) -> Colour:
    """The sum of all (Y, X) layers, each in its colour; what is brighter than white is white."""
    total: NDArray[np.uint16] = sum((tint(*layer) for layer in layers[1:]), start=tint(*layers[0]))
    return np.minimum(total, 255).astype(np.uint8)


def signed(difference: NDArray[np.floating[Any]], spread: float) -> Colour:
    """Black for none, towards blue for less and orange for more, full colour from `spread` grey values on."""
    ramp = np.abs(np.linspace(-1, 1, 255))[:, None] * np.where(
        np.arange(255)[:, None] < 127, np.array(LESS), np.array(MORE)
    )
    at = np.clip(np.rint(difference * (127 / max(spread, 1e-9))), -127, 127).astype(np.int16) + 127
    colours: Colour = np.take(np.rint(ramp).astype(np.uint8), at, axis=0)
    return colours


def mark(image: Grey | Colour, under: NDArray[np.bool_], over: NDArray[np.bool_]) -> Colour:
    """`image` with pixels (Y, X) of two masks coloured."""
    colour = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()
    colour[under] = UNDER
    colour[over] = OVER
    return colour
