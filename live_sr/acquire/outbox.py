"""Decides which frame a server gets next. Knows no camera, socket or file.

Two lanes. The *live* lane gives the newest frame first, so that what the operator sees stays fresh however slow
the server is. A frame that has waited too long, or for which there is no memory, moves to the *deferred* lane
as a mere number; its pixels are fetched again when the live lane is empty. Between them nothing is dropped.
Frames that belong to no sequence (:mod:`~live_sr.acquire.lane`) are sent when the live lane is empty, in turn
with deferred ones: neither the operator's picture nor the run's completion waits for the other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from live_sr.frame import Frame, Ledger

log = logging.getLogger("live_sr")
LIVE_BYTES = 256 * 2**20  # frames waiting for a credit
MAX_AGE_MS = 500.0  # an operator looks at newer frames by then
FETCHED = 2  # deferred frames kept ready: one being sent, one next
RETRY_S = 0.05  # between two looks for a deferred frame that the raw writer has not finished


class Outbox:
    """The frames of a session that wait to be sent. Thread-safe.

    Parameters
    ----------
    fetch : callable
        ``(seq) -> Frame`` of a deferred frame, or None when it cannot be had yet. Called on the outbox's own
        thread. Raises ``LookupError`` with the reason when it is gone for good.
    lost : callable
        ``(seq, reason)``: a deferred frame is gone for good; called after the ledger counts it as failed.
    deferring : callable
        ``(seq)``: a frame is about to become a mere number. Must not raise.
    room : callable
        Whether a result could be taken at present: results wait to be written, more would only pile up.
    beside : callable
        The next frame that belongs to no sequence, counted as in flight; None when there is none.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        fetch: Callable[[int], Frame | None],
        lost: Callable[[int, str], None],
        deferring: Callable[[int], None] = lambda seq: None,
        room: Callable[[], bool] = lambda: True,
        beside: Callable[[], Frame | None] = lambda: None,
        max_bytes: int = LIVE_BYTES,
        max_age_ms: float = MAX_AGE_MS,
    ) -> None:
        self._ledger = ledger
        self._fetch = fetch
        self._lost = lost
        self._deferring = deferring
        self._room = room
        self._beside = beside
        self._deferred_next = False  # one from beside was sent last
        self._max_bytes = max_bytes
        self._max_age_ns = int(max_age_ms * 1e6)
        self._changed = threading.Condition()
        self._live: deque[Frame] = deque()  # oldest left, newest right
        self._live_bytes = 0
        self._deferred: deque[int] = deque()
        self._fetched: deque[Frame] = deque()
        self._held_back = False
        self._closed = False
        self._on_ready: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="live-sr outbox", daemon=True)

    def start(self, on_ready: Callable[[], None]) -> None:
        """Begin; `on_ready` is called whenever :meth:`take` may have something new."""
        self._on_ready = on_ready
        self._thread.start()

    def put(self, frame: Frame) -> None:
        """Add a frame to the live lane; it is counted as queued already."""
        with self._changed:
            self._live.append(frame)
            self._live_bytes += frame.nbytes
            while self._live and (self._held_back or self._live_bytes > self._max_bytes):
                self._defer_oldest()
            self._changed.notify_all()
        self._on_ready()

    def put_deferred(self, seq: int) -> None:
        """Add a frame straight to the deferred lane; it is counted as deferred already."""
        with self._changed:
            self._deferred.append(seq)
            self._changed.notify_all()

    def hold_back(self, on: bool) -> None:
        """While `on`, nothing is sent: every frame goes straight to the deferred lane and stays there."""
        with self._changed:
            self._held_back = on
            while on and self._live:
                self._defer_oldest()
            self._changed.notify_all()
        self._on_ready()

    def take(self) -> Frame | None:
        """The next frame, counted as in flight: the newest live one, else a deferred one."""
        with self._changed:
            if self._closed or self._held_back or not self._room():
                return None
            self._defer_old()
            if self._live:
                frame = self._live.pop()
                self._live_bytes -= frame.nbytes
                self._ledger.move("queued", "in_flight")
                return frame
            beside = None if self._deferred_next and self._fetched else self._beside()
            self._deferred_next = beside is not None
            if beside is not None:
                return beside
            if self._fetched:
                self._changed.notify_all()
                self._ledger.move("deferred", "in_flight")
                return self._fetched.popleft()
            return None

    def give_back(self, seq: int) -> None:
        """A frame in flight that the server had no room for: it waits in the deferred lane."""
        with self._changed:
            self._ledger.move("in_flight", "deferred")
            self._deferring(seq)
            self._deferred.append(seq)
            self._changed.notify_all()

    @property
    def fullness(self) -> float:
        """Live lane's bytes over its limit, for the 75 % and 100 % alarms."""
        return self._live_bytes / self._max_bytes

    def close(self) -> list[int]:
        """Stop, and return the numbers of the frames still here, all counted as deferred now.

        Call after the links have stopped: a frame given back later would be nobody's.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout=30)
        left = [f.seq for f in self._live] + [f.seq for f in self._fetched] + list(self._deferred)
        for _ in self._live:
            self._ledger.move("queued", "deferred")
        self._live.clear()
        self._live_bytes = 0
        self._fetched.clear()
        self._deferred.clear()
        return sorted(left)

    # ---------------------------------------------------------------- under the lock

    def _defer_old(self) -> None:
        too_old = time.monotonic_ns() - self._max_age_ns
        while self._live and self._live[0].captured_ns < too_old:
            self._defer_oldest()

    def _defer_oldest(self) -> None:
        frame = self._live.popleft()
        self._live_bytes -= frame.nbytes
        self._ledger.move("queued", "deferred")
        self._deferring(frame.seq)
        self._deferred.append(frame.seq)
        self._changed.notify_all()

    # ---------------------------------------------------------------- the outbox's thread

    def _run(self) -> None:
        while (seq := self._next_to_fetch()) is not None:
            try:
                frame = self._fetch(seq)
            except Exception as e:  # the top of a thread: the frame is counted, and the others are served
                if not isinstance(e, LookupError):
                    log.exception("live-sr could not fetch frame %d", seq)
                self._ledger.move("deferred", "failed")
                self._lost(seq, str(e))
                continue
            with self._changed:
                if frame is None:
                    self._deferred.append(seq)
                    self._changed.wait(RETRY_S)
                    continue
                self._fetched.append(frame)
            self._on_ready()

    def _next_to_fetch(self) -> int | None:
        """Wait until a deferred frame is worth fetching; None when closed."""
        with self._changed:
            while not self._closed:
                self._defer_old()
                wanted = self._deferred and not self._live and not self._held_back
                if wanted and len(self._fetched) < FETCHED:
                    return self._deferred.popleft()
                oldest = self._live[0].captured_ns if self._live else None
                due = None
                if oldest is not None:
                    due = max(0.001, (oldest + self._max_age_ns - time.monotonic_ns()) / 1e9)
                self._changed.wait(due)
            return None
