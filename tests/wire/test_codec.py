"""What is encoded is decoded to the same; whatever else arrives is one WireError."""

from __future__ import annotations

from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from live_sr.errors import WireError
from live_sr.frame import Pixels
from live_sr.neighbours import FRAME_COUNTS, MAX_FRAMES
from live_sr.wire import codec
from live_sr.wire.messages import (
    MAX_MODELS,
    MAX_SIDE,
    PROTOCOL,
    REFUSAL_CODES,
    End,
    FrameMessage,
    Heartbeat,
    Hello,
    Message,
    ModelInfo,
    Refusal,
    Result,
    Welcome,
)

PREFIX = codec.MAGIC + bytes((PROTOCOL,))
names = st.text(st.characters(codec="utf-8"), max_size=128)
counts = st.integers(0, 2**53)
ms = st.floats(0, 1e12)
pixels_2d = arrays.arrays(
    st.sampled_from([np.uint8, np.uint16]), arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20)
)
stacks = arrays.arrays(
    st.sampled_from([np.uint8, np.uint16]),
    st.tuples(st.integers(2, MAX_FRAMES), st.integers(1, 9), st.integers(1, 9)),
)
models = st.builds(
    ModelInfo,
    id=names,
    sha256=names,
    scale=st.integers(1, 16),
    precision=names,
    device=names,
    max_pixels=counts,
    dtypes=st.sampled_from([("uint8",), ("uint16",), ("uint8", "uint16"), ()]),
    pixel_size_um=st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)),
    frames=st.sampled_from(FRAME_COUNTS),
    neighbours=st.sampled_from(["t", "z", "t or z"]),
)
plain = st.one_of(
    st.builds(Hello, session=names, version=names, model=names),
    st.builds(
        Welcome,
        server=names,
        version=names,
        models=st.lists(models, min_size=1, max_size=MAX_MODELS).map(tuple),
        warm=st.booleans(),
        credits=st.integers(1, 64),
    ),
    st.builds(
        Refusal,
        session=names,
        code=st.sampled_from(REFUSAL_CODES),
        message=st.text(st.characters(codec="utf-8"), max_size=1024),
        seq=st.none() | counts,
    ),
    st.builds(Heartbeat, number=counts, server=names, waiting=counts, busy_ms=ms),
    st.builds(End, session=names),
)


def received(parts: list[codec.Buffer]) -> list[memoryview]:
    """The same bytes in other memory, as they come off a socket."""
    return [memoryview(bytes(part)) for part in parts]


@given(plain)
def test_a_message_without_pixels_comes_back_the_same(message: Message) -> None:
    assert codec.decode(received(codec.encode(message))) == (message, None)


@given(pixels_2d, names, counts, names)
def test_a_frame_comes_back_the_same(pixels: Pixels, session: str, seq: int, sha256: str) -> None:
    sent = FrameMessage(session, seq, pixels.shape, pixels.dtype.name, model=sha256)  # type: ignore[arg-type]
    message, back = codec.decode(received(codec.encode(sent, pixels)))
    assert message == sent
    assert back is not None
    assert back.dtype == pixels.dtype
    np.testing.assert_array_equal(back, pixels)


@given(stacks, names, counts)
def test_a_frame_with_its_neighbours_comes_back_the_same(pixels: Pixels, session: str, seq: int) -> None:
    planes, y, x = pixels.shape
    sent = FrameMessage(session, seq, (y, x), pixels.dtype.name, planes)  # type: ignore[arg-type]
    message, back = codec.decode(received(codec.encode(sent, pixels)))
    assert message == sent
    assert back is not None
    assert back.dtype == pixels.dtype
    np.testing.assert_array_equal(back, pixels)
    assert not back.flags.writeable


@given(pixels_2d, names, counts, names, ms, ms)
def test_a_result_comes_back_the_same(
    pixels: Pixels, session: str, seq: int, sha256: str, waited_ms: float, computed_ms: float
) -> None:
    sent = Result(
        session=session,
        seq=seq,
        shape=pixels.shape,
        dtype=pixels.dtype.name,  # type: ignore[arg-type]
        model_sha256=sha256,
        waited_ms=waited_ms,
        computed_ms=computed_ms,
    )
    message, back = codec.decode(received(codec.encode(sent, pixels)))
    assert message == sent
    assert back is not None
    np.testing.assert_array_equal(back, pixels)


