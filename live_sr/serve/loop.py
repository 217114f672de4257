"""Serves models to many clients over one ROUTER socket. Knows the Upscaler protocol; imports no torch.

Two threads, neither of which waits for the other. The *socket thread* owns the socket, the sessions and the
counters: it checks each message, answers heartbeats, fills the mailbox and sends results. The *engine thread*
owns the upscalers: it warms them, then computes what the mailbox gives. Results come back through a queue.

A session is a name that a client chose; the socket identity behind it changes when the client reconnects,
and the newest gets the answers. One identity has one session.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

import msgspec
import zmq

from live_sr import __version__
from live_sr.config import ServerSettings
from live_sr.errors import ConfigError, LiveSRError, ModelError, WireError
from live_sr.frame import Pixels
from live_sr.serve.mailbox import Client, Job, Mailbox
from live_sr.timing import Durations
from live_sr.upscaler import Upscaler
from live_sr.wire import codec
from live_sr.wire.messages import (
    MAX_MODELS,
    MAX_SIDE,
    REFUSAL_CODES,
    End,
    FrameMessage,
    Heartbeat,
    Hello,
    ModelInfo,
    Refusal,
    RefusalCode,
    Result,
    Welcome,
    fit_text,
)

CREDITS = 2  # one frame computing and one waiting keep the engine busy; more only adds latency
MAX_SESSIONS = 64  # a facility has fewer microscopes; bounds what names alone can take
SILENT_S = 60.0  # a client beats twice a second; after a minute its PC is off or asleep
SLOW_S = 10.0  # a client that has read nothing for so long is not showing frames any more
MAX_UNSENT = 64  # answers kept for a slow client; its credits hold the frames among them to a few
IN_SOCKET = 8  # messages each way per client inside ZeroMQ: results in flight plus a few heartbeats
TOO_LARGE_READ = 4  # times max_pixels that are still read, to be refused in words: binning was switched off
HEADER_ROOM = 64 * 1024  # bytes; above the codec's own limit, which then explains itself
PING_MS = 10_000  # ZeroMQ's own heartbeat, for peers that vanish without closing: pulled cable, dead tunnel
PING_TIMEOUT_MS = 30_000  # a slow link may be busy with one large frame for this long
BURST = 64  # messages read before results and chores get their turn
CHORES_S = 1.0  # sessions are counted in tens of seconds
RETRY_MS = 10  # until a full queue is tried again: a frame time of a fast camera
LINGER_MS = 1000  # at close, for the last results to leave
STOP_S = 30.0  # for the running computation; an engine that takes longer hangs

log = logging.getLogger(__name__)

State = Literal["new", "warming", "ready", "stopping", "stopped"]


@dataclass
class ModelStats:
    """What one model has done since the start: frames answered, calls of it, and their time."""

    frames: int = 0
    batches: int = 0
    busy_s: float = 0.0
    computed: Durations = field(default_factory=Durations)


@dataclass
class Stats:
    """Counters since the start. Changed by the socket thread only; others read single values.

    Attributes
    ----------
    models : dict
        By id of the model.
    unreachable : int
        Answers dropped because the client had gone.
    stale : int
        Results dropped because their session had ended.
    resent : int
        Frames offered again while still held: nothing was computed twice.
    slow_clients, silent_clients : int
        Sessions forgotten because the client did not read, or said nothing.
    """

    models: dict[str, ModelStats]
    refused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REFUSAL_CODES, 0))
    malformed: int = 0
    resent: int = 0
    unreachable: int = 0
    stale: int = 0
    slow_clients: int = 0
    silent_clients: int = 0

    @property
    def frames(self) -> int:
        """Frames answered with a result."""
        return sum(model.frames for model in self.models.values())

    @property
    def batches(self) -> int:
        """Calls of the engine."""
        return sum(model.batches for model in self.models.values())

    @property
    def busy_s(self) -> float:
        """Time that it spent computing."""
        return sum(model.busy_s for model in self.models.values())


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """A model, and what clients are told about it: this server's limit may be lower than the model's."""

    upscaler: Upscaler
    info: ModelInfo


@dataclass(eq=False)
class _Session:
    client: Client
    peer: bytes
    heard: float
    model: _Held  # of frames that name none
    unsent: deque[_Answer] = field(default_factory=deque)
    stuck_since: float = 0.0  # meaningful while something is unsent

    @property
    def name(self) -> str:
        return self.client[0]


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    message: Welcome | Result | Refusal
    pixels: Pixels | None
    job: Job | None  # whose hold ends when this has been sent


@dataclass(frozen=True, slots=True, eq=False)
class _Computed:
    """What the engine thread made of one batch: pixels, or why not, for each job."""

    model: ModelInfo
    outcomes: list[tuple[Job, Pixels | str]]
    started_ns: int
    took_s: float


class Server:
    """Models behind one address, as a context manager: entered, it listens; left, it has stopped.

    Parameters
    ----------
    upscalers : Upscaler or sequence of Upscaler
        Used by the engine thread alone from here on. The first is for those who ask for none.
    settings : ServerSettings
        Where to listen, what to warm, and the limits.

    Raises
    ------
    ConfigError
        For limits that contradict each other, no model, too many, or two of one name.
    ModelError
        When an upscaler's description of itself cannot be told to a client.
    """

    def __init__(self, upscalers: Upscaler | Sequence[Upscaler], settings: ServerSettings) -> None:
        self._settings = settings
        several = (upscalers,) if isinstance(upscalers, Upscaler) else upscalers
        held = [_Held(upscaler, _told_of(upscaler, settings.max_pixels)) for upscaler in several]
        self.models = tuple(model.info for model in held)
        max_bytes = settings.mailbox_mb * 1_000_000
        _check_models(self.models)
        for info in self.models:
            _check_limits(settings, info.max_pixels, info.frames, max_bytes)
        self._held = {model.info.sha256: model for model in held}  # the first is the default
        self.name = f"{socket.gethostname()[:64]}/{os.getpid()}/{secrets.token_hex(4)}"
        self.address = settings.bind
        self.stats = Stats({info.id: ModelStats() for info in self.models})
        self.mailbox = Mailbox(max_bytes=max_bytes, credits=CREDITS)
        self._sessions: dict[str, _Session] = {}
        self._by_peer: dict[bytes, _Session] = {}
        self._lives = 0
        self._computed: queue.SimpleQueue[_Computed | Literal["warm", "ended"]] = queue.SimpleQueue()
        self._computing_since_ns = 0
        self._unwell: set[str] = set()  # models whose last frame failed; owned by the engine thread
        self._stop_asked = False
        self._state: State = "new"
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._socket_thread = threading.Thread(target=self._serve, name="live-sr server socket", daemon=True)
        self._engine_thread = threading.Thread(target=self._compute, name="live-sr server engine", daemon=True)

    # ---------------------------------------------------------------- any thread

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.wait_stopped(None)

    def start(self) -> None:
        """Listen and begin to warm up; returns at once. ``address`` then has the true port.

        Raises
        ------
        ConfigError
            When the address is in use or cannot be listened on.
        """
        try:
            router = self._listen()
        except ConfigError:
            self._close()
            self._set("stopped")
            raise
        self._set("warming")
        self._router = router  # the socket thread's from here on
        self._engine_thread.start()
        self._socket_thread.start()

    def stop(self) -> None:
        """Ask the server to finish the running computation and end.

        Returns at once, takes no lock: may be called from any thread and from a signal handler.
        """
        self._stop_asked = True
        self._wake()

    def wait_ready(self, timeout: float | None) -> bool:
        """Wait until all models are warm; False when `timeout` (s) passes or the server ends first."""
        with self._changed:
            self._changed.wait_for(lambda: self._state not in ("new", "warming"), timeout)
            return self._state == "ready"

    def wait_stopped(self, timeout: float | None) -> bool:
        """Wait until the server has ended and its address is free again; False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._state == "stopped", timeout)

    @property
    def state(self) -> State:
        """Where in its life the server is."""
        return self._state

    @property
    def error(self) -> BaseException | None:
        """Why the server ended by itself; None while it runs and after :meth:`stop`."""
        return self._error

    @property
    def model(self) -> ModelInfo:
        """The first model, for those who ask for none."""
        return self.models[0]

    @property
    def sessions(self) -> int:
        """Clients known at present."""
        return len(self._sessions)

    @property
    def busy_ms(self) -> float:
        """How long the computation now running has taken; 0 when idle."""
        since = self._computing_since_ns
        return (time.monotonic_ns() - since) / 1e6 if since else 0.0

    def _wake(self) -> None:
        # Full: the socket thread has been woken already. Closed: it has ended.
        with contextlib.suppress(BlockingIOError, OSError):
            self._wake_in.send(b"w")

    def _set(self, state: State) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()

    # ---------------------------------------------------------------- the engine thread

    def _compute(self) -> None:
        try:
            self._warm()
            self._computed.put("warm")
            self._wake()
            while jobs := self.mailbox.take(self._settings.max_batch):
                self._computed.put(self._restore(jobs))
                self._wake()
        except BaseException as e:  # noqa: BLE001 - top of a thread: recorded, and the server ends
            self._error = e
        finally:
            self._computed.put("ended")
            self._wake()

    def _warm(self) -> None:
        for model in self._held.values():
            info = model.info
            shapes = [shape for shape in self._settings.warm_shapes if shape[0] * shape[1] <= info.max_pixels]
            try:
                model.upscaler.warm(shapes)
            except LiveSRError:
                raise
            except Exception as e:
                raise ModelError(
                    f"{info.id} failed to warm up for frames of {shapes} on {info.device}: {_told(e)}"
                ) from e

    def _restore(self, jobs: list[Job]) -> _Computed:
        started = self._computing_since_ns = time.monotonic_ns()
        model = self._held[jobs[0].model]
        outcomes = self._attempt(model, jobs)
        if len(jobs) > 1 and any(isinstance(outcome, str) for _, outcome in outcomes):
            # One frame must not fail its neighbours, and a batch may be too large where one frame is not.
            outcomes = [outcome for job in jobs for outcome in self._attempt(model, [job])]
        took_s = (time.monotonic_ns() - started) / 1e9
        self._computing_since_ns = 0
        return _Computed(model.info, outcomes, started, took_s)

    def _attempt(self, model: _Held, jobs: list[Job]) -> list[tuple[Job, Pixels | str]]:
        name = model.info.id
        try:
            restored = model.upscaler.upscale([job.pixels for job in jobs])
            _check(model.info, jobs, restored)
        except Exception as e:  # whatever a model raises fails these frames, not the server
            if name not in self._unwell:  # once, not for every frame of a model that fails them all
                log.exception("%s failed on a frame of %s", name, jobs[0].pixels.shape)
            self._unwell.add(name)
            return [(job, _told(e)) for job in jobs]
        self._unwell.discard(name)
        return list(zip(jobs, restored, strict=True))

    # ---------------------------------------------------------------- the socket thread

    def _serve(self) -> None:
        try:
            self._converse()
        except BaseException as e:  # noqa: BLE001 - top of a thread: recorded, and the server ends
            self._error = e
        finally:
            self.mailbox.close()
            self._close()
            self._set("stopped")

    def _converse(self) -> None:
        """Serve until stopped, or until the engine thread ends by itself."""
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake_out, zmq.POLLIN)
        chores_at = time.monotonic() + CHORES_S
        give_up_at = float("inf")
        while time.monotonic() < give_up_at:
            backlog = any(session.unsent for session in self._sessions.values())
            poller.poll(RETRY_MS if backlog else int(CHORES_S * 1000))
            self._drain_wakes()
            if self._stop_asked and self._state != "stopping":
                give_up_at = time.monotonic() + STOP_S
                self.mailbox.close()
                self._set("stopping")
            if self._collect():
                return
            for _ in range(BURST):
                if not self._receive():
                    break
            for session in list(self._sessions.values()):
                self._flush(session)
            if time.monotonic() >= chores_at:
                chores_at = time.monotonic() + CHORES_S
                self._forget_the_lost()
        self._error = LiveSRError(
            f"the engine was still at work {STOP_S:g} s after being told to stop, and was left behind"
        )

    def _receive(self) -> bool:
        try:
            peer, *parts = self._router.recv_multipart(flags=zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        self._on_message(peer.bytes, [part.buffer for part in parts])
        return True

    def _on_message(self, peer: bytes, parts: list[memoryview]) -> None:
        session = self._by_peer.get(peer)
        if session is not None:
            session.heard = time.monotonic()
        try:
            message, pixels = codec.decode(parts)
        except WireError as e:
            self._on_malformed(peer, str(e))
            return
        if isinstance(message, FrameMessage):
            assert pixels is not None
            self._on_frame(peer, message, pixels)
        elif isinstance(message, Heartbeat):
            self._on_heartbeat(peer, message)
        elif isinstance(message, Hello):
            self._on_hello(peer, message)
        elif isinstance(message, End):
            if session is not None and session.name == message.session:
                self._forget(session)
        else:
            self._on_malformed(peer, f"a client does not send {type(message).__name__}")

    def _on_malformed(self, peer: bytes, why: str) -> None:
        self.stats.malformed += 1
        self._refuse(peer, "", "malformed", why)

    def _on_hello(self, peer: bytes, hello: Hello) -> None:
        if self._state == "stopping":
            return  # unanswered: the client asks again until the next server comes
        models = self._held.values()
        model = next((m for m in models if hello.model in ("", m.info.id)), None)
        if model is None:
            held = f"this server holds {self._names}, not {hello.model}"
            why = f"{held}: ask for what it holds, or start another server"
            self._refuse(peer, hello.session, "unknown_model", why)
            return
        former = self._by_peer.pop(peer, None)
        if former is not None and former.name != hello.session:
            self._forget(former)
        session = self._sessions.get(hello.session)
        if session is None:
            if len(self._sessions) >= MAX_SESSIONS:
                why = f"{MAX_SESSIONS} clients are connected: end another one, or start another server"
                self._refuse(peer, hello.session, "busy", why)
                return
            self._lives += 1
            session = _Session((hello.session, self._lives), peer, time.monotonic(), model)
            self._sessions[hello.session] = session
        else:
            self._by_peer.pop(session.peer, None)
        session.peer, session.heard, session.model = peer, time.monotonic(), model
        self._by_peer[peer] = session
        self._welcome(session)

    def _welcome(self, session: _Session) -> None:
        warm = self._state == "ready"
        mine = session.model.info
        models = (mine, *(info for info in self.models if info is not mine))
        self._answer(session, Welcome(self.name, __version__, models, warm=warm, credits=CREDITS))

    def _on_frame(self, peer: bytes, frame: FrameMessage, pixels: Pixels) -> None:
        session = self._by_peer.get(peer)
        if session is None or session.name != frame.session:
            self._refuse(peer, frame.session, "not_ready", _HELLO_FIRST, frame.seq)
            return
        model = self._held.get(frame.model) if frame.model else session.model
        if model is None:
            no: tuple[RefusalCode, str] | None = (
                "unknown_model",
                f"this server holds {self._names}, not the model {frame.model[:12]}",
            )
        else:
            job = Job(session.client, frame.seq, pixels, time.monotonic_ns(), model.info.sha256)
            no = self._why_not(frame, model.info) or self._offer(job)
        if no is not None:
            self._answer(session, self._refusal(session.name, *no, seq=frame.seq))

    def _offer(self, job: Job) -> tuple[RefusalCode, str] | None:
        put = self.mailbox.put(job)
        if put == "no_credit":
            return "busy", f"{CREDITS} frames are in flight already: wait for an answer before the next one"
        if put == "full":
            return "busy", f"{self.mailbox.bytes / 1e6:.0f} MB of frames wait here: offer it again later"
        if put == "already_held":
            self.stats.resent += 1
        return None  # when the mailbox has closed, too: the frame is then offered to the next server

    def _why_not(self, frame: FrameMessage, model: ModelInfo) -> tuple[RefusalCode, str] | None:
        y, x = frame.shape
        if self._state == "warming":
            return "not_ready", f"{self._names}: warming up, wait for the second welcome"
        if y * x > model.max_pixels:
            return "too_large", (
                f"a frame of {y} × {x} is over this server's limit of {model.max_pixels} pixels: "
                "read out a smaller region, or raise max_pixels in the server's settings"
            )
        if max(y, x) * model.scale > MAX_SIDE:
            return (
                "too_large",
                f"{y} × {x}, enlarged {model.scale} times, is over {MAX_SIDE} pixels along one axis",
            )
        if frame.planes != model.frames:
            return "planes", (
                f"{model.id} sees {model.frames} frames at once, {frame.planes} arrived: "
                "send as many as the welcome says"
            )
        if frame.dtype not in model.dtypes:
            return "dtype", f"{model.id} takes {' or '.join(model.dtypes)}, not {frame.dtype}"
        return None

    @property
    def _names(self) -> str:
        return ", ".join(info.id for info in self.models)

    def _on_heartbeat(self, peer: bytes, question: Heartbeat) -> None:
        answer = Heartbeat(
            number=question.number, server=self.name, waiting=self.mailbox.frames, busy_ms=self.busy_ms
        )
        self._say(peer, answer)
        if peer not in self._by_peer:
            # Its results went to an identity that is no more: ZeroMQ reconnected by itself, or it was
            # forgotten. Were it not told, it would wait for them for ever.
            self._refuse(peer, "", "not_ready", _HELLO_FIRST)

    def _collect(self) -> bool:
        """Take over what the engine thread has done; True when it has ended."""
        while True:
            try:
                computed = self._computed.get_nowait()
            except queue.Empty:
                return False
            if computed == "ended":
                return True
            if isinstance(computed, _Computed):
                self._on_computed(computed)
            elif self._state == "warming":
                self._set("ready")
                for session in list(self._sessions.values()):
                    self._welcome(session)

    def _on_computed(self, computed: _Computed) -> None:
        stats = self.stats.models[computed.model.id]
        stats.batches += 1
        stats.busy_s += computed.took_s
        for job, outcome in computed.outcomes:
            stats.computed.add(computed.took_s * 1000)
            self._on_outcome(job, outcome, computed)

    def _on_outcome(self, job: Job, outcome: Pixels | str, computed: _Computed) -> None:
        name, _ = job.client
        session = self._sessions.get(name)
        if session is None or session.client != job.client:
            self.stats.stale += 1
            return
        if isinstance(outcome, str):
            self._answer(session, self._refusal(name, "failed", outcome, seq=job.seq), job=job)
            return
        y, x = outcome.shape
        result = Result(
            session=name,
            seq=job.seq,
            shape=(y, x),
            dtype="uint8" if outcome.dtype.itemsize == 1 else "uint16",
            model_sha256=computed.model.sha256,
            waited_ms=(computed.started_ns - job.arrived_ns) / 1e6,
            computed_ms=computed.took_s * 1000,
        )
        self._answer(session, result, outcome, job)

    def _answer(
        self,
        session: _Session,
        message: Welcome | Result | Refusal,
        pixels: Pixels | None = None,
        job: Job | None = None,
    ) -> None:
        """Send what a client must not miss; it waits its turn when the client is slow to read."""
        if not session.unsent:
            session.stuck_since = time.monotonic()
        session.unsent.append(_Answer(message, pixels, job))
        self._flush(session)
        if len(session.unsent) > MAX_UNSENT:
            self.stats.slow_clients += 1
            self._forget(session)

    def _flush(self, session: _Session) -> None:
        while session.unsent:
            answer = session.unsent[0]
            sent = self._say(session.peer, answer.message, answer.pixels)
            if sent == "full":
                return
            session.unsent.popleft()
            session.stuck_since = time.monotonic()
            if answer.job is not None:
                self.mailbox.done(answer.job)
            if sent == "sent" and isinstance(answer.message, Result):
                self.stats.models[self._held[answer.message.model_sha256].info.id].frames += 1

    def _refusal(self, session: str, code: RefusalCode, why: str, *, seq: int | None) -> Refusal:
        self.stats.refused[code] += 1
        return Refusal(session=session, code=code, message=fit_text(why), seq=seq)

    def _refuse(self, peer: bytes, session: str, code: RefusalCode, why: str, seq: int | None = None) -> None:
        """Refuse a peer without a session: said once, not kept for it."""
        self._say(peer, self._refusal(session, code, why, seq=seq))

    def _say(
        self, peer: bytes, message: Welcome | Heartbeat | Result | Refusal, pixels: Pixels | None = None
    ) -> Literal["sent", "full", "gone"]:
        parts = [peer, *codec.encode(message, pixels)]
        try:
            try:
                self._router.send_multipart(parts, flags=zmq.NOBLOCK, copy=False)
            except zmq.Again:
                _ = self._router.events  # makes ZeroMQ look whether the peer has taken something meanwhile
                self._router.send_multipart(parts, flags=zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return "full"
        except zmq.ZMQError as e:
            if e.errno != zmq.EHOSTUNREACH:
                raise
            self.stats.unreachable += 1
            return "gone"
        return "sent"

    def _forget_the_lost(self) -> None:
        now = time.monotonic()
        for session in list(self._sessions.values()):
            if now - session.heard > SILENT_S:
                self.stats.silent_clients += 1
                self._forget(session)
            elif session.unsent and now - session.stuck_since > SLOW_S:
                self.stats.slow_clients += 1
                self._forget(session)

    def _forget(self, session: _Session) -> None:
        self.mailbox.forget(session.client)
        self._sessions.pop(session.name, None)
        if self._by_peer.get(session.peer) is session:
            del self._by_peer[session.peer]

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_out.recv(4096):
                pass

    # ---------------------------------------------------------------- opening and closing

    def _listen(self) -> zmq.Socket[bytes]:
        bind = self._settings.bind
        router = self._context.socket(zmq.ROUTER)
        router.router_mandatory = True  # else ROUTER drops without a word what it cannot send
        router.linger = LINGER_MS
        router.sndhwm = router.rcvhwm = IN_SOCKET
        largest = max(info.max_pixels * 2 * info.frames for info in self.models)
        router.maxmsgsize = largest * TOO_LARGE_READ + HEADER_ROOM
        router.ipv6 = "[" in bind
        router.heartbeat_ivl = PING_MS
        router.heartbeat_timeout = PING_TIMEOUT_MS
        try:
            if _ipc_in_use(bind):
                raise zmq.ZMQError(zmq.EADDRINUSE)
            router.bind(bind)
        except zmq.ZMQError as e:
            if e.errno == zmq.EADDRINUSE:
                raise ConfigError(
                    f"{bind} is in use: another live-sr server, or another program, listens there. Stop it, or "
                    "choose another port here and on the client"
                ) from e
            raise ConfigError(f"cannot listen on {bind}: {e.strerror}") from e
        self.address = router.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        return router

    def _close(self) -> None:
        self._context.destroy(linger=LINGER_MS)
        self._wake_in.close()
        self._wake_out.close()


_HELLO_FIRST = "this server does not know the session (it was restarted, or heard nothing for long): say hello"


def _told_of(upscaler: Upscaler, max_pixels: int) -> ModelInfo:
    """What clients are told about a model, with the lower of its limit and this server's."""
    info = upscaler.info
    try:
        told = msgspec.convert(info, ModelInfo, from_attributes=True)
    except msgspec.ValidationError as e:
        raise ModelError(f"model {info.id!r} describes itself wrongly: {e}") from e
    return msgspec.structs.replace(told, max_pixels=min(max_pixels, told.max_pixels))


def _check(model: ModelInfo, jobs: Sequence[Job], restored: Sequence[Pixels]) -> None:
    if len(restored) != len(jobs):
        raise ModelError(f"{model.id} returned {len(restored)} results for {len(jobs)} frames")
    for job, pixels in zip(jobs, restored, strict=True):
        y, x = job.pixels.shape[-2:]
        expected = ((y * model.scale, x * model.scale), job.pixels.dtype)
        if (pixels.shape, pixels.dtype) != expected:
            raise ModelError(
                f"{model.id} returned {pixels.shape} {pixels.dtype} for a frame of {(y, x)} "
                f"{job.pixels.dtype}: expected {expected[0]} {expected[1]}"
            )


def _check_models(models: Sequence[ModelInfo]) -> None:
    if not 1 <= len(models) <= MAX_MODELS:
        raise ConfigError(f"{len(models)} models are named: a server holds 1 to {MAX_MODELS}")
    for a, b in itertools.combinations(models, 2):
        if a.id == b.id or a.sha256 == b.sha256:
            raise ConfigError(
                f"{a.id} ({a.sha256[:12]}) and {b.id} ({b.sha256[:12]}) cannot be told apart: name each model "
                "once, and give no two the same name"
            )


def _check_limits(settings: ServerSettings, max_pixels: int, frames: int, max_bytes: int) -> None:
    if settings.max_batch < 1:
        raise ConfigError(f"max_batch is {settings.max_batch}: at least 1 frame is computed at a time")
    if max_pixels < 1:
        raise ConfigError(f"max_pixels is {settings.max_pixels}: no frame would be accepted")
    nbytes = max_pixels * 2 * frames
    if nbytes > max_bytes:
        beside = f" and {frames - 1} neighbours" if frames > 1 else ""
        raise ConfigError(
            f"mailbox_mb = {settings.mailbox_mb} cannot hold one frame of max_pixels = {max_pixels}{beside} "
            f"({nbytes / 1e6:.0f} MB as uint16): raise the first or lower the second"
        )


def _ipc_in_use(bind: str) -> bool:
    """Whether a server listens on this ipc path already: ZeroMQ would silently take the path away from it."""
    path = bind.removeprefix("ipc://")
    if path == bind or path.startswith("@") or not hasattr(socket, "AF_UNIX"):
        return False
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        return probe.connect_ex(path) == 0
    return False


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, LiveSRError) else f"{type(error).__name__}: {error}"
