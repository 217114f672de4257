"""Which frames come out of the gatherer, when, and with which neighbours; plans are of real sequences."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import useq

from live_sr.acquire.gather import Gathered, Gatherer
from live_sr.acquire.plan import Place, Plan, plan_frame, plan_run
from live_sr.acquire.raw import checksum
from live_sr.frame import Frame, Pixels
from live_sr.neighbours import FRAME_COUNTS, FrameCount, Neighbours
from rig import SEQUENCES
from series import seen

SHAPE = (3, 4)


def plan_of(sequence: useq.MDASequence) -> Plan:
    info = {"height": SHAPE[0], "width": SHAPE[1], "dtype": "uint16", "pixel_size_um": 1.0}
    return plan_run(sequence, {"image_infos": [info], "mda_sequence": sequence})


def told(place: Place) -> str:
    return "".join(f"{axis}{i}" for axis, i in place.items())


class Run:
    """A gatherer, and the pixels of all frames that it was given: frame n has the value n + 1 throughout."""

    def __init__(self, plan: Plan, **options: Any) -> None:
        self.plan = plan
        self.released: list[int] = []
        self.gatherer = Gatherer(plan, release=self.released.append, **options)
        self.places: list[Place] = []
        self.values: list[int] = []
        self.handed: dict[int, Gathered] = {}
        self.not_in_raw: set[int] = set()

    def add(self, event: useq.MDAEvent, *, black: bool = False, pixels: bool = True) -> str:
        n = len(self.places)
        place = self.plan.place(event, n)
        self.places.append(place)
        self.values.append(0 if black else n + 1)
        frame = self.pixels(n)
        crc = checksum(frame) if pixels else None
        return self.say(self.gatherer.add(n, n, place, frame if pixels else None, crc, 0))

    def end(self) -> str:
        return self.say(self.gatherer.end())

    def pixels(self, n: int) -> Pixels:
        return np.full(SHAPE, self.values[n], np.uint16)

    def fetch(self, n: int, place: Place, crc: int | None) -> Pixels:
        assert place == self.places[n]
        assert n not in self.released, f"frame {n} is still needed"
        if n in self.not_in_raw:
            raise LookupError("lost")
        return self.pixels(n)

    def later(self, n: int) -> Frame | None:
        """Frame n as it is fetched after it was deferred."""
        frame = Frame(n, self.fetch(n, self.places[n], None), 0)
        return self.gatherer.with_neighbours(frame, n, self.places[n], self.fetch)

    def say(self, ready: Iterable[Gathered]) -> str:
        """Which frames were handed on, each with its neighbours' positions."""
        words = []
        for gathered in ready:
            assert gathered.seq not in self.handed
            self.handed[gathered.seq] = gathered
            frame = gathered.frame or self.later(gathered.seq)
            assert frame is not None
            used = " ".join(map(str, *(frame.used or {"": ("alone",)}).values()))
            words.append(f"{told(self.places[gathered.seq])}({used})")
        return ", ".join(words)

    def values_of(self, frame: Frame) -> list[int]:
        """What its planes show: numbers of frames, plus 1."""
        assert all((plane == plane[0, 0]).all() for plane in frame.stack)
        return [int(plane[0, 0]) for plane in frame.stack or (frame.pixels,)]


T4 = useq.MDASequence(time_plan={"interval": 0, "loops": 4})
T2C2 = useq.MDASequence(axis_order="tc", time_plan={"interval": 0, "loops": 2}, channels=["a", "b"])
T3P2 = useq.MDASequence(
    axis_order="tp", time_plan={"interval": 0, "loops": 3}, stage_positions=[(0, 0), (9, 9)]
)
P2T3 = T3P2.replace(axis_order="pt")
C2Z3 = useq.MDASequence(axis_order="cz", channels=["a", "b"], z_plan={"range": 2, "step": 1})
Z3C2 = C2Z3.replace(axis_order="zc")
T2Z3 = useq.MDASequence(axis_order="tz", time_plan={"interval": 0, "loops": 2}, z_plan={"range": 2, "step": 1})
ENDLESS = useq.MDASequence(time_plan={"interval": 0, "duration": 1})
C2 = useq.MDASequence(channels=["a", "b"])

