"""Takes frames from pymmcore-plus: stamps, hands over, returns. Never blocks, never raises, counts nothing.

Each way in is one :class:`Hook`: one for each attached core, and one for being an output of ``run_mda``. A run
can come in twice, when a session is attached to the core *and* given as an output; whichever hook announces it
first delivers it, and the other stays mute for that run, however late pymmcore-plus' relay thread calls it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymmcore_plus import CMMCorePlus
    from useq import MDAEvent, MDASequence

    from live_sr.acquire.listeners import Events

log = logging.getLogger("live_sr")
ANNOUNCED = 8  # latest runs remembered; one for each core that feeds the same session would do


@dataclass(frozen=True, slots=True, eq=False)
class RunStarted:
    """A sequence begins; nothing has been exposed yet."""

    hook: Hook
    sequence: MDASequence
    prepared: Any  # what the session made of it before the first exposure
    meta: dict[str, Any] = field(default_factory=dict)  # the summary metadata


@dataclass(frozen=True, slots=True, eq=False)
class FrameTaken:
    """One frame as pymmcore-plus delivered it; `pixels` is None when there was no memory left to keep it."""

    hook: Hook
    pixels: NDArray[np.generic] | None
    event: MDAEvent
    meta: dict[str, Any]
    captured_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class RunFinished:
    """A sequence ended; the raw sink has been closed."""

    hook: Hook
    reason: str  # "completed", "canceled", "errored", "interrupted", or "" where the runner cannot be asked


Taken = RunStarted | FrameTaken | RunFinished | threading.Event
"""An event is set when everything handed over before it has been taken in."""


@dataclass
class Intake:
    """Between the hooks and the session's intake thread: a queue bounded in bytes. Thread-safe.

    Past the bound a frame is handed over without its pixels, to be read back from the raw store.
    """

    max_bytes: int
    queue: queue.SimpleQueue[Taken | None] = field(default_factory=queue.SimpleQueue)
    closed: bool = False
    _waiting: int = 0
    _announced: deque[tuple[MDASequence, dict[str, Any]]] = field(
        default_factory=lambda: deque(maxlen=ANNOUNCED)
    )
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def waiting_bytes(self) -> int:
        """Bytes handed over and not yet taken."""
        return self._waiting

    def claim(self, sequence: MDASequence, meta: dict[str, Any]) -> bool:
        """Whether the caller is the first to announce this run, and so the one to deliver it."""
        with self._lock:
            if self.closed or any(s.uid == sequence.uid and _same(m, meta) for s, m in self._announced):
                return False
            self._announced.append((sequence, meta))
            return True

    def admit(self, nbytes: int) -> bool:
        """Reserve room for one frame; a frame larger than the bound is admitted alone."""
        with self._lock:
            if self._waiting and self._waiting + nbytes > self.max_bytes:
                return False
            self._waiting += nbytes
            return True

    def release(self, nbytes: int) -> None:
        """A frame has been taken."""
        with self._lock:
            self._waiting -= nbytes


class Hook:
    """One way in. Method names and signatures are those of ``core.mda.events``.

    Parameters
    ----------
    find_core : callable
        ``() -> core or None``: whose run this is, asked when it begins.
    prepare : callable
        ``(core, sequence, meta) -> prepared``: the checks before the first exposure. Must not raise.
    events : Events, optional
        Whose listeners are told what the microscope does.

    Attributes
    ----------
    delivering : bool
        Whether a run is coming in here.
    core : CMMCorePlus or None
        Whose run that is or was, where it can be told.
    thread : Thread or None
        The thread that delivers it.
    """

    def __init__(
        self,
        intake: Intake,
        find_core: Callable[[], CMMCorePlus | None],
        prepare: Callable[[CMMCorePlus | None, MDASequence, dict[str, Any]], Any],
        events: Events | None = None,
    ) -> None:
        self.delivering = False
        self.core: CMMCorePlus | None = None
        self.thread: threading.Thread | None = None
        self._intake = intake
        self._find_core = find_core
        self._prepare = prepare
        self._events = events
        self._canceled = False

    def sequenceStarted(self, sequence: MDASequence, meta: dict[str, Any]) -> None:
        """Before the first exposure."""
        if not self._intake.claim(sequence, meta):
            return
        self.end("interrupted")  # a run whose end never came
        self._canceled = False
        self.core = self._find_core()
        self.thread = threading.current_thread()
        self.delivering = True
        self._intake.queue.put(RunStarted(self, sequence, self._prepare(self.core, sequence, meta), meta))

    def frameReady(self, img: NDArray[np.generic], event: MDAEvent, meta: dict[str, Any]) -> None:
        """Stamp, hand over, return."""
        if not self.delivering:
            return
        now = time.monotonic_ns()
        try:
            pixels = self._kept(img)
        except (
            Exception
        ):  # an engine that delivers no array, say: an error here would end other listeners' runs
            log.exception("live-sr cannot take a frame of %s", type(img).__name__)
            pixels = None
        self._intake.queue.put(FrameTaken(self, pixels, event, meta, now))

    def sequenceCanceled(self, sequence: MDASequence) -> None:
        """Comes before ``sequenceFinished``."""
        self._canceled = True

    def sequenceFinished(self, sequence: MDASequence) -> None:
        """After the raw sink was closed; also when the run failed."""
        reason = getattr(self.core.mda.status.finish_reason, "value", "") if self.core is not None else ""
        self.end("canceled" if self._canceled else str(reason or ""))

    def sequencePauseToggled(self, paused: bool) -> None:
        """Forwarded to the session's own listeners."""
        if self.delivering and self._events is not None:
            self._events.sequencePauseToggled.emit(paused)

    def awaitingEvent(self, event: MDAEvent, remaining_s: float) -> None:
        """Forwarded to the session's own listeners."""
        if self.delivering and self._events is not None:
            self._events.awaitingEvent.emit(event, remaining_s)

    def eventStarted(self, event: MDAEvent) -> None:
        """Forwarded to the session's own listeners."""
        if self.delivering and self._events is not None:
            self._events.eventStarted.emit(event)

    def end(self, reason: str) -> None:
        """End the run that comes in here, if there is one."""
        if self.delivering:
            self.delivering = False
            self._intake.queue.put(RunFinished(self, reason))

    def _kept(self, img: NDArray[np.generic]) -> NDArray[np.generic] | None:
        if not self._intake.admit(img.nbytes):
            return None
        if img.flags.owndata:
            return img
        try:
            # A view may be into a buffer that the camera will overwrite (a Python camera's ring, say).
            return img.copy()
        except MemoryError:
            self._intake.release(img.nbytes)
            return None


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two summary metadata are of one run: a Qt signal delivers a copy, with the same time of start."""
    return a is b or ("datetime" in a and a["datetime"] == b.get("datetime"))
