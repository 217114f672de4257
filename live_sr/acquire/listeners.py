"""Delivers what a session emits to listeners, each isolated from the errors and the slowness of the others.

A plain psygnal emission stops at the first listener that raises, and waits for the slow ones. Here every
listener has its own thread and a bounded queue; frames past a bound in bytes are replaced by a way to read them
back. A listener's error is logged once per kind and counted.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from live_sr.frame import Pixels

if TYPE_CHECKING:
    from useq import MDAEvent, MDASequence

log = logging.getLogger("live_sr")
QUEUE_BYTES = 256 * 2**20  # per listener: a second of 2048² frames at 30 per second
QUEUE_CALLS = 20_000  # frames to be read back, about 5 kB of metadata each: 100 MB
CLOSE_S = 10.0  # what a listener may take to finish its queue when the session closes


class Turn:
    """Opens when `n` listeners have come past it. Thread-safe."""

    def __init__(self, n: int) -> None:
        self._left = n
        self._changed = threading.Condition()

    def passed(self) -> None:
        """One more has come past."""
        with self._changed:
            self._left -= 1
            self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        """Wait until all have; False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._left <= 0, timeout)


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """One call of one listener.

    Attributes
    ----------
    args : tuple or None
        None: nobody is called, only the turn is taken.
    nbytes : int
        Of pixels among the arguments.
    read_back : callable or None
        Gives the pixels, the first argument, where they were not kept.
    after : tuple of Turn
        Waited for first, but never longer than :data:`CLOSE_S` each.
    turn : Turn or None
        Passed afterwards.
    """

    args: tuple[Any, ...] | None
    nbytes: int = 0
    read_back: Callable[[], Pixels] | None = None
    after: tuple[Turn, ...] = ()
    turn: Turn | None = None


@dataclass(eq=False)
class _Listener:
    callback: Callable[..., Any]
    n_args: int
    queue: queue.SimpleQueue[_Call | None] = field(default_factory=queue.SimpleQueue)
    put_bytes: int = 0  # the emitting thread's, as the next one
    calls: int = 0
    taken_bytes: int = 0  # the listener's, as the next one
    done: int = 0
    failed: int = 0
    dropped: int = 0
    said: set[str] = field(default_factory=set)
    thread: threading.Thread | None = None

    def put(self, call: _Call) -> None:
        self.put_bytes += call.nbytes
        self.calls += 1
        self.queue.put(call)

    def run(self) -> None:
        while (call := self.queue.get()) is not None:
            try:
                for turn in call.after:
                    turn.wait(CLOSE_S)
                if call.args is not None:
                    args = call.args if call.read_back is None else (call.read_back(), *call.args[1:])
                    self.callback(*args[: self.n_args])
            except Exception as e:  # a listener may raise anything; it must not reach the others
                self.failed += 1
                kind = f"{type(e).__name__}: {e}"
                if kind not in self.said:
                    self.said.add(kind)
                    log.exception("listener %r raised; the other listeners go on", self.callback)
            finally:
                self.taken_bytes += call.nbytes
                self.done += 1
                if call.turn is not None:
                    call.turn.passed()


