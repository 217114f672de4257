"""A point-scanning electron microscope as pymmcore-plus devices, whose noise-free truth can be asked for.

Turns a specimen, a dose and a clock into frames that any MDA sequence can acquire. Knows nothing of
super-resolution: frames leave through pymmcore-plus like those of a real microscope.
"""

from __future__ import annotations

import atexit
import bisect
import math
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pymmcore_plus import CMMCorePlus
from pymmcore_plus.experimental.unicore import (
    CameraDevice,
    ShutterDevice,
    StageDevice,
    UniMMCore,
    XYStageDevice,
    pymm_property,
)
from pymmcore_plus.mda import MDAEngine
from pymmcore_plus.metadata import FrameMetaV1

from live_sr.errors import InputError
from live_sr.sim.specimen import Specimen

DETECTORS = ("BSE", "SE")  # backscattered and secondary electrons: detector 0 and 1 of the specimen
FRAME_KEY = "ScopeFrame"  # camera metadata of each frame: its number, counted since the scope was built
CACHE_BYTES = 256 * 2**20  # rendered specimen kept; the canvas in use is kept even where it is larger
MARGIN_PX = 8  # frame pixels around a view that blur and jitter may ask for
EDGE_PX = MARGIN_PX + MARGIN_PX // 2  # frame pixels around a canvas: that margin, and room to drift
MAX_DWELL_US = 1e6  # one second per pixel is no scan


