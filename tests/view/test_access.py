"""Who may use the page: real processes, on this machine's address and on all."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from view_process import TOKEN, page_process
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from live_sr.errors import ConfigError
from live_sr.view import access
from live_sr.view.access import TRIES, Access, Failures
from live_sr.view.app import run

FEED = "tcp://127.0.0.1:9"  # nobody publishes there


class Site:
    """A page's process, asked as a browser asks it, or worse."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.port = urlsplit(url).port or 0
        self.said = process.stdout.readline().strip()
        self.origin = f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: str | bytes = "", source: str = "127.0.0.1", **headers: str
    ) -> tuple[int, str, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20, source_address=(source, 0))
        connection.request(method, path, body, {name.replace("_", "-"): v for name, v in headers.items()})
        answer = connection.getresponse()
        said = answer.status, answer.read().decode(), answer.headers
        connection.close()
        return said

    def cookie(self, token: str = TOKEN) -> str:
        status, said, headers = self.ask("POST", "/access", token, Origin=self.origin)
        assert status == 204, said
        return headers["set-cookie"].partition(";")[0]


@pytest.fixture(scope="module")
def here() -> Iterator[Site]:
    with page_process(FEED) as (url, process):
        yield Site(url, process)


@pytest.fixture(scope="module")
def everywhere() -> Iterator[Site]:
    with page_process(FEED, host="0.0.0.0") as (url, process):
        yield Site(url, process)


def test_the_address_that_controls_is_printed_second(here: Site) -> None:
    assert here.said == f"to control: {here.origin}/#token={quote(TOKEN, safe='')}"


def test_on_this_machine_anyone_watches_and_only_the_token_does_more(here: Site) -> None:
    assert here.ask("GET", "/status.json")[0] == 200
    with connect(f"ws://127.0.0.1:{here.port}/ws") as socket:
        assert "feed" in json.loads(socket.recv())
    for method, path in (("POST", "/control"), ("GET", "/jobs"), ("POST", "/jobs"), ("DELETE", "/jobs/1")):
        status, said, headers = here.ask(method, path, Origin=here.origin)
        assert (status, headers["www-authenticate"]) == (401, "Bearer"), said
        assert "the token" in said
        assert here.ask(method, path, Authorization=f"Bearer {TOKEN}")[0] != 401
    cookie = here.cookie()
    assert here.ask("GET", "/jobs", Cookie=cookie)[0] == 200


def test_elsewhere_only_the_empty_page_opens_without_the_token(everywhere: Site) -> None:
    assert everywhere.ask("GET", "/")[0] == 200
    assert everywhere.ask("GET", "/static/style.css")[0] == 200
    for path in ("/status.json", "/snapshot.png", "/jobs", "/anything"):
        assert everywhere.ask("GET", path)[0] == 401
    url = f"ws://127.0.0.1:{everywhere.port}/ws"
    with pytest.raises(InvalidStatus) as refused, connect(url):
        pass
    assert refused.value.response.status_code == 403
    cookie = everywhere.cookie()
    assert everywhere.ask("GET", "/status.json", Cookie=cookie)[0] == 200
    with connect(url, additional_headers={"Cookie": cookie}) as socket:
        assert "feed" in json.loads(socket.recv())


def test_what_a_page_may_is_told(here: Site, everywhere: Site) -> None:
    def rights(site: Site, **headers: str) -> dict[str, bool]:
        told: dict[str, bool] = json.loads(site.ask("GET", "/access", **headers)[1])
        return told

    assert rights(here) == {"control": False, "watch": True, "possible": True}
    assert rights(everywhere) == {"control": False, "watch": False, "possible": True}
    both = {"control": True, "watch": True, "possible": True}
    assert rights(everywhere, Cookie=everywhere.cookie()) == both


def test_the_cookie_is_kept_from_scripts_and_other_sites_and_tells_no_token(here: Site) -> None:
    said = here.ask("POST", "/access", TOKEN, Origin=here.origin)[2]["set-cookie"]
    assert "HttpOnly" in said
    assert "SameSite=strict" in said
    assert TOKEN not in said
    name, _, value = said.partition(";")[0].partition("=")
    assert name == f"live_sr_{here.port}"
    until, _, mark = value.partition(".")
    for forged in (
        "",
        "1",
        f"{int(until) + 1}.{mark}",
        f"{until}.{mark[:-1]}",
        f"{until}.",
        f"x{value}",
        "9" * 999,
    ):
        assert here.ask("GET", "/jobs", Cookie=f"{name}={forged}")[0] == 401


