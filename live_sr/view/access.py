"""Who may use the page: without the token one may watch from this machine, with it do all. Knows no frame.

The token comes once, in the address that is opened (after ``#``, where no server and no log sees it) or typed
into the page, and is exchanged for a cookie that scripts cannot read. Scripts may send it with each request
instead, as ``Authorization: Bearer``. Where the page is served beyond this machine, watching needs it as well.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
import time
from collections import deque
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import msgspec
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Scope

COOKIE_S = 12 * 3600  # a day at the microscope
ONCE_S = 60.0  # a browser that this process opens comes within seconds
TRIES = 5  # wrong tokens of one address within TRY_S: more is no typing mistake
TRY_S = 60.0
MAX_ADDRESSES = 1000  # whose failures are remembered, the oldest forgotten first
MAX_BODY = 4096  # bytes; a token has at most 256
OPEN_PATHS = ("/", "/access", "/healthz")  # the empty page, and where the token is given
PRIVATE_PATHS = ("/jobs", "/control")  # other people's files; nothing of these is for those who only watch
MOVIE = "/movie"
READING = ("GET", "HEAD")

OFF = "this page has no token and cannot control anything: its `live-sr view` said why when it started"
ASK = "this needs the token: open the address that `live-sr view` printed after 'to control', or type it in"
TOO_MANY = f"{TRIES} wrong tokens: wait {TRY_S:.0f} s, then try again"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not served, and its HTTP status."""

    status: int
    why: str


class Access:
    """Decides about each request of one page. Used from the event loop only.

    Parameters
    ----------
    token : str
        Empty: nobody can control, and only this machine watches.
    host : str
        Address that the page is served on.
    port : int
        Of the page: cookies are shared among all ports of a machine, so each page's has a name of its own.

    Attributes
    ----------
    watch_freely : bool
        Whether the page is served on this machine only, so that watching needs no token.
    """

    def __init__(self, token: str = "", host: str = "127.0.0.1", port: int = 0) -> None:
        self.watch_freely = is_loopback(host)
        self._token = token
        self._hosts = () if self.watch_freely else (host.lower(), *_names_of_this_machine())
        self._cookie = f"live_sr_{port}"
        # Of the token, so that a page stays open over a restart, and a new token ends all cookies.
        self._key = hashlib.sha256(b"live-sr page\0" + token.encode()).digest()
        self._once: dict[str, float] = {}
        self._failures = Failures()

    def fragment(self) -> str:
        """What follows the page's address for whoever may control, for the operator to read."""
        return f"/#token={quote(self._token, safe='')}"

    def fragment_once(self) -> str:
        """The same for a browser that this process starts, good for one use.

        Other users of a machine can see with which address a program was started.
        """
        code = secrets.token_urlsafe(32)
        self._once[code] = time.monotonic() + ONCE_S
        return f"/#token={code}"

    def refusal(self, scope: Scope) -> Refusal | None:
        """Why this request must not be served; None when it may."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(_hostname(f"//{host}")):
            return Refusal(403, f"this page has another address: open it as {self._address()}")
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return Refusal(403, "requests from other sites' pages are refused")
        if not self._is_private(scope):
            return None
        given = _bearer(headers)
        if given is not None:
            return self._try(given, scope)
        if not self._has_cookie(HTTPConnection(scope)):
            return Refusal(401, ASK)
        if origin is None and not _reads(scope):
            # The cookie goes with whatever asks; a browser says for whom it asks.
            return Refusal(403, "this changes something and does not say which page it comes from")
        return None

    def routes(self) -> list[Route]:
        """Where the token is given, and where a page learns what it may do."""
        return [
            Route("/access", self._tell, methods=["GET"]),
            Route("/access", self._enter, methods=["POST"]),
        ]

    # ---------------------------------------------------------------- the two routes

    async def _tell(self, request: Request) -> Response:
        known = self._has_cookie(request)
        said = {"control": known, "watch": known or self.watch_freely, "possible": bool(self._token)}
        return Response(msgspec.json.encode(said), media_type="application/json")

    async def _enter(self, request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                return PlainTextResponse("that is no token\n", status_code=413)
        refusal = self._try(body.decode(errors="replace").strip(), request.scope)
        if refusal is not None:
            return PlainTextResponse(f"{refusal.why}\n", status_code=refusal.status)
        response = Response(status_code=204)
        response.set_cookie(
            self._cookie,
            self._signed(int(time.time()) + COOKIE_S),
            max_age=COOKIE_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    # ---------------------------------------------------------------- tokens and cookies

    def _try(self, given: str, scope: Scope) -> Refusal | None:
        if not self._token:
            return Refusal(403, OFF)
        who = scope["client"][0] if scope.get("client") else ""
        if self._failures.too_many(who):
            return Refusal(429, TOO_MANY)
        if self._is_token(given):
            return None
        self._failures.add(who)
        return Refusal(403, "that is not the token of this page; `live-sr view` printed it when it started")

    def _is_token(self, given: str) -> bool:
        for code, until in list(self._once.items()):
            if time.monotonic() > until:
                del self._once[code]
            elif hmac.compare_digest(given.encode(), code.encode()):
                del self._once[code]
                return True
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _has_cookie(self, request: HTTPConnection) -> bool:
        given = request.cookies.get(self._cookie, "")
        until, _, _ = given.partition(".")
        if not self._token or not (until.isascii() and until.isdigit() and len(until) <= 12):
            return False
        genuine = hmac.compare_digest(given.encode(), self._signed(int(until)).encode())
        return genuine and time.time() < int(until)

    def _signed(self, until: int) -> str:
        """A cookie's value, good until then; says nothing of the token."""
        return f"{until}.{hmac.new(self._key, str(until).encode(), 'sha256').hexdigest()}"

    def _is_private(self, scope: Scope) -> bool:
        path = scope["path"]
        if path in OPEN_PATHS or path.startswith("/static/"):
            return False
        watches = _reads(scope) or path == MOVIE  # which is made of what may be watched
        return not self.watch_freely or not watches or path.startswith(PRIVATE_PATHS)

    # ---------------------------------------------------------------- host names

    def _is_ours(self, host: str) -> bool:
        """A *name* of an attacker's that resolves to this machine would let any web page read the frames."""
        if is_loopback(host):
            return True
        return not self.watch_freely and (host in self._hosts or _is_address(host))

    def _address(self) -> str:
        return "http://127.0.0.1" if self.watch_freely else "http://NAME, with this machine's name or address"


class Failures:
    """Wrong tokens by the address they came from: a bound on guessing. Not thread-safe."""

    def __init__(self) -> None:
        self._by: dict[str, deque[float]] = {}

    def too_many(self, who: str) -> bool:
        """Whether `who` must wait."""
        times = self._by.get(who)
        return times is not None and len(times) == TRIES and time.monotonic() - times[0] < TRY_S

    def add(self, who: str) -> None:
        """Note a failure."""
        if who not in self._by and len(self._by) >= MAX_ADDRESSES:
            del self._by[next(iter(self._by))]
        self._by.setdefault(who, deque(maxlen=TRIES)).append(time.monotonic())


def is_loopback(host: str) -> bool:
    """Whether `host` can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _names_of_this_machine() -> tuple[str, ...]:
    name = socket.gethostname().lower()
    return name, f"{name.partition('.')[0]}.local", socket.getfqdn().lower()


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _reads(scope: Scope) -> bool:
    return scope["type"] == "websocket" or scope["method"] in READING


def _bearer(headers: Headers) -> str | None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else None
