"""The server over real sockets, with clients that say exactly what the tests want."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import zmq
from serve_peer import Faulty, Gated, Peer, Repeat, SlowToWarm, frame, hostile

from live_sr.config import ServerSettings
from live_sr.errors import ConfigError, LiveSRError, ModelError, WireError
from live_sr.frame import Pixels
from live_sr.neighbours import FrameCount
from live_sr.serve import loop
from live_sr.serve.loop import CREDITS, MAX_SESSIONS, Server
from live_sr.upscaler import Bilinear, Upscaler, bilinear
from live_sr.wire import codec
from live_sr.wire.messages import End, FrameMessage, Heartbeat, Hello, Message, Refusal, Result, Welcome

S = 10.0  # seconds; never reached unless something is wrong


def settings(**changes: object) -> ServerSettings:
    return ServerSettings(**({"bind": "tcp://127.0.0.1:*", "max_pixels": 1 << 20} | changes))  # type: ignore[arg-type]


@contextlib.contextmanager
def serving(upscaler: Upscaler | Sequence[Upscaler], **changes: object) -> Iterator[Server]:
    with Server(upscaler, settings(**changes)) as server:
        yield server
    assert server.state == "stopped"
    assert server.error is None


def ask(peer: Peer, number: int = 1) -> Heartbeat:
    """A heartbeat's answer: everything said before it has been dealt with."""
    peer.say(Heartbeat(number=number))
    return peer.hear(Heartbeat)


def until(peer: Peer, condition: Callable[[], bool]) -> None:
    """Beat until the server's counters say so: each beat is a round trip through the socket thread."""
    for n in range(100_000):
        if condition():
            return
        assert ask(peer, n).number == n
    raise AssertionError("never happened")


# -------------------------------------------------------------------- conversation


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_frame_comes_back_as_the_upscaler_made_it(dtype: type[np.uint8 | np.uint16]) -> None:
    raw: Pixels = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (37, 53)).astype(dtype)  # type: ignore[assignment]
    with serving(Bilinear(4)) as server, Peer(server.address) as peer:
        welcome = peer.hello()
        assert (welcome.models[0].id, welcome.models[0].scale, welcome.credits) == ("bilinear-x4", 4, CREDITS)
        assert welcome.models[0].max_pixels == 1 << 20
        peer.offer(5, raw)
        message, pixels = peer.next()
        assert isinstance(message, Result)
        assert pixels is not None
        assert (message.seq, message.session, message.model_sha256) == (5, "s", welcome.models[0].sha256)
        assert message.computed_ms > 0
        np.testing.assert_array_equal(pixels, bilinear(raw, 4))
        assert pixels.dtype == dtype
        ask(peer)
        assert server.stats.frames == 1


def test_a_server_is_reached_over_ipc_and_ipv6(tmp_path: Path) -> None:
    binds = [f"ipc://{tmp_path / 's.sock'}"]
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        binds.append("tcp://[::1]:*")
    for bind in binds:
        with serving(Repeat(), bind=bind) as server, Peer(server.address) as peer:
            peer.hello()
            peer.offer(0, frame(3))
            assert peer.restored()[0] == 0


def test_the_gate_opens_when_the_model_is_warm() -> None:
    upscaler = SlowToWarm()
    with serving(upscaler, warm_shapes=[(64, 64), (2048, 2048)]) as server, Peer(server.address) as peer:
        assert not peer.hello(warm=False).warm
        peer.offer(0, frame(1))
        assert peer.refused().code == "not_ready"
        assert not server.wait_ready(0)
        upscaler.warmed.set()
        assert peer.hear(Welcome).warm
        assert server.wait_ready(S)
        peer.offer(0, frame(1))
        assert peer.restored()[0] == 0
    assert upscaler.shapes == [(64, 64)]  # larger ones would be refused


