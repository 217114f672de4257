"""Sends an operator's commands to a running acquisition, and hears what became of them. Knows no microscope."""

from __future__ import annotations

import zmq

from live_sr.errors import LiveSRError
from live_sr.wire.commands import (
    MAX_BYTES,
    Cancel,
    Choose,
    Command,
    Pause,
    Reply,
    Request,
    Start,
    SuperResolve,
    decode_reply,
    encode,
)
from live_sr.wire.security import check_bind
from live_sr.wire.token import control_token

__all__ = [
    "Cancel",
    "Choose",
    "Command",
    "ControlClient",
    "Pause",
    "Reply",
    "Start",
    "SuperResolve",
    "control_token",
]

TIMEOUT_S = 5.0  # a command is obeyed in milliseconds; an acquisition that is silent this long has ended


class ControlClient:
    """Asks one acquisition. Thread-safe; keeps nothing open between two requests.

    Parameters
    ----------
    address : str
        ``FeedStatus.control.address`` of the acquisition; on this machine, or the token would leave it.
    token : str
        See :func:`live_sr.wire.token.control_token`.
    timeout_s : float
        How long to wait for each answer.

    Raises
    ------
    ConfigError
        When the address is none, or that of another machine.

    Examples
    --------
    >>> client = ControlClient("tcp://127.0.0.1:5757", control_token())  # doctest: +SKIP
    >>> client.request(Choose("em-x4-nano", channel="FITC")).message  # doctest: +SKIP
    'em-x4-nano restores the frames of FITC from now on'
    """

    def __init__(self, address: str, token: str, timeout_s: float = TIMEOUT_S) -> None:
        check_bind(address)
        self.address = address
        self._token = token
        self._timeout_s = timeout_s

    def request(self, command: Command) -> Reply:
        """Ask for `command`; a refusal is a :class:`Reply` that is not ``ok`` and says why.

        Raises
        ------
        LiveSRError
            When nobody answers in time.
        WireError
            When the answer is not one.
        """
        # A socket for each request: a late answer to an earlier one cannot be taken for this one's, and a
        # command that nobody took is dropped with it instead of being obeyed by whoever comes later.
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.ipv6 = "[" in self.address
            dealer.maxmsgsize = MAX_BYTES
            dealer.connect(self.address)
            dealer.send(encode(Request(self._token, command)))
            if not dealer.poll(int(self._timeout_s * 1000)):
                raise LiveSRError(
                    f"the acquisition at {self.address} did not answer within {self._timeout_s:g} s: it has "
                    "ended, or hangs. Its status shows whether the command was obeyed"
                )
            return decode_reply(dealer.recv())
