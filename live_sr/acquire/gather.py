"""Gives frames their neighbours before they are sent to a multi-frame model. Knows no server and no lane.

A frame is handed on as soon as the frames after it that the model looks at are in, or can come no more: a later
one of its series is in, the axis or the run has ended. Until then it is *queued*. Which frames stand beside it
is decided by where they lie in the volume and by nothing else, so that the raw data give the same neighbours
later (:mod:`live_sr.neighbours` has the rule). A black frame is nobody's neighbour: writers leave black frames
out, and one that was never acquired looks the same.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from live_sr.acquire.plan import Place, Plan
from live_sr.acquire.raw import checksum
from live_sr.frame import Frame, Pixels
from live_sr.neighbours import FrameCount, Neighbours, axis_of, surround

HELD_BYTES = 256 * 2**20  # pixels kept for frames to come; past that they are fetched again

At = tuple[int, ...]
"""Where a frame lies in the volume, in the order of the plan's axes."""

Fetch = Callable[[int, Place, int | None], NDArray[Any] | None]
"""``(n, place, crc) -> pixels``, None when they cannot be had yet; raises LookupError when they never will."""


class Gathered(NamedTuple):
    """A frame that waits for nothing more; `frame` is None when its pixels must be fetched again.

    Attributes
    ----------
    waited_ms : float
        For its neighbours.
    """

    seq: int
    frame: Frame | None
    waited_ms: float = 0.0


@dataclass(slots=True, eq=False)
class _Seen:
    """A frame that is, or may become, a neighbour of one that is not settled."""

    n: int
    crc: int | None
    blank: bool
    pixels: Pixels | None = None
    settled: bool = False
    restored: bool = False


@dataclass(slots=True, eq=False)
class _Series:
    """What differs along the axis only; forgotten when nothing more can come."""

    last: int = -1
    waiting: deque[tuple[int, At, _Seen, int]] = field(default_factory=deque)  # seq, where, itself, since (ns)


