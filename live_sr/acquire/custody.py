"""Keeps each frame's pixels until the raw data set is seen to hold them. Knows no server.

Raw is stored by pymmcore-plus before we see a frame, but asynchronously: a full disk shows up at close, as a
log line, in a run that ends "completed". So every frame is read back from the disk and compared by checksum.
Until then its pixels are kept here: in memory up to a bound, then in a scratch file. When raw falls behind
or the disk runs full an alarm is raised at once, and at the end whatever raw does not hold is written out as
TIFF files.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from live_sr.acquire.plan import Place
from live_sr.acquire.raw import RawStore, checksum
from live_sr.acquire.spool import Slip, Spool
from live_sr.errors import StoreError

log = logging.getLogger("live_sr")
MEMORY_BYTES = 256 * 2**20  # pixels kept in memory until raw holds them
MEMORY_MOST = 4  # times that where scratch fails too: then our copy is given up, or all would be lost with us
FIRST_LOOK_S = 0.1  # the writer needs some milliseconds; looking earlier only costs
LOOK_AGAIN_S = 0.05
LATE_S = 5.0  # a frame not on disk by then: the disk is full, gone or far too slow
SETTLE_S = 2.0  # a writer's last chunks may appear after its close (ome-writers does not wait for all of them)
DISK_CHECK_S = 0.5
LOW_FRAMES = 8  # frames' worth of free space under which the alarm is raised before anything is lost
SKIPS_SOUGHT = 16  # frames by which skipped events may have shifted those that are stored in order of arrival


@dataclass(slots=True, eq=False)
class _Held:
    place: Place
    since: float
    pixels: NDArray[Any] | None  # None: in the spool, given up, or never had (then `crc` is None too)
    crc: int | None
    shape: tuple[int, ...] = ()
    dtype: str = ""
    slip: Slip | None = None

    @property
    def ours(self) -> bool:
        return self.pixels is not None or self.slip is not None


@dataclass(frozen=True, slots=True)
class RawReport:
    """What is known of the raw data at the end of a run.

    Attributes
    ----------
    path : str or None
        The raw data set; None where none is known.
    verified, missing : int
        Frames read back with the right checksum; frames that raw does not hold.
    rescued : int
        Frames of our own that were written to `rescued_to`, because raw lacks them, or because there is no
        raw data set and they were not restored.
    """

    path: str | None
    frames: int
    verified: int
    missing: int
    rescued: int = 0
    rescued_to: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every frame was read back from the raw data set with the right checksum."""
        return self.path is not None and self.verified == self.frames


