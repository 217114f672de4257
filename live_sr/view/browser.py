"""One open page: what it asks for and what it gets. Knows the feed's reader, no address and no route."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import struct
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import msgspec
from starlette.websockets import WebSocket

from live_sr.frame import Pixels
from live_sr.view.contrast import Window, to_8bit
from live_sr.view.render import Encoding, encode
from live_sr.view.watcher import FULL, OnShow, Past, Picture, Watcher

STATUS_S = 0.25  # how often a browser is told the counters, and that this process lives
KEPT_IMAGES = 8  # encoded images shared between browsers: two planes in a few contrasts

LENGTH = struct.Struct("<I")  # bytes of the header before the images of one answer

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
    at : dict or None
        An earlier frame of the running sequence, ``{"t": 3, "c": 0}``; None for the newest.
    """

    auto: bool = True
    low: Grey = 0.0
    high: Grey = 255.0
    exact: bool = False
    again: bool = False
    at: dict[str, int] | None = None


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
    return encode(to_8bit(pixels, window), encoding)


class Browser:
    """One open page: at most one request is waiting, at most one answer under way."""

    def __init__(
        self, websocket: WebSocket, watcher: Watcher, images: Images, past: Past | None = None
    ) -> None:
        self.changed = asyncio.Event()
        self.id = secrets.token_hex(4)  # told to the page, which names it when it asks for a file
        self.shown = OnShow()
        self.window = FULL  # contrast in which that is shown
        self._socket = websocket
        self._watcher = watcher
        self._images = images
        self._past = past
        self._ask: Ask | None = None
        self._answered: Ask | None = None
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
            if ask.again and self.shown.number:
                on_show = self.shown
            elif ask.at is not None:
                if ask == self._answered:
                    continue
                earlier = await self._look_back(ask.at)
                if earlier is None:
                    self._ask, self._answered = None, ask
                    await self._socket.send_text(msgspec.json.encode({"missing": ask.at}).decode())
                    continue
                on_show = earlier
            elif on_show.number == self.shown.number and ask == self._answered:
                continue
            if on_show.number == 0:
                continue
            self._ask, self._answered, self.shown = None, ask, on_show
            await self._socket.send_bytes(await self._compose(ask, on_show))

    async def _look_back(self, index: Mapping[str, int]) -> OnShow | None:
        if self._past is None:
            return None
        return await asyncio.to_thread(self._past.show, index)

    async def _compose(self, ask: Ask, on_show: OnShow) -> bytes:
        self.window = window = on_show.window if ask.auto else Window(ask.low, ask.high)
        encoding: Encoding = "image/png" if ask.exact else "image/jpeg"
        sides = (("left", on_show.left), ("right", on_show.right))
        pictures = {name: picture for name, picture in sides if picture is not None}
        keys = {name: (*picture.key, window, encoding) for name, picture in pictures.items()}
        new = [name for name, key in keys.items() if self._has.get(name) != key]
        made = await asyncio.gather(*(self._images.get(pictures[name], window, encoding) for name in new))
        images = dict(zip(new, made, strict=True))
        self._has = keys
        header: dict[str, Any] = {
            "page": self.id,
            "at": ask.at,
            "window": window,
            "range": on_show.range,
            "notes": on_show.notes,
            "left": None,
            "right": None,
        }
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
        "place": frame.place or frame.index,
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
