"""One open page: what it asks for and what it gets. Knows the feed's reader, no address and no route."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import msgspec
from starlette.websockets import WebSocket

from live_sr.view import compose
from live_sr.view.compose import Drawing, Drawn
from live_sr.view.contrast import Window
from live_sr.view.region import Area
from live_sr.view.request import Ask, Measure, PlaneName, read
from live_sr.view.watcher import OnShow, Past, Picture, Watcher

STATUS_S = 0.25  # how often a browser is told the counters, and that this process lives
LOOK_AGAIN_S = 1.0  # how often it is looked whether the rest of an earlier frame has come
KEPT_IMAGES = 16  # encoded images shared between browsers: two planes in a few contrasts and zooms

LENGTH = struct.Struct("<I")  # bytes of the header before the images of one answer


class Images:
    """Encoded images, each made once for all browsers that want it alike."""

    def __init__(self, workers: ThreadPoolExecutor) -> None:
        self.workers = workers
        self._made: dict[tuple[object, ...], asyncio.Future[Drawn]] = {}

    async def get(self, drawing: Drawing) -> Drawn:
        """The encoded image; waits for the one in the making rather than making another."""
        key = drawing.key
        if key not in self._made:
            while len(self._made) >= KEPT_IMAGES:
                del self._made[next(iter(self._made))]
            loop = asyncio.get_running_loop()
            self._made[key] = loop.run_in_executor(self.workers, compose.draw, drawing)
        return await asyncio.shield(self._made[key])


class Browser:
    """One open page: at most one request is waiting, at most one answer under way."""

    def __init__(
        self, websocket: WebSocket, watcher: Watcher, images: Images, past: Past | None = None
    ) -> None:
        self.changed = asyncio.Event()
        self.id = secrets.token_hex(4)  # told to the page, which names it when it asks for a file
        self.answered: Ask | None = None
        self.shown = OnShow()
        self._socket = websocket
        self._watcher = watcher
        self._images = images
        self._past = past
        self._ask: Ask | None = None
        self._measure: Measure | None = None
        self._has: dict[PlaneName, tuple[object, ...]] = {}  # what the page holds, by plane
        # What is not there yet of the earlier frame that is asked for, and why; None: nothing is there.
        self._lacks: dict[str, str] | None = {}
        self._look_again_at = 0.0

    async def listen(self) -> None:
        """Take requests until the page closes. A request replaces one of its kind that still waits."""
        while True:
            text = await self._socket.receive_text()
            try:
                request = read(text)
            except msgspec.DecodeError:
                await self._socket.close(1007, "not a request of this page")
                return
            if isinstance(request, Ask):
                self._ask = request
            else:
                self._measure = request
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
                await self._say(report(self._watcher))
            await self._answer_ask()
            await self._answer_measure()

    async def _answer_ask(self) -> None:
        ask, on_show = self._ask, self._watcher.on_show
        if ask is None:
            return
        if ask.again and self.shown.number:
            on_show = self.shown
        elif ask.at is not None:
            told = ask == self.answered
            if told and (self._lacks == {} or time.monotonic() < self._look_again_at):
                return
            self._look_again_at = time.monotonic() + LOOK_AGAIN_S
            earlier = await self._look_back(ask)
            if self._ask is not ask:  # the page has moved on meanwhile
                self.changed.set()
                return
            lacked, self._lacks = self._lacks, dict(earlier.notes) if earlier is not None else None
            if told and lacked == self._lacks:
                return
            if earlier is None:
                self.answered = ask
                await self._say({"missing": ask.at})
                return
            on_show = earlier
        elif self._number(on_show, ask) == self._number(self.shown, ask) and ask == self.answered:
            return
        if on_show.left is None and on_show.right is None:
            return
        self._ask, self.answered, self.shown = None, ask, on_show
        await self._socket.send_bytes(await self._compose(ask, on_show))

    @staticmethod
    def _number(on_show: OnShow, ask: Ask) -> int:
        """Names what a page sees of it: one that looks at one channel does not notice the others."""
        if ask.channel is not None and not ask.composite and ask.channel in on_show.channels:
            return on_show.channels[ask.channel].number
        return on_show.number

    async def _look_back(self, ask: Ask) -> OnShow | None:
        """An earlier frame; for a composite with the frames of the other channels at the same place."""
        past, at, status = self._past, ask.at, self._watcher.status
        if past is None or at is None:
            return None
        found = await asyncio.to_thread(past.show, at)
        if found is None or not ask.composite or "c" not in at or status is None:
            return found
        channels: dict[str, OnShow] = {}
        for c, name in enumerate(status.sequence.channels):
            other = await asyncio.to_thread(past.show, {**at, "c": c})
            if other is not None:
                channels[name] = other
        return replace(found, channels=channels)

    async def _compose(self, ask: Ask, on_show: OnShow) -> bytes:
        shows = compose.channels(on_show, ask)
        drawings = compose.drawings(shows, ask)
        keys = {drawing.name: drawing.key for drawing in drawings}
        made = await asyncio.gather(*(self._images.get(drawing) for drawing in drawings))
        new = {
            drawing.name: drawn.data
            for drawing, drawn in zip(drawings, made, strict=True)
            if self._has.get(drawing.name) != drawing.key
        }
        self._has = keys
        newest = next(iter(shows.values()))
        header: dict[str, Any] = {
            "page": self.id,
            "at": ask.at,
            "notes": on_show.notes,
            "window": newest.window,
            "range": newest.range,
            "channels": sorted({*on_show.channels, *self._watcher.on_show.channels}),
            "shown": list(shows),
            "left": describe(newest.left) if newest.left is not None else None,
            "right": describe(newest.right) if newest.right is not None else None,
            "windows": {
                name: {"left": _window(show, 0), "right": _window(show, 1), "shared": show.window}
                for name, show in shows.items()
            },
            "images": {
                drawing.name: {
                    "bytes": len(new.get(drawing.name, b"")),
                    "type": drawn.encoding,
                    "same": drawing.name not in new,
                    "area": drawn.area,
                    "factor": drawn.factor,
                    "low": drawn.low,
                    "high": drawn.high,
                    "spread": drawing.spread,
                }
                for drawing, drawn in zip(drawings, made, strict=True)
            },
        }
        if ask.histogram:
            header["histograms"] = await self._in_worker(compose.histograms, shows)
        encoded = msgspec.json.encode(header)
        return b"".join((LENGTH.pack(len(encoded)), encoded, *new.values()))

    async def _answer_measure(self) -> None:
        """Grey values of the frame that the page holds."""
        measure, self._measure = self._measure, None
        if measure is None or self.answered is None:
            return
        shows = compose.channels(self.shown, self.answered)
        answer: dict[str, Any] = {"id": measure.id, "point": None, "area": None}
        if measure.point is not None:
            answer["point"] = compose.grey_values(shows, *measure.point)
        if measure.area is not None:
            answer["area"] = await self._in_worker(compose.statistics, shows, Area(*measure.area))
        await self._say({"measured": answer})

    async def _in_worker(self, function: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._images.workers, function, *arguments)

    async def _say(self, content: object) -> None:
        await self._socket.send_text(msgspec.json.encode(content).decode())


def _window(show: OnShow, side: int) -> Window:
    return show.apart[side] if show.apart is not None else show.window


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
        "kind": frame.kind,
        "stage_um": frame.stage_um,
        "exposure_ms": frame.exposure_ms,
        "dtype": picture.plane.dtype,
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
