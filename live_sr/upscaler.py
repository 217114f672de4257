"""What the server needs from a model, and a stand-in without one. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from live_sr.frame import DTYPES, Pixels, check_pixels
from live_sr.holes import Missing
from live_sr.neighbours import FrameCount, Neighbours


@dataclass(frozen=True, slots=True)
class UpscalerInfo:
    """What a client is told about the model that will restore its frames.

    Attributes
    ----------
    id : str
        Name by which clients ask for it, for example ``em-x4``.
    sha256 : str
        Hash of the model file: two servers with the same hash give the same model.
    scale : int
        Output pixels per input pixel along y and x.
    precision, device : str
        As chosen at load, for example ``bfloat16`` on ``cpu``.
    max_pixels : int
        Largest frame accepted, in raw pixels.
    pixel_size_um : (float, float) or None
        Range of raw pixel sizes that the model was trained for.
    frames : {1, 3, 5}
        Frames that it sees at once, of which it restores the middle one.
    neighbours : {"t", "z", "t or z"}
        Along which axis they may lie.
    holes : bool
        Whether it fills missing pixels from the neighbours: then it is a :class:`HoleFiller`.
    """

    id: str
    sha256: str
    scale: int
    precision: str
    device: str
    max_pixels: int
    pixel_size_um: tuple[float, float] | None = None
    dtypes: tuple[str, ...] = DTYPES
    frames: FrameCount = 1
    neighbours: Neighbours = "t or z"
    holes: bool = False


def pixel_size_doubt(model: str, valid: tuple[float, float] | None, size_um: float | None) -> str | None:
    """What to tell whoever gives frames of this raw pixel size to a model; None when all is well.

    Parameters
    ----------
    valid : (float, float) or None
        Raw pixel sizes that the model was trained for, micrometres.
    size_um : float or None
        None, or 0 as Micro-Manager has it, where it is not known.
    """
    if valid is None:
        return None
    low, high = valid
    if not size_um:
        return f"the pixel size is unknown: {model} is for {low:g} to {high:g} µm; define a pixel size"
    if low <= size_um <= high:
        return None
    return (
        f"the pixel size is {size_um:g} µm, {model} was trained for {low:g} to {high:g} µm: "
        "judge its results with care"
    )


@runtime_checkable
class Upscaler(Protocol):
    """Restores frames. One thread calls it at a time."""

    @property
    def info(self) -> UpscalerInfo:
        """Fixed after loading."""
        ...

    def warm(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Do all first-time work for frames of these (Y, X) shapes."""
        ...

    def upscale(self, frames: Sequence[Pixels]) -> list[Pixels]:
        """Restore frames of one shape and dtype.

        Each (Y, X) frame comes back as (scale * Y, scale * X) with the same dtype and grey-level scale; a
        frame's result does not depend on the others in the call. A multi-frame model takes
        (info.frames, Y, X) for each and restores the middle one.
        """
        ...


@runtime_checkable
class HoleFiller(Upscaler, Protocol):
    """An upscaler on this machine that also fills holes, if its model was trained to (``info.holes``)."""

    def fill(self, frames: Sequence[Pixels], missing: Sequence[Missing]) -> list[Pixels]:
        """Restore frames of which pixels are missing.

        `missing` has the (frames, Y, X) of each of the `frames`: neighbours may have holes too. Pixels that no
        frame has are black. What lies in a hole does not matter.
        """
        ...


class Bilinear:
    """Bilinear interpolation as an :class:`Upscaler`: a stand-in for tests and model-free servers.

    With several `frames` it interpolates their mean, in which each weighs more than the one before it: a
    neighbour that is missing, wrong or in another's place shows.
    """

    def __init__(
        self,
        scale: int = 4,
        *,
        frames: FrameCount = 1,
        neighbours: Neighbours = "t or z",
        max_pixels: int = 4096 * 4096,
    ) -> None:
        name = f"bilinear-x{scale}" + (f"-f{frames}" if frames > 1 else "")
        self._info = UpscalerInfo(
            id=name,
            sha256=hashlib.sha256(name.encode()).hexdigest(),  # there is no file; still one hash, one model
            scale=scale,
            precision="float32",
            device="cpu",
            max_pixels=max_pixels,
            frames=frames,
            neighbours=neighbours,
        )

    @property
    def info(self) -> UpscalerInfo:
        """Fixed after construction."""
        return self._info

    def warm(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Nothing to warm."""

    def upscale(self, frames: Sequence[Pixels]) -> list[Pixels]:
        """Interpolate each frame between pixel centres, edges replicated."""
        for frame in frames:
            check_pixels(frame, self._info.frames)
        return [bilinear(frame, self._info.scale) for frame in frames]


def bilinear(pixels: Pixels, scale: int) -> Pixels:
    """Bilinear upsampling aligned on pixel areas: (Y, X) to (scale * Y, scale * X), same dtype.

    Output pixel i lies at (i + 1/2) / scale - 1/2 in input pixels (half-pixel centres). Of (frames, Y, X) the
    mean is taken, weighted 1, 2, 3, ...
    """
    rows = _resize_axis0(_weighted_mean(pixels) if pixels.ndim == 3 else pixels.astype(np.float32), scale)
    both = _resize_axis0(rows.T, scale).T
    return np.ascontiguousarray(np.rint(both).astype(pixels.dtype))


def _weighted_mean(stack: Pixels) -> NDArray[np.float32]:
    weights = np.arange(1, len(stack) + 1, dtype=np.uint32)
    total = np.einsum("f,fyx->yx", weights, stack.astype(np.uint32))  # exact, in any order of summation
    mean: NDArray[np.float32] = (total / weights.sum()).astype(np.float32)
    return mean


def _resize_axis0(a: NDArray[np.float32], scale: int) -> NDArray[np.float32]:
    at = (np.arange(a.shape[0] * scale, dtype=np.float32) + 0.5) / scale - 0.5
    at = np.clip(at, 0, a.shape[0] - 1)
    low = np.floor(at).astype(np.intp)
    high = np.minimum(low + 1, a.shape[0] - 1)
    w = (at - low).astype(np.float32)[:, None]
    resized: NDArray[np.float32] = a[low] * (1 - w) + a[high] * w
    return resized
