"""Serves what can be had of the run: its extent, thumbnails, snapshots and movies, all through the history."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Annotated, Any, Literal, get_args

import msgspec
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from live_sr.errors import LiveSRError
from live_sr.view import snapshot
from live_sr.view.contrast import Window, to_8bit
from live_sr.view.history import History, Side
from live_sr.view.movie import Busy, MovieAsk, Movies
from live_sr.view.snapshot import Panel
from live_sr.view.watcher import OnShow, Picture

THUMBNAIL_PX = 96
STRIP = 60  # thumbnails; a screen shows about 15
KEPT_THUMBNAILS = 2000  # about 3 kB each
MAX_BODY = 4096  # bytes of a request; a page's have about 200

Place = dict[str, Annotated[int, msgspec.Meta(ge=0, le=10**9)]]
_place = msgspec.json.Decoder(Place)


class Media:
    """The routes, and what they need. Used in the server's event loop; reading is done in threads."""

    def __init__(self, history: History, movies: Movies) -> None:
        self._history = history
        self._movies = movies
        self._thumbnails: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
        self._one_by_one = ThreadPoolExecutor(1, thread_name_prefix="live-sr thumbnail")

    def __enter__(self) -> Media:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._one_by_one.shutdown(wait=False, cancel_futures=True)
        self._movies.close()
        self._history.close()

    @property
    def routes(self) -> list[Route]:
        """For :class:`~live_sr.view.app.Pages`."""
        return [
            Route("/run.json", self.run),
            Route("/thumbnail.jpg", self.thumbnail),
            Route("/snapshot.png", self.snapshot_png),
            Route("/snapshot.tif", self.snapshot_tiff),
            Route("/movie", self.movie, methods=["GET", "POST", "DELETE"]),
            Route("/movie/{number:int}", self.movie_file),
        ]

    # ---------------------------------------------------------------- the run

    async def run(self, request: Request) -> Response:
        """How far one can look back; with `axis` and `at` also which frames show the run along it."""
        axis, at = request.query_params.get("axis", ""), _at(request)
        run, strip = await asyncio.to_thread(
            lambda: (self._history.run(), self._history.strip(axis, at or {}, STRIP) if axis else [])
        )
        return _json({**msgspec.structs.asdict(run), "strip": strip, "movie": self._movies.progress})

    async def thumbnail(self, request: Request) -> Response:
        """A small image of the super-resolved frame, of the raw one while there is none; 204 for neither."""
        run, at = request.query_params.get("run", ""), _at(request) or {}
        loop = asyncio.get_running_loop()
        jpeg, side = await loop.run_in_executor(self._one_by_one, self._thumbnail, run, at)
        if jpeg is None:
            return Response(status_code=204)
        return Response(jpeg, media_type="image/jpeg", headers={"x-live-sr-side": side})

    def _thumbnail(self, run: str, at: Place) -> tuple[bytes | None, Side]:
        """On the one thread that makes thumbnails."""
        for side in get_args(Side):
            key = (run, side, *sorted(at.items()))
            if key in self._thumbnails:
                self._thumbnails.move_to_end(key)
                return self._thumbnails[key], side
            found = self._history.find(at, sides=(side,), gently=True)
            pixels = None
            if found is not None and found.run == run:
                pixels = found.sr if side == "sr" else found.raw
            if pixels is not None:
                self._thumbnails[key] = snapshot.thumbnail(pixels, THUMBNAIL_PX)
                while len(self._thumbnails) > KEPT_THUMBNAILS:
                    self._thumbnails.popitem(last=False)
                return self._thumbnails[key], side
        return None, "raw"

    # ---------------------------------------------------------------- snapshots

    async def snapshot_png(self, request: Request) -> Response:
        """Raw and super-resolved side by side, every pixel, in the contrast of the page that asks."""
        on_show, window = await self._on_show(request)
        if on_show.left is None and on_show.right is None:
            return PlainTextResponse("no frame yet: start an acquisition, then ask again\n", status_code=404)
        png, name = await asyncio.to_thread(_png, on_show, window)
        return _download(png, "image/png", name)

    async def snapshot_tiff(self, request: Request) -> Response:
        """Every grey value of one side."""
        wanted = request.query_params.get("side")
        side: Side = "raw" if wanted == "raw" else "sr"
        on_show, _ = await self._on_show(request)
        picture = on_show.left if side == "raw" else on_show.right
        if picture is None:
            return PlainTextResponse("there is no such image now: wait for it\n", status_code=404)
        tiff = await asyncio.to_thread(self._tiff, picture, side)
        return _download(tiff, "image/tiff", snapshot.file_name(picture.frame, side, ".ome.tif"))

    async def _on_show(self, request: Request) -> tuple[OnShow, Window]:
        """What the asking page shows, or the frame `at`, or the newest."""
        at = _at(request)
        if at is not None:
            on_show = await asyncio.to_thread(self._history.show, at) or OnShow()
            return on_show, on_show.window
        on_show, window = request.app.state.shown(request.query_params.get("page", ""))
        return on_show, window

    def _tiff(self, picture: Picture, side: Side) -> bytes:
        frame, pixels, sha256 = picture.frame, picture.pixels, ""
        # The feed does not say which weights were used, and thins out what no browser could draw.
        whole = picture.plane.step == 1
        if frame.place and frame.run:
            found = self._history.find(frame.place, sides=() if whole else (side,))
            if found is not None and (found.frame.session, found.frame.run) == (frame.session, frame.run):
                sha256 = found.model_sha256
                stored = found.sr if side == "sr" else found.raw
                pixels = stored if stored is not None and not whole else pixels
        return snapshot.tiff(pixels, frame, side, model_sha256=sha256)

    # ---------------------------------------------------------------- movies

    async def movie(self, request: Request) -> Response:
        """POST begins one, GET tells how far it is, DELETE cancels it."""
        if request.method == "DELETE":
            self._movies.cancel()
        elif request.method == "POST":
            body = b""
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY:
                    return PlainTextResponse("too long for a request\n", status_code=413)
            try:
                ask = msgspec.json.decode(body, type=MovieAsk)
                await asyncio.to_thread(self._movies.start, ask)
            except Busy as error:
                return PlainTextResponse(f"{error}\n", status_code=409)
            except (msgspec.DecodeError, LiveSRError) as error:
                return PlainTextResponse(f"{error}\n", status_code=422)
        return _json(self._movies.progress)

    async def movie_file(self, request: Request) -> Response:
        """The finished movie, once."""
        fetched = self._movies.fetch(request.path_params["number"])
        if fetched is None:
            return PlainTextResponse("that movie is not there (any more): make it again\n", status_code=404)
        file, name = fetched
        kind: Literal["video/mp4", "image/gif"] = "video/mp4" if file.suffix == ".mp4" else "image/gif"
        delete = BackgroundTask(file.unlink, missing_ok=True)
        return FileResponse(file, media_type=kind, filename=name, background=delete)