STORIES: dict[str, tuple[useq.MDASequence, FrameCount, Neighbours, str, str]] = {
    "3 time points": (
        T4,
        3,
        "t or z",
        "",
        "t0: | t1: t0(1 0 1) | t2: t1(0 1 2) | t3: t2(1 2 3), t3(2 3 2) | end:",
    ),
    "5 time points": (
        T4,
        5,
        "t or z",
        "",
        "t0: | t1: | t2: t0(2 1 0 1 2) | t3: t1(3 0 1 2 3), t2(0 1 2 3 0), t3(1 2 3 2 1) | end:",
    ),
    "channels take turns": (
        T2C2,
        3,
        "t",
        "",
        "t0c0: | t0c1: | t1c0: t0c0(1 0 1), t1c0(0 1 0) | t1c1: t0c1(1 0 1), t1c1(0 1 0) | end:",
    ),
    "positions take turns": (
        T3P2,
        3,
        "t",
        "",
        "t0p0: | t0p1: | t1p0: t0p0(1 0 1) | t1p1: t0p1(1 0 1) | t2p0: t1p0(0 1 2), t2p0(1 2 1) | "
        "t2p1: t1p1(0 1 2), t2p1(1 2 1) | end:",
    ),
    "one position after the other": (
        P2T3,
        3,
        "t",
        "",
        "p0t0: | p0t1: p0t0(1 0 1) | p0t2: p0t1(0 1 2), p0t2(1 2 1) | p1t0: | p1t1: p1t0(1 0 1) | "
        "p1t2: p1t1(0 1 2), p1t2(1 2 1) | end:",
    ),
    "a stack for each channel": (
        C2Z3,
        3,
        "z",
        "",
        "c0z0: | c0z1: c0z0(1 0 1) | c0z2: c0z1(0 1 2), c0z2(1 2 1) | c1z0: | c1z1: c1z0(1 0 1) | "
        "c1z2: c1z1(0 1 2), c1z2(1 2 1) | end:",
    ),
    "all channels in each section": (
        Z3C2,
        3,
        "z",
        "",
        "z0c0: | z0c1: | z1c0: z0c0(1 0 1) | z1c1: z0c1(1 0 1) | z2c0: z1c0(0 1 2), z2c0(1 2 1) | "
        "z2c1: z1c1(0 1 2), z2c1(1 2 1) | end:",
    ),
    "sections at each time": (
        T2Z3,
        5,
        "t or z",
        "",
        "t0z0: | t0z1: | t0z2: t0z0(2 1 0 1 2), t0z1(0 0 1 2 2), t0z2(0 1 2 1 0) | "
        "t1z0: | t1z1: | t1z2: t1z0(2 1 0 1 2), t1z1(0 0 1 2 2), t1z2(0 1 2 1 0) | end:",
    ),
    "the same for a model of time points": (
        T2Z3,
        3,
        "t",
        "",
        "t0z0: | t0z1: | t0z2: | t1z0: t0z0(1 0 1), t1z0(0 1 0) | t1z1: t0z1(1 0 1), t1z1(0 1 0) | "
        "t1z2: t0z2(1 0 1), t1z2(0 1 0) | end:",
    ),
    "without a known end": (
        ENDLESS,
        3,
        "t",
        "",
        "t0: | t1: t0(1 0 1) | t2: t1(0 1 2) | end: t2(1 2 1)",
    ),
    "cancelled": (T4, 5, "t", "t2 t3", "t0: | t1: | end: t0(1 1 0 1 1), t1(0 0 1 0 0)"),
    "cancelled after one frame": (T4, 3, "t", "t1 t2 t3", "t0: | end: t0(0 0 0)"),
    "a frame was skipped": (
        T4,
        3,
        "t",
        "t1",
        "t0: | t2: t0(0 0 0) | t3: t2(3 2 3), t3(2 3 2) | end:",
    ),
    "a frame was skipped, 5 at once": (
        T4,
        5,
        "t",
        "t1",
        "t0: | t2: t0(2 0 0 0 2) | t3: t2(0 3 2 3 0), t3(2 2 3 2 2) | end:",
    ),
    "the last section was skipped": (
        T2Z3,
        3,
        "z",
        "t0z2",
        "t0z0: | t0z1: t0z0(1 0 1) | t1z0: | t1z1: t1z0(1 0 1) | t1z2: t1z1(0 1 2), t1z2(1 2 1) | "
        "end: t0z1(0 1 0)",
    ),
    "no axis to look along": (C2, 3, "t or z", "", "c0: c0(alone) | c1: c1(alone) | end:"),
    "no axis of the model's kind": (T4, 3, "z", "t2 t3", "t0: t0(alone) | t1: t1(alone) | end:"),
    "a single-frame model": (T4, 1, "t or z", "t2 t3", "t0: t0(alone) | t1: t1(alone) | end:"),
    "one time point": (
        useq.MDASequence(time_plan={"interval": 0, "loops": 1}, channels=["a"]),
        3,
        "t",
        "",
        "t0c0: t0c0(alone) | end:",
    ),
}


