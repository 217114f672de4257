"""Serves what can be had of the run: its extent, thumbnails, snapshots and movies, all through the history."""

from __future__ import annotations

import asyncio
import io
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from PIL import Image
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from live_sr.errors import LiveSRError
from live_sr.view import compose, snapshot
from live_sr.view.compose import Drawing
from live_sr.view.history import History, Side
from live_sr.view.movie import Busy, MovieAsk, Movies
from live_sr.view.request import Ask, PlaneName
from live_sr.view.snapshot import Panel
from live_sr.view.watcher import OnShow, Picture

THUMBNAIL_PX = 96
STRIP = 60  # thumbnails; a screen shows about 15
KEPT_THUMBNAILS = 2000  # about 3 kB each
WHOLE = (8192, 8192)  # device pixels: as many as anything on show has
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
        sides: tuple[Side, ...] = ("sr", "raw")
        for side in sides:
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
        """Raw and super-resolved side by side, every pixel, drawn as on the page that asks."""
        on_show, ask = await self._on_show(request)
        if on_show.left is None and on_show.right is None:
            return PlainTextResponse("no frame yet: start an acquisition, then ask again\n", status_code=404)
        png, name = await asyncio.to_thread(_png, on_show, ask)
        return _download(png, "image/png", name)

    async def snapshot_tiff(self, request: Request) -> Response:
        """Every grey value of one side."""
        side: Side = "raw" if request.query_params.get("side") == "raw" else "sr"
        on_show, ask = await self._on_show(request)
        show = next(iter(compose.channels(on_show, ask).values()), on_show)
        picture = show.left if side == "raw" else show.right
        if picture is None:
            return PlainTextResponse("there is no such image now: wait for it\n", status_code=404)
        tiff = await asyncio.to_thread(self._tiff, picture, side)
        return _download(tiff, "image/tiff", snapshot.file_name(picture.frame, side, ".ome.tif"))

    async def _on_show(self, request: Request) -> tuple[OnShow, Ask]:
        """What the asking page shows and how, or the frame `at`, or the newest."""
        on_show, ask = request.app.state.shown(request.query_params.get("page", ""))
        at = _at(request)
        if at is not None:
            on_show = await asyncio.to_thread(self._history.show, at) or OnShow()
        return on_show, ask

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


def _png(on_show: OnShow, ask: Ask) -> tuple[bytes, str]:
    """Each plane whole, as :mod:`~live_sr.view.compose` draws it for the page."""
    planes: tuple[PlaneName, ...] = ("left", "right")
    if "difference" in ask.planes:
        planes = (*planes, "difference")
    whole = msgspec.structs.replace(ask, planes=planes, area=None, canvas=WHOLE, exact=True)
    shows = compose.channels(on_show, whole)
    newest = next(iter(shows.values()))
    either = newest.left or newest.right
    assert either is not None
    frame = either.frame
    drawings = {drawing.name: drawing for drawing in compose.drawings(shows, whole)}
    drawn = {name: np.asarray(Image.open(io.BytesIO(compose.draw(d).data))) for name, d in drawings.items()}
    size, width = frame.pixel_size_um, frame.shape[1]
    panels = [
        Panel(
            drawn.get(name), _label(newest, name, drawings.get(name)), newest.notes.get(name, "not there yet")
        )
        for name in planes
    ]
    image = snapshot.compose(panels, field_um=width * size if size is not None else None, field_px=width)
    facts: dict[str, Any] = {"planes": ", ".join(drawings)}
    for side, picture in (("raw", newest.left), ("sr", newest.right)):
        if picture is not None:
            known = snapshot.facts(picture.frame, "sr" if side == "sr" else "raw")
            facts |= {f"{side}.{name}": value for name, value in known.items()}
    for name, drawing in drawings.items():
        windows = (f"{one.window.low:g} to {one.window.high:g}" for one in drawing.layers)
        facts[f"{name}.contrast"] = ", ".join(dict.fromkeys(windows))
    return snapshot.png(image, facts), snapshot.file_name(frame, "raw-sr", ".png")


def _label(show: OnShow, name: PlaneName, drawing: Drawing | None) -> str:
    picture = show.left if name == "left" else show.right
    model = picture.frame.model if picture is not None else ""
    if name == "difference":
        full = f" · full colour at ±{drawing.spread:.4g}" if drawing is not None else ""
        return f"computed minus acquired · {model}{full}"
    text = snapshot.label("raw" if name == "left" else "sr", model)
    return text if picture is None else f"{text} · frame {picture.frame.seq}"