def test_heartbeats_are_answered_while_the_engine_computes() -> None:
    upscaler = Gated()
    with serving(upscaler) as server, Peer(server.address) as peer:
        peer.hello()
        idle = ask(peer, 41)
        assert (idle.number, idle.server, idle.waiting, idle.busy_ms) == (41, server.name, 0, 0.0)
        peer.offer(0, frame(1))
        peer.offer(1, frame(2))
        assert upscaler.entered.acquire(timeout=S)
        first, second = ask(peer), ask(peer)
        assert first.waiting == second.waiting == 1
        assert 0 < first.busy_ms < second.busy_ms
        upscaler.open(2)
        assert [peer.restored()[0] for _ in range(2)] == [0, 1]
        assert ask(peer).busy_ms == 0


def test_no_heartbeat_is_lost_however_fast_they_come() -> None:
    """ZeroMQ called a queue full that had been emptied, until it was made to look."""
    with serving(Repeat()) as server, Peer(server.address) as peer:
        peer.hello()
        for number in range(3000):
            assert ask(peer, number).number == number


def test_a_server_started_again_has_another_name() -> None:
    with serving(Repeat()) as one, serving(Repeat()) as other:
        assert one.name != other.name


# -------------------------------------------------------------------- several models


def sha256(upscaler: Upscaler) -> str:
    return upscaler.info.sha256


def test_each_frame_is_restored_by_the_model_it_names_or_by_the_first() -> None:
    held = two, four = Bilinear(2), Bilinear(4)
    raw = frame(100)
    with serving(held) as server, Peer(server.address) as peer:
        assert [model.id for model in peer.hello().models] == ["bilinear-x2", "bilinear-x4"]
        for seq, model in enumerate(("", sha256(four), sha256(two), sha256(four))):
            peer.offer(seq, raw, model)
            message, pixels = peer.next()
            assert isinstance(message, Result)
            assert pixels is not None
            made = four if model == sha256(four) else two
            assert message.model_sha256 == sha256(made)
            np.testing.assert_array_equal(pixels, made.upscale([raw])[0])
        ask(peer)
        assert {name: did.frames for name, did in server.stats.models.items()} == {
            "bilinear-x2": 2,
            "bilinear-x4": 2,
        }
        assert server.stats.frames == server.stats.batches == 4


def test_a_session_that_asks_for_a_model_gets_it_where_a_frame_names_none() -> None:
    with serving([Bilinear(2), Bilinear(4)]) as server, Peer(server.address) as peer:
        assert [model.id for model in peer.hello(model="bilinear-x4").models] == ["bilinear-x4", "bilinear-x2"]
        peer.offer(0, frame(1))
        assert peer.restored()[1].shape == (32, 32)
        peer.hello(model="bilinear-x2")  # the same session, asking again
        peer.offer(1, frame(1))
        assert peer.restored()[1].shape == (16, 16)


def test_a_frame_for_a_model_that_is_not_held_is_refused_and_the_next_is_served() -> None:
    with serving([Bilinear(2), Bilinear(4)]) as server, Peer(server.address) as peer:
        peer.hello()
        peer.offer(5, frame(1), "ff" * 32)
        refusal = peer.refused()
        assert (refusal.code, refusal.seq) == ("unknown_model", 5)
        assert "holds bilinear-x2, bilinear-x4, not the model ffffffffffff" in refusal.message
        peer.offer(6, frame(1))
        assert peer.restored()[0] == 6


def test_the_frames_of_a_call_are_all_for_one_model() -> None:
    first, second = Gated("first"), Repeat(name="other")
    with serving([first, second], max_batch=8) as server, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(server.address, f"s{n}")) for n in range(5)]
        for peer in peers:
            peer.hello()
        peers[0].offer(0, frame(0))
        assert first.entered.acquire(timeout=S)
        for n, peer in enumerate(peers[1:], 1):  # they wait together
            peer.offer(0, frame(n), sha256((first, second)[n % 2]))
            ask(peer)
        first.open(2)
        for peer in peers:
            assert peer.restored()[0] == 0
    assert first.batches == [[0], [2, 4]]
    assert second.batches == [[1, 3]]


def test_a_model_that_fails_does_not_fail_the_others_frames() -> None:
    faulty, good = Faulty(), Repeat(name="good")
    with serving([faulty, good]) as server, Peer(server.address) as peer:
        peer.hello()
        peer.offer(0, frame(13))
        assert peer.refused().code == "failed"
        peer.offer(1, frame(13), sha256(good))
        assert peer.restored()[0] == 1


