"""Sends frames to one server and receives what comes back. Knows neither pymmcore nor torch, file nor ledger.

One thread owns the DEALER socket. Frames are taken from a :class:`Source` only while a credit is free, so
never more than a handful are in flight, far below every ZeroMQ high-water mark: ZeroMQ itself cannot drop
one. When the server falls silent, or was restarted, the link closes its socket, opens a new one and sends
again what was not answered; answers are matched by sequence number, so an answer that arrives twice counts
once (after the "lazy pirate" and "paranoid pirate" patterns of the ZeroMQ guide).
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol

import zmq

from live_sr import __version__
from live_sr.errors import InputError, LiveSRError, RemoteError, WireError
from live_sr.frame import Frame, Pixels, Restored, check_pixels, stacked
from live_sr.upscaler import UpscalerInfo
from live_sr.wire import codec
from live_sr.wire.messages import (
    End,
    FrameMessage,
    FromClient,
    Heartbeat,
    Hello,
    ModelInfo,
    Refusal,
    Result,
    Welcome,
)
from live_sr.wire.security import check_address

CREDITS = 2  # one frame computing and one on its way keep a server busy; more only adds latency
HEARTBEAT_S = 0.5
SILENT_S = 3.0  # six heartbeats unanswered: a busy network never takes that long, an operator notices it
HUNG_S = 60.0  # one computation this long: the engine hangs, though the server's socket still answers
RETRY_S = 0.5  # between two attempts to reach a server: soon enough to be unnoticed after a restart
ENOUGH_IN_SOCKET = 64  # messages; credits keep the true number below ten

LinkState = Literal["connecting", "warming", "ready", "away", "refused", "stopped"]


class Source(Protocol):
    """Where a link takes its frames from. Called on the link's thread."""

    def take(self) -> Frame | None:
        """The next frame to send, now in flight; None when there is none at present."""
        ...


class Sink(Protocol):
    """Where a link delivers answers to. Called on the link's thread; must not block for long."""

    def returned(self, result: Restored) -> None:
        """A frame that was in flight came back."""
        ...

    def refused(self, frame: Frame, code: str, message: str) -> None:
        """A frame that was in flight will not come back."""
        ...

    def link_changed(self, link: Link) -> None:
        """The link's state or server changed."""
        ...


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """What is known of a server, for display."""

    address: str
    state: LinkState
    detail: str
    models: tuple[ModelInfo, ...]  # that it holds; the first is for frames that name none
    in_flight: int
    reconnects: int
    repeated: int  # answers that arrived a second time after a resend, ignored

    @property
    def model(self) -> ModelInfo | None:
        """The first model that it holds; None before it has answered."""
        return self.models[0] if self.models else None


@dataclass(frozen=True, slots=True, eq=False)
class _Sent:
    frame: Frame
    model: ModelInfo  # that restores it; the same when it is sent again
    at: float