def test_pixels_are_neither_copied_on_sending_nor_on_receiving() -> None:
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    parts = codec.encode(FrameMessage("s", 0, (3, 4), "uint16"), pixels)
    assert np.shares_memory(np.frombuffer(parts[1], np.uint16), pixels)
    _, back = codec.decode(parts)
    assert back is not None
    assert np.shares_memory(back, pixels)
    assert not back.flags.writeable
    assert pixels.flags.writeable


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(np.arange(48, dtype=np.uint16).reshape(6, 8)[::2, ::-2], id="strided"),
        pytest.param(np.arange(12, dtype=np.uint16).reshape(4, 3).T, id="Fortran order"),
        pytest.param(np.arange(300, 312, dtype=">u2").reshape(3, 4), id="big endian"),
    ],
)
def test_grey_values_survive_whatever_the_memory_layout(pixels: Pixels) -> None:
    assert pixels.shape == (3, 4)
    _, back = codec.decode(received(codec.encode(FrameMessage("s", 0, (3, 4), "uint16"), pixels)))
    assert back is not None
    np.testing.assert_array_equal(back, pixels)


def test_every_message_has_a_round_trip_here() -> None:
    tested = {Hello, Welcome, FrameMessage, Result, Refusal, Heartbeat, End}
    assert tested == set(get_args(Message))


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(Refusal("ß" * 128, "other_model", "€" * 1024, 2**53), id="refusal"),
        pytest.param(
            Welcome(
                server="€" * 128,
                version="€" * 128,
                models=(
                    ModelInfo(
                        id="€" * 128,
                        sha256="€" * 128,
                        scale=16,
                        precision="€" * 128,
                        device="€" * 128,
                        max_pixels=2**53,
                        dtypes=("uint8", "uint16"),
                        pixel_size_um=(0.1, 0.2),
                        frames=5,
                        neighbours="t or z",
                    ),
                )
                * MAX_MODELS,
                warm=True,
                credits=64,
            ),
            id="welcome",
        ),
    ],
)
def test_the_longest_legal_header_is_well_within_the_limit(message: Message) -> None:
    (header,) = codec.encode(message)
    assert len(header) < codec.MAX_HEADER / 2
    assert codec.decode([header])[0] == message


def head(**fields: object) -> bytes:
    return PREFIX + msgspec.msgpack.encode(fields)


