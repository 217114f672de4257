"""What an operator does to a running session: Micro-Manager's demo camera, real servers, real sockets."""

from __future__ import annotations

import itertools
import json
import queue
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import useq
from pymmcore_plus import CMMCorePlus

from live_sr import LiveSR
from live_sr.client import journal
from live_sr.client.control import Cancel, Choose, ControlClient, Pause, Reply, Start, SuperResolve
from live_sr.client.feed import FeedStatus
from live_sr.client.journal import journal_path
from live_sr.client.volume import VolumeReader
from live_sr.errors import ConfigError, InputError, LiveSRError
from live_sr.upscaler import Bilinear, bilinear
from rig import (  # noqa: F401  mmc is a fixture
    SCALE,
    WAIT_S,
    Brighter,
    Gated,
    mmc,
    serving,
)

LOCAL = "tcp://127.0.0.1:*"
TOKEN = "a token that only the tests know"
TWO_CHANNELS = useq.MDASequence(channels=["DAPI", "FITC"], time_plan={"interval": 0, "loops": 6})


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVE_SR_TOKEN", TOKEN)


def frames(n: int, interval_s: float = 0) -> useq.MDASequence:
    return useq.MDASequence(time_plan={"interval": interval_s, "loops": n})


def nobody() -> str:
    """An address at which no server is."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{s.getsockname()[1]}"


def until(true: Callable[[], bool]) -> None:
    """Wait for what tells itself by nothing."""
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Operator:
    """Sends commands to a session through its socket, as the view does."""

    def __init__(self, sr: LiveSR) -> None:
        assert sr.control_address is not None
        self._client = ControlClient(sr.control_address, TOKEN, WAIT_S)

    def __call__(self, command: Any) -> str:
        reply = self._client.request(command)
        assert reply.ok, reply
        return reply.message

    def refused(self, command: Any) -> Reply:
        reply = self._client.request(command)
        assert not reply.ok, reply
        return reply


class Steps:
    """Lets the camera expose a number of frames, then holds it, so that a test may act in between."""

    def __init__(self, core: CMMCorePlus) -> None:
        self._permits = threading.Semaphore(0)
        self.exposed: queue.Queue[useq.MDAEvent] = queue.Queue()
        core.mda.events.eventStarted.connect(self._wait)
        core.mda.events.frameReady.connect(self._note)

    def go(self, n: int) -> None:
        self._permits.release(n)

    def wait(self, n: int) -> None:
        for _ in range(n):
            self.exposed.get(timeout=WAIT_S)

    def _wait(self, event: useq.MDAEvent) -> None:
        assert self._permits.acquire(timeout=WAIT_S)

    def _note(self, img: Any, event: useq.MDAEvent) -> None:
        self.exposed.put(event)


class Listener:
    """Keeps what comes out, and waits for it."""

    def __init__(self, sr: LiveSR) -> None:
        self.metas: list[dict[str, Any]] = []
        self._came = threading.Semaphore(0)
        sr.events.frameReady.connect(self._take)

    def wait(self, n: int) -> None:
        for _ in range(n):
            assert self._came.acquire(timeout=WAIT_S)

    def _take(self, img: Any, event: Any, meta: dict[str, Any]) -> None:
        self.metas.append({**meta["live_sr"], "index": dict(event.index)})
        self._came.release()


def made_by(raw: Path, sr_path: Path) -> dict[tuple[int, ...], str]:
    """The model of each frame, in the order of the axes; its pixels, the journal and the attributes agree."""
    lines = {tuple(e.place.values()): e for e in journal.read(journal_path(sr_path)).frames.values()}
    ours = json.loads((sr_path / "zarr.json").read_text())["attributes"]["live_sr"]
    columns = ours["frames"]
    found: dict[tuple[int, ...], str] = {}
    with VolumeReader(raw) as low, VolumeReader(sr_path) as high:
        for index in low.indices():
            if not high.present(index):
                continue
            at = tuple(index.values())
            added = high.read(index).astype(int) - bilinear(low.read(index), SCALE)
            name = f"plus-{added.flat[0]}" if added.flat[0] else f"bilinear-x{SCALE}"
            assert np.all(added == added.flat[0])
            row = columns["where"].index(list(at))
            column = ours["models"][columns["model"][row]]
            assert (lines[at].model, lines[at].model_sha256) == (name, column["sha256"])
            assert column["id"] == name
            found[at] = name
    assert Counter(found.values()) == {m["id"]: m["frames"] for m in ours["models"]}
    return found


# --------------------------------------------------------------------------------- models


def test_each_channel_has_its_own_model(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = tmp_path / "raw.ome.zarr", tmp_path / "sr.ome.zarr"
    both = [Brighter(1), Brighter(2)]
    with (
        serving(both) as one,
        serving(both[::-1]) as other,
        LiveSR([one.address, other.address], save=sr_path, model="plus-1") as sr,
    ):
        assert all(link.wait_ready(WAIT_S) for link in sr._links)
        came = Listener(sr)
        sr.choose("plus-2", "FITC")
        sr.attach(mmc)
        mmc.run_mda(TWO_CHANNELS, output=raw, block=True)
        report = sr.close()
    assert report.counts.complete
    assert report.alarms == []
    assert report.frames_by_model == {"plus-1": 6, "plus-2": 6}
    assert made_by(raw, sr_path) == {(t, c): f"plus-{c + 1}" for t in range(6) for c in range(2)}
    assert all(meta["model"] == f"plus-{meta['index']['c'] + 1}" for meta in came.metas)
    assert one.stats.frames + other.stats.frames == 12


def test_a_model_is_swapped_in_mid_run_and_every_frame_says_which_made_it(
    mmc: CMMCorePlus, tmp_path: Path
) -> None:
    raw, sr_path = tmp_path / "raw.ome.zarr", tmp_path / "sr.ome.zarr"
    with (
        serving([Bilinear(SCALE), Brighter(7)]) as server,
        LiveSR(server.address, save=sr_path, control=LOCAL) as sr,
    ):
        assert sr.wait_ready(WAIT_S)
        operator, steps, came = Operator(sr), Steps(mmc), Listener(sr)
        sr.attach(mmc)
        run = mmc.run_mda(TWO_CHANNELS, output=raw)
        for chosen, n in ((None, 5), (Choose("plus-7"), 4), (Choose("bilinear-x2", "FITC"), 3)):
            if chosen is not None:
                operator(chosen)
            steps.go(n)
            came.wait(n)
        run.join()
        report = sr.close()
    assert report.counts.complete
    assert report.counts.acquired == report.runs[0].raw.verified == 12
    expected = ["bilinear-x2"] * 5 + ["plus-7"] * 4 + ["bilinear-x2", "plus-7", "bilinear-x2"]
    assert list(made_by(raw, sr_path).values()) == expected
    assert [meta["model"] for meta in came.metas] == expected
    assert report.frames_by_model == Counter(expected)


def test_a_frame_in_flight_keeps_its_model_and_those_that_wait_get_the_new_one(
    mmc: CMMCorePlus, tmp_path: Path
) -> None:
    raw, sr_path = tmp_path / "raw.ome.zarr", tmp_path / "sr.ome.zarr"
    gate = Gated()
    with serving([gate, Brighter(3)]) as server, LiveSR(server.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.run_mda(frames(8), output=raw, block=True)
        assert sr.counts.in_flight == 2
        sr.choose("plus-3")
        gate.open()
        report = sr.close()
    assert report.counts.complete
    assert report.frames_by_model == {"bilinear-x2": 2, "plus-3": 6}
    assert Counter(made_by(raw, sr_path).values()) == report.frames_by_model


def test_a_server_that_comes_back_without_a_chosen_model_gets_no_frame_until_another_is_chosen(
    mmc: CMMCorePlus, tmp_path: Path
) -> None:
    raw, sr_path = tmp_path / "raw.ome.zarr", tmp_path / "sr.ome.zarr"
    with LiveSR(address := nobody(), save=sr_path) as sr:
        with serving([Bilinear(SCALE), Brighter(4)], address):
            assert sr.wait_ready(WAIT_S)
            sr.choose("plus-4")
            steps, came = Steps(mmc), Listener(sr)
            sr.attach(mmc)
            run = mmc.run_mda(frames(6), output=raw)
            steps.go(3)
            came.wait(3)
        with serving(Bilinear(SCALE), address) as second:
            until(lambda: sr.alarms != [])
            steps.go(3)
            run.join()
            assert second.stats.frames == 0
            sr.choose("bilinear-x2")
            came.wait(3)
            report = sr.close()
    assert report.counts.complete
    (alarm,) = report.alarms
    assert "restored by plus-4" in alarm
    assert "the server holds bilinear-x2" in alarm
    assert list(made_by(raw, sr_path).values()) == ["plus-4"] * 3 + ["bilinear-x2"] * 3


def test_what_cannot_be_chosen_is_refused_with_the_reason_and_nothing_changes(mmc: CMMCorePlus) -> None:
    held = [Bilinear(SCALE), Brighter(1), Bilinear(4), Brighter(5, frames=3)]
    with (
        serving(held) as server,
        serving(held[:1]) as poorer,
        LiveSR([server.address, poorer.address], control=LOCAL) as sr,
    ):
        assert all(link.wait_ready(WAIT_S) for link in sr._links)
        operator = Operator(sr)
        for model, says in (
            ("em-x9", "no server holds em-x9, they hold bilinear-x2, bilinear-x4, plus-1, plus-5"),
            ("plus-1", f"server {poorer.address} does not hold plus-1"),
            ("bilinear-x4", "4 times finer, this session's volumes are 2 times"),
            ("plus-5", "sees 3 frames along t or z, this session gathers single frames"),
            ("", "name a model"),
        ):
            with pytest.raises(InputError, match=says):
                sr.choose(model)
            reply = operator.refused(Choose(model))
            assert reply.code == "impossible"
            assert says in reply.message
        control = sr._status("acquiring").control
        assert (control.models, control.chosen) == (("bilinear-x2",), {"": "bilinear-x2"})


def test_nothing_can_be_chosen_before_a_server_is_there() -> None:
    with LiveSR("tcp://127.0.0.1:9") as sr, pytest.raises(InputError, match="no server is ready"):
        sr.choose("em-x4")


# --------------------------------------------------------------------------------- off and on


def test_frames_taken_while_super_resolution_is_off_are_done_when_it_is_on_again(
    mmc: CMMCorePlus, tmp_path: Path
) -> None:
    raw, sr_path = tmp_path / "raw.ome.zarr", tmp_path / "sr.ome.zarr"
    with serving() as server, LiveSR(server.address, save=sr_path, control=LOCAL) as sr:
        assert sr.wait_ready(WAIT_S)
        operator, steps, came = Operator(sr), Steps(mmc), Listener(sr)
        sr.attach(mmc)
        run = mmc.run_mda(frames(12), output=raw)
        steps.go(3)
        came.wait(3)
        operator(SuperResolve(False))
        assert not sr._status("acquiring").control.sr_on
        steps.go(5)
        steps.wait(8)
        until(lambda: sr.counts.deferred == 5)
        assert sr.counts.returned == server.stats.frames == 3
        operator(SuperResolve(True))
        came.wait(5)
        steps.go(4)
        came.wait(4)
        run.join()
        report = sr.close()
    assert report.counts.complete
    assert (report.counts.acquired, report.counts.deferred_total) == (12, 5)
    assert [meta["deferred"] for meta in came.metas] == [False] * 3 + [True] * 5 + [False] * 4
    assert len(made_by(raw, sr_path)) == 12


@pytest.mark.parametrize("raw_too", [True, False], ids=["raw", "no raw"])
def test_frames_of_a_run_without_super_resolution_are_done_at_its_end(
    mmc: CMMCorePlus, tmp_path: Path, raw_too: bool
) -> None:
    raw, sr_path = tmp_path / "raw.ome.zarr", tmp_path / "sr.ome.zarr"
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.super_resolve(False)
        sr.attach(mmc)
        steps, came = Steps(mmc), Listener(sr)
        run = mmc.run_mda(frames(6), output=raw if raw_too else None)
        steps.go(5)
        steps.wait(5)
        assert sr.counts.returned == 0
        steps.go(1)
        run.join()
        came.wait(6)  # before the session ends: another run may follow
        mmc.run_mda(frames(2))
        steps.go(2)
        report = sr.close()
    assert report.counts.complete
    assert (report.counts.acquired, report.counts.deferred_total) == (8, 8)
    assert [run.sr_complete for run in report.runs] == [True, True]


# --------------------------------------------------------------------------------- the sequence


def phase(sr: LiveSR) -> str:
    return sr._status("acquiring").sequence.state


def test_a_sequence_is_started_paused_resumed_and_cancelled_through_the_socket(
    mmc: CMMCorePlus, tmp_path: Path
) -> None:
    raw, sr_path = tmp_path / "raw.ome.zarr", tmp_path / "sr.ome.zarr"
    with serving() as server, LiveSR(server.address, save=sr_path, control=LOCAL) as sr:
        assert sr.wait_ready(WAIT_S)
        operator, steps, paused = Operator(sr), Steps(mmc), queue.Queue[bool]()
        mmc.mda.events.sequencePauseToggled.connect(paused.put)
        sr.attach(mmc)
        assert operator.refused(Start()).message == "no program waits to be started"
        assert operator.refused(Pause()).message == "no sequence is running"
        assert operator.refused(Cancel()).message == "no sequence is running"

        started: queue.Queue[bool] = queue.Queue()
        program = threading.Thread(target=lambda: started.put(sr.wait_for_start()))
        program.start()
        until(lambda: sr._conductor.start_awaited)
        assert sr._status("acquiring").control.start_awaited
        operator(Start())
        assert started.get(timeout=WAIT_S)
        program.join()
        assert not sr._status("acquiring").control.start_awaited

        run = mmc.run_mda((useq.MDAEvent(index={"t": t}) for t in itertools.count()), output=raw)
        steps.go(3)
        steps.wait(3)
        operator(Pause())
        assert paused.get(timeout=WAIT_S)
        steps.go(100_000)  # one may be exposed already, the next is not
        until(lambda: phase(sr) == "paused")
        while not steps.exposed.empty():
            steps.exposed.get()
        with pytest.raises(queue.Empty):
            steps.exposed.get(timeout=0.2)
        operator(Pause(False))
        assert not paused.get(timeout=WAIT_S)
        steps.wait(2)
        assert phase(sr) == "running"
        operator(Cancel())
        run.join(WAIT_S)
        assert not run.is_alive()
        report = sr.close()
        assert phase(sr) == "idle"
    assert report.runs[0].reason == "canceled"
    assert report.counts.acquired >= 5
    assert report.counts.complete
    assert report.alarms == []


def test_a_cancel_that_the_runner_forgets_is_repeated(
    mmc: CMMCorePlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its last look and the exposure pymmcore-plus overwrites the state that a cancel has set."""
    with serving() as server, LiveSR(server.address, control=LOCAL) as sr:
        asked = threading.Event()
        look = mmc.mda._wait_until_event

        def look_and_be_slow(event: useq.MDAEvent) -> bool:
            ends = look(event)
            if event.index["t"] == 2:
                asked.set()
                until(lambda: not mmc.mda.is_running())
            return ends

        monkeypatch.setattr(mmc.mda, "_wait_until_event", look_and_be_slow)
        sr.attach(mmc)
        run = mmc.run_mda(useq.MDAEvent(index={"t": t}) for t in itertools.count())
        assert asked.wait(WAIT_S)
        Operator(sr)(Cancel())
        run.join(WAIT_S)
        assert not run.is_alive()
        report = sr.close()
    assert report.runs[0].reason == "canceled"


