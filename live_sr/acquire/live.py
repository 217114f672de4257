"""Sees what a core shows outside its sequences: continuous mode, a camera's own sequences, snaps. Never pops.

pymmcore-plus emits ``frameReady`` for MDA sequences only. Everything else is looked at here: a stream by
peeking at the newest image of the circular buffer, at a bounded rate; a snap, and the last image of a stream
that was stopped, by reading it when that is announced. Other users of the core lose nothing by it, for a peek
takes nothing out; and while an MDA runs nothing is looked at, for its frames come through
:mod:`~live_sr.acquire.hook`.

What a peek has to mind. pymmcore gives an image the size that its camera has *now*, not the one that the image
had (``pymmcore_swig.i``): after a change of ROI, binning or pixel type an older image has a wrong shape, or is
read past its end. So a stream is peeked at only between the announcements of its start and its stop, while the
camera's size is the one it started with; and these announcements wait until a peek that is going on has ended
(1 ms for 2048 x 2048 pixels), so that a buffer is not renewed under it. The same conversion takes the camera's
lock while it holds Python's, and would stop the whole process for as long as another thread exposes: hence a
snap is read by the thread that snapped, which costs it the copy, and by no other.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pymmcore_plus.metadata import frame_metadata
from useq import MDAEvent

from live_sr.acquire.lane import FRESH_S, Shot
from live_sr.errors import InputError
from live_sr.frame import check_pixels
from live_sr.signals import connect

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymmcore_plus import CMMCorePlus
    from pymmcore_plus.core.events import PSignalInstance

log = logging.getLogger("live_sr")
MAX_RATE_HZ = 30.0  # new frames looked at; an eye follows no more, and each is copied while Python stands still
EMPTY_S = 0.005  # between two looks into an empty buffer, which cost next to nothing: another user may drain it
MIN_WAIT_S, MAX_WAIT_S = 0.002, 0.25  # between two looks at the same image, each a copy
LONGER = 1.25  # each such wait than the one before it: a stream may have ended without a word
STARTING_S = 1.0  # a stream that was to start and did not say so: the start failed, an older one may go on
POSITION_S = 0.5  # between two readings of the stage: a serial port takes tens of ms, and others use it too
RETRY_S = 0.25  # after an error of the core
STOP_S = 5.0  # a core that is busy for longer lets the thread go when it answers

CORE_ERRORS = (RuntimeError, ValueError, SystemError)
"""What pymmcore raises when a camera is reset, unloaded or busy; SystemError where it cannot map an image."""

Image = tuple["NDArray[Any]", dict[str, Any]]


@dataclass(eq=False)
class _Stream:
    """A stream of images, from the announcement of its start to that of its stop."""

    camera: str
    cameras: int  # physical cameras behind it
    size: tuple[int, int, int] | None  # of an image when it started; None where images know their size
    starts_again_at: float | None = None  # announced then (s, monotonic), and not confirmed yet
    due: float = 0.0  # when to look next (s, monotonic)
    wait_s: float = MIN_WAIT_S  # where nothing new is seen
    seen: dict[str, tuple[str, str]] = field(default_factory=dict)  # by physical camera: number and time


class LiveWatch:
    """Watches one core, with a thread of its own. Harmless to whoever else uses it.

    Parameters
    ----------
    number : int
        Of the core within the session.
    offer : callable
        ``(shot)``: takes what was seen. Called on this watch's thread; must not block.
    wanted : callable
        Whether a frame of a stream would be of use now; a stream is not looked at while it would not.
    overtaken : callable
        ``(n)``: so many frames were replaced by newer ones before they could be offered.
    warn : callable
        ``(text)``: something the operator should know.

    Attributes
    ----------
    core : CMMCorePlus
    errors : int
        How often the core refused to be looked at: its camera was reset, unloaded, or not ready.
    """

    def __init__(
        self,
        core: CMMCorePlus,
        number: int,
        *,
        offer: Callable[[Shot], None],
        wanted: Callable[[], bool],
        overtaken: Callable[[int], None],
        warn: Callable[[str], None],
    ) -> None:
        self.errors = 0
        self._noted: set[str] = set()
        self.core = core
        self._number = number
        self._offer = offer
        self._wanted = wanted
        self._overtaken = overtaken
        self._warn = warn
        self._wake = threading.Event()
        self._ended = False
        self._peeking = threading.Lock()  # held while the core converts an image, and to change the next two
        self._stream: _Stream | None = None
        self._handed: list[Shot] = []  # read by who announced them, for the thread to offer
        self._event: tuple[tuple[Any, ...], MDAEvent] | None = None  # the last one, which most frames share
        self._position: dict[str, Any] = {}
        self._position_due = 0.0
        self._thread = threading.Thread(target=self._run, name="live-sr live", daemon=True)
        events = core.events
        self._slots: list[tuple[PSignalInstance, Callable[..., None]]] = [
            (events.continuousSequenceAcquisitionStarting, self._on_starting),
            (events.sequenceAcquisitionStarting, self._on_starting),
            (events.continuousSequenceAcquisitionStarted, self._on_started),
            (events.sequenceAcquisitionStarted, self._on_started),
            (events.sequenceAcquisitionStopped, self._on_stopped),
            (events.imageSnapped, self._on_snapped),
        ]

    def start(self) -> None:
        """Begin; a stream that runs already is joined."""
        for signal, slot in self._slots:
            # pymmcore-plus wraps two signals, which once had more arguments
            connect(getattr(signal, "_signal", signal), slot)
        self._thread.start()
        # A daemon thread that comes back from C++ while the interpreter ends takes the process down with it.
        atexit.register(self.stop)
        with self._harmlessly():
            if self.core.isSequenceRunning():
                self._on_started()

    def stop(self) -> None:
        """Look no more; what was announced is still offered. May be called twice."""
        atexit.unregister(self.stop)
        slots, self._slots = self._slots, []
        for signal, slot in slots:
            try:
                signal.disconnect(slot)
            except (TypeError, ValueError, RuntimeError) as e:  # disconnected already, or a Qt object is gone
                log.debug("%r: %s", slot, e)
        self._ended = True
        self._wake.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_S)
            if self._thread.is_alive():
                log.warning("the microscope does not answer: the thread that watches it ends when it does")

    def wake(self) -> None:
        """Say that a frame may be wanted. Never blocks."""
        self._wake.set()

    # ---------------------------------------------------------------- slots: threads of whoever uses the core

    def _on_starting(self) -> None:
        with self._harmlessly():
            if not self._acquiring():
                with self._peeking:
                    if self._stream is not None:
                        self._stream.starts_again_at = time.monotonic()

    def _on_started(self, camera: str = "") -> None:
        with self._harmlessly():
            if not self._acquiring():
                stream = self._begin()
                if camera not in ("", stream.camera):
                    self._warn(
                        f"what {camera} shows is not super-resolved: only that of the core's own camera, "
                        f"{stream.camera or 'of which there is none'}; setCameraDevice chooses it"
                    )
                    return
                with self._peeking:
                    self._stream = stream
                self._wake.set()

    def _on_stopped(self, camera: str) -> None:
        stream = self._stream
        if stream is None or camera != stream.camera:
            return
        with self._harmlessly():
            try:
                self._hand_over(self._new_shots(stream) if self._steady(stream) else [])
            finally:
                with self._peeking:
                    self._stream = None

    def _on_snapped(self) -> None:
        with self._harmlessly():
            if not self._acquiring():
                self._hand_over(self._read_snap())

    @contextmanager
    def _harmlessly(self) -> Iterator[None]:
        """Count what is raised, say it once, go on: in a slot it would come out of the other user's call."""
        try:
            yield
        except IndexError:  # nothing in the buffer
            return
        except Exception as e:  # a camera written in Python may raise anything
            self.errors += 1
            kind = type(e).__name__
            if kind in self._noted:
                return
            self._noted.add(kind)
            if not isinstance(e, CORE_ERRORS):
                log.exception("live-sr could not see what the microscope shows")
            self._warn(
                f"the microscope could not be read in live mode ({kind}: {e}): live-sr goes on when it can"
            )

    def _hand_over(self, shots: list[Shot]) -> None:
        if shots:
            with self._peeking:
                before, self._handed = self._handed, shots
            if before:
                self._overtaken(len(before))
            self._wake.set()

    def _acquiring(self) -> bool:
        """Whether an MDA exposes now; one that is paused leaves the camera to the operator."""
        mda = self.core.mda
        return mda.is_running() and not mda.is_paused()

    def _begin(self) -> _Stream:
        core = self.core
        camera = core.getCameraDevice()
        return _Stream(
            camera=camera,
            cameras=core.getNumberOfCameraChannels(),
            size=None if self._is_python(camera) else self._size(),
        )

    def _is_python(self, camera: str) -> bool:
        """A camera of UniMMCore: its images are arrays, of their own size."""
        is_python = getattr(self.core, "isPyDevice", None)
        return is_python is not None and bool(is_python(camera))

    def _size(self) -> tuple[int, int, int]:
        """(Y, X, bytes per pixel) that pymmcore would give an image now."""
        core = self.core
        return core.getImageHeight(), core.getImageWidth(), core.getBytesPerPixel()

    def _read_snap(self) -> list[Shot]:
        now = time.monotonic_ns()
        core = self.core
        shared = self._is_python(core.getCameraDevice())  # with who snapped, and may change it
        shots = []
        for channel in range(core.getNumberOfCameraChannels()):
            pixels = core.getImage(channel)
            camera = core.getPhysicalCameraDevice(channel)
            shots += self._shot("snap", camera, pixels.copy() if shared else pixels, {}, now)
        return shots

    # ---------------------------------------------------------------- the watch's thread

    def _run(self) -> None:
        while True:
            ended = self._ended
            with self._peeking:
                shots, self._handed = self._handed, []
            wait: float | None = RETRY_S
            with self._harmlessly():
                self._offer_all(shots)
                wait = None if ended else self._look()
            if ended:
                return
            self._wake.wait(wait)
            self._wake.clear()

    def _offer_all(self, shots: Iterable[Shot]) -> None:
        for shot in shots:
            if position := self._where(now=shot.kind == "snap"):
                shot = replace(shot, meta={**shot.meta, "position": position})
            self._offer(shot)

    def _look(self) -> float | None:
        """Offer what is new, and return how long to wait (s); None until something is announced."""
        stream = self._stream
        if stream is None:
            return None
        now = time.monotonic()
        due = stream.due
        if stream.starts_again_at is not None:
            due = max(due, stream.starts_again_at + STARTING_S)
        if due > now:
            return due - now
        if not self._wanted():
            return FRESH_S
        stream.due = now + RETRY_S  # after an error
        try:
            shots = self._new_shots(stream) if self._steady(stream) else []
        except IndexError:
            stream.due = now + EMPTY_S
            return EMPTY_S
        if shots:
            stream.due = now + 1 / MAX_RATE_HZ
            stream.wait_s = max(shots[0].meta["exposure_ms"] / 8000, MIN_WAIT_S)
        else:
            stream.due = now + min(stream.wait_s, MAX_WAIT_S)
            stream.wait_s *= LONGER
        self._offer_all(shots)
        return max(stream.due - time.monotonic(), 0.0)

    def _new_shots(self, stream: _Stream) -> list[Shot]:
        """What is new; IndexError where the buffer has no image."""
        now = time.monotonic_ns()
        images = self._peek(stream)
        if self._acquiring():  # they may be of an MDA that has just begun
            return []
        return [
            shot
            for pixels, tags in images
            for shot in self._shot("live", tags.get("Camera", stream.camera), pixels, tags, now)
        ]

    def _steady(self, stream: _Stream) -> bool:
        """Whether an image in the buffer has the size that the camera has.

        Asked before a peek, not under its lock: the answer waits while another thread uses the camera.
        """
        if self._acquiring() or self.core.getCameraDevice() != stream.camera:
            return False
        return stream.size is None or self._size() == stream.size

    def _peek(self, stream: _Stream) -> list[Image]:
        """The newest image of each physical camera, where it was not seen before."""
        core = self.core
        new: dict[str, Image] = {}
        seen: set[str] = set()
        with self._peeking:
            if self._stream is not stream:
                return []
            stream.starts_again_at = None
            # Images of several cameras lie in one buffer in the order in which they came.
            for n in range(2 * stream.cameras - 1):
                try:
                    pixels, tags = core.getNBeforeLastImageAndMD(n) if n else core.getLastImageAndMD()
                except IndexError:
                    if n:
                        break
                    raise
                camera = str(tags.get("Camera", stream.camera))
                # Numbers begin again where a camera empties a buffer that overflowed.
                number = str(tags.get("ImageNumber", "")), str(tags.get("TimeReceivedByCore", ""))
                if camera not in seen and stream.seen.get(camera) != number:
                    stream.seen[camera] = number
                    new[camera] = pixels, dict(tags)
                seen.add(camera)
                if len(seen) == stream.cameras:
                    break
        return [image for image in new.values() if stream.size is None or _fits(*image)]

    # ---------------------------------------------------------------- what is told about a frame

    def _shot(
        self,
        kind: Literal["live", "snap"],
        camera: str,
        pixels: NDArray[Any],
        tags: dict[str, Any],
        captured_ns: int,
    ) -> list[Shot]:
        """One shot; none where such pixels cannot be restored, which is said."""
        try:
            fit = check_pixels(pixels)
        except InputError as e:
            self._warn(f"what {camera} shows is not super-resolved: {e}")
            return []
        meta: dict[str, Any] = {**frame_metadata(self.core, camera_device=camera)}
        event = self._event_of(meta["exposure_ms"])
        meta["mda_event"] = event
        if tags:
            meta["camera_metadata"] = tags
        return [Shot(kind, (self._number, camera), fit, event, meta, captured_ns)]

    def _event_of(self, exposure_ms: float) -> MDAEvent:
        group = self.core.getChannelGroup()
        config = self.core.getCurrentConfigFromCache(group) if group else ""
        key = (group, config, exposure_ms)
        if self._event is None or self._event[0] != key:
            told: dict[str, Any] = {"channel": {"group": group, "config": config}} if config else {}
            if exposure_ms > 0:
                told["exposure"] = exposure_ms
            self._event = key, MDAEvent(**told)
        return self._event[1]

    def _where(self, *, now: bool) -> dict[str, Any]:
        """The stage's position, read again at once or when it is due."""
        if now or time.monotonic() >= self._position_due:
            with self._harmlessly():
                meta = frame_metadata(self.core, include_position=True)
                self._position = {**meta.get("position", {})}
            self._position_due = time.monotonic() + POSITION_S
        return self._position


def _fits(pixels: NDArray[Any], tags: dict[str, Any]) -> bool:
    """Whether the shape is the one that the image was acquired with."""
    y, x = pixels.shape[:2]
    return (int(tags.get("Height") or y), int(tags.get("Width") or x)) == (y, x)
