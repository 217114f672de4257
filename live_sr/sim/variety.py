"""Random pictures of many kinds of specimen, to train on: what a network must not be surprised by.

Everything is drawn in pixels of the image, because that is what a network sees; nothing has a size in
micrometres and no two windows belong together (see `live_sr.sim.specimen` for that). Knows no microscope: no
noise, no drift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from live_sr.sim.specimen import Float, Index, line_cover, smoothstep, taps

Rng = np.random.Generator
Shape = tuple[int, int]

Kind = Literal[
    "cells",
    "myelin",
    "organelles",
    "filaments",
    "nuclei",
    "textures",
    "grains",
    "shapes",
    "stripes",
    "mixtures",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


def random_image(rng: Rng, shape: Shape, *, kinds: Sequence[Kind] | None = None) -> Float:
    """Draw a kind of specimen, its parameters and its exposure, and render it.

    Lines are from about 1.5 pixels wide, bodies up to about 60 and a few larger; either polarity; edges from
    anti-aliased steps to a blur of 3 pixels; contrast from a fifth of full scale to all of it.

    Parameters
    ----------
    rng
        The only source of randomness: equal states give equal pixels.
    shape
        (Y, X) of the image, at least 2 pixels each way.
    kinds
        Which to draw from, equally often; `KINDS` where not given.

    Returns
    -------
    (Y, X) float32 in [0, 1]
    """
    drawn = kinds or KINDS
    return _expose(rng, _draw(rng, shape, drawn[int(rng.integers(len(drawn)))]))


# ----------------------------------------------------------------------------------------------------
# From structure to picture.


TRIES = 8  # a small window may lie in the empty space between things; then it is drawn anew


def _draw(rng: Rng, shape: Shape, kind: Kind) -> Float:
    """Return one kind with grey values from 0 to 1, in the polarity it was painted."""
    for _ in range(TRIES):
        image = _PAINTERS[kind](rng, shape)
        if np.ptp(image) > 0.05:
            break
    return _stretch(image)


def _stretch(image: Float) -> Float:
    """Spread the grey values over 0 to 1; the outermost 0.2 % at either end may go."""
    step = max(1, image.shape[0] // 256), max(1, image.shape[1] // 256)
    low, high = np.percentile(image[:: step[0], :: step[1]], (0.2, 99.8))
    if high - low < 0.02:  # sparse: the structure is in the outermost values
        low, high = image.min(), image.max()
    return np.asarray(np.clip((image - low) / max(high - low, 1e-3), 0, 1), np.float32)


def _expose(rng: Rng, image: Float) -> Float:
    """Draw polarity, sharpness, grain, tone curve, contrast and brightness."""
    if rng.random() < 0.5:
        image = 1 - image
    if rng.random() < 0.55:
        image = _stretch(_blur(image, _log(rng, 0.4, 3.0)))
    curve = rng.random()
    if curve < 0.5:
        image = image ** _log(rng, 0.55, 1.8)
    elif curve < 0.6:  # towards two levels
        steep = _log(rng, 2, 6)
        image = 0.5 + 0.5 * np.tanh(steep * (image - rng.uniform(0.35, 0.65))) / math.tanh(steep / 2)
    span = min(_log(rng, 0.2, 1.6), 1.0)
    image = (1 - span) * rng.random() + span * image
    if rng.random() < 0.6:
        image = image + _grain(rng, image, span * 0.12 * rng.random() ** 2)
    if rng.random() < 0.35:
        slope = _noise(rng, image.shape, max(image.shape) * rng.uniform(0.4, 2.0))
        image = image * (1 + rng.uniform(0, 0.15) * slope) + rng.uniform(0, 0.08) * slope
    return np.asarray(np.clip(image, 0, 1), np.float32)


def _grain(rng: Rng, image: Float, strength: float) -> Float:
    """Return fine texture, stronger in the bright or in the dark areas."""
    lean = rng.uniform(-1, 1)
    return _noise(rng, image.shape, _log(rng, 1.2, 5)) * (strength * (1 + lean * (2 * image - 1)))


def _log(rng: Rng, low: float, high: float) -> float:
    return float(low * (high / low) ** rng.random())


def _pick(rng: Rng, *values: float) -> float:
    return values[int(rng.integers(len(values)))]


def _some(rng: Rng, chance: float) -> float:
    """Return a number from 0 to 1 with the given chance, else 0."""
    return float(rng.random() * (rng.random() < chance))


def _blur(image: Float, sigma: float) -> Float:
    """Gaussian blur; beyond the edges the weight goes to the pixels that are there."""
    for axis in (0, 1):
        at = np.arange(image.shape[axis], dtype=np.float32)
        weights = np.exp(-0.5 * ((at - at[:, None]) / np.float32(sigma)) ** 2)
        weights /= weights.sum(1, keepdims=True)
        image = weights @ image if axis == 0 else image @ weights.T
    return image


# ----------------------------------------------------------------------------------------------------
# Noise.

FLAT_STD = 0.2765  # of uniform [-1, 1] lattice values under a cubic B-spline in two dimensions


def _noise(rng: Rng, shape: Shape, lattice: float) -> Float:
    """Return smooth noise (Y, X), mean 0 and standard deviation 1, correlated over about `lattice` pixels."""
    (y, wy), (x, wx) = (taps(np.arange(n, dtype=np.float64) / lattice, 1 / lattice) for n in shape)
    values = rng.uniform(-1 / FLAT_STD, 1 / FLAT_STD, (len(y), len(x))).astype(np.float32)
    return np.asarray(wy @ values @ wx.T, np.float32)


def _spectrum(
    rng: Rng, shape: Shape, slope: float, band: tuple[float, float], aspect: float = 1.0, angle: float = 0.0
) -> Float:
    """Return noise (Y, X), mean 0 and standard deviation 1, of amplitude f**-slope.

    Parameters
    ----------
    band
        Lowest and highest frequency, cycles per pixel.
    aspect, angle
        How much longer than wide the structures are, and along which direction.
    """
    fy = np.fft.fftfreq(shape[0])[:, None]
    fx = np.fft.rfftfreq(shape[1])[None]
    along, across = fx * math.cos(angle) + fy * math.sin(angle), fy * math.cos(angle) - fx * math.sin(angle)
    f = np.hypot(along * math.sqrt(aspect), across / math.sqrt(aspect))
    low, high = band
    gain = np.maximum(f, 1e-4) ** -slope * (1 - np.exp(-((f / low) ** 2))) * np.exp(-((f / high) ** 2))
    waves = np.fft.rfft2(rng.standard_normal(shape, np.float32)) * gain.astype(np.float32)
    waves[0, 0] = 0
    image = np.fft.irfft2(waves, shape)
    return np.asarray(image / max(image.std(), 1e-9), np.float32)


def _distance(f: Float, level: float = 0.0) -> Float:
    """Return how far f's contour at `level` is, pixels, to first order; positive where f is above it."""
    slope = np.hypot(*np.gradient(f))
    return np.asarray((f - level) / (slope + 0.1 * slope.mean() + 1e-9), np.float32)


def _cover(fit: NDArray[Any]) -> Float:
    """Return the share of a pixel that lies inside an outline `fit` pixels away, positive inside."""
    return np.asarray(np.clip(fit + 0.5, 0, 1), np.float32)


def _off(phase: NDArray[Any]) -> Float:
    """Return the distance to the closest bar's middle, in bars; the bars are one unit of `phase` apart."""
    return np.asarray(np.abs(phase % 1 - 0.5), np.float32)