def test_each_model_has_its_own_limits() -> None:
    held = [Repeat(max_pixels=64), Bilinear(2, frames=3, max_pixels=10_000)]
    with serving(held) as server, Peer(server.address) as peer:
        assert [model.max_pixels for model in peer.hello().models] == [64, 10_000]
        peer.offer(0, frame(1, (9, 9)))
        assert peer.refused().code == "too_large"
        peer.offer(1, np.ones((3, 90, 90), np.uint16), sha256(held[1]))
        assert peer.restored()[1].shape == (180, 180)
        peer.offer(2, frame(1), sha256(held[1]))
        assert peer.refused().code == "planes"


def test_the_gate_opens_when_all_models_are_warm() -> None:
    slow = SlowToWarm()
    with serving([Repeat(name="quick"), slow]) as server, Peer(server.address) as peer:
        assert not peer.hello(warm=False).warm
        slow.warmed.set()
        assert len(peer.hear(Welcome).models) == 2


@pytest.mark.parametrize(
    ("held", "says"),
    [
        pytest.param([], "0 models are named: a server holds 1 to 8", id="none"),
        pytest.param([Repeat(name=f"m{n}") for n in range(9)], "9 models are named", id="too many"),
        pytest.param([Bilinear(2), Bilinear(2)], "cannot be told apart", id="one twice"),
        pytest.param(
            [Repeat(), Bilinear(2, frames=5, max_pixels=10**9)], "mailbox_mb = 1024", id="one too large"
        ),
    ],
)
def test_models_that_cannot_be_served_together_are_told(held: list[Upscaler], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Server(held, ServerSettings(max_pixels=10**9))


# -------------------------------------------------------------------- refusals


def test_a_frame_before_hello_is_refused_and_told_to_say_hello() -> None:
    with serving(Repeat()) as server, Peer(server.address) as peer:
        peer.offer(3, frame(1))
        refusal = peer.refused()
        assert (refusal.code, refusal.seq, refusal.session) == ("not_ready", 3, "s")
        assert "say hello" in refusal.message


def test_another_peers_session_is_not_served_without_hello() -> None:
    with serving(Repeat()) as server, Peer(server.address) as peer, Peer(server.address) as stranger:
        peer.hello()
        stranger.offer(0, frame(1))
        assert stranger.refused().code == "not_ready"
        stranger.say(End(session="s"))
        ask(peer)
        peer.offer(0, frame(1))
        assert peer.restored()[0] == 0


def test_a_heartbeat_from_an_unknown_peer_is_answered_and_told_to_say_hello() -> None:
    with serving(Repeat()) as server, Peer(server.address) as peer:
        assert ask(peer).server == server.name
        assert peer.refused().code == "not_ready"


def test_an_unknown_model_is_refused_naming_the_one_held() -> None:
    with serving(Repeat()) as server, Peer(server.address) as peer:
        peer.say(Hello(session="s", version="test", model="em-x8"))
        refusal = peer.refused()
        assert (refusal.code, refusal.seq) == ("unknown_model", None)
        assert "holds repeat, not em-x8" in refusal.message
        peer.say(Hello(session="s", version="test", model="repeat"))
        assert peer.hear(Welcome).models[0].id == "repeat"


@pytest.mark.parametrize(
    ("pixels", "code", "says"),
    [
        pytest.param(
            frame(1, (33, 32)), "too_large", "33 × 32 is over this server's limit of 1024", id="a row too many"
        ),
        pytest.param(frame(1, (64, 64)), "too_large", "limit of 1024", id="binning switched off"),
        pytest.param(frame(1, dtype=np.uint8), "dtype", "takes uint16, not uint8", id="dtype"),
    ],
)
def test_frames_that_cannot_be_restored_are_refused(pixels: Pixels, code: str, says: str) -> None:
    upscaler = Repeat(max_pixels=1024, dtypes=("uint16",))
    with serving(upscaler) as server, Peer(server.address) as peer:
        peer.hello()
        peer.offer(9, pixels)
        refusal = peer.refused()
        assert (refusal.code, refusal.seq) == (code, 9)
        assert says in refusal.message
        assert upscaler.values == []
        peer.offer(10, frame(1, (32, 32)))
        assert peer.restored()[0] == 10
        assert server.stats.refused[code] == 1


@pytest.mark.parametrize("frames", [3, 5])
def test_a_model_of_several_frames_restores_the_middle_one_of_a_message(frames: FrameCount) -> None:
    stack: Pixels = np.random.default_rng(2).integers(0, 4096, (frames, 9, 11)).astype(np.uint16)  # type: ignore[assignment]
    with serving(Bilinear(2, frames=frames, max_pixels=99)) as server, Peer(server.address) as peer:
        model = peer.hello().models[0]
        assert (model.frames, model.look_ahead, model.neighbours) == (frames, frames // 2, "t or z")
        for seq in (4, 4, 5):  # the server remembers nothing: a message may be repeated
            peer.offer(seq, stack)
            found, pixels = peer.restored()
            assert found == seq
            np.testing.assert_array_equal(pixels, bilinear(stack, 2))
        assert server.stats.malformed == 0


@pytest.mark.parametrize(
    ("frames", "shape"), [(1, (3, 8, 8)), (3, (8, 8)), (3, (2, 8, 8)), (3, (5, 8, 8))], ids=str
)
def test_another_number_of_frames_than_the_models_is_refused(
    frames: FrameCount, shape: tuple[int, ...]
) -> None:
    with serving(Bilinear(2, frames=frames)) as server, Peer(server.address) as peer:
        peer.hello()
        peer.offer(0, np.ones(shape, np.uint16))
        refusal = peer.refused()
        assert (refusal.code, refusal.seq) == ("planes", 0)
        assert f"sees {frames} frames at once" in refusal.message
        peer.offer(1, np.ones((frames, 8, 8) if frames > 1 else (8, 8), np.uint16))
        assert peer.restored()[1].shape == (16, 16)


def test_the_largest_frame_is_read_with_all_its_neighbours() -> None:
    with serving(Bilinear(2, frames=5), max_pixels=256 * 256) as server, Peer(server.address) as peer:
        peer.hello()
        peer.offer(0, np.ones((5, 256, 256), np.uint16))
        assert peer.restored()[0] == 0
        peer.offer(1, np.ones((5, 512, 256), np.uint16))
        assert peer.refused().code == "too_large"


def test_a_frame_whose_result_the_protocol_cannot_carry_is_refused() -> None:
    with serving(Repeat(4)) as server, Peer(server.address) as peer:
        peer.hello()
        peer.offer(0, frame(1, (1, 16_385)))
        refusal = peer.refused()
        assert refusal.code == "too_large"
        assert "65536 pixels along one axis" in refusal.message
        peer.offer(1, frame(1, (1, 16_384)))
        assert peer.restored()[1].shape == (4, 65_536)


def test_a_message_far_too_large_to_read_costs_its_sender_the_connection_only() -> None:
    with (
        serving(Repeat(), max_pixels=1024) as server,
        Peer(server.address, "a") as a,
        Peer(server.address, "b") as b,
    ):
        a.hello()
        b.hello()
        b.offer(0, frame(1, (512, 512)))
        # ZeroMQ closes b's connection, and b's own ZeroMQ opens another, whose identity nobody knows.
        b.socket.rcvtimeo = 200  # what was said just before the connection closed may be lost
        answer: Message | None = None
        for n in range(50):
            b.say(Heartbeat(number=n))
            with contextlib.suppress(zmq.Again):
                answer, _ = b.next()
                if isinstance(answer, Refusal):
                    break
        assert isinstance(answer, Refusal)
        assert answer.code == "not_ready"  # too_large would mean that it had been read
        assert server.stats.refused["too_large"] == 0
        a.offer(0, frame(1))
        assert a.restored()[0] == 0


def test_more_frames_in_flight_than_credits_are_refused_as_busy() -> None:
    upscaler = Gated()
    with serving(upscaler) as server, Peer(server.address) as peer:
        peer.hello()
        for seq in range(CREDITS + 2):
            peer.offer(seq, frame(seq))
        refused = [peer.refused() for _ in range(2)]
        assert [(r.code, r.seq) for r in refused] == [("busy", CREDITS), ("busy", CREDITS + 1)]
        upscaler.open(CREDITS)
        assert [peer.restored()[0] for _ in range(CREDITS)] == list(range(CREDITS))
        peer.offer(CREDITS, frame(1))  # a result gave the credit back
        upscaler.open()
        assert peer.restored()[0] == CREDITS


def test_a_full_mailbox_refuses_as_busy() -> None:
    upscaler = Gated()
    half_mb = frame(1, (500, 600))  # 0.6 MB: one fits in 1 MB, two do not
    with (
        serving(upscaler, mailbox_mb=1, max_pixels=300_000) as server,
        Peer(server.address, "a") as a,
        Peer(server.address, "b") as b,
    ):
        a.hello()
        b.hello()
        a.offer(0, half_mb)
        assert upscaler.entered.acquire(timeout=S)
        a.offer(1, half_mb)
        ask(a)
        b.offer(0, half_mb)
        assert b.refused().code == "busy"
        upscaler.open(2)
        assert [a.restored()[0] for _ in range(2)] == [0, 1]


def test_a_frame_on_which_the_model_fails_is_refused_and_the_server_lives_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(Faulty()) as server, Peer(server.address) as peer:
        peer.hello()
        for seq, (value, says) in enumerate(
            [
                (13, "CUDA out of memory ?..."),
                (14, "expected (16, 16) uint16"),
                (15, "0 results"),
                (16, "NoneType"),
            ]
        ):
            peer.offer(seq, frame(value))
            refusal = peer.refused()
            assert (refusal.code, refusal.seq) == ("failed", seq)
            assert says in refusal.message
        peer.offer(9, frame(1))
        assert peer.restored()[0] == 9
        assert server.stats.refused["failed"] == 4
    assert len(caplog.records) == 1  # in a row of failures the first one is logged, with its traceback
    assert caplog.records[0].exc_info is not None


def test_a_frame_that_fails_does_not_fail_the_others_of_its_batch() -> None:
    class Held(Faulty):
        entered = threading.Semaphore(0)
        gate = threading.Event()

        def upscale(self, frames):  # type: ignore[no-untyped-def]
            self.entered.release()
            assert self.gate.wait(S)
            return super().upscale(frames)

    upscaler = Held()
    with (
        serving(upscaler, max_batch=4) as server,
        Peer(server.address, "a") as a,
        Peer(server.address, "b") as b,
    ):
        a.hello()
        b.hello()
        a.offer(0, frame(1))
        assert upscaler.entered.acquire(timeout=S)
        a.offer(1, frame(2))
        ask(a)
        b.offer(0, frame(13))
        ask(b)
        upscaler.gate.set()
        assert [a.restored()[0] for _ in range(2)] == [0, 1]
        assert b.refused().code == "failed"
        assert upscaler.batches == [[1], [2, 13], [2], [13]]


# -------------------------------------------------------------------- hostile and unusual peers


def test_malformed_messages_are_each_refused_and_another_client_is_served_meanwhile() -> None:
    noise = list(hostile(np.random.default_rng(7), 300))
    with serving(Repeat()) as server, Peer(server.address, "good") as good, Peer(server.address) as bad:
        good.hello()
        for seq, parts in enumerate(noise):
            bad.socket.send_multipart(parts)
            if seq % 10 == 0:
                good.offer(seq, frame(seq % 100))
                assert good.restored()[0] == seq
        expected = sum(not readable(parts) for parts in noise)
        assert expected > 200
        until(good, lambda: server.stats.malformed >= expected)
        assert server.stats.malformed == expected
        malformed = bad.refused()
        while malformed.code != "malformed":  # a few changed bytes leave a readable message
            malformed = bad.hear(Refusal)
        assert malformed.seq is None


def readable(parts: list[bytes]) -> bool:
    try:
        message, _ = codec.decode(parts)
    except WireError:
        return False
    return isinstance(message, Hello | FrameMessage | Heartbeat | End)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(Refusal(session="s", code="busy", message=""), id="refusal"),
        pytest.param(Result("s", 0, (2, 2), "uint8", "", 0, 0), id="result"),
    ],
)
def test_what_only_a_server_says_is_malformed(message: Refusal | Result) -> None:
    with serving(Repeat()) as server, Peer(server.address) as peer:
        peer.say(message, frame(1, (2, 2), np.uint8) if isinstance(message, Result) else None)
        refusal = peer.refused()
        assert refusal.code == "malformed"
        assert type(message).__name__ in refusal.message


