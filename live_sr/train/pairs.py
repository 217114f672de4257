"""Real low-dose frames with good images of the same place: matched, registered, or refused, and cut together.

The high-resolution image is laid over the raw frame by the translation between them. Whole pixels of it are a
matter of where the window is cut; only the rest below a pixel is interpolated. Grey levels stay as they are.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.registration import phase_cross_correlation
from torch import Tensor

from live_sr.client.images import SUFFIXES
from live_sr.client.volume import Window
from live_sr.config import Settings
from live_sr.errors import ConfigError, InputError, StoreError
from live_sr.frame import Pixels
from live_sr.train.content import Contents
from live_sr.train.dataset import DRAWS, Augment, turn, vary
from live_sr.train.files import (
    File,
    Place,
    Plane,
    Range,
    Shelf,
    find_files,
    load_file,
    matches,
    part_of,
    to_unit,
)
from live_sr.train.split import Split, check_split, choose_files, nothing_apart, strips

log = logging.getLogger(__name__)

REGISTER_PX = 2048  # edge of the middle that is registered, raw pixels: a mosaic's spectrum needs gigabytes
BAND = (1.0, 8.0)  # sigmas in raw pixels: noise of single pixels and uneven brightness say nothing of the place
STEPS = 50  # of a raw pixel: finer than noisy frames can tell
# Correlation within the band. FIB-SEM and SEM of the same place, 15 to 200 electrons per pixel: 0.81 and more;
# of other places of the same sample, at their best shift: 0.12 and less.
MATCH = 0.4
TOLERANCE_PX = 0.05  # of the high-resolution image: not worth an interpolation
MARGIN_PX = 12  # a cubic spline forgets its border by a factor of four each pixel


class PairSource(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Raw frames and the good images of the same places.

    Attributes
    ----------
    name : str
    low, high : str
        Patterns for the paths below the data folder, for example ``low/*.tif`` and ``high/*.tif``.
    match : "name" or "order"
        Partners are files for which the wildcards stand for the same text, file endings aside; or the files
        of both patterns in the order of their names.
    max_shift_px : float
        Largest translation along an axis, in raw pixels.
    channel : int or None
        See :class:`live_sr.train.pools.Source`; of both.
    range : (float, float) or None
        Likewise, of both; by default a float32 raw frame takes its partner's.
    attribution, licence : str
        Whose images they are, as the model file and its card must say.
    """

    name: str
    low: str
    high: str
    match: Literal["name", "order"] = "name"
    max_shift_px: float = 32.0
    channel: int | None = None
    range: Range | None = None
    attribution: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Pair:
    """A raw frame and its truth, one over the other.

    Attributes
    ----------
    low : (Y, X) Plane
    high : (scale * Y, scale * X) Plane
    place : Place
        Of the raw frame.
    shift_px : (float, float)
        By which the high-resolution image was moved down and to the right, in raw pixels.
    correlation : float
        Of the two within their band, -1 to 1.
    """

    low: Plane
    high: Plane
    place: Place
    shift_px: tuple[float, float]
    correlation: float


