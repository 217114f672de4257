"""Reads the feed and keeps the newest of everything, for whoever draws it. Knows no browser, window or file.

One thread reads; a reader that falls behind skips to the newest frame, and what it missed delays nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
CHANNELS = 8  # channels kept, each with a raw and two SR planes at most; the one not seen longest is forgotten

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

    Attributes
    ----------
    left, right : Picture or None
        The newest acquired image, and the newest super-resolved one.
    source : Picture or None
        The acquired image that `right` was computed from; `left` may be a newer one.
    window : Window
        Contrast for both sides.
    apart : (Window, Window) or None
        Contrast for each side on its own; None: `window` for both.
    range : Window
        Darkest and brightest value.
    channels : mapping
        The newest of each channel, this one included.
    notes : mapping
        By side, "left" or "right", why there is no picture, where more is known than that.
    """

    number: int = 0
    left: Picture | None = None
    right: Picture | None = None
    window: Window = FULL
    range: Window = FULL
    source: Picture | None = None
    apart: tuple[Window, Window] | None = None
    channels: Mapping[str, OnShow] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


class _Channel:
    """The newest of one channel, and how its contrast follows."""

    def __init__(self) -> None:
        self.pair: Picture | None = None
        self.pair_raw: Picture | None = None
        self.raw: Picture | None = None
        self.window, self.left_window, self.right_window = AutoWindow(), AutoWindow(), AutoWindow()

    def take(self, shown: Shown, *, acquiring: bool) -> bool:
        """Keep a frame's planes; False for a repeat, and for one made up for while newer ones are seen."""
        frame = shown.frame
        received = time.monotonic()
        identity = (frame.session, frame.seq)
        raw = Picture(("raw", *identity), shown.raw, frame.raw, frame, received)
        if shown.sr is None or frame.sr is None:
            if self.raw is not None and self.raw.key == raw.key:
                return False
            self.raw = raw
            return True
        sr = Picture(("sr", *identity, frame.model), shown.sr, frame.sr, frame, received)
        if self.pair is not None and self.pair.key == sr.key:
            return False
        if self.pair is not None and acquiring and frame.deferred and frame.seq < self.pair.frame.seq:
            return False
        self.pair, self.pair_raw = sr, raw
        return True

    def choose(self, number: int, *, acquiring: bool) -> OnShow:
        """Right the newest SR frame, left its raw frame unless a newer one was acquired."""
        left, right = self.pair_raw, self.pair
        if self.raw is not None and (left is None or (acquiring and self.raw.frame.seq > left.frame.seq)):
            left = self.raw
        pictures = [p for p in (left, right) if p is not None]
        now = max(p.received for p in pictures)
        planes = [p.pixels for p in pictures]
        window = self.window.follow(grey_window(planes), now)
        left_window = self.left_window.follow(grey_window(planes[:1]), now)
        right_window = self.right_window.follow(grey_window(planes[1:]), now) if right is not None else window
        return OnShow(
            number=number,
            left=left,
            right=right,
            source=self.pair_raw,
            window=window,
            apart=(left_window, right_window),
            range=grey_range(planes),
        )


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
        self.on_frame: Callable[[Shown], None] = lambda shown: None  # likewise, with each frame, repeats too
        self._session: str | None = None
        self._channels: dict[str, _Channel] = {}  # the one shown last at the end
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
        """Read all that waits, look only at the newest of each kind and channel."""
        newest: dict[tuple[str, bool], Shown] = {}
        for _ in range(DRAIN):
            try:
                message = sub.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            try:
                content = decode(message[0].buffer if len(message) == 1 else b"")
            except WireError as e:
                if self.ignored == 0:
                    log.warning("ignored a message on the feed %s: %s", self.address, e)
                self.ignored += 1
                continue
            self.heard_at = time.monotonic()
            if isinstance(content, FeedStatus):
                self.status = content
                continue
            self.frames += 1
            kind = (content.frame.channel, content.sr is not None)
            newest.pop(kind, None)  # to the end: the last to come is shown
            newest[kind] = content
        for shown in newest.values():
            self._take(shown)
        self.on_change()

    def _take(self, shown: Shown) -> None:
        """Keep what is newest of its channel, and put it on show unless it is a repeat."""
        frame = shown.frame
        if frame.session != self._session:
            self._session = frame.session
            self._channels.clear()
            self.on_show = OnShow(self.on_show.number)
        channel = self._channels.pop(frame.channel, None) or _Channel()
        while len(self._channels) >= CHANNELS:
            del self._channels[next(iter(self._channels))]
        self._channels[frame.channel] = channel
        self.on_frame(shown)
        acquiring = self.status is not None and self.status.state == "acquiring"
        if not channel.take(shown, acquiring=acquiring):
            return
        chosen = channel.choose(self.on_show.number + 1, acquiring=acquiring)
        others = {name: show for name, show in self.on_show.channels.items() if name in self._channels}
        self.on_show = replace(chosen, channels={**others, frame.channel: chosen})


class Past(Protocol):
    """Earlier frames of the running sequence."""

    def show(self, index: Mapping[str, int]) -> OnShow | None:
        """What the page shows of the frame at `index`, ``{"t": 3, "c": 0}``; None when there is none.

        Reads files: called in a worker thread.
        """
        ...
