"""Says where in an image there is something to see, so that crops without content are rare.

Content is the standard deviation within coarse cells, of pixels that are averaged first: noise averages out,
structure of a few pixels stays. Areas without any are still drawn sometimes, for a network must learn to leave
them empty.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from live_sr.train.files import Plane, to_unit

CELL_PX = 32  # edge of the smallest cell: a third of a usual crop
BIN_PX = 4  # averaged before the deviation is taken: the noise of single pixels falls to a quarter
MAX_CELLS = 64  # along the longer axis: 16 kB for each image
ROWS_PX = 64  # rows of a cell that are looked at: enough to judge a cell of a mosaic
WHOLE_PX = 2**26  # pixels that may be read in one piece; of larger planes only the rows that are looked at
FULL = 95  # percentile of the cells that counts as full of content
FLOOR = 0.1  # weight of an empty cell beside a full one

Map = NDArray[np.float32]
"""(rows, columns) of cells: 1 full of content, FLOOR empty."""


def content_map(plane: Plane) -> tuple[Map, int]:
    """Weight of every cell of a plane, and the cell's edge in pixels."""
    y, x = plane.shape
    cell = max(CELL_PX, -(-max(y, x) // MAX_CELLS // BIN_PX) * BIN_PX)
    rows, columns = max(1, y // cell), max(1, x // cell)
    held = plane[0:y, 0:x] if y * x <= WHOLE_PX else plane
    deviation = np.zeros((rows, columns), np.float32)
    for row in range(rows):
        top = row * cell
        band = to_unit(held[top : min(top + min(cell, ROWS_PX), y), 0:x])
        deviation[row] = _deviations(band, columns, min(cell, x))
    full = np.percentile(deviation, FULL)
    if full <= 0:
        return np.ones_like(deviation), cell
    return np.clip(deviation / full, FLOOR, 1).astype(np.float32), cell


def choose_corner(
    weights: Map, cell: int, shape: tuple[int, ...], edge: int, u: tuple[float, float, float]
) -> tuple[int, int]:
    """First row and column of a crop of edge `edge`, with a probability in proportion to the weights within it.

    Parameters
    ----------
    weights, cell
        From :func:`content_map`.
    shape : (Y, X)
        Of the plane, pixels; at least `edge`.
    u : three floats in [0, 1)
        All the randomness there is.
    """
    sums = np.pad(weights.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    (top, bottom, high), (left, right, wide) = (
        _spans(n - edge + 1, edge, cell, cells) for n, cells in zip(shape, weights.shape, strict=True)
    )
    within = (
        sums[np.ix_(bottom, right)]
        - sums[np.ix_(top, right)]
        - sums[np.ix_(bottom, left)]
        + sums[np.ix_(top, left)]
    )
    area = np.outer(bottom - top, right - left)
    chance = (within / area * np.outer(high, wide)).cumsum()
    at = int(np.searchsorted(chance, u[0] * chance[-1], side="right"))
    row, column = divmod(min(at, chance.size - 1), wide.size)
    return row * cell + int(u[1] * high[row]), column * cell + int(u[2] * wide[column])


def _spans(
    starts: int, edge: int, cell: int, cells: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Of crops that start in each cell's width: first cell, end of the cells, and how many starts there are."""
    first = np.arange(0, starts, cell)
    size = np.minimum(cell, starts - first)
    middle = first + size // 2
    begin = np.minimum(middle // cell, cells - 1)
    end = np.clip(-(-(middle + edge) // cell), begin + 1, cells)
    return begin, end, size


def _deviations(band: NDArray[np.float32], columns: int, width: int) -> NDArray[np.float32]:
    """Of each of the columns of cells in a band of rows, (columns,)."""
    high, wide = band.shape[0] // BIN_PX, width // BIN_PX
    if not high or not wide:
        return np.zeros(columns, np.float32)
    cut = band[: high * BIN_PX, : columns * wide * BIN_PX]
    binned = cut.reshape(high, BIN_PX, columns, wide, BIN_PX).mean(axis=(1, 4))
    return np.asarray(binned.std(axis=(0, 2)), np.float32)
