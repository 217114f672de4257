"""``LiveSR``: builds the parts of one session, connects them, and ends them in order.

Threads: pymmcore-plus' thread hands frames over (hook); *intake* counts them, keeps their pixels (custody)
and queues them (outbox); each *link* sends and receives; *delivery* saves, shows and emits. They meet only in
bounded queues, and nothing downstream of the hook can hold the camera up. Between sequences a *live* thread of
each core sees what it shows (live), and offers the newest of it beside the frames of the runs (lane).
"""

from __future__ import annotations

import logging
import math
import queue
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from live_sr.acquire import preflight
from live_sr.acquire.choice import Choice, Choosing
from live_sr.acquire.conduct import Conductor
from live_sr.acquire.control import Control, obey
from live_sr.acquire.custody import Custody, RawReport
from live_sr.acquire.gather import Gathered, Gatherer
from live_sr.acquire.hook import FrameTaken, Hook, Intake, RunFinished, RunStarted
from live_sr.acquire.lane import LiveLane, Shot
from live_sr.acquire.listeners import Events, Resequencer
from live_sr.acquire.live import LiveWatch
from live_sr.acquire.mda_view import MDAView
from live_sr.acquire.outbox import Outbox
from live_sr.acquire.plan import Plan, plan_frame, plan_run
from live_sr.acquire.raw import check_raw_path, open_raw, sink_path
from live_sr.acquire.records import Record, Records
from live_sr.acquire.report import RunReport, SessionReport
from live_sr.acquire.run import Run
from live_sr.acquire.spool import Spool
from live_sr.client.feed import (
    ControlStatus,
    Feed,
    FeedStatus,
    FrameInfo,
    RunState,
    SequenceStatus,
    ServerStatus,
    StageUm,
)
from live_sr.client.link import Link
from live_sr.config import DEFAULT_ADDRESS
from live_sr.errors import InputError, LiveSRError, StoreError
from live_sr.frame import Counts, Frame, Ledger, Pixels, Restored, check_pixels
from live_sr.signals import connect
from live_sr.timing import Durations, Rate
from live_sr.upscaler import pixel_size_doubt
from live_sr.wire.commands import COMMANDS
from live_sr.wire.messages import ModelInfo
from live_sr.wire.security import check_address
from live_sr.wire.token import control_token

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymmcore_plus import CMMCorePlus
    from useq import MDASequence

__all__ = ["LiveSR", "RunReport", "SessionReport"]

log = logging.getLogger("live_sr")
INTAKE_BYTES = 512 * 2**20  # between camera and intake thread: seconds of a fast camera
RESULT_BYTES = 256 * 2**20  # results waiting to be written
STATUS_S = 0.25
SETTLED_S = 1.0  # for the intake thread to take in what waits
GIVE_UP_S = 10.0  # without any server at the end of a run; a restart takes less
STALLED_S = 600.0  # a server is there, but nothing comes back: the largest frame takes a CPU a minute or two
CANCEL_S = 10.0  # for pymmcore-plus to end a run that was cancelled because the program failed

OnRawFailure = Literal["cancel", "continue"]


