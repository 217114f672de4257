"""Shows the newest frames to whoever watches, and reads what was shown. Knows no browser, ledger or camera.

The acquisition side hands a frame over and goes on; one thread publishes at a bounded rate. Everything here is
for the eye: of two frames waiting the newer wins, a hung viewer loses messages, and nobody's loss reaches the
acquisition. Each message is one ZeroMQ part that stands alone (prefix, msgpack header, raw pixels, SR pixels),
so a subscriber may conflate. While nothing new comes the newest frame is repeated once a second: a viewer that
was started late, or missed a message, catches up.
"""

from __future__ import annotations

import logging
import math
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
import zmq
from msgspec import Meta, Struct
from numpy.typing import NDArray

from live_sr.errors import ConfigError, InputError, WireError
from live_sr.frame import FrameKind as FrameKind
from live_sr.frame import Pixels, check_pixels
from live_sr.wire.messages import Count, Dtype, Milliseconds
from live_sr.wire.security import check_bind

log = logging.getLogger(__name__)

MAX_RATE_HZ = 25.0  # what an eye follows; more only costs the acquisition PC memory bandwidth
STATUS_S = 0.25  # counters that change faster cannot be read
REPEAT_S = 1.0  # how late a viewer that was just opened sees the last frame of a slow scan
KEEPS_UP_MS = 300.0  # an SR frame this young shows its own raw frame soon enough: both panels show one frame
KEPT_UP_S = 0.5  # after this long without an SR frame, raw frames are shown alone
LIVE_FIRST_S = 1.0  # a deferred result is not shown within this time of a live one: the operator watches now
MAX_SIDE_SHOWN = 8192  # pixels; browsers draw no larger image. Of larger frames every nth pixel is shown
ENOUGH_WAITING = 4  # messages for a slow viewer: a status, a pair and a raw frame leave at once, and one more
LINGER_MS = 200  # lets the last status leave; a hung viewer holds the end of a session up no longer than this

MAGIC = b"LSF1"
PREFIX = struct.Struct("<4sI")  # magic with version, header bytes
MAX_HEADER = 64 * 1024  # bytes; a status with 16 alarms takes under 10 kB
MAX_ALARMS = 16
MAX_TEXT = 500  # characters of one text: two lines on the page
MAX_MESSAGE = 2 * 2 * MAX_SIDE_SHOWN**2 + MAX_HEADER + PREFIX.size  # bytes, two uint16 planes

SideShown: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_SIDE_SHOWN)]
Step: TypeAlias = Annotated[int, Meta(ge=1, le=64)]
StageUm: TypeAlias = tuple[float | None, float | None, float | None]  # x, y, z


@dataclass(frozen=True, slots=True)
class FrameInfo:
    """What is told about a frame beside its pixels.

    Attributes
    ----------
    captured_ns : int
        ``time.monotonic_ns()`` of this machine when the frame was received.
    index : mapping
        Position in the sequence by axis, for example ``{"t": 3, "c": 0}``.
    pixel_size_um : float or None
        Of the raw frame; None or 0 when unknown.
    latency_ms : float or None
        Capture to return; None before it has come back.
    kind : {"sequence", "live", "snap"}
        Whether a sequence, the continuous mode or a single snap acquired it.
    stage_um : (x, y, z) or None
        Stage position in µm, None for what is unknown.
    exposure_ms : float or None
    run : int
        Number of the session's sequence that acquired it; 0 for none.
    place : mapping
        Where it lies in the sequence's volumes: `index`, but for grids and sequences stored by arrival.
    """

    session: str
    seq: int
    captured_ns: int
    index: Mapping[str, int] = field(default_factory=dict)
    channel: str = ""
    pixel_size_um: float | None = None
    model: str = ""
    scale: int = 1
    deferred: bool = False
    latency_ms: float | None = None
    kind: FrameKind = "sequence"
    stage_um: StageUm | None = None
    exposure_ms: float | None = None
    run: int = 0
    place: Mapping[str, int] = field(default_factory=dict)


