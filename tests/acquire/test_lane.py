"""The lane of live frames with a real ledger; shots are made by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from useq import MDAEvent

from live_sr.acquire.lane import FRESH_S, LiveLane, Shot
from live_sr.acquire.outbox import Outbox
from live_sr.frame import Counts, Frame, FrameKind, Ledger


class Rig:
    """A lane and its ledger, sampled after every step."""

    def __init__(self, **options: Any) -> None:
        self.ledger = Ledger()
        self.lane = LiveLane(self.ledger, **options)

    def put(self, kind: FrameKind = "live", camera: str = "a", core: int = 0, age_s: float = 0) -> int:
        at = time.monotonic_ns() - int(age_s * 1e9)
        shot = Shot(kind, (core, camera), np.zeros((4, 6), np.uint16), MDAEvent(), {}, at)
        seq = self.lane.put(shot)
        self.counts()
        return seq

    def take(self) -> int | None:
        frame = self.lane.take()
        self.counts()
        return frame.seq if frame is not None else None

    def counts(self) -> Counts:
        c = self.ledger.sample()
        assert c.acquired == c.queued + c.in_flight + c.deferred + c.returned + c.failed
        assert c.deferred_total == 0
        return c


def test_the_newest_shot_of_each_camera_is_sent_and_the_others_are_superseded() -> None:
    rig = Rig()
    rig.put(camera="a")
    rig.put(camera="b")
    newest = [rig.put(camera="a"), rig.put(camera="b")]
    assert [rig.take(), rig.take(), rig.take()] == [*newest, None]
    c = rig.counts()
    assert (c.acquired, c.in_flight, c.superseded) == (2, 2, 2)


def test_what_came_back_counts_as_live_and_never_keeps_a_run_from_being_complete() -> None:
    rig = Rig()
    seq = rig.put()
    rig.take()
    shot = rig.lane.settle(seq)
    assert shot is not None
    assert shot.kind == "live"
    c = rig.counts()
    assert (c.acquired, c.returned, c.live, c.saved) == (1, 1, 1, 0)
    assert c.complete
    assert rig.lane.settle(seq) is None, "an answer counts once"


def test_a_frame_that_comes_back_after_a_newer_one_is_superseded() -> None:
    rig = Rig()
    old = rig.put()
    rig.take()
    new = rig.put()
    rig.take()
    assert rig.lane.settle(new) is not None
    assert rig.lane.settle(old) is None
    c = rig.counts()
    assert (c.acquired, c.returned, c.superseded) == (1, 1, 1)
    assert new > old
    assert rig.put() > new, "a superseded frame's number is not used again"


@pytest.mark.parametrize(
    ("kind", "newer", "waits"),
    [("live", False, False), ("snap", False, True), ("snap", True, False)],
    ids=["a live frame is let go", "a snap waits again", "a snap that was overtaken is let go"],
)
def test_given_back_by_the_server(
    monkeypatch: pytest.MonkeyPatch, kind: FrameKind, newer: bool, waits: bool
) -> None:
    monkeypatch.setattr("live_sr.acquire.lane.SERVER_FULL_S", 0)
    rig = Rig()
    seq = rig.put(kind)
    assert rig.take() == seq
    other = rig.put() if newer else None
    rig.lane.give_back(seq)
    assert rig.counts().superseded == (not waits)
    assert rig.take() == (seq if waits else other)


def test_a_frame_that_no_server_can_restore_has_failed() -> None:
    rig = Rig()
    seq = rig.put()
    rig.take()
    rig.lane.fail(seq)
    rig.lane.fail(seq)
    assert (rig.counts().failed, rig.counts().acquired) == (1, 1)


def test_a_server_without_room_is_not_asked_again_at_once() -> None:
    rig = Rig()
    seq = rig.put("snap")
    rig.take()
    rig.lane.give_back(seq)
    assert rig.take() is None
    assert rig.counts().queued == 1


def test_another_frame_is_wanted_when_none_waits_or_the_one_that_does_is_stale() -> None:
    taken: list[int] = []
    rig = Rig(taken=lambda: taken.append(1))
    assert rig.lane.wants(0)
    rig.put()
    assert not rig.lane.wants(0)
    assert rig.lane.wants(1)
    rig.take()
    assert taken == [1]
    assert rig.lane.wants(0)
    rig.put(age_s=2 * FRESH_S)
    assert rig.lane.wants(0)


def test_a_model_of_several_frames_is_given_the_frame_alone() -> None:
    rig = Rig(planes=lambda: 3)
    rig.put()
    frame = rig.lane.take()
    assert frame is not None
    assert frame.planes == 3
    assert all(plane is frame.pixels for plane in frame.stack)
    assert frame.used is None


def test_at_the_end_live_frames_are_let_go_and_snaps_are_waited_for() -> None:
    rig = Rig()
    away = rig.put(camera="a")
    rig.take()
    snap = rig.put("snap", camera="b")
    rig.take()
    rig.put(camera="c")
    assert rig.lane.dismiss(snaps=False) == 0
    c = rig.counts()
    assert (c.acquired, c.in_flight, c.queued, c.superseded) == (1, 1, 0, 2)
    assert rig.lane.settle(away) is None
    assert rig.lane.settle(snap) is not None
    rig.put("snap")
    assert rig.lane.dismiss(snaps=True) == 1
    assert rig.counts().settled


def test_live_frames_and_deferred_ones_take_turns_after_those_of_a_sequence() -> None:
    rig = Rig()
    pixels = np.zeros((4, 6), np.uint16)
    fetched: list[int] = []

    def fetch(seq: int) -> Frame:
        fetched.append(seq)
        return Frame(seq, pixels, 0)

    lost: Callable[[int, str], None] = lambda seq, reason: None  # noqa: E731
    outbox = Outbox(rig.ledger, fetch=fetch, lost=lost, beside=rig.lane.take, max_age_ms=1e6)
    late = [rig.ledger.acquire("deferred") for _ in range(2)]
    for seq in late:
        outbox.put_deferred(seq)
    ready = time.monotonic() + 10
    outbox.start(lambda: None)
    while len(outbox._fetched) < 2:
        assert time.monotonic() < ready
        time.sleep(0.001)
    order = []
    for _ in range(2):
        rig.put()
    run = rig.ledger.acquire()
    outbox.put(Frame(run, pixels, time.monotonic_ns()))
    while (frame := outbox.take()) is not None:
        order.append(frame.kind if frame.seq not in late else "deferred")
        if frame.kind == "live":
            rig.put()
        if len(order) == 5:
            break
    assert order == ["sequence", "live", "deferred", "live", "deferred"]
    assert fetched == late
    outbox.close()