class LiveSR:
    """Super-resolves the frames of a pymmcore-plus core while they are acquired.

    With a model that sees several frames at once a frame comes out when those after it are in that the model
    looks ahead to; ``meta["live_sr"]`` says which frames were used, and its latency includes the waiting.

    Parameters
    ----------
    address : str or sequence of str
        One or several servers, ``tcp://HOST:PORT`` or ``ipc://PATH``.
    save : path, optional
        OME-Zarr to write the super-resolved frames to. A second run of the session goes to ``NAME-2``, and so
        on; nothing is ever overwritten. With an ``.ome.tiff`` frames go to an OME-Zarr of that name, which is
        converted at the end of a run, in the order of its axes; it is removed when the OME-TIFF was read back
        and every frame is in it, and stays otherwise. A process that is killed leaves the OME-Zarr:
        ``live-sr enhance x.ome.zarr x.ome.tiff`` converts it.
    raw : path, optional
        Where the raw data of the first run go, when the core cannot be asked: they are written by other means
        than ``run_mda(output=...)``, or by a core that is neither attached nor ``CMMCorePlus.instance()``.
    model : str, optional
        Model to begin with; by default the server's first. See :meth:`choose`.
    view : str, optional
        Address to publish frames for ``live-sr view`` on.
    control : str, optional
        Address to take an operator's commands on, of this machine only, for example ``tcp://127.0.0.1:*``. Who
        sends them must have this user's token, as ``live-sr view`` of the same user has
        (:mod:`live_sr.wire.token`).
    allow : sequence of {"choose", "sr", "pause", "cancel", "start"}
        The commands that are taken.
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
    InputError
        When `save` or `raw` has an ending that cannot be written or read.
    ConfigError
        For an address that is none, or for `control` without a token or in use.

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
        control: str | None = None,
        allow: Sequence[str] = COMMANDS,
        on_raw_failure: OnRawFailure = "cancel",
        ordered: bool = False,
        give_up_s: float = GIVE_UP_S,
        scratch: str | Path | None = None,
        progress: bool | None = None,
    ) -> None:
        self.session = uuid.uuid4().hex
        self.events = Events()
        self.report: SessionReport | None = None
        self._save: Path | None = None
        self._tiff = ""  # ending of the OME-TIFF that it becomes
        if save is not None:
            self._save, self._tiff = preflight.save_as(Path(save).expanduser())
        if self._tiff:
            log.warning(
                "super-resolved frames go to %s, which becomes %s at the end of the run: a process that is "
                "killed leaves the former, `live-sr enhance` converts it",
                self._save,
                save,
            )
        self._raw = check_raw_path(Path(raw).expanduser()) if raw is not None else None
        addresses = [address] if isinstance(address, str) else list(address)
        for each in addresses:
            check_address(each)
        self._on_raw_failure = on_raw_failure
        self._give_up_s = give_up_s
        self._progress = sys.stderr.isatty() if progress is None else progress

        self._ledger = Ledger()
        self._intake = Intake(INTAKE_BYTES)
        self._spool = Spool(Path(scratch) if scratch is not None else None)
        self._records = Records(self._spool)
        self._results: queue.SimpleQueue[Restored | _Lost | Run | int | None] = queue.SimpleQueue()
        self._results_bytes = _Tally()
        self._lane = LiveLane(self._ledger, planes=self._planes, taken=self._wake_watches)
        self._watches: list[LiveWatch] = []
        self._delivering = threading.Lock()  # held while one of them is dealt with
        self._outbox = Outbox(
            self._ledger,
            fetch=self._fetch,
            lost=self._lose,
            deferring=self._records.defer,
            room=lambda: self._results_bytes.value <= RESULT_BYTES,
            beside=self._take_live,
        )
        self._choice = Choice()
        self._conductor = Conductor(self._known_cores)
        self._control: Control | None = None
        if control is not None:
            obeyed = partial(obey, self, self._conductor)
            self._control = Control(control, token=control_token(), allow=allow, obey=obeyed)
        try:
            self._feed = Feed(view) if view is not None else None
        except LiveSRError:
            if self._control is not None:
                self._control.stop()
            raise
        chosen = Choosing(self._outbox, self._choice)
        self._links = [
            Link(
                a, session=self.session, source=chosen, sink=self, accept=partial(self._accept, a), model=model
            )
            for a in addresses
        ]
        self._order = Resequencer() if ordered else None

        self._latency = Durations()
        self._live_latency = Durations()
        self._look_ahead = Durations()
        self._raw_rate = Rate()
        self._sr_rate = Rate()
        self._said = threading.Lock()
        self._alarms: list[str] = []
        self._warnings: list[str] = []
        self._model: ModelInfo | None = None  # the first; those chosen later see as many frames
        self._model_lock = threading.Lock()
        self._frames_by_model: Counter[str] = Counter()
        self._sr_on = True
        self._sr_lock = threading.Lock()

        self._attached: list[tuple[Any, Callable[..., Any]]] = []  # (signal, slot)
        self._cores: list[CMMCorePlus] = []
        self._output_hook = Hook(self._intake, self._core_of_output, self._prepare, self.events)
        self._hooks = [self._output_hook]  # psygnal holds bound methods weakly
        # The methods by which pymmcore-plus recognises an output object; same body as an attached hook.
        self.sequenceStarted = self._output_hook.sequenceStarted
        self.frameReady = self._output_hook.frameReady
        self.sequencePauseToggled = self._output_hook.sequencePauseToggled
        self.sequenceCanceled = self._output_hook.sequenceCanceled
        self.sequenceFinished = self._output_hook.sequenceFinished

        self._runs: list[Run] = []
        self._coming_in: dict[Hook, Run | RunStarted] = {}  # the intake thread's
        self._run_ended = threading.Condition()
        self._run_reports: list[RunReport] = []
        self._finishing: list[threading.Thread] = []
        self._closed = False
        self._stop_watching = threading.Event()
        self._intake_thread = threading.Thread(target=self._take_in, name="live-sr intake", daemon=True)
        self._delivery_thread = threading.Thread(target=self._deliver_all, name="live-sr delivery", daemon=True)
        self._watch_thread = threading.Thread(target=self._watch, name="live-sr watch", daemon=True)
        for thread in (self._intake_thread, self._delivery_thread, self._watch_thread):
            thread.start()
        for link in self._links:
            link.start()
        self._outbox.start(self._wake_links)
        if self._control is not None:
            self._control.start()

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

    def attach(self, core: CMMCorePlus, *, live: bool = True) -> None:
        """Take every frame of the sequences that `core` runs from now on.

        The frame reaches pymmcore-plus' raw sink before it reaches us. Safe with any event loop and backend:
        the slots only stamp and hand over.

        Parameters
        ----------
        live : bool
            Super-resolve what is shown between sequences as well: the newest frame of continuous mode and of a
            camera's own sequences, and snaps. They are emitted and shown, and never saved; others who use the
            core lose nothing by it.
        """
        hook = Hook(self._intake, lambda: core, self._prepare, self.events)
        self._hooks.append(hook)
        self._cores.append(core)
        signals = core.mda.events
        for signal, slot in (
            (signals.sequenceStarted, hook.sequenceStarted),
            (signals.frameReady, hook.frameReady),
            (signals.sequencePauseToggled, hook.sequencePauseToggled),
            (signals.sequenceCanceled, hook.sequenceCanceled),
            (signals.sequenceFinished, hook.sequenceFinished),
            (signals.awaitingEvent, hook.awaitingEvent),
            (signals.eventStarted, hook.eventStarted),
        ):
            connect(signal, slot)
            self._attached.append((signal, slot))
        if live and all(watch.core is not core for watch in self._watches):
            self._watch_live(core)

    def _watch_live(self, core: CMMCorePlus) -> None:
        number = len(self._watches)

        def wanted() -> bool:
            return self._lane.wants(number) or (self._feed is not None and self._feed.watched)

        watch = LiveWatch(
            core,
            number,
            offer=self._show_live,
            wanted=wanted,
            overtaken=lambda n: self._ledger.tally("superseded", n),
            warn=self._warn,
        )
        self._watches.append(watch)
        watch.start()

    def wait_ready(self, timeout: float = 5.0) -> bool:
        """Wait until a server is warm and accepted; False after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        return any(link.wait_ready(max(0.0, deadline - time.monotonic())) for link in self._links)

    def choose(self, model_id: str, channel: str = "") -> None:
        """Restore frames with another model from the next one sent on; may be called at any time.

        No frame is lost, and each says which model made it: in ``meta["live_sr"]``, the journal and the volume.

        Parameters
        ----------
        model_id : str
            Held by every server that is there, and of the same scale and neighbours as the first: a volume is
            never a mixture of scales. Empty gives a named channel back to the model of the rest.
        channel : str
            Name of a channel; empty stands for every one that has not been named.

        Raises
        ------
        InputError
            When it cannot be used, with the reason.
        """
        model = self._choice.choose(model_id, channel)
        log.info("%s restores %s", model.id, channel or "all channels that are not named")
        for run in self._runs[-1:]:
            if doubt := pixel_size_doubt(model.id, model.pixel_size_um, run.plan.pixel_size_um):
                self._warn(doubt)

    def super_resolve(self, on: bool) -> None:
        """Switch super-resolution off and on; may be called at any time.

        While it is off, frames are stored and shown raw. They are super-resolved when it is switched on again,
        or when the running sequence has ended.
        """
        with self._sr_lock:
            self._sr_on = on
            self._hold_back()

    def wait_for_start(self, timeout: float | None = None) -> bool:
        """Wait until the operator presses Start; False after `timeout` seconds, and when the session closes.

        Raises
        ------
        InputError
            When this session takes no such command.
        """
        if self._control is None or "start" not in self._control.allowed:
            raise InputError('nobody could start this session: give it control="tcp://127.0.0.1:*" and "start"')
        return self._conductor.wait_for_start(timeout)

    @property
    def control_address(self) -> str | None:
        """Where an operator's commands are taken."""
        return self._control.address if self._control is not None else None

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
        raw_path = Path(raw).expanduser() if raw is not None else self._raw
        if raw_path is not None:
            preflight.refuse_existing(raw_path)
        if self._save is not None and not self._runs:
            preflight.refuse_existing_volume(self._save)
        self.wait_ready(timeout)
        engine = core.mda.engine
        meta = engine.setup_sequence(sequence) if engine is not None else None
        plan = plan_run(sequence, dict(meta or {}))
        if problem := preflight.cannot_restore(plan):
            raise InputError(problem)
        if problem := preflight.raw_has_no_room(plan, raw_path):
            raise StoreError(problem)
        return self._doubts(plan, raw_path)

    def mda_view(self) -> MDAView | None:
        """Array-like view of the super-resolved frames of the latest run, as ``core.mda.get_view()`` of raw.

        It goes by what is saved; where nothing is, by the newest frames, of which 512 MB are kept in memory.
        None before there is a run, or as long as no server has said by how much it scales.
        """
        frames = self._runs[-1].seen if self._runs else None
        return MDAView(frames) if frames is not None else None

    @property
    def counts(self) -> Counts:
        """The ledger, now."""
        return self._ledger.sample()

    @property
    def canceling(self) -> bool:
        """Whether an attached core ends its run.

        Raises
        ------
        InputError
            When none is attached.
        """
        if not self._cores:
            raise InputError("the session is attached to no core: call sr.attach(core) before the run")
        return any(core.mda.status.phase == "finishing" for core in self._cores)

    def is_settled(self) -> bool:
        """Whether every frame so far is back, or failed, and all listeners are done with it."""
        taken_in = threading.Event()
        self._intake.queue.put(taken_in)
        if not taken_in.wait(SETTLED_S) or not self._ledger.sample().settled:
            return False
        with self._delivering:  # the last frame is counted before it is emitted
            return self.events.frameReady.idle

    @property
    def alarms(self) -> list[str]:
        """What has gone wrong so far; empty in a good run."""
        with self._said:
            return list(self._alarms)

    @property
    def status(self) -> FeedStatus:
        """What a viewer is told beside the frames: counters, rates, server, alarms."""
        if self.report is not None:
            return self._status("finished")
        acquiring = self._acquiring() or bool(self._lane.raw_rate.recent())
        return self._status("acquiring" if acquiring else "draining")

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
            self._end_live()
            self._drain()
        except BaseException:  # Ctrl-C while waiting: expose the sample no longer
            self._wait_for_end_of_run(CANCEL_S, cancel=True)
            raise
        finally:
            self._shut_down()
        assert self.report is not None
        if problem := self.report.raw_problem():
            raise StoreError(problem)
        for run in self.report.runs:
            if not run.sr_complete and run.raw.path is not None:
                target = run.sr_path or self._save or "OUT.ome.zarr"
                log.warning("finish the missing frames with: live-sr enhance %s %s", run.raw.path, target)
        return self.report

    # ---------------------------------------------------------------- before the first exposure (MDA thread)

    def _prepare(
        self, core: CMMCorePlus | None, sequence: MDASequence, meta: dict[str, Any]
    ) -> tuple[Plan | None, Path | None]:
        """What is known of a run before its first exposure. Quick; never raises."""
        raw_path: Path | None = None
        plan: Plan | None = None
        try:
            raw_path = sink_path(core) if core is not None else None
            if raw_path is None and not self._runs:
                raw_path = self._raw
            plan = plan_run(sequence, meta)
            for doubt in self._doubts(plan, raw_path):
                self._warn(doubt)
            if problem := preflight.raw_has_no_room(plan, raw_path):
                self._raw_alarm(core, problem)
        except InputError as e:
            self._warn(f"{e}; frames are stored in the order of arrival")
        except Exception as e:  # an engine's own metadata, a disk that is gone: the run itself must go on
            log.exception("live-sr cannot check this sequence")
            self._warn(f"live-sr cannot check this sequence before its first exposure: {e}")
        return plan, raw_path

    def _doubts(self, plan: Plan, raw_path: Path | None) -> list[str]:
        models = {model.sha256: model for model in self._choice.chosen.values()}
        found = preflight.doubts(plan, list(models.values()), [link.status for link in self._links])
        scale = self._model.scale if self._model is not None else 1
        if problem := preflight.all_has_no_room(plan, raw_path, self._save, scale):
            found.append(f"if super-resolved data do not compress: {problem}")
        return found

    def _core_of_output(self) -> CMMCorePlus | None:
        """The core that was given this session as an output, when it can be told."""
        from pymmcore_plus.core import _mmcore_plus

        # CMMCorePlus.instance() would make one where there is none.
        instance = getattr(_mmcore_plus, "_instance", None)
        for core in (*self._cores, instance() if instance is not None else None):
            if core is not None and self in getattr(core.mda, "_handlers", ()):
                found: CMMCorePlus = core
                return found
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
        plan, _ = started.prepared
        self._coming_in[started.hook] = started if plan is None else self._new_run(started, plan)
        with self._sr_lock:
            self._hold_back()

    def _new_run(self, started: RunStarted, plan: Plan) -> Run:
        raw_path: Path | None = started.prepared[1]
        number = len(self._runs) + 1
        target = preflight.numbered(self._save, number, self._tiff) if self._save is not None else None
        core = started.hook.core

        def raw_alarm(text: str) -> None:
            self._raw_alarm(core if not run.ended else None, text)

        # Beside the super-resolved volume first: it may be on another disk, as may the scratch folder.
        near = [p.with_name(f"{p.name.split('.')[0]}.rescued") for p in (target, raw_path) if p is not None]
        scratch = self._spool.folder / f"live-sr-{self.session[:8]}-run{number}.rescued"
        custody = Custody(
            open_raw(raw_path, plan) if raw_path is not None else None,
            self._spool,
            rescue_to=[*near, scratch] if near else [],
            alarm=raw_alarm,
            warn=self._warn,
            frame_bytes=plan.frame_bytes,
            n_frames=plan.n_frames,
            in_order=not plan.regular,
        )
        run = Run(
            number=number,
            session=self.session,
            sequence=started.sequence,
            plan=plan,
            custody=custody,
            gatherer=Gatherer(plan, release=custody.release),
            raw_path=raw_path,
            target=target,
            tiff=preflight.tiff_of(target, self._tiff) if target is not None and self._tiff else None,
            summary=started.meta,
        )
        for earlier in self._runs:
            if earlier.seen is not None:
                earlier.seen.release()
        self._runs.append(run)  # before the model is looked at: whoever learns of it later tells every run
        if (model := self._model) is not None:
            run.gatherer.learn(model.frames, model.neighbours)
            run.begin(self.events, model)
        return run

    def _take_frame(self, taken: FrameTaken) -> None:
        seq = self._ledger.acquire()
        self._raw_rate.tick()
        pixels, problem = taken.pixels, None
        try:
            run = self._coming_in[taken.hook]
            if isinstance(run, RunStarted):
                assert pixels is not None, "the first frame of an unplanned run needs its pixels"
                run = self._coming_in[taken.hook] = self._new_run(run, plan_frame(pixels, taken.meta))
            n = run.acquired
            try:
                place = run.plan.place(taken.event, n)
            except LookupError:
                place, problem = {}, "its index is not among those of the sequence"
            crc = run.custody.hold(n, place, pixels)
            record = Record(run, n, place, taken.event, taken.meta, crc, taken.captured_ns)
            self._records.put(seq, record)
            run.acquired += 1
            run.last_seq = seq
        except Exception as e:  # whatever it was, the frame is counted
            log.exception("live-sr could not take in frame %d", seq)
            self._ledger.move("queued", "failed")
            self._alarm(f"live-sr could not take in frames: {type(e).__name__} {e}")
            return
        finally:
            if pixels is not None:
                self._intake.release(pixels.nbytes)
        problem = problem or (_unfit(pixels, run.plan) if pixels is not None else None)
        if problem is not None:
            self._ledger.move("queued", "failed")
            self._lose(seq, problem)
            return
        frame = check_pixels(pixels) if pixels is not None else None
        if frame is not None and self._feed is not None:
            self._feed.show_raw(self._view_of(seq, record), frame)
        for gathered in run.gatherer.add(seq, n, place, frame, crc, taken.captured_ns):
            self._hand_on(run, gathered)

    def _hand_on(self, run: Run, gathered: Gathered) -> None:
        """A frame has all that it needs to be sent."""
        if run.gatherer.axis is not None:
            self._look_ahead.add(gathered.waited_ms)
        if gathered.frame is not None:
            channel = _channel(self._records.get(gathered.seq))
            self._outbox.put(replace(gathered.frame, channel=channel))
        else:
            self._ledger.move("queued", "deferred")
            self._records.defer(gathered.seq)
            self._outbox.put_deferred(gathered.seq)

    def _end_run(self, finished: RunFinished) -> None:
        run = self._coming_in.pop(finished.hook, None)
        if isinstance(run, Run):
            for gathered in run.gatherer.end():
                self._hand_on(run, gathered)
            run.reason = finished.reason
            run.ended = True
            run.custody.sink_closed()
            if finished.reason == "errored":
                self._warn(f"the acquisition ended with an error after {run.acquired} frames: see its log")
            if finished.reason == "completed" and run.plan.n_frames is not None:
                self._ledger.tally("skipped", max(0, run.plan.n_frames - run.acquired))
            self._results.put(run)
        with self._sr_lock:
            self._hold_back()
        with self._run_ended:
            self._run_ended.notify_all()

    def _hold_back(self) -> None:
        """Whether frames are sent at present; called with the lock of the switch held."""
        self._outbox.hold_back(not self._sr_on and bool(self._coming_in))

    # ---------------------------------------------------------------- threads of the live watches

    def _show_live(self, shot: Shot) -> None:
        seq = self._lane.put(shot)
        if self._order is not None:
            self._results.put(seq)
        if self._feed is not None:
            self._feed.show_raw(self._view_of(seq, shot), shot.pixels)
        self._wake_links()

    def _take_live(self) -> Frame | None:
        return self._lane.take() if self._sr_on else None

    def _end_live(self) -> None:
        """Nobody waits for a live frame any more; a snap is still finished, unless nothing is to be sent."""
        for watch in self._watches:
            watch.stop()
        self._lane.dismiss(snaps=not self._sr_on)

    # ---------------------------------------------------------------- outbox's thread

    def _fetch(self, seq: int) -> Frame | None:
        record = self._records.get(seq)
        fetch = record.run.custody.fetch
        pixels = fetch(record.n, record.place, record.crc)
        if pixels is None:
            return None
        frame = Frame(seq=seq, pixels=pixels, captured_ns=record.captured_ns, channel=_channel(record))
        return record.run.gatherer.with_neighbours(frame, record.n, record.place, fetch)

    def _lose(self, seq: int, reason: str) -> None:
        """A frame is counted as failed; say so where it is looked for. Any thread."""
        self._results.put(_Lost(seq, reason))

    # ---------------------------------------------------------------- links' threads

    def _accept(self, address: str, models: tuple[ModelInfo, ...]) -> str | None:
        with self._model_lock:
            why_not = self._choice.accept(address, models)
            if why_not is None and self._model is None:
                self._model = models[0]
                for run in list(self._runs):
                    run.gatherer.learn(self._model.frames, self._model.neighbours)
                    run.begin(self.events, self._model)
            return why_not

    def returned(self, result: Restored) -> None:
        """A frame came back (called by a link)."""
        self._results_bytes.add(result.pixels.nbytes)
        self._results.put(result)

    def refused(self, frame: Frame, code: str, message: str) -> None:
        """A frame was refused (called by a link)."""
        if code == "busy":
            self._give_back(frame)
            return
        self._alarm(f"the server refused a frame: {message}")
        if frame.kind != "sequence":
            self._lane.fail(frame.seq)
            return
        self._ledger.move("in_flight", "failed")
        self._lose(frame.seq, message)

    def _give_back(self, frame: Frame) -> None:
        (self._outbox if frame.kind == "sequence" else self._lane).give_back(frame.seq)

    def _planes(self) -> int:
        return self._model.frames if self._model is not None else 1

    def link_changed(self, link: Link) -> None:
        """A server came, went or refused (called by a link)."""
        status = link.status
        if status.state in ("away", "stopped"):
            self._choice.gone(status.address)
        if status.state == "refused":
            self._alarm(f"server {status.address}: {status.detail}")
        elif status.state == "away":
            live = self._lane.raw_rate.recent()
            what = "the live view stands still" if live else "raw is stored, frames are finished later"
            self._warn(f"server {status.address}: {status.detail}; {what}")
        log.info("server %s: %s, %s", status.address, status.state, status.detail)

    def _wake_links(self) -> None:
        for link in self._links:
            link.wake()

    def _wake_watches(self) -> None:
        for watch in self._watches:
            watch.wake()

    # ---------------------------------------------------------------- delivery thread

    def _deliver_all(self) -> None:
        while (item := self._results.get()) is not None:
            try:
                with self._delivering:
                    self._deliver_one(item)
            except Exception:
                # The top of a thread: what shows a frame may fail, the frames after it are delivered.
                log.exception("live-sr could not deliver a result")
                self._alarm("live-sr could not deliver a result: see the log")

    def _deliver_one(self, item: Restored | _Lost | Run | int) -> None:
        if isinstance(item, Restored):
            self._deliver(item)
        elif isinstance(item, int):
            assert self._order is not None
            self._order.add(item, None)  # a live frame: nothing waits for it
        elif isinstance(item, Run):
            item.finished = True
            self._finish_if_settled(item)
        else:
            self._note_lost(item)

    def _deliver(self, result: Restored) -> None:
        left = self._results_bytes.add(-result.pixels.nbytes)
        if left <= RESULT_BYTES < left + result.pixels.nbytes:
            self._wake_links()
        if result.kind != "sequence":
            if (shot := self._lane.settle(result.seq)) is not None:
                self._show(result, shot, (time.monotonic_ns() - shot.captured_ns) / 1e6)
            return
        try:
            record = self._records.pop(result.seq)
        except StoreError as e:
            self._ledger.move("in_flight", "failed")
            self._alarm(f"restored frames cannot be placed: {e}")
            return
        run = record.run
        latency_ms = (time.monotonic_ns() - record.captured_ns) / 1e6
        saved = self._save_result(run, record, result, latency_ms)
        run.gatherer.settle(record.n, record.place, restored=True)
        self._ledger.move("in_flight", "failed" if saved is False else "returned")
        self._sr_rate.tick()
        self._frames_by_model[result.model] += 1
        self._latency.add(latency_ms)
        if not record.deferred:
            self._live_latency.add(latency_ms)
        run.settled += 1
        run.deferred += record.deferred
        if saved is not False and run.seen is not None:
            run.seen.add(record.place, result.pixels)
        try:
            self._show(result, record, latency_ms, (lambda: run.read_back(record)) if saved else None)
        finally:
            self._finish_if_settled(run)

    def _show(
        self,
        result: Restored,
        record: Record | Shot,
        latency_ms: float,
        read_back: Callable[[], Pixels] | None = None,
    ) -> None:
        if self._feed is not None:
            info = self._view_of(result.seq, record, latency_ms, model=result.model)
            self._feed.show_pair(info, result.raw, result.pixels)
        if len(self.events.frameReady):
            self._emit(result, record, latency_ms, read_back)

    def _save_result(self, run: Run, record: Record, result: Restored, latency_ms: float) -> bool | None:
        """Whether the frame is on the disk; None where nothing is to be saved."""
        if run.target is None:
            return None
        try:
            run.save(result.seq, record, result, latency_ms)
        except Exception as e:
            if not isinstance(e, LiveSRError):
                log.exception("live-sr could not save frame %d", result.seq)
            if not run.reasons:
                self._alarm(f"super-resolved frames cannot be saved: {e}")
            self._fail(run, result.seq, record, "it could not be saved")
            return False
        self._ledger.tally("saved")
        return True

    def _emit(
        self,
        result: Restored,
        record: Record | Shot,
        latency_ms: float,
        read_back: Callable[[], Pixels] | None,
    ) -> None:
        pixel_size_um = float(record.meta.get("pixel_size_um") or 0.0)
        meta = {
            **record.meta,
            "pixel_size_um": pixel_size_um / result.scale,
            "live_sr": {
                "computed": True,
                "kind": result.kind,
                "seq": result.seq,
                "scale": result.scale,
                "model": result.model,
                "model_sha256": result.model_sha256,
                "captured_ns": record.captured_ns,
                "latency_ms": latency_ms,
                "server_ms": result.server_ms,
                "deferred": record.deferred,
                "frames": result.frames,
                "look_ahead": result.frames // 2,
                "used": dict(result.used) if result.used is not None else None,
            },
        }

        def emit() -> None:
            self.events.frameReady.emit(result.pixels, record.event, meta, read_back)

        if self._order is None or result.kind != "sequence":
            emit()
        else:
            self._order.add(result.seq, emit, result.pixels.nbytes)

    def _note_lost(self, lost: _Lost) -> None:
        try:
            record = self._records.pop(lost.seq)
        except StoreError as e:
            self._alarm(f"a frame failed, and where it belongs cannot be told: {e}")
            return
        record.run.gatherer.settle(record.n, record.place, restored=False)
        self._fail(record.run, lost.seq, record, lost.reason)
        if self._order is not None:
            self._order.add(lost.seq, None)
        record.run.settled += 1
        self._finish_if_settled(record.run)

    def _fail(self, run: Run, seq: int, record: Record, reason: str) -> None:
        run.failed += 1
        if reason not in run.reasons:
            run.reasons.append(reason)
            log.error("frame %d failed: %s (said once, others may follow)", seq, reason)
        try:
            run.note_failure(seq, record, reason)
        except StoreError as e:
            self._alarm(f"the journal cannot be written: {e}")

    def _finish_if_settled(self, run: Run) -> None:
        if run.finished and run.settled == run.acquired:
            self._finish_soon(run)

    def _finish_soon(self, run: Run) -> None:
        if not run.closing:
            run.closing = True
            thread = threading.Thread(target=self._finish, args=(run,), name=f"live-sr finish {run.number}")
            self._finishing.append(thread)
            thread.start()

    # ---------------------------------------------------------------- end of a run (own thread)

    def _finish(self, run: Run) -> None:
        run.failed += run.acquired - run.settled  # none, unless delivery failed us
        try:
            raw = run.custody.finish()
        except Exception as e:  # the top of a thread; raw is not called complete
            log.exception("live-sr could not judge the raw data of run %d", run.number)
            self._alarm(f"the raw data of run {run.number} could not be judged: {e}")
            raw = RawReport(str(run.raw_path) if run.raw_path else None, run.acquired, 0, run.acquired)
        if raw.path is None and raw.rescued:
            self._warn(f"{raw.rescued} frames that are stored nowhere else are in {', '.join(raw.rescued_to)}")
        closed = True
        try:
            run.close(raw)
        except Exception as e:
            if not isinstance(e, LiveSRError):
                log.exception("live-sr could not close %s", run.target)
            self._alarm(f"super-resolved data could not be closed: {e}")
            closed = False
        self._run_reports.append(
            RunReport(
                number=run.number,
                reason=run.reason,
                acquired=run.acquired,
                failed=run.failed,
                failures=tuple(run.reasons),
                raw=raw,
                sr_path=str(run.saved_as) if run.store is not None else None,
                sr_complete=closed and run.failed == 0,
            )
        )
        if self._order is not None:
            self._order.wait_past(run.last_seq)
        run.end(self.events, self._model)

    # ---------------------------------------------------------------- closing (caller's thread)

    def _wait_for_end_of_run(self, timeout: float | None = None, *, cancel: bool = False) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._acquiring() or self._about_to_acquire():
            if cancel:
                for core in self._known_cores():
                    core.mda.cancel()
            for hook in self._hooks:
                self._end_if_orphaned(hook, waiting=True)
            if deadline is not None and time.monotonic() > deadline:
                break
            with self._run_ended:
                self._run_ended.wait(0.1)  # that a run is about to begin tells itself by nothing
        everything_taken_in = threading.Event()
        self._intake.queue.put(everything_taken_in)
        everything_taken_in.wait()

    def _acquiring(self) -> bool:
        return any(hook.delivering for hook in self._hooks)

    def _about_to_acquire(self) -> bool:
        """Whether a thread of ``run_mda`` is there: nobody may have joined it."""
        targets = [core.mda.run for core in self._known_cores()]
        me = threading.current_thread()
        return any(t is not me and getattr(t, "_target", None) in targets for t in threading.enumerate())

    def _known_cores(self) -> list[CMMCorePlus]:
        of_output = self._core_of_output()
        return [*self._cores, *([of_output] if of_output is not None else [])]

    def _end_if_orphaned(self, hook: Hook, *, waiting: bool = False) -> None:
        """End a run whose thread cannot deliver any more: another output raised, or it was interrupted."""
        thread = hook.thread
        if thread is None or (thread.is_alive() and not (waiting and thread is threading.current_thread())):
            return
        if not hook.delivering:  # asked after the thread: it ended in order
            return
        self._alarm(
            "pymmcore-plus stopped delivering frames before the end of the run (it was interrupted, or another "
            "output handler raised): frames that live-sr never saw are in the raw data; `live-sr enhance` "
            "finishes them"
        )
        relayed = hook is self._output_hook and hook.core is not None
        if relayed and hook.core.mda.status.phase != "idle":  # type: ignore[union-attr]
            return  # raw is still being written
        hook.end("interrupted")

    def _drain(self) -> None:
        """Until every frame is settled, or no server has been there for a while."""
        if self._ledger.wait_settled(0.5):
            return
        total = least = self._unsettled()
        columns = (TextColumn("finishing frames"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        served = came_back = time.monotonic()
        with Progress(*columns, console=console, disable=not self._progress) as progress:
            task = progress.add_task("", total=total)
            while not self._ledger.wait_settled(0.2):
                now = time.monotonic()
                if (left := self._unsettled()) < least:
                    least, came_back = left, now
                    progress.update(task, completed=total - left)
                working = [link for link in self._links if link.status.state in ("ready", "warming")]
                if working and now - came_back > self._give_up_s:
                    self._hand_over([link for link in self._links if link not in working])
                if working:
                    served = now
                if now - served > self._give_up_s or now - came_back > STALLED_S:
                    return
            progress.update(task, completed=total)

    def _hand_over(self, gone: Sequence[Link]) -> None:
        """Give the frames of servers that went for good to those that are there."""
        for link in gone:
            for frame in link.stop():
                self._give_back(frame)

    def _unsettled(self) -> int:
        c = self._ledger.sample()
        return c.queued + c.in_flight + c.deferred

    def _abandon(self) -> None:
        """The user's program failed: stop exposing the sample, keep what there is, and close."""
        if self._closed:
            return
        try:
            self._wait_for_end_of_run(CANCEL_S, cancel=True)
        finally:
            self._shut_down()

    def _shut_down(self) -> None:
        self._closed = self._intake.closed = True
        if self._control is not None:
            self._control.stop()
        self._conductor.close()
        self._end_live()
        for signal, slot in self._attached:
            try:
                signal.disconnect(slot)
            except (TypeError, ValueError, RuntimeError) as e:  # disconnected already, or a Qt object is gone
                log.debug("%r: %s", slot, e)
        for hook in self._hooks:
            hook.end("interrupted")
        self._intake.queue.put(None)
        self._intake_thread.join()
        for link in self._links:
            for frame in link.stop():
                if frame.kind == "sequence":
                    self._ledger.move("in_flight", "failed")
                    self._lose(frame.seq, "the server never answered")
        for seq in self._outbox.close():
            self._ledger.move("deferred", "failed")
            self._lose(seq, "no server was there to restore it")
        self._results.put(None)
        self._delivery_thread.join()
        if snaps := self._lane.dismiss(snaps=True):
            self._warn(f"{snaps} snaps were not super-resolved: no server answered")
        if self._order is not None:
            self._order.flush()
            if self._order.disordered:
                self._warn(f"{self._order.disordered} frames came too late to be emitted in order")
        for run in self._runs:
            self._finish_soon(run)
        for thread in self._finishing:
            thread.join()
        for problem in self.events.close():
            self._warn(problem)
        self.report = self._make_report()
        self._stop_watching.set()
        self._watch_thread.join()
        if self._feed is not None:
            self._feed.status(self.status)
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
            look_ahead_ms=self._look_ahead.percentiles(),
            raw_fps=self._raw_rate.overall(),
            sr_fps=self._sr_rate.overall(),
            model=self._model,
            alarms=alarms,
            warnings=warnings,
            frames_by_model=dict(self._frames_by_model),
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

    def _raw_alarm(self, core: CMMCorePlus | None, text: str) -> None:
        """Raw cannot be trusted: tell the operator and do what they chose; `core` is still acquiring it."""
        if self._on_raw_failure == "cancel" and core is not None and core.mda.is_running():
            core.mda.cancel()
            text = f"{text}. The acquisition was cancelled"
        self._alarm(text)

    # ---------------------------------------------------------------- watching thread

    def _watch(self) -> None:
        while not self._stop_watching.wait(STATUS_S):
            for hook in list(self._hooks):
                self._end_if_orphaned(hook)
            if self._feed is not None:
                self._feed.status(self.status)

    def _view_of(
        self, seq: int, record: Record | Shot, latency_ms: float | None = None, *, model: str = ""
    ) -> FrameInfo:
        """`model` has restored it; before that, the one chosen for its channel is named."""
        channel = _channel(record)
        will = self._choice.of(channel)
        return FrameInfo(
            session=self.session,
            seq=seq,
            index=dict(record.event.index),
            captured_ns=record.captured_ns,
            pixel_size_um=float(record.meta.get("pixel_size_um") or 0.0),
            scale=will.scale if will is not None else 1,
            model=model or (will.id if will is not None else ""),
            channel=channel,
            deferred=record.deferred,
            latency_ms=latency_ms,
            kind=record.kind,
            stage_um=_stage_um(record.meta),
            exposure_ms=_number(record.meta.get("exposure_ms")),
            run=record.run.number if isinstance(record, Record) else 0,
            place=record.place if isinstance(record, Record) else {},
        )

    def _status(self, state: RunState) -> FeedStatus:
        servers = [link.status for link in self._links]
        best = next((s for s in servers if s.state == "ready"), servers[0])
        latency = self._lane.latency if self._lane.sr_rate.recent() else self._live_latency
        model = self._choice.of("") or best.model
        model = next((m for m in best.models if model is not None and m.sha256 == model.sha256), model)
        full = max(self._outbox.fullness, self._intake.waiting_bytes / INTAKE_BYTES)
        return FeedStatus(
            session=self.session,
            state=state,
            counts=self._ledger.sample().as_dict(),
            raw_fps=self._raw_rate.recent() + self._lane.raw_rate.recent(),
            sr_fps=self._sr_rate.recent() + self._lane.sr_rate.recent(),
            latency_ms=dict(latency.percentiles().as_dict()),
            server=ServerStatus(
                state=best.state,
                detail=best.detail,
                model=model.id if model else "",
                device=model.device if model else "",
                precision=model.precision if model else "",
            ),
            queue="full" if full >= 1 else "high" if full >= 0.75 else "ok",
            alarms=tuple(self.alarms),
            sequence=self._sequence_status(),
            control=ControlStatus(
                address=self.control_address or "",
                allowed=self._control.allowed if self._control is not None else (),
                models=self._choice.available,
                chosen={channel: model.id for channel, model in self._choice.chosen.items()},
                sr_on=self._sr_on,
                start_awaited=self._conductor.start_awaited,
            ),
        )

    def _sequence_status(self) -> SequenceStatus:
        if not self._runs:
            return SequenceStatus()
        run = self._runs[-1]
        known = math.prod(size for _, size in run.plan.order if size is not None)
        return SequenceStatus(
            number=run.number,
            axes={name: -(-run.acquired // known) if size is None else size for name, size in run.plan.order},
            channels=tuple(c.config for c in run.sequence.channels) if run.sequence is not None else (),
            raw_path=str(run.raw_path.absolute()) if run.raw_path is not None else "",
            sr_path=str(run.saved_as.absolute()) if run.saved_as is not None else "",
            state="idle" if run.ended else self._running_state(),
        )

    def _running_state(self) -> Literal["running", "paused"]:
        paused = any(h.delivering and h.core is not None and h.core.mda.is_paused() for h in list(self._hooks))
        return "paused" if paused else "running"


@dataclass(frozen=True, slots=True, eq=False)
class _Lost:
    """For the delivery thread: a frame that will not come."""

    seq: int
    reason: str


class _Tally:
    """A number that several threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self, n: int) -> int:
        with self._lock:
            self.value += n
            return self.value


def _unfit(pixels: NDArray[Any], plan: Plan) -> str | None:
    """Why a frame cannot be restored with the others of its run."""
    try:
        check_pixels(pixels)
    except InputError as e:
        return str(e)
    if pixels.shape == plan.frame_shape and pixels.dtype.name == plan.dtype:
        return None
    return (
        f"it is {pixels.shape} {pixels.dtype}, the sequence began with {plan.frame_shape} {plan.dtype}: "
        "start a new sequence after changing ROI, binning or pixel type"
    )


def _channel(record: Record | Shot) -> str:
    return record.event.channel.config if record.event.channel is not None else ""


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _stage_um(meta: Mapping[str, Any]) -> StageUm | None:
    position = meta.get("position")
    if not isinstance(position, dict):
        return None
    return _number(position.get("x")), _number(position.get("y")), _number(position.get("z"))