def _meet(a: NDArray[Any], b: NDArray[Any], rounding: float) -> Float:
    """Return the smaller of two distances with a round corner where they are equal."""
    crowd = np.maximum(rounding - np.abs(a - b), 0) ** 2 / (4 * rounding)
    return np.asarray(np.minimum(a, b) - crowd, np.float32)


# ----------------------------------------------------------------------------------------------------
# Packed cells: a power diagram of sites in several sizes, with distances to the boundaries.


class _Sites(NamedTuple):
    at: Float  # (n, 2) y, x in pixels, ordered by y
    radius: Float  # (n,)


class _Cells(NamedTuple):
    sites: _Sites
    near: Index  # (Y, X) cell each pixel lies in
    depth: Float  # (Y, X) distance to its boundary, pixels; below 0 in the gaps at corners
    away: Float  # (Y, X) distance to its site


LARGER = ((5.0, 0.3), (2.9, 0.45), (1.7, 0.6), (1.0, 1.0))  # sizes of sites, and how often
GIANT = 170.0  # pixels; sites larger than this would fill the picture
STRIPS = 16  # sites come row by row: a strip of them meets few of the larger ones
ROOM = 0.9  # of a site's radius: nearer than this no smaller site survives


def _sow(rng: Rng, shape: Shape, size: float, spread: float, disorder: float) -> _Sites:
    """Scatter sites about `size` pixels apart; `spread` from 0 to 1 adds larger ones among them."""
    at, radius = np.empty((0, 2), np.float32), np.empty(0, np.float32)
    for factor, often in LARGER:
        step = size * factor
        if factor > 1 and step > GIANT:
            continue
        n = [math.ceil(length / step) + 4 for length in shape]
        grid = np.stack(np.meshgrid(*(np.arange(k) for k in n), indexing="ij"), -1).reshape(-1, 2) - 1.5
        grid[:, 1] += 0.5 * (np.rint(grid[:, 0] - 0.5) % 2)  # rows shifted as in a honeycomb
        new = (grid + disorder * (rng.random(grid.shape) - 0.5)) * step
        new = new[rng.random(len(new)) < (often if factor == 1 else often * spread)].astype(np.float32)
        if len(at):
            new = np.concatenate([_outside(part, at, ROOM * radius) for part in np.array_split(new, STRIPS)])
        at = np.concatenate([at, new])
        own = step * (0.35 + 0.4 * spread * rng.random(len(new)) + 0.15 * (factor > 1))
        radius = np.concatenate([radius, own.astype(np.float32)])
    order = at[:, 0].argsort()
    return _Sites(at[order], radius[order])


def _outside(points: NDArray[Any], at: Float, radius: Float) -> NDArray[Any]:
    """Return those of the points (n, 2) that lie in none of the discs."""
    if not len(points):
        return points
    y = points[:, 0]
    some = (at[:, 0] + radius > y.min()) & (at[:, 0] - radius < y.max())
    squared = ((points[:, None] - at[some]) ** 2).sum(2)
    free: NDArray[np.bool_] = (squared > radius[some] ** 2).all(1)
    return points[free]


def _pack(
    rng: Rng, shape: Shape, size: float, *, spread: float, cap: float, round_px: float, wobble: float = 1.0
) -> _Cells:
    """Pack cells about `size` pixels wide, with boundaries warped up to `wobble` (0 to 1).

    Distances are known up to `cap` pixels; corners are rounded over `round_px`.
    """
    y, x = (np.arange(n, dtype=np.float32) for n in shape)
    tall, wide = np.broadcast_arrays(y[:, None], x[None])
    if rng.random() < 0.5:  # elongated: shrink one direction, stretch the other
        angle, longer = rng.uniform(0, math.pi), math.sqrt(_log(rng, 1.0, 3.0))
        s, c = math.sin(angle), math.cos(angle)
        along, across = (wide * c + tall * s) / longer, (tall * c - wide * s) * longer
        tall, wide = along * s + across * c, along * c - across * s
    tall, wide = tall - tall.min(), wide - wide.min()
    room = (math.ceil(tall.max()), math.ceil(wide.max()))
    wobble *= rng.random()
    for share, lattice in ((0.25, 1.6), (0.1, 0.6), (0.03, 0.25)):
        if lattice * size > 2:
            tall = tall + wobble * share * size * _noise(rng, shape, lattice * size)
            wide = wide + wobble * share * size * _noise(rng, shape, lattice * size)
    sites = _sow(rng, room, size, spread, rng.uniform(0.35, 0.95))
    return _divide(sites, np.stack([tall, wide]).astype(np.float32), size, cap, round_px)


def _divide(sites: _Sites, u: Float, size: float, cap: float, round_px: float) -> _Cells:
    """Find for each pixel the site of least power and the distance to its closest neighbour's plane.

    The power of a site is the squared distance less the squared radius; half the difference of two powers over
    the distance between the sites is the distance to the plane between them. Only sites whose plane with the
    leader at a block's centre comes within the block's radius and `cap` can win or bound there.

    Parameters
    ----------
    u : (2, Y, X)
        Warped coordinates y, x, pixels.
    """
    near, far = np.zeros(u.shape[1:], np.int32), np.zeros(u.shape[1:], np.int32)
    depth, power = np.empty(u.shape[1:], np.float32), np.empty(u.shape[1:], np.float32)
    block = min(max(round(size), 16), 48)
    reach = cap + 3 * size + sites.radius.max()
    squares = sites.radius**2
    for top in range(0, u.shape[1], block):
        for left in range(0, u.shape[2], block):
            box = slice(top, top + block), slice(left, left + block)
            points = u[(slice(None), *box)].reshape(2, -1)
            low, high = points.min(1), points.max(1)
            center, radius = (low + high) / 2, float(np.hypot(*(high - low))) / 2
            a, b = np.searchsorted(sites.at[:, 0], (low[0] - reach, high[0] + reach))
            at = sites.at[a:b] - center
            own = (at**2).sum(1) - squares[a:b]
            leader = own.argmin()
            apart = np.hypot(*(at - at[leader]).T)
            some = np.flatnonzero(own - own[leader] <= 2 * apart * (radius + cap))
            at = at[some]
            powers = own[some, None] - 2 * at @ (points - center[:, None])  # (n, pixels)
            first = powers.argmin(0)
            pairs = 2 * np.hypot(*(at[:, None] - at).transpose(2, 0, 1)) + 1e-6
            least = powers.min(0)
            gaps = (powers - least) / pairs[:, first]
            gaps[first, np.arange(len(first))] = 1e6
            closest = gaps.argmin(0)
            gap = gaps.min(0)
            if round_px > 0:
                crowd = np.exp((gap - gaps) / round_px).sum(0)
                gap -= round_px * np.log(crowd)
            size_here = near[box].shape
            near[box] = (some[first] + a).reshape(size_here)
            far[box] = (some[closest] + a).reshape(size_here)
            depth[box] = gap.reshape(size_here)
            squared = least + ((points - center[:, None]) ** 2).sum(0) + squares[some[first] + a]
            power[box] = squared.reshape(size_here)
    across = sites.at[far] - sites.at[near]  # (Y, X, 2)
    across /= np.hypot(across[..., 0], across[..., 1])[..., None] + 1e-6
    steep = [sum(across[..., k] * np.gradient(u[k], axis=axis) for k in (0, 1)) for axis in (0, 1)]
    depth = np.minimum(depth / np.maximum(np.hypot(*steep), 0.2), cap)
    return _Cells(sites, near, depth.astype(np.float32), np.sqrt(np.maximum(power, 0)).astype(np.float32))