def test_bytes_that_are_not_even_zeromq_disturb_nobody() -> None:
    with serving(Repeat()) as server, Peer(server.address) as peer:
        peer.hello()
        port = int(server.address.rsplit(":", 1)[1])
        for data in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            os.urandom(4096),
            b"\xff" + b"\x00" * 8 + b"\x7f" * 64,
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=S) as raw:
                raw.sendall(data)
        peer.offer(0, frame(1))
        assert peer.restored()[0] == 0


def test_a_flooding_client_does_not_hold_up_another() -> None:
    upscaler = Gated()
    with (
        serving(upscaler) as server,
        Peer(server.address, "flood") as flood,
        Peer(server.address, "fair") as fair,
    ):
        flood.hello()
        fair.hello()
        for seq in range(50):
            flood.offer(seq, frame(100))
        assert [flood.refused().code for _ in range(48)] == ["busy"] * 48
        assert upscaler.entered.acquire(timeout=S)  # one of the flood's two frames computes, the other waits
        for seq in range(2):
            fair.offer(seq, frame(1))
        ask(fair)
        next_of_flood = 50
        for computed in range(8):  # each offers its next frame as soon as it has a credit
            upscaler.open()
            assert upscaler.entered.acquire(timeout=S)
            mine = upscaler.values[computed] == 100
            (flood if mine else fair).restored()
            if mine:
                flood.offer(next_of_flood, frame(100))
                next_of_flood += 1
                ask(flood)
            else:
                fair.offer(10 + computed, frame(1))
                ask(fair)
        assert upscaler.values == [100, 100, 1, 100, 1, 100, 1, 100]
        upscaler.open(10)


