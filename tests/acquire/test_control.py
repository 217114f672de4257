"""The control channel over its real socket; what is asked for is only noted here."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq

from live_sr.acquire import control as module
from live_sr.acquire.control import Control
from live_sr.client.control import Cancel, Choose, Command, ControlClient, Pause, Reply, Start, SuperResolve
from live_sr.errors import ConfigError, InputError, WireError
from live_sr.wire.commands import COMMANDS, Request, decode_reply, encode

TOKEN = "a token that only the tests know"
WAIT_S = 10


@contextmanager
def listening(
    asked: list[Command] | None = None, address: str = "tcp://127.0.0.1:*", **options: object
) -> Iterator[Control]:
    def obey(command: Command) -> str:
        if command == Choose("broken"):
            raise ZeroDivisionError("a mistake \udcff" + "." * 2000)
        if command == Choose("unknown"):
            raise InputError("no server holds unknown")
        if asked is not None:
            asked.append(command)
        return "done so"

    control = Control(address, **{"token": TOKEN, "allow": COMMANDS, "obey": obey, **options})  # type: ignore[arg-type]
    control.start()
    try:
        yield control
    finally:
        control.stop()


def client(control: Control, token: str = TOKEN) -> ControlClient:
    return ControlClient(control.address, token, WAIT_S)


@contextmanager
def socket(control: Control) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.rcvtimeo = WAIT_S * 1000
        dealer.connect(control.address)
        yield dealer


def test_every_command_arrives_as_it_was_sent() -> None:
    asked: list[Command] = []
    sent: list[Command] = [
        Choose("em-x4", "FITC"),
        SuperResolve(False),
        Pause(),
        Pause(False),
        Cancel(),
        Start(),
    ]
    with listening(asked) as control:
        for command in sent:
            assert client(control).request(command) == Reply("done", "done so")
    assert asked == sent


def test_it_works_over_ipc_and_for_several_at_once(tmp_path: Path) -> None:
    asked: list[Command] = []
    with listening(asked, f"ipc://{tmp_path / 'c.sock'}") as control:
        threads = [threading.Thread(target=client(control).request, args=(Start(),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert asked == [Start()] * 8


def test_a_wrong_token_is_refused_without_detail_and_nothing_is_done() -> None:
    asked: list[Command] = []
    with listening(asked) as control:
        for wrong in ("", TOKEN[:-1], TOKEN + "x", "ß" * 256):
            assert client(control, wrong).request(Cancel()) == Reply("token", "the token is wrong")
        assert client(control).request(Cancel()).ok
    assert asked == [Cancel()]


def test_guesses_are_slowed_down_and_hardly_delay_the_operator() -> None:
    with listening() as control, socket(control) as guesser:
        for n in range(50):
            guesser.send(encode(Request(f"guess {n}", Cancel())))
        assert decode_reply(guesser.recv()).code == "token"
        began = time.monotonic()
        assert client(control).request(Start()).ok
        waited_s = time.monotonic() - began
        assert waited_s < 25 * module.WRONG_S, "the operator waits for one or two of the guesses, not for all"
        answered = 0
        while guesser.poll(0):
            assert decode_reply(guesser.recv()).code == "token"
            answered += 1
        assert answered <= 2 + waited_s / module.WRONG_S


def test_what_is_not_allowed_is_refused_with_what_is() -> None:
    asked: list[Command] = []
    with listening(asked, allow=("sr", "choose")) as control:
        assert control.allowed == ("choose", "sr")
        reply = client(control).request(Cancel())
        assert reply.code == "not_allowed"
        assert "allows: choose, sr" in reply.message
        assert client(control).request(SuperResolve(True)).ok
    assert asked == [SuperResolve(True)]


def test_what_is_impossible_or_fails_is_told_and_the_channel_stays() -> None:
    with listening() as control:
        assert client(control).request(Choose("unknown")) == Reply("impossible", "no server holds unknown")
        failed = client(control).request(Choose("broken"))
        assert failed.code == "failed"
        assert failed.message.startswith("ZeroDivisionError: a mistake ?")
        assert client(control).request(Start()).ok


def test_hostile_bytes_are_answered_as_malformed_or_cut_off_and_the_operator_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WRONG_S", 0.0)  # as many as possible
    asked: list[Command] = []
    rng = np.random.default_rng(4)
    right = encode(Request(TOKEN, Choose("m", "c")))
    with listening(asked) as control:
        with socket(control) as peer:
            for n in range(300):
                part = bytearray(right)
                part[int(rng.integers(0, len(right)))] ^= int(rng.integers(1, 256))
                sent = (
                    [bytes(part)] if n % 2 else [rng.bytes(int(rng.integers(0, 100))) for _ in range(n % 3 + 1)]
                )
                peer.send_multipart(sent)
                assert decode_reply(peer.recv()).code in ("malformed", "token", "done")
        with socket(control) as peer:
            peer.send(bytes(module.MAX_BYTES + 1))  # ZeroMQ ends the connection
            assert peer.poll(100) == 0
        assert client(control).request(Start()).ok
    assert asked[-1] == Start()
    assert all(isinstance(command, Choose) for command in asked[:-1]), "a changed name at most"


def test_an_answer_that_is_none_is_told() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")

        def answer() -> None:
            peer, _ = router.recv_multipart()
            router.send_multipart([peer, b"HTTP/1.1 400 Bad Request"])

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(WireError, match="another program"):
            ControlClient(f"tcp://127.0.0.1:{port}", TOKEN, WAIT_S).request(Start())
        thread.join()


@pytest.mark.parametrize("address", ["tcp://192.0.2.1:5757", "tcp://gpu-box:5757", "", "here"])
def test_a_token_never_leaves_this_machine(address: str) -> None:
    with pytest.raises(ConfigError):
        ControlClient(address, TOKEN)


def test_it_ends_at_once_also_while_it_slows_somebody_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRONG_S", 60.0)
    with listening() as control:
        assert client(control, "wrong").request(Start()).code == "token"
        began = time.monotonic()
    assert time.monotonic() - began < 5
