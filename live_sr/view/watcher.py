"""Reads the feed and keeps the newest of everything, for whoever draws it. Knows no browser, window or file.

One thread reads; a reader that falls behind skips to the newest frame, and what it missed delays nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

import zmq

from live_sr.client.feed import MAX_MESSAGE, FeedFrame, FeedStatus, Plane, Shown, decode
from live_sr.errors import WireError
from live_sr.frame import Pixels
from live_sr.view.contrast import AutoWindow, Window, grey_range, grey_window
from live_sr.wire.security import check_address

log = logging.getLogger(__name__)

POLL_MS = 100  # how long the reader takes to notice that it should stop
DRAIN = 64  # messages read before showing something, should they come faster than they are read
CHANNELS = 32  # channels with their own contrast; the oldest is forgotten

FULL = Window(0.0, 255.0)  # before the first frame


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One plane on show. `key` names its pixels: equal keys, equal pixels."""

    key: tuple[object, ...]
    pixels: Pixels
    plane: Plane
    frame: FeedFrame
    received: float  # time.monotonic() of this process

    @property
    def age_ms(self) -> float:
        """Since capture: the acquisition PC's share plus the time since then."""
        return self.frame.age_ms + (time.monotonic() - self.received) * 1000


@dataclass(frozen=True, slots=True, eq=False)
class OnShow:
    """What the page shows at one instant; `number` grows with every change.

    `notes` says by side ("left", "right") why there is no picture, where more is known than that.
    """

    number: int = 0
    left: Picture | None = None
    right: Picture | None = None
    window: Window = FULL
    range: Window = FULL
    notes: Mapping[str, str] = field(default_factory=dict)


class Watcher:
    """Reads the feed in its own thread and keeps the newest of everything.

    Parameters
    ----------
    address : str
        Of the feed. It need not exist yet; the watcher connects when it appears, and again after each loss.

    Raises
    ------
    ConfigError
        When the address is malformed.
    """

    def __init__(self, address: str) -> None:
        check_address(address)
        self.address = address
        # Each is replaced as a whole by the thread and read by anyone:
        self.on_show = OnShow()
        self.status: FeedStatus | None = None
        self.heard_at: float | None = None  # time.monotonic() of the last good message
        self.frames = 0  # frames received, repeats included
        self.failed = False  # the thread ended by an error of ours
        self.ignored = 0  # messages that were not understood
        self.on_change: Callable[[], None] = lambda: None  # called on the thread
        self.on_frame: Callable[[Shown], None] = lambda shown: None  # likewise, with each frame that is new
        self._pair: Picture | None = None
        self._pair_raw: Picture | None = None
        self._raw: Picture | None = None
        self._windows: dict[str, AutoWindow] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"live-sr watcher {address}", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=10)
        assert not self._thread.is_alive(), "the watcher waits for nothing longer than POLL_MS"

    @property
    def silent_s(self) -> float | None:
        """Seconds since the last good message; None before the first."""
        return None if self.heard_at is None else time.monotonic() - self.heard_at

    def _run(self) -> None:
        try:
            with zmq.Context() as context, context.socket(zmq.SUB) as sub:
                sub.linger = 0
                sub.rcvhwm = 2
                sub.maxmsgsize = MAX_MESSAGE
                sub.subscribe(b"")
                sub.connect(self.address)
                while not self._ended.is_set():
                    if sub.poll(POLL_MS):
                        self._drain(sub)
        except Exception:
            log.exception("reading the feed %s failed: start live-sr view again", self.address)
            self.failed = True
            self.on_change()

    def _drain(self, sub: zmq.Socket[bytes]) -> None:
        """Read all that waits, look only at the newest of each kind."""
        raw: Shown | None = None
        pair: Shown | None = None
        for _ in range(DRAIN):
            try:
                message = sub.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                content = decode(message[0] if len(message) == 1 else b"")
            except WireError as e:
                if self.ignored == 0:
                    log.warning("ignored a message on the feed %s: %s", self.address, e)
                self.ignored += 1
                continue
            self.heard_at = time.monotonic()
            if isinstance(content, FeedStatus):
                self.status = content
            elif content.sr is None:
                raw, self.frames = content, self.frames + 1
            else:
                pair, self.frames = content, self.frames + 1
        changed = [self._take(shown) for shown in (pair, raw) if shown is not None]
        if any(changed):
            self._choose()
        self.on_change()

    def _take(self, shown: Shown) -> bool:
        """Keep a frame's planes; False when it is only a repeat."""
        frame = shown.frame
        received = time.monotonic()
        identity = (frame.session, frame.seq)
        for held in (self._pair, self._raw):
            if held is not None and held.frame.session != frame.session:
                self._pair = self._pair_raw = self._raw = None
        raw = Picture(("raw", *identity), shown.raw, frame.raw, frame, received)
        if shown.sr is None or frame.sr is None:
            if self._raw is not None and self._raw.key == raw.key:
                return False
            self._raw = raw
            self.on_frame(shown)
            return True
        sr = Picture(("sr", *identity, frame.model), shown.sr, frame.sr, frame, received)
        if self._pair is not None and self._pair.key == sr.key:
            return False
        self._pair, self._pair_raw = sr, raw
        self.on_frame(shown)
        return True

    def _choose(self) -> None:
        """Put on show: right the newest SR frame, left its raw frame unless a newer one was acquired."""
        left, right = self._pair_raw, self._pair
        acquiring = self.status is not None and self.status.state == "acquiring"
        if self._raw is not None and (left is None or (acquiring and self._raw.frame.seq > left.frame.seq)):
            left = self._raw
        newest = max((p for p in (left, right) if p is not None), key=lambda p: p.received)
        planes = [p.pixels for p in (left, right) if p is not None]
        self.on_show = OnShow(
            number=self.on_show.number + 1,
            left=left,
            right=right,
            window=self._auto(newest.frame.channel).follow(grey_window(planes), newest.received),
            range=grey_range(planes),
        )

    def _auto(self, channel: str) -> AutoWindow:
        if channel not in self._windows and len(self._windows) >= CHANNELS:
            del self._windows[next(iter(self._windows))]
        return self._windows.setdefault(channel, AutoWindow())


class Past(Protocol):
    """Earlier frames of the running sequence."""

    def show(self, index: Mapping[str, int]) -> OnShow | None:
        """What the page shows of the frame at `index`, ``{"t": 3, "c": 0}``; None when there is none.

        Reads files: called in a worker thread.
        """
        ...
