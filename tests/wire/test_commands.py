"""Commands come back the same; whatever else arrives is one WireError."""

from __future__ import annotations

import contextlib
from typing import get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from live_sr.errors import WireError
from live_sr.wire import commands
from live_sr.wire.commands import (
    COMMANDS,
    MAX_BYTES,
    PREFIX,
    PROTOCOL,
    Cancel,
    Choose,
    Command,
    Pause,
    Reply,
    ReplyCode,
    Request,
    Start,
    SuperResolve,
    decode_reply,
    decode_request,
    encode,
)

names = st.text(st.characters(codec="utf-8"), max_size=128)
any_command = st.one_of(
    st.builds(Choose, model=names, channel=names),
    st.builds(SuperResolve, on=st.booleans()),
    st.builds(Pause, on=st.booleans()),
    st.just(Cancel()),
    st.just(Start()),
)
requests = st.builds(Request, token=st.text(st.characters(codec="utf-8"), max_size=256), command=any_command)


@given(requests)
def test_a_request_comes_back_the_same(request: Request) -> None:
    assert decode_request(encode(request)) == request


@given(st.sampled_from(get_args(ReplyCode)), st.text(st.characters(codec="utf-8"), max_size=1024))
def test_a_reply_comes_back_the_same(code: ReplyCode, message: str) -> None:
    reply = decode_reply(encode(Reply(code, message)))
    assert (reply.code, reply.message, reply.ok) == (code, message, code == "done")


def test_the_longest_messages_are_within_the_limit() -> None:
    assert len(encode(Request("€" * 256, Choose("€" * 128, "€" * 128)))) < MAX_BYTES
    assert len(encode(Reply("not_allowed", "€" * 1024))) < MAX_BYTES


def test_every_command_has_a_name_and_no_two_the_same() -> None:
    kinds: tuple[type[Command], ...] = get_args(Command)
    assert tuple(kind.__struct_config__.tag for kind in kinds) == COMMANDS
    assert commands.name_of(SuperResolve(False)) == "sr"


def test_a_token_does_not_get_into_a_log() -> None:
    assert "secret" not in repr(Request("secret of this user", Cancel()))


def request(**fields: object) -> bytes:
    return PREFIX + msgspec.msgpack.encode(fields)


@pytest.mark.parametrize(
    ("part", "says"),
    [
        pytest.param(b"", "another program", id="empty"),
        pytest.param(b"LSC", "another program", id="no version"),
        pytest.param(b"LSR\x03\x80", "another program", id="of the frames' socket"),
        pytest.param(b"LSC" + bytes((PROTOCOL + 1,)), "the same live-sr version", id="newer"),
        pytest.param(PREFIX, "unreadable", id="no body"),
        pytest.param(PREFIX + b"\x91" * 8000, "unreadable", id="deep nesting"),
        pytest.param(bytes(MAX_BYTES + 1), "the limit is", id="long"),
        pytest.param(request(token="t"), "command", id="no command"),
        pytest.param(request(token="t" * 257, command={"type": "start"}), "256", id="long token"),
        pytest.param(request(token="t", command={"type": "shutdown"}), "shutdown", id="unknown command"),
        pytest.param(request(token="t", command={"type": "sr", "on": 1}), "bool", id="wrong type"),
        pytest.param(
            request(token="t", command={"type": "start", "x": 1}), "unknown field", id="field too many"
        ),
        pytest.param(request(token="t", command={"type": "choose", "model": "m" * 129}), "128", id="long name"),
    ],
)
def test_what_is_no_request_is_refused_with_the_reason(part: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        decode_request(part)


@given(st.binary(max_size=300), st.booleans())
@example(b"\x81\xa4code\xa4done", True)
def test_any_bytes_are_read_or_refused(noise: bytes, prefixed: bool) -> None:
    part = PREFIX + noise if prefixed else noise
    for decode in (decode_request, decode_reply):
        try:
            message = decode(part)
        except WireError:
            continue
        assert isinstance(message, Request | Reply)


@given(requests, st.data())
def test_a_request_with_bytes_changed_is_read_or_refused(request: Request, data: st.DataObject) -> None:
    part = bytearray(encode(request))
    for _ in range(data.draw(st.integers(1, 3))):
        part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        assert isinstance(decode_request(bytes(part)), Request)