def events(sequence: useq.MDASequence, skipped: str = "") -> list[useq.MDAEvent]:
    """All but those whose place is named; of an endless sequence three."""
    plan = plan_of(sequence)
    endless = [useq.MDAEvent(index={"t": t}) for t in range(3)]
    found = list(sequence) if plan.n_frames is not None else endless
    return [e for n, e in enumerate(found) if told(plan.place(e, n)) not in skipped.split()]


@pytest.mark.parametrize("max_bytes", [1 << 20, 0], ids=["from memory", "fetched again"])
@pytest.mark.parametrize("name", STORIES)
def test_a_frame_comes_out_when_its_neighbours_are_in(name: str, max_bytes: int) -> None:
    sequence, frames, neighbours, skipped, expected = STORIES[name]
    run = Run(plan_of(sequence), max_bytes=max_bytes)
    run.gatherer.learn(frames, neighbours)
    lines = [(run.add(event), run.places[-1]) for event in events(sequence, skipped)]
    story = [f"{told(place)}: {said}".strip() for said, place in lines] + [f"end: {run.end()}".strip()]
    assert story == [line.strip() for line in expected.split("|")]
    assert sorted(run.handed) == list(range(len(lines)))
    fetched = max_bytes == 0 and run.gatherer.axis is not None
    assert {gathered.frame is None for gathered in run.handed.values()} == {fetched}


@functools.cache
def planned(name: str) -> tuple[Plan, list[useq.MDAEvent]]:
    sequence = SEQUENCES[name]
    return plan_of(sequence), list(itertools.islice(sequence, 24))


@pytest.mark.parametrize("frames", FRAME_COUNTS)
@pytest.mark.parametrize("name", SEQUENCES)
def test_neighbours_differ_in_one_index_only(name: str, frames: FrameCount) -> None:
    """By brute force over the events' own indices, for every kind of sequence, with frames left out."""
    plan, every = planned(name)
    kept = [e for n, e in enumerate(every) if n % 7 != 3]
    run = Run(plan)
    run.gatherer.learn(frames, "t or z")
    for event in kept:
        run.add(event)
    run.end()
    axis = run.gatherer.axis
    assert (axis is None) == (frames == 1 or plan.mixed or not ({"t", "z"} & dict(plan.order).keys()))
    where = {tuple(sorted((str(k), v) for k, v in e.index.items())): n for n, e in enumerate(kept)}
    for n, event in enumerate(kept):
        index = {str(k): v for k, v in event.index.items()}

        beside = {0: n}
        for offset in (-2, -1, 1, 2) if axis is not None else ():
            other = where.get(tuple(sorted({**index, axis: index[axis] + offset}.items())))
            if other is not None:
                beside[offset] = other
        frame = run.handed[n].frame
        assert frame is not None
        assert run.values_of(frame) == [beside[offset] + 1 for offset in seen(0, frames, beside)]
        later = run.later(n)
        assert later is not None
        assert (run.values_of(later), later.used) == (run.values_of(frame), frame.used)