class Link:
    """The connection to one server.

    Parameters
    ----------
    address : str
        ``tcp://HOST:PORT`` or ``ipc://PATH``.
    session : str
        Identifies this client's frames, together with their sequence number.
    accept : callable
        Given the models that the server holds, returns None or why it must get no frame of this session.
    model : str
        Ask for this model by name, for frames that name none; empty takes the server's first.
    """

    def __init__(
        self,
        address: str,
        *,
        session: str,
        source: Source,
        sink: Sink,
        accept: Callable[[tuple[ModelInfo, ...]], str | None] = lambda models: None,
        model: str = "",
        credits: int = CREDITS,
    ) -> None:
        check_address(address)
        self.address = address
        self.session = session
        self._source = source
        self._sink = sink
        self._accept = accept
        self._hello = Hello(session=session, version=__version__, model=model)
        self._max_credits = credits
        self._credits = 0
        self._in_flight: dict[int, _Sent] = {}  # by seq, oldest first
        self._state: LinkState = "connecting"
        self._detail = "no answer yet"
        self._models: dict[str, ModelInfo] = {}  # by sha256, in the server's order
        self._reconnects = 0
        self._repeated = 0
        self._beat = 0
        self._server = ""  # name of the server process that welcomed us over the present socket
        self._lost = False
        self._ended = threading.Event()
        self._changed = threading.Condition()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._thread = threading.Thread(target=self._run, name=f"live-sr link {address}", daemon=True)

    # ---------------------------------------------------------------- any thread

    def start(self) -> None:
        """Connect in the background."""
        self._thread.start()

    def wake(self) -> None:
        """Say that the source may have a frame. Never blocks."""
        try:
            self._wake_in.send(b"w")
        except (BlockingIOError, OSError):  # already signalled, or stopped
            return

    def wait_ready(self, timeout: float | None) -> bool:
        """Wait until the server is warm and its model accepted; False on timeout (s) or refusal."""
        with self._changed:
            self._changed.wait_for(lambda: self._state in ("ready", "refused", "stopped"), timeout)
            return self._state == "ready"

    def stop(self) -> list[Frame]:
        """Close the connection and return the frames that were never answered."""
        self._ended.set()
        self.wake()
        if self._thread.ident is not None:
            self._thread.join(timeout=10)
            assert not self._thread.is_alive(), "the link's thread waits for nothing longer than a heartbeat"
        self._wake_in.close()
        self._wake_out.close()
        left = [sent.frame for sent in self._in_flight.values()]
        self._in_flight.clear()
        return left

    @property
    def status(self) -> LinkStatus:
        """A snapshot for display."""
        with self._changed:
            return LinkStatus(
                address=self.address,
                state=self._state,
                detail=self._detail,
                models=tuple(self._models.values()),
                in_flight=len(self._in_flight),
                reconnects=self._reconnects,
                repeated=self._repeated,
            )

    # ---------------------------------------------------------------- the link's thread

    def _run(self) -> None:
        context = zmq.Context()
        try:
            while not self._ended.is_set():
                with context.socket(zmq.DEALER) as dealer:
                    dealer.linger = 0
                    dealer.ipv6 = "[" in self.address
                    dealer.sndhwm = dealer.rcvhwm = ENOUGH_IN_SOCKET
                    dealer.connect(self.address)
                    self._converse(dealer)
                self._ended.wait(RETRY_S)
                self._reconnects += 1
        finally:
            context.destroy(linger=0)
            self._set("stopped", "closed")

    def _converse(self, dealer: zmq.Socket[bytes]) -> None:
        """Talk over one socket until the server falls silent or the link is stopped."""
        poller = zmq.Poller()
        poller.register(dealer, zmq.POLLIN)
        poller.register(self._wake_out, zmq.POLLIN)
        self._credits = 0
        self._server = ""
        self._lost = False
        self._send(dealer, self._hello)
        heard = beat_at = time.monotonic()
        while not self._ended.is_set():
            now = time.monotonic()
            if now - heard > SILENT_S:
                self._set("away", f"no answer from {self.address} for {SILENT_S:g} s")
                return
            if now - beat_at >= HEARTBEAT_S:
                beat_at = now
                self._beat += 1
                # Until it has been welcomed the link says hello again: the server may just have come up.
                said = Heartbeat(number=self._beat) if self._state in ("warming", "ready") else self._hello
                self._send(dealer, said)
            ready = dict(poller.poll(timeout=max(1, int((beat_at + HEARTBEAT_S - now) * 1000))))
            if self._wake_out.fileno() in ready or self._wake_out in ready:
                self._drain_wakes()
            if dealer in ready:
                heard = time.monotonic()
                while self._receive(dealer):
                    pass
                if self._lost:
                    return
            self._send_what_credits_allow(dealer)
        self._send(dealer, End(session=self.session))
        dealer.linger = 100  # ms for the farewell; the server forgets silent clients by itself

    def _receive(self, dealer: zmq.Socket[bytes]) -> bool:
        try:
            parts = dealer.recv_multipart(flags=zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        try:
            message, pixels = codec.decode([part.buffer for part in parts])
            if isinstance(message, Result):
                assert pixels is not None
                self._on_result(message, pixels)
            elif isinstance(message, Welcome):
                self._on_welcome(dealer, message)
            elif isinstance(message, Refusal):
                self._on_refusal(message)
            elif isinstance(message, Heartbeat):
                self._on_heartbeat(message)
            else:
                raise WireError(f"a server does not send {type(message).__name__}")
        except WireError as e:
            self._set("refused", str(e))
        return True

    def _on_welcome(self, dealer: zmq.Socket[bytes], welcome: Welcome) -> None:
        why_not = self._accept(welcome.models) if welcome.warm else None
        self._server = welcome.server
        self._models = {model.sha256: model for model in welcome.models}
        if why_not is not None:
            self._credits = 0
            self._set("refused", why_not)
        elif not welcome.warm:
            self._set("warming", f"{', '.join(model.id for model in welcome.models)}: warming up")
        elif self._state != "ready" or self._credits == 0:
            self._credits = min(self._max_credits, welcome.credits)
            self._set("ready", _introduced(welcome.models))
            for sent in list(self._in_flight.values()):
                self._send_again(dealer, sent)

    def _on_result(self, result: Result, pixels: Pixels) -> None:
        sent = self._in_flight.get(result.seq)
        if result.session != self.session or sent is None:
            self._repeated += 1
            return
        frame, model = sent.frame, sent.model
        y, x = frame.pixels.shape
        expected = ((y * model.scale, x * model.scale), frame.pixels.dtype.name, model.sha256)
        found = (pixels.shape, pixels.dtype.name, result.model_sha256)
        if expected != found:
            raise WireError(
                f"result of frame {result.seq} is {found}, expected {expected}: the server is faulty"
            )
        del self._in_flight[result.seq]
        self._sink.returned(
            Restored(
                seq=result.seq,
                pixels=pixels,
                raw=frame.pixels,
                model=model.id,
                model_sha256=model.sha256,
                scale=model.scale,
                server_ms=result.waited_ms + result.computed_ms,
                round_trip_ms=(time.monotonic() - sent.at) * 1000,
                used=frame.used,
                kind=frame.kind,
                frames=model.frames,
            )
        )

    def _on_refusal(self, refusal: Refusal) -> None:
        if refusal.code == "not_ready":
            self._lose("the server does not know this session: it was restarted")
            return
        if refusal.seq is None:
            self._credits = 0
            self._set("refused", refusal.message)
            return
        sent = self._in_flight.pop(refusal.seq, None)
        if sent is not None:
            self._sink.refused(sent.frame, refusal.code, refusal.message)

    def _on_heartbeat(self, beat: Heartbeat) -> None:
        if beat.busy_ms > HUNG_S * 1000:
            self._lose(f"the server's engine has been computing one frame for {beat.busy_ms / 1000:.0f} s")
        elif self._server and beat.server != self._server:
            self._lose("the server was restarted")

    def _lose(self, detail: str) -> None:
        """Leave this socket; the next one says hello and sends again what was not answered."""
        self._lost = True
        self._set("away", detail)

    def _send_what_credits_allow(self, dealer: zmq.Socket[bytes]) -> None:
        while self._state == "ready" and len(self._in_flight) < self._credits:
            frame = self._source.take()
            if frame is None:
                return
            model = self._models.get(frame.model_sha256 or next(iter(self._models)))
            if model is None:
                self._sink.refused(frame, "busy", f"{self.address} does not hold {frame.model_sha256[:12]}")
                continue
            if frame.pixels.size > model.max_pixels:
                # Not sent: ZeroMQ would cut the connection over it, and every reconnect would send it again.
                limit = model.max_pixels
                self._sink.refused(frame, "too_large", f"{frame.pixels.shape} is more than {limit} pixels")
                continue
            if frame.planes != model.frames:
                # It was on its way before the model was known; the second time it comes with its neighbours.
                why = f"{model.id} sees {model.frames} frames at once, here are {frame.planes}"
                self._sink.refused(frame, "busy", why)
                continue
            self._send_frame(dealer, frame, model)

    def _send_again(self, dealer: zmq.Socket[bytes], sent: _Sent) -> None:
        """To the same model; a frame whose model the server holds no longer is the sender's again.

        So is a live frame: nobody waits for it, what is seen now is newer.
        """
        if sent.model.sha256 in self._models and sent.frame.kind != "live":
            self._send_frame(dealer, sent.frame, sent.model)
            return
        del self._in_flight[sent.frame.seq]
        why = "was away" if sent.frame.kind == "live" else f"holds {sent.model.id} no longer"
        self._sink.refused(sent.frame, "busy", f"{self.address} {why}")

    def _send_frame(self, dealer: zmq.Socket[bytes], frame: Frame, model: ModelInfo) -> None:
        y, x = frame.pixels.shape
        message = FrameMessage(
            session=self.session,
            seq=frame.seq,
            shape=(y, x),
            dtype="uint8" if frame.pixels.dtype.itemsize == 1 else "uint16",
            planes=frame.planes,
            model=model.sha256,
        )
        self._in_flight[frame.seq] = _Sent(frame, model, time.monotonic())
        self._send(dealer, message, stacked(frame.stack) if frame.stack else frame.pixels)

    @staticmethod
    def _send(dealer: zmq.Socket[bytes], message: FromClient, pixels: Pixels | None = None) -> None:
        try:
            dealer.send_multipart(codec.encode(message, pixels), flags=zmq.NOBLOCK, copy=False)
        except zmq.Again:
            # Only while nobody is connected. What has not been answered is sent again after the next welcome.
            return

    def _drain_wakes(self) -> None:
        try:
            while self._wake_out.recv(4096):
                pass
        except BlockingIOError:
            return

    def _set(self, state: LinkState, detail: str) -> None:
        with self._changed:
            if (state, detail) == (self._state, self._detail):
                return
            self._state, self._detail = state, detail
            self._changed.notify_all()
        self._sink.link_changed(self)


class RemoteUpscaler:
    """A server used as an :class:`~live_sr.upscaler.Upscaler`, for files and scripts: one frame at a time.

    Parameters
    ----------
    timeout : float
        Seconds to wait for the server, and for each frame, before giving up with a clear error.
    connect_timeout : float, optional
        Another time for the server alone.
    """

    def __init__(
        self,
        address: str,
        *,
        session: str,
        model: str = "",
        timeout: float = 30.0,
        connect_timeout: float | None = None,
    ) -> None:
        self._timeout = timeout
        self._closed = False
        self._box: list[Frame] = []
        self._answer: Restored | RemoteError | None = None
        self._changed = threading.Condition()
        self._seq = 0
        self._link = Link(address, session=session, source=self, sink=self, model=model, accept=self._same)
        self._pinned: ModelInfo | None = None
        self._link.start()
        ready = self._link.wait_ready(timeout if connect_timeout is None else connect_timeout)
        status = self._link.status
        if not ready or status.model is None:
            self._link.stop()
            raise LiveSRError(
                f"no server to work with at {address}: {status.detail}. "
                "Start one with `live-sr serve`; `live-sr enhance` without --server needs none"
            )
        m = status.model
        self._info = UpscalerInfo(
            id=m.id,
            sha256=m.sha256,
            scale=m.scale,
            precision=m.precision,
            device=m.device,
            max_pixels=m.max_pixels,
            pixel_size_um=m.pixel_size_um,
            dtypes=tuple(m.dtypes),
            frames=m.frames,
            neighbours=m.neighbours,
        )

    def __enter__(self) -> RemoteUpscaler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def info(self) -> UpscalerInfo:
        """The server's model."""
        return self._info

    @property
    def status(self) -> LinkStatus:
        """Of the link to the server: whether it still answers."""
        return self._link.status

    def warm(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Nothing to do: the server is warm before it is ready."""

    def upscale(self, frames: Sequence[Pixels]) -> list[Pixels]:
        """Restore each frame in turn; see :class:`~live_sr.upscaler.Upscaler`.

        Raises
        ------
        InputError
            When one is not a frame for this model, or too large.
        RemoteError
            When the server refuses a frame.
        LiveSRError
            When it does not answer in time, holds another model now, or :meth:`close` was called meanwhile.
        """
        return [self._one(pixels) for pixels in frames]

    def close(self) -> None:
        """End the session. From another thread it ends a call that waits; may be called twice."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._link.stop()

    def _one(self, pixels: Pixels) -> Pixels:
        check_pixels(pixels, self._info.frames)
        stack = tuple(pixels) if pixels.ndim == 3 else ()
        frame = stack[len(stack) // 2] if stack else pixels
        if frame.size > self._info.max_pixels:
            raise InputError(f"{frame.shape} is more than the server's limit of {self._info.max_pixels} pixels")
        with self._changed:
            self._answer = None
            now = time.monotonic_ns()
            self._box.append(Frame(self._seq, frame, now, stack, model_sha256=self._info.sha256))
            self._seq += 1
        self._link.wake()
        answer = self._wait()
        if isinstance(answer, RemoteError):
            raise answer
        if answer is None:
            status = self._link.status
            if self._closed or status.state == "refused":
                raise LiveSRError(f"{status.address} computes no more frames of this: {status.detail}")
            raise LiveSRError(f"{status.address} did not answer within {self._timeout:g} s: {status.detail}")
        return answer.pixels

    def _wait(self) -> Restored | RemoteError | None:
        with self._changed:
            self._changed.wait_for(self._decided, self._timeout)
            return self._answer

    def _decided(self) -> bool:
        return self._answer is not None or self._closed or self._link.status.state == "refused"

    # Source and Sink of the link, on its thread

    def take(self) -> Frame | None:
        """Give the link the waiting frame."""
        with self._changed:
            return self._box.pop() if self._box else None

    def returned(self, result: Restored) -> None:
        """Hand over a result."""
        with self._changed:
            if result.seq == self._seq - 1:
                self._answer = result
                self._changed.notify_all()

    def refused(self, frame: Frame, code: str, message: str) -> None:
        """Hand over a refusal."""
        with self._changed:
            if frame.seq == self._seq - 1:
                self._answer = RemoteError(code, message)
                self._changed.notify_all()

    def link_changed(self, link: Link) -> None:
        """Look again: a lost server shows as a missing answer, one with another model ends the wait."""
        with self._changed:
            self._changed.notify_all()

    def _same(self, models: tuple[ModelInfo, ...]) -> str | None:
        if self._pinned is None:
            self._pinned = models[0]
        return why_not_held(self._pinned, models)


def _introduced(models: Sequence[ModelInfo]) -> str:
    first = models[0]
    ahead = f", {first.look_ahead} frames after each are awaited" if first.look_ahead else ""
    return f"{', '.join(model.id for model in models)} on {first.device}{ahead}"


def why_not_held(wanted: ModelInfo, offered: Sequence[ModelInfo]) -> str | None:
    """Why a server of the models `offered` must get no frame that `wanted` is to restore; None when it may."""
    if any((wanted.sha256, wanted.scale) == (model.sha256, model.scale) for model in offered):
        return None
    held = ", ".join(f"{model.id} ({model.sha256[:12]})" for model in offered)
    return (
        f"this session's frames are restored by {wanted.id} ({wanted.sha256[:12]}), the server holds {held}: "
        "models are never mixed unasked; restart the server with the first, or begin a new session"
    )
