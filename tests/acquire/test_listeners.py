"""Listeners of super-resolved frames: each alone, none in the way of another."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any

import numpy as np
import pytest
from useq import MDAEvent

from live_sr.acquire.listeners import FrameSignal, Resequencer
from live_sr.frame import Pixels

WAIT_S = 10
EVENT = MDAEvent(index={"t": 0})


def pixels(value: int) -> Pixels:
    return np.full((4, 4), value, np.uint16)


def test_a_raising_listener_does_not_reach_the_others(caplog: pytest.LogCaptureFixture) -> None:
    signal = FrameSignal()
    got: list[int] = []

    @signal.connect
    def bad(img: Pixels) -> None:
        raise ValueError("mine")

    signal.connect(lambda img: got.append(int(img[0, 0])))
    with caplog.at_level(logging.ERROR, "live_sr"):
        for i in range(5):
            signal.emit(pixels(i), EVENT, {})
        problems = signal.close()
    assert got == [0, 1, 2, 3, 4]
    assert len(problems) == 1
    assert "raised on 5 frames" in problems[0]
    assert len(caplog.records) == 1, "an error that repeats is said once"


def test_a_blocking_listener_does_not_hold_the_others_up() -> None:
    signal = FrameSignal()
    let = threading.Event()
    got: queue.Queue[int] = queue.Queue()
    signal.connect(lambda img: let.wait(WAIT_S))
    signal.connect(lambda img: got.put(int(img[0, 0])))
    for i in range(3):
        signal.emit(pixels(i), EVENT, {})
    assert [got.get(timeout=WAIT_S) for _ in range(3)] == [0, 1, 2]
    let.set()
    assert signal.close() == []


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
def test_a_slow_listener_gets_frames_read_back_or_their_loss_is_counted(stored: bool) -> None:
    signal = FrameSignal(max_bytes=2 * 32)
    began, let = threading.Event(), threading.Event()
    got: list[int] = []

    @signal.connect
    def slow(img: Pixels) -> None:
        began.set()
        assert let.wait(WAIT_S)
        got.append(int(img[0, 0]))

    for i in range(5):
        signal.emit(pixels(i), EVENT, {}, (lambda i=i: pixels(100 + i)) if stored else None)
        assert began.wait(WAIT_S)
    let.set()
    problems = signal.close()
    if stored:
        assert got == [0, 1, 102, 103, 104]
        assert problems == []
    else:
        assert got == [0, 1]
        assert "missed 3 frames" in problems[0]


def test_a_frame_larger_than_the_bound_is_delivered() -> None:
    signal = FrameSignal(max_bytes=1)
    got: list[int] = []
    signal.connect(lambda img: got.append(1))
    signal.emit(pixels(0), EVENT, {})
    assert signal.close() == []
    assert got == [1]


def test_listeners_take_as_many_arguments_as_they_want() -> None:
    signal = FrameSignal()
    got: list[tuple[Any, ...]] = []
    signal.connect(lambda: got.append(()))
    signal.connect(lambda img, event: got.append((event,)))
    signal.connect(lambda *args: got.append(args[2:]))
    signal.emit(pixels(0), EVENT, {"a": 1})
    signal.close()
    assert sorted(got, key=str) == sorted([(), (EVENT,), ({"a": 1},)], key=str)


def test_a_disconnected_listener_is_not_called_again() -> None:
    signal = FrameSignal()
    got: list[int] = []

    class Viewer:
        def show(self, img: Pixels) -> None:
            got.append(int(img[0, 0]))

    viewer = Viewer()
    signal.connect(viewer.show)
    signal.emit(pixels(1), EVENT, {})
    signal.disconnect(viewer.show)
    signal.emit(pixels(2), EVENT, {})
    assert len(signal) == 0
    signal.close()
    assert 2 not in got


ORDERS = [
    pytest.param([0, 1, 2, 3], id="in order"),
    pytest.param([3, 2, 1, 0], id="newest first"),
    pytest.param([1, 0, 3, 2], id="pairs"),
]


@pytest.mark.parametrize("arrival", ORDERS)
def test_frames_are_put_into_the_order_of_acquisition(arrival: list[int]) -> None:
    order, got = Resequencer(), []
    for seq in arrival:
        order.add(seq, lambda seq=seq: got.append(seq), 1)
    assert got == [0, 1, 2, 3]
    assert order.disordered == 0


def test_a_frame_that_never_comes_leaves_a_gap_and_not_a_stop() -> None:
    order, got = Resequencer(), []
    order.add(1, lambda: got.append(1), 1)
    order.add(0, None)
    assert got == [1]


def test_past_the_bound_a_late_frame_comes_out_of_order_and_is_counted() -> None:
    order, got = Resequencer(max_bytes=2), []
    for seq in (1, 2, 3, 0):
        order.add(seq, lambda seq=seq: got.append(seq), 1)
    assert got == [1, 2, 3, 0]
    assert order.disordered == 1


def test_what_still_waits_at_the_end_is_delivered_in_order() -> None:
    order, got = Resequencer(), []
    for seq in (5, 3, 4):
        order.add(seq, lambda seq=seq: got.append(seq), 1)
    order.flush()
    assert got == [3, 4, 5]
