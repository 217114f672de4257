"""Runs one model on frames: the :class:`~live_sr.upscaler.Upscaler` of the server, and of files.

Normalises each frame as its model wants it (and its neighbours like it, where the model sees any), cuts large
ones, computes, and returns the camera's grey levels. Knows no socket and no file. What comes out depends on the
frame, the model, the precision and the machine, never on what else is computed: a frame restored live and again
from its file is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from live_sr.errors import InputError
from live_sr.frame import Pixels, check_pixels
from live_sr.holes import LEAST_VALID, Missing, bridge, enlarged
from live_sr.model import artifact
from live_sr.model.artifact import Artifact, ModelRecord
from live_sr.model.precision import choose, run
from live_sr.model.tiling import CORE, tiles
from live_sr.upscaler import UpscalerInfo

MAX_PIXELS = 8192 * 8192  # raw; at x4 the result of a uint16 frame takes 2 GB
LEAST_SPREAD = 1.0  # grey level: below, a frame holds only digitisation, which must not be blown up to contrast


def load_engine(
    model: str,
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    max_pixels: int = MAX_PIXELS,
    tile: int = CORE,
) -> Engine:
    """Load a shipped model by name, or a model file by path; settings as for :class:`Engine`.

    Raises
    ------
    ModelError
        When the file is missing, damaged, or fails its numeric check.
    InputError
        When a setting cannot be used on this machine.
    """
    return Engine(
        artifact.load(model),
        device=device,
        precision=precision,
        threads=threads,
        max_pixels=max_pixels,
        tile=tile,
    )


class Engine:
    """One model, ready to restore frames. One thread calls it at a time.

    Parameters
    ----------
    model : Artifact
    device : str
        "cpu", "cuda", "cuda:1"; "auto" takes CUDA when there is one.
    precision : str
        "float32", "bfloat16", "float16"; "auto" takes the fastest that agrees with float32, and the same at
        every load on this machine.
    threads : int
        CPU threads for the network, for the whole process; 0 leaves torch's own number.
    max_pixels : int
        Largest frame accepted, in raw pixels.
    tile : int
        Frames of more than (2 * `tile`)² raw pixels are cut into tiles of this edge.

    Raises
    ------
    InputError
        When a setting cannot be used on this machine.
    ModelError
        When the model fails its numeric check.
    """

    def __init__(
        self,
        model: Artifact,
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int = 0,
        max_pixels: int = MAX_PIXELS,
        tile: int = CORE,
    ) -> None:
        record = model.record
        if threads < 0 or max_pixels < 1 or tile < record.multiple:
            raise InputError(
                f"threads={threads}, max_pixels={max_pixels}, tile={tile}: threads must be 0 or more, "
                f"max_pixels 1 or more, and tile at least the model's {record.multiple} pixels"
            )
        if threads:
            torch.set_num_threads(threads)
        self._device = _device(device)
        # The numeric check's frame has mean 0 and deviation 1: of other networks it would prove nothing.
        if precision == "auto" and record.normalisation != "frame-mean-std":
            precision = "float32"
        self._network, chosen = choose(
            model.module,
            sha256=model.sha256,
            device=self._device,
            wanted=precision,
            frames=record.frames,
            holes=record.holes,
        )
        self._record = record
        self._scale, self._halo, self._multiple = record.scale, record.halo, record.multiple
        self._tile = tile
        self._info = UpscalerInfo(
            id=record.id,
            sha256=model.sha256,
            scale=record.scale,
            precision=chosen,
            device=str(self._device),
            max_pixels=max_pixels,
            pixel_size_um=record.pixel_size_um,
            frames=record.frames,
            neighbours=record.neighbours,
            holes=record.holes,
        )

    @property
    def info(self) -> UpscalerInfo:
        """Fixed after loading."""
        return self._info

    def warm(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Do all first-time work for frames of these (Y, X) shapes: kernels are chosen, memory is taken."""
        for y, x in shapes:
            ramp = (np.arange(y * x, dtype=np.uint32) % 251).astype(np.uint16).reshape(y, x)
            frames = self._info.frames
            frame = np.stack([ramp] * frames) if frames > 1 else ramp
            for _ in range(2):
                self.upscale([frame])

    def upscale(self, frames: Sequence[Pixels]) -> list[Pixels]:
        """Restore frames; see :class:`~live_sr.upscaler.Upscaler`.

        Each is computed by itself, also when several are given: libraries choose another order of summation
        for another batch size, and pixels would depend on the load.

        Parameters
        ----------
        frames : sequence of (Y, X), or (info.frames, Y, X) for a multi-frame model, uint8 or uint16
            Any shape and byte order; read only.

        Returns
        -------
        list of (scale * Y, scale * X), dtype of the frame in this machine's byte order

        Raises
        ------
        InputError
            When one is not a frame (see :func:`~live_sr.frame.check_pixels`), or larger than
            ``info.max_pixels``; nothing is computed then.
        """
        self._check(frames)
        with torch.inference_mode():
            return [self._restore(frame) for frame in frames]

    def fill(self, frames: Sequence[Pixels], missing: Sequence[Missing]) -> list[Pixels]:
        """Restore frames of which pixels are missing; see :class:`~live_sr.upscaler.HoleFiller`.

        Parameters
        ----------
        frames : sequence of (info.frames, Y, X) uint8 or uint16
        missing : sequence of (info.frames, Y, X) bool
            One for each of the `frames`; True where a pixel is missing.

        Returns
        -------
        list of (scale * Y, scale * X), dtype of the frame in this machine's byte order
            Pixels that none of the frames has are 0.

        Raises
        ------
        InputError
            When the model fills no holes, a mask does not fit its frame, or as :meth:`upscale`.
        """
        if not self._info.holes:
            raise InputError(
                f"{self._info.id} fills no holes: choose a model that was trained to, or leave the mask out"
            )
        self._check(frames)
        given = [(mask.dtype.name, mask.shape) for mask in missing]
        wanted = [("bool", frame.shape) for frame in frames]
        if given != wanted:
            raise InputError(f"the masks are {given}, and must be {wanted}: give one for each frame")
        with torch.inference_mode():
            return [self._fill(*given) for given in zip(frames, missing, strict=True)]

    def _check(self, frames: Sequence[Pixels]) -> None:
        for frame in frames:
            check_pixels(frame, self._info.frames)
            y, x = frame.shape[-2:]
            if y * x > self._info.max_pixels:
                raise InputError(
                    f"a frame of shape {(y, x)} has {y * x} pixels, this engine accepts "
                    f"{self._info.max_pixels}: raise max_pixels, or crop the frame"
                )

    def _restore(self, frame: Pixels) -> Pixels:
        middle = frame if frame.ndim == 2 else frame[len(frame) // 2]
        level = grey_level(middle)
        if level.spread == 0:  # nothing to restore; at its edges the network would invent a pattern
            y, x = middle.shape
            return np.full((y * self._scale, x * self._scale), middle.flat[0], np.dtype(frame.dtype.name))
        return self._compute(frame, np.zeros(middle.shape, bool), level)

    def _fill(self, stack: Pixels, missing: Missing) -> Pixels:
        hole: Missing = missing[len(stack) // 2]
        nowhere: Missing = np.logical_and.reduce(missing)
        stack = bridge(stack, missing)
        if not hole.any():
            return self._restore(stack)
        if nowhere.all():
            y, x = hole.shape
            return np.zeros((y * self._scale, x * self._scale), np.dtype(stack.dtype.name))
        level = _level_around(stack, hole, nowhere)
        stack[:, nowhere] = round(level.mean)  # whatever it holds must not show around it
        restored = self._compute(stack, hole, level)
        restored[enlarged(nowhere, self._scale)] = 0
        return restored

    def _compute(self, frame: Pixels, hole: Missing, level: GreyLevel) -> Pixels:
        """Tile by tile: (Y, X) or (frames, Y, X) of this grey level to (scale * Y, scale * X)."""
        y, x = hole.shape
        s = self._scale
        dtype = np.dtype(frame.dtype.name)  # in this machine's byte order
        level = network_level(self._record, level, dtype)
        restored = np.empty((y * s, x * s), dtype)
        for tile in tiles((y, x), core=self._tile, halo=self._halo, multiple=self._multiple):
            pixels = self._compute_tile(frame[(..., *tile.window)], hole[tile.window], level)
            restored[_enlarged(tile.core, s)] = pixels[_enlarged(tile.inner, s)]
        return restored

    def _compute_tile(self, raw: Pixels, hole: Missing, level: GreyLevel) -> NDArray[Any]:
        dtype = torch.uint8 if raw.dtype.itemsize == 1 else torch.uint16
        x = self._upload(raw, dtype).to(torch.float32).sub_(level.mean).div_(level.spread)
        x = x.reshape(1, self._info.frames, *x.shape[-2:])
        if self._info.holes:
            mask = self._upload(hole, torch.bool).to(torch.float32)
            x = torch.cat([x, mask.reshape(1, 1, *mask.shape)], 1)
        y = run(self._network, x)[0, 0]
        y = y.mul(level.spread).add_(level.mean).round_()  # half to even, as numpy rounds
        return self._download(y.clamp_(0, torch.iinfo(dtype).max).to(dtype))

    def _upload(self, raw: NDArray[Any], dtype: torch.dtype) -> Tensor:
        # The copy is needed on the CPU as well: frames from the wire are read only, which torch does not take.
        staged = torch.empty(raw.shape, dtype=dtype, pin_memory=self._device.type == "cuda")
        staged.numpy()[...] = raw
        return staged.to(self._device, non_blocking=True)

    def _download(self, pixels: Tensor) -> NDArray[Any]:
        if self._device.type != "cuda":
            return pixels.numpy()
        staged = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
        staged.copy_(pixels, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return staged.numpy()


class GreyLevel(NamedTuple):
    """Mean and standard deviation of a whole frame, in grey levels, each rounded once from its exact value."""

    mean: float
    spread: float


def grey_level(frame: Pixels) -> GreyLevel:
    """Mean and standard deviation of a (Y, X) frame, from exact integer sums.

    Integer sums do not depend on the order of summation, and so not on threads, tiles or machine.
    """
    n = frame.size
    total = int(frame.sum(dtype=np.uint64))
    squares = int(np.einsum("yx,yx->", frame, frame, dtype=np.uint64, casting="safe"))
    return GreyLevel(total / n, math.sqrt((n * squares - total**2) / n**2))


def _level_around(stack: Pixels, hole: Missing, nowhere: Missing) -> GreyLevel:
    """Of the middle frame's measured pixels, or of the nearest frames where these are too few to tell."""
    middle = len(stack) // 2
    if hole.mean() <= 1 - LEAST_VALID:
        return grey_level(stack[middle][None, ~hole])
    nearest: Pixels = stack[[middle - 1, middle + 1]][:, ~nowhere]
    return grey_level(nearest)


def network_level(record: ModelRecord, frame: GreyLevel, dtype: np.dtype[Any]) -> GreyLevel:
    """The grey level that `record`'s network sees as 0, and how many grey levels it sees as 1."""
    match record.normalisation:
        case "frame-mean-std":
            return GreyLevel(frame.mean, max(frame.spread, LEAST_SPREAD))
        case "unit-range":
            return GreyLevel(0.0, float(np.iinfo(dtype).max))
        case "linear":
            return GreyLevel(-record.offset / record.gain, 1 / record.gain)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, not {name!r}") from e
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, not {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"there is no {name} here, torch sees {torch.cuda.device_count()} CUDA devices: "
            "use device auto or cpu, or install the driver and torch's CUDA build"
        )
    return device


def _enlarged(region: tuple[slice, slice], scale: int) -> tuple[slice, slice]:
    rows, columns = region
    return (
        slice(rows.start * scale, rows.stop * scale),
        slice(columns.start * scale, columns.stop * scale),
    )