class Signal:
    """One thing that a session emits: ``connect(callback)`` with up to all of its arguments.

    Callbacks run on a thread of their own, in order; as with pymmcore-plus, no guarantee is given which. A Qt
    widget must not be touched there: emit a Qt signal of your own from the callback.
    """

    what = "calls"
    hint = "do less in the listener"

    def __init__(self, n_args: int) -> None:
        self._n_args = n_args
        self._lock = threading.Lock()
        self._listeners: list[_Listener] = []

    def connect(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Call `callback` from now on; usable as decorator."""
        listener = _Listener(callback, min(self._n_args, _positional_args(callback)))
        listener.thread = threading.Thread(target=listener.run, name="live-sr listener", daemon=True)
        with self._lock:
            self._listeners.append(listener)
        listener.thread.start()
        return callback

    def disconnect(self, callback: Callable[..., Any] | None = None) -> None:
        """Stop calling `callback`, or every callback; what waits for it already is still delivered."""
        with self._lock:
            # `==`, not `is`: a bound method is a new object at every access
            gone = [x for x in self._listeners if callback is None or x.callback == callback]
            self._listeners = [x for x in self._listeners if x not in gone]
            for listener in gone:
                listener.queue.put(None)

    def __len__(self) -> int:
        return len(self._listeners)

    @property
    def idle(self) -> bool:
        """Whether every listener has dealt with all that was emitted so far."""
        with self._lock:
            return all(listener.done == listener.calls for listener in self._listeners)

    def emit(self, *args: Any) -> None:
        """Queue one call of every listener; never waits."""
        self.emit_after((), *args)

    def emit_after(self, after: tuple[Turn, ...], *args: Any) -> Turn:
        """As :meth:`emit`, each listener when `after` is over; returns the turn of these calls."""
        with self._lock:
            turn = Turn(len(self._listeners))
            for listener in self._listeners:
                if listener.queue.qsize() < QUEUE_CALLS:
                    listener.put(_Call(args, after=after, turn=turn))
                else:
                    self._drop(listener)
                    turn.passed()
        return turn

    def mark(self, after: tuple[Turn, ...] = ()) -> Turn:
        """Over when every listener has dealt with all that was emitted so far; they wait for `after` there."""
        with self._lock:
            turn = Turn(len(self._listeners))
            for listener in self._listeners:
                listener.put(_Call(None, after=after, turn=turn))
        return turn

    def close(self) -> list[str]:
        """Finish every queue and return what went wrong, one sentence a listener."""
        with self._lock:
            listeners, self._listeners = self._listeners, []
            for listener in listeners:
                listener.queue.put(None)
        problems = []
        for listener in listeners:
            assert listener.thread is not None
            with contextlib.suppress(RuntimeError):  # a listener that closes the session joins itself
                listener.thread.join(CLOSE_S)
            if listener.thread.is_alive():
                problems.append(f"listener {listener.callback!r} is still busy after {CLOSE_S:g} s")
            if listener.failed:
                problems.append(f"listener {listener.callback!r} raised on {listener.failed} {self.what}")
            if listener.dropped:
                problems.append(
                    f"listener {listener.callback!r} missed {listener.dropped} {self.what}: too slow"
                )
        return problems

    def _drop(self, listener: _Listener) -> None:
        listener.dropped += 1
        if listener.dropped == 1:
            log.error("listener %r is far too slow: it misses %s (%s)", listener.callback, self.what, self.hint)


class FrameSignal(Signal):
    """``frameReady`` of super-resolved frames: ``connect(callback)`` with up to (img, event, meta)."""

    what = "frames"
    hint = "give LiveSR a save= target, from which frames can be read back, or do less in the listener"

    def __init__(self, max_bytes: int = QUEUE_BYTES) -> None:
        super().__init__(3)
        self._max_bytes = max_bytes

    def emit(
        self,
        pixels: Pixels,
        event: MDAEvent,
        meta: dict[str, Any],
        read_back: Callable[[], Pixels] | None = None,
    ) -> None:
        """Queue one frame for every listener; never waits."""
        with self._lock:
            for listener in self._listeners:
                waiting = listener.put_bytes - listener.taken_bytes
                if not waiting or waiting + pixels.nbytes <= self._max_bytes:
                    listener.put(_Call((pixels, event, meta), pixels.nbytes))
                elif read_back is not None and listener.queue.qsize() < QUEUE_CALLS:
                    listener.put(_Call((None, event, meta), read_back=read_back))
                else:
                    self._drop(listener)


class Resequencer:
    """Puts frames that come back in any order into the order of acquisition, within a bound.

    Past the bound the gap is skipped and the late frame delivered when it comes, counted as disordered (what
    areaDetector's sorting plugins call DisorderedArrays).
    """

    def __init__(self, max_bytes: int = QUEUE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._waiting: dict[int, tuple[Callable[[], None], int] | None] = {}
        self._bytes = 0
        self._next = 0
        self._moved = threading.Condition()
        self.disordered = 0

    def add(self, seq: int, deliver: Callable[[], None] | None, nbytes: int = 0) -> None:
        """Frame `seq` is here; without `deliver` it never will be. Calls what has become due."""
        with self._moved:
            self._add(seq, deliver, nbytes)
            self._moved.notify_all()

    def wait_past(self, seq: int) -> None:
        """Wait until all frames up to `seq` have been delivered, skipped or flushed; on another thread."""
        with self._moved:
            self._moved.wait_for(lambda: self._next > seq)

    def _add(self, seq: int, deliver: Callable[[], None] | None, nbytes: int) -> None:
        if seq < self._next:
            if deliver is not None:
                self.disordered += 1
                deliver()
            return
        self._waiting[seq] = (deliver, nbytes) if deliver is not None else None
        self._bytes += nbytes
        while self._waiting and (self._next in self._waiting or self._bytes > self._max_bytes):
            if self._next not in self._waiting:
                self._next = min(self._waiting)
            due = self._waiting.pop(self._next)
            self._next += 1
            if due is not None:
                self._bytes -= due[1]
                due[0]()

    def flush(self) -> None:
        """Deliver all that waits, in order; nothing is waited for any more."""
        with self._moved:
            for seq in sorted(self._waiting):
                due = self._waiting.pop(seq)
                if due is not None:
                    due[0]()
            self._bytes = 0
            self._next = sys.maxsize
            self._moved.notify_all()


class Events:
    """What a session emits; names and signatures are those of pymmcore-plus' ``core.mda.events``.

    Whatever listens to those listens to these unchanged, an object with methods of these names too
    (``pymmcore_plus.mda.mda_listeners_connected(handler, mda_events=sr.events)``).

    ``sequenceStarted``, ``frameReady``, ``sequenceCanceled`` and ``sequenceFinished`` tell of the
    super-resolved stream. It starts when the model is known, since its metadata give the size of the frames to
    come, and it is finished when the last of them has been emitted and the volume has been closed: as with raw,
    the first frame of a run comes after its start has been dealt with, and its end after every listener has
    dealt with its last frame. Only a listener that hangs is not waited for longer than 10 s.

    ``sequencePauseToggled``, ``awaitingEvent`` and ``eventStarted`` tell what the microscope does, and are
    forwarded as they come. The last two reach us from attached cores only.
    """

    def __init__(self) -> None:
        self.sequenceStarted = Signal(2)
        self.sequencePauseToggled = Signal(1)
        self.sequenceCanceled = Signal(1)
        self.sequenceFinished = Signal(1)
        self.frameReady = FrameSignal()
        self.awaitingEvent = Signal(2)
        self.eventStarted = Signal(1)

    def begin(self, sequence: MDASequence | None, meta: dict[str, Any]) -> Turn:
        """The stream of a run starts; give what this returns to :meth:`end`."""
        started = self.sequenceStarted.emit_after((), sequence, meta)
        self.frameReady.mark(after=(started,))
        return started

    def end(self, sequence: MDASequence | None, started: Turn, *, canceled: bool) -> None:
        """The last frame of a run has been emitted."""
        before: tuple[Turn, ...] = (started, self.frameReady.mark())
        if canceled:
            before += (self.sequenceCanceled.emit_after(before, sequence),)
        self.sequenceFinished.emit_after(before, sequence)

    def close(self) -> list[str]:
        """Finish every queue and return what went wrong, one sentence a listener."""
        return [problem for signal in vars(self).values() for problem in signal.close()]


def _positional_args(callback: Callable[..., Any]) -> int:
    """How many arguments `callback` takes; it is given no more of them."""
    try:
        parameters = inspect.signature(callback).parameters.values()
    except (TypeError, ValueError):
        return sys.maxsize
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return sys.maxsize
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