def test_a_client_that_does_not_read_is_given_up_while_another_is_served() -> None:
    large = frame(1, (700, 700))
    with (
        serving(Repeat(4)) as server,
        Peer(server.address, "deaf", rcvhwm=1) as deaf,
        Peer(server.address, "good") as good,
    ):
        deaf.hello()
        good.hello()
        seq = 0
        while server.stats.slow_clients == 0:
            assert seq < 5000, "never given up"
            deaf.offer(seq, large)
            good.offer(seq, frame(seq % 100))
            assert good.restored()[0] == seq
            seq += 1
        assert server.sessions == 1
        assert server.mailbox.frames == 0


def test_sessions_are_bounded() -> None:
    with serving(Repeat()) as server, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(server.address, f"s{n}")) for n in range(MAX_SESSIONS + 1)]
        for peer in peers[:-1]:
            peer.hello()
        peers[-1].say(Hello(session="one more", version="test"))
        assert peers[-1].refused().code == "busy"
        peers[0].say(End(session="s0"))
        ask(peers[0])
        peers[-1].hello()


def test_one_peer_has_one_session() -> None:
    with serving(Repeat()) as server, Peer(server.address) as peer:
        for n in range(3 * MAX_SESSIONS):
            peer.session = f"s{n}"
            peer.hello()
        assert server.sessions == 1


