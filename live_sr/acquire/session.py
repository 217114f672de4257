"""``LiveSR``: builds the parts of one session, connects them, and ends them in order.

Threads: pymmcore-plus' thread hands frames over (hook); *intake* counts them, keeps their pixels (custody)
and queues them (outbox); each *link* sends and receives; *delivery* saves, shows and emits. They meet only in
bounded queues, and nothing downstream of the hook can hold the camera up.
"""

from __future__ import annotations

import logging
import queue
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from live_sr.acquire.custody import Custody, RawReport
from live_sr.acquire.hook import FrameTaken, Hook, Intake, RunFinished, RunStarted
from live_sr.acquire.listeners import Events, Resequencer
from live_sr.acquire.outbox import Outbox
from live_sr.acquire.plan import Plan, plan_frame, plan_run
from live_sr.acquire.raw import open_raw, sink_path
from live_sr.acquire.records import Record, Records
from live_sr.acquire.run import Run
from live_sr.acquire.spool import Spool
from live_sr.client.feed import Feed, FeedStatus, FrameInfo, RunState, ServerStatus
from live_sr.client.link import Link, why_not_mixed
from live_sr.config import DEFAULT_ADDRESS
from live_sr.errors import InputError, LiveSRError, StoreError
from live_sr.frame import DTYPES, Counts, Frame, Ledger, Restored, check_pixels
from live_sr.timing import Durations, Percentiles, Rate
from live_sr.wire.messages import ModelInfo

if TYPE_CHECKING:
    from pymmcore_plus import CMMCorePlus
    from useq import MDASequence

log = logging.getLogger("live_sr")
INTAKE_BYTES = 512 * 2**20  # between camera and intake thread: seconds of a fast camera
RESULT_BYTES = 256 * 2**20  # results waiting to be written
STATUS_S = 0.25
GIVE_UP_S = 10.0  # without any server at the end of a run; a restart takes less
CANCEL_S = 10.0  # for pymmcore-plus to end a run that was cancelled because the program failed
ORPHAN_S = 3.0  # a runner that is idle this long will not send its end of run any more

OnRawFailure = Literal["cancel", "continue"]


@dataclass(frozen=True, slots=True)
class RunReport:
    """How one sequence ended."""

    number: int
    reason: str
    acquired: int
    failed: int
    raw: RawReport
    sr_path: str | None
    sr_complete: bool


@dataclass(frozen=True, slots=True)
class SessionReport:
    """How a session ended.

    Attributes
    ----------
    counts : Counts
        The ledger; all frames of all runs.
    latency_ms : Percentiles
        From the hook's stamp to the delivery of the super-resolved frame, deferred frames included.
    raw_fps, sr_fps : float
        Frames per second from the first to the last.
    alarms, warnings : list of str
        Everything the operator was told.
    """

    session: str
    counts: Counts
    runs: list[RunReport]
    latency_ms: Percentiles
    live_latency_ms: Percentiles
    raw_fps: float
    sr_fps: float
    model: ModelInfo | None
    alarms: list[str]
    warnings: list[str]

    @property
    def raw_complete(self) -> bool:
        """Whether every run's raw data were read back whole; True where no raw data set was asked for."""
        return all(r.raw.complete or r.raw.path is None for r in self.runs)

    @property
    def sr_complete(self) -> bool:
        """Whether every frame came back, and was saved where saving was asked for."""
        return self.counts.settled and self.counts.failed == 0 and all(r.sr_complete for r in self.runs)


