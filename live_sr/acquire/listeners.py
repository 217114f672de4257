"""Delivers super-resolved frames to listeners, each isolated from the errors and the slowness of the others.

A plain psygnal emission stops at the first listener that raises, and waits for the slow ones. Here every
listener has its own thread and a queue bounded in bytes; past the bound the queue keeps a way to read the
frame back instead of the pixels. A listener's error is logged once per kind and counted.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from live_sr.frame import Pixels

if TYPE_CHECKING:
    from useq import MDAEvent

log = logging.getLogger("live_sr")
QUEUE_BYTES = 256 * 2**20  # per listener: a second of 2048² frames at 30 per second
QUEUE_FRAMES = 20_000  # to be read back, about 5 kB of metadata each: 100 MB
CLOSE_S = 10.0  # what a listener may take to finish its queue when the session closes


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """One frame for one listener; `read_back` gives the pixels when they were not kept."""

    pixels: Pixels | None
    event: MDAEvent
    meta: dict[str, Any]
    read_back: Callable[[], Pixels] | None


@dataclass(eq=False)
class _Listener:
    callback: Callable[..., Any]
    n_args: int
    queue: queue.SimpleQueue[Delivery | None] = field(default_factory=queue.SimpleQueue)
    put_bytes: int = 0  # the emitting thread's
    taken_bytes: int = 0  # the listener's
    delivered: int = 0
    failed: int = 0
    dropped: int = 0
    said: set[str] = field(default_factory=set)
    thread: threading.Thread | None = None

    def run(self) -> None:
        while (delivery := self.queue.get()) is not None:
            try:
                pixels = delivery.pixels
                if pixels is None:
                    assert delivery.read_back is not None
                    pixels = delivery.read_back()
                self.callback(*(pixels, delivery.event, delivery.meta)[: self.n_args])
                self.delivered += 1
            except Exception as e:  # a listener may raise anything; it must not reach the others
                self.failed += 1
                kind = f"{type(e).__name__}: {e}"
                if kind not in self.said:
                    self.said.add(kind)
                    log.exception("listener %r raised; the other listeners go on", self.callback)
            finally:
                if delivery.pixels is not None:
                    self.taken_bytes += delivery.pixels.nbytes


class FrameSignal:
    """``frameReady`` of super-resolved frames: ``connect(callback)`` with up to (img, event, meta).

    Callbacks run on a thread of their own, in order; as with pymmcore-plus, no guarantee is given which.
    """

    def __init__(self, max_bytes: int = QUEUE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._listeners: list[_Listener] = []

    def connect(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Call `callback(img, event, meta)` for every super-resolved frame from now on; usable as decorator."""
        listener = _Listener(callback, _positional_args(callback))
        listener.thread = threading.Thread(target=listener.run, name="live-sr listener", daemon=True)
        with self._lock:
            self._listeners.append(listener)
        listener.thread.start()
        return callback

    def disconnect(self, callback: Callable[..., Any] | None = None) -> None:
        """Stop calling `callback`, or every callback; frames already waiting for it are still delivered."""
        with self._lock:
            # `==`, not `is`: a bound method is a new object at every access
            gone = [x for x in self._listeners if callback is None or x.callback == callback]
            self._listeners = [x for x in self._listeners if x not in gone]
        for listener in gone:
            listener.queue.put(None)

    def __len__(self) -> int:
        return len(self._listeners)

    def emit(
        self,
        pixels: Pixels,
        event: MDAEvent,
        meta: dict[str, Any],
        read_back: Callable[[], Pixels] | None = None,
    ) -> None:
        """Queue one frame for every listener; never waits."""
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            waiting = listener.put_bytes - listener.taken_bytes
            if not waiting or waiting + pixels.nbytes <= self._max_bytes:
                listener.put_bytes += pixels.nbytes
                listener.queue.put(Delivery(pixels, event, meta, None))
            elif read_back is not None and listener.queue.qsize() < QUEUE_FRAMES:
                listener.queue.put(Delivery(None, event, meta, read_back))
            else:
                listener.dropped += 1
                if listener.dropped == 1:
                    log.error(
                        "listener %r is far too slow, or nothing is saved to read frames back from: "
                        "it misses frames (give LiveSR a save= target, or do less in the listener)",
                        listener.callback,
                    )

    def close(self) -> list[str]:
        """Finish every queue and return what went wrong, one sentence a listener."""
        with self._lock:
            listeners, self._listeners = self._listeners, []
        problems = []
        for listener in listeners:
            listener.queue.put(None)
        for listener in listeners:
            assert listener.thread is not None
            with contextlib.suppress(RuntimeError):  # a listener that closes the session joins itself
                listener.thread.join(CLOSE_S)
            if listener.thread.is_alive():
                problems.append(f"listener {listener.callback!r} is still busy after {CLOSE_S:g} s")
            if listener.failed:
                problems.append(f"listener {listener.callback!r} raised on {listener.failed} frames")
            if listener.dropped:
                problems.append(f"listener {listener.callback!r} missed {listener.dropped} frames: too slow")
        return problems


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
        self.disordered = 0

    def add(self, seq: int, deliver: Callable[[], None] | None, nbytes: int = 0) -> None:
        """Frame `seq` is here; without `deliver` it never will be. Calls what has become due."""
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
        """Deliver all that waits, in order."""
        for seq in sorted(self._waiting):
            due = self._waiting.pop(seq)
            if due is not None:
                due[0]()
        self._bytes = 0


class Events:
    """What a session emits; ``frameReady`` has the name and signature of pymmcore-plus' own."""

    def __init__(self) -> None:
        self.frameReady = FrameSignal()


def _positional_args(callback: Callable[..., Any]) -> int:
    """How many of (img, event, meta) `callback` takes."""
    try:
        parameters = inspect.signature(callback).parameters.values()
    except (TypeError, ValueError):
        return 3
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 3
    return min(3, sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters))
