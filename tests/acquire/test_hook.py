"""Hooks: what comes in twice is delivered once, and nothing that comes in can stop the camera."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from useq import MDAEvent, MDASequence

from live_sr.acquire.hook import FrameTaken, Hook, Intake, RunFinished, RunStarted, Taken

EVENT = MDAEvent()
IMG = np.zeros((4, 4), np.uint16)
META = {"datetime": "2026-01-01T00:00:00.000001"}


def new_hook(intake: Intake) -> Hook:
    return Hook(intake, lambda: None, lambda core, sequence, meta: None)


def taken(intake: Intake) -> list[Taken | None]:
    return [intake.queue.get_nowait() for _ in range(intake.queue.qsize())]


def a_run(hook: Hook, sequence: MDASequence, meta: dict[str, Any], n: int = 2) -> None:
    hook.sequenceStarted(sequence, meta)
    for _ in range(n):
        hook.frameReady(IMG, EVENT, {})
    hook.sequenceFinished(sequence)


@pytest.mark.parametrize("copied", [False, True], ids=["same metadata", "copied by Qt"])
def test_a_run_that_comes_in_twice_is_delivered_once(copied: bool) -> None:
    intake = Intake(1000)
    attached, output = new_hook(intake), new_hook(intake)
    sequence = MDASequence()
    attached.sequenceStarted(sequence, META)
    output.sequenceStarted(sequence, dict(META) if copied else META)
    for hook in (attached, output):
        hook.frameReady(IMG, EVENT, {})
    attached.sequenceFinished(sequence)
    output.sequenceFinished(sequence)
    assert [type(x) for x in taken(intake)] == [RunStarted, FrameTaken, RunFinished]


def test_a_relay_that_is_a_whole_run_late_delivers_nothing_twice() -> None:
    """pymmcore-plus' relay thread is shared with other outputs, which may be slow."""
    intake = Intake(1000)
    attached, output = new_hook(intake), new_hook(intake)
    sequence = MDASequence()
    a_run(attached, sequence, META)
    a_run(output, sequence, META)
    assert sum(isinstance(x, FrameTaken) for x in taken(intake)) == 2


def test_the_same_sequence_can_be_run_again() -> None:
    intake = Intake(1000)
    hook = new_hook(intake)
    sequence = MDASequence()
    a_run(hook, sequence, META)
    a_run(hook, sequence, {"datetime": "another"})
    a_run(hook, sequence, {})
    a_run(hook, sequence, {})
    assert sum(isinstance(x, FrameTaken) for x in taken(intake)) == 8


def test_a_run_whose_end_never_came_is_ended_by_the_next() -> None:
    intake = Intake(1000)
    hook = new_hook(intake)
    hook.sequenceStarted(MDASequence(), {})
    hook.sequenceStarted(MDASequence(), {})
    found = taken(intake)
    assert [type(x) for x in found] == [RunStarted, RunFinished, RunStarted]
    assert isinstance(found[1], RunFinished)
    assert found[1].reason == "interrupted"


def test_past_the_bound_frames_are_handed_over_without_pixels() -> None:
    intake = Intake(max_bytes=2 * IMG.nbytes)
    hook = new_hook(intake)
    a_run(hook, MDASequence(), {}, n=3)
    kept = [x.pixels is not None for x in taken(intake) if isinstance(x, FrameTaken)]
    assert kept == [True, True, False]
    intake.release(2 * IMG.nbytes)
    assert intake.waiting_bytes == 0


def test_a_view_into_the_cameras_buffer_is_copied() -> None:
    intake = Intake(1000)
    hook = new_hook(intake)
    hook.sequenceStarted(MDASequence(), {})
    ring = np.zeros((2, 4, 4), np.uint16)
    hook.frameReady(ring[0], EVENT, {})
    hook.frameReady(own := IMG.copy(), EVENT, {})
    ring[:] = 9
    frames = [x for x in taken(intake) if isinstance(x, FrameTaken)]
    assert frames[0].pixels is not None
    assert frames[0].pixels.max() == 0
    assert frames[1].pixels is own


def test_what_is_no_array_is_handed_over_as_a_frame_without_pixels() -> None:
    intake = Intake(1000)
    hook = new_hook(intake)
    hook.sequenceStarted(MDASequence(), {})
    hook.frameReady([1, 2], EVENT, {})  # type: ignore[arg-type]
    frame = taken(intake)[-1]
    assert isinstance(frame, FrameTaken)
    assert frame.pixels is None


def test_a_closed_session_takes_no_run() -> None:
    intake = Intake(1000)
    hook = new_hook(intake)
    intake.closed = True
    a_run(hook, MDASequence(), {})
    assert taken(intake) == []