@dataclass(frozen=True)
class Shifted:
    """A window of a plane, moved by less than a pixel with a cubic spline; uint16."""

    plane: Plane
    window: Window
    rest: tuple[float, float]

    @property
    def shape(self) -> tuple[int, ...]:
        """(Y, X)."""
        return tuple(s.stop - s.start for s in self.window)

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint16, for interpolated grey levels lie between those of 8 bit."""
        return np.dtype(np.uint16)

    def __getitem__(self, window: Window, /) -> Pixels:
        """See :class:`live_sr.train.files.Plane`."""
        wanted = [slice(a.start + b.start, a.start + b.stop) for a, b in zip(self.window, window, strict=True)]
        read = [
            slice(max(0, w.start - MARGIN_PX), min(n, w.stop + MARGIN_PX))
            for w, n in zip(wanted, self.plane.shape, strict=True)
        ]
        moved = ndimage.shift(to_unit(self.plane[read[0], read[1]]), self.rest, order=3, mode="nearest")
        y, x = (slice(w.start - r.start, w.stop - r.start) for w, r in zip(wanted, read, strict=True))
        pixels: Pixels = np.rint(moved[y, x].clip(0, 1) * 65535).astype(np.uint16)
        return pixels


def load_pairs(
    sources: Sequence[PairSource],
    folders: Sequence[Path],
    scale: int,
    exclude: Sequence[str] = (),
    shelf: Shelf | None = None,
) -> tuple[list[Pair], list[File]]:
    """Register every plane of every pair, and list the files that went into them.

    Pairs that cannot be used or do not match are named in a warning, counted, and skipped.

    Parameters
    ----------
    folders : sequence of Path
        That hold the images.
    scale : int
        Pixels of the high-resolution image along each side of a raw pixel.
    exclude : sequence of str
        Patterns of files that are left out, and their partners with them.

    Raises
    ------
    InputError
        When a source has no usable pair.
    ConfigError
        When its patterns or its range cannot be used.
    """
    shelf = shelf or Shelf()
    pairs: list[Pair] = []
    used: list[File] = []
    for source in sources:
        found, skipped = 0, 0
        for low, high in _partners(source, folders, exclude):
            try:
                files = _open(source, low, high, shelf)
                registered = list(_register_files(*files, scale, source.max_shift_px))
            except ConfigError:
                raise
            except (InputError, StoreError) as e:
                log.warning("skipped: %s", e)
                skipped += 1
                continue
            pairs += [replace(pair, high=_hold(pair.high, shelf)) for pair in registered]
            used += files
            found += 1
        if skipped:
            log.warning("%s: %d of %d pairs could not be used", source.name, skipped, skipped + found)
        if not found:
            raise InputError(
                f"{source.name}: no usable pair of {source.low} and {source.high} below "
                f"{', '.join(map(str, folders)) or 'no folder'} ({skipped} could not be used): check --data "
                "and the patterns of [[pairs]]"
            )
    return pairs, used


def register(low: Plane, high: Plane, scale: int) -> tuple[tuple[float, float], float]:
    """By how many raw pixels `high` has to move to lie over `low`, and how well the two then correlate.

    The peak of the cross-correlation of both images within :data:`BAND`, refined after Guizar-Sicairos et al.,
    Opt. Lett. 33, 156 (2008). Its spectrum is not whitened as in phase correlation proper, which takes noise
    for detail: on micrographs of 15 to 200 electrons this peak was off by 0.01 to 0.07 raw pixels (median), the
    whitened one by 0.06 to 0.08.

    Parameters
    ----------
    low : (Y, X)
    high : (scale * Y, scale * X)
    """
    edges = [min(n, REGISTER_PX) for n in low.shape]
    y, x = (slice((n - e) // 2, (n - e) // 2 + e) for n, e in zip(low.shape, edges, strict=True))
    fine = to_unit(high[y.start * scale : y.stop * scale, x.start * scale : x.stop * scale])
    down = fine.reshape(edges[0], scale, edges[1], scale).mean(axis=(1, 3))
    seen = to_unit(low[y, x])
    if np.ptp(seen) == 0 or np.ptp(down) == 0:
        return (0.0, 0.0), 0.0  # nothing to go by
    a, b = _band(seen), _band(down)
    shift = (0.0, 0.0)
    for _ in range(2):  # a faded edge draws the peak towards no shift: look again where the two overlap
        over, under = _overlap(a.shape, shift)
        near, moved = a[over], b[under]
        fade = np.outer(np.hanning(near.shape[0]), np.hanning(near.shape[1]))
        found, _, _ = phase_cross_correlation(  # type: ignore[no-untyped-call]
            near * fade, moved * fade, upsample_factor=STEPS, normalization=None
        )
        shift = round(shift[0]) + float(found[0]), round(shift[1]) + float(found[1])
    over, under = _overlap(a.shape, shift)
    return shift, _correlation(a[over], b[under])


class PairCrops:
    """Random, augmented crops of registered pairs.

    Pairs are drawn equally often, but for those without content. Zooming out is left to synthetic crops: it
    would average real noise away.

    Parameters
    ----------
    pairs : sequence of Pair
    size : int
        Edge of a crop in raw pixels.
    scale : int
    augment : Augment
        Contrast, brightness and polarity are changed by the same amount in both.

    Raises
    ------
    InputError
        When no pair overlaps by `size` raw pixels along both axes.
    """

    def __init__(self, pairs: Sequence[Pair], size: int, scale: int, augment: Augment) -> None:
        self.pairs = [pair for pair in pairs if min(pair.low.shape) >= size]
        self.size, self.scale, self.augment = size, scale, augment
        if not self.pairs:
            raise InputError(f"no pair overlaps by {size} x {size} raw pixels: make the patch smaller")
        if len(self.pairs) < len(pairs):
            n = len(pairs) - len(self.pairs)
            log.warning(
                "%d of %d pairs overlap by less than %d x %d pixels and are left out", n, len(pairs), size, size
            )
        self._contents = Contents([pair.high for pair in self.pairs])

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Raw (n, 1, size, size) and truth (n, 1, scale * size, scale * size), float32 in [0, 1].

        `generator` is the only source of randomness.
        """
        raw, truth = zip(*(self._crop(generator) for _ in range(n)), strict=True)
        return torch.stack(raw), torch.stack(truth)

    def _crop(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        *draws, other = torch.rand(DRAWS, dtype=torch.float64, generator=generator).tolist()
        u = iter(draws)
        i = self._contents.draw((next(u), other))
        pair, scale = self.pairs[i], self.scale
        place = next(u), next(u), next(u)
        top, left = self._contents[i].corner(scale * self.size, place)
        y, x = (slice(n // scale, n // scale + self.size) for n in (top, left))
        raw = torch.from_numpy(to_unit(pair.low[y, x]))[None]
        fine = slice(scale * y.start, scale * y.stop), slice(scale * x.start, scale * x.stop)
        truth = torch.from_numpy(to_unit(pair.high[fine]))[None]
        quarter, mirror = next(u), next(u)
        both = turn(raw, quarter, mirror), turn(truth, quarter, mirror)
        raw, truth = vary(both, truth.mean(), self.augment, (next(u), next(u), next(u), next(u)))
        return raw, truth


def split_pairs(pairs: Sequence[Pair], split: Split) -> tuple[list[Pair], list[Pair]]:
    """(training, validation) pairs, as :func:`live_sr.train.split.split_pools`; a guard counts raw pixels.

    Raises
    ------
    InputError
        When nothing is left for validation.
    ConfigError
        When the settings contradict each other.
    """
    check_split(split)
    train: list[Pair] = []
    validation: list[Pair] = []
    apart = choose_files((pair.place.sha256 for pair in pairs), split.fraction)
    for pair in pairs:
        if split.by == "file":
            (validation if pair.place.sha256 in apart else train).append(pair)
        elif (windows := strips(pair.low.shape, split)) is None:
            train.append(pair)
        else:
            for side, window in zip((train, validation), windows, strict=True):
                side.append(_part(pair, window))
    if not validation:
        raise InputError(nothing_apart(split))
    return train, validation


def _part(pair: Pair, window: Window) -> Pair:
    scale = pair.high.shape[0] // pair.low.shape[0]
    y, x = (slice(scale * s.start, scale * s.stop) for s in window)
    return replace(pair, low=part_of(pair.low, window), high=part_of(pair.high, (y, x)))


Named = tuple[Path, str]
"""A file, and its name below the data folder."""


def _partners(
    source: PairSource, folders: Sequence[Path], exclude: Sequence[str]
) -> Iterator[tuple[Named, Named]]:
    """Files that belong together; those without a partner are named and counted."""
    everything = [file for file in find_files(folders) if not matches(file[1], exclude)]
    found: list[dict[tuple[str, ...], Named]] = []
    for pattern in (source.low, source.high):
        wildcards = _wildcards(_stem(pattern))
        matched: dict[tuple[str, ...], Named] = {}
        for path, name in everything:
            match = wildcards.fullmatch(_stem(name))
            if not match or not matches(name, [pattern]):
                continue
            key = match.groups() if source.match == "name" else (name, str(path))
            if key in matched:
                raise ConfigError(
                    f"{source.name}: {matched[key][1]} and {name} both match {pattern} with the same text for "
                    'its wildcards: make the pattern narrower, or set match = "order"'
                )
            matched[key] = path, name
        found.append(matched)
    low, high = found
    if source.match == "order":
        if len(low) != len(high):
            raise ConfigError(
                f"{source.name}: {source.low} matches {len(low)} files and {source.high} {len(high)}: by order "
                'every file needs a partner, remove those without one or set match = "name"'
            )
        yield from zip(low.values(), high.values(), strict=True)
        return
    alone = [side[key][1] for side in found for key in sorted(low.keys() ^ high.keys()) if key in side]
    if alone:
        log.warning("%s: %d files have no partner: %s", source.name, len(alone), ", ".join(alone[:5]))
    for key in sorted(low.keys() & high.keys()):
        yield low[key], high[key]


def _wildcards(pattern: str) -> re.Pattern[str]:
    """As fnmatch reads the pattern, with a group for what each wildcard stands for."""
    written = ""
    for part in re.findall(r"\*+|\?|\[!?\]?[^\]]*\]|.", pattern):
        if part[0] in "*?":
            written += "(.*)" if part[0] == "*" else "(.)"
        else:
            written += f"({part.replace('[!', '[^', 1)})" if len(part) > 1 else re.escape(part)
    return re.compile(written)


def _stem(name: str) -> str:
    """Without the file ending."""
    for ending in sorted((".ome.zarr", *SUFFIXES), key=len, reverse=True):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def _open(source: PairSource, low: Named, high: Named, shelf: Shelf) -> tuple[File, File]:
    fine = load_file(*high, shelf, channel=source.channel, value_range=source.range)
    value_range = source.range or fine.range
    return load_file(*low, shelf, channel=source.channel, value_range=value_range), fine


def _register_files(low: File, high: File, scale: int, max_shift_px: float) -> Iterator[Pair]:
    if len(low.images) != len(high.images):
        raise InputError(
            f"{low.name} has {len(low.images)} planes and {high.name} {len(high.images)}: "
            "a pair needs a plane for each plane"
        )
    for n, (raw, fine) in enumerate(zip(low.images, high.images, strict=True)):
        both = f"{low.name} and {high.name}" + (f", plane {n}," if len(low.images) > 1 else "")
        if fine.shape != tuple(scale * edge for edge in raw.shape):
            shapes = " and ".join(f"{y} x {x}" for y, x in (raw.shape, fine.shape))
            raise InputError(
                f"{both} have {shapes} pixels: the second must have exactly {scale} times as many along both "
                "axes, crop it to the raw frame's field of view"
            )
        shift, correlation = register(raw, fine, scale)
        if not correlation >= MATCH:
            raise InputError(
                f"{both} do not show the same place: their correlation is {correlation:.2f} at best, a pair "
                f"has {MATCH} or more; check that the names belong together, or remove the pair"
            )
        if max(map(abs, shift)) > max_shift_px:
            raise InputError(
                f"{both} are shifted by ({shift[0]:.1f}, {shift[1]:.1f}) raw pixels, more than max_shift_px = "
                f"{max_shift_px:g}: crop both to the same field of view, or raise max_shift_px"
            )
        yield _overlay(raw, fine, low.places[n], scale, shift, correlation)


def _overlay(
    low: Plane, high: Plane, place: Place, scale: int, shift: tuple[float, float], correlation: float
) -> Pair:
    """Cut both to where they overlap: raw row y shows the same as the high rows from scale * (y - shift)."""
    cut, fine, rest = [], [], []
    for n, s in zip(low.shape, shift, strict=True):
        move = round(s * scale)
        below = s * scale - move
        below = below if abs(below) > TOLERANCE_PX else 0.0
        edge = 1 if below else 0  # the outermost pixel has no neighbour to interpolate with
        first = max(0, math.ceil((move + edge) / scale))
        end = min(n, (scale * n + move - edge) // scale)
        cut.append(slice(first, end))
        fine.append(slice(scale * first - move, scale * end - move))
        rest.append(below)
    window = fine[0], fine[1]
    over = Shifted(high, window, (rest[0], rest[1])) if any(rest) else part_of(high, window)
    return Pair(part_of(low, (cut[0], cut[1])), over, place, shift, correlation)


def _hold(plane: Plane, shelf: Shelf) -> Plane:
    """Interpolate once where there is memory for it, otherwise crop by crop."""
    y, x = plane.shape
    if isinstance(plane, Shifted) and shelf.take(y * x * plane.dtype.itemsize):
        return plane[0:y, 0:x]
    return plane


def _overlap(shape: tuple[int, ...], shift: tuple[float, float]) -> tuple[Window, Window]:
    """Where two images of `shape` show the same when the second is moved by whole pixels."""
    moves = [max(-n // 2, min(round(s), n // 2)) for s, n in zip(shift, shape, strict=True)]
    over = [slice(max(0, s), min(n, n + s)) for s, n in zip(moves, shape, strict=True)]
    under = [slice(o.start - s, o.stop - s) for o, s in zip(over, moves, strict=True)]
    return (over[0], over[1]), (under[0], under[1])


def _band(image: NDArray[np.float32]) -> NDArray[np.float32]:
    fine, coarse = (ndimage.gaussian_filter(image, sigma) for sigma in BAND)
    return np.asarray(fine - coarse, np.float32)


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Pearson's, 0 where one of the two is flat."""
    a, b = a - a.mean(), b - b.mean()
    power = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / power if power > 0 else 0.0
