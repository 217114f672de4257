"""Turns messages into buffers and back. Opens no socket, imports no torch.

A message is one or two parts: a header (``LSR``, one protocol byte, msgpack) and, for frames and results, the
pixels as they lie in memory (C order, little endian). Everything a peer can get wrong becomes one
:class:`~live_sr.errors.WireError`; nothing is allocated from a peer's numbers before they are checked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeAlias

import msgspec
import numpy as np

from live_sr.errors import WireError
from live_sr.frame import Pixels
from live_sr.wire.messages import PROTOCOL, FrameMessage, Message, Result

Buffer: TypeAlias = bytes | bytearray | memoryview
MAGIC = b"LSR"
PREFIX = len(MAGIC) + 1
MAX_HEADER = 32 * 1024  # bytes; the largest legal header, a welcome to eight models, is under 16 kB

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)
_ITEMSIZE = {"uint8": 1, "uint16": 2}

assert sys.byteorder == "little", (
    "live-sr sends pixels as they lie in memory and supports little-endian machines"
)


def encode(message: Message, pixels: Pixels | None = None) -> list[Buffer]:
    """The parts to send. The pixel part is a view: `pixels` must not change until it has been sent.

    Only pixels that lie differently in memory (strided, or big endian as some TIFF files are) are copied.

    Parameters
    ----------
    pixels : (Y, X) or (planes, Y, X) uint8 or uint16
        Given exactly when the message is a :class:`FrameMessage` or a :class:`Result`.
    """
    header = MAGIC + bytes((PROTOCOL,)) + _encoder.encode(message)
    if pixels is None:
        return [header]
    as_sent = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    return [header, as_sent.data.cast("B")]


def decode(parts: Sequence[Buffer]) -> tuple[Message, Pixels | None]:
    """Check and read one message; the pixels are a read-only view of the second part.

    Raises
    ------
    WireError
        Whatever is wrong with the bytes.
    """
    if not 1 <= len(parts) <= 2:
        raise WireError(f"a message has one or two parts, this one has {len(parts)}")
    message = _decode_header(parts[0])
    carries_pixels = isinstance(message, FrameMessage | Result)
    if carries_pixels != (len(parts) == 2):
        raise WireError(f"{type(message).__name__} arrived {'without' if carries_pixels else 'with'} pixels")
    if not isinstance(message, FrameMessage | Result):
        return message, None
    y, x = message.shape
    planes = message.planes if isinstance(message, FrameMessage) else 1
    expected = planes * y * x * _ITEMSIZE[message.dtype]
    found = memoryview(parts[1]).nbytes
    if found != expected:
        many = f"{planes} × " if planes > 1 else ""
        raise WireError(f"{many}{y} × {x} {message.dtype} pixels take {expected} bytes, {found} arrived")
    pixels = np.frombuffer(parts[1], dtype=message.dtype).reshape((planes, y, x) if planes > 1 else (y, x))
    pixels.flags.writeable = False
    return message, pixels


def _decode_header(part: Buffer) -> Message:
    header = memoryview(part)
    if len(header) > MAX_HEADER:
        raise WireError(f"header of {len(header)} bytes: the limit is {MAX_HEADER}")
    if bytes(header[: len(MAGIC)]) != MAGIC or len(header) < PREFIX:
        raise WireError("not a live-sr message: another program may be using this port")
    if header[len(MAGIC)] != PROTOCOL:
        raise WireError(
            f"the peer speaks protocol {header[len(MAGIC)]}, this side {PROTOCOL}: "
            "install the same live-sr version on both machines"
        )
    try:
        message: Message = _decoder.decode(header[PREFIX:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise WireError(f"unreadable header: {e}") from e
    return message
