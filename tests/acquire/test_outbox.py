"""The outbox with a real ledger; what it does not do itself is given as plain functions."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from live_sr.acquire.outbox import Outbox
from live_sr.frame import Frame, Ledger

WAIT_S = 10
OLD_MS = 1e6


class Camera:
    """Makes frames, counts them, and has the pixels of those that were deferred."""

    def __init__(self, **options: object) -> None:
        self.ledger = Ledger()
        self.frames: dict[int, Frame] = {}
        self.lost: queue.Queue[tuple[int, str]] = queue.Queue()
        self.deferred: list[int] = []
        self.ready = threading.Semaphore(0)
        self.fetch: Callable[[int], Frame | None] = self.frames.__getitem__
        self.outbox = Outbox(
            self.ledger,
            fetch=lambda seq: self.fetch(seq),
            lost=lambda seq, reason: self.lost.put((seq, reason)),
            deferring=self.deferred.append,
            **{"max_age_ms": OLD_MS, **options},  # type: ignore[arg-type]
        )

    def shoot(self, age_ms: float = 0) -> int:
        seq = self.ledger.acquire()
        frame = Frame(seq, np.full((8, 8), seq, np.uint16), time.monotonic_ns() - int(age_ms * 1e6))
        self.frames[seq] = frame
        self.outbox.put(frame)
        return seq

    def take(self) -> int:
        """Number of the next frame, which may still have to be fetched."""
        while (frame := self.outbox.take()) is None:
            assert self.ready.acquire(timeout=WAIT_S)
        return frame.seq


@contextmanager
def camera(**options: object) -> Iterator[Camera]:
    c = Camera(**options)
    c.outbox.start(c.ready.release)
    yield c
    c.outbox.close()
    counts = c.ledger.sample()
    assert counts.acquired == counts.in_flight + counts.deferred + counts.failed


def test_while_held_back_every_frame_is_deferred_and_none_is_sent() -> None:
    with camera() as c:
        c.shoot()
        c.outbox.hold_back(True)
        c.shoot()
        assert c.deferred == [0, 1]
        assert c.outbox.take() is None
        assert (c.ledger.sample().queued, c.ledger.sample().deferred) == (0, 2)
        assert c.outbox.fullness == 0
        c.outbox.hold_back(False)
        assert [c.take() for _ in range(2)] == [0, 1]
        assert c.shoot() == c.take() == 2


def test_the_newest_frame_is_sent_first() -> None:
    with camera() as c:
        for _ in range(3):
            c.shoot()
        assert [c.take() for _ in range(3)] == [2, 1, 0]
        assert c.ledger.sample().in_flight == 3
        assert c.outbox.take() is None


def test_a_frame_that_waited_too_long_is_deferred_and_served_when_nothing_newer_waits() -> None:
    with camera(max_age_ms=1000) as c:
        c.shoot(age_ms=2000)
        c.shoot(age_ms=0)
        assert [c.take(), c.take()] == [1, 0]
        assert c.deferred == [0]
        assert c.ledger.sample().deferred_total == 1


def test_past_the_bound_the_oldest_frame_gives_way() -> None:
    with camera(max_bytes=2 * 128) as c:
        for _ in range(4):
            c.shoot()
        assert c.deferred == [0, 1]
        assert c.outbox.fullness == 1.0
        assert [c.take() for _ in range(2)] == [3, 2]
        assert sorted(c.take() for _ in range(2)) == [0, 1]


def test_a_frame_larger_than_the_bound_is_served_as_well() -> None:
    with camera(max_bytes=1) as c:
        assert c.shoot() == c.take() == 0


def test_a_frame_that_raw_does_not_hold_yet_is_asked_for_again() -> None:
    with camera(max_bytes=1) as c:
        answers: list[Frame | None] = [None, None]

        def slowly(seq: int) -> Frame | None:
            return answers.pop() if answers else c.frames[seq]

        c.fetch = slowly
        c.shoot()
        assert c.take() == 0
        assert not answers


@pytest.mark.parametrize("error", [LookupError("gone"), ValueError("a mistake")], ids=["gone", "mistake"])
def test_a_frame_that_is_gone_is_counted_and_the_others_are_served(error: Exception) -> None:
    with camera(max_bytes=1) as c:

        def fetch(seq: int) -> Frame:
            if seq == 0:
                raise error
            return c.frames[seq]

        c.fetch = fetch
        c.shoot()
        assert c.lost.get(timeout=WAIT_S) == (0, str(error))
        assert c.ledger.sample().failed == 1
        assert c.shoot() == c.take() == 1


def test_nothing_is_sent_while_there_is_no_room_for_results() -> None:
    room = threading.Event()
    with camera(room=room.is_set) as c:
        c.shoot()
        assert c.outbox.take() is None
        room.set()
        assert c.take() == 0


def test_a_frame_given_back_waits_in_the_deferred_lane() -> None:
    with camera() as c:
        c.shoot()
        assert c.take() == 0
        c.outbox.give_back(0)
        assert c.ledger.sample().in_flight == 0
        assert c.take() == 0


def test_closing_returns_every_frame_that_is_left() -> None:
    c = Camera(max_bytes=2 * 128)
    c.outbox.start(c.ready.release)
    for _ in range(4):
        c.shoot()
    assert c.take() == 3
    assert c.outbox.close() == [0, 1, 2]
    assert c.outbox.take() is None
    counts = c.ledger.sample()
    assert (counts.deferred, counts.in_flight) == (3, 1)
