"""``live-sr acquire``: runs a useq-schema file from the shell and super-resolves it.

Says what is doubtful before the first exposure, how it goes, and how it ended. Ctrl-C once cancels the
acquisition and finishes the frames that were acquired; twice leaves those to ``live-sr enhance`` and ends.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from live_sr.acquire.closing import numbers, print_report
from live_sr.acquire.preflight import refuse_existing
from live_sr.acquire.raw import check_raw_path
from live_sr.acquire.session import LiveSR, OnRawFailure
from live_sr.errors import InputError, LiveSRError, StoreError

if TYPE_CHECKING:
    from pymmcore_plus import CMMCorePlus
    from useq import MDASequence

DEMO = "demo"  # the configuration that comes with Micro-Manager, of simulated devices
SERVER_S = 5.0  # for a server to answer before the first exposure; it is not needed to begin
LOOK_S = 0.1
COUNTED = 20_000  # events
END_S = 5.0  # after the second Ctrl-C, for files to be closed
INTERRUPTED = 130  # exit code, as shells have it


@dataclass(frozen=True, slots=True)
class AcquireSettings:
    """Options of ``live-sr acquire``; see its ``--help``."""

    sequence: Path
    config: str
    raw: Path
    save: Path
    servers: tuple[str, ...]
    view: str | None = None
    model: str = ""
    report: Path | None = None
    on_raw_failure: OnRawFailure = "cancel"
    control: bool = True  # with a view, whose page may then pause, cancel and choose models
    hold: bool = False  # until the operator presses Start on the page


def run_acquire(settings: AcquireSettings) -> int:
    """Acquire, finish every frame, and return the exit code.

    Raises
    ------
    LiveSRError
        When a file, the configuration or an option cannot be used, the acquisition cannot begin or fails, or
        the raw data are not complete.
    """
    out, err = Console(), Console(stderr=True)
    sequence = read_sequence(settings.sequence)
    raw = check_raw_path(settings.raw.expanduser())
    refuse_existing(raw)
    if settings.report is not None and not settings.report.absolute().parent.is_dir():
        raise InputError(f"--report {settings.report}: its folder does not exist")
    controlled = settings.control and settings.view is not None
    if settings.hold and not controlled:
        raise InputError("--hold waits for Start on the page: give --view ADDRESS, and no --no-control")
    with _microscope(settings.config) as core:
        sr = LiveSR(
            settings.servers,
            save=settings.save,
            model=settings.model,
            view=settings.view,
            control="tcp://127.0.0.1:*" if controlled else None,
            on_raw_failure=settings.on_raw_failure,
            progress=False,  # ours shows it
        )
        run = _Acquisition(core, sr, err)
        problem: StoreError | None = None
        try:
            with run.heeding_ctrl_c(), sr:
                for doubt in sr.preflight(sequence, core, raw=raw, timeout=SERVER_S):
                    err.print(doubt, style="yellow", markup=False, highlight=False, soft_wrap=True)
                sr.attach(core)
                if settings.hold:
                    err.print("waiting for Start on the page (live-sr view); Ctrl-C ends", highlight=False)
                    sr.wait_for_start()
                run.until_finished(sequence, raw)
        except KeyboardInterrupt:
            if sr.report is None or not sr.report.runs:  # nothing was exposed
                raise
        except StoreError as e:
            if sr.report is None or not sr.report.runs:
                raise
            problem = e  # the table comes first
    report = sr.report
    assert report is not None, "the session has been closed"
    if run.failure is not None and not report.runs:
        raise LiveSRError(f"the acquisition did not begin: {run.failure}") from run.failure
    print_report(out, report)
    if settings.report is not None:
        settings.report.write_text(json.dumps(numbers(report), indent=2) + "\n", encoding="utf-8")
    if problem is not None:
        raise problem
    if run.presses:
        return INTERRUPTED
    ended = report.runs[0].reason
    if ended != "completed":
        why = f": {run.failure}" if run.failure is not None else ""
        raise LiveSRError(f"the acquisition did not run to its end, it was {ended}{why}")
    return 0 if report.sr_complete else 3


def read_sequence(path: Path) -> MDASequence:
    """Read a useq-schema sequence from a YAML or JSON file.

    Raises
    ------
    InputError
        When it cannot be read, or is no sequence.
    """
    import yaml
    from pydantic import ValidationError
    from useq import MDASequence

    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise InputError(f"{path}: a sequence is a file of useq-schema that ends in .yaml, .yml or .json")
    try:
        return MDASequence.from_file(path)
    except OSError as e:
        raise InputError(f"sequence {path} cannot be read: {e.strerror}") from e
    except ValidationError as e:
        found = "; ".join(f"{'.'.join(map(str, x['loc'])) or 'it'}: {x['msg']}" for x in e.errors()[:3])
        raise InputError(f"{path} is not a sequence of useq-schema: {found}") from e
    except (yaml.YAMLError, ValueError) as e:
        raise InputError(f"sequence {path} cannot be read: {' '.join(str(e).split())}") from e


@contextlib.contextmanager
def _microscope(config: str) -> Iterator[CMMCorePlus]:
    from pymmcore import CMMCore
    from pymmcore_plus import CMMCorePlus

    if config != DEMO and not Path(config).expanduser().is_file():
        raise InputError(f"there is no configuration {config}: give a Micro-Manager .cfg file, or {DEMO!r}")
    core = CMMCorePlus()
    try:
        try:
            core.loadSystemConfiguration(*([Path(config).expanduser()] if config != DEMO else []))
        except (OSError, RuntimeError) as e:
            raise InputError(f"configuration {config} cannot be loaded: {' '.join(str(e).split())}") from e
        yield core
    finally:
        core.unloadAllDevices()
        CMMCore.registerCallback(core, None)  # whose thread may outlive the interpreter, which then aborts


class _Acquisition:
    """Runs one sequence to its end, shows how it goes, and heeds Ctrl-C.

    Attributes
    ----------
    presses : int
        Of Ctrl-C; changed by the signal handler only.
    failure : BaseException or None
        What ended the run, when an error did.
    """

    def __init__(self, core: CMMCorePlus, sr: LiveSR, console: Console) -> None:
        self.presses = 0
        self.failure: BaseException | None = None
        self._core = core
        self._sr = sr
        self._console = console
        self._begun = False
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def until_finished(self, sequence: MDASequence, raw: Path) -> None:
        """Acquire and close the session."""
        total = _expected_frames(sequence, self._core)
        watcher = threading.Thread(target=self._watch, args=(total,), name="live-sr progress", daemon=True)
        with self._catching_failure():
            watcher.start()
            self._begun = True
            try:
                self._thread = self._core.run_mda(
                    sequence, output=raw, dimension_overrides={"t": {"chunk_size": 1}}
                )
                while self._thread.is_alive():
                    self._thread.join(LOOK_S)  # a signal reaches a thread that waits only now and then
                self._sr.close()
            finally:
                self._over.set()
                watcher.join()

    @contextlib.contextmanager
    def heeding_ctrl_c(self) -> Iterator[None]:
        """Before the acquisition Ctrl-C ends the program; after that the first cancels, and the second ends."""
        last_resort = threading.Timer(END_S, os._exit, (INTERRUPTED,))
        last_resort.daemon = True

        def press(number: int, frame: FrameType | None) -> None:
            self.presses += 1  # no more than that in a handler, the watcher does the rest
            if self.presses > 2:
                os._exit(INTERRUPTED)
            if self.presses == 2:
                last_resort.start()
            if self.presses == 2 or not self._begun:
                raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, press)
        try:
            yield
        finally:
            last_resort.cancel()
            signal.signal(signal.SIGINT, before)

    def _watch(self, total: int) -> None:
        """On a thread of its own, because closing the session blocks."""
        columns = (
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[more]}"),
        )
        told = False
        with Progress(*columns, console=self._console) as progress:
            acquired = progress.add_task("acquired", total=total, more="")
            back = progress.add_task("super-resolved", total=total, more="")
            over = False
            while not over:
                over = self._over.wait(LOOK_S)
                counts = self._sr.counts
                progress.update(acquired, completed=counts.acquired)
                progress.update(
                    back, completed=counts.returned, more=f"deferred {counts.deferred}, failed {counts.failed}"
                )
                if self.presses and not told:
                    told = True
                    self._core.mda.cancel()
                    progress.console.print(
                        "cancelling the acquisition and finishing its frames; Ctrl-C again leaves them to "
                        "live-sr enhance and ends"
                    )
            # A run that was cancelled, or lost frames, has fewer than were expected.
            progress.update(acquired, total=counts.acquired)
            progress.update(back, total=counts.acquired)

    @contextlib.contextmanager
    def _catching_failure(self) -> Iterator[None]:
        """An error of the engine ends the thread of the run; it is told in one sentence."""
        before = threading.excepthook

        def caught(args: threading.ExceptHookArgs) -> None:
            if self._thread is None or args.thread is self._thread:  # it may fail before we have it
                self.failure = args.exc_value
            else:
                before(args)

        threading.excepthook = caught
        try:
            yield
        finally:
            threading.excepthook = before


def _expected_frames(sequence: MDASequence, core: CMMCorePlus) -> int:
    """For the bar: exact but for sequences so long that counting them would take a second."""
    from useq import AcquireImage

    n = math.prod(sequence.sizes.values())
    if n <= COUNTED:
        n = sum(isinstance(event.action, AcquireImage) for event in sequence)
    return n * core.getNumberOfCameraChannels()