def test_an_old_cookie_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Access(TOKEN, port=1)
    value = keeper._signed(int(time.time()) + 60)

    def refused(at: float) -> bool:
        monkeypatch.setattr(access.time, "time", lambda: at)
        headers = [(b"host", b"localhost"), (b"cookie", f"live_sr_1={value}".encode())]
        scope = {"type": "http", "method": "GET", "path": "/jobs", "headers": headers}
        return keeper.refusal(scope) is not None

    now = time.time()
    assert not refused(now)
    assert refused(now + 61)


WRONG = ["", "wrong", TOKEN[:-1], TOKEN + " x", "é" * 20, "\0", "x" * 5000]


@pytest.mark.parametrize("n", range(len(WRONG)))
def test_a_wrong_token_opens_nothing(here: Site, n: int) -> None:
    source = f"127.0.1.{n + 1}"  # each failure counts for the address that it comes from
    status, said, headers = here.ask("POST", "/access", WRONG[n].encode(), source=source, Origin=here.origin)
    assert status in (403, 413), said
    assert "set-cookie" not in headers


def test_guessing_is_slowed_down_also_for_the_right_guess(here: Site) -> None:
    def enter(token: str, source: str = "127.0.0.3", **headers: str) -> int:
        return here.ask("POST", "/access", token, source=source, Origin=here.origin, **headers)[0]

    cookie = here.cookie()
    assert [enter("wrong") for _ in range(TRIES)] == [403] * TRIES
    assert enter(TOKEN) == 429
    assert here.ask("GET", "/jobs", source="127.0.0.3", Authorization=f"Bearer {TOKEN}")[0] == 429
    assert enter(TOKEN, X_Forwarded_For="1.2.3.4") == 429, "a header must not make another sender of this one"
    assert here.ask("GET", "/jobs", source="127.0.0.3", Cookie=cookie)[0] == 200
    assert enter(TOKEN, source="127.0.0.4") == 204, "others are not kept out by it"


def test_failures_are_forgotten_in_time_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(access.time, "monotonic", lambda: now)
    failures = Failures()
    for _ in range(TRIES):
        assert not failures.too_many("a")
        failures.add("a")
    assert failures.too_many("a")
    assert not failures.too_many("b")
    now = access.TRY_S
    assert not failures.too_many("a")
    for n in range(2 * access.MAX_ADDRESSES):
        failures.add(str(n))
    assert len(failures._by) == access.MAX_ADDRESSES


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "evil.example:8765"])
def test_a_foreign_host_name_is_refused(here: Site, everywhere: Site, host: str) -> None:
    cookie = everywhere.cookie()
    assert here.ask("GET", "/", Host=host)[0] == 403
    assert everywhere.ask("GET", "/status.json", Host=host, Cookie=cookie)[0] == 403


def test_this_machine_may_be_called_by_its_names_and_addresses_where_others_are_served(
    here: Site, everywhere: Site
) -> None:
    import socket

    for host in (socket.gethostname(), "192.168.1.5:8765", "[fe80::1]:80", "localhost"):
        assert everywhere.ask("GET", "/", Host=host)[0] == 200
    assert here.ask("GET", "/", Host="192.168.1.5:8765")[0] == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
def test_a_foreign_page_is_refused_whatever_it_sends_along(here: Site, origin: str) -> None:
    cookie = here.cookie()
    for headers in ({"Cookie": cookie}, {"Authorization": f"Bearer {TOKEN}"}):
        assert here.ask("POST", "/control", "{}", Origin=origin, **headers)[0] == 403
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(f"ws://127.0.0.1:{here.port}/ws", origin=origin, additional_headers={"Cookie": cookie}),  # type: ignore[arg-type]
    ):
        pass
    assert refused.value.response.status_code == 403


def test_a_cookie_alone_changes_nothing(here: Site) -> None:
    status, said, _ = here.ask("POST", "/control", "{}", Cookie=here.cookie())
    assert status == 403
    assert "which page" in said


def test_a_browser_that_is_started_gets_a_code_that_works_once() -> None:
    keeper = Access(TOKEN)
    code = keeper.fragment_once().partition("=")[2]
    assert TOKEN not in code
    assert keeper._is_token(code)
    assert not keeper._is_token(code)


def test_other_machines_are_not_served_without_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIVE_SR_TOKEN", "short")
    with pytest.raises(ConfigError, match="5 characters"):
        run(FEED, host="0.0.0.0", port=0)
    open_to_all = tmp_path / "token"
    open_to_all.write_text("x" * 32)
    open_to_all.chmod(0o644)
    with pytest.raises(ConfigError, match="read by others"):
        run(FEED, port=0, token_file=open_to_all)
