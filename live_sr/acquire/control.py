"""Takes an operator's commands on a socket, checks who asks, and has them obeyed. Knows no camera and no frame.

One thread owns the ROUTER socket. Whoever asks must know the user's token (:mod:`live_sr.wire.token`), may ask
only for what the session allows, and is told what became of it. Only this machine can reach it.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import zmq

from live_sr.acquire.conduct import Conductor
from live_sr.errors import ConfigError, LiveSRError, WireError
from live_sr.wire.commands import (
    COMMANDS,
    MAX_BYTES,
    Cancel,
    Choose,
    Command,
    Pause,
    Reply,
    Start,
    SuperResolve,
    decode_request,
    encode,
    name_of,
)
from live_sr.wire.messages import fit_text
from live_sr.wire.security import check_bind

log = logging.getLogger("live_sr")
# After a message without the token: five guesses a second, and nobody keeps the thread busy. Peers take turns,
# so a command waits no longer than this for each other one that is at it.
WRONG_S = 0.2
ENOUGH_WAITING = 8  # requests of one peer: it asks one at a time
LINGER_MS = 200  # at the end, for the last reply to leave


class Steered(Protocol):
    """The session, as far as commands reach it."""

    def choose(self, model_id: str, channel: str = "") -> None:
        """Restore frames with another model."""

    def super_resolve(self, on: bool) -> None:
        """Switch super-resolution off and on."""


def obey(session: Steered, conductor: Conductor, command: Command) -> str:
    """Do what an operator asks.

    Returns
    -------
    str
        One sentence to answer with.

    Raises
    ------
    LiveSRError
        When it is impossible at present, with the reason.
    """
    match command:
        case Choose(model, channel):
            session.choose(model, channel)
            of = f"frames of {channel}" if channel else "frames of all channels that are not named"
            return f"{model or 'the model of the rest'} restores {of} from now on"
        case SuperResolve(on):
            session.super_resolve(on)
            return "frames are super-resolved again" if on else "frames are stored, and super-resolved later"
        case Pause(on):
            conductor.pause(on)
            return "the sequence pauses after the frame being exposed" if on else "the sequence goes on"
        case Cancel():
            conductor.cancel()
            return "the sequence ends after the frame being exposed"
        case Start():
            conductor.start()
            return "started"


class Control:
    """The commands of one session. Its address is taken at once, commands from :meth:`start` on.

    Parameters
    ----------
    address : str
        Loopback or ipc; port ``*`` takes a free one, see :attr:`address`.
    token : str
        What a request must carry.
    allow : sequence of str
        Names of the commands that are taken, of :data:`~live_sr.wire.commands.COMMANDS`.
    obey : callable
        ``(command) -> sentence`` for the operator, on the control thread; raises LiveSRError with the reason.

    Raises
    ------
    ConfigError
        When the address cannot be listened on, or `allow` names what is no command.
    """

    def __init__(
        self, address: str, *, token: str, allow: Sequence[str], obey: Callable[[Command], str]
    ) -> None:
        check_bind(address)
        if unknown := [name for name in allow if name not in COMMANDS]:
            raise ConfigError(f"allow names {', '.join(unknown)}: the commands are {', '.join(COMMANDS)}")
        self.allowed: tuple[str, ...] = tuple(name for name in COMMANDS if name in allow)
        self._token = token.encode()
        self._obey = obey
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = LINGER_MS
        self._router.maxmsgsize = MAX_BYTES
        self._router.sndhwm = self._router.rcvhwm = ENOUGH_WAITING
        self._router.ipv6 = "[" in address
        try:
            self._router.bind(address)
        except zmq.ZMQError as e:
            self._context.destroy(linger=0)
            raise ConfigError(
                f"cannot take commands on {address}: {e.strerror}. Name another address, or tcp://127.0.0.1:*"
            ) from e
        self.address = self._router.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._said = False
        self._ended = threading.Event()
        self._wake_in, self._wake_out = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name=f"live-sr control {self.address}", daemon=True)

    def start(self) -> None:
        """Take commands from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more commands; that which is being obeyed is finished first."""
        self._ended.set()
        self._wake_in.send(b"w")
        if self._thread.ident is not None:
            self._thread.join(timeout=10)
            assert not self._thread.is_alive(), "a command is obeyed at once"
        self._context.destroy(linger=LINGER_MS)
        self._wake_in.close()
        self._wake_out.close()

    # ---------------------------------------------------------------- the control thread

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake_out, zmq.POLLIN)
        try:
            while not self._ended.is_set():
                poller.poll()
                self._answer_one()
        except Exception:  # the top of a thread: the acquisition goes on without commands
            log.exception("live-sr takes no commands any more")

    def _answer_one(self) -> None:
        try:
            peer, *parts = self._router.recv_multipart(flags=zmq.NOBLOCK)
        except zmq.Again:
            return
        reply = self._reply(parts)
        with contextlib.suppress(zmq.Again):  # a peer that asks and does not listen
            self._router.send_multipart([peer, encode(reply)], flags=zmq.NOBLOCK)
        if reply.code in ("token", "malformed"):
            self._ended.wait(WRONG_S)

    def _reply(self, parts: Sequence[bytes]) -> Reply:
        if len(parts) != 1:
            return Reply("malformed", f"a request has one part, this one has {len(parts)}")
        try:
            request = decode_request(parts[0])
        except WireError as e:
            return Reply("malformed", fit_text(str(e)))
        if not hmac.compare_digest(request.token.encode(), self._token):
            if not self._said:
                self._said = True
                log.warning("somebody sent a command with a wrong token (said once, others may follow)")
            return Reply("token", "the token is wrong")
        name = name_of(request.command)
        if name not in self.allowed:
            allowed = ", ".join(self.allowed) or "nothing"
            return Reply(
                "not_allowed", f"this session does not take {name!r} from outside, it allows: {allowed}"
            )
        try:
            return Reply("done", fit_text(self._obey(request.command)))
        except LiveSRError as e:
            return Reply("impossible", fit_text(str(e)))
        except (
            Exception
        ) as e:  # of pymmcore-plus, or a mistake of ours: the operator is told, the channel stays
            log.exception("live-sr could not obey %s", request.command)
            return Reply("failed", fit_text(f"{type(e).__name__}: {e}"))
