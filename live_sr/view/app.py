"""`live-sr view`: shows the newest frames in browsers. Knows no camera and no model; stores nothing.

One thread reads the feed and keeps the newest; each browser asks for an image when it has drawn the last one,
so a slow browser sees fewer frames and delays nobody. Images are encoded once and shared. Only this machine is
served, and only its own page: requests under another host name or from another site's page are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import struct
import threading
import time
import webbrowser
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
import uvicorn
import zmq
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from live_sr.client.feed import MAX_MESSAGE, FeedFrame, FeedStatus, Plane, Shown, decode
from live_sr.config import DEFAULT_FEED, DEFAULT_PAGE_PORT
from live_sr.errors import ConfigError, WireError
from live_sr.frame import Pixels
from live_sr.view import render
from live_sr.view.render import AutoWindow, Encoding, Window
from live_sr.wire.security import check_address

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
POLL_MS = 100  # how long the reader takes to notice that it should stop
DRAIN = 64  # messages read before showing something, should they come faster than they are read
STATUS_S = 0.25  # how often a browser is told the counters, and that this process lives
MAX_BROWSERS = 16  # each may hold one encoded image: a bound on memory
MAX_REQUEST = 4096  # bytes; a page's requests have about 100
KEPT_IMAGES = 8  # encoded images shared between browsers: two planes in a few contrasts
ENCODERS = 2  # left and right at once
CHANNELS = 32  # channels with their own contrast; the oldest is forgotten
STOP_S = 2  # for browsers to say goodbye

LENGTH = struct.Struct("<I")  # bytes of the header before the images of one answer


FULL = Window(0.0, 255.0)  # before the first frame

# -------------------------------------------------------------------- what is on show


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One plane on show. `key` names its pixels: equal keys, equal pixels."""

    key: tuple[object, ...]
    pixels: Pixels
    plane: Plane
    frame: FeedFrame
    received: float  # time.monotonic() of this process

    @property
    def age_ms(self) -> float:
        """Since capture: the acquisition PC's share plus the time since then."""
        return self.frame.age_ms + (time.monotonic() - self.received) * 1000


@dataclass(frozen=True, slots=True, eq=False)
class OnShow:
    """What the page shows at one instant; `number` grows with every change."""

    number: int = 0
    left: Picture | None = None
    right: Picture | None = None
    window: Window = FULL
    range: Window = FULL


class Watcher:
    """Reads the feed in its own thread and keeps the newest of everything.

    Parameters
    ----------
    address : str
        Of the feed. It need not exist yet; the watcher connects when it appears, and again after each loss.

    Raises
    ------
    ConfigError
        When the address is malformed.
    """

    def __init__(self, address: str) -> None:
        check_address(address)
        self.address = address
        # Each is replaced as a whole by the thread and read by anyone:
        self.on_show = OnShow()
        self.status: FeedStatus | None = None
        self.heard_at: float | None = None  # time.monotonic() of the last good message
        self.frames = 0  # frames received, repeats included
        self.failed = False  # the thread ended by an error of ours
        self.ignored = 0  # messages that were not understood
        self.on_change: Callable[[], None] = lambda: None  # called on the thread
        self._pair: Picture | None = None
        self._pair_raw: Picture | None = None
        self._raw: Picture | None = None
        self._windows: dict[str, AutoWindow] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"live-sr watcher {address}", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=10)
        assert not self._thread.is_alive(), "the watcher waits for nothing longer than POLL_MS"

    @property
    def silent_s(self) -> float | None:
        """Seconds since the last good message; None before the first."""
        return None if self.heard_at is None else time.monotonic() - self.heard_at

    def _run(self) -> None:
        try:
            with zmq.Context() as context, context.socket(zmq.SUB) as sub:
                sub.linger = 0
                sub.rcvhwm = 2
                sub.maxmsgsize = MAX_MESSAGE
                sub.subscribe(b"")
                sub.connect(self.address)
                while not self._ended.is_set():
                    if sub.poll(POLL_MS):
                        self._drain(sub)
        except Exception:
            log.exception("reading the feed %s failed: start live-sr view again", self.address)
            self.failed = True
            self.on_change()

    def _drain(self, sub: zmq.Socket[bytes]) -> None:
        """Read all that waits, look only at the newest of each kind."""
        raw: Shown | None = None
        pair: Shown | None = None
        for _ in range(DRAIN):
            try:
                message = sub.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                content = decode(message[0] if len(message) == 1 else b"")
            except WireError as e:
                if self.ignored == 0:
                    log.warning("ignored a message on the feed %s: %s", self.address, e)
                self.ignored += 1
                continue
            self.heard_at = time.monotonic()
            if isinstance(content, FeedStatus):
                self.status = content
            elif content.sr is None:
                raw, self.frames = content, self.frames + 1
            else:
                pair, self.frames = content, self.frames + 1
        changed = [self._take(shown) for shown in (pair, raw) if shown is not None]
        if any(changed):
            self._choose()
        self.on_change()

    def _take(self, shown: Shown) -> bool:
        """Keep a frame's planes; False when it is only a repeat."""
        frame = shown.frame
        received = time.monotonic()
        identity = (frame.session, frame.seq)
        for held in (self._pair, self._raw):
            if held is not None and held.frame.session != frame.session:
                self._pair = self._pair_raw = self._raw = None
        raw = Picture(("raw", *identity), shown.raw, frame.raw, frame, received)
        if shown.sr is None or frame.sr is None:
            if self._raw is not None and self._raw.key == raw.key:
                return False
            self._raw = raw
            return True
        sr = Picture(("sr", *identity, frame.model), shown.sr, frame.sr, frame, received)
        if self._pair is not None and self._pair.key == sr.key:
            return False
        self._pair, self._pair_raw = sr, raw
        return True

    def _choose(self) -> None:
        """Put on show: right the newest SR frame, left its raw frame unless a newer one was acquired."""
        left, right = self._pair_raw, self._pair
        acquiring = self.status is not None and self.status.state == "acquiring"
        if self._raw is not None and (left is None or (acquiring and self._raw.frame.seq > left.frame.seq)):
            left = self._raw
        newest = max((p for p in (left, right) if p is not None), key=lambda p: p.received)
        planes = [p.pixels for p in (left, right) if p is not None]
        self.on_show = OnShow(
            number=self.on_show.number + 1,
            left=left,
            right=right,
            window=self._auto(newest.frame.channel).follow(render.grey_window(planes), newest.received),
            range=render.grey_range(planes),
        )

    def _auto(self, channel: str) -> AutoWindow:
        if channel not in self._windows and len(self._windows) >= CHANNELS:
            del self._windows[next(iter(self._windows))]
        return self._windows.setdefault(channel, AutoWindow())


