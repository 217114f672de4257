"""Contrast: which grey values are drawn black and white, and 8 bits from it. NumPy only: no file, no socket."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from live_sr.errors import InputError
from live_sr.frame import Pixels

Grey = NDArray[np.uint8]
"""(Y, X) uint8, as drawn."""

PERCENTILES = (0.2, 99.8)  # charging spots and dead pixels do not set the contrast
SAMPLE_SIDE = 256  # pixels of a plane looked at per axis: 65 000 fix a percentile to a fraction of a level
BINS = 128  # of a histogram: one for each two pixels of its drawing
SETTLE_S = 0.5  # the window follows the image this slowly, else the display flickers with the noise
DEAD_BAND = 0.01  # of the window's width; smaller changes are not followed: nobody sees them


class Window(NamedTuple):
    """Grey values drawn black and white."""

    low: float
    high: float


def grey_window(planes: Sequence[Pixels]) -> Window:
    """Percentiles 0.2 and 99.8 of a decimated sample of all `planes` (Y, X) together."""
    # Sorting 16-bit integers is faster than finding two percentiles of them.
    values = np.sort(np.concatenate([_sample(p) for p in planes]))
    at = np.array(PERCENTILES) / 100 * (len(values) - 1)
    low, high = np.interp(at, np.arange(len(values)), values)
    return Window(float(low), float(high))


def grey_range(planes: Sequence[Pixels]) -> Window:
    """Lowest and highest value of the same sample: how far a contrast slider need reach."""
    samples = np.concatenate([_sample(p) for p in planes])
    return Window(float(samples.min()), float(samples.max()))


def _sample(pixels: Pixels) -> NDArray[np.generic]:
    rows, columns = (max(1, n // SAMPLE_SIDE) for n in pixels.shape)
    return pixels[::rows, ::columns].ravel()


class AutoWindow:
    """A contrast window that follows the images without flicker. Not thread-safe."""

    def __init__(self) -> None:
        self._window: Window | None = None
        self._at = -math.inf

    def follow(self, target: Window, now_s: float) -> Window:
        """Move towards `target`; at once when the image has become another one altogether.

        Parameters
        ----------
        now_s : float
            Time of this image in seconds. The longer ago the previous one, the further the window moves, so
            that a slow scan is never drawn with the window of the frame before.
        """
        old = self._window
        elapsed, self._at = now_s - self._at, now_s
        if old is None or target.low >= old.high or target.high <= old.low:
            self._window = target
            return target
        share = 1 - math.exp(-max(elapsed, 0.0) / SETTLE_S)
        moved = Window(*(o + (t - o) * share for o, t in zip(old, target, strict=True)))
        band = DEAD_BAND * (old.high - old.low)
        if any(abs(t - o) > band for o, t in zip(old, target, strict=True)):
            self._window = moved
        return self._window or target


def to_8bit(pixels: Pixels, window: Window, gamma: float = 1.0) -> Grey:
    """Map `pixels` (Y, X) so that the window spans 0 to 255, clipped outside.

    Parameters
    ----------
    gamma : float
        Exponent between the window's ends: below 1 brightens what is dark.

    Raises
    ------
    InputError
        When a bound is not a number.
    """
    low, high = window
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"contrast from {low} to {high} is not a range: give two numbers")
    values = np.arange(np.iinfo(pixels.dtype).max + 1, dtype=np.float64)
    # A window narrower than one grey level is a step: everything above it is white.
    share = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    table = np.rint((share if gamma == 1 else share**gamma) * 255).astype(np.uint8)
    return np.take(table, pixels)


class Histogram(NamedTuple):
    """How often each grey value occurs in a sample; bins are equally wide from `low` to `high`."""

    low: float
    high: float
    counts: list[int]


def histogram(pixels: Pixels) -> Histogram:
    """Of a decimated sample of `pixels` (Y, X), from its darkest to its brightest."""
    sample = _sample(pixels)
    counts, edges = np.histogram(sample, BINS)
    return Histogram(float(edges[0]), float(edges[-1]), counts.tolist())