class Plane(Struct, frozen=True):
    """One image in a message: every `step`-th pixel along both axes of what was acquired or computed."""

    shape: tuple[SideShown, SideShown]
    dtype: Dtype
    step: Step = 1

    @property
    def nbytes(self) -> int:
        """Bytes that its pixels take."""
        return self.shape[0] * self.shape[1] * np.dtype(self.dtype).itemsize


class FeedFrame(Struct, frozen=True, tag="frame"):
    """One frame as shown; pixels of `raw`, then of `sr` if there is one, follow.

    Attributes
    ----------
    shape : (Y, X)
        Of the raw frame as acquired.
    scale : int
        SR pixels per raw pixel, before `step`.
    age_ms : float
        Capture to publication, by the acquisition PC's clock.
    pixel_size_um : float or None
        Of the raw frame as acquired.
    """

    session: str
    seq: Count
    index: dict[str, int]
    shape: tuple[Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)]]
    raw: Plane
    sr: Plane | None
    scale: Annotated[int, Meta(ge=1, le=64)]
    pixel_size_um: float | None
    channel: str
    model: str
    deferred: bool
    age_ms: Milliseconds
    latency_ms: float | None
    kind: FrameKind = "sequence"
    stage_um: StageUm | None = None
    exposure_ms: float | None = None
    run: Count = 0
    place: dict[str, int] = {}


class ServerStatus(Struct, frozen=True):
    """What is known of the inference server; `state` is the link's (``ready``, ``away``, ...)."""

    state: str = ""
    detail: str = ""
    model: str = ""
    device: str = ""
    precision: str = ""


RunState = Literal["idle", "acquiring", "draining", "finished"]


class SequenceStatus(Struct, frozen=True):
    """The sequence that runs or ran last, and what a viewer may do to it.

    Attributes
    ----------
    number : int
        Run of the session, from 1; 0 before the first.
    axes : dict
        Length of each axis, in the order of acquisition, without y and x; empty before it is known.
    channels : tuple of str
        Names along ``c``.
    raw_path, sr_path : str
        Volumes on this machine; empty where none is written.
    state : {"idle", "running", "paused"}
    """

    number: int = 0
    axes: dict[str, int] = {}
    channels: tuple[str, ...] = ()
    raw_path: str = ""
    sr_path: str = ""
    state: Literal["idle", "running", "paused"] = "idle"


class ControlStatus(Struct, frozen=True):
    """What an operator may change from a viewer, and how it is set.

    Attributes
    ----------
    address : str
        Where commands are taken; empty when none are.
    allowed : tuple of str
        Names of the commands that this session takes.
    models : tuple of str
        Models that the server holds and this session may use.
    chosen : dict
        Model by channel; ``""`` stands for every channel not named.
    sr_on : bool
        False while frames are only stored, to be super-resolved later.
    start_awaited : bool
        A program waits for the operator to start it.
    """

    address: str = ""
    allowed: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    chosen: dict[str, str] = {}
    sr_on: bool = True
    start_awaited: bool = False


class FeedStatus(Struct, frozen=True, tag="status"):
    """The session at one instant.

    Attributes
    ----------
    counts : dict
        The ledger's :meth:`~live_sr.frame.Counts.as_dict`.
    raw_fps, sr_fps : float
        Frames per second over the last seconds.
    latency_ms : dict
        ``p50``, ``p95``, ``p99`` of capture to return; absent or None when unknown.
    queue : {"ok", "high", "full"}
        Fill of the queue towards the server: from 75 % ``high``, at 100 % ``full``.
    alarms : tuple of str
        What an operator must see in red, for example "raw volume cannot be written: disk full".
    """

    session: str = ""
    state: RunState = "idle"
    counts: dict[str, int] = {}
    raw_fps: float = 0.0
    sr_fps: float = 0.0
    latency_ms: dict[str, float | None] = {}
    server: ServerStatus = ServerStatus()
    queue: Literal["ok", "high", "full"] = "ok"
    alarms: tuple[str, ...] = ()
    sequence: SequenceStatus = SequenceStatus()
    control: ControlStatus = ControlStatus()


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """One frame as received: its header and (Y, X) planes, read-only views of the message."""

    frame: FeedFrame
    raw: Pixels
    sr: Pixels | None


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    info: FrameInfo
    raw: Pixels
    sr: Pixels | None


