"""Makes a movie of the run, one at a time, in a thread of its own. Knows no browser and no address.

One frame is read, drawn and encoded at a time; the acquisition goes before: reading leaves the disk alone half
of the time, encoding takes one thread, and the file goes to the temporary folder only while that has room.
MP4 is written by PyAV, GIF by Pillow.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from PIL import Image

from live_sr.errors import InputError, LiveSRError
from live_sr.frame import Pixels
from live_sr.view import snapshot
from live_sr.view.colours import Lut, paint
from live_sr.view.contrast import Window, grey_window, to_8bit
from live_sr.view.history import Found, History, Side
from live_sr.view.region import Cut, shown
from live_sr.view.snapshot import STATEMENTS, Panel

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

MAX_FRAMES = 5000  # eight minutes at ten frames a second; longer runs are shown by every nth frame
MAX_BYTES = 500 * 2**20  # a file that can still be handed on
MAX_GIF_PIXELS = 96_000_000  # Pillow holds all frames of a GIF in memory, a byte each
MIN_FREE_BYTES = 2 * 2**30  # of the temporary folder's disk, which may be the acquisition's
CONTRAST_FRAMES = 16  # looked at, evenly spread over the run, for one contrast
STOP_S = 10  # one frame is read, drawn and encoded in less
# In this order: what every browser and slide program plays, then what most do. PyAV's own packages have the
# first, a build of FFmpeg without GPL parts the second, any build the last.
ENCODERS = ("libx264", "libopenh264", "mpeg4")
OPTIONS = {"libx264": {"preset": "veryfast", "crf": "18"}}  # the eye sees no loss; fast enough for one thread
BIT_RATE = 12_000_000  # for encoders that want one: as good, for 1440 x 720 at 10 frames a second

Grey = Annotated[float, Meta(ge=-1e6, le=1e6)]
Count = Annotated[int, Meta(ge=0, le=10**9)]


class MovieAsk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to make a movie of, and how.

    Attributes
    ----------
    axis : str
        Along which it runs.
    at : dict
        Place along the other axes.
    first, last, every : int
        Which frames; without `last` up to the newest.
    kind : {"mp4", "gif"}
    show : {"both", "sr", "raw"}
    contrast : {"one", "each", "given"}
        One for the whole movie, one for each frame, or from `low` to `high`.
    gamma, lut
        As :class:`~live_sr.view.request.Look` has them.
    frames_per_s : float
    panel_px : int
        Longer side of each panel.
    """

    axis: str = "t"
    at: dict[str, Count] = {}
    first: Count = 0
    last: Count | None = None
    every: Annotated[int, Meta(ge=1, le=10_000)] = 1
    kind: Literal["mp4", "gif"] = "mp4"
    show: Literal["both", "sr", "raw"] = "both"
    contrast: Literal["one", "each", "given"] = "one"
    low: Grey = 0.0
    high: Grey = 255.0
    gamma: Annotated[float, Meta(ge=0.1, le=10)] = 1.0
    lut: Lut = "grey"
    frames_per_s: Annotated[float, Meta(ge=1, le=60)] = 10.0
    panel_px: Annotated[int, Meta(ge=64, le=2048)] = 720

    @property
    def sides(self) -> tuple[Side, ...]:
        """Panels from left to right."""
        return ("raw", "sr") if self.show == "both" else (self.show,)


class Progress(msgspec.Struct, frozen=True):
    """How far a movie is.

    Attributes
    ----------
    number : int
        Of the movie, from 1; 0 before the first.
    missing : int
        Frames so far that lack an image; an empty field is drawn for it.
    text : str
        What went wrong, or what to know.
    name : str
        Of the file, when it is done.
    """

    number: int = 0
    state: Literal["none", "working", "done", "failed", "cancelled", "fetched"] = "none"
    done: int = 0
    total: int = 0
    missing: int = 0
    size_bytes: int = 0
    text: str = ""
    name: str = ""


class Busy(LiveSRError):
    """A movie is being made already."""


class _Cancelled(Exception):
    """Somebody does not want the movie any more."""


