"""Draws the holes that real stacks have, and punches them into training examples. Knows no network.

A missing tile is a rectangle, a tear or a fold a curved band that narrows towards its ends, a dropped line a
run of rows. Sizes are in raw pixels: what a hole is filled from is raw.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from live_sr.config import Settings
from live_sr.holes import bridge, fillable
from live_sr.train.dataset import log_uniform

DRAWS = 10  # random numbers for each hole, used or not: a setting changes one hole, not all that follow
CURVATURE = 0.01  # 1 / raw pixels: the sharpest bend of a band
Range = tuple[float, float]


class HoleSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which holes examples have. Sizes are drawn log-uniformly, in raw pixels.

    Attributes
    ----------
    share : float
        Fraction of the examples with holes in the frame that is restored.
    most : int
        Holes in one frame; from 1 to this many.
    tiles, bands, lines : float
        Relative shares of the kinds: missing tiles; tears and folds; dropped lines.
    tile_px : (float, float)
        Either edge of a missing tile; one that is larger than the crop may cover it whole.
    band_px : (float, float)
        Largest width of a tear or a fold.
    band_length_px : (float, float)
        Its length.
    lines_px : (float, float)
        Rows of a run of dropped lines.
    neighbours : float
        Chance of each neighbour to have holes of its own, in examples with holes.
    """

    share: float = 0.6
    most: int = 3
    tiles: float = 1.0
    bands: float = 1.0
    lines: float = 1.0
    tile_px: Range = (8.0, 128.0)
    band_px: Range = (2.0, 24.0)
    band_length_px: Range = (16.0, 256.0)
    lines_px: Range = (1.0, 12.0)
    neighbours: float = 0.15


def draw_holes(n: int, shape: tuple[int, int], settings: HoleSettings, generator: torch.Generator) -> Tensor:
    """Masks of `n` examples, each with holes: (n, 1, Y, X) float32, 1 where a pixel is missing.

    Parameters
    ----------
    shape : (Y, X)
        Raw pixels.
    """
    masks = np.zeros((n, 1, *shape), np.float32)
    for mask in masks[:, 0]:
        u = torch.rand((settings.most, DRAWS), dtype=torch.float64, generator=generator).tolist()
        for draws in u[: 1 + int(u[0][-1] * settings.most)]:
            mask[_hole(draws, shape, settings)] = 1
    return torch.from_numpy(masks)


def punch(raw: Tensor, at: Tensor, settings: HoleSettings, generator: torch.Generator) -> Tensor:
    """Frames with holes, as the network is shown them: (n, frames, Y, X) to (n, frames + 1, Y, X).

    The last channel is the mask of the middle frame, which is 0 in its holes; neighbours are bridged. Where no
    frame could fill a hole there is none.

    Parameters
    ----------
    at : (n, frames) int64
        Which of the frames each one is. One that stands in for another, as at an end of a stack, lacks the same
        in both places.
    """
    n, frames, *size = raw.shape
    shape, middle = (size[0], size[1]), frames // 2
    holed = torch.rand(n, generator=generator) < settings.share
    damaged = torch.rand(n, frames, generator=generator) < settings.neighbours
    damaged[:, middle] = True
    drawn = draw_holes(n * frames, shape, settings, generator).view(n, frames, *shape) > 0
    missing = drawn & (damaged & holed[:, None])[:, :, None, None]
    missing = missing[torch.arange(n)[:, None], at]
    bridged = torch.from_numpy(bridge(raw.numpy(), missing.numpy()))
    hole = torch.from_numpy(fillable(missing.numpy()))[:, None]
    bridged[:, middle : middle + 1].masked_fill_(hole, 0)
    return torch.cat((bridged, hole.to(raw.dtype)), 1)


class Shown(NamedTuple):
    """The two parts of what a network is given.

    Attributes
    ----------
    frames : (B, frames, Y, X)
    hole : (B, 1, Y, X) or None
        1 where the middle frame lacks a pixel; None for a network without holes.
    """

    frames: Tensor
    hole: Tensor | None

    @property
    def middle(self) -> int:
        """Of the frames, the one that is restored."""
        return self.frames.shape[1] // 2


def parted(raw: Tensor) -> Shown:
    """Frames are odd in number: the last of an even number of channels is the mask."""
    return Shown(raw, None) if raw.shape[1] % 2 else Shown(raw[:, :-1], raw[:, -1:])


def _hole(u: list[float], shape: tuple[int, int], settings: HoleSettings) -> NDArray[np.bool_]:
    kinds = np.cumsum([settings.tiles, settings.bands, settings.lines])
    kind = int(np.searchsorted(kinds, u[0] * kinds[-1], side="right"))
    at = u[1] * shape[0], u[2] * shape[1]
    y, x = np.ogrid[: shape[0], : shape[1]]
    if kind == 0:
        high, wide = (log_uniform(v, settings.tile_px) for v in u[3:5])
        inside = (abs(y + 0.5 - at[0]) <= high / 2) & (abs(x + 0.5 - at[1]) <= wide / 2)
        return np.asarray(inside, bool)
    if kind == 2:
        rows = round(log_uniform(u[3], settings.lines_px))
        first = int(u[1] * shape[0])
        return np.broadcast_to((y >= first) & (y < first + rows), shape)
    angle = math.pi * u[3]
    along = (x - at[1]) * math.cos(angle) + (y - at[0]) * math.sin(angle)
    across = (y - at[0]) * math.cos(angle) - (x - at[1]) * math.sin(angle)
    width, length = log_uniform(u[4], settings.band_px), log_uniform(u[5], settings.band_length_px)
    bend = (2 * u[6] - 1) * CURVATURE / 2
    width_here = width * (1 - (2 * along / length) ** 2)
    return np.asarray(abs(across - bend * along**2) < width_here / 2, bool)