# ----------------------------------------------------------------------------------------------------
# Scattered bodies: capsules, straight or bent, from granules to the links of a filament.


class _Bodies(NamedTuple):
    """Capsules; n of each."""

    at: Float  # (n, 2) centre y, x, pixels
    angle: Float
    half: Float  # half the length of the straight part, pixels; 0 for a disc
    radius: Float
    bend: Float  # how far the ends are off the straight line, per squared pixel


class _Stamped(NamedTuple):
    fit: Float  # (Y, X) distance to the outline of the body that covers most, positive inside, pixels
    key: Index  # (Y, X) which body; -1 where there is none


OUTSIDE = -99.0  # pixels from any outline
BATCH = 100  # bodies tried at once
PIECE = 2_000_000  # values worked on at a time


def _scatter(
    rng: Rng,
    shape: Shape,
    n: float,
    radius: tuple[float, float],
    aspect: tuple[float, float] = (1.0, 1.0),
    *,
    apart: float = 0.0,
    angle: float | None = None,
) -> _Bodies:
    """Scatter n bodies, the largest first; those closer than `apart` times their reaches are left out."""
    count = max(1, round(min(n, 6000)))
    widest = radius[1] * aspect[1]
    at = rng.random((count, 2)) * (np.array(shape) + 2 * widest) - widest
    size = np.sort(radius[0] * (radius[1] / radius[0]) ** rng.random(count))[::-1]
    half = size * (aspect[0] * (aspect[1] / aspect[0]) ** rng.random(count) - 1)
    turn = rng.uniform(0, math.pi, count) if angle is None else rng.normal(angle, 0.25, count)
    bend = rng.normal(0, 0.25, count) * half / (half + size) ** 2  # more than a banana's would fold over
    if apart > 0:
        reach = apart * (size + 0.6 * half)
        kept = np.empty(0, np.intp)
        for start in range(0, count, BATCH):
            free = np.arange(start, min(start + BATCH, count))
            free = free[~_touch(at, reach, free, kept).any(1)]
            earlier = np.tril(_touch(at, reach, free, free), -1)
            kept = np.concatenate([kept, free[~earlier.any(1)]])
        at, turn, half, size, bend = at[kept], turn[kept], half[kept], size[kept], bend[kept]
    return _Bodies(*(a.astype(np.float32) for a in (at, turn, half, size, bend)))


