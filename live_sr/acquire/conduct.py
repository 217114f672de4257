"""Pauses, resumes and cancels the running sequence, and holds a program back until it is started.

Knows pymmcore-plus' runner and no frame. Every method may be called from any thread: the runner guards its
state with a lock of its own, and its signal of a pause is emitted on the caller's thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from live_sr.errors import LiveSRError

if TYPE_CHECKING:
    from pymmcore_plus import CMMCorePlus
    from pymmcore_plus.mda import MDARunner

log = logging.getLogger("live_sr")
# pymmcore-plus 0.18 forgets a pause or a cancel that falls between its last look and the start of an exposure:
# it overwrites the state with "acquiring". So it is asked again, after longer than that takes.
LOOK_AGAIN_S = 0.05
TRIES = 5  # it would have to be forgotten as often in a row
LOOK_S = 0.5  # on Windows a waiting thread notices Ctrl-C between two waits only


class Conductor:
    """What an operator may do to the sequences of a session's cores.

    Parameters
    ----------
    cores : callable
        ``() -> cores`` whose sequences are meant, asked each time.
    """

    def __init__(self, cores: Callable[[], Iterable[CMMCorePlus]]) -> None:
        self._cores = cores
        self._changed = threading.Condition()
        self._waiting = 0
        self._starts = 0
        self._closed = False

    def pause(self, on: bool) -> None:
        """Pause what runs, at the end of the frame being exposed; or let it go on.

        Raises
        ------
        LiveSRError
            When nothing runs, or what runs cannot be paused at present.
        """
        for runner in self._running():
            self._insist(runner, partial(runner.set_paused, on), partial(_is_paused, runner, on))

    def cancel(self) -> None:
        """End what runs, at the end of the frame being exposed.

        Raises
        ------
        LiveSRError
            When nothing runs.
        """
        for runner in self._running():
            self._insist(runner, runner.cancel, partial(_is_ending, runner))

    def start(self) -> None:
        """Let the program go on that is in :meth:`wait_for_start`.

        Raises
        ------
        LiveSRError
            When none is.
        """
        with self._changed:
            if not self._waiting:
                raise LiveSRError("no program waits to be started")
            self._starts += 1
            self._changed.notify_all()

    def wait_for_start(self, timeout: float | None) -> bool:
        """Wait until it is called; False after `timeout` seconds, or when the session is closed."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        with self._changed:
            before = self._starts
            self._waiting += 1
            try:
                while not self._closed and self._starts == before:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return False
                    self._changed.wait(min(left, LOOK_S))
                return not self._closed
            finally:
                self._waiting -= 1

    @property
    def start_awaited(self) -> bool:
        """Whether a program waits to be started."""
        return self._waiting > 0

    def close(self) -> None:
        """Let whoever waits go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _running(self) -> list[MDARunner]:
        runners = {id(core.mda): core.mda for core in self._cores()}
        running = [runner for runner in runners.values() if runner.is_running()]
        if not running:
            raise LiveSRError("no sequence is running")
        return running

    def _insist(self, runner: MDARunner, ask: Callable[[], None], obeyed: Callable[[], bool]) -> None:
        for _ in range(TRIES):
            try:
                ask()
            except Exception:  # a listener's, called here; whether the runner obeyed is asked now
                log.exception("a listener of pymmcore-plus raised")
            with self._changed:
                self._changed.wait_for(lambda: self._closed, LOOK_AGAIN_S)
            if obeyed():
                return
            if not runner.is_running():
                raise LiveSRError("the sequence has ended meanwhile")
        raise LiveSRError(f"the sequence does not obey at present, it is {runner.status.phase}: try again")


def _is_paused(runner: MDARunner, wanted: bool) -> bool:
    """Or is about to be; what goes on again may also have ended by now."""
    status = runner.status
    return (status.pause_requested or status.phase.value == "paused") == wanted


def _is_ending(runner: MDARunner) -> bool:
    return runner.status.cancel_requested or not runner.is_running()
