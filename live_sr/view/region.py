"""Which pixels of a plane a canvas shows, reduced to what it can show. Knows pixels only.

A canvas of 600 pixels cannot show 2048: each of its pixels gets the mean of a whole number of the frame's, so
that sending and drawing cost what the canvas costs, not what the frame does. Enlarged, pixels stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from live_sr.client.feed import Plane
from live_sr.frame import Pixels


class Area(NamedTuple):
    """A rectangle of the field, in raw pixels; pixel 0 covers 0 to 1."""

    top: float
    left: float
    bottom: float
    right: float

    def within(self, shape: tuple[int, int]) -> Area:
        """The part inside a field (Y, X), one raw pixel or more."""
        top, left = (min(max(0.0, at), n - 1.0) for at, n in zip(self[:2], shape, strict=True))
        bottom, right = (min(at, float(n)) for at, n in zip(self[2:], shape, strict=True))
        return Area(top, left, max(bottom, top + 1), max(right, left + 1))


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows and columns of a plane, of which `factor` by `factor` become one drawn pixel."""

    rows: slice
    columns: slice
    factor: int

    def of(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """The pixels, not reduced: a view."""
        return pixels[self.rows, self.columns]

    @property
    def shape(self) -> tuple[int, int]:
        """(Y, X) of what is drawn."""
        rows, columns = (-(-(side.stop - side.start) // self.factor) for side in (self.rows, self.columns))
        return rows, columns

    def area(self, pixel: float) -> Area:
        """What it covers, when a pixel of the plane is `pixel` raw pixels wide."""
        rows, columns = self.rows, self.columns
        return Area(rows.start * pixel, columns.start * pixel, rows.stop * pixel, columns.stop * pixel)


Fit = Literal["fine", "near", "coarse"]
"""No fewer pixels than the canvas has, nearly as many, or no more."""


def raw_pixels(plane: Plane, scale: int) -> float:
    """Width of a pixel of `plane` in raw pixels; `scale` is 1 for raw planes."""
    return plane.step / scale


def reduction(area: Area, pixel: float, canvas: tuple[int, int], to: Fit) -> int:
    """How many pixels, `pixel` raw pixels wide, become one drawn pixel when `canvas` (Y, X) shows `area`.

    The nearest whole number gives, per side, at most half as many pixels again as the canvas has and at least
    two thirds: a running view must not pay double for a few pixels more.
    """
    ratio = max((area.bottom - area.top) / canvas[0], (area.right - area.left) / canvas[1]) / pixel
    return max(1, {"fine": math.floor(ratio), "near": math.floor(ratio + 0.5), "coarse": math.ceil(ratio)}[to])


def cut(shape: tuple[int, int], pixel: float, area: Area, factor: int) -> Cut:
    """The part of a plane (Y, X), with pixels `pixel` raw pixels wide, that covers `area`."""
    return Cut(
        _side(area.top / pixel, area.bottom / pixel, shape[0], factor),
        _side(area.left / pixel, area.right / pixel, shape[1], factor),
        factor,
    )


def _side(first: float, last: float, length: int, factor: int) -> slice:
    """Whole drawn pixels, counted from the frame's edge: they stay where they are while the view moves."""
    start = min(max(0, math.floor(first)), length - 1) // factor * factor
    stop = -(-min(max(math.ceil(last), start + 1), length) // factor) * factor
    return slice(start, min(stop, length))


def mean(pixels: Pixels, part: Cut) -> NDArray[np.float32]:
    """(Y, X) float32: the mean of each drawn pixel's pixels, at the frame's edge of those that there are."""
    k = part.factor
    seen = part.of(pixels)
    if k == 1:
        return seen.astype(np.float32)
    rows = np.zeros((part.shape[0], seen.shape[1]), np.uint32)
    for i in range(min(k, seen.shape[0])):  # the sum of 128 squared uint16 fits
        rows[: len(seen[i::k])] += seen[i::k]
    total = np.zeros(part.shape, np.uint32)
    for i in range(min(k, seen.shape[1])):
        total[:, : rows[:, i::k].shape[1]] += rows[:, i::k]
    average = total.astype(np.float32)
    average /= _counts(seen.shape[0], k)[:, None]
    average /= _counts(seen.shape[1], k)
    return average


def shown(pixels: Pixels, part: Cut) -> Pixels:
    """As :func:`mean`, in the dtype of `pixels`."""
    if part.factor == 1:
        return part.of(pixels)
    average = mean(pixels, part)
    rounded: Pixels = np.rint(average, out=average).astype(pixels.dtype)  # type: ignore[assignment]  # any dtype
    return rounded


def _counts(length: int, factor: int) -> NDArray[np.float32]:
    starts = np.arange(0, length, factor)
    return (np.minimum(starts + factor, length) - starts).astype(np.float32)


def extremes(pixels: Pixels, part: Cut, low: int, high: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(Y, X) bool, twice: drawn pixels in which one pixel or more is at most `low`, or at least `high`."""
    seen = part.of(pixels)
    return _any(seen <= low, part), _any(seen >= high, part)


def _any(found: NDArray[np.bool_], part: Cut) -> NDArray[np.bool_]:
    k = part.factor
    rows = np.zeros((part.shape[0], found.shape[1]), bool)
    for i in range(min(k, found.shape[0])):
        rows[: len(found[i::k])] |= found[i::k]
    out = np.zeros(part.shape, bool)
    for i in range(min(k, found.shape[1])):
        out[:, : rows[:, i::k].shape[1]] |= rows[:, i::k]
    return out