class Gatherer:
    """The neighbourhoods of one run. Thread-safe.

    Until the model is known frames are handed on at once, alone, and only remembered; a single-frame model is
    the end even of that.

    Parameters
    ----------
    release : callable
        ``(n)``: neither the run's `n`-th frame, which was restored, nor a neighbour needs its pixels any more.
    max_bytes : int
        For the pixels of frames that wait, or are waited for.
    """

    def __init__(self, plan: Plan, *, release: Callable[[int], None], max_bytes: int = HELD_BYTES) -> None:
        self._plan = plan
        self._release = release
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._frames: FrameCount | None = None  # None: no model is known yet
        self._reach = 0
        self._axis: str | None = None
        self._i = 0  # of the axis, in `At`
        self._end = math.inf  # its last position
        self._ended = False
        self._seen: dict[At, _Seen] = {}
        self._series: dict[At, _Series] = {}
        self._held: OrderedDict[At, _Seen] = OrderedDict()  # those with pixels, oldest first
        self._bytes = 0

    @property
    def axis(self) -> str | None:
        """Along which the neighbours lie; None for a single-frame model, and where the run has no such axis."""
        return self._axis

    # ---------------------------------------------------------------- links' threads

    def learn(self, frames: FrameCount, neighbours: Neighbours) -> None:
        """The model is known; it stays the same for the whole session."""
        with self._lock:
            if self._frames is not None:
                return
            self._frames, self._reach = frames, frames // 2
            self._axis = _axis(self._plan, frames, neighbours)
            if self._axis is None:
                self._seen.clear()
                return
            sizes = dict(self._plan.order)
            self._i = list(sizes).index(self._axis)
            self._end = math.inf if (size := sizes[self._axis]) is None else size - 1
            for at in () if self._ended else self._seen:
                series = self._series.setdefault(self._key(at), _Series())
                series.last = max(series.last, at[self._i])
            for key in list(self._series):
                self._close_if_over(key)
            for at in list(self._seen):
                self._forget_if_done(at)

    # ---------------------------------------------------------------- intake thread

    def add(
        self, seq: int, n: int, place: Place, pixels: Pixels | None, crc: int | None, captured_ns: int
    ) -> list[Gathered]:
        """Take the run's `n`-th frame; the frames that wait for nothing more now, this one or earlier ones."""
        frame = Frame(seq, pixels, captured_ns) if pixels is not None else None
        with self._lock:
            if self._plan.mixed or (self._frames is not None and self._axis is None):
                return [Gathered(seq, self._alone(frame) if frame is not None else None)]
            at = self._at(place)
            blank = pixels is not None and crc == self._crc_of_black and not pixels.any()
            seen = self._seen[at] = _Seen(n, crc, blank)
            if self._frames is None:
                return [Gathered(seq, frame)]
            if pixels is not None:
                self._hold(at, seen, pixels)
            key = self._key(at)
            series = self._series.setdefault(key, _Series())
            series.last = max(series.last, at[self._i])
            series.waiting.append((seq, at, seen, captured_ns))
            ready = []
            while series.waiting and self._is_complete(series.waiting[0][1]):
                ready.append(self._hand_on(series, captured_ns))
            self._close_if_over(key)
            return ready

    def end(self) -> list[Gathered]:
        """The run has ended: what waits is handed on with the neighbours that are there."""
        with self._lock:
            self._ended = True
            now = time.monotonic_ns()
            ready = [self._hand_on(s, now) for s in self._series.values() for _ in range(len(s.waiting))]
            self._series.clear()
            for at in list(self._held):
                self._let_go(at)
            for at in list(self._seen) if self._axis is not None else ():
                self._forget_if_done(at)
            return sorted(ready)

    # ---------------------------------------------------------------- outbox's thread

    def with_neighbours(self, frame: Frame, n: int, place: Place, fetch: Fetch) -> Frame | None:
        """Give a frame that was deferred its neighbours; None when they cannot be had yet.

        Raises
        ------
        StoreError
            When our own copy of a neighbour cannot be read.
        """
        with self._lock:
            if self._axis is None:
                return self._alone(frame)
            at = self._at(place)
            if not self._is_complete(at):
                return None
            beside = {d: self._seen.get(self._beside(at, d)) for d in self._offsets()}
        axis, position = self._axis, at[self._i]
        found: dict[int, tuple[int, Pixels]] = {}
        for offset, seen in beside.items():
            if seen is None or seen.blank:
                continue
            try:
                pixels = fetch(seen.n, {**place, axis: position + offset}, seen.crc)
            except LookupError:  # raw does not hold it, and so it is no neighbour later either
                continue
            if pixels is None:
                return None
            if seen.crc is not None or pixels.any():  # without a checksum nobody has looked at it yet
                found[offset] = (position + offset, pixels)
        assert self._frames is not None
        return self._stacked(frame, surround((position, frame.pixels), self._frames, found.get))

    # ---------------------------------------------------------------- delivery thread

    def settle(self, n: int, place: Place, *, restored: bool) -> None:
        """The frame came back, or never will."""
        with self._lock:
            at = self._at(place)
            seen = self._seen.get(at)
            if seen is None or seen.n != n:
                if restored:
                    self._release(n)
                return
            seen.settled, seen.restored = True, restored
            if self._axis is not None:
                for offset in (0, *self._offsets()):
                    self._forget_if_done(self._beside(at, offset))

    # ---------------------------------------------------------------- under the lock

    def _alone(self, frame: Frame) -> Frame:
        many = self._frames or 1
        return replace(frame, stack=(frame.pixels,) * many) if many > 1 else frame

    def _hand_on(self, series: _Series, now_ns: int) -> Gathered:
        """The longest waiting frame of `series`."""
        seq, at, seen, since = series.waiting.popleft()

        def beside(offset: int) -> tuple[int, Pixels | None] | None:
            other = self._seen.get(self._beside(at, offset))
            return None if other is None or other.blank else (at[self._i] + offset, other.pixels)

        assert self._frames is not None
        planes = surround((at[self._i], seen.pixels), self._frames, beside)
        stack = [(position, pixels) for position, pixels in planes if pixels is not None]
        if seen.pixels is None or len(stack) < len(planes):
            gathered = Gathered(seq, None, (now_ns - since) / 1e6)
        else:
            frame = self._stacked(Frame(seq, seen.pixels, now_ns), stack)
            gathered = Gathered(seq, frame, (now_ns - since) / 1e6)
        self._let_go(self._beside(at, -self._reach))
        return gathered

    def _stacked(self, frame: Frame, planes: list[tuple[int, Pixels]]) -> Frame:
        assert self._axis is not None
        used = {self._axis: tuple(position for position, _ in planes)}
        return replace(frame, stack=tuple(pixels for _, pixels in planes), used=used)

    def _is_complete(self, at: At) -> bool:
        """Whether all frames that the one at `at` looks ahead to are in, or can come no more."""
        series = self._series.get(self._key(at))
        return series is None or series.last >= min(at[self._i] + self._reach, self._end)

    def _close_if_over(self, key: At) -> None:
        series = self._series[key]
        if series.last >= self._end and not series.waiting:
            del self._series[key]
            for i in range(series.last - 2 * self._reach, series.last + 1):
                self._let_go((*key[: self._i], i, *key[self._i :]))

    def _forget_if_done(self, at: At) -> None:
        """When neither it nor a frame that may need it is still to be restored."""
        seen = self._seen.get(at)
        if seen is None or not seen.settled or not self._is_complete(at):
            return
        beside = (self._seen.get(self._beside(at, offset)) for offset in self._offsets())
        if all(other is None or other.settled for other in beside):
            del self._seen[at]
            self._let_go(at)
            if seen.restored:
                self._release(seen.n)

    def _hold(self, at: At, seen: _Seen, pixels: Pixels) -> None:
        self._let_go(at)  # of a frame delivered twice
        seen.pixels = pixels
        self._held[at] = seen
        self._bytes += pixels.nbytes
        while self._bytes > self._max_bytes:
            self._let_go(next(iter(self._held)))

    def _let_go(self, at: At) -> None:
        seen = self._held.pop(at, None)
        if seen is not None and seen.pixels is not None:
            self._bytes -= seen.pixels.nbytes
            seen.pixels = None

    # ---------------------------------------------------------------- places

    def _at(self, place: Place) -> At:
        return tuple(place.get(axis, -1) for axis, _ in self._plan.order)

    def _key(self, at: At) -> At:
        return at[: self._i] + at[self._i + 1 :]

    def _beside(self, at: At, offset: int) -> At:
        return (*at[: self._i], at[self._i] + offset, *at[self._i + 1 :])

    def _offsets(self) -> list[int]:
        return [offset for offset in range(-self._reach, self._reach + 1) if offset]

    @functools.cached_property
    def _crc_of_black(self) -> int:
        return checksum(np.zeros(self._plan.frame_shape, self._plan.dtype))


def _axis(plan: Plan, frames: FrameCount, neighbours: Neighbours) -> str | None:
    return None if frames == 1 or plan.mixed else axis_of(neighbours, dict(plan.order))
