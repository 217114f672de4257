"""Which frames a multi-frame model sees: one rule, for frames as they arrive and for files. Knows no pixels.

A series is what differs along one axis only: time points, or adjacent sections, of one channel at one position
of one camera. A model of `frames` frames restores the middle one of them; at the ends of a series, and where
frames are missing, the frame as far away on the other side takes the place of what there is not: it is another
look at the specimen, which a frame shown twice in a row is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeVar, get_args

FrameCount = Literal[1, 3, 5]
"""Frames that a model sees at once; odd, so that one of them is in the middle."""

Neighbours = Literal["t", "z", "t or z"]
"""What a model was trained on: time points, adjacent sections, or both."""

FRAME_COUNTS: tuple[FrameCount, ...] = get_args(FrameCount)
MAX_FRAMES = max(FRAME_COUNTS)

T = TypeVar("T")


def axis_of(neighbours: Neighbours, sizes: Mapping[str, int | None]) -> str | None:
    """The axis along which the neighbours lie; None when a model of this kind finds none.

    Sections come before time points: they are taken a moment apart, and show the same specimen.

    Parameters
    ----------
    sizes : mapping
        Length of each axis that numbers frames; None where it has no known end.
    """
    wanted = ("z", "t") if neighbours == "t or z" else (neighbours,)
    return next((axis for axis in wanted if sizes.get(axis, 1) != 1), None)


def surround(centre: T, frames: int, at: Callable[[int], T | None]) -> list[T]:
    """`centre` with its neighbours on both sides, in the order of the axis.

    Parameters
    ----------
    at : callable
        ``(offset) -> neighbour``, None where there is none. Then the one at ``-offset`` stands in for it, or
        where that is missing as well, the next one towards the centre.
    """
    around = [centre]
    for offset in range(1, frames // 2 + 1):
        before, after = at(-offset), at(offset)
        first, last = around[0], around[-1]
        around.insert(0, _first_of(before, after, first))
        around.append(_first_of(after, before, last))
    return around


def _first_of(wanted: T | None, opposite: T | None, inner: T) -> T:
    if wanted is not None:
        return wanted
    return inner if opposite is None else opposite
