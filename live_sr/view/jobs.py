"""Files that a server enhances: takes them one after the other, keeps them for a while, forgets them.

One thread computes, plane by plane, so that a file takes no more of the server than one microscope does. Knows
no page and no web framework; imports no torch.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from msgspec import Struct

from live_sr import __version__
from live_sr.client.images import check_target, open_source, write_image
from live_sr.client.link import RemoteUpscaler
from live_sr.client.stacks import Stacks
from live_sr.client.store import STATEMENT
from live_sr.client.volume import VolumeLayout
from live_sr.errors import ConfigError, InputError, LiveSRError
from live_sr.frame import Pixels
from live_sr.upscaler import UpscalerInfo, pixel_size_doubt
from live_sr.view.admit import TooLargeError, admit
from live_sr.view.contrast import grey_window, to_8bit
from live_sr.view.render import encode
from live_sr.wire.security import check_address

log = logging.getLogger(__name__)

MAX_UPLOAD_MB = 2048  # a day's tilt series; more is better copied to the server's machine and enhanced there
MAX_JOBS = 8  # files at hand that are not done; each may take the disk that its result needs
MAX_KEPT = 32  # done or failed; the oldest goes first
PATIENCE_S = 90.0  # for a server that was lost: longer than the link takes to find an engine hung
CONNECT_S = 10.0  # a server that is there answers at once; the file is kept for another try
KEPT_S = 3600.0  # a result that nobody fetched
FETCHED_S = 60.0  # after it was fetched: for a browser that asks twice
ROOM_BYTES = 2**29  # of the disk, left to others
PREVIEW_PX = 160  # raw pixels along each side of the comparison, which is as wide as a side panel
STOP_S = 3.0  # for the thread; while it connects it is left to end with the process
MAX_NAME = 80  # characters of a file's name

State = Literal["uploading", "waiting", "running", "done", "failed"]


class FullError(InputError):
    """No room at present: too many files, or too little disk."""


class GoneError(InputError):
    """There is no such file, or not any more."""


class JobStatus(Struct, frozen=True):
    """One file, as the page shows it.

    Attributes
    ----------
    detail : str
        One sentence: what is happening, or why it failed.
    planes, done : int
        Of the file, and computed so far.
    left_s : float or None
        Estimated computing time that is left.
    result : str
        Name under which it is fetched; empty before it is done.
    notes : tuple of str
        What to know about the result.
    preview : bool
        Whether there is a comparison to look at.
    kept_s : float or None
        Seconds until it is deleted.
    """

    id: str
    name: str
    state: State
    detail: str
    planes: int
    done: int
    left_s: float | None
    result: str
    result_mb: float
    notes: tuple[str, ...]
    preview: bool
    kept_s: float | None


@dataclass(eq=False)
class Job:
    """One file. Changed under the lock of its :class:`Jobs`, but for the counts of the plane in work."""

    id: str
    name: str
    folder: Path
    state: State = "uploading"
    detail: str = ""
    source: Path | None = None
    layout: VolumeLayout | None = None
    result: Path | None = None
    done: int = 0
    began: float = 0.0  # time.monotonic(), when computing began
    ends: float | None = None  # when it is deleted
    notes: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)  # "before" and "after", PNG
    upscaler: RemoteUpscaler | None = None
    dropped: bool = False

    @property
    def planes(self) -> int:
        """Of the file; 0 while they are not known."""
        return (self.layout.n_frames or 0) if self.layout is not None else 0

    @property
    def result_name(self) -> str:
        """For whoever fetches it: the name it came with, and that it is super-resolved."""
        if self.result is None:
            return ""
        stem = re.sub(r"(\.ome)?\.(tiff?|png)$", "", self.name, flags=re.IGNORECASE)
        return f"{stem}.sr{''.join(self.result.suffixes)}"


class Jobs:
    """All files at hand. Its methods may be called from any thread.

    Parameters
    ----------
    server : str
        Address of the inference server.
    max_bytes : int
        Of one file, and of its planes unpacked.

    Raises
    ------
    ConfigError
        When the address is malformed.
    """

    def __init__(
        self,
        server: str,
        *,
        max_bytes: int = MAX_UPLOAD_MB * 2**20,
        patience_s: float = PATIENCE_S,
        kept_s: float = KEPT_S,
    ) -> None:
        check_address(server)
        if max_bytes <= 0:
            raise ConfigError(f"the largest upload is {max_bytes} bytes: give a size above 0")
        self.server = server
        self.max_bytes = max_bytes
        self._patience_s = patience_s
        self._kept_s = kept_s
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}  # in the order of arrival
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="live-sr files", daemon=True)

    def __enter__(self) -> Jobs:
        # Only this user can look into it.
        self._folder = tempfile.TemporaryDirectory(prefix="live-sr-files-", ignore_cleanup_errors=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ended = True
        for job in self.all():
            self.drop(job.id)
        with self._changed:
            self._changed.notify_all()
        self._thread.join(timeout=STOP_S)
        self._folder.cleanup()

    # ---------------------------------------------------------------- any thread

    def begin(self, name: str, n_bytes: int | None) -> Job:
        """Make room for a file that is about to arrive.

        Parameters
        ----------
        n_bytes : int or None
            None where the sender does not say.

        Raises
        ------
        TooLargeError
            When it is above the limit.
        FullError
            When there are too many files already, or the disk has no room.
        """
        if n_bytes is not None and n_bytes > self.max_bytes:
            raise self.too_large(n_bytes)
        folder = Path(self._folder.name)
        if shutil.disk_usage(folder).free < (n_bytes or 0) + ROOM_BYTES:
            raise FullError("the machine that serves this page has no room on its disk: tell who runs it")
        with self._changed:
            at_work = [job for job in self._jobs.values() if job.state in ("uploading", "waiting", "running")]
            if len(at_work) >= MAX_JOBS:
                raise FullError(f"{len(at_work)} files are in work: wait until one is done, then send it again")
            job = Job(uuid.uuid4().hex, clean_name(name), folder / secrets.token_hex(8))
            job.folder.mkdir()
            self._jobs[job.id] = job
        return job

    def too_large(self, n_bytes: int) -> TooLargeError:
        """The refusal of a file of this size."""
        return TooLargeError(
            f"the file has {n_bytes / 2**20:,.0f} MB or more, the limit is {self.max_bytes / 2**20:,.0f} MB: "
            "send it in parts, use `live-sr enhance`, or raise --max-upload-mb of live-sr view"
        )

    def arrived(self, job: Job, source: Path) -> None:
        """Judge a file that is here, and queue it.

        Raises
        ------
        InputError
            When it cannot be enhanced; it is dropped then.
        """
        try:
            layout = admit(source, self.max_bytes)
        except LiveSRError as e:
            self.drop(job.id)
            kind = TooLargeError if isinstance(e, TooLargeError) else InputError
            raise kind(_in_their_words(str(e), job, source)) from e
        with self._changed:
            if job.dropped:
                raise GoneError("the upload was cancelled")
            job.source, job.layout, job.state = source, layout, "waiting"
            self._changed.notify_all()

    def again(self, job_id: str) -> None:
        """Queue a file that failed once more.

        Raises
        ------
        GoneError
            When there is no such file, or it has not failed.
        """
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or job.state != "failed":
                raise GoneError("there is no such file to try again")
            job.state, job.detail, job.done, job.ends = "waiting", "", 0, None
            job.pictures = {}
            self._changed.notify_all()

    def drop(self, job_id: str) -> None:
        """Cancel what is in work, delete the files, forget it. Nothing happens when it is gone already."""
        with self._changed:
            job = self._jobs.pop(job_id, None)
            if job is None:
                return
            job.dropped = True
            upscaler = job.upscaler
        if upscaler is not None:
            upscaler.close()  # the thread that waits for a plane goes on to the next file, and tidies up
        else:
            shutil.rmtree(job.folder, ignore_errors=True)

    def get(self, job_id: str) -> Job:
        """The file of this id.

        Raises
        ------
        GoneError
            When there is none.
        """
        with self._changed:
            if job_id not in self._jobs:
                raise GoneError("this file is not here any more: results are deleted when they were fetched")
            return self._jobs[job_id]

    def all(self) -> list[JobStatus]:
        """Every file, in the order of arrival."""
        with self._changed:
            waiting = [job for job in self._jobs.values() if job.state == "waiting"]
            return [self._status(job, waiting) for job in self._jobs.values()]

    def fetched(self, job: Job) -> None:
        """Note that the result has been fetched: it is deleted soon."""
        with self._changed:
            job.ends = min(job.ends or np.inf, time.monotonic() + FETCHED_S)
            self._changed.notify_all()

    def _status(self, job: Job, waiting: list[Job]) -> JobStatus:
        detail, left = job.detail, None
        if job.state == "waiting":
            running = sum(other.state == "running" for other in self._jobs.values())
            before = waiting.index(job) + running
            few = ("starting", "waiting for the file before it")
            detail = few[before] if before < len(few) else f"waiting for {before} files before it"
        elif job.state == "running" and job.upscaler is not None:
            link = job.upscaler.status
            if link.state != "ready":
                detail = f"waiting for the server, {self._patience_s:.0f} s at most: {link.detail}"
            elif job.done:
                left = (time.monotonic() - job.began) / job.done * (job.planes - job.done)
        size = job.result.stat().st_size if job.result is not None and job.result.exists() else 0
        return JobStatus(
            id=job.id,
            name=job.name,
            state=job.state,
            detail=detail,
            planes=job.planes,
            done=job.done,
            left_s=left,
            result=job.result_name,
            result_mb=size / 2**20,
            notes=tuple(job.notes),
            preview="after" in job.pictures,
            kept_s=max(0.0, job.ends - time.monotonic()) if job.ends is not None else None,
        )

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                job = None
                while not self._ended and job is None:
                    left = self._forget_old()
                    job = next((job for job in self._jobs.values() if job.state == "waiting"), None)
                    if job is None:
                        self._changed.wait(left)
                if self._ended or job is None:
                    return
                job.state, job.detail = "running", f"connecting to {self.server}"
            self._work(job)

    def _forget_old(self) -> float | None:
        """Delete what is past its time; seconds until the next is due. Called with the lock held."""
        now = time.monotonic()
        over = [job for job in self._jobs.values() if job.ends is not None]
        over.sort(key=lambda job: job.ends or now)
        surplus = len(over) - MAX_KEPT
        for n, job in enumerate(over):
            if n >= surplus and job.ends is not None and job.ends > now:
                return job.ends - now
            del self._jobs[job.id]
            shutil.rmtree(job.folder, ignore_errors=True)
        return None

    def _work(self, job: Job) -> None:
        state: State = "failed"
        try:
            with self._connected(job) as upscaler:
                self._enhance(job, upscaler)
            state, detail = "done", f"computed with {upscaler.info.id}"
        except LiveSRError as e:
            detail = _in_their_words(str(e), job, job.source)
        except Exception:
            log.exception("enhancing %s failed", job.name)
            detail = "it failed by an error of live-sr's own: the log of live-sr view has the details"
        with self._changed:
            job.upscaler = None
            if job.dropped:
                shutil.rmtree(job.folder, ignore_errors=True)
            else:
                job.state, job.detail, job.ends = state, detail, time.monotonic() + self._kept_s

    @contextlib.contextmanager
    def _connected(self, job: Job) -> Iterator[RemoteUpscaler]:
        with RemoteUpscaler(
            self.server, session=uuid.uuid4().hex, timeout=self._patience_s, connect_timeout=CONNECT_S
        ) as upscaler:
            with self._changed:
                if job.dropped:
                    raise GoneError("cancelled")
                job.upscaler = upscaler
                job.detail = f"{upscaler.info.id} on {upscaler.info.device}"
            yield upscaler

    def _enhance(self, job: Job, upscaler: RemoteUpscaler) -> None:
        assert job.source is not None
        assert job.layout is not None
        info, layout = upscaler.info, job.layout.scaled(upscaler.info.scale)
        self._check_fits(job.layout, layout, info)
        target = _target(job, layout)
        with closing(open_source(job.source)) as source:
            stacks = Stacks(source, info)
            doubt = pixel_size_doubt(info.id, info.pixel_size_um, job.layout.pixel_size_um)
            alone = stacks.why_alone if info.frames > 1 and stacks.axis is None else None
            job.notes = [note for note in (doubt, alone) if note is not None]
            job.began = time.monotonic()
            statement = (
                f"{STATEMENT} Source: {job.name}. Computed with {info.id}, sha256 {info.sha256}, "
                f"x{info.scale}, {info.precision}. Software: live-sr {__version__}."
            )
            write_image(target, layout, self._planes(job, stacks, upscaler, layout), statement=statement)
        job.result = target

    def _check_fits(self, raw: VolumeLayout, layout: VolumeLayout, info: UpscalerInfo) -> None:
        y, x = raw.frame_shape
        if y * x > info.max_pixels:
            raise InputError(
                f"its planes have {y} x {x} pixels, the server accepts {info.max_pixels}: send tiles"
            )
        if raw.dtype not in info.dtypes:
            raise InputError(f"it is {raw.dtype}, {info.id} takes {' or '.join(info.dtypes)}")
        y, x = layout.frame_shape
        n_bytes = (layout.n_frames or 0) * y * x * np.dtype(layout.dtype).itemsize
        if shutil.disk_usage(self._folder.name).free < n_bytes + ROOM_BYTES:
            raise FullError(
                f"the result takes {n_bytes / 2**30:.1f} GB, more than is free on the machine that serves this "
                "page: send it in parts"
            )

    def _planes(
        self, job: Job, stacks: Stacks, upscaler: RemoteUpscaler, layout: VolumeLayout
    ) -> Iterator[Pixels]:
        missing = 0
        middle = job.planes // 2
        for n, index in enumerate(stacks.source.indices()):
            with self._changed:
                self._forget_old()
            if job.dropped:
                raise GoneError("cancelled")
            raw = stacks.source.read(index)
            if raw is None:  # the file has a fixed number of pages
                missing += 1
                restored: Pixels = np.zeros(layout.frame_shape, layout.dtype)
            else:
                (restored,) = upscaler.upscale([stacks.of(index, raw).pixels])
                if n == middle or not job.pictures:
                    job.pictures = _compare(raw, restored)
            job.done = n + 1
            yield restored
        if missing:
            job.notes.append(f"{missing} planes are not in the file: they are black in the result")


def clean_name(name: str) -> str:
    """A file's name without folders and without what no system allows in it."""
    last = re.split(r"[/\\]", name)[-1]
    safe = "".join(c if c.isprintable() and c not in '<>:"|?*' else "_" for c in last).strip(" .")
    if len(safe) <= MAX_NAME:
        return safe or "image"
    return safe[: MAX_NAME - 10] + safe[-10:]  # with its ending


def _target(job: Job, layout: VolumeLayout) -> Path:
    """As it came: PNG for PNG; OME-TIFF for all TIFF but those whose axes it has no names for."""
    assert job.source is not None
    if job.source.suffix == ".png":
        return job.folder / "result.png"
    target = job.folder / "result.ome.tif"
    try:
        check_target(target, layout)
    except InputError:
        return job.folder / "result.tif"
    return target


def _in_their_words(text: str, job: Job, path: Path | None) -> str:
    """With the name that the file came with instead of where it lies here."""
    return text.replace(str(path), job.name)


def _compare(raw: Pixels, restored: Pixels) -> dict[str, bytes]:
    """The middle of a plane before and after, in one contrast."""
    scale = restored.shape[0] // raw.shape[0]
    rows, columns = (slice((n - min(n, PREVIEW_PX)) // 2, (n + min(n, PREVIEW_PX)) // 2) for n in raw.shape)
    before = raw[rows, columns]
    after = restored[rows.start * scale : rows.stop * scale, columns.start * scale : columns.stop * scale]
    window = grey_window([after])
    both = {"before": before, "after": after}
    return {name: encode(to_8bit(pixels, window), "image/png") for name, pixels in both.items()}
