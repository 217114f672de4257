"""Says where in an image there is something to see, so that crops and images without content are rare.

Content is the standard deviation within coarse cells, of pixels that are averaged first: noise averages out,
structure of a few pixels stays. Areas without any are still drawn sometimes, for a network must learn to leave
them empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from live_sr.train.files import Plane, to_unit

CELL_PX = 32  # edge of the smallest cell: a third of a usual crop
BIN_PX = 4  # averaged before the deviation is taken: the noise of single pixels falls to a quarter
MAX_CELLS = 64  # along the longer axis: 16 kB for each image
ROWS_PX = 32  # rows of a cell that are looked at: all of a small one, enough to judge a large one
WHOLE_PX = 2**26  # pixels that may be read in one piece; of larger planes only the rows that are looked at
FULL = 95  # percentile of the cells that counts as full of content
FLOOR = 0.1  # weight of an empty cell beside a full one
EMPTY = 0.15  # of another image's content: a fifth of the contrast is still content, noise alone is not

Count = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class ContentMap:
    """Weight of every cell of a plane.

    Attributes
    ----------
    weights : (rows, columns) float32
        1 full of content, :data:`FLOOR` empty.
    cell : int
        Edge of a cell, pixels.
    shape : (Y, X)
        Of the plane, pixels.
    full : float
        Content of its full cells, as a fraction of full scale.
    """

    weights: NDArray[np.float32]
    cell: int
    shape: tuple[int, ...]
    full: float
    _sums: NDArray[np.float64] = field(init=False, repr=False)  # of all cells above and to the left

    def __post_init__(self) -> None:
        sums = np.pad(self.weights.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        object.__setattr__(self, "_sums", sums)

    def corner(self, edge: int, u: tuple[float, float, float]) -> tuple[int, int]:
        """First row and column of a crop of edge `edge`, as probable as the mean weight within it.

        All the randomness is in `u`, three numbers in [0, 1).
        """
        top, bottom, high = self._spans(0, edge)
        left, right, wide = self._spans(1, edge)
        rows = (self._sums[bottom] - self._sums[top]) * (high / (bottom - top))[:, None]
        chance = ((rows[:, right] - rows[:, left]) * (wide / (right - left))).ravel().cumsum()
        at = int(chance.searchsorted(u[0] * chance[-1], side="right"))
        row, column = divmod(min(at, chance.size - 1), wide.size)
        return row * self.cell + int(u[1] * high[row]), column * self.cell + int(u[2] * wide[column])

    def _spans(self, axis: int, edge: int) -> tuple[Count, Count, Count]:
        """Of crops that begin in each cell's width: first cell, end of the cells, and how many there are."""
        starts, cells = self.shape[axis] - edge + 1, self.weights.shape[axis]
        first = np.arange(0, starts, self.cell)
        size = np.minimum(self.cell, starts - first)
        middle = first + size // 2
        begin = np.minimum(middle // self.cell, cells - 1)
        end = np.maximum(np.minimum(-(-(middle + edge) // self.cell), cells), begin + 1)
        return begin, end, size


def content_map(plane: Plane) -> ContentMap:
    """Look at a plane once, whole where it is small."""
    y, x = plane.shape
    cell = max(CELL_PX, -(-max(y, x) // MAX_CELLS // BIN_PX) * BIN_PX)
    rows, columns = max(1, y // cell), max(1, x // cell)
    held = plane[0:y, 0:x] if y * x <= WHOLE_PX else plane
    deviation = np.zeros((rows, columns), np.float32)
    for row in range(rows):
        band = held[row * cell : min(row * cell + min(cell, ROWS_PX), y), 0 : columns * min(cell, x)]
        deviation[row] = _deviations(to_unit(band), columns)
    full = float(np.percentile(deviation, FULL))
    weights = np.clip(deviation / full, FLOOR, 1) if full > 0 else np.ones_like(deviation)
    return ContentMap(weights.astype(np.float32), cell, (y, x), full)


class Contents:
    """The content maps of some planes, each made when its plane is drawn for the first time."""

    def __init__(self, planes: Sequence[Plane]) -> None:
        self._planes = planes
        self._maps: dict[int, ContentMap] = {}

    def __getitem__(self, i: int) -> ContentMap:
        if i not in self._maps:
            self._maps[i] = content_map(self._planes[i])
        return self._maps[i]

    def draw(self, u: tuple[float, float]) -> int:
        """Number of a plane, all equally often but for empty ones: beside one that is not, that one is taken.

        All the randomness is in `u`, two numbers in [0, 1). Of n planes a single empty one is drawn n times
        more rarely than the others, and no plane has to be looked at before it is drawn.
        """
        first, second = (int(v * len(self._planes)) for v in u)
        return first if self[first].full >= EMPTY * self[second].full else second


def _deviations(band: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """Of each of the cells side by side in a band of rows, (columns,)."""
    high, wide = band.shape[0] // BIN_PX, band.shape[1] // columns // BIN_PX
    if not high or not wide:
        return np.zeros(columns, np.float32)
    binned = F.avg_pool2d(torch.from_numpy(band)[None], BIN_PX)[0].numpy()  # (high, columns * wide)
    cells = binned[:high, : columns * wide].reshape(high, columns, wide)
    return np.asarray(cells.std(axis=(0, 2), dtype=np.float64), np.float32)