def _touch(
    at: NDArray[np.float64], reach: NDArray[np.float64], a: NDArray[np.intp], b: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Return which of the bodies `a` reach which of `b` (len(a), len(b))."""
    squared = ((at[a, None] - at[b]) ** 2).sum(2)
    return np.asarray(squared < (reach[a, None] + reach[b]) ** 2)


def _stamp(shape: Shape, bodies: _Bodies, margin: float = 1.5) -> _Stamped:
    """Draw the bodies' distances; outside of a body they are known up to `margin` pixels."""
    fit = np.full(shape[0] * shape[1], OUTSIDE, np.float32)
    key = np.full(shape[0] * shape[1], -1, np.int32)
    reach = bodies.radius + bodies.half + np.abs(bodies.bend) * bodies.half**2 + margin
    y, x = bodies.at.T
    seen = (y > -reach) & (y < shape[0] + reach) & (x > -reach) & (x < shape[1] + reach)
    order = np.flatnonzero(seen)
    order = order[reach[order].argsort()]
    start = 0
    while start < len(order):
        largest = reach[order[start]] * 1.4 + 1
        stop = int(np.searchsorted(reach[order], largest, "right"))
        half = math.ceil(reach[order[stop - 1]]) + 1
        stop = min(stop, start + max(1, PIECE // (2 * half + 1) ** 2))
        _stamp_some(shape, bodies, order[start:stop], half, margin, fit, key)
        start = stop
    return _Stamped(fit.reshape(shape), key.reshape(shape))


def _stamp_some(
    shape: Shape,
    bodies: _Bodies,
    some: NDArray[np.intp],
    half: int,
    margin: float,
    fit: Float,
    key: Index,
) -> None:
    y, x = bodies.at[some].T
    step = np.arange(-half, half + 1)
    rows = np.rint(y).astype(np.int64)[:, None] + step
    cols = np.rint(x).astype(np.int64)[:, None] + step
    dy, dx = (rows - y[:, None]).astype(np.float32)[:, :, None], (cols - x[:, None]).astype(np.float32)[:, None]
    s, c = (f(bodies.angle[some])[:, None, None] for f in (np.sin, np.cos))
    long, radius, bend = (a[some][:, None, None] for a in (bodies.half, bodies.radius, bodies.bend))
    along = dx * c + dy * s
    across = dy * c - dx * s
    if bend.any():
        across -= bend * np.minimum(along**2, (long + radius) ** 2)
    np.maximum(np.abs(along) - long, 0, out=along)
    value = radius - np.hypot(along, across)
    inside = ((rows >= 0) & (rows < shape[0]))[:, :, None] & ((cols >= 0) & (cols < shape[1]))[:, None]
    inside &= value > -margin
    target = (rows[:, :, None] * shape[1] + cols[:, None])[inside]
    value = value[inside]
    np.maximum.at(fit, target, value)
    won = value == fit[target]
    key[target[won]] = np.broadcast_to(some[:, None, None], inside.shape)[inside][won]


def _axes(bodies: _Bodies, key: Index) -> tuple[Float, Float]:
    """Return each pixel's place along and across its body, pixels; without meaning where there is none."""
    y, x = np.arange(key.shape[0])[:, None] - bodies.at[key, 0], np.arange(key.shape[1]) - bodies.at[key, 1]
    s, c = np.sin(bodies.angle)[key], np.cos(bodies.angle)[key]
    return np.asarray(x * c + y * s, np.float32), np.asarray(y * c - x * s, np.float32)


# ----------------------------------------------------------------------------------------------------
# The kinds. Grey values are free: `_stretch` brings them to 0 to 1.


def _paint(image: Float, cover: NDArray[Any], tone: NDArray[Any] | float) -> None:
    """Lay `tone` over the image where `cover` says, in place."""
    image += cover * (tone - image)


def _cells(rng: Rng, shape: Shape) -> Float:
    """Packed cells with one membrane, two, a gap between them, or none."""
    width = _log(rng, 1.2, 8)
    size = max(_log(rng, 10, 90), 5 * width)
    rounding = size * _pick(rng, 0.0, 0.03, 0.1)
    cells = _pack(rng, shape, size, spread=_some(rng, 0.7), cap=size, round_px=rounding)
    n = len(cells.sites.radius)
    style = rng.choice(["single", "double", "gap", "touching"], p=[0.35, 0.3, 0.25, 0.1])
    uneven = rng.uniform(0.2, 0.6) if style == "touching" else 0.4 * _some(rng, 0.7)
    tones = 0.7 + uneven * (rng.random(n) - 0.5)
    tones -= rng.uniform(0.1, 0.35) * (rng.random(n) < _pick(rng, 0, 0.1, 0.3))  # dark cells
    tones += rng.uniform(0.1, 0.35) * (rng.random(n) < _pick(rng, 0, 0.1))  # empty ones
    image = tones.astype(np.float32)[cells.near]
    if rng.random() < 0.6:
        rough = (rng.random(n) * rng.uniform(0, 0.1)).astype(np.float32)[cells.near]
        image += rough * _noise(rng, shape, _log(rng, 1.8, 10))
    if rng.random() < 0.4 and size > 16:
        _stuff(rng, cells.depth - width, size, image)
    if rng.random() < 0.25 and size > 20:
        core = cells.sites.radius[cells.near] * rng.uniform(0.35, 0.6) - cells.away
        core = _meet(core + 0.03 * size * _noise(rng, shape, 0.4 * size), cells.depth - 1.5 * width, 2.0)
        _paint(image, _cover(core), rng.uniform(0.3, 0.9))
        _paint(image, line_cover(core, min(width, 2.0), 1.0), rng.uniform(0.0, 0.5))
    thick = width * np.clip(1 + rng.uniform(0, 0.35) * _noise(rng, shape, 0.6 * size), 0.4, 2)
    dark = rng.uniform(0.0, 0.35)
    if style == "single":
        _paint(
            image, line_cover(cells.depth, 1.0, 1.0) if width < 1.5 else _cover(thick / 2 - cells.depth), dark
        )
    elif style == "double":
        gap = width * rng.uniform(0.4, 1.5)
        _paint(image, _cover(gap / 2 - cells.depth), rng.uniform(0.4, 1.0))
        _paint(image, line_cover(cells.depth - (gap + width) / 2, width, 1.0), dark)
    elif style == "gap":
        gap = min(width * rng.uniform(0.5, 3), 0.25 * size)
        _paint(image, _cover(gap / 2 * thick / width - cells.depth), rng.uniform(0.0, 1.2))
        if rng.random() < 0.5:
            _paint(image, line_cover(cells.depth - gap / 2, min(width, 2.5), 1.0), dark)
    return image


def _stuff(rng: Rng, room: Float, size: float, image: Float) -> None:
    """Put small round bodies into cells, where there is room."""
    shape = image.shape[0], image.shape[1]
    radius = _log(rng, 1.0, max(0.12 * size, 1.5))
    bodies = _scatter(
        rng,
        shape,
        rng.uniform(0.03, 0.15) * image.size / (3 * radius**2),
        (0.7 * radius, 1.4 * radius),
        (1.0, 1.0 + 2 * _some(rng, 0.5)),
        apart=1.1 if radius > 3 else 0.0,
    )
    stamped = _stamp(shape, bodies)
    fits = smoothstep(room, 0.5 * radius, radius + 1)
    cover = _cover(stamped.fit) * fits
    _paint(image, cover, rng.uniform(0.0, 1.0))
    if radius > 2.5 and rng.random() < 0.6:
        _paint(image, line_cover(stamped.fit - 0.8, 1.5, 1.0) * fits, rng.uniform(0.0, 0.4))


def _myelin(rng: Rng, shape: Shape) -> Float:
    """Cross-cut axons in sheaths, packed or loose, as in white matter, nerve and spinal cord."""
    size = _log(rng, 9, 55)
    cells = _pack(
        rng, shape, size, spread=rng.uniform(0.3, 1), cap=1.3 * size, round_px=size * rng.uniform(0.03, 0.12)
    )
    radius, n = cells.sites.radius, len(cells.sites.radius)
    gap = size * rng.uniform(0.0, 0.12)
    loose = rng.uniform(0.95, 1.5)  # how far round axons grow into the corners
    fit = _meet(cells.depth - gap, loose * radius[cells.near] - cells.away, 0.3 * size)
    fit += 0.02 * size * _noise(rng, shape, 0.35 * size)
    fit = np.where((rng.random(n) < _some(rng, 0.6) * 0.3)[cells.near], -size, fit)  # here is no axon
    wrapped = rng.random(n) < rng.uniform(0.7, 1.0)
    share = rng.uniform(0.2, 0.55) * rng.uniform(0.7, 1.3, n) * (0.5 * size / radius) ** rng.uniform(0, 0.4)
    uneven = np.clip(1 + rng.uniform(0.03, 0.25) * _noise(rng, shape, 0.7 * size), 0.4, 1.8)
    sheath = np.where(wrapped, np.clip(share * radius, 1.5, size), 1.2).astype(np.float32)[cells.near] * uneven
    inner = fit - sheath + rng.uniform(0, 0.06) * size * _noise(rng, shape, 0.3 * size)
    matrix, dark, plasm = rng.uniform(0.35, 1.0), rng.uniform(0.0, 0.2), rng.uniform(0.5, 1.0)

    image = np.full(shape, matrix, np.float32)
    image += rng.uniform(0, 0.1) * _noise(rng, shape, _log(rng, 2, 12))
    if rng.random() < 0.5:
        _stuff(rng, -fit, size / 3, image)
    tone = (dark + 0.12 * rng.random(n) + 0.3 * ~wrapped).astype(np.float32)[cells.near]
    if rng.random() < 0.6:
        period = _log(rng, 2.2, max(2.5, 0.2 * size))
        turns = np.cos(2 * np.pi * (fit + 0.4 * period * _noise(rng, shape, 0.6 * size)) / period)
        tone += rng.uniform(0.05, 0.25) * turns * float(np.sinc(1 / period))
    if rng.random() < 0.5:  # the sheath comes apart
        splits = smoothstep(_noise(rng, shape, 0.25 * size), 1.3, 1.6) * smoothstep(inner + sheath, 1, 3)
        tone += (plasm - tone) * splits * 0.8
    _paint(image, _cover(fit), tone)
    axon = (plasm + 0.15 * (rng.random(n) - 0.5)).astype(np.float32)[cells.near]
    if rng.random() < 0.6:
        axon += rng.uniform(0, 0.08) * _noise(rng, shape, _log(rng, 1.5, 6))
    if rng.random() < 0.6:
        _stuff(rng, inner - 1, size, axon)
    if rng.random() < 0.3:  # shrunken axons leave an empty ring
        shrunk = inner - size * rng.uniform(0.02, 0.1) * (1 + 0.5 * _noise(rng, shape, 0.5 * size))
        _paint(axon, _cover(-shrunk), rng.uniform(0.85, 1.1))
    _paint(image, _cover(inner), axon)
    if rng.random() < 0.35:  # edges stand out
        rim = _log(rng, 1.0, 3.0)
        strength = rng.uniform(-0.25, 0.25)
        image += strength * np.maximum(line_cover(fit - rim, rim, 1.0), line_cover(inner, rim, 1.0))
    return image


def _organelles(rng: Rng, shape: Shape) -> Float:
    """Cytoplasm at high magnification: mitochondria, reticulum, vesicle clouds, granules."""
    scale = _log(rng, 6, 45)  # half the width of a mitochondrion, pixels
    image = np.full(shape, 0.7, np.float32)
    image += rng.uniform(0, 0.08) * _spectrum(rng, shape, rng.uniform(0.5, 1.5), (0.002, 0.3))
    blur = _log(rng, 1.0, max(1.1, 0.12 * scale))  # width of a membrane, pixels
    if rng.random() < 0.5:
        cells = _pack(rng, shape, scale * rng.uniform(5, 12), spread=0.5, cap=2 * scale, round_px=0.2 * scale)
        wall = cells.depth
        image += 0.15 * (rng.random(len(cells.sites.radius)).astype(np.float32)[cells.near] - 0.5)
        _paint(image, line_cover(wall, 1.2 * blur, 1.0), 0.1)
    else:
        wall = np.full(shape, 2 * scale, np.float32)
    if rng.random() < 0.6:
        _reticulum(rng, wall, scale, blur, image)
    if rng.random() < 0.6:
        cloud = smoothstep(_noise(rng, shape, 5 * scale), rng.uniform(-0.8, 0.5), 0.9)
        _vesicles(rng, cloud * smoothstep(wall, 0.2 * scale, 0.5 * scale), scale, blur, image)
    if rng.random() < 0.85:
        _mitochondria(rng, wall, scale, blur, image)
    if rng.random() < 0.4:
        few = rng.uniform(0.02, 0.1) * image.size / scale**2
        bodies = _scatter(rng, shape, few, (0.3 * scale, 0.9 * scale), apart=1.1)
        stamped = _stamp(shape, bodies, 0.2 * scale + 2)
        fit = stamped.fit + 0.08 * scale * _noise(rng, shape, 0.6 * scale)
        fit = _meet(fit, wall - 0.2 * scale, 0.2 * scale)
        tone = (0.05 + 0.5 * rng.random(len(bodies.radius)) ** 2).astype(np.float32)[stamped.key]
        _paint(image, _cover(fit), tone + 0.1 * _noise(rng, shape, 0.2 * scale + 1))
    return image


def _reticulum(rng: Rng, wall: Float, scale: float, blur: float, image: Float) -> None:
    """Draw pairs of membranes along the contours of noise, stacked where several levels are drawn."""
    shape = image.shape[0], image.shape[1]
    aspect = _log(rng, 1.5, 6)
    field = _spectrum(rng, shape, 1.5, (0.1 / scale, 0.5 / scale), aspect, rng.uniform(0, math.pi))
    where = smoothstep(_noise(rng, shape, 4 * scale), 0.0, 0.7) * smoothstep(wall, 0.2 * scale, 0.5 * scale)
    apart, lumen = scale * rng.uniform(0.35, 0.9), scale * rng.uniform(0.08, 0.2)
    stack = int(rng.integers(1, 5))
    middle = _distance(field)
    for k in range(stack):
        d = np.abs(middle - (k - (stack - 1) / 2) * apart)
        _paint(image, _cover(lumen / 2 - d) * where, rng.uniform(0.75, 0.95))
        _paint(image, line_cover(d - lumen / 2 - blur / 2, blur, 1.0) * where, 0.15)


def _vesicles(rng: Rng, where: Float, scale: float, blur: float, image: Float) -> None:
    shape = image.shape[0], image.shape[1]
    radius = scale * rng.uniform(0.12, 0.3) + 1
    spread = rng.uniform(1.02, 1.4)
    n = min(rng.uniform(0.4, 1.0) * image.size / (4 * radius**2), 5000)
    bodies = _scatter(rng, shape, n, (radius / spread, radius * spread), apart=1.05 if n < 1500 else 0)
    here = where[tuple(np.clip(np.rint(bodies.at).astype(int), 0, np.array(shape) - 1).T)]
    kept = here > rng.random(len(here))
    bodies = _Bodies(*(a[kept] for a in bodies))
    if not len(bodies.at):
        return
    stamped = _stamp(shape, bodies)
    dense = (rng.random(len(bodies.at)) < _pick(rng, 0, 0.15, 0.7)).astype(np.float32)[stamped.key]
    _paint(image, _cover(stamped.fit), np.where(dense > 0, np.float32(0.3), image + 0.08))
    _paint(image, line_cover(stamped.fit - blur / 2, blur, 1.0), 0.12)
    _paint(image, _cover(stamped.fit - 0.35 * radius) * dense, 0.05)


def _mitochondria(rng: Rng, wall: Float, scale: float, blur: float, image: Float) -> None:
    shape = image.shape[0], image.shape[1]
    many = rng.uniform(0.8, 3.0) * image.size / (12 * scale**2)
    bodies = _scatter(rng, shape, many, (0.7 * scale, 1.3 * scale), (1.0, rng.uniform(1.5, 6)), apart=1.0)
    stamped = _stamp(shape, bodies, 0.3 * scale + 2)
    fit = stamped.fit + 0.06 * scale * _noise(rng, shape, 0.7 * scale)
    fit = _meet(fit, wall - 0.15 * scale, 0.3 * scale)
    along, across = _axes(bodies, stamped.key)
    matrix = rng.uniform(0.25, 0.6)
    inside = matrix + 0.15 * (rng.random(len(bodies.at)) - 0.5).astype(np.float32)[stamped.key]
    inside += rng.uniform(0, 0.06) * _noise(rng, shape, 0.15 * scale + 1)
    period = max(scale * rng.uniform(0.25, 0.6), 2.2)
    folds = along + rng.uniform(0.1, 0.5) * period * _noise(rng, shape, 0.6 * scale)
    if rng.random() < 0.3:  # cristae along the body
        folds = folds + across - along
    bars = _off(folds / period) * period
    sides = smoothstep(_noise(rng, shape, 0.5 * scale), -0.9, -0.4)  # folds that end inside
    crista = line_cover(bars, min(0.45 * period, 1.6 * blur), 1.0) * sides * smoothstep(fit, blur, 2 * blur + 1)
    light = rng.random() < 0.5
    _paint(inside, crista, matrix + (0.35 if light else -0.25))
    _paint(image, _cover(fit), inside)
    _paint(image, line_cover(fit - blur / 2, blur, 1.0), 0.05)
    if scale > 14:  # the second membrane
        _paint(image, line_cover(fit - 2 * blur, 0.8 * blur, 1.0), matrix + 0.3)
        _paint(image, line_cover(fit - 3 * blur, 0.7 * blur, 1.0), 0.12)


def _filaments(rng: Rng, shape: Shape) -> Float:
    """Thin curved fibres: networks, bundles, asters; some hollow, some beaded."""
    width = _log(rng, 1.2, 9)
    image = np.zeros(shape, np.float32)
    density = _log(rng, 0.05, 0.8)  # of the area, were there no crossings
    layers = int(rng.integers(1, 4))
    straight, order = _log(rng, 15, 800), rng.choice(["free", "aligned", "field", "aster"])
    hollow = width > 4 and rng.random() < 0.5
    adds = rng.random() < 0.6  # crossings add up, as in fluorescence; else one hides the other
    for _ in range(layers):
        length = _log(rng, 60, 1.2 * max(shape) + 61)
        count = max(density / layers * image.size / (length * width), 12 if order == "aster" else 2)
        links, owner = _walk(rng, shape, round(count), length, width, straight, order)
        stamped = _stamp(shape, links)
        d = width / 2 - stamped.fit
        line = line_cover(d, width, 1.0)
        if hollow:
            line *= 1 - rng.uniform(0.4, 0.9) * line_cover(d, 0.45 * width, 1.0)
        own = rng.uniform(rng.uniform(0.1, 0.9), 1, owner.max() + 1).astype(np.float32)
        tone = own[owner[stamped.key]]
        if rng.random() < 0.25:
            tone = tone * np.clip(0.7 + 0.4 * _noise(rng, shape, _log(rng, 2, 12)), 0.1, 2)
        if adds:
            image += line * tone
        else:
            _paint(image, line, tone)
    if rng.random() < 0.5:  # haze of what is out of focus
        image += _blur(image, _log(rng, 4, 25)) * rng.uniform(0.3, 1.5)
    if rng.random() < 0.3:
        image *= np.clip(0.7 + 0.4 * _noise(rng, shape, _log(rng, 40, 300)), 0.1, 2)
    if rng.random() < 0.4:
        image += rng.uniform(0, 0.07) * _spectrum(rng, shape, rng.uniform(1, 1.6), (0.003, 0.2))
    if rng.random() < 0.25:
        spots = _scatter(rng, shape, _log(rng, 5, 300), (1.0, 1.5 * width + 1))
        image += rng.uniform(0.3, 1) * _cover(_stamp(shape, spots).fit)
    return image


def _walk(
    rng: Rng, shape: Shape, count: int, length: float, width: float, straight: float, order: str
) -> tuple[_Bodies, Index]:
    """Return the links of `count` fibres that wander, and the fibre each belongs to.

    `straight` is the persistence length in pixels: over it, the direction changes by about a radian.
    """
    step = max(0.6 * width, 2.0)
    steps = max(2, round(length / step))
    count = min(count, 60_000 // steps + 1)
    at = rng.random((count, 2)) * (np.array(shape) + length) - length / 2
    angle = rng.uniform(0, 2 * math.pi, count)
    field = np.zeros((2, 2), np.float32)
    if order == "aligned":
        angle = rng.normal(rng.uniform(0, math.pi), rng.uniform(0.03, 0.4), count)
    elif order == "field":
        field = 1.2 * _noise(rng, (64, 64), _log(rng, 12, 60)) + rng.uniform(0, 2 * math.pi)
    elif order == "aster":
        centers = rng.random((int(rng.integers(1, 4)), 2)) * shape
        at = centers[rng.integers(len(centers), size=count)] + rng.normal(0, 2 * width, (count, 2))
    turns = rng.normal(0, math.sqrt(step / straight), (steps, count))
    turns = (turns + np.roll(turns, 1, 0) + np.roll(turns, 2, 0)) / math.sqrt(3)  # no kinks
    path = np.empty((steps + 1, count, 2))
    for k in range(steps):
        path[k] = at
        angle = angle + turns[k]
        if order == "field":
            cell = np.clip(at / max(shape) * 64, 0, 63).astype(int)
            angle += 0.25 * np.sin(field[cell[:, 0], cell[:, 1]] - angle)
        at = at + step * np.stack([np.sin(angle), np.cos(angle)], 1)
    path[steps] = at
    middle, way = (path[1:] + path[:-1]) / 2, path[1:] - path[:-1]
    n = steps * count
    links = _Bodies(
        middle.reshape(n, 2).astype(np.float32),
        np.arctan2(way[..., 0], way[..., 1]).reshape(n).astype(np.float32),
        np.full(n, step / 2, np.float32),
        np.full(n, width / 2, np.float32),
        np.zeros(n, np.float32),
    )
    return links, np.tile(np.arange(count, dtype=np.int32), steps)


def _nuclei(rng: Rng, shape: Shape) -> Float:
    """Nuclei with chromatin and nucleoli, stained bright or in a grey cytoplasm."""
    size = _log(rng, 8, 75)  # radius
    crowd = rng.uniform(0.5, 3)
    uneven = rng.uniform(1.05, 1.6)
    bodies = _scatter(
        rng,
        shape,
        crowd * math.prod(n + 2 * size for n in shape) / (3 * size**2),
        (size / uneven, size * uneven),
        (1.0, rng.uniform(1.05, 2.2)),
        apart=rng.uniform(0.8, 1.15),
    )
    stamped = _stamp(shape, bodies, 0.4 * size + 2)
    n, key = len(bodies.at), stamped.key
    fit = stamped.fit + rng.uniform(0.03, 0.15) * size * _noise(rng, shape, rng.uniform(0.5, 1.2) * size)
    glow = rng.random() < 0.5  # fluorescence: nothing but nuclei
    plasm = 0.0 if glow else _pick(rng, 0.4, 0.9) + rng.uniform(-0.1, 0.1)
    image = np.full(shape, plasm, np.float32)
    if not glow:
        image += rng.uniform(0.01, 0.07) * _spectrum(rng, shape, rng.uniform(0.7, 1.5), (0.4 / size, 0.25))
        if rng.random() < 0.4:
            _stuff(rng, -fit, 0.8 * size, image)
    tone = rng.uniform(0.4, 1, n) if glow else rng.uniform(0.5, 0.7) + 0.1 * rng.random(n)
    inside = tone.astype(np.float32)[key]
    grainy = _spectrum(rng, shape, rng.uniform(0.9, 1.8), (0.7 / size, 0.3))
    inside *= 1 + rng.uniform(0.03, 0.2) * grainy
    clumps = smoothstep(grainy + _noise(rng, shape, 0.25 * size + 1), 0.4, rng.uniform(0.7, 1.5))
    rim = smoothstep(-fit, -rng.uniform(0.1, 0.3) * size, 0) if rng.random() < 0.6 else 0.0
    _paint(inside, np.maximum(clumps, rim) * rng.uniform(0, 0.8), 1.0 if glow else 0.12)
    spots = _scatter(rng, shape, image.size / (2 * size**2), (0.12 * size, 0.35 * size), (1.0, 1.3), apart=1.2)
    core = _stamp(shape, spots, 0.1 * size + 2).fit + 0.06 * size * _noise(rng, shape, 0.2 * size + 1)
    core = _meet(core, fit - 0.2 * size, 0.1 * size)
    _paint(inside, _cover(core), rng.uniform(0.0, 0.35))
    _paint(image, _cover(fit), inside)
    if not glow and rng.random() < 0.7:
        width = _log(rng, 1.2, max(1.5, 0.08 * size))
        _paint(image, line_cover(fit, width, 1.0), rng.uniform(0, 0.2))
        if rng.random() < 0.5:
            _paint(image, line_cover(np.asarray(fit + 2 * width, np.float32), width, 1.0), rng.uniform(0, 0.3))
    if glow and rng.random() < 0.6:
        image += _blur(image, _log(rng, 0.2 * size + 2, size + 3)) * rng.uniform(0.05, 0.5)
    return image


def _textures(rng: Rng, shape: Shape) -> Float:
    """Structures without bodies: spectra of many slopes and bands, ridges, two phases, marbling."""
    aspect, angle = _log(rng, 1, 8) if rng.random() < 0.5 else 1.0, rng.uniform(0, math.pi)
    style = rng.choice(["fractal", "band", "ridges", "phases", "marble", "patchy"])
    period = _log(rng, 5, 60)
    if style == "fractal":
        return _spectrum(rng, shape, rng.uniform(0.5, 1.7), (0.3 / period, 0.35), aspect, angle)
    if style == "band":
        return _spectrum(rng, shape, 0.0, (0.7 / period, 1.2 / period), aspect, angle)
    if style == "ridges":
        field = _spectrum(rng, shape, rng.uniform(1, 2), (0.5 / period, 2 / period), aspect, angle)
        d = np.abs(_distance(field))
        width = _log(rng, 1.2, max(1.5, 0.3 * period))
        return np.asarray(line_cover(d, width, 1.0) + 0.3 * np.exp(-d / period) + 0.1 * field, np.float32)
    if style == "phases":  # two, as in a foam, an alloy or a blend
        field = _spectrum(rng, shape, rng.uniform(0, 1.5), (0.5 / period, 1.3 / period), aspect, angle)
        phase = _cover(_distance(field, rng.uniform(-0.7, 0.7)))
        fine = _spectrum(rng, shape, rng.uniform(0, 1), (0.05, 0.35))
        return phase + rng.uniform(0, 0.12) * fine * (phase + rng.uniform(0, 1))
    coarse = _spectrum(rng, shape, 1.5, (0.01, 0.05 + 0.5 / period))
    if style == "marble":
        folds = coarse * rng.uniform(1, 4)
        return np.asarray(_bars(folds, rng.uniform(0.2, 0.7), sharp=rng.random() < 0.5), np.float32)
    fine = _spectrum(rng, shape, rng.uniform(0, 1.2), (0.3 / period, 0.35), aspect, angle)
    return np.asarray(fine * smoothstep(coarse, -1, 1) + rng.uniform(0, 0.6) * coarse, np.float32)


def _bars(phase: NDArray[Any], duty: float, *, sharp: bool) -> Float:
    """Return bars one unit of `phase` apart; where they are finer than two pixels they fade to their mean."""
    steep = np.hypot(*np.gradient(phase)) + 1e-6  # periods per pixel
    fade = 1 - smoothstep(steep, 0.35, 0.5)
    if sharp:
        off = _off(phase)
        wave = np.clip((duty / 2 - off) / steep + 0.5, 0, 1)
    else:
        duty = 0.5
        wave = 0.5 + 0.5 * np.cos(2 * np.pi * phase)
    return np.asarray(duty + fade * (wave - duty), np.float32)


def _grains(rng: Rng, shape: Shape) -> Float:
    """Straight-edged crystals with twins, pores and scratches; tiles."""
    size = _log(rng, 9, 120)
    cells = _pack(
        rng, shape, size, spread=_some(rng, 0.7), cap=0.5 * size, round_px=0.0, wobble=_some(rng, 0.4)
    )
    n = len(cells.sites.radius)
    levels = int(_pick(rng, 2, 3, 5, 50))
    tones = (rng.integers(levels, size=n) / max(levels - 1, 1)).astype(np.float32)
    image = tones[cells.near] * rng.uniform(0.2, 1)
    if rng.random() < 0.5:  # twins: bars of their own direction and width in some of the grains
        angle, period = rng.uniform(0, math.pi, n), size * rng.uniform(0.1, 0.6, n) + 3
        y, x = (np.arange(k, dtype=np.float32) for k in shape)
        ky, kx = (((f(angle) / period).astype(np.float32))[cells.near] for f in (np.sin, np.cos))
        phase = y[:, None] * ky + x * kx
        off = _off(phase) / np.asarray(np.hypot(ky, kx), np.float32)
        wide = (rng.uniform(0.1, 0.6, n) * period).astype(np.float32)[cells.near]
        twins = _cover(wide / 2 - off) * (rng.random(n) < 0.5)[cells.near]
        _paint(image, twins, image + rng.uniform(-0.5, 0.5))
    if rng.random() < 0.4:
        rough = (rng.random(n) * rng.uniform(0, 0.15)).astype(np.float32)[cells.near]
        image += rough * _noise(rng, shape, _log(rng, 1.5, 5))
    if rng.random() < 0.3:  # relief towards the boundary
        image += rng.uniform(-0.3, 0.3) * smoothstep(cells.depth, 0, 0.4 * size)
    if rng.random() < 0.65:
        width = _log(rng, 1.0, max(1.2, 0.12 * size))
        _paint(image, line_cover(cells.depth, width, 1.0), _pick(rng, -0.2, 0.0, 1.0, 1.3))
    if rng.random() < 0.4:
        _stuff(rng, cells.depth + 3, size, image)
    if rng.random() < 0.3:
        image += rng.uniform(-0.4, 0.4) * _scratches(rng, shape)
    return image


def _scratches(rng: Rng, shape: Shape) -> Float:
    """Return long thin lines, most in one direction, as polishing and knives leave them."""
    n = round(_log(rng, 3, 60))
    bodies = _scatter(rng, shape, n, (0.4, _log(rng, 0.6, 2.5)), (20, 400), angle=rng.uniform(0, math.pi))
    bodies = bodies._replace(bend=np.zeros_like(bodies.bend))
    stamped = _stamp(shape, bodies)
    radius = bodies.radius[stamped.key]
    return line_cover(radius - stamped.fit, 2 * bodies.radius.max(), 1.0) * (stamped.key >= 0)


def _shapes(rng: Rng, shape: Shape) -> Float:
    """Discs, rings, bars and polygons that hide one another (the dead-leaves model of Matheron)."""
    smallest, largest = _log(rng, 1.5, 8), _log(rng, 25, 110)
    falling = rng.uniform(1.5, 3.2)  # sizes are drawn from size**-falling
    u, e = rng.random(900), 1 - falling
    sizes = (smallest**e + u * (largest**e - smallest**e)) ** (1 / e)
    covered = np.cumsum(2 * sizes**2) / math.prod(shape)
    sizes = sizes[: max(20, int(np.searchsorted(covered, _log(rng, 0.15, 4))))]
    if rng.random() < 0.5:
        sizes = np.sort(sizes)[::-1]
    forms = rng.choice(["disc", "ellipse", "polygon", "bar", "ring"], size=int(rng.integers(1, 6)))
    levels = int(_pick(rng, 2, 3, 6, 1000))
    image = np.full(shape, rng.random(), np.float32)
    fill = _noise(rng, shape, _log(rng, 1.5, 10)) * rng.uniform(0, 0.1)
    for size in sizes:
        form = forms[rng.integers(len(forms))]
        center = rng.random(2) * (np.array(shape) + size) - size / 2
        tone = rng.integers(levels) / (levels - 1)
        _leaf(rng, image, fill, form, center, float(size), float(tone))
    return image


def _leaf(
    rng: Rng, image: Float, fill: Float, form: str, center: NDArray[np.float64], size: float, tone: float
) -> None:
    long = size * (_log(rng, 1.5, 8) if form in ("bar", "ellipse") else 1.0)
    low = np.maximum(np.floor(center - long - 1), 0).astype(int)
    high = np.minimum(np.ceil(center + long + 2), image.shape).astype(int)
    if (low >= high).any():
        return
    box = slice(low[0], high[0]), slice(low[1], high[1])
    y = np.arange(low[0], high[0], dtype=np.float32)[:, None] - np.float32(center[0])
    x = np.arange(low[1], high[1], dtype=np.float32) - np.float32(center[1])
    turn = rng.uniform(0, 2 * math.pi)
    s, c = math.sin(turn), math.cos(turn)
    along, across = x * c + y * s, y * c - x * s
    if form == "bar":
        fit = np.minimum(long - np.abs(along), size / 2 - np.abs(across))
    elif form == "polygon":
        sides = int(rng.integers(3, 8))
        corners = (np.arange(sides) + rng.uniform(-0.25, 0.25, sides)) * (2 * math.pi / sides)
        fit = np.min([0.7 * size - along * math.cos(a) - across * math.sin(a) for a in corners], 0)
    else:
        away = np.hypot(along * (size / long), across)
        fit = size - away
        if form == "ring":
            hole = size * rng.uniform(0.1, 0.45)
            fit = hole - np.abs(fit - hole)
    shade = tone + fill[box]
    if size > 12 and rng.random() < 0.2:
        shade = shade + rng.uniform(-0.3, 0.3) * along / long
    part = image[box]
    _paint(part, _cover(fit), shade)


def _stripes(rng: Rng, shape: Shape) -> Float:
    """Gratings, chirps, rings, stars and the bar groups of a resolution chart."""
    y, x = (np.arange(n, dtype=np.float32) for n in shape)
    center = rng.random(2) * shape
    dy, dx = y[:, None] - np.float32(center[0]), x - np.float32(center[1])
    angle, period = rng.uniform(0, math.pi), _log(rng, 3, 50)
    along = dx * math.cos(angle) + dy * math.sin(angle)
    duty, sharp = rng.uniform(0.2, 0.8), rng.random() < 0.6
    style = rng.choice(["grating", "chirp", "rings", "star", "tiles", "code", "checks", "chart"])
    if style == "chart":
        return _chart(rng, shape)
    if style == "star":
        spokes = int(rng.integers(6, 80))
        # near the branch cut the phase jumps by a whole number of periods, which `_bars` must not see
        turn = np.arctan2(dy, dx) * (spokes / (2 * math.pi))
        away = np.hypot(dy, dx) + 1e-3
        steep = spokes / (2 * math.pi * away)
        wave = np.clip((duty / 2 - _off(turn)) / steep + 0.5, 0, 1)
        return np.asarray(duty + (1 - smoothstep(steep, 0.35, 0.5)) * (wave - duty), np.float32)
    if style == "tiles":  # a grating of its own in every cell
        cells = _pack(rng, shape, _log(rng, 40, 160), spread=0.3, cap=4, round_px=0)
        n = len(cells.sites.radius)
        turns, periods = rng.uniform(0, math.pi, n), np.exp(rng.uniform(math.log(2.5), math.log(25), n))
        ky, kx = ((f(turns) / periods).astype(np.float32)[cells.near] for f in (np.sin, np.cos))
        wave = np.clip((duty / 2 - _off(y[:, None] * ky + x * kx)) / np.hypot(ky, kx) + 0.5, 0, 1)
        strength = rng.uniform(0.3, 1, n).astype(np.float32)[cells.near]
        return np.asarray(0.5 + strength * (wave - 0.5), np.float32)
    if style == "rings":
        away = np.hypot(dy, dx)
        phase = away / period if rng.random() < 0.5 else away**2 / (period * max(shape))
    elif style == "chirp":
        phase = along / period * (1 + np.clip(along / max(shape), -0.9, 2) * rng.uniform(0.3, 1.5))
    elif style == "code":  # bars of random widths
        widths = period * np.exp(rng.normal(0, 0.6, 4 * round(max(shape) / period) + 8))
        edges = np.cumsum(np.maximum(widths, 1.5))
        edges = (edges - edges[len(edges) // 2]).astype(np.float32)
        nearest = np.searchsorted((edges[1:] + edges[:-1]) / 2, along)
        sign = np.where(nearest % 2 == 0, 1, -1)
        return _cover(sign * (along - edges[nearest]))
    else:
        phase = along / period
    phase = phase + _some(rng, 0.6) * 0.7 * _noise(rng, shape, _log(rng, 3 * period, 20 * period))
    wave = _bars(phase, duty, sharp=sharp)
    if style == "checks":
        other = (dy * math.cos(angle) - dx * math.sin(angle)) / (period * _log(rng, 0.7, 1.5))
        return np.asarray(np.abs(wave - _bars(other, duty, sharp=sharp)), np.float32)
    return wave


def _chart(rng: Rng, shape: Shape) -> Float:
    """Groups of three to five bars in random places, sizes and the two usual directions."""
    image = np.zeros(shape, np.float32)
    y, x = np.arange(shape[0], dtype=np.float32)[:, None], np.arange(shape[1], dtype=np.float32)
    cell = _log(rng, 30, 120)
    for top in np.arange(0, shape[0], cell):
        for left in np.arange(0, shape[1], cell):
            bars = int(rng.integers(3, 6))
            width = _log(rng, 1.2, cell / (2 * bars + 1))
            dy, dx = y - (top + cell / 2), x - (left + cell / 2)
            rows = slice(int(top), math.ceil(top + cell))
            cols = slice(int(left), math.ceil(left + cell))
            along, across = dy[rows], dx[cols][None]
            if rng.random() < 0.5:
                along, across = across, along
            places = (np.arange(bars) - (bars - 1) / 2) * 2 * width
            lines = np.max([line_cover(across - p, width, 1.0) for p in places.astype(np.float32)], 0)
            cover = lines * _cover((bars - 0.5) * width - np.abs(along))
            image[rows, cols] = np.maximum(image[rows, cols], cover * rng.uniform(0.3, 1))
    return image


def _mixtures(rng: Rng, shape: Shape) -> Float:
    """Two kinds side by side or one over the other; empty resin, cracks."""
    simple = [kind for kind in KINDS if kind != "mixtures"]
    first, second = (_draw(rng, shape, simple[int(rng.integers(len(simple)))]) for _ in range(2))
    first, second = (_recast(rng, a) for a in (first, second))
    style = rng.choice(["regions", "resin", "over", "sum", "holes"])
    if style == "over":
        image = np.minimum(first, second) if rng.random() < 0.5 else np.maximum(first, second)
    elif style == "sum":
        share = rng.uniform(0.25, 0.75)
        image = share * first + (1 - share) * second
    else:
        border = _border(rng, shape)
        if style == "resin":
            border -= 0.5 * border.std()  # more tissue than resin
            second = rng.random() + rng.uniform(0, 0.06) * _noise(rng, shape, _log(rng, 1.5, 20))
        if style == "holes":
            bodies = _scatter(rng, shape, _log(rng, 5, 200), (4, 60), (1.0, 2.0), apart=1.1)
            border = _stamp(shape, bodies, 8).fit + rng.uniform(0, 3) * _noise(rng, shape, 12)
        image = first + _cover(border) * (second - first)
        if rng.random() < 0.4:
            _paint(image, line_cover(border, _log(rng, 1.2, 6), 1.0), rng.random())
    if rng.random() < 0.3:
        _paint(image, _cracks(rng, shape), _pick(rng, 0.0, 1.0))
    return np.asarray(image, np.float32)


def _recast(rng: Rng, image: Float) -> Float:
    """Draw polarity, contrast and sharpness of a part."""
    if rng.random() < 0.5:
        image = 1 - image
    if rng.random() < 0.3:
        image = _blur(image, _log(rng, 0.6, 5))
    span = rng.uniform(0.4, 1)
    return np.asarray((1 - span) * rng.random() + span * image, np.float32)


def _border(rng: Rng, shape: Shape) -> Float:
    """Return the distance to a border between two regions, pixels: a rugged line or the edges of islands."""
    if rng.random() < 0.5:
        return _distance(
            _spectrum(rng, shape, 2.0, (1 / max(shape), rng.uniform(0.01, 0.1))), rng.normal(0, 0.5)
        )
    angle, center = rng.uniform(0, 2 * math.pi), rng.uniform(0.25, 0.75, 2) * shape
    y, x = np.arange(shape[0], dtype=np.float32)[:, None], np.arange(shape[1], dtype=np.float32)
    line = (y - np.float32(center[0])) * math.sin(angle) + (x - np.float32(center[1])) * math.cos(angle)
    return np.asarray(line + _log(rng, 0.5, 25) * _noise(rng, shape, _log(rng, 10, 100)), np.float32)


def _cracks(rng: Rng, shape: Shape) -> Float:
    """Return how much of each pixel is crack: jagged lines along the borders of large cells."""
    size = _log(rng, 60, 300)
    cells = _pack(rng, shape, size, spread=0.3, cap=size, round_px=0)
    width = smoothstep(_noise(rng, shape, size), -0.5, 0.5) * _log(rng, 1, 5)
    return _cover(width / 2 - cells.depth - 0.2 * _noise(rng, shape, 8)) * smoothstep(width, 0, 1)


_PAINTERS: dict[Kind, Callable[[Rng, Shape], Float]] = {
    "cells": _cells,
    "myelin": _myelin,
    "organelles": _organelles,
    "filaments": _filaments,
    "nuclei": _nuclei,
    "textures": _textures,
    "grains": _grains,
    "shapes": _shapes,
    "stripes": _stripes,
    "mixtures": _mixtures,
}