FRAME = {"type": "frame", "session": "s", "seq": 0, "shape": (2, 3), "dtype": "uint16"}


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        pytest.param([], "one or two parts", id="nothing"),
        pytest.param([b"", b"", b""], "has 3", id="three parts"),
        pytest.param([b""], "not a live-sr message", id="empty"),
        pytest.param([b"LSR"], "not a live-sr message", id="no version"),
        pytest.param([b"GET / HTTP/1.1\r\n"], "another program", id="http"),
        pytest.param(
            [b"LSR" + bytes((PROTOCOL + 1,))], f"protocol {PROTOCOL + 1}, this side", id="newer protocol"
        ),
        pytest.param([b"LSR\x02\x80"], "protocol 2, this side 3: install the same", id="older protocol"),
        pytest.param(
            [
                PREFIX
                + msgspec.msgpack.encode(
                    {"type": "welcome", "server": "s", "version": "1", "models": [], "warm": True, "credits": 2}
                )
            ],
            "length >= 1",
            id="no model",
        ),
        pytest.param([PREFIX], "unreadable header", id="no body"),
        pytest.param([PREFIX + b"\xc1"], "unreadable header", id="no msgpack"),
        pytest.param([PREFIX + b"\x91" * 16_000], "unreadable header", id="deep nesting"),
        pytest.param(
            [PREFIX + b"\x82\xa4type\xa3end\xa1x" + b"\x91" * 16_000], "unreadable", id="deep unknown field"
        ),
        pytest.param([PREFIX + b"\x82\xa4type\xa3end\xa7session\xa1\xff"], "unreadable header", id="bad UTF-8"),
        pytest.param([PREFIX + b"\xdd\xff\xff\xff\xff"], "unreadable header", id="array of 4 G elements"),
        pytest.param([head(type="end", session="s") + b"x"], "trailing", id="trailing bytes"),
        pytest.param([bytes(codec.MAX_HEADER + 1)], "the limit is", id="huge header"),
        pytest.param([head(type="exec", session="s")], "exec", id="unknown type"),
        pytest.param([head(type="end")], "session", id="field missing"),
        pytest.param([head(type="end", session="s" * 129)], "128", id="long name"),
        pytest.param([head(type="end", session=7)], "Expected `str`", id="wrong type"),
        pytest.param([head(type="heartbeat", number=-1)], "number", id="negative count"),
        pytest.param([head(type="heartbeat", number=1, busy_ms=float("nan"))], "busy_ms", id="NaN"),
        pytest.param([head(type="heartbeat", number=1, busy_ms=float("inf"))], "busy_ms", id="infinity"),
        pytest.param([head(type="heartbeat", number=1), b"x"], "with pixels", id="pixels too many"),
        pytest.param([head(**FRAME)], "without pixels", id="pixels missing"),
        pytest.param([head(**FRAME), bytes(11)], "take 12 bytes, 11 arrived", id="short pixels"),
        pytest.param([head(**FRAME), bytes(13)], "take 12 bytes, 13 arrived", id="long pixels"),
        pytest.param([head(**FRAME | {"shape": (0, 3)}), b""], "shape", id="empty frame"),
        pytest.param([head(**FRAME | {"shape": (-2, -3)}), bytes(12)], "shape", id="negative side"),
        pytest.param([head(**FRAME | {"shape": (2, 3, 1)}), bytes(12)], "shape", id="three axes"),
        pytest.param([head(**FRAME | {"shape": (MAX_SIDE + 1, 1)}), bytes(12)], "shape", id="side too long"),
        pytest.param(
            [head(**FRAME | {"shape": (MAX_SIDE, MAX_SIDE)}), bytes(12)], "12 arrived", id="claims 8 GB"
        ),
        pytest.param([head(**FRAME | {"planes": 0}), b""], "planes", id="no plane"),
        pytest.param([head(**FRAME | {"planes": -1}), bytes(12)], "planes", id="negative planes"),
        pytest.param([head(**FRAME | {"planes": MAX_FRAMES + 1}), bytes(72)], "planes", id="too many planes"),
        pytest.param([head(**FRAME | {"planes": 3}), bytes(12)], "take 36 bytes, 12", id="planes missing"),
        pytest.param([head(**FRAME), bytes(36)], "take 12 bytes, 36 arrived", id="planes not announced"),
        pytest.param(
            [head(**FRAME | {"shape": (MAX_SIDE, MAX_SIDE), "planes": 5}), bytes(60)],
            "60 arrived",
            id="claims 43 GB",
        ),
        pytest.param([head(**FRAME | {"dtype": "float32"}), bytes(24)], "dtype", id="dtype not allowed"),
        pytest.param([head(**FRAME | {"dtype": "object"}), bytes(48)], "dtype", id="objects"),
    ],
)
def test_what_is_wrong_is_named(parts: list[bytes], says: str) -> None:
    with pytest.raises(WireError, match=says):
        codec.decode(parts)


def only_wire_error(parts: list[bytes]) -> None:
    try:
        message, pixels = codec.decode(parts)
    except WireError:
        return
    assert isinstance(message, get_args(Message))
    assert (pixels is not None) == isinstance(message, FrameMessage | Result)


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_noise_is_a_wire_error_and_nothing_else(parts: list[bytes]) -> None:
    only_wire_error(parts)


@given(st.binary(max_size=300), st.lists(st.binary(max_size=64), max_size=1))
@example(b"\xc7\xff\xff" + bytes(255), [])
def test_noise_behind_a_right_prefix_is_a_wire_error_and_nothing_else(body: bytes, rest: list[bytes]) -> None:
    only_wire_error([PREFIX + body, *rest])


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
FIELDS = [
    "session",
    "seq",
    "shape",
    "dtype",
    "planes",
    "code",
    "message",
    "number",
    "model",
    "warm",
    "credits",
    "version",
    "server",
]
TYPES = ["hello", "welcome", "frame", "result", "refusal", "heartbeat", "end"]


@given(
    st.sampled_from(TYPES),
    st.dictionaries(st.sampled_from(FIELDS), JSON),
    st.lists(st.binary(max_size=64), max_size=1),
)
def test_right_names_with_any_values_are_a_wire_error_and_nothing_else(
    kind: str, fields: dict[str, object], rest: list[bytes]
) -> None:
    try:
        header = head(type=kind, **fields)
    except UnicodeEncodeError:  # half a surrogate pair: no sender could say it either
        return
    only_wire_error([header, *rest])


@given(plain, st.data())
def test_one_changed_or_missing_byte_is_a_wire_error_or_another_message(
    message: Message, data: st.DataObject
) -> None:
    (header,) = codec.encode(message)
    at = data.draw(st.integers(0, len(header) - 1))
    changed = bytearray(header)
    changed[at] = data.draw(st.integers(0, 255))
    only_wire_error([bytes(changed)])
    only_wire_error([bytes(header[:at])])
