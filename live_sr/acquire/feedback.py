"""Events that listeners of super-resolved frames add to, while the run goes on: smart microscopy.

An acquisition of which nobody knows the end: the frames decide what is imaged next. ``run_mda`` takes the
events from a :class:`Feedback`; whoever looks at the frames appends to it::

    feedback = Feedback(sr, overview_events)

    @sr.events.frameReady.connect
    def look(img, event, meta):
        if event.metadata.get("overview"):
            y, x = brightest(img)
            feedback.append(event_at(y, x, exposure=200))

    core.run_mda(feedback, output="raw.ome.zarr").join()

The run ends by itself when nothing is outstanding: every frame is back, and every listener is done with it, and
nobody has appended anything. ``docs/examples/feedback.py`` is a whole program. Knows no microscope: it waits
for the session, and the runner waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol, Self

from useq import MDAEvent

from live_sr.errors import InputError
from live_sr.frame import Counts

log = logging.getLogger("live_sr")
MAX_WAITING = 10_000  # events, about 2 kB each; more than that is a listener that appends without end
LOOK_S = 0.1  # how soon the end, or that the run was cancelled, is noticed; an appended event is at once
TIMEOUT_S = 60.0  # without any frame coming back; the largest takes a CPU that long


class Stream(Protocol):
    """What is asked of a session, which :class:`live_sr.LiveSR` answers."""

    @property
    def counts(self) -> Counts:
        """The ledger, now."""
        ...

    @property
    def canceling(self) -> bool:
        """Whether the runner takes no more events."""
        ...

    def is_settled(self) -> bool:
        """Whether every frame so far is back, or failed, and all listeners are done with it."""
        ...


class Feedback(Iterator[MDAEvent]):
    """Events for ``run_mda``, to which any thread can append.

    Parameters
    ----------
    sr : LiveSR
        The session whose frames are listened to, attached to the core that runs this.
    events : iterable of MDAEvent
        To begin with: an ``MDASequence``, a list, a generator. Appended events come before the rest of them.
    timeout_s : float
        The run ends, with an error in the log and in :attr:`problem`, when frames are outstanding and none
        came back for so long.

    Attributes
    ----------
    problem : str
        Why the run ended early; "" when it did not.
    appended : int
        Events that were appended.

    Notes
    -----
    pymmcore-plus stores such a run in the order of arrival, (t, y, x); the index of each frame's event is in
    the journal of the super-resolved volume. It takes the events of an iterator one by one, without hardware
    sequencing.
    """

    def __init__(self, sr: Stream, events: Iterable[MDAEvent] = (), *, timeout_s: float = TIMEOUT_S) -> None:
        self.problem = ""
        self.appended = 0
        self._sr = sr
        self._first = iter(events)
        self._timeout_s = timeout_s
        self._waiting: deque[MDAEvent] = deque()
        self._changed = threading.Condition()
        self._ending = False

    def append(self, event: MDAEvent) -> None:
        """Have `event` acquired next, after those appended before. Any thread.

        Raises
        ------
        InputError
            When the run has ended, or is ending; or far too many wait.
        """
        with self._changed:
            if self._ending:
                raise InputError(
                    f"the event {dict(event.index)} came after the end of the run: append before the last "
                    "listener of its frame returns, or raise timeout_s"
                )
            if len(self._waiting) >= MAX_WAITING:
                raise InputError(
                    f"{MAX_WAITING} appended events wait to be acquired: append fewer for each frame, or call "
                    "end()"
                )
            self._waiting.append(event)
            self.appended += 1
            self._changed.notify_all()

    def end(self) -> None:
        """End the run after the events that were appended so far; any others are not acquired. Any thread."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> MDAEvent:
        """The next event; waits for the listeners while there is none. The runner's thread.

        Raises
        ------
        InputError
            When the session is attached to no core.
        """
        back, since = -1, time.monotonic()
        while True:
            if self._sr.canceling:
                self.end()
                # It is not acquired. Without one the runner would say that the run was completed.
                return MDAEvent()
            with self._changed:
                if self._waiting:
                    return self._waiting.popleft()
                if self._ending:
                    break
            if (event := next(self._first, None)) is not None:
                return event
            settled = self._sr.is_settled()
            counts = self._sr.counts
            if (now_back := counts.returned + counts.failed) != back:
                back, since = now_back, time.monotonic()
            if late := time.monotonic() - since > self._timeout_s:
                self._complain(counts)
            with self._changed:
                if not self._waiting and (settled or late):
                    self._ending = True  # under the lock: from here on nothing is appended
                elif not self._waiting and not self._ending:
                    self._changed.wait(LOOK_S)
        self.end()
        raise StopIteration

    def _complain(self, counts: Counts) -> None:
        outstanding = counts.queued + counts.in_flight + counts.deferred
        why = f"{outstanding} frames are outstanding" if outstanding else "a listener is still busy"
        self.problem = (
            f"no super-resolved frame came back for {self._timeout_s:g} s, and {why}: the run was ended. Look "
            "at the server and the listeners, or raise timeout_s; frames are finished when a server is there"
        )
        log.error("%s", self.problem)
