"""What one training step sees: raw frames and what the network should have made of them.

Draws crops and degrades them, or takes noisy frames as they are. Every batch is a function of the generator it
is given, so that a step can be drawn ahead, again, or on another machine. Knows no network and no loss.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from live_sr.train.crappify import Crappifier
from live_sr.train.dataset import Augment, Crops
from live_sr.train.holes import HoleSettings, punch
from live_sr.train.pairs import PairCrops

BLIND = 0.015  # of the pixels of a crop are hidden at a time (Krull et al. 2019 hide 64 of 64 x 64)
BLIND_REACH = 2  # pixels around a hidden one that its stand-in is taken from, same source: 5 x 5
AHEAD = 2  # batches drawn while the network computes
AS_THEY_ARE = Augment(zoom_share=0.0, window_share=0.0, invert_share=0.0, ends_share=0.0)
"""Noisy frames are only turned: averaging or stretching them would change the noise that is to be learnt."""


class Batch(NamedTuple):
    """One step's examples, float32 in [0, 1].

    Attributes
    ----------
    raw : (B, frames, Y, X), or (B, frames + 1, Y, X)
        With holes the last channel is their mask: see :func:`live_sr.train.holes.punch`.
    truth : (B, 1, scale * Y, scale * X)
    where : (B, 1, scale * Y, scale * X) or None
        1 where the truth counts; None where it counts everywhere.
    """

    raw: Tensor
    truth: Tensor
    where: Tensor | None = None


class Batches(Protocol):
    """Something that examples can be drawn from."""

    def __call__(self, n: int, generator: torch.Generator) -> Batch:
        """Draw `n` examples; `generator` is the only source of randomness."""
        ...


@dataclass(frozen=True)
class Degraded:
    """Good images, degraded: the crappifier's way."""

    crops: Crops
    crappifier: Crappifier
    scale: int
    holes: HoleSettings | None = None

    def __call__(self, n: int, generator: torch.Generator) -> Batch:
        """See :class:`Batches`."""
        return degraded(self.crops.batch(n, generator), self.crappifier, self.scale, self.holes, generator)


def degraded(
    frames: Tensor,
    crappifier: Crappifier,
    scale: int,
    holes: HoleSettings | None,
    generator: torch.Generator,
) -> Batch:
    """Degrade (n, frames, scale * Y, scale * X), and punch holes into what the middle one became."""
    middle = frames.shape[1] // 2
    truth = frames[:, middle : middle + 1]
    raw, at = crappifier(frames, scale, generator), _originals(frames)
    # A frame that stands in for another brings its own noise along, as in use. With new noise each time it
    # would pass for another look at the same place, which is there to be averaged: a network that learnt so
    # restores the ends of a series worse than one that sees single frames.
    raw = raw[torch.arange(len(raw))[:, None], at]
    if holes is not None:
        raw = punch(raw, at, holes, generator)
    return Batch(raw, truth)


def _originals(frames: Tensor) -> Tensor:
    """Which of the frames each one is, (n, frames) int64: of equal ones that closest to the middle."""
    n, count = frames.shape[:2]
    at = torch.arange(count).repeat(n, 1)
    for k in sorted(range(count), key=lambda k: -abs(k - count // 2)):  # the middle has the last word
        at[(frames == frames[:, k : k + 1]).flatten(2).all(-1)] = k
    return at


@dataclass(frozen=True)
class Paired:
    """Real low and high resolution images of the same places."""

    crops: PairCrops

    def __call__(self, n: int, generator: torch.Generator) -> Batch:
        """See :class:`Batches`."""
        return Batch(*self.crops.batch(n, generator))


@dataclass(frozen=True)
class NoiseToNoise:
    """A frame, and its neighbour in time or depth as the truth: both show the same, with other noise."""

    crops: Crops  # of three frames

    def __call__(self, n: int, generator: torch.Generator) -> Batch:
        """See :class:`Batches`."""
        frames = self.crops.batch(n, generator)
        before, frame, after = (frames[:, i : i + 1] for i in range(3))
        first, last = ((side == frame).flatten(1).all(1) for side in (before, after))
        # Where a neighbour is the frame itself, recorded twice, it would be taught to keep its noise.
        take_before = ((torch.rand(n, generator=generator) < 0.5) | last) & ~first
        return Batch(frame, torch.where(take_before[:, None, None, None], before, after))


@dataclass(frozen=True)
class BlindSpot:
    """A frame with some pixels replaced by ones from around them: those are to be found again."""

    crops: Crops

    def __call__(self, n: int, generator: torch.Generator) -> Batch:
        """See :class:`Batches`."""
        noisy = self.crops.batch(n, generator)
        y, x = noisy.shape[-2:]
        hidden = torch.rand(noisy.shape, generator=generator) < BLIND
        side = 2 * BLIND_REACH + 1
        at = torch.randint(0, side**2 - 1, noisy.shape, generator=generator)
        at += at >= side**2 // 2  # never the pixel itself
        rows = torch.arange(y)[:, None] + at // side - BLIND_REACH
        columns = torch.arange(x)[None] + at % side - BLIND_REACH
        rows, columns = _reflect(rows, y), _reflect(columns, x)
        stand_in = noisy.flatten(2).gather(2, (rows * x + columns).flatten(2)).view_as(noisy)
        return Batch(torch.where(hidden, stand_in, noisy), noisy, hidden.float())


@dataclass(frozen=True)
class Mixed:
    """Two kinds of examples in fixed shares; each batch is of one kind."""

    first: Batches
    second: Batches
    first_share: float

    def __call__(self, n: int, generator: torch.Generator) -> Batch:
        """See :class:`Batches`."""
        take_first = float(torch.rand((), generator=generator)) < self.first_share
        return (self.first if take_first else self.second)(n, generator)


def _reflect(at: Tensor, size: int) -> Tensor:
    at = at.abs()
    return torch.where(at < size, at, 2 * (size - 1) - at)


class Ahead:
    """Draws the batches of coming steps on a thread of its own, in order. Use as a context manager.

    Parameters
    ----------
    draw : callable
        ``(step) -> Batch``; depends on the step alone, so that drawing ahead changes nothing.
    first : int
        Number of the first step.
    """

    def __init__(self, draw: Callable[[int], Batch], first: int) -> None:
        self._draw = draw
        self._first = first
        self._drawn: queue.Queue[Batch | Exception] = queue.Queue(maxsize=AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-sr batches", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            batch = self._drawn.get()
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def _run(self) -> None:
        for step in itertools.count(self._first):
            try:
                batch: Batch | Exception = self._draw(step)
            except Exception as e:  # noqa: BLE001  the top of a thread: raised again where the batch is asked for
                batch = e
            while not self._stop.is_set():
                with contextlib.suppress(queue.Full):
                    self._drawn.put(batch, timeout=0.1)
                    break
            if self._stop.is_set() or isinstance(batch, Exception):
                return
