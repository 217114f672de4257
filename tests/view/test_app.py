from __future__ import annotations

import asyncio
import http.client
import io
import json
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from numpy.typing import NDArray
from PIL import Image
from starlette.requests import Request
from view_process import page_process
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from live_sr.client.feed import Feed, FeedStatus, FrameInfo, frame_message, status_message
from live_sr.errors import ConfigError
from live_sr.view.app import MAX_BROWSERS, Pages, run
from live_sr.view.browser import report
from live_sr.view.request import Ask, Look, Looks, Measure
from live_sr.view.watcher import CHANNELS, Watcher

PATIENCE_S = 20.0  # for a loaded machine; nothing waits this long when it works


def info(seq: int, **changes: Any) -> FrameInfo:
    # Old enough never to hold a raw frame back: each test shows what it wants to see.
    captured_ns = time.monotonic_ns() - 10**9
    given = {"session": "s", "seq": seq, "captured_ns": captured_ns, "model": "em-x4", "scale": 4, **changes}
    return FrameInfo(**given)


def planes(seq: int = 0, side: int = 40) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    raw = np.random.default_rng(seq).integers(1000, 3000, (side, side), dtype=np.uint16)
    return raw, np.repeat(np.repeat(raw, 4, 0), 4, 1)


class Watched:
    """A watcher on a socket that the test sends on, and a way to wait for what it makes of it."""

    def __init__(self, watcher: Watcher, publisher: zmq.Socket[bytes]) -> None:
        self.watcher = watcher
        self.publisher = publisher
        self.changed = threading.Condition()
        watcher.on_change = self._notify

    def _notify(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def wait(self, condition: Any) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE_S)

    def raw(self, seq: int, **changes: Any) -> None:
        self.publisher.send(b"".join(frame_message(info(seq, **changes), planes(seq)[0], None)))

    def pair(self, seq: int, **changes: Any) -> None:
        self.publisher.send(b"".join(frame_message(info(seq, **changes), *planes(seq))))

    def status(self, **changes: Any) -> None:
        self.publisher.send(status_message(FeedStatus(**changes)))

    @property
    def sides(self) -> tuple[int | None, int | None]:
        """Frame numbers on show."""
        show = self.watcher.on_show
        left, right = (side.frame.seq if side is not None else None for side in (show.left, show.right))
        return left, right


@pytest.fixture
def watched() -> Iterator[Watched]:
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        publisher.linger = 0
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        with Watcher(f"tcp://127.0.0.1:{port}") as watcher:
            watched = Watched(watcher, publisher)
            publisher.recv()  # it has subscribed
            yield watched


def test_a_pair_is_shown_on_both_sides(watched: Watched) -> None:
    watched.pair(3)
    watched.wait(lambda: watched.sides == (3, 3))
    left, right = watched.watcher.on_show.left, watched.watcher.on_show.right
    assert left is not None
    assert right is not None
    np.testing.assert_array_equal(left.pixels, planes(3)[0])
    np.testing.assert_array_equal(right.pixels, planes(3)[1])
    assert left.age_ms >= 1000


def test_while_acquiring_the_left_shows_the_newest_raw_frame(watched: Watched) -> None:
    watched.status(state="acquiring")
    watched.wait(lambda: watched.watcher.status is not None)
    watched.pair(3)
    watched.raw(7)
    watched.wait(lambda: watched.sides == (7, 3))
    watched.pair(5)
    watched.wait(lambda: watched.sides == (7, 5))


def test_while_draining_both_sides_show_one_frame(watched: Watched) -> None:
    watched.status(state="draining")
    watched.wait(lambda: watched.watcher.status is not None)
    watched.raw(7)
    watched.wait(lambda: watched.sides == (7, None))
    watched.pair(3, deferred=True)
    watched.wait(lambda: watched.sides == (3, 3))


def test_while_acquiring_a_frame_made_up_for_does_not_replace_a_newer_one(watched: Watched) -> None:
    watched.status(state="acquiring")
    watched.wait(lambda: watched.watcher.status is not None)
    watched.pair(7)
    watched.wait(lambda: watched.sides == (7, 7))
    watched.pair(3, deferred=True)
    watched.wait(lambda: watched.watcher.frames == 2)
    assert watched.sides == (7, 7)
    watched.pair(8, deferred=True)
    watched.wait(lambda: watched.sides == (8, 8))


