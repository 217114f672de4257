"""Random training crops of pools of images. Knows neighbouring planes, but neither noise nor network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from live_sr.config import Settings
from live_sr.errors import ConfigError, InputError
from live_sr.neighbours import surround
from live_sr.train.content import Contents
from live_sr.train.files import Place, to_unit
from live_sr.train.pools import Pool

log = logging.getLogger(__name__)

DRAWS = 16  # random numbers for each crop, used or not: a setting changes one crop, not all that follow
NAMED = 5  # files named in one warning


class Augment(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a crop is varied before it is degraded.

    Attributes
    ----------
    zoom_share, zoom_max : float
        Fraction of the crops that are zoomed out (area mean), by a log-uniform factor from 1 to `zoom_max`.
    window_share : float
        Fraction of the crops with another contrast and brightness.
    gain : (float, float)
        Contrast factor about the crop's mean, drawn log-uniformly.
    offset : float
        Largest change of brightness, as a fraction of full scale.
    invert_share : float
        Fraction of the crops whose contrast is inverted.
    ends_share : float
        Of several frames: fraction of the crops that are shown as at an end of their series, or beside frames
        that were lost, whatever their place in it.
    """

    zoom_share: float = 0.4
    zoom_max: float = 4.0
    window_share: float = 0.5
    gain: tuple[float, float] = (0.5, 1.7)
    offset: float = 0.15
    invert_share: float = 0.15
    ends_share: float = 0.1


