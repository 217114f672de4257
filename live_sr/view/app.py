"""`live-sr view`: shows the newest frames in browsers. Knows no camera and no model; stores nothing.

One thread reads the feed and keeps the newest; each browser asks for an image when it has drawn the last one,
so a slow browser sees fewer frames and delays nobody. Images are encoded once and shared. Who may watch and who
may do more, `access` decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from live_sr.config import DEFAULT_FEED, DEFAULT_PAGE_PORT
from live_sr.errors import ConfigError
from live_sr.view.access import Access, is_loopback
from live_sr.view.browser import Browser, Images, describe, report
from live_sr.view.control import Commands
from live_sr.view.guard import Guard
from live_sr.view.history import History
from live_sr.view.jobs import MAX_UPLOAD_MB, Jobs
from live_sr.view.media import Media
from live_sr.view.movie import Movies
from live_sr.view.request import Ask
from live_sr.view.upload import Uploads
from live_sr.view.watcher import OnShow, Past, Watcher
from live_sr.wire.token import control_token, read_token

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
MAX_BROWSERS = 16  # each may hold one encoded image: a bound on memory
MAX_REQUEST = 16384  # bytes; a page's requests have about 300 for each channel
ENCODERS = 2  # left and right at once
STOP_S = 2  # for browsers to say goodbye

# -------------------------------------------------------------------- the pages


class Pages:
    """What is served, by address.

    Parameters
    ----------
    past : Past or None
        Where earlier frames are looked up; without one a page shows the newest only.
    routes : sequence of routes
        More to serve: files, commands. They pass the guard as all others.
    access : Access, optional
        Who may do what; without it this machine may watch.
    """

    def __init__(
        self,
        watcher: Watcher,
        past: Past | None = None,
        routes: Sequence[BaseRoute] = (),
        access: Access | None = None,
    ) -> None:
        self._watcher = watcher
        self._access = access or Access()
        self._past = past
        self._routes = tuple(routes)
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

        app = Starlette(
            routes=[
                Route("/", self.page),
                Route("/healthz", self.healthz),
                Route("/status.json", self.status),
                WebSocketRoute("/ws", self.browser),
                *self._access.routes(),
                *self._routes,
                Mount("/static", StaticFiles(directory=STATIC)),
            ],
            middleware=[Middleware(Guard, access=self._access)],
            lifespan=lifespan,
        )
        app.state.shown = self.shown  # for the routes that were added
        return app

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

    def shown(self, browser: str) -> tuple[OnShow, Ask]:
        """What the page with this id shows, and how; for another id the newest, as a page begins."""
        for page in self._browsers:
            if page.id == browser and page.answered is not None:
                return page.shown, page.answered
        return self._watcher.on_show, Ask()

    async def browser(self, websocket: WebSocket) -> None:
        """One open page."""
        if len(self._browsers) >= MAX_BROWSERS:
            await websocket.close(1013, "too many pages are open")
            return
        await websocket.accept()
        browser = Browser(websocket, self._watcher, self._images, self._past)
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


# -------------------------------------------------------------------- the process


def run(
    feed_address: str = DEFAULT_FEED,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PAGE_PORT,
    open_browser: bool = False,
    server: str = "",
    token_file: Path | None = None,
    max_upload_mb: int = MAX_UPLOAD_MB,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM; prints its address when it can be opened.

    Parameters
    ----------
    host : str
        Where it is not this machine alone, nobody sees anything without the token.
    port : int
        0 takes a free one.
    server : str
        Inference server for files that are dropped on the page; empty: none are taken.
    token_file : Path, optional
        Token of this page; by default it is the user's, see :func:`live_sr.wire.token.control_token`.
    max_upload_mb : int
        Largest file, also when unpacked.

    Raises
    ------
    ConfigError
        When the port is taken, an address is malformed, or other machines are served and there is no token.
    """
    with contextlib.ExitStack() as stack:
        control, token = _tokens(token_file, host)
        listener = stack.enter_context(_listen(host, port))
        access = Access(token, host, listener.getsockname()[1])
        watcher = Watcher(feed_address)
        history = History(watcher)
        media = stack.enter_context(Media(history, Movies(history)))
        stack.enter_context(watcher)
        jobs = stack.enter_context(Jobs(server, max_bytes=max_upload_mb * 2**20)) if server else None
        routes = [
            *media.routes,
            *Commands(lambda: (watcher.status, watcher.silent_s), control).routes(),
            *Uploads(jobs).routes(),
        ]
        url = f"http://{_shown(host)}:{listener.getsockname()[1]}"

        def ready() -> None:
            print(f"page ready: {url}", flush=True)
            if token:
                print(f"to control: {url}{access.fragment()}", flush=True)
            if open_browser:
                webbrowser.open(f"{url}{access.fragment_once()}" if token else url)

        config = uvicorn.Config(
            Pages(watcher, history, routes=routes, access=access).app(ready),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="websockets-sansio",
            ws_max_size=MAX_REQUEST,
            ws_per_message_deflate=False,  # images do not compress
            proxy_headers=False,  # or whoever guesses tokens could say each time to be another
            timeout_graceful_shutdown=STOP_S,
        )
        with _stopping_quietly():
            uvicorn.Server(config).run(sockets=[listener])


def _tokens(file: Path | None, host: str) -> tuple[str, str]:
    """Of the acquisition's control channel, and of this page; empty where there is none.

    Raises
    ------
    ConfigError
        When other machines are to be served and there is no token.
    """
    control = ""
    try:
        control = control_token()
    except ConfigError as e:
        if file is None and not is_loopback(host):
            raise
        log.warning("this page cannot control an acquisition: %s", e)
    if not is_loopback(host):
        log.warning(
            "the page is served on %s without encryption: its token and its images can be read on the network. "
            "Where you do not trust it, serve on 127.0.0.1 and use an SSH tunnel "
            "(ssh -L 8765:127.0.0.1:8765 this-machine)",
            host,
        )
    return control, read_token(file) if file is not None else control


def _shown(host: str) -> str:
    """The host as it is opened: where all addresses are served, by this machine's name."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


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
