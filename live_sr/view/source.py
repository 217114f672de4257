"""Where a desktop viewer's frames come from: a session of this process, or a feed. Knows no window.

Frames arrive in other threads. Only the newest of each kind is kept, so a viewer that hangs or closes delays
nobody; it looks at :attr:`Source.on_show` when it has time to draw.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from live_sr.client.feed import LIVE_FIRST_S, FeedFrame, FeedStatus, Plane
from live_sr.errors import ConfigError, InputError
from live_sr.frame import check_pixels
from live_sr.signals import connect
from live_sr.view.watcher import OnShow, Picture, Watcher
from live_sr.wire.messages import Dtype

log = logging.getLogger(__name__)

HERE = "this process"  # in place of an address


class Emits(Protocol):
    """What emits frames: a :class:`live_sr.LiveSR`, or pymmcore-plus' ``core.mda`` for the raw ones."""

    @property
    def events(self) -> Any:
        """Its ``frameReady`` calls ``slot(img, event, meta)``."""
        ...


class Source(Protocol):
    """The newest frames and counters; a context manager, watching from entry to exit."""

    @property
    def address(self) -> str:
        """Of the feed, or :data:`HERE`."""
        ...

    @property
    def on_show(self) -> OnShow:
        """Left the raw frame, right the super-resolved one; its `number` grows with every change.

        Contrast is each viewer's own.
        """
        ...

    @property
    def status(self) -> FeedStatus | None:
        """Counters and the server's state; None while they are not known."""
        ...

    @property
    def silent_s(self) -> float | None:
        """Seconds since the acquisition was last heard of; None before the first time."""
        ...

    @property
    def failed(self) -> bool:
        """Whether reading ended by an error of ours."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_source(*of: str | Emits) -> Source:
    """A source of frames, not yet entered.

    Parameters
    ----------
    *of : str or objects with ``events.frameReady``
        The address of a feed; or a session of this process, and with it ``core.mda`` where raw frames are to be
        shown too.

    Raises
    ------
    ConfigError
        When the address is malformed, or it is neither.
    """
    if len(of) == 1 and isinstance(of[0], str):
        return Watcher(of[0])
    emitters = [each for each in of if not isinstance(each, str) and hasattr(each, "events")]
    if not of or len(emitters) < len(of):
        raise ConfigError(f"cannot watch {of!r}: give one address of a feed, or objects with events.frameReady")
    return Listener(*emitters)


@dataclass(frozen=True, slots=True, eq=False)
class _Arrived:
    number: int
    pixels: NDArray[Any]
    event: Any
    meta: Any
    at: float  # time.monotonic()


class Listener:
    """Keeps the newest frame of a session of this process.

    Frames whose ``meta`` has an entry ``live_sr`` are super-resolved, others are raw.

    Parameters
    ----------
    session : object with ``events.frameReady``
        If it has a ``status`` (:class:`~live_sr.client.feed.FeedStatus`), that is shown.
    *others : objects with ``events.frameReady``
    """

    address = HERE
    failed = False
    silent_s = 0.0  # a session of this process is always there

    def __init__(self, session: Emits, *others: Emits) -> None:
        self._session = session
        self._emitters = (session, *others)
        self._numbers = itertools.count(1)
        # Each is replaced as a whole by an emitter's thread:
        self._raw: _Arrived | None = None
        self._sr: _Arrived | None = None
        self._live_at = -math.inf
        # The viewer's thread:
        self._seen: tuple[_Arrived | None, _Arrived | None] = (None, None)
        self._on_show = OnShow()
        self._said = False

    def __enter__(self) -> Self:
        for emitter in self._emitters:
            connect(emitter.events.frameReady, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for emitter in self._emitters:
            try:
                emitter.events.frameReady.disconnect(self._take)
            except (TypeError, ValueError, RuntimeError) as e:  # disconnected already, or a Qt object is gone
                log.debug("%r: %s", emitter, e)

    def _take(self, img: NDArray[Any], event: Any, meta: Any) -> None:
        """Any thread, that of the acquisition among them: keeps and returns."""
        now = time.monotonic()
        arrived = _Arrived(next(self._numbers), img, event, meta, now)
        computed = meta.get("live_sr")
        if computed is None:
            self._raw = arrived
            return
        if not computed.get("deferred"):
            self._live_at = now
        elif now - self._live_at < LIVE_FIRST_S:
            return
        self._sr = arrived

    @property
    def status(self) -> FeedStatus | None:
        """The session's own."""
        status = getattr(self._session, "status", None)
        return status if isinstance(status, FeedStatus) else None

    @property
    def on_show(self) -> OnShow:
        """The newest frames; to be asked for in one thread only."""
        raw, sr = seen = (self._raw, self._sr)
        if seen == self._seen:
            return self._on_show
        self._seen = seen
        left, right = (self._picture(arrived) for arrived in (raw, sr))
        if left is None and right is None:
            return self._on_show
        self._on_show = OnShow(self._on_show.number + 1, left, right)
        return self._on_show

    def _picture(self, arrived: _Arrived | None) -> Picture | None:
        if arrived is None:
            return None
        try:
            pixels = check_pixels(np.asarray(arrived.pixels))
        except InputError as e:
            if not self._said:
                self._said = True
                log.warning("a frame cannot be shown: %s", e)
            return None
        computed = arrived.meta.get("live_sr")
        scale = computed["scale"] if computed is not None else 1
        size = float(arrived.meta.get("pixel_size_um") or 0.0) * scale
        y, x = pixels.shape
        dtype: Dtype = "uint8" if pixels.dtype.itemsize == 1 else "uint16"
        plane = Plane((y, x), dtype)
        raw = Plane((y // scale, x // scale), dtype)
        channel = getattr(arrived.event, "channel", None)
        frame = FeedFrame(
            session=str(getattr(self._session, "session", "")),
            seq=computed["seq"] if computed is not None else arrived.number,
            index=dict(getattr(arrived.event, "index", {})),
            shape=raw.shape,
            raw=raw,
            sr=plane if computed is not None else None,
            scale=scale,
            pixel_size_um=size or None,
            channel=channel.config if channel is not None else "",
            model=computed["model"] if computed is not None else "",
            deferred=computed["deferred"] if computed is not None else False,
            age_ms=max(0.0, arrived.at * 1000 - computed["captured_ns"] / 1e6) if computed is not None else 0.0,
            latency_ms=computed["latency_ms"] if computed is not None else None,
            kind=computed.get("kind", "sequence") if computed is not None else "sequence",
        )
        side = "sr" if computed is not None else "raw"
        return Picture((side, arrived.number), pixels, plane, frame, arrived.at)
