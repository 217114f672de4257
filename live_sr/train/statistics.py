"""What frames say without knowing what they show: noise, power spectrum, histogram, line correlation.

Measures tiles, so that any part of the frames can be left out again to see how sure a number is. Knows neither
files nor crappifiers, imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Float = NDArray[np.float64]
Tiles = NDArray[np.float32]
"""(T, E, E) float32 in [0, 1], fractions of full scale."""

LEVELS = 24  # grey levels at which the noise is measured: some hundred pixels of a tile for each
LAGS = 12  # pixels: correlation in low-dose frames has died away by then
GREY_BINS = 2048  # over the full scale: fine enough for a frame that uses a tenth of it
SMOOTH_PX = 1.5  # sigma: leaves 1/28 of white noise's variance, and most of the structure
QUANTILE = 0.8  # of the absolute residual: twice as sure as the median, and still blind to the sharpest edges
NORMAL_QUANTILE = 1.2815515655446004  # the same of |x| for a standard normal x
CALM = 0.7  # of the pixels: without most edges
MIN_PIXELS = 20  # of a tile at one grey level: a quantile of fewer says little
REACH = 4  # sigmas kept of a Gaussian


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """The statistics of a set of tiles, all in fractions of full scale.

    Attributes
    ----------
    level, variance, count : (L,)
        Photon transfer: noise variance at each mean grey value, and the number of pixels it comes from.
        NaN at levels that hardly occur.
    mean : float
        Grey value over everything.
    noise : float
        Noise variance over everything.
    grey, cumulative, smooth : (G,)
        Share of the pixels below each grey value: as they are, and after smoothing, which takes the noise out.
    frequency, along, across : (F,)
        Cycles per pixel along a line; the mean power spectrum of the lines (white noise of variance v has the
        power v), and the co-spectrum of each line with the next, which is free of white noise.
    along_error, across_error : (F,)
        Their standard errors, from the scatter between tiles.
    radius, power : (R,)
        Cycles per pixel in any direction, and the power spectrum.
    lag, along_lines, across_lines : (LAGS,)
        Distance in pixels, and the correlation coefficient of pixels that far apart on one line, and of
        lines that far apart.
    """

    level: Float
    variance: Float
    count: Float
    mean: float
    noise: float
    grey: Float
    cumulative: Float
    smooth: Float
    frequency: Float
    along: Float
    across: Float
    along_error: Float
    across_error: Float
    radius: Float
    power: Float
    lag: Float
    along_lines: Float
    across_lines: Float

    def quantiles(self, shares: Float) -> Float:
        """Grey values of the smoothed frames below which these shares of the pixels lie."""
        return np.asarray(np.interp(shares, self.smooth, self.grey))


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Statistics of each tile, along the first axis of every array; :meth:`pool` makes curves of them."""

    count: Float  # (T, L)
    level: Float  # (T, L) sum of the local means
    variance: Float  # (T, L) noise variance
    mean: Float  # (T,)
    grey: Float  # (T, G) pixels
    smooth: Float  # (T, G) pixels
    along: Float  # (T, F)
    across: Float  # (T, F)
    power: Float  # (T, R)
    covariance_x: Float  # (T, LAGS + 1)
    covariance_y: Float  # (T, LAGS + 1)

    def __len__(self) -> int:
        return len(self.mean)

    def without(self, group: int, groups: int) -> Measured:
        """All but one of so many groups of consecutive tiles."""
        keep = np.arange(len(self)) * groups // len(self) != group
        return Measured(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})

    def pool(self) -> Curves:
        """The curves of all tiles together."""
        total = self.count.sum(0)
        with np.errstate(invalid="ignore"):  # 0 / 0 at a level that does not occur
            level = self.level.sum(0) / total
            variance = (self.count * self.variance).sum(0) / total
        along_x, along_y = self.covariance_x.mean(0), self.covariance_y.mean(0)
        return Curves(
            level=level,
            variance=variance,
            count=total,
            mean=float(self.mean.mean()),
            noise=float((self.count * self.variance).sum() / total.sum()),
            grey=np.arange(1, GREY_BINS + 1) / GREY_BINS,
            cumulative=_cumulative(self.grey),
            smooth=_cumulative(self.smooth),
            frequency=np.arange(self.along.shape[1]) / (2 * (self.along.shape[1] - 1)),
            along=self.along.mean(0),
            across=self.across.mean(0),
            along_error=self.along.std(0) / np.sqrt(len(self)),
            across_error=self.across.std(0) / np.sqrt(len(self)),
            radius=(np.arange(self.power.shape[1]) + 0.5) / (2 * self.power.shape[1]),
            power=self.power.mean(0),
            lag=np.arange(1.0, LAGS + 1),
            along_lines=along_x[1:] / max(along_x[0], 1e-30),
            across_lines=along_y[1:] / max(along_y[0], 1e-30),
        )