# -------------------------------------------------------------------- coming, going and coming back


def test_a_frame_sent_again_after_a_reconnect_is_computed_once_and_answered_to_the_newest_socket() -> None:
    upscaler = Gated()
    with serving(upscaler) as server, Peer(server.address, "s") as new:
        with Peer(server.address, "s") as old:
            old.hello()
            old.offer(0, frame(10))
            old.offer(1, frame(11))
            assert upscaler.entered.acquire(timeout=S)
            new.hello()
            new.offer(0, frame(10))  # computing
            new.offer(1, frame(11))  # waiting
            ask(new)
            assert server.stats.resent == 2
            upscaler.open(2)
            assert [new.restored()[0] for _ in range(2)] == [0, 1]
            assert old.socket.poll(0) == 0
        assert upscaler.values == [10, 11]


def test_the_socket_that_was_replaced_cannot_end_the_session() -> None:
    with serving(Repeat()) as server, Peer(server.address) as old, Peer(server.address) as new:
        old.hello()
        new.hello()
        old.say(End(session="s"))
        assert ask(old).server == server.name
        new.offer(0, frame(1))
        assert new.restored()[0] == 0


def test_end_discards_the_waiting_frames_and_the_result_being_computed() -> None:
    upscaler = Gated()
    with serving(upscaler) as server, Peer(server.address, "a") as a, Peer(server.address, "b") as b:
        a.hello()
        b.hello()
        a.offer(0, frame(10))
        assert upscaler.entered.acquire(timeout=S)
        a.offer(1, frame(11))
        assert ask(a).waiting == 1
        a.say(End(session="a"))
        assert ask(a).waiting == 0
        assert a.refused().code == "not_ready"
        a.hello()  # a new life of the same name: the same number is another frame now
        a.offer(0, frame(12))
        upscaler.open(2)
        seq, pixels = a.restored()
        assert (seq, pixels[0, 0]) == (0, 12)
        assert upscaler.values == [10, 12]
        assert server.stats.stale == 1


