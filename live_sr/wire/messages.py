"""The messages of the protocol. Plain frozen values; knows neither bytes nor sockets.

A conversation, as the client sees it::

    Hello            ->
                     <-  Welcome (again when the server has warmed up), or Refusal without seq
    Frame + pixels   ->
                     <-  Result + pixels, or Refusal with seq
    Heartbeat        ->
                     <-  Heartbeat, same number
    End              ->

One frame in flight costs one credit of those granted in the Welcome; a Result or a Refusal gives it back.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct

from live_sr.neighbours import MAX_FRAMES, FrameCount, Neighbours

PROTOCOL = 3

MAX_MODELS = 8  # on one server: more than anyone compares, and a welcome stays a small message
MAX_SIDE = 65_536  # pixels along one axis; larger than any detector, small enough that y * x fits 64 bits
Name = Annotated[str, Meta(max_length=128)]
MAX_TEXT = 1024  # characters; a sentence or two
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Side = Annotated[int, Meta(ge=1, le=MAX_SIDE)]
Shape = tuple[Side, Side]
Planes = Annotated[int, Meta(ge=1, le=MAX_FRAMES)]
Dtype = Literal["uint8", "uint16"]
Milliseconds = Annotated[float, Meta(ge=0, le=1e12)]

RefusalCode = Literal[
    "too_large", "dtype", "planes", "unknown_model", "other_model", "busy", "not_ready", "malformed", "failed"
]
REFUSAL_CODES: tuple[str, ...] = get_args(RefusalCode)


class Hello(Struct, frozen=True, tag="hello"):
    """Opens or re-opens a session. `model` empty: the server's first."""

    session: Name
    version: Name
    model: Name = ""


class ModelInfo(Struct, frozen=True):
    """A model that a server holds; see :class:`live_sr.upscaler.UpscalerInfo`."""

    id: Name
    sha256: Name
    scale: Annotated[int, Meta(ge=1, le=16)]
    precision: Name
    device: Name
    max_pixels: Count
    dtypes: tuple[Dtype, ...]
    pixel_size_um: tuple[float, float] | None = None
    frames: FrameCount = 1
    neighbours: Neighbours = "t or z"

    @property
    def look_ahead(self) -> int:
        """How many later frames of its series a frame waits for."""
        return self.frames // 2


class Welcome(Struct, frozen=True, tag="welcome"):
    """The server's answer: what it holds, whether it is warm, how many frames may be in flight.

    Of the `models` the first is the session's: the one asked for in the Hello, or the server's first.
    """

    server: Name
    version: Name
    models: Annotated[tuple[ModelInfo, ...], Meta(min_length=1, max_length=MAX_MODELS)]
    warm: bool
    credits: Annotated[int, Meta(ge=1, le=64)]


class FrameMessage(Struct, frozen=True, tag="frame"):
    """One raw frame; its pixels follow as the second part.

    For a multi-frame model they are the `planes` frames of `shape` that it needs, one after the other, the one
    to restore in the middle. Each message is complete: the server remembers no frame, and may be sent the same
    one again.

    `model` is the sha256 of the model that shall restore it, one of those in the Welcome; empty: the session's.
    """

    session: Name
    seq: Count
    shape: Shape
    dtype: Dtype
    planes: Planes = 1
    model: Name = ""


class Result(Struct, frozen=True, tag="result"):
    """One super-resolved frame; its pixels follow. Durations are by the server's clock."""

    session: Name
    seq: Count
    shape: Shape
    dtype: Dtype
    model_sha256: Name
    waited_ms: Milliseconds
    computed_ms: Milliseconds


class Refusal(Struct, frozen=True, tag="refusal"):
    """What the server will not or could not do, and why. Without `seq` it concerns the whole session."""

    session: Name
    code: RefusalCode
    message: Text
    seq: Count | None = None


class Heartbeat(Struct, frozen=True, tag="heartbeat"):
    """Asked by the client, answered by the server with what its engine is doing.

    `busy_ms` is how long the computation now running has taken; 0 when idle. `server` is the answering
    server's name as in its Welcome, empty in the question: a changed name tells that the server was
    restarted behind an unbroken socket and has forgotten the session.
    """

    number: Count
    server: Name = ""
    waiting: Count = 0
    busy_ms: Milliseconds = 0.0


class End(Struct, frozen=True, tag="end"):
    """The client is done: the server forgets the session and its waiting frames."""

    session: Name


def fit_text(text: str) -> str:
    """Make `text` fit a message: bounded, and without what UTF-8 cannot say (parts of odd file names)."""
    return text[:MAX_TEXT].encode("utf-8", "replace").decode()


FromClient = Hello | FrameMessage | Heartbeat | End
FromServer = Welcome | Result | Refusal | Heartbeat
Message = Hello | Welcome | FrameMessage | Result | Refusal | Heartbeat | End