class Custody:
    """The pixels of one run. Thread-safe; owns the thread that reads raw back.

    Parameters
    ----------
    raw : RawStore or None
        None when there is no raw data set that can be read: pixels are then kept until they are released.
    rescue_to : sequence of Path
        Folders for the pixels that raw does not hold, tried in turn; made only when needed.
    alarm : callable
        ``(text)``: raw cannot be trusted. Called once per kind of trouble, on any thread.
    warn : callable
        ``(text)``: our own copy cannot be kept, though raw is there.
    n_frames : int or None
        Frames of the whole run, where known.
    in_order : bool
        Frames lie in the order of arrival: an event that was skipped shifts those after it.
    """

    def __init__(
        self,
        raw: RawStore | None,
        spool: Spool,
        *,
        rescue_to: Sequence[Path],
        alarm: Callable[[str], None],
        warn: Callable[[str], None] = lambda text: None,
        frame_bytes: int,
        n_frames: int | None = None,
        in_order: bool = False,
        memory_bytes: int = MEMORY_BYTES,
        late_s: float = LATE_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._raw = raw
        self._spool = spool
        self._rescue_to = rescue_to
        self._alarm = alarm
        self._warn = warn
        self._frame_bytes = frame_bytes
        self._n_frames = n_frames
        self._in_order = in_order
        self._memory_bytes = memory_bytes
        self._late_s = late_s
        self._settle_s = settle_s
        self._raw_lock = threading.Lock()  # the store is read by two threads
        self._shift = 0  # frames that the raw writer was told to skip so far; under _raw_lock
        self._changed = threading.Condition()
        self._held: OrderedDict[int, _Held] = OrderedDict()  # oldest first
        self._with_pixels: deque[int] = deque()  # oldest first; those dropped since are still in it
        self._in_memory = 0
        self._frames = 0
        self._verified = 0
        self._missing: set[int] = set()
        self._said: set[str] = set()
        self._sink_closed = raw is None
        self._progress_at = 0.0  # when raw was last seen to grow, and to what size; the watching thread's
        self._size = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._watch, name="live-sr custody", daemon=True)
        if raw is not None:
            self._thread.start()

    # ---------------------------------------------------------------- intake thread

    def hold(self, n: int, place: Place, pixels: NDArray[Any] | None) -> int | None:
        """Keep the run's `n`-th frame and return its checksum; a frame without pixels only waits for raw."""
        held = _Held(place, time.monotonic(), None, None)
        if pixels is not None:
            held = _Held(place, held.since, pixels, checksum(pixels), pixels.shape, pixels.dtype.name)
        with self._changed:
            self._frames += 1
            self._held[n] = held
            if pixels is not None:
                self._with_pixels.append(n)
                self._in_memory += pixels.nbytes
                if self._in_memory > self._memory_bytes:
                    self._spool_oldest()
            self._changed.notify_all()
        return held.crc

    # ---------------------------------------------------------------- outbox's thread

    def fetch(self, n: int, place: Place, crc: int | None) -> NDArray[Any] | None:
        """Pixels of a frame that was held once; None when raw does not hold it yet.

        Raises
        ------
        LookupError
            When raw has been closed and does not hold it either.
        StoreError
            When our own copy cannot be read.
        """
        with self._changed:
            held = self._held.get(n)
            if held is not None and held.ours:
                return self._pixels(held)
            judged = self._sink_closed and (held is None or n in self._missing or self._raw is None)
            readable = self._raw is not None and (self._raw.live or self._sink_closed)
        # Without a checksum (there was no memory for the pixels) only a closed raw data set can be believed.
        if (crc is not None and readable) or judged:
            pixels = self._read_raw(place, crc)
            if pixels is not None:
                return pixels
        if not judged:
            return None
        raise LookupError(
            "its pixels are not in the raw data set, which has been closed, and not here any more"
        )

    def release(self, n: int) -> None:
        """A frame has been restored: without a raw data set nothing else needs its pixels."""
        if self._raw is None:
            with self._changed:
                self._drop(n)

    # ---------------------------------------------------------------- end of the run

    def sink_closed(self) -> None:
        """The raw writer has closed its files: what does not appear now never will."""
        with self._changed:
            self._sink_closed = True
            self._changed.notify_all()

    def finish(self) -> RawReport:
        """Read back what is left, write out what raw does not hold, and report.

        Call after :meth:`sink_closed`, and after the last :meth:`fetch`.
        """
        assert self._sink_closed, "raw can be judged only after its writer has closed it"
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._raw is not None:
            self._thread.join()
            self._raw.close()
        rescued, folders = self._rescue()
        with self._changed:
            missing = len(self._held) if self._raw is not None else 0
            for n in list(self._held):
                self._drop(n)
        return RawReport(
            path=str(self._raw.path) if self._raw is not None else None,
            frames=self._frames,
            verified=self._verified,
            missing=missing,
            rescued=rescued,
            rescued_to=tuple(str(folder) for folder in folders),
        )

    @property
    def verified(self) -> int:
        """Frames read back so far."""
        return self._verified

    # ---------------------------------------------------------------- own thread

    def _watch(self) -> None:
        try:
            self._read_back()
        except Exception as e:  # the top of a thread: raw is then not called complete
            log.exception("live-sr could not read raw data back")
            self._say("watch", f"raw data cannot be read back: {e}")

    def _read_back(self) -> None:
        assert self._raw is not None
        disk_at = closed_at = 0.0
        while True:
            with self._changed:
                while not self._held and not self._stopping:
                    self._changed.wait()
                if not self._held or len(self._missing) == len(self._held):
                    return
                n, held = next(iter(self._held.items()))
                closed = self._sink_closed
            now = time.monotonic()
            if closed and not closed_at:
                closed_at = now
            if not closed and now - disk_at > DISK_CHECK_S:
                disk_at = now
                self._check_disk()
            if not closed and (early := held.since + FIRST_LOOK_S - now) > 0:
                self._wait(early)
            elif self._is_on_disk(held, closed):
                self._progress_at = time.monotonic()
                with self._changed:
                    self._verified += 1
                    self._drop(n)
            elif not closed:
                self._complain_if_late(n, held, now)
                self._wait(LOOK_AGAIN_S)
            elif self._still_settling(now, closed_at):
                self._wait(LOOK_AGAIN_S)
            else:
                self._say(
                    "missing",
                    f"raw data set {self._raw.path} is INCOMPLETE: frame {n} was acquired but is not in it",
                )
                with self._changed:
                    self._missing.add(n)
                    self._held.move_to_end(n)

    def _is_on_disk(self, held: _Held, closed: bool) -> bool:
        assert self._raw is not None
        if not closed and (held.crc is None or not self._raw.live):
            return False
        return self._read_raw(held.place, held.crc) is not None

    def _still_settling(self, now: float, closed_at: float) -> bool:
        assert self._raw is not None
        with self._raw_lock:
            size = self._raw.nbytes()
        if size > self._size:
            self._size, self._progress_at = size, now
        return not self._missing and now - max(closed_at, self._progress_at) < self._settle_s

    def _complain_if_late(self, n: int, held: _Held, now: float) -> None:
        """Say when a frame should be on the disk by now: several that share a chunk are written at once."""
        assert self._raw is not None
        if "late" in self._said or not self._raw.live or now - held.since <= self._late_s:
            return
        with self._raw_lock:
            chunk, frames = self._raw.chunk(held.place)
            if frames > 1:
                with self._changed:
                    waiting = list(self._held.values())
                mates = [h.since for h in waiting if self._raw.chunk(h.place)[0] == chunk]
                if len(mates) < frames or now - max(mates) <= self._late_s:
                    return
        self._say(
            "late",
            f"raw data are not being written: frame {n} is not in {self._raw.path} {self._late_s:g} s after it "
            "was acquired. Its pixels are kept here",
        )

    def _check_disk(self) -> None:
        assert self._raw is not None
        try:
            free = shutil.disk_usage(self._raw.path.parent).free
        except OSError as e:
            self._say("disk", f"the disk of the raw data {self._raw.path} cannot be reached: {e.strerror}")
            return
        to_come = LOW_FRAMES
        if self._n_frames is not None:  # the last frames of a run may well take the last of a disk
            to_come = min(to_come, self._n_frames - (self._verified if self._raw.live else self._frames))
        if free < to_come * self._frame_bytes:
            self._say(
                "disk",
                f"the disk of the raw data {self._raw.path} is full: {free / 1e6:.1f} MB left, "
                f"a frame takes {self._frame_bytes / 1e6:.1f} MB",
            )

    def _wait(self, seconds: float) -> None:
        with self._changed:
            closed = self._sink_closed
            self._changed.wait_for(lambda: self._sink_closed != closed, seconds)

    def _say(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self._alarm(text)

    # ---------------------------------------------------------------- raw

    def _read_raw(self, place: Place, crc: int | None) -> NDArray[Any] | None:
        """Pixels at `place` if they have the checksum; without one, what is there."""
        if self._raw is None:
            return None
        with self._raw_lock:
            if not self._in_order:
                return self._matching(place, crc)
            further = range(self._shift + SKIPS_SOUGHT) if crc is not None else ()
            for shift in (self._shift, *further):
                pixels = self._matching({**place, "t": place["t"] + shift}, crc)
                if pixels is not None:
                    self._shift = max(self._shift, shift)
                    return pixels
            return None

    def _matching(self, place: Place, crc: int | None) -> NDArray[Any] | None:
        assert self._raw is not None
        pixels = self._raw.read(place, absent_ok=crc is not None)
        return pixels if pixels is not None and crc in (None, checksum(pixels)) else None

    # ---------------------------------------------------------------- pixels

    def _pixels(self, held: _Held) -> NDArray[Any]:
        if held.pixels is not None:
            return held.pixels
        assert held.slip is not None
        pixels: NDArray[Any] = np.frombuffer(self._spool.get(held.slip), dtype=held.dtype).reshape(held.shape)
        return pixels

    def _drop(self, n: int) -> None:
        held = self._held.pop(n, None)
        if held is not None:
            self._let_go(held)
            if held.slip is not None:
                self._spool.discard(held.slip)

    def _let_go(self, held: _Held) -> None:
        if held.pixels is not None:
            self._in_memory -= held.pixels.nbytes
            held.pixels = None

    def _spool_oldest(self) -> None:
        while self._with_pixels and self._in_memory > self._memory_bytes:
            held = self._held.get(self._with_pixels[0])
            if held is not None and held.pixels is not None:
                try:
                    held.slip = self._spool.put(np.ascontiguousarray(held.pixels).data.cast("B"))
                except StoreError as e:
                    self._say_scratch_failed(e)
                    if self._in_memory <= MEMORY_MOST * self._memory_bytes:
                        return
                self._let_go(held)
            self._with_pixels.popleft()

    def _say_scratch_failed(self, error: StoreError) -> None:
        if "spool" in self._said:
            return
        if self._raw is None:
            self._say("spool", f"{error}: frames that wait to be restored can only be kept in memory")
        else:
            self._said.add("spool")
            self._warn(
                f"{error}: our copy of frames that raw does not show yet is kept only while memory lasts"
            )

    def _rescue(self) -> tuple[int, list[Path]]:
        """Write every frame that is left here to a TIFF file of its own."""
        rescued, used = 0, []
        folders = list(self._rescue_to)
        for n, held in sorted(self._held.items()):
            if not held.ours:
                continue
            while folders:
                try:
                    self._write_tiff(folders[0], n, held)
                except (OSError, StoreError) as e:
                    self._say(
                        f"rescue {folders[0]}", f"cannot write frames that raw lacks to {folders[0]}: {e}"
                    )
                    folders.pop(0)
                    continue
                rescued += 1
                if folders[0] not in used:
                    used.append(folders[0])
                break
        return rescued, used

    def _write_tiff(self, folder: Path, n: int, held: _Held) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        where = "_".join(f"{axis}{i}" for axis, i in held.place.items())
        path = folder / f"frame{n:06d}_{where}.tif"
        raw = self._raw.path.name if self._raw is not None else "no raw data set"
        text = f"frame {n} at {where}, missing from {raw}".encode(
            "ascii", "backslashreplace"
        )  # TIFF holds ASCII
        try:
            tifffile.imwrite(path, self._pixels(held), description=text, metadata=None)
        except OSError:
            path.unlink(missing_ok=True)
            raise