class Crops:
    """Random, augmented crops of pools of images; crops and images without content are rarer.

    Parameters
    ----------
    pools : sequence of Pool
    size : int
        Edge of a crop in pixels of the truth.
    augment : Augment
    frames : int
        Neighbouring planes in each crop, odd; the middle one is the plane that is drawn. Beyond the ends of a
        stack planes of the other side stand in. With more than one, images that have no neighbour are left out.

    Raises
    ------
    InputError
        When no image is left that has `size` pixels along both axes, and a neighbour where it needs one.
    ConfigError
        When `frames` is even.
    """

    def __init__(self, pools: Sequence[Pool], size: int, augment: Augment, frames: int = 1) -> None:
        if frames < 1 or frames % 2 == 0:
            raise ConfigError(f"frames = {frames}: must be odd, with as many planes before the middle as after")
        self.size, self.augment, self.frames = size, augment, frames
        self.pools = [_usable(pool, size, frames) for pool in pools if pool.share > 0]
        self.pools = [pool for pool in self.pools if pool.images]
        if not self.pools:
            raise InputError(
                f"no training image has {size} x {size} pixels"
                + (" and a neighbour: set stack = true where planes are adjacent, " if frames > 1 else ": ")
                + "add larger images, or make the patch smaller"
            )
        self._shares = torch.tensor([p.share for p in self.pools], dtype=torch.float64).cumsum(0)
        self._neighbours = [neighbours(pool, frames // 2) for pool in self.pools]
        self._contents = [Contents(pool.images) for pool in self.pools]

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, frames, size, size) float32 in [0, 1]; `generator` is the only source of randomness."""
        return torch.stack([self._crop(generator) for _ in range(n)])

    def _crop(self, generator: torch.Generator) -> Tensor:
        *draws, other, end = torch.rand(DRAWS, dtype=torch.float64, generator=generator).tolist()
        u = iter(draws)
        p = int(torch.searchsorted(self._shares, next(u) * self._shares[-1], right=True))
        pool = self.pools[p]
        i = self._contents[p].draw((next(u), other))
        a, shape = self.augment, pool.images[i].shape

        zoom = log_uniform(next(u), (1.0, a.zoom_max)) if next(u) < a.zoom_share else 1.0
        edge = min(round(self.size * zoom), *shape)
        y, x = self._contents[p][i].corner(edge, (next(u), next(u), next(u)))
        window = slice(y, y + edge), slice(x, x + edge)
        near = self._neighbours[p][i]
        if self.frames > 1 and end < a.ends_share:
            near = cut_off(near, end / a.ends_share)
        planes = [torch.from_numpy(to_unit(pool.images[j][window])) for j in near]
        crop = torch.stack(planes)[None]  # (1, frames, edge, edge)
        if edge != self.size:
            crop = F.interpolate(crop, size=(self.size, self.size), mode="area")
        crop = turn(crop[0], next(u), next(u))
        (crop,) = vary((crop,), crop[self.frames // 2].mean(), a, (next(u), next(u), next(u), next(u)))
        return crop


def neighbours(pool: Pool, reach: int) -> list[list[int]]:
    """Of each image, those of the planes from `reach` before to `reach` after it, as for live frames."""
    at = {(place.sha256, place.stack, place.at): i for i, place in enumerate(pool.places)}

    def beside(place: Place) -> Callable[[int], int | None]:
        return lambda offset: at.get((place.sha256, place.stack, place.at + offset))

    return [surround(i, 2 * reach + 1, beside(place)) for i, place in enumerate(pool.places)]


def cut_off(near: Sequence[int], u: float) -> list[int]:
    """Neighbours as if the series ended, on one side or both, at a place chosen by `u` in [0, 1)."""
    reach = len(near) // 2
    which = int(u * 3 * reach)
    kept, side = which // 3, which % 3
    low = -kept if side != 1 else -reach
    high = kept if side != 0 else reach
    return surround(near[reach], len(near), lambda k: near[reach + k] if low <= k <= high else None)


def turn(crop: Tensor, quarter: float, mirror: float) -> Tensor:
    """One of the eight orientations of (..., size, size), chosen by two numbers in [0, 1)."""
    crop = torch.rot90(crop, int(quarter * 4), dims=(-2, -1))
    return crop.flip(-1) if mirror < 0.5 else crop


def vary(
    crops: tuple[Tensor, ...], mean: Tensor, augment: Augment, u: tuple[float, float, float, float]
) -> tuple[Tensor, ...]:
    """The same contrast, brightness and polarity for images that belong together, in [0, 1]."""
    gain, offset = log_uniform(u[0], augment.gain), (2 * u[1] - 1) * augment.offset
    if u[2] < augment.window_share:
        crops = tuple((mean + offset + gain * (crop - mean)).clamp(0, 1) for crop in crops)
    return tuple(1 - crop for crop in crops) if u[3] < augment.invert_share else crops


def log_uniform(u: float, between: tuple[float, float]) -> float:
    """A number of the range, by `u` in [0, 1)."""
    low, high = between
    return float(low * (high / low) ** u)


def _usable(pool: Pool, size: int, frames: int) -> Pool:
    """The images that are large enough and have a neighbour where they need one; the others are counted."""
    large = [i for i, image in enumerate(pool.images) if min(image.shape) >= size]
    _tell(pool, large, range(len(pool.images)), f"have fewer than {size} x {size} pixels")
    if frames == 1:
        return pool.take(large)
    others = {(place.sha256, place.stack, place.at) for place in pool.places}
    near = [
        i
        for i in large
        if pool.stack
        and any((p.sha256, p.stack, p.at + step) in others for p in [pool.places[i]] for step in (-1, 1))
    ]
    _tell(pool, near, large, f"have no neighbour, which {frames} frames need")
    return pool.take(near)


def _tell(pool: Pool, kept: Sequence[int], of: Sequence[int], why: str) -> None:
    if len(kept) == len(of):
        return
    names = list(dict.fromkeys(pool.places[i].file for i in sorted({*of} - {*kept})))
    more = f" and {len(names) - NAMED} more files" if len(names) > NAMED else ""
    log.warning(
        "%s: %d of %d images %s and are left out: %s%s",
        pool.name,
        len(of) - len(kept),
        len(of),
        why,
        ", ".join(names[:NAMED]),
        more,
    )