class LiveSR:
    """Super-resolves the frames of a pymmcore-plus core while they are acquired.

    Parameters
    ----------
    address : str or sequence of str
        One or several servers, ``tcp://HOST:PORT`` or ``ipc://PATH``.
    save : path, optional
        OME-Zarr to write the super-resolved frames to. A second run of the session goes to ``NAME-2``, and so
        on; nothing is ever overwritten.
    raw : path, optional
        Where the raw data go, when it cannot be asked of the core (given only as an output of another core).
    model : str, optional
        Model to ask for; by default what the server holds.
    view : str, optional
        Address to publish frames for ``live-sr view`` on.
    on_raw_failure : {"cancel", "continue"}
        What to do when the raw data cannot be written: end the acquisition, so that no dose is spent on what
        cannot be stored, or go on with our copy of the pixels alone. An alarm is raised in both cases.
    ordered : bool
        Emit ``frameReady`` in the order of acquisition instead of completion.
    give_up_s : float
        How long to wait for a server at the end before the rest is left to ``live-sr enhance``.
    scratch : path, optional
        Folder for the pixels that neither raw nor memory holds; best on another disk than the raw data.
    progress : bool, optional
        Show a progress bar while frames are finished after the run; by default when stderr is a terminal.

    Raises
    ------
    StoreError
        At once, when `save` exists. From :meth:`close`, when the raw data set is not complete.
    ConfigError
        For an address that is none.

    Examples
    --------
    >>> with LiveSR("tcp://127.0.0.1:5755", save="run1.sr.ome.zarr") as sr:  # doctest: +SKIP
    ...     sr.attach(mmc)
    ...     sr.events.frameReady.connect(lambda img, event, meta: print(img.shape))
    ...     mmc.run_mda(sequence, output="run1.ome.zarr").join()
    """

    def __init__(
        self,
        address: str | Sequence[str] = DEFAULT_ADDRESS,
        *,
        save: str | Path | None = None,
        raw: str | Path | None = None,
        model: str = "",
        view: str | None = None,
        on_raw_failure: OnRawFailure = "cancel",
        ordered: bool = False,
        give_up_s: float = GIVE_UP_S,
        scratch: str | Path | None = None,
        progress: bool | None = None,
    ) -> None:
        self.session = uuid.uuid4().hex
        self.events = Events()
        self.report: SessionReport | None = None
        self._save = Path(save) if save is not None else None
        if self._save is not None:
            _refuse_existing(self._save)
            if not self._save.name.endswith(".zarr"):
                raise InputError(
                    f"save={str(self._save)!r} must end in .ome.zarr: super-resolved frames go to OME-Zarr"
                )
        self._raw = Path(raw) if raw is not None else None
        self._on_raw_failure = on_raw_failure
        self._give_up_s = give_up_s
        self._progress = sys.stderr.isatty() if progress is None else progress

        self._ledger = Ledger()
        self._intake = Intake(INTAKE_BYTES)
        self._spool = Spool(Path(scratch) if scratch is not None else None)
        self._records = Records(self._spool)
        self._results: queue.SimpleQueue[Restored | _Lost | None] = queue.SimpleQueue()
        self._results_bytes = _Tally()
        self._outbox = Outbox(self._ledger, fetch=self._fetch, lost=self._lose, deferring=self._records.defer)
        addresses = [address] if isinstance(address, str) else list(address)
        self._links = [
            Link(a, session=self.session, source=self._outbox, sink=self, accept=self._accept, model=model)
            for a in addresses
        ]
        self._feed = Feed(view) if view is not None else None
        self._order = Resequencer() if ordered else None

        self._latency = Durations()
        self._live_latency = Durations()
        self._raw_rate = Rate()
        self._sr_rate = Rate()
        self._said = threading.Lock()
        self._alarms: list[str] = []
        self._warnings: list[str] = []
        self._model: ModelInfo | None = None
        self._model_lock = threading.Lock()

        self._cores: list[CMMCorePlus] = []
        self._attached: list[tuple[Any, Callable[..., Any]]] = []  # (signal, slot)
        self._hooks: list[Hook] = []
        self._output_hook = Hook(
            self._intake, lambda s, m: self._prepare(self._core_of_output(), s, m), lambda: ""
        )
        # The methods by which pymmcore-plus recognises an output object; same body as an attached hook.
        self.sequenceStarted = self._output_hook.sequenceStarted
        self.frameReady = self._output_hook.frameReady
        self.sequenceCanceled = self._output_hook.sequenceCanceled
        self.sequenceFinished = self._output_hook.sequenceFinished

        self._state = threading.Condition()
        self._runs: list[Run] = []
        self._run: Run | None = None  # the one being acquired
        self._in_run = False
        self._pending_raw: Path | None = None
        self._run_reports: list[RunReport] = []
        self._finishing: list[threading.Thread] = []
        self._closed = False
        self._stop_status = threading.Event()
        self._threads = [
            threading.Thread(target=self._take_in, name="live-sr intake", daemon=True),
            threading.Thread(target=self._deliver_all, name="live-sr delivery", daemon=True),
        ]
        self._status_thread = threading.Thread(target=self._publish_status, name="live-sr status", daemon=True)
        for thread in self._threads:
            thread.start()
        for link in self._links:
            link.start()
        self._outbox.start(self._wake_links)
        if self._feed is not None:
            self._status_thread.start()

    # ---------------------------------------------------------------- for the user

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self._abandon()
        except LiveSRError as e:  # the program's own error matters more
            log.error("%s", e)

    def attach(self, core: CMMCorePlus) -> None:
        """Take every frame of the sequences that `core` runs from now on.

        The frame reaches pymmcore-plus' raw sink before it reaches us. Safe with any event loop and backend:
        the slots only stamp and hand over.
        """
        hook = Hook(
            self._intake,
            lambda sequence, meta: self._prepare(core, sequence, meta),
            lambda: str(getattr(core.mda.status.finish_reason, "value", "") or ""),
        )
        self._hooks.append(hook)  # psygnal holds bound methods weakly
        self._cores.append(core)
        signals = core.mda.events
        for signal, slot in (
            (signals.sequenceStarted, hook.sequenceStarted),
            (signals.frameReady, hook.frameReady),
            (signals.sequenceCanceled, hook.sequenceCanceled),
            (signals.sequenceFinished, hook.sequenceFinished),
        ):
            signal.connect(slot)
            self._attached.append((signal, slot))

    def wait_ready(self, timeout: float = 5.0) -> bool:
        """Wait until a server is warm and accepted; False after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        return any(link.wait_ready(max(0.0, deadline - time.monotonic())) for link in self._links)

    def preflight(
        self, sequence: MDASequence, core: CMMCorePlus, *, raw: str | Path | None = None, timeout: float = 5.0
    ) -> list[str]:
        """Check, before anything is exposed, that `sequence` can be stored and restored.

        Returns
        -------
        list of str
            Warnings: nothing to stop for, but the operator should know.

        Raises
        ------
        StoreError
            When a target exists or the disk cannot hold the sequence.
        InputError
            When the pixel type cannot be restored.
        """
        if raw is not None:
            _refuse_existing(Path(raw))
        if self._save is not None and not self._runs:
            _refuse_existing(self._save)
        self.wait_ready(timeout)
        engine = core.mda.engine
        meta = engine.setup_sequence(sequence) if engine is not None else None
        plan = plan_run(sequence, dict(meta or {}))
        if plan.dtype not in DTYPES:
            raise InputError(f"the camera delivers {plan.dtype}, live-sr restores {' and '.join(DTYPES)}")
        raw_path = Path(raw) if raw is not None else self._raw
        if problem := self._no_room(plan, raw_path):
            raise StoreError(problem)
        return self._doubts(plan)

    @property
    def counts(self) -> Counts:
        """The ledger, now."""
        return self._ledger.sample()

    @property
    def alarms(self) -> list[str]:
        """What has gone wrong so far; empty in a good run."""
        with self._said:
            return list(self._alarms)

    @property
    def view_address(self) -> str | None:
        """Where frames are published for ``live-sr view``."""
        return self._feed.address if self._feed is not None else None

    def close(self) -> SessionReport:
        """Wait for the end of the run, finish every frame, close everything, and say how it went.

        Raises
        ------
        StoreError
            When a raw data set lacks frames; everything else has been closed by then, the pixels that raw
            lacks have been written out, and :attr:`report` is set.
        """
        if self._closed:
            assert self.report is not None
            return self.report
        try:
            self._wait_for_end_of_run()
            self._drain()
        finally:
            self._shut_down()
        assert self.report is not None
        for run in self.report.runs:
            if run.raw.path is not None and not run.raw.complete:
                kept = f" Our copy of them is in {run.raw.rescued}." if run.raw.rescued else ""
                raise StoreError(
                    f"raw data set {run.raw.path} is NOT complete: {run.raw.missing} of {run.raw.frames} "
                    f"frames could not be read back.{kept}"
                )
        return self.report

    # ---------------------------------------------------------------- before the first exposure (MDA thread)

    def _prepare(
        self, core: CMMCorePlus | None, sequence: MDASequence, meta: dict[str, Any]
    ) -> tuple[Plan | None, Path | None]:
        """What is known of a run before its first exposure. Quick; never raises."""
        raw_path = self._raw
        try:
            if raw_path is None and core is not None:
                raw_path = sink_path(core)
            plan = plan_run(sequence, meta)
            if plan.dtype not in DTYPES:
                self._warn(f"the camera delivers {plan.dtype}, live-sr restores {' and '.join(DTYPES)}")
            for doubt in self._doubts(plan):
                self._warn(doubt)
            if problem := self._no_room(plan, raw_path):
                self._raw_alarm(problem)
        except InputError as e:
            self._warn(f"{e}; frames are stored in the order of arrival")
            return None, raw_path
        except Exception as e:
            log.exception("cannot plan this sequence")
            self._warn(f"cannot plan this sequence ({e}); frames are stored in the order of arrival")
            return None, raw_path
        return plan, raw_path

    def _no_room(self, plan: Plan, raw_path: Path | None) -> str | None:
        """Why the disks cannot hold the sequence; None when they can, or its length is not known."""
        if plan.n_frames is None:
            return None
        raw_bytes = plan.n_frames * plan.frame_bytes
        scale = self._model.scale if self._model is not None else 1
        need: dict[Path, int] = {}
        for path, nbytes in ((raw_path, raw_bytes), (self._save, raw_bytes * scale**2)):
            if path is not None:
                folder = _existing_parent(path)
                need[folder] = need.get(folder, 0) + nbytes
        for folder, nbytes in need.items():
            free = shutil.disk_usage(folder).free
            if free < nbytes:
                return (
                    f"the disk of {folder} has {free / 1e6:.1f} MB left, the sequence takes up to "
                    f"{nbytes / 1e6:.1f} MB: free some space, or save elsewhere"
                )
        return None

    def _doubts(self, plan: Plan) -> list[str]:
        doubts = []
        states = [link.status for link in self._links]
        if not any(s.state == "ready" for s in states):
            where = ", ".join(f"{s.address} ({s.detail})" for s in states)
            doubts.append(f"no server is ready yet: {where}. Raw is stored; frames are finished when one is")
        if (model := self._model) is not None and (valid := model.pixel_size_um) is not None:
            low, high = valid
            size = plan.pixel_size_um
            if size <= 0:
                doubts.append(
                    f"the pixel size is unknown: {model.id} is for {low:g} to {high:g} µm; define a pixel size"
                )
            elif not low <= size <= high:
                doubts.append(
                    f"the pixel size is {size:g} µm, {model.id} was trained for {low:g} to {high:g} µm: "
                    "judge its results with care"
                )
        return doubts

    def _core_of_output(self) -> CMMCorePlus | None:
        """The core that was given this session as an output, when it can be told."""
        from pymmcore_plus.core import _mmcore_plus

        candidates = [*self._cores, getattr(_mmcore_plus, "_instance", None)]
        for core in candidates:
            if core is not None and self in getattr(core.mda, "_handlers", ()):
                return core
        return None

    # ---------------------------------------------------------------- intake thread

    def _take_in(self) -> None:
        while (taken := self._intake.queue.get()) is not None:
            try:
                if isinstance(taken, threading.Event):
                    taken.set()
                elif isinstance(taken, FrameTaken):
                    self._take_frame(taken)
                elif isinstance(taken, RunStarted):
                    self._start_run(taken)
                else:
                    self._end_run(taken)
            except Exception:
                # The top of a thread: a mistake of ours must be seen, and must not end the taking of frames.
                log.exception("live-sr could not take in %s", type(taken).__name__)
                self._alarm(f"live-sr could not take in a {type(taken).__name__}: see the log")

    def _start_run(self, started: RunStarted) -> None:
        plan, raw_path = started.prepared
        with self._state:
            self._pending_raw = raw_path
            self._run = self._new_run(plan) if plan is not None else None
            self._in_run = True

    def _new_run(self, plan: Plan) -> Run:
        number = len(self._runs) + 1
        target = _numbered(self._save, number) if self._save is not None else None
        rescue = (target or self._pending_raw or Path(tempfile.gettempdir()) / self.session).with_suffix("")
        run = Run(
            number=number,
            session=self.session,
            plan=plan,
            custody=Custody(
                open_raw(self._pending_raw),
                self._spool,
                rescue_to=rescue.with_name(f"{rescue.name.removesuffix('.ome')}.rescued"),
                alarm=self._raw_alarm,
                frame_bytes=plan.frame_bytes,
            ),
            raw_path=self._pending_raw,
            target=target,
        )
        self._runs.append(run)
        return run

    def _take_frame(self, taken: FrameTaken) -> None:
        seq = self._ledger.acquire()
        self._raw_rate.tick()
        with self._state:
            if self._run is None:
                assert taken.pixels is not None, "the first frame of a run always fits"
                self._run = self._new_run(plan_frame(taken.pixels, taken.meta))
            run = self._run
        n = run.acquired
        run.acquired += 1
        place = run.plan.place(taken.event, n)
        pixels = taken.pixels
        crc = run.custody.hold(n, place, pixels)
        if pixels is not None:
            self._intake.taken_bytes += pixels.nbytes
        record = Record(run, n, place, taken.event, taken.meta, crc, taken.captured_ns)
        self._records.put(seq, record)
        if pixels is None:
            self._ledger.move("queued", "deferred")
            self._records.defer(seq)
            self._outbox.put_deferred(seq)
            return
        try:
            frame = check_pixels(pixels)
            if frame.shape != run.plan.frame_shape or frame.dtype.name != run.plan.dtype:
                raise InputError(
                    f"frame {n} is {frame.shape} {frame.dtype}, the sequence began with {run.plan.frame_shape} "
                    f"{run.plan.dtype}: start a new sequence after changing ROI, binning or pixel type"
                )
        except InputError as e:
            self._ledger.move("queued", "failed")
            self._lose(seq, str(e))
            return
        if self._feed is not None:
            self._feed.show_raw(self._view_of(seq, record), frame)
        self._outbox.put(Frame(seq=seq, pixels=frame, captured_ns=taken.captured_ns))

    def _end_run(self, finished: RunFinished) -> None:
        with self._state:
            run, self._run = self._run, None
            self._in_run = False
            self._intake.active = None
            if run is not None:
                run.reason = "canceled" if finished.canceled else finished.reason
                run.custody.sink_closed()
            self._state.notify_all()
        if run is not None:
            self._results.put(_Lost(run))

    # ---------------------------------------------------------------- outbox's thread

    def _fetch(self, seq: int) -> Frame | None:
        record = self._records.get(seq)
        pixels = record.run.custody.fetch(record.n, record.place, record.crc)
        if pixels is None:
            return None
        return Frame(seq=seq, pixels=pixels, captured_ns=record.captured_ns)

    def _lose(self, seq: int, reason: str) -> None:
        """A frame is counted as failed; say so where it is looked for. Any thread."""
        self._results.put(_Lost(None, seq, reason))

    # ---------------------------------------------------------------- links' threads

    def _accept(self, model: ModelInfo) -> str | None:
        with self._model_lock:
            if self._model is None:
                self._model = model
                return None
            return why_not_mixed(self._model, model)

    def returned(self, result: Restored) -> None:
        """A frame came back (called by a link)."""
        self._results_bytes.add(result.pixels.nbytes)
        self._outbox.hold(self._results_bytes.value > RESULT_BYTES)
        self._results.put(result)

    def refused(self, frame: Frame, code: str, message: str) -> None:
        """A frame was refused (called by a link)."""
        if code == "busy":
            self._outbox.give_back(frame.seq)
            return
        self._ledger.move("in_flight", "failed")
        self._alarm(f"the server refused a frame: {message}")
        self._lose(frame.seq, message)

    def link_changed(self, link: Link) -> None:
        """A server came, went or refused (called by a link)."""
        status = link.status
        if status.state == "refused":
            self._alarm(f"server {status.address}: {status.detail}")
        elif status.state == "away":
            self._warn(f"server {status.address}: {status.detail}; raw is stored, frames are finished later")
        log.info("server %s: %s, %s", status.address, status.state, status.detail)

    def _wake_links(self) -> None:
        for link in self._links:
            link.wake()

    # ---------------------------------------------------------------- delivery thread

    def _deliver_all(self) -> None:
        while (item := self._results.get()) is not None:
            try:
                if isinstance(item, Restored):
                    self._deliver(item)
                    self._results_bytes.add(-item.pixels.nbytes)
                    self._outbox.hold(self._results_bytes.value > RESULT_BYTES)
                elif item.run is not None:
                    item.run.finished = True
                    self._finish_if_settled(item.run)
                else:
                    self._note_lost(item)
            except Exception:
                log.exception("live-sr could not deliver a result")
                self._alarm("live-sr could not deliver a result: see the log")

    def _deliver(self, result: Restored) -> None:
        record = self._records.pop(result.seq)
        run = record.run
        latency_ms = (time.monotonic_ns() - record.captured_ns) / 1e6
        problem = None
        if run.target is not None:
            try:
                run.save(result.seq, record, result, latency_ms)
            except StoreError as e:
                problem = str(e)
        run.custody.release(record.n)
        if problem is None:
            if run.target is not None:
                self._ledger.tally("saved")
            self._ledger.move("in_flight", "returned")
        else:
            self._ledger.move("in_flight", "failed")
            self._fail(run, result.seq, record, problem)
            self._alarm(f"super-resolved frames cannot be saved: {problem}")
        self._sr_rate.tick()
        self._latency.add(latency_ms)
        if not record.deferred:
            self._live_latency.add(latency_ms)
        if self._feed is not None:
            self._feed.show_pair(self._view_of(result.seq, record, latency_ms), result.raw, result.pixels)
        if len(self.events.frameReady):
            self._emit(result, record, latency_ms, saved=run.target is not None and problem is None)
        run.settled += 1
        run.deferred += record.deferred
        self._finish_if_settled(run)

    def _emit(self, result: Restored, record: Record, latency_ms: float, *, saved: bool) -> None:
        pixel_size_um = float(record.meta.get("pixel_size_um") or 0.0)
        meta = {
            **record.meta,
            "pixel_size_um": pixel_size_um / result.scale,
            "live_sr": {
                "computed": True,
                "seq": result.seq,
                "scale": result.scale,
                "model": result.model,
                "model_sha256": result.model_sha256,
                "latency_ms": latency_ms,
                "server_ms": result.server_ms,
                "deferred": record.deferred,
            },
        }

        def emit() -> None:
            self.events.frameReady.emit(
                result.pixels, record.event, meta, (lambda: record.run.read_back(record)) if saved else None
            )

        if self._order is None:
            emit()
        else:
            self._order.add(result.seq, emit, result.pixels.nbytes)

    def _note_lost(self, lost: _Lost) -> None:
        record = self._records.pop(lost.seq)
        self._fail(record.run, lost.seq, record, lost.reason)
        if self._order is not None:
            self._order.add(lost.seq, None)
        record.run.settled += 1
        self._finish_if_settled(record.run)

    def _fail(self, run: Run, seq: int, record: Record, reason: str) -> None:
        run.failed += 1
        if reason not in run.reasons:
            run.reasons.append(reason)
            log.error("frame %d failed: %s", seq, reason)
        try:
            run.note_failure(seq, record, reason)
        except StoreError as e:
            self._alarm(f"the journal cannot be written: {e}")

    def _finish_if_settled(self, run: Run) -> None:
        if run.finished and run.settled == run.acquired and not run.closing:
            run.closing = True
            thread = threading.Thread(target=self._finish, args=(run,), name=f"live-sr finish {run.number}")
            self._finishing.append(thread)
            thread.start()

    # ---------------------------------------------------------------- end of a run (own thread)

    def _finish(self, run: Run) -> None:
        try:
            raw = run.custody.finish()
            try:
                run.close(raw)
            except StoreError as e:
                self._alarm(f"super-resolved volume {run.target} could not be closed: {e}")
                run.failed += 1
            self._run_reports.append(
                RunReport(
                    number=run.number,
                    reason=run.reason,
                    acquired=run.acquired,
                    failed=run.failed,
                    raw=raw,
                    sr_path=str(run.target) if run.store is not None else None,
                    sr_complete=run.failed == 0,
                )
            )
        except Exception:
            log.exception("live-sr could not finish run %d", run.number)
            self._alarm(f"live-sr could not finish run {run.number}: see the log")

    # ---------------------------------------------------------------- closing (caller's thread)

    def _wait_for_end_of_run(self, timeout: float | None = None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        idle_since: float | None = None
        while True:
            with self._state:
                if not self._in_run and self._intake.owner is None and not self._cores_running():
                    break
                self._state.wait(0.1)
            now = time.monotonic()
            if deadline is not None and now > deadline:
                break
            core = self._core_of_output() or (self._cores[-1] if self._cores else None)
            if core is None or core.mda.is_running():
                idle_since = None
            elif idle_since is None:
                idle_since = now
            elif now - idle_since > ORPHAN_S:
                self._end_orphan()
                break
        everything_taken_in = threading.Event()
        self._intake.queue.put(everything_taken_in)
        everything_taken_in.wait()

    def _cores_running(self) -> bool:
        return any(core.mda.is_running() for core in self._cores)

    def _end_orphan(self) -> None:
        """The runner is idle, but the end of its run never reached us."""
        self._alarm(
            "pymmcore-plus stopped delivering frames before the end of the run (another output handler may "
            "have raised): frames that live-sr never saw are in the raw data; `live-sr enhance` finishes them"
        )
        hook, active = self._intake.owner, self._intake.active
        if hook is not None and active is not None:
            hook.sequenceFinished(active)

    def _drain(self) -> None:
        """Until every frame is settled, or no server has been there for a while."""
        if self._ledger.wait_settled(0.5):
            return
        total = self._unsettled()
        columns = (TextColumn("finishing frames"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        served = time.monotonic()
        with Progress(*columns, console=console, disable=not self._progress) as progress:
            task = progress.add_task("", total=total)
            while not self._ledger.wait_settled(0.2):
                progress.update(task, completed=total - self._unsettled())
                now = time.monotonic()
                if any(link.status.state in ("ready", "warming") for link in self._links):
                    served = now
                elif now - served > self._give_up_s:
                    return
            progress.update(task, completed=total)

    def _unsettled(self) -> int:
        c = self._ledger.sample()
        return c.queued + c.in_flight + c.deferred

    def _abandon(self) -> None:
        """The user's program failed: stop exposing the sample, keep what there is, and close."""
        for core in self._cores:
            core.mda.cancel()
        try:
            self._wait_for_end_of_run(CANCEL_S)
        finally:
            self._shut_down()

    def _shut_down(self) -> None:
        self._closed = True
        for signal, slot in self._attached:
            signal.disconnect(slot)
        self._intake.queue.put(None)
        self._threads[0].join()
        why = "no server was there to restore it"
        for seq in self._outbox.close():
            self._ledger.move("deferred", "failed")
            self._lose(seq, why)
        for link in self._links:
            for frame in link.stop():
                self._ledger.move("in_flight", "failed")
                self._lose(frame.seq, "the server never answered")
        for run in self._runs:
            if not run.finished:
                run.custody.sink_closed()
                self._results.put(_Lost(run))
        self._results.put(None)
        self._threads[1].join()
        if self._order is not None:
            self._order.flush()
        for thread in self._finishing:
            thread.join()
        for problem in self.events.frameReady.close():
            self._warn(problem)
        self.report = self._make_report()
        self._stop_status.set()
        if self._feed is not None:
            self._status_thread.join()
            self._feed.status(self._status("finished"))
            self._feed.stop()
        self._spool.close()

    def _make_report(self) -> SessionReport:
        with self._said:
            alarms, warnings = list(self._alarms), list(self._warnings)
        return SessionReport(
            session=self.session,
            counts=self._ledger.sample(),
            runs=sorted(self._run_reports, key=lambda r: r.number),
            latency_ms=self._latency.percentiles(),
            live_latency_ms=self._live_latency.percentiles(),
            raw_fps=self._raw_rate.overall(),
            sr_fps=self._sr_rate.overall(),
            model=self._model,
            alarms=alarms,
            warnings=warnings,
        )

    # ---------------------------------------------------------------- what the operator is told

    def _alarm(self, text: str) -> None:
        with self._said:
            if text in self._alarms:
                return
            self._alarms.append(text)
        log.error("%s", text)

    def _warn(self, text: str) -> None:
        with self._said:
            if text in self._warnings:
                return
            self._warnings.append(text)
        log.warning("%s", text)

    def _raw_alarm(self, text: str) -> None:
        """Raw cannot be trusted: tell the operator and do what they chose for this case."""
        if self._on_raw_failure == "cancel":
            core = self._core_of_output() or (self._cores[-1] if self._cores else None)
            if core is not None and core.mda.is_running():
                core.mda.cancel()
                text = f"{text}. The acquisition was cancelled"
        self._alarm(text)

    def _publish_status(self) -> None:
        while not self._stop_status.wait(STATUS_S):
            assert self._feed is not None
            with self._state:
                acquiring = self._in_run
            self._feed.status(self._status("acquiring" if acquiring else "draining"))

    def _view_of(self, seq: int, record: Record, latency_ms: float | None = None) -> FrameInfo:
        model = self._model
        channel = record.event.channel
        return FrameInfo(
            session=self.session,
            seq=seq,
            index=dict(record.event.index),
            captured_ns=record.captured_ns,
            pixel_size_um=float(record.meta.get("pixel_size_um") or 0.0),
            scale=model.scale if model is not None else 1,
            model=model.id if model is not None else "",
            channel=channel.config if channel is not None else "",
            deferred=record.deferred,
            latency_ms=latency_ms,
        )

    def _status(self, state: RunState) -> FeedStatus:
        servers = [link.status for link in self._links]
        best = next((s for s in servers if s.state == "ready"), servers[0])
        full = max(self._outbox.fullness, self._intake.waiting_bytes / INTAKE_BYTES)
        return FeedStatus(
            session=self.session,
            state=state,
            counts=self._ledger.sample().as_dict(),
            raw_fps=self._raw_rate.recent(),
            sr_fps=self._sr_rate.recent(),
            latency_ms=dict(self._live_latency.percentiles().as_dict()),
            server=ServerStatus(
                state=best.state,
                detail=best.detail,
                model=best.model.id if best.model else "",
                device=best.model.device if best.model else "",
                precision=best.model.precision if best.model else "",
            ),
            queue="full" if full >= 1 else "high" if full >= 0.75 else "ok",
            alarms=tuple(self.alarms),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Lost:
    """For the delivery thread: a frame that will not come, or the end of a run."""

    run: Run | None
    seq: int = -1
    reason: str = ""


class _Tally:
    """A number that several threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self, n: int) -> None:
        with self._lock:
            self.value += n


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise StoreError(f"{path} exists: choose another name, nothing is ever overwritten")


def _numbered(path: Path, number: int) -> Path:
    """`path` for the first run, ``NAME-2`` and so on after that."""
    if number == 1:
        return path
    stem, dot, suffixes = path.name.partition(".")
    return path.with_name(f"{stem}-{number}{dot}{suffixes}")


def _existing_parent(path: Path) -> Path:
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    return parent