# -------------------------------------------------------------------- what a browser asks and gets


Grey = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]  # any grey value, with room to overshoot


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A page's request for its next image.

    Attributes
    ----------
    auto : bool
        Contrast as the server chooses, else from `low` to `high`.
    exact : bool
        PNG instead of JPEG.
    again : bool
        The frame that the page shows already, in other contrast or exact: the page is paused.
    """

    auto: bool = True
    low: Grey = 0.0
    high: Grey = 255.0
    exact: bool = False
    again: bool = False


class Images:
    """Encoded planes, each made once for all browsers that want it alike."""

    def __init__(self, workers: ThreadPoolExecutor) -> None:
        self._workers = workers
        self._made: dict[tuple[object, ...], asyncio.Future[bytes]] = {}

    async def get(self, picture: Picture, window: Window, encoding: Encoding) -> bytes:
        """The encoded image; waits for the one in the making rather than making another."""
        key = (*picture.key, window, encoding)
        if key not in self._made:
            while len(self._made) >= KEPT_IMAGES:
                del self._made[next(iter(self._made))]
            loop = asyncio.get_running_loop()
            self._made[key] = loop.run_in_executor(self._workers, _draw, picture.pixels, window, encoding)
        return await asyncio.shield(self._made[key])


def _draw(pixels: Pixels, window: Window, encoding: Encoding) -> bytes:
    return render.encode(render.to_8bit(pixels, window), encoding)


class Browser:
    """One open page: at most one request is waiting, at most one answer under way."""

    def __init__(self, websocket: WebSocket, watcher: Watcher, images: Images) -> None:
        self.changed = asyncio.Event()
        self._socket = websocket
        self._watcher = watcher
        self._images = images
        self._ask: Ask | None = None
        self._answered: Ask | None = None
        self._shown = OnShow()
        self._has: dict[str, tuple[object, ...]] = {}  # what the page holds, by side

    async def listen(self) -> None:
        """Take requests until the page closes. A request replaces one that still waits."""
        while True:
            text = await self._socket.receive_text()
            try:
                ask = msgspec.json.decode(text, type=Ask)
            except msgspec.DecodeError:
                await self._socket.close(1007, "not a request of this page")
                return
            self._ask = ask
            self.changed.set()

    async def answer(self) -> None:
        """Send counters regularly, and an image when one is asked for and there is something new."""
        next_status = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), max(0.0, next_status - time.monotonic()))
            self.changed.clear()
            if time.monotonic() >= next_status:
                next_status = time.monotonic() + STATUS_S
                await self._socket.send_text(msgspec.json.encode(report(self._watcher)).decode())
            ask, on_show = self._ask, self._watcher.on_show
            if ask is None:
                continue
            if ask.again and self._shown.number:
                on_show = self._shown
            elif on_show.number == self._shown.number and ask == self._answered:
                continue
            if on_show.number == 0:
                continue
            self._ask, self._answered, self._shown = None, ask, on_show
            await self._socket.send_bytes(await self._compose(ask, on_show))

    async def _compose(self, ask: Ask, on_show: OnShow) -> bytes:
        window = on_show.window if ask.auto else Window(ask.low, ask.high)
        encoding: Encoding = "image/png" if ask.exact else "image/jpeg"
        sides = (("left", on_show.left), ("right", on_show.right))
        pictures = {name: picture for name, picture in sides if picture is not None}
        keys = {name: (*picture.key, window, encoding) for name, picture in pictures.items()}
        new = [name for name, key in keys.items() if self._has.get(name) != key]
        made = await asyncio.gather(*(self._images.get(pictures[name], window, encoding) for name in new))
        images = dict(zip(new, made, strict=True))
        self._has = keys
        header: dict[str, Any] = {"window": window, "range": on_show.range, "left": None, "right": None}
        for name, picture in pictures.items():  # only now: the age told is that at sending
            sent = {"bytes": len(images.get(name, b"")), "type": encoding, "same": name not in images}
            header[name] = {**describe(picture), **sent}
        encoded = msgspec.json.encode(header)
        return b"".join((LENGTH.pack(len(encoded)), encoded, *images.values()))


def describe(picture: Picture) -> dict[str, Any]:
    """What a page or a script is told about one plane."""
    frame = picture.frame
    return {
        "session": frame.session,
        "seq": frame.seq,
        "index": frame.index,
        "channel": frame.channel,
        "field": frame.shape,
        "shape": picture.plane.shape,
        "step": picture.plane.step,
        "scale": 1 if picture.key[0] == "raw" else frame.scale,
        "pixel_size_um": frame.pixel_size_um,
        "model": frame.model,
        "deferred": frame.deferred,
        "latency_ms": frame.latency_ms,
        "age_ms": picture.age_ms,
    }


def report(watcher: Watcher) -> dict[str, Any]:
    """The counters and the state of the feed, as the page and `/status.json` get them."""
    return {
        "feed": {
            "address": watcher.address,
            "silent_s": watcher.silent_s,
            "frames": watcher.frames,
            "ignored": watcher.ignored,
            "failed": watcher.failed,
        },
        "status": watcher.status,
    }


# -------------------------------------------------------------------- the pages


class Pages:
    """What is served, by address."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._workers = ThreadPoolExecutor(ENCODERS, thread_name_prefix="live-sr image")
        self._images = Images(self._workers)
        self._browsers: set[Browser] = set()

    def app(self, ready: Callable[[], None] = lambda: None) -> Starlette:
        """The ASGI application; `ready` is called when it serves."""

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            loop = asyncio.get_running_loop()
            self._watcher.on_change = lambda: _call_in(loop, self._wake)
            ready()
            yield
            self._watcher.on_change = lambda: None
            self._workers.shutdown(wait=False, cancel_futures=True)

        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/healthz", self.healthz),
                Route("/status.json", self.status),
                Route("/snapshot.png", self.snapshot),
                WebSocketRoute("/ws", self.browser),
                Mount("/static", StaticFiles(directory=STATIC)),
            ],
            middleware=[Middleware(Guard)],
            lifespan=lifespan,
        )

    async def page(self, request: Request) -> Response:
        """The page itself."""
        return FileResponse(STATIC / "index.html")

    async def healthz(self, request: Request) -> Response:
        """Whether this process does its work; says nothing about the acquisition."""
        if self._watcher.failed:
            return PlainTextResponse("reading the feed failed: start live-sr view again\n", status_code=503)
        return PlainTextResponse("ok\n")

    async def status(self, request: Request) -> Response:
        """Counters, feed and what is shown, for scripts."""
        on_show = self._watcher.on_show
        content = {
            **report(self._watcher),
            "browsers": len(self._browsers),
            "left": describe(on_show.left) if on_show.left is not None else None,
            "right": describe(on_show.right) if on_show.right is not None else None,
        }
        return Response(msgspec.json.encode(content), media_type="application/json")

    async def snapshot(self, request: Request) -> Response:
        """Raw and super-resolved side by side, every pixel."""
        on_show = self._watcher.on_show
        if on_show.left is None:
            return PlainTextResponse("no frame yet: start an acquisition, then ask again\n", status_code=404)
        loop = asyncio.get_running_loop()
        png = await loop.run_in_executor(self._workers, _snapshot, on_show, on_show.left)
        return Response(png, media_type="image/png")

    async def browser(self, websocket: WebSocket) -> None:
        """One open page."""
        if len(self._browsers) >= MAX_BROWSERS:
            await websocket.close(1013, "too many pages are open")
            return
        await websocket.accept()
        browser = Browser(websocket, self._watcher, self._images)
        self._browsers.add(browser)
        tasks = {asyncio.create_task(browser.listen()), asyncio.create_task(browser.answer())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            with contextlib.suppress(WebSocketDisconnect):  # the page was closed
                for task in done:
                    task.result()
        finally:
            self._browsers.discard(browser)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _wake(self) -> None:
        for browser in self._browsers:
            browser.changed.set()


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has just closed: nobody is left to wake
        loop.call_soon_threadsafe(function)


def _snapshot(on_show: OnShow, left: Picture) -> bytes:
    right = on_show.right
    size = left.frame.pixel_size_um
    width = left.frame.shape[1]
    return render.side_by_side(
        render.Panel(
            render.to_8bit(left.pixels, on_show.window), f"low-dose, as acquired · frame {left.frame.seq}"
        ),
        render.Panel(
            render.to_8bit(right.pixels, on_show.window) if right is not None else None,
            f"computed image · {right.frame.model} · frame {right.frame.seq}"
            if right is not None
            else "no super-resolved frame yet",
        ),
        field_um=width * size if size is not None else None,
        field_px=width,
    )


class Guard:
    """Refuses requests under a foreign host name or from a foreign page, and adds the security headers.

    A host name of an attacker's that resolves to 127.0.0.1 would otherwise let any web page read the frames.
    """

    HEADERS = (
        (
            b"content-security-policy",
            b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
            b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (b"x-content-type-options", b"nosniff"),
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-store"),
    )

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self.HEADERS]}
            await send(message)

        why = _foreign(Headers(scope=scope))
        if why is None:
            await self._app(scope, receive, send_guarded)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": why})
        else:
            await PlainTextResponse(f"{why}\n", status_code=403)(scope, receive, send_guarded)


