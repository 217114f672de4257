"""The link against a real server on a real socket."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import zmq

from conftest import ServerProcess
from live_sr.client.link import Link, RemoteUpscaler
from live_sr.errors import ConfigError, InputError, LiveSRError, RemoteError
from live_sr.frame import Frame, Pixels, Restored
from live_sr.upscaler import Bilinear, bilinear
from live_sr.wire import codec
from live_sr.wire.messages import Hello, ModelInfo, Welcome
from rig import Brighter, Gated, serving

WAIT_S = 20


def frame(seq: int, shape: tuple[int, int] = (32, 48)) -> Frame:
    rng = np.random.default_rng(seq)
    return Frame(seq=seq, pixels=rng.integers(0, 65536, shape).astype(np.uint16), captured_ns=0)


class Ends:
    """Both ends of a link: gives the frames it was told to, keeps what comes back."""

    def __init__(self, frames: Sequence[Frame] = ()) -> None:
        self.frames = deque(frames)
        self.results: queue.Queue[Restored] = queue.Queue()
        self.refusals: queue.Queue[tuple[int, str, str]] = queue.Queue()
        self.taken = 0

    def take(self) -> Frame | None:
        if not self.frames:
            return None
        self.taken += 1
        return self.frames.popleft()

    def returned(self, result: Restored) -> None:
        self.results.put(result)

    def refused(self, frame: Frame, code: str, message: str) -> None:
        self.refusals.put((frame.seq, code, message))

    def link_changed(self, link: Link) -> None:
        pass


@contextmanager
def linked(address: str, ends: Ends, **options: object) -> Iterator[Link]:
    link = Link(address, session="test", source=ends, sink=ends, **options)  # type: ignore[arg-type]
    link.start()
    try:
        yield link
    finally:
        link.stop()


def test_every_frame_comes_back_restored() -> None:
    frames = [frame(i) for i in range(20)]
    ends = Ends(frames)
    with serving() as server, linked(server.address, ends) as link:
        assert link.wait_ready(WAIT_S)
        got = {r.seq: r for r in (ends.results.get(timeout=WAIT_S) for _ in frames)}
    assert sorted(got) == list(range(20))
    for f in frames:
        np.testing.assert_array_equal(got[f.seq].pixels, bilinear(f.pixels, 2))
        assert got[f.seq].raw is f.pixels


def test_a_frame_is_restored_by_the_model_that_it_names() -> None:
    plus = Brighter(5)
    frames = [frame(0), replace(frame(1), model_sha256=plus.info.sha256), frame(2)]
    ends = Ends(frames)
    with serving([Bilinear(2), plus]) as server, linked(server.address, ends) as link:
        got = {r.seq: r for r in (ends.results.get(timeout=WAIT_S) for _ in frames)}
        assert [model.id for model in link.status.models] == ["bilinear-x2", "plus-5"]
    assert [got[i].model for i in range(3)] == ["bilinear-x2", "plus-5", "bilinear-x2"]
    assert got[1].model_sha256 == plus.info.sha256
    np.testing.assert_array_equal(got[1].pixels, bilinear(frames[1].pixels, 2) + np.uint16(5))


def test_a_frame_for_a_model_that_is_not_held_is_the_senders_again() -> None:
    ends = Ends([replace(frame(0), model_sha256="of another"), frame(1)])
    with serving() as server, linked(server.address, ends):
        seq, code, message = ends.refusals.get(timeout=WAIT_S)
        assert (seq, code) == (0, "busy")
        assert "does not hold" in message
        assert ends.results.get(timeout=WAIT_S).seq == 1


@pytest.mark.parametrize("still_held", [True, False])
def test_a_frame_sent_again_keeps_its_model_or_is_the_senders_again(still_held: bool) -> None:
    gate, plus = Gated(), Brighter(5)
    ends = Ends([frame(0), replace(frame(1), model_sha256=plus.info.sha256)])
    with contextlib.ExitStack() as stack:
        with serving([gate, plus]) as first:
            link = stack.enter_context(linked(first.address, ends))
            assert link.wait_ready(WAIT_S)
            while link.status.in_flight < 2:
                threading.Event().wait(0.01)
            first.mailbox.close()  # nothing more is computed here
            gate.open()
        held = [plus, Bilinear(2)] if still_held else [Brighter(6), Bilinear(2)]
        stack.enter_context(serving(held, first.address))
        if still_held:
            assert {ends.results.get(timeout=WAIT_S).model for _ in range(2)} == {"bilinear-x2", "plus-5"}
        else:
            assert ends.results.get(timeout=WAIT_S).model == "bilinear-x2"
            seq, code, message = ends.refusals.get(timeout=WAIT_S)
            assert (seq, code) == (1, "busy")
            assert "holds plus-5 no longer" in message


def test_a_frame_is_sent_with_its_neighbours_and_comes_back_alone() -> None:
    planes = tuple(frame(i).pixels for i in range(3))
    ends = Ends([Frame(7, planes[1], 0, planes, {"t": (4, 5, 6)})])
    with serving(Bilinear(2, frames=3)) as server, linked(server.address, ends):
        result = ends.results.get(timeout=WAIT_S)
    np.testing.assert_array_equal(result.pixels, bilinear(np.stack(planes), 2))
    assert result.raw is planes[1]
    assert result.used == {"t": (4, 5, 6)}


def test_a_frame_without_the_neighbours_that_the_model_needs_is_not_sent() -> None:
    planes = tuple(frame(i).pixels for i in range(3))
    ends = Ends([frame(0), Frame(1, planes[1], 0, planes)])
    with serving(Bilinear(2, frames=3)) as server, linked(server.address, ends):
        assert ends.results.get(timeout=WAIT_S).seq == 1
        seq, code, message = ends.refusals.get(timeout=WAIT_S)
        assert server.stats.refused["planes"] == 0
    assert (seq, code) == (0, "busy")  # to be offered again
    assert "sees 3 frames at once, here are 1" in message


def test_a_frame_put_later_is_sent_after_a_wake() -> None:
    ends = Ends()
    with serving() as server, linked(server.address, ends) as link:
        assert link.wait_ready(WAIT_S)
        ends.frames.append(frame(7))
        link.wake()
        assert ends.results.get(timeout=WAIT_S).seq == 7


class Blocked(Bilinear):
    """Computes nothing until it is let."""

    def __init__(self) -> None:
        super().__init__(2)
        self.let = threading.Event()
        self.began = threading.Event()

    def upscale(self, frames: Sequence[Pixels]) -> list[Pixels]:
        self.began.set()
        assert self.let.wait(WAIT_S)
        return super().upscale(frames)


def test_no_more_frames_are_in_flight_than_credits() -> None:
    upscaler = Blocked()
    ends = Ends([frame(i) for i in range(10)])
    with serving(upscaler) as server, linked(server.address, ends) as link:
        assert link.wait_ready(WAIT_S)
        assert upscaler.began.wait(WAIT_S)
        assert link.status.in_flight == ends.taken <= 2
        upscaler.let.set()
        for _ in range(10):
            ends.results.get(timeout=WAIT_S)


def test_stop_returns_the_unanswered_frames() -> None:
    upscaler = Blocked()
    ends = Ends([frame(0), frame(1)])
    with serving(upscaler) as server:
        link = Link(server.address, session="test", source=ends, sink=ends)
        link.start()
        assert upscaler.began.wait(WAIT_S)
        left = link.stop()
        upscaler.let.set()
    assert [f.seq for f in left] == [0, 1]


def test_frames_in_flight_survive_a_killed_server() -> None:
    """SIGKILL in mid-computation, then a new server on the same port: everything comes back once."""
    frames = [frame(i, (64, 64)) for i in range(40)]
    ends = Ends(frames)
    with ServerProcess() as first, linked(first.address, ends) as link:
        assert link.wait_ready(WAIT_S)
        got = [ends.results.get(timeout=WAIT_S) for _ in range(5)]
        first.kill()
        with ServerProcess(first.address):
            got += [ends.results.get(timeout=WAIT_S) for _ in range(len(frames) - len(got))]
        assert link.status.in_flight == 0
    assert sorted(r.seq for r in got) == list(range(40))
    assert ends.results.empty()


def test_another_model_is_refused_and_nothing_is_mixed() -> None:
    ends = Ends([frame(0)])

    def accept(models: tuple[ModelInfo, ...]) -> str | None:
        return f"{models[0].id} is another model"

    with serving() as server, linked(server.address, ends, accept=accept) as link:
        assert not link.wait_ready(WAIT_S)
        assert link.status.state == "refused"
        assert "another model" in link.status.detail
        assert ends.taken == 0


def test_a_session_begins_with_the_model_that_it_asks_for() -> None:
    ends = Ends([frame(0)])
    models = [Bilinear(2), Brighter(5)]
    with serving(models) as server, linked(server.address, ends, model="plus-5"):
        assert ends.results.get(timeout=WAIT_S).model == "plus-5"


def test_an_unknown_model_is_refused_with_what_the_server_holds() -> None:
    with serving() as server, linked(server.address, Ends(), model="em-x9") as link:
        assert not link.wait_ready(WAIT_S)
        assert "bilinear-x2" in link.status.detail


def test_a_refused_frame_is_reported_once_and_the_next_is_served() -> None:
    ends = Ends([frame(0, (200, 200)), frame(1, (20, 20))])
    with serving(Bilinear(2, max_pixels=10_000)) as server, linked(server.address, ends):
        seq, code, message = ends.refusals.get(timeout=WAIT_S)
        assert (seq, code) == (0, "too_large")
        assert "10000" in message.replace(" ", "").replace(",", "").replace("_", "")
        assert ends.results.get(timeout=WAIT_S).seq == 1


def test_ipv6_loopback_works() -> None:
    ends = Ends([frame(0)])
    with serving(address="tcp://[::1]:*") as server, linked(server.address, ends):
        assert ends.results.get(timeout=WAIT_S).seq == 0


def test_a_faulty_result_is_not_believed() -> None:
    """A peer that answers with the wrong size is reported, and its pixels go nowhere."""
    ends = Ends([frame(3)])
    model = ModelInfo("m", "0" * 64, 2, "float32", "cpu", 10**9, ("uint8", "uint16"))
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with linked(f"tcp://127.0.0.1:{port}", ends) as link:
            who, *parts = router.recv_multipart()
            assert isinstance(codec.decode(parts)[0], Hello)
            router.send_multipart([who, *codec.encode(Welcome("s", "0", (model,), warm=True, credits=2))])
            assert link.wait_ready(WAIT_S)
            while len(parts) < 2:
                who, *parts = router.recv_multipart()
            from live_sr.wire.messages import Result

            wrong = np.zeros((3, 3), np.uint16)
            result = Result("test", 3, (3, 3), "uint16", "0" * 64, 0.0, 0.0)
            router.send_multipart([who, *codec.encode(result, wrong)])
            while link.status.state != "refused":
                who, *parts = router.recv_multipart()
                from live_sr.wire.messages import Heartbeat

                message, _ = codec.decode(parts)
                if isinstance(message, Heartbeat):
                    router.send_multipart([who, *codec.encode(Heartbeat(message.number, server="s"))])
            assert "faulty" in link.status.detail
        assert ends.results.empty()
        router.linger = 0


def test_remote_upscaler_is_an_upscaler() -> None:
    with serving(Bilinear(4)) as server, RemoteUpscaler(server.address, session="r") as remote:
        assert remote.info.scale == 4
        pixels = frame(1).pixels
        np.testing.assert_array_equal(remote.upscale([pixels, pixels])[1], bilinear(pixels, 4))


def test_remote_upscaler_stays_with_the_model_it_began_with() -> None:
    models = [Bilinear(2), Brighter(5)]
    with serving(models) as first, RemoteUpscaler(first.address, session="r", model="plus-5") as remote:
        assert remote.info.id == "plus-5"
        pixels = frame(1).pixels
        np.testing.assert_array_equal(remote.upscale([pixels])[0], bilinear(pixels, 2) + np.uint16(5))


def test_remote_upscaler_takes_what_the_servers_model_takes() -> None:
    stack = np.stack([frame(i).pixels for i in range(5)])
    model = Bilinear(2, frames=5, neighbours="z", max_pixels=stack[0].size)
    with serving(model) as server, RemoteUpscaler(server.address, session="r") as remote:
        assert (remote.info.frames, remote.info.neighbours) == (5, "z")
        np.testing.assert_array_equal(remote.upscale([stack])[0], bilinear(stack, 2))
        with pytest.raises(InputError, match="middle one of 5 frames"):
            remote.upscale([stack[0]])
        with pytest.raises(InputError, match="server's limit"):
            remote.upscale([np.ones((5, 33, 48), np.uint16)])


def test_remote_upscaler_names_the_missing_server() -> None:
    with pytest.raises(LiveSRError, match="live-sr serve"):
        RemoteUpscaler("tcp://127.0.0.1:9", session="r", timeout=0.2)


def test_remote_upscaler_that_is_closed_ends_the_call_that_waits() -> None:
    gate = Gated()
    with serving(gate) as server, RemoteUpscaler(server.address, session="r") as remote:
        ended: queue.Queue[Exception] = queue.Queue()

        def wait() -> None:
            try:
                remote.upscale([frame(0).pixels])
            except LiveSRError as e:
                ended.put(e)

        caller = threading.Thread(target=wait)
        caller.start()
        while remote.status.in_flight == 0:
            threading.Event().wait(0.01)
        remote.close()
        assert "computes no more frames of this" in str(ended.get(timeout=WAIT_S))
        caller.join(timeout=WAIT_S)
        gate.open()


def test_remote_upscaler_waits_in_vain_for_no_other_model() -> None:
    gate = Gated()
    with contextlib.ExitStack() as second, contextlib.ExitStack() as first:
        server = first.enter_context(serving(gate))
        remote = second.enter_context(RemoteUpscaler(server.address, session="r"))
        gate.open()
        first.close()
        second.enter_context(serving(Brighter(3), server.address))
        with pytest.raises(LiveSRError, match=r"computes no more frames of this: .* the server holds plus-3"):
            remote.upscale([frame(0).pixels])


def test_remote_upscaler_passes_a_refusal_on() -> None:
    class Broken(Bilinear):
        def upscale(self, frames: Sequence[Pixels]) -> list[Pixels]:
            raise InputError("this model cannot do that")

    with (
        serving(Broken(2)) as server,
        RemoteUpscaler(server.address, session="r") as remote,
        pytest.raises(RemoteError, match="cannot do that"),
    ):
        remote.upscale([frame(0).pixels])


@pytest.mark.parametrize("address", ["", "here", "tcp://", "tcp://host", "udp://1.2.3.4:5", "ipc://"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="tcp://HOST:PORT"):
        Link(address, session="t", source=Ends(), sink=Ends())
