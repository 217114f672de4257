"""An operator's commands through the page: its process, a real feed and a real control channel."""

from __future__ import annotations

import asyncio
import functools
import http.client
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from starlette.requests import Request
from view_process import TOKEN, page_process

from live_sr.acquire.control import Control
from live_sr.client.control import Cancel, Choose, Command, ControlClient, Pause, SuperResolve
from live_sr.client.feed import ControlStatus, Feed, FeedStatus
from live_sr.errors import LiveSRError
from live_sr.view import control as controlling
from live_sr.view.control import MAX_BODY, SILENT_S, Commands

WAIT_S = 20.0
LOCAL = "tcp://127.0.0.1:*"
ALLOWED = ("choose", "sr", "pause", "cancel")


@dataclass
class Acquisition:
    """What the page talks to: a feed, and a channel that notes what it is told and does as `answer` says."""

    feed: Feed
    port: int
    obeyed: list[Command] = field(default_factory=list)
    answer: Callable[[Command], str] = lambda command: f"did {type(command).__name__}"

    def obey(self, command: Command) -> str:
        self.obeyed.append(command)
        return self.answer(command)

    def status(self, control: ControlStatus) -> None:
        """Publish it, and wait until the page has it."""
        self.feed.status(FeedStatus(session="s", control=control))
        deadline = time.monotonic() + WAIT_S
        while (self._get("/status.json")["status"] or {}).get("control") != json.loads(
            msgspec.json.encode(control)
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _get(self, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        connection.request("GET", path)
        said: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return said

    def command(self, body: str, **headers: str) -> tuple[int, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        connection.request("POST", "/control", body, {"Authorization": f"Bearer {TOKEN}", **headers})
        answer = connection.getresponse()
        status, said = answer.status, json.loads(answer.read())
        connection.close()
        return status, said


@pytest.fixture(scope="module")
def page() -> Iterator[Acquisition]:
    with Feed(LOCAL) as feed, page_process(feed.address) as (url, _):
        yield Acquisition(feed, urlsplit(url).port or 0)


@pytest.fixture
def acquisition(page: Acquisition) -> Iterator[Acquisition]:
    page.obeyed.clear()
    page.answer = lambda command: f"did {type(command).__name__}"
    control = Control(LOCAL, token=TOKEN, allow=ALLOWED, obey=page.obey)
    control.start()
    try:
        page.status(ControlStatus(address=control.address, allowed=control.allowed))
        yield page
    finally:
        control.stop()


COMMANDS: dict[str, tuple[str, Command]] = {
    "choose": ('{"type": "choose", "model": "em-x4", "channel": "FITC"}', Choose("em-x4", "FITC")),
    "choose for all": ('{"type": "choose", "model": "em-x4"}', Choose("em-x4")),
    "sr": ('{"type": "sr", "on": false}', SuperResolve(False)),
    "pause": ('{"type": "pause", "on": true}', Pause(True)),
    "resume": ('{"type": "pause", "on": false}', Pause(False)),
    "cancel": ('{"type": "cancel"}', Cancel()),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_reaches_the_acquisition_and_its_answer_the_page(acquisition: Acquisition, name: str) -> None:
    body, command = COMMANDS[name]
    status, said = acquisition.command(body)
    assert (status, said) == (200, {"code": "done", "message": f"did {type(command).__name__}"})
    assert acquisition.obeyed == [command]


def test_a_refusal_of_the_acquisition_is_passed_on(acquisition: Acquisition) -> None:
    status, said = acquisition.command('{"type": "start"}')
    assert (status, said["code"]) == (409, "not_allowed")
    assert "does not take 'start'" in said["message"]

    def refuse(command: Command) -> str:
        raise LiveSRError("no sequence is running")

    acquisition.answer = refuse
    assert acquisition.command('{"type": "cancel"}') == (
        409,
        {"code": "impossible", "message": "no sequence is running"},
    )


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{}",
        "[]",
        '{"type": "shutdown"}',
        '{"type": "sr"}',
        '{"type": "sr", "on": 1}',
        '{"type": "cancel", "x": 1}',
        "\0",
        '{"type": "choose", "model": "' + "m" * 500 + '"}',
    ],
)
def test_what_is_no_command_reaches_nobody(acquisition: Acquisition, body: str) -> None:
    status, said = acquisition.command(body)
    assert (status, said["code"]) == (400, "malformed")
    assert acquisition.obeyed == []


def test_a_long_body_is_cut_off(acquisition: Acquisition) -> None:
    assert acquisition.command(" " * (MAX_BODY + 1))[0] == 413


def test_an_acquisition_without_a_channel_is_said_to_take_none(page: Acquisition) -> None:
    page.status(ControlStatus())
    status, said = page.command('{"type": "cancel"}')
    assert status == 409
    assert said["message"].startswith("this acquisition takes no commands")


# --------------------------------------------------------------------------------- without a process


def ask(commands: Commands) -> tuple[int, dict[str, str]]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"type": "cancel"}'}

    request = Request({"type": "http", "method": "POST", "path": "/control", "headers": []}, receive)
    with ThreadPoolExecutor() as elsewhere:  # Playwright's loop runs on this thread once a browser was open
        response = elsewhere.submit(asyncio.run, commands._post(request)).result()
    return response.status_code, json.loads(bytes(response.body))


def heard(silent_s: float | None, **control: Any) -> Callable[[], tuple[FeedStatus | None, float | None]]:
    status = FeedStatus(control=ControlStatus(**control)) if silent_s is not None else None
    return lambda: (status, silent_s)


@pytest.mark.parametrize("silent_s", [None, SILENT_S + 1])
def test_nothing_is_asked_of_an_acquisition_that_is_not_heard(silent_s: float | None) -> None:
    status, said = ask(Commands(heard(silent_s, address="tcp://127.0.0.1:9"), TOKEN))
    assert (status, said["message"]) == (409, "there is no word from the acquisition: start it first")


def test_without_a_token_no_command_is_sent() -> None:
    status, said = ask(Commands(heard(0.0, address="tcp://127.0.0.1:9"), ""))
    assert status == 409
    assert said["message"].startswith("this page has no token")


def test_a_silent_channel_and_one_of_another_machine_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlling, "ControlClient", functools.partial(ControlClient, timeout_s=0.2))
    status, said = ask(Commands(heard(0.0, address="tcp://127.0.0.1:9"), TOKEN))
    assert status == 504
    assert "did not answer within 0.2 s" in said["message"]
    # The token never leaves this machine, whatever the feed says.
    status, said = ask(Commands(heard(0.0, address="tcp://gpu-box:5757"), TOKEN))
    assert status == 504
    assert "gpu-box" in said["message"]


def test_a_wrong_token_of_the_channel_is_told() -> None:
    control = Control(LOCAL, token="another token altogether", allow=ALLOWED, obey=lambda command: "never")
    control.start()
    try:
        status, said = ask(Commands(heard(0.0, address=control.address), TOKEN))
    finally:
        control.stop()
    assert (status, said) == (409, {"code": "token", "message": "the token is wrong"})