def _foreign(headers: Headers) -> str | None:
    host = headers.get("host", "")
    if not is_loopback(_hostname(f"//{host}")):
        return "open this page as http://127.0.0.1"
    origin = headers.get("origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        return "requests from other sites' pages are refused"
    return None


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether `host` can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# -------------------------------------------------------------------- the process


def run(
    feed_address: str = DEFAULT_FEED,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PAGE_PORT,
    open_browser: bool = False,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM; prints its address when it can be opened.

    Parameters
    ----------
    port : int
        0 takes a free one.

    Raises
    ------
    ConfigError
        When `host` is not this machine, the port is taken, or the feed's address is malformed.
    """
    if not is_loopback(host):
        raise ConfigError(
            f"refusing to serve the page on {host}: it has no passwords, anyone on the network could watch. "
            "Serve it on 127.0.0.1 and open it from elsewhere through an SSH tunnel "
            "(ssh -L 8765:127.0.0.1:8765 this-machine)"
        )
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(host, port))
        watcher = stack.enter_context(Watcher(feed_address))
        at = f"[{host}]" if ":" in host else host
        url = f"http://{at}:{listener.getsockname()[1]}"

        def ready() -> None:
            print(f"page ready: {url}", flush=True)
            if open_browser:
                webbrowser.open(url)

        config = uvicorn.Config(
            Pages(watcher).app(ready),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="websockets-sansio",
            ws_max_size=MAX_REQUEST,
            ws_per_message_deflate=False,  # images do not compress
            timeout_graceful_shutdown=STOP_S,
        )
        with _stopping_quietly():
            uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family: Literal[socket.AddressFamily.AF_INET, socket.AddressFamily.AF_INET6] = (
        socket.AF_INET6 if ":" in host else socket.AF_INET
    )
    try:
        return socket.create_server((host, port), family=family)
    except OSError as e:
        raise ConfigError(
            f"cannot serve the page on {host}:{port}: {e.strerror}. "
            "Close the other `live-sr view`, or choose another --port"
        ) from e


@contextlib.contextmanager
def _stopping_quietly() -> Iterator[None]:
    """Ignore the signal that the server, once stopped by it, raises again for whoever handled it before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