class Feed:
    """Publishes what is to be seen. All methods return at once, from any thread.

    Parameters
    ----------
    address : str
        Loopback or ipc; port ``*`` or 0 takes a free one, see :attr:`address`.
    max_rate_hz : float
        Most frames per second that are published.

    Raises
    ------
    ConfigError
        When the address is malformed, reachable from other machines, or in use.
    """

    def __init__(self, address: str, *, max_rate_hz: float = MAX_RATE_HZ) -> None:
        check_bind(address)
        if not max_rate_hz > 0:
            raise ConfigError(f"max_rate_hz is {max_rate_hz}: give a number above 0")
        self._period_s = 1 / max_rate_hz
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)  # as PUB, and tells whether anyone watches
        self._socket.sndhwm = ENOUGH_WAITING
        self._socket.linger = LINGER_MS
        try:
            self._socket.bind(address)
        except zmq.ZMQError as e:
            self._context.destroy(linger=0)
            raise ConfigError(
                f"cannot publish frames on {address}: {e.strerror}. "
                "Is another acquisition running? Name another address"
            ) from e
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        # Shared, under the condition:
        self._something = threading.Condition()
        self._raw: _Waiting | None = None
        self._pair: _Waiting | None = None
        self._live_pair_at = -math.inf
        self._status = FeedStatus()
        self._urgent = False  # the state or an alarm changed
        self._ended = False
        # Written by the feed's thread only:
        self._watched = False
        self._published = 0
        self._rejected = 0
        self._last_raw: _Waiting | None = None
        self._last_pair: _Waiting | None = None
        self._next_frame = self._next_status = 0.0
        self._sent_at = -math.inf
        self._hold_raw_until = -math.inf
        self._thread = threading.Thread(target=self._run, name=f"live-sr feed {self.address}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ---------------------------------------------------------------- any thread

    def show_raw(self, info: FrameInfo, raw: Pixels) -> None:
        """Show a frame as acquired. `raw` (Y, X) is kept, not copied: it must not change afterwards."""
        with self._something:
            self._raw = _Waiting(info, raw, None)
            self._something.notify()

    def show_pair(self, info: FrameInfo, raw: Pixels, sr: Pixels) -> None:
        """Show a frame with its super-resolved image. The arrays are kept, not copied.

        Parameters
        ----------
        raw : (Y, X) uint8 or uint16
        sr : (scale * Y, scale * X), same dtype
        """
        now = time.monotonic()
        with self._something:
            if not info.deferred:
                self._live_pair_at = now
            elif now - self._live_pair_at < LIVE_FIRST_S:
                return
            self._pair = _Waiting(info, raw, sr)
            self._something.notify()

    def status(self, status: FeedStatus) -> None:
        """Replace the counters shown; they are published four times a second."""
        with self._something:
            if status.state != self._status.state or status.alarms != self._status.alarms:
                self._urgent = True
                self._something.notify()
            self._status = status

    @property
    def watched(self) -> bool:
        """Whether a viewer is connected; without one nothing is copied."""
        return self._watched

    @property
    def published(self) -> int:
        """Frames published so far, repeats included."""
        return self._published

    @property
    def rejected(self) -> int:
        """Frames and statuses that could not be shown, as pixels or a header of the wrong kind."""
        return self._rejected

    def stop(self) -> None:
        """Publish what waits, then close. May be called twice."""
        with self._something:
            self._ended = True
            self._something.notify()
        self._thread.join(timeout=10)
        assert not self._thread.is_alive(), "the feed's thread waits for nothing longer than a status"

    # ---------------------------------------------------------------- the feed's thread

    def _run(self) -> None:
        try:
            self._publish_all()
        except Exception:
            # The view goes silent and says so; the acquisition must not notice.
            log.exception("the live view's feed stopped: the acquisition goes on without a picture")
        finally:
            self._socket.close()
            self._context.term()

    def _publish_all(self) -> None:
        ended = False
        while not ended:
            with self._something:
                self._wait()
                ended = self._ended
                status = self._take_status()
                frames = self._take_frames()
            self._notice_viewers()
            if self._watched:
                if status is not None:
                    self._publish(status)
                for waiting in frames:
                    self._published += self._publish(waiting)

    def _wait(self) -> None:
        """Sleep until something is due. Called with the lock held, as are the two below."""
        while not (self._ended or self._urgent):
            due = self._next_status
            if self._pair is not None:
                due = min(due, self._next_frame)
            if self._raw is not None:
                due = min(due, max(self._next_frame, self._hold_raw_until))
            left = due - time.monotonic()
            if left <= 0:
                return
            self._something.wait(left)

    def _take_status(self) -> FeedStatus | None:
        now = time.monotonic()
        if not (self._ended or self._urgent or now >= self._next_status):
            return None
        self._urgent = False
        self._next_status = now + STATUS_S
        return self._status

    def _take_frames(self) -> list[_Waiting]:
        """What to show now: a new pair, a raw frame that is newer, or again the last ones."""
        now = time.monotonic()
        if now < self._next_frame and not self._ended:
            return []
        pair, self._pair = self._pair, None
        if pair is not None:
            keeps_up = _age_ms(pair.info) < KEEPS_UP_MS
            self._hold_raw_until = now + KEPT_UP_S if keeps_up else -math.inf
            if self._raw is not None and not _follows(self._raw, pair):
                self._raw = None
        raw = None
        if now >= self._hold_raw_until or self._ended:
            raw, self._raw = self._raw, None
        self._remember(pair, raw)
        if pair is not None or raw is not None:
            frames = [pair, raw]
            self._next_frame = now + self._period_s
        elif now >= self._sent_at + REPEAT_S:
            frames = [self._last_pair, self._last_raw]
        else:
            return []
        self._sent_at = now
        return [waiting for waiting in frames if waiting is not None]

    def _remember(self, pair: _Waiting | None, raw: _Waiting | None) -> None:
        """Keep for repeating: the last pair, and the last raw frame if newer; never of two sessions."""
        if pair is not None:
            self._last_pair = pair
            if self._last_raw is not None and (
                self._last_raw.info.session != pair.info.session or not _follows(self._last_raw, pair)
            ):
                self._last_raw = None
        if raw is not None:
            self._last_raw = raw
            if self._last_pair is not None and self._last_pair.info.session != raw.info.session:
                self._last_pair = None

    def _notice_viewers(self) -> None:
        try:
            while True:
                message = self._socket.recv(zmq.NOBLOCK)
                self._watched = message[:1] == b"\x01"
        except zmq.Again:
            return

    def _publish(self, what: FeedStatus | _Waiting) -> bool:
        try:
            if isinstance(what, FeedStatus):
                message = status_message(what)
            else:
                message = b"".join(frame_message(what.info, what.raw, what.sr))
        except InputError as e:
            if self._rejected == 0:
                log.warning("something cannot be shown: %s", e)
            self._rejected += 1
            return False
        self._socket.send(message, flags=zmq.NOBLOCK, copy=False)  # XPUB drops for slow viewers, never waits
        return True


def _age_ms(info: FrameInfo) -> float:
    return max(0.0, (time.monotonic_ns() - info.captured_ns) / 1e6)


def _follows(one: _Waiting, other: _Waiting) -> bool:
    return one.info.session != other.info.session or one.info.seq > other.info.seq


# -------------------------------------------------------------------- messages


def frame_message(info: FrameInfo, raw: Pixels, sr: Pixels | None) -> list[bytes | memoryview]:
    """The pieces of one frame's message, in order. Frames beyond 8192 pixels a side are thinned out.

    Raises
    ------
    InputError
        When `raw` or `sr` is not one (Y, X) plane of uint8 or uint16, or `info` holds something else than
        numbers and text.
    """
    raw_plane, raw_bytes = _plane(raw)
    sr_plane, sr_bytes = _plane(sr) if sr is not None else (None, memoryview(b""))
    size = info.pixel_size_um
    known = size is not None and math.isfinite(size) and size > 0
    header = FeedFrame(
        session=info.session[:MAX_TEXT],
        seq=info.seq,
        index=dict(info.index),
        shape=(raw.shape[0], raw.shape[1]),
        raw=raw_plane,
        sr=sr_plane,
        scale=info.scale,
        pixel_size_um=size if known else None,
        channel=info.channel[:MAX_TEXT],
        model=info.model[:MAX_TEXT],
        deferred=info.deferred,
        age_ms=_age_ms(info),
        latency_ms=info.latency_ms,
        kind=info.kind,
        stage_um=info.stage_um,
        exposure_ms=info.exposure_ms,
        run=info.run,
        place=dict(info.place),
    )
    return [_encode(header), raw_bytes, sr_bytes]


def status_message(status: FeedStatus) -> bytes:
    """One status as a message; long texts are shortened.

    Raises
    ------
    InputError
        When it holds something else than numbers and text.
    """
    return _encode(_fit(status))


def _plane(pixels: Pixels) -> tuple[Plane, memoryview]:
    check_pixels(pixels)
    step = -(-max(pixels.shape) // MAX_SIDE_SHOWN)
    thin = np.ascontiguousarray(pixels[::step, ::step])
    dtype: Dtype = "uint8" if thin.dtype.itemsize == 1 else "uint16"
    return Plane(shape=(thin.shape[0], thin.shape[1]), dtype=dtype, step=step), thin.data.cast("B")


def _fit(status: FeedStatus) -> FeedStatus:
    """Shorten what could make the header too long to be read; percentiles that are NaN become None."""
    alarms = tuple(text[:MAX_TEXT] for text in status.alarms[:MAX_ALARMS])
    server = msgspec.structs.replace(status.server, detail=status.server.detail[:MAX_TEXT])
    known = {k: v if v is not None and math.isfinite(v) else None for k, v in status.latency_ms.items()}
    return msgspec.structs.replace(status, alarms=alarms, server=server, latency_ms=known)


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's: indices and rates are often computed."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is neither a number nor text")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_decoder = msgspec.msgpack.Decoder(FeedFrame | FeedStatus)


def _encode(header: FeedFrame | FeedStatus) -> bytes:
    try:
        body = _encoder.encode(header)
    except (TypeError, OverflowError) as e:
        raise InputError(f"cannot be shown: {e}; give plain numbers and text") from e
    if len(body) > MAX_HEADER:
        raise InputError(f"cannot be shown: {len(body)} bytes beside the pixels, the limit is {MAX_HEADER}")
    return PREFIX.pack(MAGIC, len(body)) + body


def decode(message: bytes | memoryview) -> Shown | FeedStatus:
    """Check and read one message; pixels are read-only views of it.

    Raises
    ------
    WireError
        Whatever is wrong with the bytes.
    """
    view = memoryview(message)
    if view.nbytes < PREFIX.size:
        raise WireError(f"{view.nbytes} bytes are too short for a feed message")
    magic, length = PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise WireError("not a live-sr feed of this version: another program may be using this port")
    if length > min(MAX_HEADER, view.nbytes - PREFIX.size):
        raise WireError(f"header of {length} bytes in a message of {view.nbytes}")
    try:
        header = _decoder.decode(view[PREFIX.size : PREFIX.size + length])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise WireError(f"unreadable header: {e}") from e
    pixels = view[PREFIX.size + length :]
    if isinstance(header, FeedStatus):
        if pixels.nbytes:
            raise WireError(f"{pixels.nbytes} bytes follow a status")
        return header
    expected = header.raw.nbytes + (header.sr.nbytes if header.sr is not None else 0)
    if pixels.nbytes != expected:
        raise WireError(f"pixels take {expected} bytes, {pixels.nbytes} arrived")
    size = header.pixel_size_um
    if not math.isfinite(header.age_ms) or (size is not None and not (math.isfinite(size) and size > 0)):
        raise WireError(f"age {header.age_ms} ms or pixel size {size} µm is not a number that can be shown")
    raw = _pixels(header.raw, pixels[: header.raw.nbytes])
    sr = _pixels(header.sr, pixels[header.raw.nbytes :]) if header.sr is not None else None
    return Shown(header, raw, sr)


def _pixels(plane: Plane, data: memoryview) -> Pixels:
    array: NDArray[Any] = np.frombuffer(data, dtype=plane.dtype).reshape(plane.shape)
    array.flags.writeable = False
    return array