@dataclass(frozen=True)
class ScopeSettings:
    """How the microscope scans.

    Attributes
    ----------
    size
        Frame size, pixels: one number, or (Y, X).
    pixel_size_um
        Frame pixel size, micrometres.
    dwell_us
        Time the beam rests on each pixel when the scope starts, microseconds; exposure / pixels afterwards.
    electrons_per_us
        Beam current: detected electrons per microsecond where the specimen is white.
    read_noise
        Standard deviation of the detector's own noise, as a fraction of the range from black to white.
    offset, full_scale
        Grey levels of black and white. The detector averages over the dwell: a longer dwell lowers the noise
        and leaves the brightness.
    beam_blur_px
        Standard deviation of the beam, frame pixels.
    line_jitter_px
        Standard deviation of the sideways error of each scan line, frame pixels.
    drift_um_per_s
        (y, x) drift of the specimen per second of scanning, in steps of ``pixel_size_um / scale``.
    realtime
        Whether a frame takes pixels times dwell, or as long as it takes to compute.
    scale
        The truth has this many pixels for each of the frame's, along y and along x.
    seed
        Frame k of two scopes with equal settings, moved and exposed alike, is the same.

    Raises
    ------
    InputError
        When a value makes no sense.
    """

    size: int | tuple[int, int] = 256
    pixel_size_um: float = 0.016
    dwell_us: float = 1.0
    electrons_per_us: float = 40.0
    read_noise: float = 0.015
    offset: int = 1000
    full_scale: int = 41000
    beam_blur_px: float = 0.0
    line_jitter_px: float = 0.0
    drift_um_per_s: tuple[float, float] = (0.0, 0.0)
    realtime: bool = True
    scale: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.scale < 1:
            raise InputError(f"a frame needs pixels: size {self.size}, scale {self.scale}")
        if min(self.pixel_size_um, self.dwell_us, self.electrons_per_us) <= 0:
            raise InputError("pixel_size_um, dwell_us and electrons_per_us must be above 0")
        if min(self.read_noise, self.beam_blur_px, self.line_jitter_px) < 0:
            raise InputError("read_noise, beam_blur_px and line_jitter_px must not be negative")
        if not 0 <= self.offset < self.full_scale <= 65535:
            raise InputError(
                f"offset {self.offset} and full_scale {self.full_scale} must rise within 0 to 65535"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(Y, X) of a full frame."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def electrons_per_pixel(self) -> float:
        """Mean electrons from a white pixel at the starting dwell."""
        return self.electrons_per_us * self.dwell_us


def build_scope(specimen: Specimen, settings: ScopeSettings | None = None) -> ScanningScope:
    """Return a microscope ready for `core.run_mda`.

    Parameters
    ----------
    specimen
        What lies under the beam.
    settings
        How to scan it.
    """
    return ScanningScope(specimen, settings or ScopeSettings())


class ScanningScope:
    """A scanning microscope, and what it looked at. Use as a context manager, or call `close`.

    Attributes
    ----------
    core
        A `UniMMCore` with a camera ``Scan``, stages ``XY`` and ``Z``, a shutter, a pixel size, and a channel
        group ``Detector`` with the presets ``BSE`` and ``SE``. The camera metadata of each frame carry its
        number under `FRAME_KEY`, whether it was snapped or part of a sequence.
    camera
        The scan itself.
    settings
        As given.
    """

    def __init__(self, specimen: Specimen, settings: ScopeSettings) -> None:
        self.settings = settings
        self._optics = _Optics(specimen, settings)
        self._xy, self._z = _XYStage(), _FocusStage()
        self.camera = ScanCamera(settings, self._optics, self._xy, self._z)
        self.core = _ScopeCore(self.camera)
        devices = (("Scan", self.camera), ("XY", self._xy), ("Z", self._z), ("Blanker", _Blanker()))
        for label, device in devices:
            self.core.loadPyDevice(label, device)
            self.core.initializeDevice(label)
        self.core.setCameraDevice("Scan")
        self.core.setXYStageDevice("XY")
        self.core.setFocusDevice("Z")
        self.core.setShutterDevice("Blanker")
        self.core.setAutoShutter(True)
        for name in DETECTORS:
            self.core.defineConfig("Detector", name, "Scan", "Detector", name)
        self.core.setChannelGroup("Detector")
        self.core.definePixelSizeConfig("scan")
        self.core.setPixelSizeUm("scan", settings.pixel_size_um)
        self._engine = _Engine(self.core, self.camera)
        self.core.register_mda_engine(self._engine)

    def truth(self, frame: int | Mapping[str, Any]) -> NDArray[np.float32]:
        """Return the noise-free high-resolution image of a frame that was acquired.

        It is the specimen at the frame's position, depth, detector and drift, without noise, beam blur and
        line jitter; blocks of scale x scale pixels average to the noise-free frame. It is rendered again
        where it is no longer in memory.

        Parameters
        ----------
        frame
            The frame's metadata as `frameReady` hands them out, or its number, counted from 0 since the scope
            was built.

        Returns
        -------
        (scale * Y, scale * X) float32, in the grey levels of the frame.

        Raises
        ------
        InputError
            When no such frame was acquired, or the metadata carry no frame number.
        """
        view = self.camera.view_of(_frame_number(frame))
        signal = self._optics.scene(view, 0)
        return np.asarray(self.settings.offset + signal * _range(self.settings), np.float32)

    @property
    def frames(self) -> int:
        """Number of frames acquired so far."""
        return self.camera.frames

    def close(self) -> None:
        """Stop scanning and unload the devices."""
        self.camera.halt()
        if self.core.isSequenceRunning():
            self.core.stopSequenceAcquisition()
        self.core.unloadAllDevices()
        self.core.mute()

    def __enter__(self) -> ScanningScope:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass(frozen=True)
class _View:
    """What a frame looked at: enough to render its truth again."""

    y_um: float
    x_um: float
    z_um: float
    detector: int
    roi: tuple[int, int, int, int]  # x, y, width, height in the full frame, pixels
    drift: tuple[int, int] = (0, 0)  # y, x in truth pixels


def _frame_number(frame: int | Mapping[str, Any]) -> int:
    if not isinstance(frame, Mapping):
        return frame
    number = frame.get("camera_metadata", {}).get(FRAME_KEY)
    if number is None:
        raise InputError(f"these metadata carry no {FRAME_KEY!r}: pass the frame's number instead")
    return int(number)


def _range(settings: ScopeSettings) -> int:
    return settings.full_scale - settings.offset


class _Optics:
    """Renders views of the specimen and keeps those in use; called on any thread."""

    def __init__(self, specimen: Specimen, settings: ScopeSettings) -> None:
        self._specimen = specimen
        self._settings = settings
        self._lock = threading.Lock()  # owns the cache, is not held while rendering
        self._cache: OrderedDict[_View, NDArray[np.float32]] = OrderedDict()

    def scene(self, view: _View, margin: int) -> NDArray[np.float32]:
        """Return a view in [0, 1], (scale * Y, scale * X) with `margin` more frame pixels on each side."""
        s = self._settings.scale
        room = MARGIN_PX * s
        base = [round(d / room) * room for d in view.drift]  # one canvas serves all drifts around it
        canvas = self._canvas(replace(view, roi=(0, 0, 0, 0), drift=(base[0], base[1])))
        x, y, width, height = view.roi
        top = EDGE_PX * s + view.drift[0] - base[0] + (y - margin) * s
        left = EDGE_PX * s + view.drift[1] - base[1] + (x - margin) * s
        return canvas[top : top + (height + 2 * margin) * s, left : left + (width + 2 * margin) * s]

    def _canvas(self, view: _View) -> NDArray[np.float32]:
        with self._lock:
            if (canvas := self._cache.get(view)) is not None:
                self._cache.move_to_end(view)
                return canvas
        settings = self._settings
        pixel_um = settings.pixel_size_um / settings.scale
        rows, cols = (settings.scale * (n + 2 * EDGE_PX) for n in settings.shape)
        canvas = self._specimen.render(
            (rows, cols),
            pixel_size_um=pixel_um,
            center_um=(view.y_um + view.drift[0] * pixel_um, view.x_um + view.drift[1] * pixel_um),
            z_um=view.z_um,
            detector=view.detector,
        )
        with self._lock:
            self._cache[view] = canvas
            while len(self._cache) > 1 and sum(c.nbytes for c in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        return canvas


class ScanCamera(CameraDevice):
    """The scan generator and its detectors, as a camera.

    The exposure is the time of a whole frame: pixels times dwell. Setting it sets the dwell, and with it the
    dose. The beam is on while it scans, whatever the shutter says: a scan generator blanks by itself.
    """

    def __init__(self, settings: ScopeSettings, optics: _Optics, xy: _XYStage, z: _FocusStage) -> None:
        super().__init__()
        self._settings = settings
        self._optics = optics
        self._xy, self._z = xy, z
        self._dwell_us = settings.dwell_us
        self._detector = DETECTORS[0]
        self._roi = (0, 0, settings.shape[1], settings.shape[0])
        self._halt = threading.Event()
        self._owner = threading.Lock()  # of the three below; Device's own `_lock` is held during a snap
        self._frames = 0
        self._scanned_s = 0.0  # the clock of the drift: beam-on time, so that it repeats exactly
        self._views: list[tuple[int, _View]] = []  # (first frame, view); only changes of view are recorded
        self._last: tuple[_View, NDArray[np.float32]] | None = None  # noise-free, for a series at one place

    # what Micro-Manager asks

    def get_exposure(self) -> float:
        """Return the frame time, milliseconds."""
        return self._pixels * self._dwell_us / 1e3

    def set_exposure(self, exposure: float) -> None:
        """Set the frame time, milliseconds, by setting the dwell."""
        self._set_dwell(exposure * 1e3 / self._pixels)

    @pymm_property(name="DwellTime_us", limits=(1e-3, MAX_DWELL_US))
    def dwell(self) -> float:
        """Time on each pixel, microseconds."""
        return self._dwell_us

    @dwell.setter
    def _set_dwell_property(self, dwell_us: float) -> None:
        self._set_dwell(float(dwell_us))

    @pymm_property(name="Detector", allowed_values=DETECTORS)
    def detector(self) -> str:
        """The detector whose signal makes the frame."""
        return self._detector

    @detector.setter
    def _set_detector(self, name: str) -> None:
        self._detector = name

    def shape(self) -> tuple[int, int]:
        """Return (Y, X) of the frame, region of interest applied."""
        return self._roi[3], self._roi[2]

    def dtype(self) -> DTypeLike:
        """Return uint16."""
        return np.uint16

    def get_roi(self) -> tuple[int, int, int, int]:
        """Return (x, y, width, height)."""
        return self._roi

    def set_roi(self, x: int, y: int, width: int, height: int) -> None:
        """Scan only a part of the frame, at the same dwell."""
        rows, cols = self._settings.shape
        if min(x, y) < 0 or min(width, height) < 1 or x + width > cols or y + height > rows:
            raise ValueError(
                f"region of interest {(x, y, width, height)} is not within the {cols} x {rows} frame"
            )
        self._roi = (x, y, width, height)

    def clear_roi(self) -> None:
        """Scan the full frame."""
        self._roi = (0, 0, self._settings.shape[1], self._settings.shape[0])

    def start_sequence(
        self, n: int | None, get_buffer: Callable[[Sequence[int], DTypeLike], NDArray[Any]]
    ) -> Iterator[Mapping[str, Any]]:
        """Scan `n` frames, or until halted."""
        self._halt.clear()
        return self._scan(n, get_buffer)

    # the scope's side

    def halt(self) -> None:
        """End the frame being scanned, now; it is not delivered."""
        self._halt.set()

    @property
    def halted(self) -> bool:
        """Whether the last scan was ended early."""
        return self._halt.is_set()

    @property
    def frames(self) -> int:
        """Number of frames delivered so far."""
        with self._owner:
            return self._frames

    def view_of(self, number: int) -> _View:
        """Return what a frame looked at.

        Raises
        ------
        InputError
            When no such frame was acquired.
        """
        with self._owner:
            if not 0 <= number < self._frames:
                raise InputError(f"no frame {number}: {self._frames} have been acquired")
            return self._views[bisect.bisect_right(self._views, number, key=lambda entry: entry[0]) - 1][1]

    @property
    def _pixels(self) -> int:
        return self._roi[2] * self._roi[3]

    def _set_dwell(self, dwell_us: float) -> None:
        if not 0 < dwell_us <= MAX_DWELL_US:
            raise ValueError(f"dwell {dwell_us} us is not within 0 to {MAX_DWELL_US:g} us")
        self._dwell_us = dwell_us
        self.core.events.exposureChanged.emit(self.get_label(), self.get_exposure())

    def _scan(
        self, n: int | None, get_buffer: Callable[[Sequence[int], DTypeLike], NDArray[Any]]
    ) -> Iterator[Mapping[str, Any]]:
        due = time.monotonic()
        done = 0
        while n is None or done < n:
            number, view, dwell_us = self._aim()
            frame_s = view.roi[2] * view.roi[3] * dwell_us / 1e6
            frame = self._expose(number, view, dwell_us)
            if self._settings.realtime:
                due = max(due, time.monotonic() - frame_s) + frame_s  # late once: late from here on, no rush
                self._halt.wait(max(due - time.monotonic(), 0))
            if self._halt.is_set():
                return
            buffer = get_buffer(frame.shape, frame.dtype)
            buffer[:] = frame
            self._record(number, view, frame_s)
            yield {FRAME_KEY: str(number)}
            done += 1

    def _aim(self) -> tuple[int, _View, float]:
        """Return the next frame's number, view and dwell."""
        step_um = self._settings.pixel_size_um / self._settings.scale
        with self._owner:
            number, clock = self._frames, self._scanned_s
        drift = tuple(round(v * clock / step_um) for v in self._settings.drift_um_per_s)
        x_um, y_um = self._xy.specimen_um
        detector = DETECTORS.index(self._detector)
        view = _View(y_um, x_um, self._z.specimen_um, detector, self._roi, (drift[0], drift[1]))
        return number, view, self._dwell_us

    def _record(self, number: int, view: _View, frame_s: float) -> None:
        with self._owner:
            if not self._views or self._views[-1][1] != view:
                self._views.append((number, view))
            self._frames = number + 1
            self._scanned_s += frame_s

    def _expose(self, number: int, view: _View, dwell_us: float) -> NDArray[np.uint16]:
        """Return one noisy frame (Y, X): electrons, gain, read noise, offset, 16 bits."""
        settings = self._settings
        rng = np.random.default_rng((settings.seed, number))
        if self._last is None or self._last[0] != view:
            self._last = view, self._see(view)
        signal = self._last[1]
        if settings.line_jitter_px:
            signal = _average(self._jittered(signal, rng), settings.scale)
        electrons = settings.electrons_per_us * dwell_us
        grey = rng.poisson(signal * electrons).astype(np.float32) / np.float32(electrons)
        grey += settings.read_noise * rng.standard_normal(grey.shape, np.float32)
        levels = np.rint(settings.offset + grey * _range(settings))
        return np.asarray(np.clip(levels, 0, 65535), np.uint16)

    def _see(self, view: _View) -> NDArray[np.float32]:
        """Return the noise-free frame; where lines jitter, the blurred scene from which they are cut."""
        s, sigma = self._settings.scale, self._settings.beam_blur_px
        edge = self._jitter_edge
        reach = min(math.ceil(4 * sigma), MARGIN_PX - edge)
        scene = _blurred(self._optics.scene(view, edge + reach), sigma * s, reach * s)
        return scene if edge else _average(scene, s)

    @property
    def _jitter_edge(self) -> int:
        """Frame pixels that a line may be displaced by."""
        return min(math.ceil(4 * self._settings.line_jitter_px), MARGIN_PX // 2)

    def _jittered(self, scene: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the scene with each scan line displaced along x, in steps of a truth pixel."""
        s = self._settings.scale
        edge = self._jitter_edge * s
        rows, cols = scene.shape[0] - 2 * edge, scene.shape[1] - 2 * edge
        off = rng.normal(edge, self._settings.line_jitter_px * s, rows // s)
        start = np.clip(np.rint(off), 0, 2 * edge).astype(np.int64).repeat(s)
        return np.take_along_axis(scene[edge : edge + rows], start[:, None] + np.arange(cols), axis=1)


def _blurred(scene: NDArray[np.float32], sigma: float, reach: int) -> NDArray[np.float32]:
    """Return the scene under a Gaussian of `sigma` pixels, `reach` pixels smaller on each side."""
    if not sigma:
        return scene
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).astype(np.float32)
    taps /= taps.sum()
    for axis in (0, 1):
        n = scene.shape[axis] - 2 * reach
        parts = (tap * scene.take(range(k, k + n), axis) for k, tap in enumerate(taps))
        scene = np.asarray(sum(parts), np.float32)
    return scene


def _average(scene: NDArray[np.float32], scale: int) -> NDArray[np.float32]:
    """Return the mean of each scale x scale block: what a pixel sees while the beam rests on it."""
    rows, cols = (n // scale for n in scene.shape)
    return np.asarray(scene.reshape(rows, scale, cols, scale).mean((1, 3)), np.float32)


class _XYStage(XYStageDevice):
    """Moves the specimen in its plane, at once."""

    def __init__(self) -> None:
        super().__init__()
        self._at_um = (0.0, 0.0)
        self._origin_um = (0.0, 0.0)

    def set_position_um(self, x: float, y: float) -> None:
        self._at_um = (x + self._origin_um[0], y + self._origin_um[1])
        self.core.events.XYStagePositionChanged.emit(self.get_label(), x, y)

    def get_position_um(self) -> tuple[float, float]:
        return self._at_um[0] - self._origin_um[0], self._at_um[1] - self._origin_um[1]

    @property
    def specimen_um(self) -> tuple[float, float]:
        """(x, y) under the beam, whatever is called the origin."""
        return self._at_um

    def set_origin_x(self) -> None:
        self._origin_um = (self._at_um[0], self._origin_um[1])

    def set_origin_y(self) -> None:
        self._origin_um = (self._origin_um[0], self._at_um[1])

    def home(self) -> None:
        self._at_um = (0.0, 0.0)

    def stop(self) -> None:
        pass


class _FocusStage(StageDevice):
    """Chooses the section, at once."""

    def __init__(self) -> None:
        super().__init__()
        self._at_um = 0.0
        self._origin_um = 0.0

    def set_position_um(self, val: float) -> None:
        self._at_um = val + self._origin_um
        self.core.events.stagePositionChanged.emit(self.get_label(), val)

    def get_position_um(self) -> float:
        return self._at_um - self._origin_um

    @property
    def specimen_um(self) -> float:
        """Depth of the section, whatever is called the origin."""
        return self._at_um

    def set_origin(self) -> None:
        self._origin_um = self._at_um

    def home(self) -> None:
        self._at_um = 0.0

    def stop(self) -> None:
        pass


class _Blanker(ShutterDevice):
    """Satisfies autoshutter; the scan blanks the beam by itself."""

    def __init__(self) -> None:
        super().__init__()
        self._open = False

    def get_open(self) -> bool:
        return self._open

    def set_open(self, open: bool) -> None:
        self._open = open


def _mute(core: weakref.ref[_ScopeCore]) -> None:
    alive = core()
    if alive is not None:
        alive.mute()


class _ScopeCore(UniMMCore):
    """Ends the frame being scanned when the sequence is stopped, and delivers no stale one in its place."""

    def __init__(self, camera: ScanCamera) -> None:
        super().__init__()
        self._scan_camera = camera
        # the thread that delivers events aborts the process if the interpreter ends before it
        atexit.register(_mute, weakref.ref(self))

    def stopSequenceAcquisition(self, cameraLabel: str | None = None) -> None:
        self._scan_camera.halt()
        super().stopSequenceAcquisition(cameraLabel)

    def mute(self) -> None:
        """Deliver no more events."""
        super(CMMCorePlus, self).registerCallback(None)

    def snapImage(self) -> None:
        super().snapImage()
        if self._scan_camera.halted:
            raise RuntimeError("the scan was stopped before its frame was complete")


class _Engine(MDAEngine):
    """The default engine; frames that were snapped carry camera metadata like those of a sequence."""

    def __init__(self, core: UniMMCore, camera: ScanCamera) -> None:
        super().__init__(core)
        self._scan_camera = camera

    def get_frame_metadata(self, *args: Any, **kwargs: Any) -> FrameMetaV1:
        meta = super().get_frame_metadata(*args, **kwargs)
        meta["camera_metadata"] = {FRAME_KEY: str(self._scan_camera.frames - 1)}  # replaced in a sequence
        return meta