def test_a_new_session_clears_the_old_images(watched: Watched) -> None:
    watched.pair(3, session="one")
    watched.wait(lambda: watched.sides == (3, 3))
    watched.raw(0, session="two")
    watched.wait(lambda: watched.sides == (0, None))


def test_a_repeat_changes_nothing(watched: Watched) -> None:
    watched.pair(3)
    watched.wait(lambda: watched.sides == (3, 3))
    number = watched.watcher.on_show.number
    watched.pair(3)
    watched.wait(lambda: watched.watcher.frames == 2)
    assert watched.watcher.on_show.number == number


def test_each_channel_keeps_its_contrast(watched: Watched) -> None:
    for channel, offset in (("BSE", 0), ("SE", 20_000), ("BSE", 0)):
        seq = watched.watcher.frames
        raw = planes(seq)[0] + np.uint16(offset)
        watched.publisher.send(b"".join(frame_message(info(seq, channel=channel), raw, None)))
        watched.wait(lambda seq=seq: watched.sides[0] == seq)
        window = watched.watcher.on_show.window
        assert offset + 1000 <= window.low < window.high <= offset + 3000


def test_the_newest_frame_of_each_channel_is_kept(watched: Watched) -> None:
    for seq, channel in enumerate(["BSE", "SE", "SE", "BSE"]):
        watched.pair(seq, channel=channel)
        watched.wait(lambda seq=seq: watched.sides == (seq, seq))
    kept = watched.watcher.on_show.channels
    assert {name: show.right and show.right.frame.seq for name, show in kept.items()} == {"SE": 2, "BSE": 3}
    before = kept["SE"].number
    watched.pair(4, channel="BSE")
    watched.wait(lambda: watched.sides == (4, 4))
    assert watched.watcher.on_show.channels["SE"].number == before, "nothing new for who watches this one"


def test_channels_that_were_not_seen_for_long_are_forgotten(watched: Watched) -> None:
    for seq in range(CHANNELS + 2):
        watched.pair(seq, channel=f"c{seq}")
        watched.wait(lambda seq=seq: watched.sides == (seq, seq))
    assert list(watched.watcher.on_show.channels) == [f"c{seq}" for seq in range(2, CHANNELS + 2)]


