"""Takes frames from pymmcore-plus: stamps, hands over, returns. Never blocks, never raises, counts nothing.

pymmcore-plus can deliver the same run twice, when a session is attached to the core *and* given as an output
of ``run_mda``. Each way in is one :class:`Hook`; whichever announces a run first delivers it and the other
stays mute until its own end of that run.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from useq import MDAEvent, MDASequence


@dataclass(frozen=True, slots=True, eq=False)
class RunStarted:
    """A sequence begins; nothing has been exposed yet."""

    sequence: MDASequence
    meta: dict[str, Any]
    prepared: Any  # what the session made of it before the first exposure


@dataclass(frozen=True, slots=True, eq=False)
class FrameTaken:
    """One frame as pymmcore-plus delivered it; `pixels` is None when there was no memory left to keep it."""

    pixels: NDArray[np.generic] | None
    event: MDAEvent
    meta: dict[str, Any]
    captured_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class RunFinished:
    """A sequence ended; the raw sink has been closed."""

    sequence: MDASequence
    canceled: bool
    reason: str  # of the runner: "completed", "canceled", "errored", or "" where it cannot be asked


Taken = RunStarted | FrameTaken | RunFinished | threading.Event
"""An event is set when everything handed over before it has been taken in."""


@dataclass
class Intake:
    """Between the hooks and the session's intake thread: a queue bounded in bytes.

    The camera side adds to `put_bytes`, the intake thread to `taken_bytes`: each has one writer, so their
    difference needs no lock. Past the bound a frame is handed over without its pixels, to be read back from
    the raw store.
    """

    max_bytes: int
    queue: queue.SimpleQueue[Taken | None] = field(default_factory=queue.SimpleQueue)
    put_bytes: int = 0
    taken_bytes: int = 0
    active: MDASequence | None = None  # the run being delivered
    owner: Hook | None = None  # the hook that delivers it

    @property
    def waiting_bytes(self) -> int:
        """Bytes handed over and not yet taken."""
        return self.put_bytes - self.taken_bytes


class Hook:
    """One way in. Method names and signatures are those of ``core.mda.events``.

    Parameters
    ----------
    prepare : callable
        ``(sequence, meta) -> prepared``: the checks before the first exposure. Must not raise.
    reason : callable
        ``() -> str``: the runner's finish reason.
    """

    def __init__(self, intake: Intake, prepare: Any, reason: Any) -> None:
        self._intake = intake
        self._prepare = prepare
        self._reason = reason
        self._deliver = False
        self._canceled = False

    def sequenceStarted(self, sequence: MDASequence, meta: dict[str, Any]) -> None:
        """Before the first exposure."""
        intake = self._intake
        if intake.active is not None and intake.active.uid == sequence.uid and intake.owner is not self:
            self._deliver = False
            return
        self._deliver, self._canceled = True, False
        intake.active, intake.owner = sequence, self
        intake.queue.put(RunStarted(sequence, meta, self._prepare(sequence, meta)))

    def frameReady(self, img: NDArray[np.generic], event: MDAEvent, meta: dict[str, Any]) -> None:
        """Stamp, hand over, return."""
        if not self._deliver:
            return
        now = time.monotonic_ns()
        intake = self._intake
        pixels: NDArray[np.generic] | None = None
        if intake.put_bytes - intake.taken_bytes + img.nbytes <= intake.max_bytes:
            # A view may be into a buffer that the camera will overwrite (a Python camera's ring, say).
            pixels = img if img.flags.owndata else img.copy()
            intake.put_bytes += img.nbytes
        intake.queue.put(FrameTaken(pixels, event, meta, now))

    def sequenceCanceled(self, sequence: MDASequence) -> None:
        """Comes before ``sequenceFinished``."""
        self._canceled = True

    def sequenceFinished(self, sequence: MDASequence) -> None:
        """After the raw sink was closed; also when the run failed."""
        if not self._deliver:
            return
        self._deliver = False
        self._intake.owner = None
        self._intake.queue.put(RunFinished(sequence, self._canceled, self._reason()))
