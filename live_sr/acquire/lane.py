"""Where the live frames of a session are: one place per camera, and the newest wins. Knows no camera or server.

Live frames and snaps are for the eye. They are never deferred and never stored; one that was overtaken by a
newer one of its camera, before it was sent or while it was away, is *superseded*
(:class:`~live_sr.frame.Ledger` says what that means for the count). A snap differs from a live frame in one
thing: no newer one need ever come, so it is waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from live_sr.frame import Frame, FrameKind, Ledger, Pixels
from live_sr.timing import Durations, Rate

if TYPE_CHECKING:
    from useq import MDAEvent

FRESH_S = 0.25  # a waiting frame older than this is replaced: what is sent next was seen just now
SERVER_FULL_S = 0.1  # before a frame is offered again to a server that had no room


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """One live frame or snap, as it was seen.

    Attributes
    ----------
    camera : tuple of (int, str)
        Which core of the session, and the camera's label: of two shots with the same the newer wins.
    pixels : (Y, X) uint8 or uint16
    event : MDAEvent
        Without index: it belongs to no sequence.
    meta : mapping
        As pymmcore-plus' ``FrameMetaV1``.
    captured_ns : int
        ``time.monotonic_ns()`` when it was read from the core.
    """

    kind: FrameKind
    camera: tuple[int, str]
    pixels: Pixels
    event: MDAEvent
    meta: Mapping[str, Any]
    captured_ns: int
    deferred: ClassVar[bool] = False


class LiveLane:
    """The live frames of a session that wait to be sent, and those that are away. Thread-safe.

    Parameters
    ----------
    planes : callable
        How many frames at once the model sees. A live frame stands alone, as at the ends of a series: what was
        seen just before may be another place of the specimen, for this is when an operator moves about.
    taken : callable
        Called when a frame was taken to be sent: there is room for another. Must not block.
    """

    def __init__(
        self, ledger: Ledger, *, planes: Callable[[], int] = lambda: 1, taken: Callable[[], None] = lambda: None
    ) -> None:
        self.raw_rate = Rate()
        self.sr_rate = Rate()
        self.latency = Durations()
        self._ledger = ledger
        self._planes = planes
        self._taken = taken
        self._lock = threading.Lock()
        self._waiting: dict[tuple[int, str], tuple[int, Shot]] = {}  # oldest camera first
        self._away: dict[int, Shot] = {}
        self._shown: dict[tuple[int, str], int] = {}  # the newest that came back
        self._not_before = 0.0

    # ---------------------------------------------------------------- who sees frames

    def put(self, shot: Shot) -> int:
        """Take the newest shot of its camera, and return its sequence number."""
        with self._lock:
            seq = self._ledger.acquire()
            self.raw_rate.tick()
            if self._waiting.pop(shot.camera, None) is not None:
                self._ledger.supersede("queued")
            self._waiting[shot.camera] = seq, shot
            return seq

    def wants(self, core: int) -> bool:
        """Whether a newer frame of this core would be sent: none waits, or the one that does is stale."""
        stale = time.monotonic_ns() - int(FRESH_S * 1e9)
        with self._lock:
            return all(shot.captured_ns < stale for _, shot in self._waiting.values() if shot.camera[0] == core)

    # ---------------------------------------------------------------- who sends them

    def take(self) -> Frame | None:
        """The next frame, counted as in flight."""
        with self._lock:
            if not self._waiting or time.monotonic() < self._not_before:
                return None
            seq, shot = self._waiting.pop(next(iter(self._waiting)))
            self._away[seq] = shot
            self._ledger.move("queued", "in_flight")
            planes = self._planes()
        self._taken()
        return Frame(
            seq,
            shot.pixels,
            shot.captured_ns,
            stack=(shot.pixels,) * planes if planes > 1 else (),
            kind=shot.kind,
            channel=shot.event.channel.config if shot.event.channel is not None else "",
        )

    def give_back(self, seq: int) -> None:
        """The server had no room, or went: a live frame is superseded, a snap waits again unless overtaken."""
        with self._lock:
            if (shot := self._away.pop(seq, None)) is None:
                return
            self._not_before = time.monotonic() + SERVER_FULL_S
            if shot.kind == "live" or shot.camera in self._waiting or self._overtaken(seq, shot):
                self._ledger.supersede("in_flight")
            else:
                self._waiting[shot.camera] = seq, shot
                self._ledger.move("in_flight", "queued")

    def fail(self, seq: int) -> None:
        """It will not come back, and no other of its kind would."""
        with self._lock:
            if self._away.pop(seq, None) is not None:
                self._ledger.move("in_flight", "failed")

    def settle(self, seq: int) -> Shot | None:
        """It came back: the shot it was made of, or None when that is no longer of interest."""
        with self._lock:
            if (shot := self._away.pop(seq, None)) is None:
                return None
            if self._overtaken(seq, shot):
                self._ledger.supersede("in_flight")
                return None
            self._shown[shot.camera] = seq
            self._ledger.move("in_flight", "returned")
            self._ledger.tally("live")
            self.sr_rate.tick()
            self.latency.add((time.monotonic_ns() - shot.captured_ns) / 1e6)
            return shot

    # ---------------------------------------------------------------- end

    def dismiss(self, *, snaps: bool) -> int:
        """Wait for no live frame any more, nor for a snap with `snaps`; the number of snaps given up."""
        with self._lock:
            waiting = [(c, shot) for c, (_, shot) in self._waiting.items() if snaps or shot.kind == "live"]
            for camera, _ in waiting:
                del self._waiting[camera]
                self._ledger.supersede("queued")
            away = [(seq, shot) for seq, shot in self._away.items() if snaps or shot.kind == "live"]
            for seq, _ in away:
                del self._away[seq]
                self._ledger.supersede("in_flight")
            return sum(shot.kind == "snap" for _, shot in (*waiting, *away))

    def _overtaken(self, seq: int, shot: Shot) -> bool:
        return seq < self._shown.get(shot.camera, -1)