def test_two_cameras_are_two_series() -> None:
    info = {"height": 3, "width": 4, "dtype": "uint16", "num_camera_adapter_channels": 2}
    run = Run(plan_run(T2C2, {"image_infos": [info], "mda_sequence": T2C2}))
    run.gatherer.learn(3, "t")
    for event in T2C2:
        for cam in (1, 0):  # whichever comes first
            run.add(event.replace(index={**event.index, "cam": cam}))
    for n, place in enumerate(run.places):
        frame = run.handed[n].frame
        assert frame is not None
        shown = [run.places[value - 1] for value in run.values_of(frame)]
        assert {(p["c"], p["cam"]) for p in shown} == {(place["c"], place["cam"])}
        assert [p["t"] for p in shown] == ([1, 0, 1] if place["t"] == 0 else [0, 1, 0])


@pytest.mark.parametrize("kind", ["generator", "unplanned", *(n for n in SEQUENCES if n.startswith("not at"))])
def test_in_the_order_of_arrival_nobody_knows_what_lies_beside_a_frame(kind: str) -> None:
    from pymmcore_plus.mda._generator_sequence import GeneratorMDASequence

    sequence = SEQUENCES.get(kind, T4)
    plan = plan_of(GeneratorMDASequence() if kind == "generator" else sequence)
    if kind == "unplanned":
        plan = plan_frame(np.zeros(SHAPE, np.uint16), {})
    run = Run(plan)
    run.gatherer.learn(5, "t or z")
    for n, event in enumerate(sequence):
        assert run.add(event) == f"{told(run.places[n])}(alone)"
        frame = run.handed[n].frame
        assert frame is not None
        assert run.values_of(frame) == [n + 1] * 5


def test_black_frames_are_nobodys_neighbours() -> None:
    run = Run(plan_of(T4))
    run.gatherer.learn(3, "t")
    for event, black in zip(T4, [False, True, False, False], strict=True):
        run.add(event, black=black)
    found = [run.handed[n].frame for n in range(4)]
    assert [run.values_of(f) for f in found if f is not None] == [[1, 1, 1], [1, 0, 3], [4, 3, 4], [3, 4, 3]]
    for n, frame in enumerate(found):
        later = run.later(n)
        assert frame is not None
        assert later is not None
        assert later.used == frame.used


def test_a_frame_without_pixels_is_fetched_and_so_are_those_beside_it() -> None:
    run = Run(plan_of(T4))
    run.gatherer.learn(3, "t")
    for n, event in enumerate(T4):
        run.add(event, pixels=n != 0, black=n == 0)
    assert [run.handed[n].frame is None for n in range(4)] == [True, True, False, False]
    later = run.later(1)
    assert later is not None
    assert run.values_of(later) == [3, 2, 3]  # that frame 0 is black shows only when it is read


def test_a_neighbour_that_raw_lost_is_replaced_as_it_will_be_later() -> None:
    run = Run(plan_of(T4))
    run.gatherer.learn(3, "t")
    for event in T4:
        run.add(event)
    run.not_in_raw = {1}
    later = run.later(2)
    assert later is not None
    assert (run.values_of(later), later.used) == ([4, 3, 4], {"t": (3, 2, 3)})