def test_a_listener_that_raises_does_not_hinder_a_pause(mmc: CMMCorePlus) -> None:
    def raising(paused: bool) -> None:
        raise RuntimeError("a listener's mistake")

    with serving() as server, LiveSR(server.address, control=LOCAL) as sr:
        steps = Steps(mmc)
        mmc.mda.events.sequencePauseToggled.connect(raising)
        sr.attach(mmc)
        run = mmc.run_mda(frames(3))
        steps.go(1)
        steps.wait(1)
        Operator(sr)(Pause())
        Operator(sr)(Pause(False))
        steps.go(2)
        run.join(WAIT_S)
        assert not run.is_alive()
    assert sr.report is not None
    assert sr.report.counts.returned == 3


def test_a_program_waits_for_its_start_no_longer_than_it_said_and_not_beyond_the_session() -> None:
    with LiveSR("tcp://127.0.0.1:9", control=LOCAL) as sr:
        assert not sr.wait_for_start(0.01)
        waited: queue.Queue[bool] = queue.Queue()
        program = threading.Thread(target=lambda: waited.put(sr.wait_for_start()))
        program.start()
        until(lambda: sr._conductor.start_awaited)
    assert not waited.get(timeout=WAIT_S)
    program.join()


def test_a_session_without_the_command_cannot_wait_for_it() -> None:
    with LiveSR("tcp://127.0.0.1:9") as sr, pytest.raises(InputError, match="nobody could start"):
        sr.wait_for_start(1)
    with LiveSR("tcp://127.0.0.1:9", control=LOCAL, allow=("choose",)) as sr:
        with pytest.raises(InputError, match="nobody could start"):
            sr.wait_for_start(1)
        reply = Operator(sr).refused(Start())
        assert reply.code == "not_allowed"
        assert "it allows: choose" in reply.message
        assert sr._status("acquiring").control.allowed == ("choose",)


def test_the_channel_is_gone_with_the_session_and_says_so() -> None:
    with LiveSR("tcp://127.0.0.1:9", control=LOCAL) as sr:
        address = sr.control_address
        assert address is not None
        status = sr._status("acquiring")
        assert isinstance(status, FeedStatus)
        assert status.control.address == address
        with pytest.raises(ConfigError, match="cannot take commands"):
            LiveSR("tcp://127.0.0.1:9", control=address)
        with pytest.raises(ConfigError, match="refusing to listen"):
            LiveSR("tcp://127.0.0.1:9", control="tcp://0.0.0.0:5757")
        with pytest.raises(ConfigError, match="the commands are choose"):
            LiveSR("tcp://127.0.0.1:9", control=LOCAL, allow=("everything",))
    with pytest.raises(LiveSRError, match="did not answer"):
        ControlClient(address, TOKEN, 0.2).request(Start())