def test_garbage_is_ignored_and_counted(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    garbage: list[list[bytes]] = [
        [b""],
        [b"x" * 5000],
        [b"LSF1\xff\xff\xff\xff"],
        [b"LSF1" + struct.pack("<I", 3) + b"\x93\x01\x02"],
        [status_message(FeedStatus()), b"second part"],
    ]
    for n, parts in enumerate(garbage, start=1):
        watched.publisher.send_multipart(parts)
        # One at a time: the subscriber's own bound would drop some of a burst.
        watched.wait(lambda n=n: watched.watcher.ignored == n)
    assert watched.watcher.heard_at is None
    watched.pair(1)
    watched.wait(lambda: watched.sides == (1, 1))
    assert len(caplog.records) == 1, "one warning, not one per message"


def test_an_error_of_our_own_is_told(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr("live_sr.view.watcher.decode")
    watched.pair(1)
    watched.wait(lambda: watched.watcher.failed)
    assert "start live-sr view again" in caplog.text
    asked = Pages(watched.watcher).healthz(Request({"type": "http"}))
    with ThreadPoolExecutor() as elsewhere:  # Playwright's loop runs on this thread once a browser was open
        answer = elsewhere.submit(asyncio.run, asked).result()
    assert answer.status_code == 503
    assert report(watched.watcher)["feed"]["failed"] is True


# -------------------------------------------------------------------- the process


class Site:
    def __init__(self, url: str, feed: Feed) -> None:
        self.url = url
        self.feed = feed

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=PATIENCE_S)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def open(self, **options: Any) -> ClientConnection:
        address = self.url.replace("http", "ws") + "/ws"
        page: ClientConnection = connect(address, open_timeout=PATIENCE_S, max_size=None, **options)
        return page


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Feed("tcp://127.0.0.1:*", max_rate_hz=200) as feed, page_process(feed.address) as (url, _):
        yield Site(url, feed)


def by_hand(low: float, high: float, **changes: Any) -> dict[str, Looks]:
    """The same contrast for every channel and both sides."""
    return {"": Looks(left=Look(auto=False, low=low, high=high, **changes))}


def send(page: ClientConnection, request: Ask | Measure) -> None:
    page.send(msgspec.json.encode(request).decode())


def ask(page: ClientConnection, **changes: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Request an image and wait for it."""
    send(page, Ask(**changes))
    while True:
        answer = page.recv(timeout=PATIENCE_S)
        if isinstance(answer, bytes):
            break
    length = struct.unpack_from("<I", answer)[0]
    header = json.loads(answer[4 : 4 + length])
    images, at = {}, 4 + length
    for name, image in header["images"].items():
        images[name] = answer[at : at + image["bytes"]]
        at += image["bytes"]
    assert at == len(answer)
    return header, images


def measure(page: ClientConnection, **request: Any) -> dict[str, Any]:
    """Grey values of the frame that the page shows."""
    send(page, Measure(7, **request))
    while True:
        answer = page.recv(timeout=PATIENCE_S)
        if isinstance(answer, str) and "measured" in (said := json.loads(answer)):
            measured: dict[str, Any] = said["measured"]
            assert measured["id"] == 7
            return measured


def ask_until(page: ClientConnection, session: str, **changes: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    while True:
        header, images = ask(page, **changes)
        if header["right"] and header["right"]["session"] == session:
            return header, images


def read_to_the_end(page: ClientConnection) -> None:
    while True:
        page.recv(timeout=PATIENCE_S)


def pixels(image: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(image)))


def test_the_page_and_its_files_are_served_with_security_headers(site: Site) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/static/app.js", "javascript"),
        ("/static/style.css", "text/css"),
        ("/healthz", "text/plain"),
        ("/status.json", "application/json"),
    ):
        status, headers, body = site.get(path)
        assert (status, bool(body)) == (200, True), path
        assert kind in headers["content-type"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert b"https://" not in body, "nothing is loaded from elsewhere"


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/nothing"])
def test_nothing_else_is_served(site: Site, path: str) -> None:
    assert site.get(path)[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "192.168.1.5", "", "[", "127.0.0.1.evil.example"]
)
def test_another_host_name_is_refused(site: Site, host: str) -> None:
    assert site.get("/status.json", Host=host)[0] == 403


def test_another_sites_page_is_refused(site: Site) -> None:
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://localhost"):
        with pytest.raises(InvalidStatus) as refused:
            site.open(origin=origin)
        assert refused.value.response.status_code == 403
        assert site.get("/snapshot.png", Origin=origin)[0] == 403
    with site.open(origin=site.url) as page:
        assert json.loads(page.recv(timeout=PATIENCE_S))["feed"]["address"] == site.feed.address


def test_a_tunnel_to_another_port_is_served(site: Site) -> None:
    assert site.get("/healthz", Host="localhost:9000", Origin="http://localhost:9000")[0] == 200


def test_an_exact_image_has_the_pixels_of_the_frame(site: Site) -> None:
    raw, sr = planes(1)
    site.feed.show_pair(info(1, session="exact", pixel_size_um=0.01, latency_ms=90.0), raw, sr)
    with site.open() as page:
        header, images = ask_until(page, "exact", exact=True, looks=by_hand(1000, 3000))
    for side, expected in (("left", raw), ("right", sr)):
        grey = np.rint((expected.astype(float) - 1000) / 2000 * 255)
        np.testing.assert_array_equal(pixels(images[side]), grey)
    right = header["right"]
    assert (right["seq"], right["model"], right["scale"]) == (1, "em-x4", 4)
    assert header["images"]["right"]["type"] == "image/png"
    assert (right["field"], right["shape"], right["pixel_size_um"]) == ([40, 40], [160, 160], 0.01)
    assert right["age_ms"] > 1000


def test_browsers_share_an_image_and_each_gets_a_frame_once(site: Site) -> None:
    site.feed.show_pair(info(1, session="share"), *planes(1))
    with site.open() as one, site.open() as two:
        first, images = ask_until(one, "share")
        _, others = ask_until(two, "share")
        assert images == others
        assert first["images"]["left"]["type"] == "image/png", "so few pixels are always exact"
        send(one, Ask())  # nothing new: this waits
        site.feed.show_pair(info(2, session="share"), *planes(2))
        header, _ = ask_until(two, "share")
        assert header["left"]["seq"] == 2


def test_an_unchanged_side_is_not_sent_again(site: Site) -> None:
    site.feed.status(FeedStatus(state="acquiring"))
    with site.open() as page:
        site.feed.show_pair(info(1, session="same"), *planes(1))
        ask_until(page, "same", looks=by_hand(0, 9))
        site.feed.show_raw(info(2, session="same"), planes(2)[0])
        header, images = ask(page, looks=by_hand(0, 9))
        assert (header["left"]["seq"], header["images"]["left"]["same"]) == (2, False)
        assert (header["right"]["seq"], header["images"]["right"]["same"]) == (1, True)
        assert images["right"] == b""


def test_a_paused_page_keeps_its_frame_in_new_contrast(site: Site) -> None:
    raw, _ = planes(1)
    with site.open() as paused, site.open() as live:
        site.feed.show_pair(info(1, session="pause"), *planes(1))
        ask_until(paused, "pause")
        site.feed.show_pair(info(2, session="pause"), *planes(2))
        while ask(live)[0]["left"]["seq"] != 2:
            pass
        header, images = ask(paused, again=True, exact=True, looks=by_hand(0, 4000))
        assert header["left"]["seq"] == 1
        np.testing.assert_array_equal(pixels(images["left"]), np.rint(raw / 4000 * 255))


def test_contrast_changes_at_once_without_a_new_frame(site: Site) -> None:
    site.feed.show_pair(info(1, session="contrast"), *planes(1))
    with site.open() as page:
        ask_until(page, "contrast", exact=True)
        for high in (2000.0, 2500.0, 3000.0):
            _, images = ask(page, exact=True, looks=by_hand(1000, high))
            assert pixels(images["left"]).max() == 255


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"type": "other"}',
        '{"type": "ask", "other": 1}',
        '{"type": "ask", "area": [0, 0, 1e99, 1]}',
        '{"type": "ask", "area": [0, 0, NaN, 1]}',
        '{"type": "ask", "canvas": [1, 1]}',
        '{"type": "ask", "planes": []}',
        '{"type": "ask", "looks": {"": {"left": {"low": "x"}}}}',
        '{"type": "ask", "looks": {"": {"left": {"lut": "rainbow"}}}}',
        '{"type": "measure"}',
    ],
)
def test_a_request_of_another_kind_closes_the_connection(site: Site, text: str) -> None:
    with site.open() as page:
        page.send(text)
        with pytest.raises(ConnectionClosed):
            read_to_the_end(page)


def test_a_long_request_closes_the_connection(site: Site) -> None:
    with site.open() as page:
        page.send(" " * 100_000)
        with pytest.raises(ConnectionClosed):
            read_to_the_end(page)
    assert site.get("/healthz")[0] == 200


def test_the_number_of_pages_is_bounded(site: Site) -> None:
    with ExitStack() as stack:
        for _ in range(MAX_BROWSERS):
            stack.enter_context(site.open()).recv(timeout=PATIENCE_S)
        assert json.loads(site.get("/status.json")[2])["browsers"] == MAX_BROWSERS
        with pytest.raises(InvalidStatus):
            stack.enter_context(site.open())
    while True:  # each leaves when its connection has closed
        try:
            with site.open():
                break
        except InvalidStatus:
            continue


def test_only_the_visible_part_is_sent_as_large_as_the_canvas(site: Site) -> None:
    raw, sr = planes(1, side=200)
    site.feed.show_pair(info(1, session="part"), raw, sr)
    with site.open() as page:
        header, images = ask_until(page, "part", exact=True, looks=by_hand(0, 4000), canvas=(400, 400))
        assert pixels(images["right"]).shape == (400, 400)
        assert (header["images"]["right"]["factor"], header["images"]["right"]["area"]) == (2, [0, 0, 200, 200])
        part = {"area": (50, 20, 60, 40), "looks": by_hand(0, 4000), "canvas": (400, 800)}
        header, images = ask(page, **part)
    assert header["images"]["right"]["area"] == [50, 20, 60, 40]
    assert header["images"]["right"]["type"] == "image/png", "enlarged pixels are exact without pausing"
    expected = np.rint(sr[200:240, 80:160] / 4000 * 255)
    np.testing.assert_array_equal(pixels(images["right"]), expected)


def test_grey_values_are_those_of_the_full_frame_on_show(site: Site) -> None:
    raw, sr = planes(1, side=200)
    sr = sr + np.random.default_rng(9).integers(0, 99, sr.shape, dtype=np.uint16)
    site.feed.show_pair(info(1, session="values", channel="BSE"), raw, sr)
    with site.open() as page:
        ask_until(page, "values", canvas=(64, 64))
        site.feed.show_pair(info(2, session="values", channel="BSE"), *planes(2, side=200))
        with site.open() as other:
            while ask(other)[0]["left"]["seq"] != 2:
                pass
        found = measure(page, point=(17.8, 120.3), area=(10, 20, 40, 60))
        outside = measure(page, point=(-0.1, 3))
    assert found["point"] == [{"channel": "BSE", "left": int(raw[17, 120]), "right": int(sr[71, 481])}]
    for side, part in (("left", raw[10:40, 20:60]), ("right", sr[40:160, 80:240])):
        values = found["area"][0][side]
        assert (values["min"], values["max"], values["pixels"]) == (part.min(), part.max(), part.size)
        assert values["mean"] == pytest.approx(part.mean())
        assert values["std"] == pytest.approx(part.std())
    assert outside["point"] == [{"channel": "BSE", "left": None, "right": None}]
    assert outside["area"] is None


def test_a_page_on_one_channel_is_not_disturbed_by_the_others(site: Site) -> None:
    site.feed.show_pair(info(1, session="channels", channel="A"), *planes(1))
    with site.open() as one, site.open() as all_:
        ask_until(one, "channels", channel="A")
        send(one, Ask(channel="A"))  # waits for the next of A
        site.feed.show_pair(info(2, session="channels", channel="B"), *planes(2))
        while ask(all_)[0]["left"]["seq"] != 2:
            pass
        header, images = ask(all_, composite=True)
        assert (header["channels"], header["shown"]) == (["A", "B"], ["B", "A"])
        assert pixels(images["left"]).shape == (40, 40, 3)
        site.feed.show_pair(info(3, session="channels", channel="A"), *planes(3))
        header, _ = ask(one, channel="A")
    assert header["left"]["seq"] == 3


def test_saturated_pixels_of_the_whole_frame_are_counted(site: Site) -> None:
    raw, sr = planes(1)
    raw[3, 5], sr[100, 100], sr[101:103, 7] = 0, 65535, 4095
    site.feed.show_pair(info(1, session="mask"), raw, sr)
    with site.open() as page:
        header, _ = ask_until(page, "mask", mask=True, area=(30, 30, 40, 40))
        counts = {name: (image["low"], image["high"]) for name, image in header["images"].items()}
        assert counts == {"left": (1, 0), "right": (0, 1)}, "wherever the page looks"
        header, _ = ask(page, mask=True, bits=12)
        assert header["images"]["right"]["high"] == 3


def test_histograms_come_when_they_are_wanted(site: Site) -> None:
    raw, sr = planes(1)
    site.feed.show_pair(info(1, session="histogram"), raw, sr)
    with site.open() as page:
        header, _ = ask_until(page, "histogram")
        assert "histograms" not in header
        header, _ = ask(page, histogram=True, exact=True)
    low, high, counts = header["histograms"][""]["left"]
    assert (low, high, sum(counts)) == (raw.min(), raw.max(), raw.size)


def test_scripts_get_the_view_and_the_counters(site: Site) -> None:
    site.feed.status(FeedStatus(session="script", state="finished", counts={"acquired": 5}))
    site.feed.show_pair(info(4, session="script", pixel_size_um=0.01), *planes(4))
    with site.open() as page:
        ask_until(page, "script")
        while json.loads(page.recv(timeout=PATIENCE_S))["status"]["session"] != "script":
            pass
    status = json.loads(site.get("/status.json")[2])
    assert status["status"]["counts"] == {"acquired": 5}
    assert (status["left"]["seq"], status["right"]["shape"]) == (4, [160, 160])
    code, headers, body = site.get("/snapshot.png")
    assert (code, headers["content-type"]) == (200, "image/png")
    assert pixels(body).shape[0] == 640


def test_before_the_first_frame_and_on_sigterm() -> None:
    with page_process("tcp://127.0.0.1:9") as (url, process), Feed("tcp://127.0.0.1:*") as feed:
        site = Site(url, feed)
        code, _, body = site.get("/snapshot.png")
        assert (code, b"no frame yet" in body) == (404, True)
        assert json.loads(site.get("/status.json")[2])["status"] is None
        with site.open() as page:
            assert json.loads(page.recv(timeout=PATIENCE_S))["feed"]["silent_s"] is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=PATIENCE_S) == 0


def test_ctrl_c_stops_quietly() -> None:
    with page_process("tcp://127.0.0.1:9") as (_, process):
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE_S) == 0


def test_a_port_in_use_is_refused_with_a_next_step() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ConfigError, match="another --port"):
        run("tcp://127.0.0.1:5756", port=other.getsockname()[1])


def test_a_malformed_feed_is_refused() -> None:
    with pytest.raises(ConfigError, match="not an address"):
        run("127.0.0.1:5756", port=0)