@pytest.mark.parametrize("name", ["t", "t c z", "positions"])
def test_frames_from_before_the_model_was_known_get_their_neighbours_later(name: str) -> None:
    plan, every = planned(name)
    run, from_start = Run(plan), Run(plan)
    from_start.gatherer.learn(3, "t or z")
    for n, event in enumerate(every):
        if n == len(every) // 2:
            run.gatherer.learn(3, "t or z")
        early = run.add(event)
        assert ("alone" in early) == (n < len(every) // 2)
        from_start.add(event)
    run.end()
    from_start.end()
    for n in range(len(every)):
        a, b = run.later(n), from_start.later(n)
        assert a is not None
        assert b is not None
        assert (run.values_of(a), a.used) == (from_start.values_of(b), b.used)


def test_a_deferred_frame_waits_for_its_look_ahead() -> None:
    run = Run(plan_of(T4))
    for event in list(T4)[:2]:
        run.add(event)
    run.gatherer.learn(3, "t")
    assert run.later(0) is not None
    assert run.later(1) is None
    run.end()
    later = run.later(1)
    assert later is not None
    assert later.used == {"t": (0, 1, 0)}


@pytest.mark.parametrize("known_at", [0, 11, 30])
@pytest.mark.parametrize("frames", [3, 5])
@pytest.mark.parametrize("name", ["t c z", "positions", "z fastest but c"])
def test_pixels_are_released_once_and_not_before_the_last_neighbour_is_restored(
    name: str, frames: FrameCount, known_at: int
) -> None:
    plan, every = planned(name)
    whole = Run(plan)
    whole.gatherer.learn(frames, "t or z")
    for event in every:
        whole.add(event)
    whole.end()
    for seed in range(5):
        rng = random.Random(seed)
        run = Run(plan, max_bytes=5 * 24)
        open_ones: set[int] = set()
        lost: set[int] = set()

        def settle_some(
            most: int, run: Run = run, open_ones: set[int] = open_ones, lost: set[int] = lost, rng: Any = rng
        ) -> None:
            for n in rng.sample(sorted(open_ones), min(most, len(open_ones))):
                frame = run.later(n)  # asserts that nothing it needs was released
                if frame is not None:
                    expected = whole.later(n)
                    assert expected is not None
                    assert run.values_of(frame) == whole.values_of(expected)
                    open_ones.discard(n)
                    if rng.random() < 0.2:
                        lost.add(n)
                    run.gatherer.settle(n, run.places[n], restored=n not in lost)

        for n, event in enumerate(every):
            if n == known_at:
                run.gatherer.learn(frames, "t or z")
            run.add(event)
            open_ones.add(n)
            if n >= known_at:
                settle_some(rng.randrange(3))
        run.end()
        run.gatherer.learn(frames, "t or z")
        settle_some(len(every))
        assert not open_ones
        assert sorted(run.released) == [n for n in range(len(every)) if n not in lost]
        g = run.gatherer
        assert (g._seen, g._series, g._held, g._bytes) == ({}, {}, {}, 0)


def test_a_single_frame_model_has_pixels_released_at_once() -> None:
    run = Run(plan_of(T4))
    run.gatherer.learn(1, "t or z")
    run.add(next(iter(T4)))
    run.gatherer.settle(0, run.places[0], restored=True)
    assert run.released == [0]
    assert run.gatherer._seen == {}


def test_memory_does_not_grow_with_the_run() -> None:
    sequence = useq.MDASequence(
        axis_order="tcz",
        time_plan={"interval": 0, "loops": 100},
        channels=["a", "b"],
        z_plan={"range": 4, "step": 1},
    )
    for neighbours in ("z", "t"):
        run = Run(plan_of(sequence))
        run.gatherer.learn(5, neighbours)  # type: ignore[arg-type]
        settled: set[int] = set()
        most = 0
        for event in sequence:
            run.add(event)
            for n in run.handed.keys() - settled:
                run.gatherer.settle(n, run.places[n], restored=True)
                settled.add(n)
            most = max(most, len(run.gatherer._seen))
        assert most <= 10 * 6
        run.end()
        assert run.gatherer._seen == {}
        assert len(run.released) == 1000


def test_waiting_is_told_for_each_frame() -> None:
    gatherer = Gatherer(plan_of(T4), release=lambda n: None)
    gatherer.learn(3, "t")
    frame = np.ones(SHAPE, np.uint16)
    assert gatherer.add(0, 0, {"t": 0}, frame, 1, 5_000_000) == []
    ((seq, handed, waited_ms),) = gatherer.add(1, 1, {"t": 1}, frame, 1, 25_000_000)
    assert (seq, waited_ms) == (0, 20.0)
    assert handed is not None
    assert handed.captured_ns == 25_000_000  # it was ready only then, and its age counts from there