def test_a_result_for_a_client_that_vanished_is_dropped_and_counted() -> None:
    upscaler = Gated()
    with serving(upscaler) as server, Peer(server.address, "watch") as watch:
        watch.hello()
        with Peer(server.address, "gone") as gone:
            gone.hello()
            gone.offer(0, frame(1))
            assert upscaler.entered.acquire(timeout=S)
        upscaler.open()
        # The result may be sent before TCP has told that the peer is gone: then it is simply lost on the way.
        until(watch, lambda: server.stats.batches == 1)
        ask(watch)
        assert server.stats.unreachable + server.stats.frames == 1
        watch.offer(0, frame(2))
        upscaler.open()
        assert watch.restored()[0] == 0


def test_silent_sessions_are_forgotten_with_their_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SILENT_S", 0.3)
    monkeypatch.setattr(loop, "CHORES_S", 0.05)
    upscaler = Gated()
    with serving(upscaler) as server, Peer(server.address, "silent") as silent, Peer(server.address, "a") as a:
        a.hello()
        silent.hello()
        silent.offer(0, frame(1))
        assert upscaler.entered.acquire(timeout=S)
        silent.offer(1, frame(2))
        until(a, lambda: server.stats.silent_clients == 1)
        assert server.mailbox.frames == 0
        assert server.sessions == 1
        upscaler.open()
        until(a, lambda: server.stats.stale == 1)


# -------------------------------------------------------------------- starting and stopping


def test_stop_finishes_the_running_computation_and_answers_nothing_new() -> None:
    upscaler = Gated()
    with serving(upscaler) as server, Peer(server.address) as peer:
        peer.hello()
        peer.offer(0, frame(1))
        peer.offer(1, frame(2))
        assert upscaler.entered.acquire(timeout=S)
        server.stop()
        until(peer, lambda: server.state == "stopping")
        peer.offer(2, frame(3))
        assert ask(peer).waiting == 0
        assert not server.wait_stopped(0)
        upscaler.open()
        assert peer.restored()[0] == 0
        assert server.wait_stopped(S)
        assert server.error is None
        assert peer.socket.poll(0) == 0
    assert upscaler.values == [1]