class Movies:
    """Makes movies of a history. Thread-safe; owns the files until they are fetched."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._lock = threading.Lock()
        self._progress = Progress()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._file: Path | None = None
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None
        self._of_run = ""  # key of the run that the movie in the making shows

    @property
    def progress(self) -> Progress:
        """Of the movie in the making, or the last one."""
        return self._progress

    def start(self, ask: MovieAsk) -> Progress:
        """Begin a movie; a finished one that nobody fetched is thrown away.

        Raises
        ------
        Busy
            While another one is being made.
        InputError
            When this one would have no frames, or too many.
        """
        with self._lock:
            if self._progress.state == "working":
                p = self._progress
                raise Busy(f"a movie is being made ({p.done} of {p.total} frames): wait for it, or cancel it")
            run, frames = self._frames(ask)
            if ask.kind == "mp4":
                encoder()
            self._discard()
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="live-sr-movie-")
            self._cancel.clear()
            self._progress = Progress(self._progress.number + 1, "working", total=len(frames))
            self._thread = threading.Thread(
                target=self._run, args=(ask, run, frames), name="live-sr movie", daemon=True
            )
            self._thread.start()
            return self._progress

    def cancel(self) -> None:
        """Stop the one in the making; without one, nothing."""
        self._cancel.set()

    def fetch(self, number: int) -> tuple[Path, str] | None:
        """The finished file and its name, once: the caller deletes it. None when there is none (any more)."""
        with self._lock:
            if self._progress.state != "done" or self._progress.number != number or self._file is None:
                return None
            file, self._file = self._file, None
            self._set(state="fetched")
            return file, self._progress.name

    def close(self) -> None:
        """Stop, and delete what there is."""
        self._cancel.set()
        if self._thread is not None:
            self._thread.join(STOP_S)
        if self._folder is not None:
            self._folder.cleanup()

    # ---------------------------------------------------------------- before

    def _frames(self, ask: MovieAsk) -> tuple[str, list[dict[str, int]]]:
        """Key of the run, and places of the frames."""
        run = self._history.run()
        if ask.axis not in run.axes:
            has = ", ".join(run.axes) or "none yet"
            raise InputError(f"this run has no axis {ask.axis!r}, it has: {has}")
        newest = run.axes[ask.axis].last
        last = newest if ask.last is None else min(ask.last, newest)
        places = range(max(ask.first, run.axes[ask.axis].first), last + 1, ask.every)
        if not places:
            raise InputError(f"no frame from {ask.axis} {ask.first} to {last}: the newest is {newest}")
        if len(places) > MAX_FRAMES:
            every = -(-(places.stop - places.start) // MAX_FRAMES)
            raise InputError(f"{len(places)} frames are more than {MAX_FRAMES}: take every {every}th")
        at = {axis: ask.at.get(axis, 0) for axis in run.axes}
        return run.key, [{**at, ask.axis: i} for i in places]

    # ---------------------------------------------------------------- the movie's thread

    def _run(self, ask: MovieAsk, run: str, frames: list[dict[str, int]]) -> None:
        self._of_run = run
        assert self._folder is not None
        file = Path(self._folder.name) / f"movie{self._progress.number}.{ask.kind}"
        try:
            name = self._make(ask, frames, file)
        except _Cancelled:
            file.unlink(missing_ok=True)
            self._set(state="cancelled")
        except Exception as error:  # at the top of a thread: whoever asked is told, and the next may be made
            if not isinstance(error, LiveSRError):
                log.exception("a movie could not be made")
            file.unlink(missing_ok=True)
            self._set(state="failed", text=str(error) or type(error).__name__)
        else:
            self._file = file
            self._set(state="done", name=name, text=self._lacking(), size_bytes=file.stat().st_size)

    def _make(self, ask: MovieAsk, frames: list[dict[str, int]], file: Path) -> str:
        first = self._first(ask, frames)
        window = self._window(ask, frames)
        planes = [first.raw if side == "raw" else first.sr for side in ask.sides]
        shape = snapshot.panel_shape(max(p.shape for p in planes if p is not None), ask.panel_px)
        pictures = self._pictures(ask, frames, window, shape, first)
        if ask.kind == "mp4":
            self._write_mp4(pictures, file, ask)
        else:
            pixels = shape[0] * shape[1] * len(ask.sides) * len(frames)
            if pixels > MAX_GIF_PIXELS:
                raise InputError(
                    f"{len(frames)} frames of {shape[1]} × {shape[0]} are too many for a GIF: choose MP4, a "
                    f"smaller size, or every {-(-pixels // MAX_GIF_PIXELS)}th frame"
                )
            self._write_gif(pictures, file, ask)
        self._check(file)
        span = f"{ask.axis}{frames[0][ask.axis]}-{frames[-1][ask.axis]}"
        frame = msgspec.structs.replace(
            first.frame, place={k: i for k, i in first.place.items() if k != ask.axis}, index={}
        )
        what = f"{span}_{'raw-sr' if ask.show == 'both' else ask.show}"
        return snapshot.file_name(frame, what, f".{ask.kind}")

    def _first(self, ask: MovieAsk, frames: Sequence[dict[str, int]]) -> Found:
        """The first frame that has pixels, which tells the size of the field."""
        for at in frames:
            self._check()
            found = self._find(ask, at)
            if found is not None and (found.raw is not None or found.sr is not None):
                return found
        raise InputError("none of these frames is there: see why when looking back at one of them")

    def _window(self, ask: MovieAsk, frames: Sequence[dict[str, int]]) -> Window | None:
        """One contrast, from the percentiles of frames spread over the movie; None for one each."""
        if ask.contrast == "given":
            return Window(ask.low, ask.high)
        if ask.contrast == "each":
            return None
        windows = []
        for i in sorted({round(n) for n in np.linspace(0, len(frames) - 1, CONTRAST_FRAMES)}):
            self._check()
            found = self._find(ask, frames[i])
            if planes := _planes(found):
                windows.append(grey_window(planes))
        if not windows:
            return None
        # Of a run that bleaches or gets brighter, no frame is clipped more than it would be alone.
        return Window(min(w.low for w in windows), max(w.high for w in windows))

    def _pictures(
        self,
        ask: MovieAsk,
        frames: Sequence[dict[str, int]],
        window: Window | None,
        shape: tuple[int, int],
        first: Found,
    ) -> Iterator[Image.Image]:
        """Each frame as drawn, and the progress before the next."""
        size = first.frame.pixel_size_um
        field_px = first.frame.shape[1]
        for n, at in enumerate(frames):
            self._check()
            found = self._find(ask, at)
            planes = _planes(found)
            yield snapshot.compose(
                [
                    _panel(ask, found, side, window or (grey_window(planes) if planes else None))
                    for side in ask.sides
                ],
                field_um=field_px * size if size is not None else None,
                field_px=field_px,
                shape=shape,
                stamp=_stamp(at, found, first),
            )
            self._set(done=n + 1, missing=self._progress.missing + (len(planes) < len(ask.sides)))

    def _find(self, ask: MovieAsk, at: dict[str, int]) -> Found | None:
        found = self._history.find(at, sides=ask.sides, gently=True)
        if found is not None and found.run != self._of_run:
            raise InputError("the next run has begun: make the movie of a run before that")
        return found

    def _check(self, file: Path | None = None) -> None:
        if self._cancel.is_set():
            raise _Cancelled
        if file is not None and file.exists() and file.stat().st_size > MAX_BYTES:
            raise InputError(
                f"the movie would be larger than {MAX_BYTES >> 20} MB: take fewer frames or less size"
            )
        assert self._folder is not None
        if shutil.disk_usage(self._folder.name).free < MIN_FREE_BYTES:
            raise InputError(f"{self._folder.name} has less than {MIN_FREE_BYTES >> 30} GB left: no movie")

    def _write_mp4(self, pictures: Iterator[Image.Image], file: Path, ask: MovieAsk) -> None:
        import av

        container: OutputContainer = av.open(str(file), "w", options={"movflags": "+faststart"})
        with container:
            container.metadata.update(comment=_statement(ask), encoder="live-sr")
            stream: VideoStream | None = None
            for picture in pictures:
                even = _even(picture)
                if stream is None:
                    stream = _stream(container, even.size, ask.frames_per_s)
                frame = av.VideoFrame.from_ndarray(np.asarray(even), format="rgb24")
                container.mux(stream.encode(frame))
                self._check(file)
            assert stream is not None, "a movie has at least one frame"
            container.mux(stream.encode(None))

    def _write_gif(self, pictures: Iterator[Image.Image], file: Path, ask: MovieAsk) -> None:
        first = next(pictures)
        # In hundredths of a second; many programs slow down what is faster than two of them.
        first.save(
            file,
            "GIF",
            save_all=True,
            append_images=pictures,
            duration=max(20, round(100 / ask.frames_per_s) * 10),
            loop=0,
            comment=_statement(ask).encode(),
        )

    def _lacking(self) -> str:
        missing, total = self._progress.missing, self._progress.total
        return f"{missing} of {total} frames lack an image: an empty field is drawn" if missing else ""

    def _set(self, **changes: Any) -> None:
        self._progress = msgspec.structs.replace(self._progress, **changes)

    def _discard(self) -> None:
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None


def encoder() -> str:
    """Name of the best encoder for MP4 that is there.

    Raises
    ------
    InputError
        When PyAV is not installed, or has none of them.
    """
    try:
        import av
    except ImportError as error:
        raise InputError("MP4 needs PyAV: pip install av, or choose GIF") from error
    for name in ENCODERS:
        try:
            return av.Codec(name, "w").name
        except ValueError:  # this build of FFmpeg lacks it
            continue
    raise InputError(f"this build of PyAV has none of the encoders {', '.join(ENCODERS)}: choose GIF")


def _stream(container: OutputContainer, size: tuple[int, int], frames_per_s: float) -> VideoStream:
    name = encoder()
    stream: VideoStream = container.add_stream(  # type: ignore[assignment]  # says any kind of stream
        name, rate=Fraction(frames_per_s).limit_denominator(1000), options=OPTIONS.get(name, {})
    )
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"  # the one that every player takes
    stream.codec_context.thread_count = 1  # the acquisition needs the others
    if name not in OPTIONS:
        stream.bit_rate = BIT_RATE
    return stream


def _even(picture: Image.Image) -> Image.Image:
    """With an even number of rows and columns, as half as many of colour are stored; grows by a white line."""
    width, height = picture.size
    if width % 2 == height % 2 == 0 and picture.mode == "RGB":
        return picture
    canvas = Image.new("RGB", (width + width % 2, height + height % 2), (255, 255, 255))
    canvas.paste(picture, (0, 0))
    return canvas


def _planes(found: Found | None) -> list[Pixels]:
    return [p for p in (found.raw, found.sr) if p is not None] if found is not None else []


def _panel(ask: MovieAsk, found: Found | None, side: Side, window: Window | None) -> Panel:
    if found is None:
        return Panel(None, snapshot.label(side), "not there")
    pixels = found.raw if side == "raw" else found.sr
    drawn = None
    if pixels is not None and window is not None:
        rows, columns = (slice(0, n) for n in pixels.shape)
        small = shown(pixels, Cut(rows, columns, max(1, max(pixels.shape) // ask.panel_px)))
        drawn = paint(to_8bit(small, window, ask.gamma), ask.lut)
    return Panel(drawn, snapshot.label(side, found.frame.model), found.missing.get(side, ""))


def _stamp(at: dict[str, int], found: Found | None, first: Found) -> str:
    """Which frame, and when it was stored after the first."""
    name = "  ".join(f"{axis} {i}" for axis, i in at.items())
    if found is None or found.stored_at is None or first.stored_at is None:
        return name
    return f"{name}   +{found.stored_at - first.stored_at:.1f} s"


def _statement(ask: MovieAsk) -> str:
    return " ".join(STATEMENTS[side] for side in ask.sides)