def _at(request: Request) -> Place | None:
    try:
        return _place.decode(request.query_params["at"])
    except (KeyError, msgspec.DecodeError):
        return None


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def _download(content: bytes, media_type: str, name: str) -> Response:
    return Response(
        content, media_type=media_type, headers={"content-disposition": f'attachment; filename="{name}"'}
    )


def _png(on_show: OnShow, window: Window) -> tuple[bytes, str]:
    left, right = on_show.left, on_show.right
    either = left or right
    assert either is not None
    frame = either.frame
    size, width = frame.pixel_size_um, frame.shape[1]
    image = snapshot.compose(
        [_panel(left, "raw", on_show, window), _panel(right, "sr", on_show, window)],
        field_um=width * size if size is not None else None,
        field_px=width,
    )
    facts = {
        f"{side}.{name}": value
        for side, picture in (("raw", left), ("sr", right))
        if picture is not None
        for name, value in snapshot.facts(picture.frame, "sr" if side == "sr" else "raw").items()
    }
    facts |= {"contrast": f"{window.low:g} to {window.high:g}"}
    return snapshot.png(image, facts), snapshot.file_name(frame, "raw-sr", ".png")


def _panel(picture: Picture | None, side: Side, on_show: OnShow, window: Window) -> Panel:
    if picture is None:
        note = on_show.notes.get("left" if side == "raw" else "right", "no such frame yet")
        return Panel(None, snapshot.label(side), note)
    frame = picture.frame
    return Panel(to_8bit(picture.pixels, window), f"{snapshot.label(side, frame.model)} · frame {frame.seq}")
