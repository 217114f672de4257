"""Cuts a large frame into tiles and says what of each tile counts. Only numbers: knows no pixel and no network.

The rule looks at the frame's shape alone, never at free memory or load: the same frame is cut the same way
today, tomorrow, live and from a file. A tile begins at a multiple of the network's coarsest pixel, so that the
network sees the same grid as in the whole frame, and carries the network's true reach around it as a halo, so
that what is kept of a tile is what the whole frame would have given. Nothing is blended, nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

CORE = 512
"""Raw pixels along a tile's edge that are kept. A halo of 40 then costs a third more work, and at x4 one tile
takes some 200 MB; larger saves little, smaller wastes work on halos."""

Region = tuple[slice, slice]


class Tile(NamedTuple):
    """One piece of a frame, in raw pixels.

    Attributes
    ----------
    window : (slice, slice)
        Rows and columns of the frame that the network is given.
    core : (slice, slice)
        Rows and columns of the frame that this tile decides. The cores of all tiles cover the frame once.
    inner : (slice, slice)
        The core within the window.
    """

    window: Region
    core: Region
    inner: Region


def tiles(shape: tuple[int, int], *, core: int, halo: int, multiple: int) -> Iterator[Tile]:
    """Cut a frame of `shape` (Y, X).

    A frame of at most (2 * `core`)² pixels stays whole. A larger one is cut into cores of at most `core`
    along each edge, of equal size up to `multiple`, each with `halo` around it where the frame goes on.

    Parameters
    ----------
    core, halo, multiple : int
        Raw pixels. `core` is at least `multiple`; `halo` is rounded up to a multiple of it.
    """
    y, x = shape
    if y * x <= (2 * core) ** 2:
        whole = slice(0, y), slice(0, x)
        yield Tile(whole, whole, whole)
        return
    for rows in _spans(y, core, halo, multiple):
        for columns in _spans(x, core, halo, multiple):
            window, kept, inner = zip(rows, columns, strict=True)
            yield Tile(window, kept, inner)


def _spans(size: int, core: int, halo: int, multiple: int) -> Iterator[tuple[slice, slice, slice]]:
    """Window, core and core within the window along one axis of `size` pixels."""
    parts = -(-size // (core // multiple * multiple))
    step = _up(-(-size // parts), multiple)
    margin = _up(halo, multiple)
    for start in range(0, size, step):
        stop = min(start + step, size)
        first, last = max(start - margin, 0), min(stop + margin, size)
        yield slice(first, last), slice(start, stop), slice(start - first, stop - first)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