def cut(frames: Sequence[NDArray[Any]], edge: int) -> list[NDArray[Any]]:
    """All whole tiles (edge, edge) of frames (Y, X), from the middle of each, as views."""
    tiles = []
    for frame in frames:
        top, left = (n % edge // 2 for n in frame.shape)
        for y in range(top, frame.shape[0] - edge + 1, edge):
            tiles += [frame[y : y + edge, x : x + edge] for x in range(left, frame.shape[1] - edge + 1, edge)]
    return tiles


def grey_levels(tiles: Tiles) -> Float:
    """(LEVELS + 1,) bounds of the grey levels at which the noise of such tiles is to be measured."""
    low, high = np.quantile(_local_mean(tiles), (0.01, 0.99))
    return np.linspace(low, max(high, low + 1e-6), LEVELS + 1)


def measure(tiles: Tiles, levels: Float) -> Measured:
    """Measure each of (T, E, E) tiles.

    Noise is what the second difference along both axes leaves (Immerkaer 1996) away from edges, its variance
    from a quantile of the absolute value, so that the edges which remain hardly count.

    Parameters
    ----------
    levels : (LEVELS + 1,)
        Bounds from :func:`grey_levels`; the same for all that is to be compared.
    """
    centred = np.asarray(tiles - tiles.mean((1, 2), keepdims=True), np.float32)
    along, across = _line_spectra(centred)
    smooth = _smooth(tiles)
    count, level, variance = _photon_transfer(tiles, _calm(smooth), levels)
    return Measured(
        count=count,
        level=level,
        variance=variance,
        mean=tiles.mean((1, 2), dtype=np.float64),
        grey=_histograms(tiles),
        smooth=_histograms(smooth),
        along=along,
        across=across,
        power=_radial_power(centred),
        covariance_x=_covariances(centred),
        covariance_y=_covariances(centred.swapaxes(1, 2)),
    )


def _photon_transfer(tiles: Tiles, calm: NDArray[np.bool_], levels: Float) -> tuple[Float, Float, Float]:
    n = len(tiles)
    rows = tiles[:, :-2] - 2 * tiles[:, 1:-1] + tiles[:, 2:]
    residual = np.abs(rows[..., :-2] - 2 * rows[..., 1:-1] + rows[..., 2:]) / 6  # unit gain for white noise
    mean = _local_mean(tiles)
    bins = np.searchsorted(levels, mean) - 1
    inside = (bins >= 0) & (bins < LEVELS) & calm[:, 1:-1, 1:-1]
    group = np.where(inside, bins + LEVELS * np.arange(n)[:, None, None], n * LEVELS).ravel()
    count = np.bincount(group, minlength=n * LEVELS + 1)[:-1]
    level = np.bincount(group, mean.ravel(), minlength=n * LEVELS + 1)[:-1]
    # one sort by group and residual: each group is one stretch, and its quantile lies along it
    largest = 1.001 * max(float(residual.max()), 1e-6)
    ordered = np.sort(group + residual.ravel() / np.float64(largest))
    start = np.cumsum(count) - count
    at = np.minimum(start + np.rint(QUANTILE * np.maximum(count - 1, 0)).astype(np.int64), ordered.size - 1)
    quantile = (ordered[at] % 1) * largest
    enough = count >= MIN_PIXELS
    shape = (n, LEVELS)
    return (
        np.where(enough, count, 0).reshape(shape).astype(np.float64),
        np.where(enough, level, 0).reshape(shape).astype(np.float64),
        np.where(enough, (quantile / NORMAL_QUANTILE) ** 2, 0).reshape(shape).astype(np.float64),
    )


def _smooth(tiles: Tiles) -> Tiles:
    return np.asarray(gaussian_filter(tiles, SMOOTH_PX, axes=(1, 2), truncate=REACH), np.float32)


def _calm(smooth: Tiles) -> NDArray[np.bool_]:
    """Whether the gradients around a pixel are weak, so that little structure passes for noise."""
    down, right = np.gradient(smooth, axis=(1, 2))
    activity = _smooth(np.asarray(down**2 + right**2, np.float32))
    return np.asarray(activity <= np.quantile(activity, CALM))


def _local_mean(tiles: Tiles) -> Tiles:
    """Mean of 3 x 3 pixels: orthogonal to the second difference, so that noise does not link the two."""
    rows = tiles[:, :-2] + tiles[:, 1:-1] + tiles[:, 2:]
    return np.asarray((rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9, np.float32)


def _line_spectra(centred: Tiles) -> tuple[Float, Float]:
    window = np.hanning(centred.shape[2]).astype(np.float32)
    lines = np.fft.rfft(centred * window, axis=2) / np.sqrt((window**2).sum())
    along = (lines.real**2 + lines.imag**2).mean(1)
    next_line = (lines[:, :-1] * lines[:, 1:].conj()).real.mean(1)
    return along.astype(np.float64), next_line.astype(np.float64)


def _radial_power(centred: Tiles) -> Float:
    edge = centred.shape[1]
    window = np.hanning(edge).astype(np.float32)
    window2 = np.outer(window, window)
    power = np.abs(np.fft.rfft2(centred * window2)) ** 2 / (window2**2).sum()
    radius = np.hypot(np.fft.fftfreq(edge)[:, None], np.fft.rfftfreq(edge)[None])
    rings = edge // 4
    ring = np.minimum((radius * 2 * rings).astype(np.int64), rings).ravel()
    pixels = np.bincount(ring, minlength=rings + 1)[:rings]
    sums = np.stack([np.bincount(ring, p.ravel(), minlength=rings + 1)[:rings] for p in power])
    return np.asarray(sums / np.maximum(pixels, 1), np.float64)


def _covariances(centred: Tiles) -> Float:
    """(T, LAGS + 1) covariance of pixels 0, 1, 2 ... apart along the last axis."""
    edge = centred.shape[2]
    pairs = [(centred[..., : edge - k] * centred[..., k:]).mean((1, 2)) for k in range(LAGS + 1)]
    return np.stack(pairs, axis=1).astype(np.float64)


def _histograms(tiles: Tiles) -> Float:
    n = len(tiles)
    bins = np.clip((tiles * GREY_BINS).astype(np.int64), 0, GREY_BINS - 1).reshape(n, -1)
    flat = (bins + GREY_BINS * np.arange(n)[:, None]).ravel()
    return np.bincount(flat, minlength=n * GREY_BINS).reshape(n, GREY_BINS).astype(np.float64)


def _cumulative(histograms: Float) -> Float:
    total = np.cumsum(histograms.sum(0))
    return np.asarray(total / total[-1])