def test_an_engine_that_hangs_does_not_keep_the_server_from_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STOP_S", 0.1)
    monkeypatch.setattr(loop, "CHORES_S", 0.05)
    upscaler = Gated()
    with Server(upscaler, settings()) as server, Peer(server.address) as peer:
        peer.hello()
        peer.offer(0, frame(1))
        assert upscaler.entered.acquire(timeout=S)
        server.stop()
        assert server.wait_stopped(S)
        assert "left behind" in str(server.error)
    upscaler.open()


def test_stop_may_be_called_from_a_signal_handler_and_more_than_once() -> None:
    with serving(Repeat()) as server:
        assert server.wait_ready(S)
        former = signal.signal(signal.SIGTERM, lambda *_: server.stop())
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            assert server.wait_stopped(S)
        finally:
            signal.signal(signal.SIGTERM, former)
        server.stop()


def test_the_address_is_free_again_after_stopping() -> None:
    with serving(Repeat()) as server:
        address = server.address
    with serving(Repeat(), bind=address) as server, Peer(address) as peer:
        peer.hello()


def test_a_client_of_the_former_server_is_told_to_say_hello_by_the_next() -> None:
    with serving(Repeat()) as server:
        address = server.address
        peer = Peer(address)
        former = peer.hello().server
    with peer, serving(Repeat(), bind=address) as server:
        assert ask(peer).server == server.name != former
        assert peer.refused().code == "not_ready"
        peer.hello()
        peer.offer(0, frame(1))
        assert peer.restored()[0] == 0


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_an_address_in_use_is_refused_and_the_first_server_keeps_it(kind: str, tmp_path: Path) -> None:
    bind = "tcp://127.0.0.1:*" if kind == "tcp" else f"ipc://{tmp_path / 's.sock'}"
    with serving(Repeat(), bind=bind) as first:
        second = Server(Repeat(), settings(bind=first.address))
        with pytest.raises(ConfigError, match=r"is in use.*choose another port"):
            second.start()
        assert second.state == "stopped"
        with Peer(first.address) as peer:
            peer.hello()


def test_an_ipc_path_left_by_a_killed_server_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert path.exists()
    with serving(Repeat(), bind=f"ipc://{path}") as server, Peer(server.address) as peer:
        peer.hello()


def test_an_address_of_another_machine_is_refused() -> None:
    server = Server(Repeat(), settings(bind="tcp://192.0.2.1:5755"))
    with pytest.raises(ConfigError, match=r"cannot listen on tcp://192\.0\.2\.1:5755"):
        server.start()


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        pytest.param(
            RuntimeError("no kernel image"), ModelError, "failed to warm up.*no kernel image", id="any"
        ),
        pytest.param(LiveSRError("as said"), LiveSRError, "^as said$", id="ours"),
    ],
)
def test_a_model_that_fails_to_warm_up_ends_the_server_with_the_reason(
    error: Exception, kind: type[Exception], says: str
) -> None:
    class Broken(Repeat):
        def warm(self, shapes):  # type: ignore[no-untyped-def]
            raise error

    with Server(Broken(), settings()) as server:
        assert server.wait_stopped(S)
        assert not server.wait_ready(S)
    assert isinstance(server.error, kind)
    with pytest.raises(kind, match=says):
        raise server.error


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"mailbox_mb": 1}, "cannot hold one frame", id="mailbox below one frame"),
        pytest.param({"mailbox_mb": 0}, "cannot hold one frame", id="no mailbox"),
        pytest.param({"max_batch": 0}, "max_batch is 0", id="no batch"),
        pytest.param({"max_pixels": 0}, "max_pixels is 0", id="no pixels"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(changes: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Server(Repeat(), settings(**changes))


def test_the_mailbox_must_hold_a_frame_with_its_neighbours() -> None:
    with serving(Bilinear(2, frames=5, max_pixels=100_000), mailbox_mb=1) as server:
        assert server.model.max_pixels == 100_000
    with pytest.raises(ConfigError, match=r"one frame of max_pixels = 100001 and 4 neighbours \(1 MB"):
        Server(Bilinear(2, frames=5, max_pixels=100_001), settings(mailbox_mb=1))


def test_a_model_that_cannot_be_described_is_refused() -> None:
    with pytest.raises(ModelError, match="scale"):
        Server(Repeat(17), settings())
