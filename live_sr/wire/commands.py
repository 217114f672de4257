"""What an operator may ask of a running acquisition, and their bytes. Opens no socket, knows no microscope.

One request, one reply, one part each: a prefix (``LSC``, one protocol byte) and msgpack. It is a channel of its
own, beside that of the frames: the feed is one way, and a viewer that only looks needs no token.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

from live_sr.errors import WireError
from live_sr.wire.messages import Name, Text

MAGIC = b"LSC"
PROTOCOL = 1
PREFIX = MAGIC + bytes((PROTOCOL,))
MAX_BYTES = 8 * 1024  # of a request or a reply; the largest legal ones take under 4 kB

CommandName = Literal["choose", "sr", "pause", "cancel", "start"]
COMMANDS: tuple[CommandName, ...] = get_args(CommandName)

ReplyCode = Literal["done", "token", "not_allowed", "impossible", "malformed", "failed"]


class Choose(Struct, frozen=True, tag="choose", forbid_unknown_fields=True):
    """Restore the frames of `channel` with `model` from now on.

    Attributes
    ----------
    model : str
        Its id, one of ``FeedStatus.control.models``; empty gives a named channel back to the model of the rest.
    channel : str
        As in ``FeedStatus.sequence.channels``; empty stands for every channel not named.
    """

    model: Name
    channel: Name = ""


class SuperResolve(Struct, frozen=True, tag="sr", forbid_unknown_fields=True):
    """Off: frames are only stored, and super-resolved later."""

    on: bool


class Pause(Struct, frozen=True, tag="pause", forbid_unknown_fields=True):
    """Pause the running sequence; `on` False lets it go on."""

    on: bool = True


class Cancel(Struct, frozen=True, tag="cancel", forbid_unknown_fields=True):
    """End the running sequence."""


class Start(Struct, frozen=True, tag="start", forbid_unknown_fields=True):
    """Let the program begin that waits for the operator."""


Command = Choose | SuperResolve | Pause | Cancel | Start


class Request(Struct, frozen=True, forbid_unknown_fields=True):
    """A command, and the secret that allows it; see :mod:`live_sr.wire.token`."""

    token: Annotated[str, Meta(max_length=256)]
    command: Command

    def __repr__(self) -> str:
        """Without the token, which must not get into a log."""
        return f"Request({self.command})"


class Reply(Struct, frozen=True):
    """What became of a command.

    Attributes
    ----------
    code : str
        "done"; or why not: wrong "token", "not_allowed" in this session, "impossible" at present, "malformed"
        request, "failed" in the microscope's own software.
    message : str
        One sentence for the operator.
    """

    code: ReplyCode
    message: Text = ""

    @property
    def ok(self) -> bool:
        """Whether it was done."""
        return self.code == "done"


def name_of(command: Command) -> CommandName:
    """As in ``allow`` and in ``FeedStatus.control.allowed``."""
    name: CommandName = command.__struct_config__.tag  # type: ignore[assignment]
    return name


_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)
_replies = msgspec.msgpack.Decoder(Reply)
_T = TypeVar("_T")


def encode(message: Request | Reply) -> bytes:
    """The one part to send."""
    return PREFIX + _encoder.encode(message)


def decode_request(part: bytes | memoryview) -> Request:
    """Check and read a request.

    Raises
    ------
    WireError
        Whatever is wrong with the bytes.
    """
    return _decode(part, _requests)


def decode_reply(part: bytes | memoryview) -> Reply:
    """Check and read a reply.

    Raises
    ------
    WireError
        Whatever is wrong with the bytes.
    """
    return _decode(part, _replies)


def _decode(part: bytes | memoryview, decoder: msgspec.msgpack.Decoder[_T]) -> _T:
    view = memoryview(part)
    if len(view) > MAX_BYTES:
        raise WireError(f"{len(view)} bytes: the limit is {MAX_BYTES}")
    if bytes(view[: len(MAGIC)]) != MAGIC or len(view) < len(PREFIX):
        raise WireError("not a live-sr command: another program may be using this port")
    if view[len(MAGIC)] != PROTOCOL:
        raise WireError(
            f"the peer speaks control protocol {view[len(MAGIC)]}, this side {PROTOCOL}: "
            "use the same live-sr version for the acquisition and the view"
        )
    try:
        return decoder.decode(view[len(PREFIX) :])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise WireError(f"unreadable: {e}") from e
