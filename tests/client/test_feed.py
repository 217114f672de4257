from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from live_sr.client import feed as feed_module
from live_sr.client.feed import (
    MAX_HEADER,
    PREFIX,
    Feed,
    FeedFrame,
    FeedStatus,
    FrameInfo,
    ServerStatus,
    Shown,
    decode,
    frame_message,
    status_message,
)
from live_sr.errors import ConfigError, InputError, WireError

ADDRESS = "tcp://127.0.0.1:*"
PATIENCE_MS = 20_000  # for a loaded machine; nothing waits this long when it works


class Viewer:
    """A real subscriber that reads when told to."""

    def __init__(self, context: zmq.Context[Any], address: str) -> None:
        self.socket = context.socket(zmq.SUB)
        self.socket.linger = 0
        self.socket.rcvhwm = 2
        self.socket.subscribe(b"")
        self.socket.connect(address)

    def next(self) -> Shown | FeedStatus:
        assert self.socket.poll(PATIENCE_MS), "nothing was published"
        return decode(self.socket.recv())

    def frame(self) -> Shown:
        while True:
            content = self.next()
            if isinstance(content, Shown):
                return content

    def status(self) -> FeedStatus:
        while True:
            content = self.next()
            if isinstance(content, FeedStatus):
                return content


Connect = Callable[[Feed], Viewer]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Opens viewers, and closes them after the test."""
    viewers: list[Viewer] = []
    with zmq.Context() as context:

        def connect(feed: Feed) -> Viewer:
            viewers.append(Viewer(context, feed.address))
            return viewers[-1]

        yield connect
        for viewer in viewers:
            viewer.socket.close()


@pytest.fixture
def feed() -> Iterator[Feed]:
    with Feed(ADDRESS, max_rate_hz=500) as feed:
        yield feed


@pytest.fixture
def viewer(feed: Feed, connect: Connect) -> Viewer:
    viewer = connect(feed)
    viewer.status()  # it is connected when the first status has come
    return viewer


def info(seq: int = 0, *, age_ms: float = 0.0, **changes: Any) -> FrameInfo:
    captured_ns = time.monotonic_ns() - int(age_ms * 1e6)
    return FrameInfo(**{"session": "s", "seq": seq, "captured_ns": captured_ns, **changes})


def planes(seq: int = 0, side: int = 16) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    rng = np.random.default_rng(seq)
    raw = rng.integers(0, 65535, (side, side + 3), dtype=np.uint16)
    return raw, np.repeat(np.repeat(raw, 4, 0), 4, 1)


def test_a_pair_arrives_as_it_was_shown(feed: Feed, viewer: Viewer) -> None:
    raw, sr = planes()
    feed.show_pair(
        info(
            7,
            age_ms=120,
            index={"t": 3, "c": 1},
            channel="BSE",
            pixel_size_um=0.016,
            model="em-x4",
            scale=4,
            deferred=True,
            latency_ms=90.5,
            run=2,
            place={"t": 8},
        ),
        raw,
        sr,
    )
    shown = viewer.frame()
    np.testing.assert_array_equal(shown.raw, raw)
    np.testing.assert_array_equal(shown.sr, sr)
    frame = shown.frame
    assert (frame.session, frame.seq, frame.index, frame.shape) == ("s", 7, {"t": 3, "c": 1}, raw.shape)
    assert (frame.channel, frame.model, frame.scale, frame.deferred) == ("BSE", "em-x4", 4, True)
    assert (frame.pixel_size_um, frame.latency_ms) == (0.016, 90.5)
    assert (frame.run, frame.place) == (2, {"t": 8})
    assert frame.age_ms >= 120


def test_a_raw_frame_arrives_without_sr(feed: Feed, viewer: Viewer) -> None:
    raw = np.arange(12, dtype=np.uint8).reshape(3, 4)
    feed.show_raw(info(2), raw)
    shown = viewer.frame()
    assert shown.sr is None
    np.testing.assert_array_equal(shown.raw, raw)


def test_status_is_published_without_frames(feed: Feed, viewer: Viewer) -> None:
    told = FeedStatus(
        session="s",
        state="acquiring",
        counts={"acquired": 3},
        raw_fps=2.5,
        latency_ms={"p50": float("nan"), "p95": 7.0},
        server=ServerStatus("away", "no answer"),
        alarms=("disk full",),
    )
    feed.status(told)
    got = viewer.status()
    while got.state != "acquiring":
        got = viewer.status()
    assert got == msgspec.structs.replace(told, latency_ms={"p50": None, "p95": 7.0})
    assert viewer.status() == got, "it is repeated"


def test_a_viewer_that_does_not_read_delays_nobody_and_ends_on_the_newest(
    feed: Feed, viewer: Viewer, connect: Connect
) -> None:
    slow = connect(feed)
    slow.status()
    raw, sr = planes(side=256)  # 2.2 MB a message: far more than the kernel's buffers hold in total
    last = 100
    for seq in range(last + 1):
        feed.show_pair(info(seq), raw, sr)
        while viewer.frame().frame.seq < seq:  # the other viewer sees every frame meanwhile
            pass
    assert feed.published >= last, "the last is counted just after it was seen"
    read: list[int] = []
    while not read or read[-1] < last:
        read.append(slow.frame().frame.seq)
    assert read == sorted(read)
    assert len(read) < last / 2, "what it missed was dropped, not kept for it"


def test_of_frames_waiting_the_newest_is_published(connect: Connect) -> None:
    with Feed(ADDRESS, max_rate_hz=1) as feed:
        viewer = connect(feed)
        viewer.status()
        for seq in range(50):
            feed.show_pair(info(seq), *planes(seq))
        seen = [viewer.frame().frame.seq]
        while seen[-1] != 49:
            seen.append(viewer.frame().frame.seq)
        assert len(seen) <= 3


def test_while_sr_keeps_up_both_panels_show_one_frame(
    feed: Feed, viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "KEPT_UP_S", 60.0)
    for seq in range(4):
        feed.show_raw(info(seq), planes(seq)[0])
        feed.show_pair(info(seq), *planes(seq))
        if seq == 0:
            while viewer.frame().sr is None:
                pass
            continue
        shown = viewer.frame()
        while shown.frame.seq < seq:
            shown = viewer.frame()
        assert shown.sr is not None


def test_when_sr_lags_raw_frames_are_shown_alone(
    feed: Feed, viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "KEPT_UP_S", 60.0)
    feed.show_pair(info(0, age_ms=5000), *planes())
    assert viewer.frame().frame.seq == 0
    feed.show_raw(info(1), planes(1)[0])
    shown = viewer.frame()
    while shown.frame.seq != 1:
        shown = viewer.frame()
    assert shown.sr is None


def test_a_deferred_result_does_not_displace_a_live_one(
    feed: Feed, viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "LIVE_FIRST_S", 60.0)
    feed.show_pair(info(500), *planes())
    feed.show_pair(info(3, deferred=True), *planes())
    assert viewer.frame().frame.seq == 500
    feed.show_pair(info(501), *planes())
    seen = viewer.frame().frame.seq
    while seen != 501:
        assert seen == 500
        seen = viewer.frame().frame.seq


def test_after_the_last_live_frame_deferred_results_are_shown(
    feed: Feed, viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "LIVE_FIRST_S", 0.0)
    feed.show_pair(info(500), *planes())
    feed.show_pair(info(3, deferred=True), *planes())
    while viewer.frame().frame.seq != 3:
        pass


def test_a_late_viewer_sees_the_last_frames(feed: Feed, connect: Connect) -> None:
    feed.show_pair(info(4, age_ms=5000), *planes())
    early = connect(feed)
    assert early.frame().frame.seq == 4
    feed.show_raw(info(9), planes()[0])
    while early.frame().frame.seq != 9:
        pass
    late = connect(feed)
    seen: set[int] = set()
    while seen != {4, 9}:
        seen.add(late.frame().frame.seq)


def test_repeats_never_mix_two_sessions(feed: Feed, viewer: Viewer) -> None:
    feed.show_pair(info(4, age_ms=5000, session="old"), *planes())
    assert viewer.frame().frame.session == "old"
    feed.show_raw(info(0, session="new"), planes()[0])
    while viewer.frame().frame.session != "new":
        pass
    assert [viewer.frame().frame.session for _ in range(2)] == ["new", "new"]


def test_without_a_viewer_nothing_is_published(feed: Feed, connect: Connect) -> None:
    feed.show_pair(info(1), *planes())
    assert not feed.watched
    assert feed.published == 0
    viewer = connect(feed)
    viewer.frame()
    assert feed.watched


def test_the_last_status_still_leaves(connect: Connect) -> None:
    with Feed(ADDRESS) as feed:
        viewer = connect(feed)
        viewer.status()
        feed.show_pair(info(11), *planes())
        feed.status(FeedStatus(session="s", state="finished"))
    frames, states = [], []
    while "finished" not in states or 11 not in frames:
        content = viewer.next()
        if isinstance(content, FeedStatus):
            states.append(content.state)
        else:
            frames.append(content.frame.seq)


def test_stop_may_be_called_twice() -> None:
    feed = Feed(ADDRESS)
    feed.stop()
    feed.stop()


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 3, 4), np.uint16), np.zeros((3, 4), np.float32)], ids=["3-D", "float"]
)
def test_a_frame_that_cannot_be_shown_is_counted(connect: Connect, wrong: Any) -> None:
    with Feed(ADDRESS) as feed:
        connect(feed).status()
        feed.show_raw(info(), wrong)
    assert feed.rejected == 1


def test_a_frame_that_cannot_be_shown_silences_nobody(feed: Feed, viewer: Viewer) -> None:
    wrong: Any = np.zeros((2, 3, 4), np.uint16)
    feed.show_raw(info(), wrong)
    feed.status(FeedStatus(state="draining"))
    while viewer.status().state != "draining":
        pass
    feed.show_pair(info(1), *planes())
    assert viewer.frame().frame.seq == 1


def test_a_status_of_the_wrong_kind_silences_nobody(feed: Feed, viewer: Viewer) -> None:
    wrong: Any = {"acquired": object()}
    feed.status(FeedStatus(state="acquiring", counts=wrong))
    feed.show_pair(info(1), *planes())
    assert viewer.frame().frame.seq == 1
    feed.status(FeedStatus(state="draining"))
    while viewer.status().state != "draining":
        pass


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:5756", "tcp://192.168.1.5:5756", "tcp://*:5756", "5756"])
def test_only_this_machine_can_watch(address: str) -> None:
    with pytest.raises(ConfigError):
        Feed(address)


def test_an_address_in_use_is_refused_with_a_next_step(feed: Feed) -> None:
    with pytest.raises(ConfigError, match="another acquisition"):
        Feed(feed.address)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_must_be_positive(rate: float) -> None:
    with pytest.raises(ConfigError, match="max_rate_hz"):
        Feed(ADDRESS, max_rate_hz=rate)


# -------------------------------------------------------------------- messages


def message(seq: int = 0, **changes: Any) -> bytes:
    return b"".join(frame_message(info(seq, **changes), *planes(seq)))


def test_a_frame_too_large_to_draw_is_thinned_out() -> None:
    raw = np.arange(4 * 9001, dtype=np.uint16).reshape(4, 9001)
    shown = decode(b"".join(frame_message(info(), raw, None)))
    assert isinstance(shown, Shown)
    assert (shown.frame.shape, shown.frame.raw.step) == ((4, 9001), 2)
    np.testing.assert_array_equal(shown.raw, raw[::2, ::2])


@pytest.mark.parametrize("size", [0, 0.0, None, float("nan"), float("inf"), -1.0])
def test_an_unknown_pixel_size_is_none(size: float | None) -> None:
    shown = decode(message(pixel_size_um=size))
    assert isinstance(shown, Shown)
    assert shown.frame.pixel_size_um is None


def test_pixels_that_are_not_contiguous_are_shown_in_order() -> None:
    raw = planes()[0][::-1, ::2]
    shown = decode(b"".join(frame_message(info(), raw, None)))
    assert isinstance(shown, Shown)
    np.testing.assert_array_equal(shown.raw, raw)


def test_decoded_pixels_cannot_be_written() -> None:
    shown = decode(message())
    assert isinstance(shown, Shown)
    with pytest.raises(ValueError, match="read-only"):
        shown.raw[0, 0] = 1


def test_long_alarms_are_shortened_not_lost() -> None:
    got = decode(
        status_message(FeedStatus(alarms=("x" * 10**6,) * 100, server=ServerStatus(detail="y" * 10**6)))
    )
    assert isinstance(got, FeedStatus)
    assert len(got.alarms) == 16
    assert set("".join(got.alarms)) == {"x"}


@pytest.mark.parametrize(
    "index",
    [{f"axis {n}": n for n in range(MAX_HEADER // 8)}, {"t": 2**70}, {"t": object()}],
    ids=lambda i: len(i),
)
def test_an_index_that_cannot_be_sent_is_an_input_error(index: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="cannot be shown"):
        frame_message(info(index=index), *planes())


def test_numpy_numbers_are_numbers() -> None:
    shown = decode(message(index={"t": np.int64(3)}, pixel_size_um=np.float32(0.5)))
    assert isinstance(shown, Shown)
    assert (shown.frame.index, shown.frame.pixel_size_um) == ({"t": 3}, 0.5)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data)


VALID = message()
HEADER_END = PREFIX.size + PREFIX.unpack_from(VALID)[1]


@given(st.integers(0, HEADER_END - 1), st.integers(0, 255), st.integers(0, len(VALID)))
def test_a_damaged_message_is_read_or_refused(at: int, byte: int, length: int) -> None:
    damaged = bytearray(VALID)
    damaged[at] = byte
    for data in (bytes(damaged), bytes(damaged[:length]), bytes(damaged) + b"x"):
        try:
            shown = decode(data)
        except WireError:
            continue
        assert isinstance(shown, Shown)
        assert shown.raw.nbytes + (shown.sr.nbytes if shown.sr is not None else 0) == len(data) - HEADER_END


PLANE = st.fixed_dictionaries(
    {
        "shape": st.lists(st.integers(-2, 2**40), max_size=3),
        "dtype": st.sampled_from(["uint8", "uint16", "float64", "O"]),
        "step": st.integers(-1, 100),
    }
)
HOSTILE = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["frame", "status", "other", ""]),
        "session": st.text(max_size=5) | st.integers(0, 9),
        "seq": st.integers(-1, 2**60),
        "index": st.dictionaries(st.text(max_size=3), st.integers(-(2**63), 2**63 - 1) | st.text(max_size=3)),
        "shape": st.lists(st.integers(-1, 2**60), min_size=1, max_size=3),
        "raw": PLANE,
        "sr": st.none() | PLANE,
        "scale": st.integers(-1, 100),
        "pixel_size_um": st.none() | st.floats(),
        "channel": st.text(max_size=3),
        "model": st.text(max_size=3),
        "deferred": st.booleans(),
        "age_ms": st.floats(),
        "latency_ms": st.none() | st.floats(),
    }
)


@given(HOSTILE, st.binary(max_size=64))
def test_a_hostile_header_is_read_or_refused(header: dict[str, Any], tail: bytes) -> None:
    body = msgspec.msgpack.encode(header)
    try:
        content = decode(PREFIX.pack(b"LSF1", len(body)) + body + tail)
    except WireError:
        return
    msgspec.json.encode(content.frame if isinstance(content, Shown) else content)


@pytest.mark.parametrize(
    "changes",
    [
        {"age_ms": float("nan")},
        {"pixel_size_um": float("inf")},
        {"pixel_size_um": 0.0},
        {"scale": 0},
        {"seq": -1},
        {"raw": {"shape": [1 << 20, 1 << 20], "dtype": "uint16", "step": 1}},
        {"raw": {"shape": [0, 0], "dtype": "uint16", "step": 1}},
    ],
    ids=str,
)
def test_each_number_is_checked(changes: dict[str, Any]) -> None:
    shown = decode(VALID)
    assert isinstance(shown, Shown)
    header = {"type": "frame", **msgspec.to_builtins(shown.frame), **changes}
    body = msgspec.msgpack.encode(header)
    with pytest.raises(WireError):
        decode(PREFIX.pack(b"LSF1", len(body)) + body + VALID[HEADER_END:])


def test_a_status_carries_no_pixels() -> None:
    with pytest.raises(WireError, match="follow a status"):
        decode(status_message(FeedStatus()) + b"x")


def test_headers_are_frozen() -> None:
    assert FeedFrame.__struct_config__.frozen
    assert FeedStatus.__struct_config__.frozen
