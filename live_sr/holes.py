"""Pixels that a frame lacks while its neighbours have them: which stand in for which. Knows no network.

A hole is a missing tile, a tear, a fold, a dropped line, or a whole section that was lost. A mask says where:
nothing is guessed from grey levels.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Missing = NDArray[np.bool_]
"""True where a pixel is missing; (frames, Y, X) as the frames that a model sees at once."""

LEAST_VALID = 0.25
"""Share of a frame's pixels from which its grey level is taken. What a smaller rest shows may be anything, a
nucleus or a blood vessel: the nearest frames then tell more of what is missing."""

Stack = TypeVar("Stack", bound=NDArray[Any])


def bridge(stack: Stack, missing: Missing) -> Stack:
    """A copy in which the neighbours of the middle frame have no holes, as far as any frame can fill them.

    What a neighbour lacks comes from the nearest frame that has it, of two equally near ones from that closer
    to the middle. The middle frame stays as it is.

    Parameters
    ----------
    stack : (..., frames, Y, X)
    missing : (..., frames, Y, X) bool
    """
    bridged = stack.copy()
    frames = stack.shape[-3]
    middle = frames // 2
    for k in (k for k in range(frames) if k != middle):
        lacking = missing[..., k, :, :].copy()
        others = (j for j in range(frames) if j != k)
        for j in sorted(others, key=lambda j: (abs(j - k), abs(j - middle))):
            if not lacking.any():
                break
            taken = lacking & ~missing[..., j, :, :]
            np.copyto(bridged[..., k, :, :], stack[..., j, :, :], where=taken)
            lacking &= ~taken
    return bridged


def fillable(missing: Missing) -> Missing:
    """Where the middle frame lacks a pixel that another has: (..., frames, Y, X) to (..., Y, X)."""
    found: Missing = missing[..., missing.shape[-3] // 2, :, :] & ~missing.all(axis=-3)
    return found


def enlarged(mask: Missing, scale: int) -> Missing:
    """Each pixel `scale` times along y and x: (Y, X) to (scale * Y, scale * X)."""
    return mask.repeat(scale, axis=-2).repeat(scale, axis=-1)
