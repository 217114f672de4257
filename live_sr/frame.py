"""What a frame is, and the ledger of where every frame of a run is; knows no socket, file or camera."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from live_sr.errors import InputError

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
"""(Y, X) uint8 or uint16, C-contiguous; for multi-frame models (frames, Y, X), a frame amid its neighbours."""

DTYPES = ("uint8", "uint16")
"""Pixel types that travel and are restored; 12 and 14 bit cameras deliver uint16."""


def check_pixels(pixels: NDArray[Any], frames: int = 1) -> Pixels:
    """Return `pixels` if it is a frame that can be restored, by a model that sees `frames` of them at once.

    Raises
    ------
    InputError
        When it is not (Y, X), or (`frames`, Y, X) for a multi-frame model, is empty, or its dtype is neither
        uint8 nor uint16.
    """
    if pixels.shape[:-2] != ((frames,) if frames > 1 else ()) or pixels.ndim < 2 or 0 in pixels.shape:
        raise InputError(
            f"a frame must be one non-empty (Y, X) plane, got shape {pixels.shape}: select one channel first"
            if frames == 1
            else f"this model restores the middle one of {frames} frames, got shape {pixels.shape}: give it "
            f"({frames}, Y, X), a single frame {frames} times"
        )
    if pixels.dtype.name not in DTYPES:
        raise InputError(f"a frame must be uint8 or uint16, got {pixels.dtype}: convert it without rescaling")
    return pixels


def stacked(planes: Sequence[Pixels]) -> Pixels:
    """(frames, Y, X) of frames of one shape and dtype."""
    pixels: Pixels = np.stack(planes)  # type: ignore[assignment]  # numpy says any dtype
    return pixels


FrameKind = Literal["sequence", "live", "snap"]
"""What acquired a frame: an MDA sequence, a stream of the camera's own (continuous mode), or a single snap."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame on its way to a server.

    Attributes
    ----------
    seq : int
        Running number within the session, from 0; the frame's identity on the wire and in the journal.
    pixels : (Y, X) uint8 or uint16
        Shared with other listeners: read only.
    captured_ns : int
        ``time.monotonic_ns()`` of this machine when the hook received it, or the last neighbour that it
        waited for.
    stack : tuple of (Y, X)
        For a multi-frame model: its neighbours along an axis, with `pixels` itself in the middle.
    used : mapping or None
        Their positions along that axis, ``{"t": (3, 4, 5)}``; None when it stands for itself alone.
    kind : {"sequence", "live", "snap"}
        Live frames and snaps are shown and never saved; a live frame is worth nothing once there is a newer.
    channel : str
        Name of its channel, by which a model may be chosen for it.
    model_sha256 : str
        The model that shall restore it; empty: the first that a server offers.
    """

    seq: int
    pixels: Pixels
    captured_ns: int
    stack: tuple[Pixels, ...] = ()
    used: Mapping[str, tuple[int, ...]] | None = None
    kind: FrameKind = "sequence"
    channel: str = ""
    model_sha256: str = ""

    @property
    def planes(self) -> int:
        """How many frames the server is given to restore this one."""
        return len(self.stack) or 1

    @property
    def nbytes(self) -> int:
        """Memory of all of them."""
        return sum(plane.nbytes for plane in self.stack) or self.pixels.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """One super-resolved frame, as it came back.

    Attributes
    ----------
    pixels : (scale * Y, scale * X), dtype of the raw frame
    raw : (Y, X) uint8 or uint16
        The frame it was computed from.
    model : str
        Id of the model that computed it.
    model_sha256 : str
    scale : int
    server_ms : float
        Waiting and computing on the server, by the server's clock.
    round_trip_ms : float
        Sending to receiving, by this machine's clock.
    used : mapping or None
        As in :class:`Frame`.
    kind : {"sequence", "live", "snap"}
        As in :class:`Frame`.
    frames : int
        How many frames its model sees at once.
    """

    seq: int
    pixels: Pixels
    raw: Pixels
    model: str
    model_sha256: str
    scale: int
    server_ms: float
    round_trip_ms: float
    used: Mapping[str, tuple[int, ...]] | None = None
    kind: FrameKind = "sequence"
    frames: int = 1


State = Literal["queued", "in_flight", "deferred", "returned", "failed"]
STATES: tuple[State, ...] = get_args(State)
Tally = Literal["saved", "skipped", "deferred_total", "superseded", "live"]
TALLIES: tuple[Tally, ...] = get_args(Tally)


@dataclass(frozen=True, slots=True)
class Counts:
    """One consistent sample of a ledger; ``acquired`` equals the sum of the five states.

    Attributes
    ----------
    acquired : int
        Frames that are owed an answer, or have got it.
    superseded : int
        Live frames and snaps that were overtaken by a newer one, or that no server answered: they are owed
        nothing any more and have left ``acquired``.
    live : int
        Live frames and snaps among ``returned``: shown, never saved.
    """

    acquired: int = 0
    queued: int = 0
    in_flight: int = 0
    deferred: int = 0
    returned: int = 0
    failed: int = 0
    saved: int = 0
    skipped: int = 0
    deferred_total: int = 0
    superseded: int = 0
    live: int = 0

    @property
    def settled(self) -> bool:
        """Whether nothing is on its way any more."""
        return self.queued == self.in_flight == self.deferred == 0

    @property
    def complete(self) -> bool:
        """Whether everything that was acquired came back, and was saved unless it was live."""
        return self.settled and self.failed == 0 and self.saved + self.live == self.returned == self.acquired

    def as_dict(self) -> dict[str, int]:
        """All counters by name, as stored in reports, journals and data sets."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass
class Ledger:
    """Counts the frames of one session in each state; the only place that changes them.

    Every change moves frames from one state to another under one lock, so
    ``acquired = queued + in_flight + deferred + returned + failed`` holds at every sample. Vocabulary after
    EPICS areaDetector's plugin counters. Thread-safe.

    A frame of a sequence never leaves ``acquired``. A live frame does when it is superseded: in one step it
    goes from its state to ``superseded`` and is no longer among the acquired. So live mode, which discards by
    design, neither breaks the sum nor makes a run look incomplete; ``acquired + superseded`` is all that ever
    came in.
    """

    _states: dict[State, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    _tallies: dict[Tally, int] = field(default_factory=lambda: dict.fromkeys(TALLIES, 0))
    _acquired: int = 0
    _next: int = 0  # sequence number; of a superseded frame it is not used again
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def acquire(self, into: State = "queued") -> int:
        """Count one new frame in state `into` and return its sequence number."""
        with self._changed:
            seq = self._next
            self._next += 1
            self._acquired += 1
            self._states[into] += 1
            return seq

    def move(self, source: State, target: State, n: int = 1) -> None:
        """Move `n` frames from one state to another; arriving in ``deferred`` adds to ``deferred_total``."""
        with self._changed:
            assert self._states[source] >= n, f"{n} leave {source!r}, holding {self._states[source]}"
            self._states[source] -= n
            self._states[target] += n
            if target == "deferred":
                self._tallies["deferred_total"] += n
            self._changed.notify_all()

    def supersede(self, source: State) -> None:
        """Let one live frame go that is in state `source`: it is owed no answer any more."""
        with self._changed:
            assert self._states[source] >= 1, f"a frame leaves {source!r}, holding none"
            self._states[source] -= 1
            self._acquired -= 1
            self._tallies["superseded"] += 1
            self._changed.notify_all()

    def tally(self, name: Tally, n: int = 1) -> None:
        """Add `n` to a counter that stands beside the states."""
        with self._changed:
            self._tallies[name] += n
            self._changed.notify_all()

    def sample(self) -> Counts:
        """All counters at one instant."""
        with self._changed:
            return self._sample()

    def wait_settled(self, timeout: float | None) -> bool:
        """Wait until no frame is queued, in flight or deferred; False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._sample().settled, timeout)

    def _sample(self) -> Counts:
        counters: dict[str, int] = {str(k): n for k, n in (*self._states.items(), *self._tallies.items())}
        return Counts(acquired=self._acquired, **counters)
