"""Whole runs: Micro-Manager's demo camera, pymmcore-plus, a real server, real files.

Where a server is killed it is a process of its own; otherwise it lives in this one.
"""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import tifffile
import useq
import zarr
from pymmcore_plus import CMMCorePlus
from pymmcore_plus.core import _mmcore_plus
from pymmcore_plus.mda import MDAEngine, SkipEvent

from conftest import ServerProcess
from live_sr import LiveSR
from live_sr.acquire.session import CANCEL_S, SessionReport
from live_sr.client import journal
from live_sr.client.journal import journal_path
from live_sr.client.volume import VolumeReader
from live_sr.errors import ConfigError, InputError, StoreError
from live_sr.frame import Counts
from live_sr.upscaler import bilinear
from rig import (  # noqa: F401  mmc is a fixture
    RUNS,
    SCALE,
    SEQUENCES,
    SHAPE,
    WAIT_S,
    Gated,
    assert_restored,
    events_of,
    mmc,
    sampled,
    serving,
)

pytestmark = [
    # pymmcore-plus says so of every run with channels and two cameras; our volume has both axes.
    pytest.mark.filterwarnings("ignore:Multi-camera acquisition combined:UserWarning"),
]


def frames(n: int) -> useq.MDASequence:
    return useq.MDASequence(time_plan={"interval": 0, "loops": n})


def paths(folder: Path) -> tuple[Path, Path]:
    return folder / "raw.ome.zarr", folder / "sr.ome.zarr"


def nobody() -> str:
    """An address at which no server is."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{s.getsockname()[1]}"


def assert_clean(report: SessionReport, n: int) -> None:
    assert report.alarms == []
    assert (report.counts.acquired, report.counts.returned, report.counts.saved) == (n, n, n)
    assert report.raw_complete
    assert report.sr_complete
    assert all(run.raw.verified == run.acquired for run in report.runs)


# --------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("name", RUNS)
def test_the_volume_has_raws_axes_and_every_frame_at_its_place(
    mmc: CMMCorePlus, tmp_path: Path, name: str
) -> None:
    raw, sr_path = paths(tmp_path)
    events = events_of(name, mmc)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.run_mda(events, output=raw, block=True)
        acquired = sr.counts.acquired
        report = sr.close()
    assert_clean(report, acquired)
    expected = 1 if name == "one position with its own grid" else 0  # mixed up by pymmcore-plus, and said so
    assert len(report.warnings) == expected
    assert_restored(raw, sr_path, frames=acquired)
    assert not list(tmp_path.glob("*rescued*"))


def test_a_hardware_timed_burst_adds_up_whatever_the_camera_lost(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    mmc.mda.engine.use_hardware_sequencing = True  # type: ignore[union-attr]
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(100), output=raw, block=True)
    assert sr.report is not None
    counts = sr.report.counts
    assert counts.acquired + counts.skipped == 100
    assert counts.acquired >= 90, "a burst, not single exposures"
    assert_clean(sr.report, counts.acquired)
    assert_restored(raw, sr_path, frames=counts.acquired)


def test_the_volume_opens_in_zarr_and_tensorstore(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(SEQUENCES["t c z"], output=raw, block=True)
    y, x = SHAPE
    opened = zarr.open_group(sr_path, mode="r")
    assert opened.attrs["ome"]["version"] == "0.5"
    assert opened["0"].shape == (2, 2, 3, SCALE * y, SCALE * x)
    store = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(sr_path / "0")}}
    ).result()
    low = zarr.open_group(raw, mode="r")["0"]
    expected = bilinear(np.asarray(low[1, 0, 2]), SCALE)
    np.testing.assert_array_equal(np.asarray(opened["0"][1, 0, 2]), expected)
    np.testing.assert_array_equal(store[1, 0, 2].read().result(), expected)
    attributes = json.loads((sr_path / "zarr.json").read_bytes())["attributes"]["live_sr"]
    assert attributes["status"] == "complete"
    assert attributes["counts"]["raw_verified"] == 12
    lines = journal.read(journal_path(sr_path))
    assert sorted(lines.frames) == list(range(12))
    assert lines.end is not None


def test_listeners_of_raw_frames_work_on_restored_ones(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw: dict[tuple[tuple[str, int], ...], tuple[Any, float]] = {}
    restored: dict[tuple[tuple[str, int], ...], tuple[Any, dict[str, Any]]] = {}

    def key(event: useq.MDAEvent) -> tuple[tuple[str, int], ...]:
        return tuple(sorted((str(k), v) for k, v in event.index.items()))

    def on_raw(img: Any, event: useq.MDAEvent, meta: dict[str, Any]) -> None:
        raw[key(event)] = img.copy(), meta["pixel_size_um"]

    with serving() as server, LiveSR(server.address) as sr:
        sr.attach(mmc)
        mmc.mda.events.frameReady.connect(on_raw)
        sr.events.frameReady.connect(lambda img, event, meta: restored.update({key(event): (img, meta)}))
        mmc.run_mda(SEQUENCES["t c z"], block=True)
    assert sorted(restored) == sorted(raw)
    for at, (img, meta) in restored.items():
        np.testing.assert_array_equal(img, bilinear(raw[at][0], SCALE))
        assert meta["pixel_size_um"] == raw[at][1] / SCALE
        assert meta["live_sr"]["computed"] is True
        assert meta["live_sr"]["scale"] == SCALE
        assert meta["live_sr"]["latency_ms"] > 0


# --------------------------------------------------------------------------------- ways in


def test_attached_and_given_as_output_each_frame_comes_once(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(6), output=[raw, sr], block=True)
    assert sr.report is not None
    assert_clean(sr.report, 6)
    assert_restored(raw, sr_path)


def test_given_as_output_of_the_instance_raw_is_found(
    tmp_path: Path, mmc: CMMCorePlus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mmcore_plus, "_instance", weakref.ref(mmc))
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        mmc.run_mda(frames(6), output=[raw, sr], block=True)
    assert sr.report is not None
    assert_clean(sr.report, 6)
    assert sr.report.runs[0].raw.path == str(raw)
    assert sr.report.runs[0].reason == "completed"
    assert_restored(raw, sr_path)


def test_given_as_output_of_an_unknown_core_pixels_are_kept_here(
    mmc: CMMCorePlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mmcore_plus, "_instance", weakref.ref(mmc))
    other = CMMCorePlus()
    other.loadSystemConfiguration()
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        other.setROI(0, 0, SHAPE[1], SHAPE[0])
        other.run_mda(frames(4), output=[raw, sr], block=True)
    other.unloadAllDevices()
    assert sr.report is not None
    assert sr.report.counts.saved == 4
    assert sr.report.runs[0].raw.path is None
    assert_restored(raw, sr_path)


@pytest.mark.parametrize("output", [None, "memory"])
def test_without_raw_on_disk_pixels_are_kept_until_they_are_restored(
    mmc: CMMCorePlus,
    tmp_path: Path,
    output: str | None,
) -> None:
    _, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(5), output=output, block=True)
    assert sr.report is not None
    assert sr.report.counts.saved == 5
    assert sr.report.alarms == []
    assert sr.report.runs[0].raw.path is None


@pytest.mark.parametrize("name", ["t c z", "positions"])
def test_ome_tiff_is_verified_after_its_close(mmc: CMMCorePlus, tmp_path: Path, name: str) -> None:
    with serving() as server, LiveSR(server.address, save=tmp_path / "sr.ome.zarr") as sr:
        sr.attach(mmc)
        mmc.run_mda(SEQUENCES[name], output=tmp_path / "raw.ome.tiff", block=True)
    assert sr.report is not None
    assert_clean(sr.report, 12)


@pytest.mark.parametrize(
    "t", [{"chunk_size": 4}, {"chunk_size": 1, "shard_size_chunks": 4}], ids=["chunks", "shards"]
)
def test_raw_in_larger_chunks_is_verified_without_a_false_alarm(
    mmc: CMMCorePlus,
    tmp_path: Path,
    t: Any,
) -> None:
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(10), output=raw, dimension_overrides={"t": t}, block=True)
    assert sr.report is not None
    assert_clean(sr.report, 10)
    assert_restored(raw, sr_path)


def test_two_runs_of_a_session_make_two_volumes(mmc: CMMCorePlus, tmp_path: Path) -> None:
    sequence = frames(3)
    with serving() as server, LiveSR(server.address, save=tmp_path / "sr.ome.zarr") as sr:
        sr.attach(mmc)
        mmc.run_mda(sequence, output=tmp_path / "raw1.ome.zarr", block=True)
        mmc.run_mda(sequence, output=tmp_path / "raw2.ome.zarr", block=True)
    assert sr.report is not None
    assert_clean(sr.report, 6)
    assert [run.number for run in sr.report.runs] == [1, 2]
    assert_restored(tmp_path / "raw1.ome.zarr", tmp_path / "sr.ome.zarr")
    assert_restored(tmp_path / "raw2.ome.zarr", tmp_path / "sr-2.ome.zarr")


def test_a_run_that_nobody_joined_is_waited_for(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(5), output=raw)
    assert sr.report is not None
    assert_clean(sr.report, 5)


# --------------------------------------------------------------------------------- accounting


def test_the_ledger_closes_at_every_sample(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    gate = Gated()
    with serving(gate) as server, LiveSR(server.address, save=sr_path) as sr, sampled(sr) as samples:
        sr.attach(mmc)
        for _ in range(2):
            mmc.run_mda(frames(10), output=raw if not raw.exists() else tmp_path / "raw2.ome.zarr", block=True)
            gate.permit(3)
        gate.open()
        report = sr.close()
    assert len({(c.queued, c.in_flight, c.deferred, c.returned) for c in samples}) > 5
    for c in samples:
        assert c.acquired == c.queued + c.in_flight + c.deferred + c.returned + c.failed
        assert c.saved <= c.acquired
    assert_clean(report, 20)


def test_in_order_frames_come_in_the_order_of_acquisition(mmc: CMMCorePlus, tmp_path: Path) -> None:
    gate, got = Gated(), []
    with serving(gate) as server, LiveSR(server.address, ordered=True) as sr:
        sr.attach(mmc)
        sr.events.frameReady.connect(lambda img, event, meta: got.append(meta["live_sr"]["seq"]))
        mmc.run_mda(frames(8), block=True)
        gate.open()
    assert got == list(range(8))


# --------------------------------------------------------------------------------- listeners and other outputs


def test_a_listener_that_raises_or_blocks_harms_nothing(
    mmc: CMMCorePlus,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    raw, sr_path = paths(tmp_path)
    good: queue.Queue[int] = queue.Queue()
    let = threading.Event()
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)

        @sr.events.frameReady.connect
        def bad(img: Any) -> None:
            raise RuntimeError("a listener's own mistake")

        sr.events.frameReady.connect(lambda img: let.wait(WAIT_S))
        sr.events.frameReady.connect(lambda img: good.put(1))
        mmc.run_mda(frames(5), output=raw, block=True)
        for _ in range(5):
            good.get(timeout=WAIT_S)
        let.set()
    assert sr.report is not None
    assert_clean(sr.report, 5)
    assert any("raised on 5 frames" in text for text in sr.report.warnings)


class Raising:
    """An output handler of somebody else's that raises at its third frame."""

    def __init__(self) -> None:
        self.n = 0
        self.raised = threading.Event()

    def frameReady(self, img: Any) -> None:
        self.n += 1
        if self.n == 3:
            self.raised.set()
            raise RuntimeError("somebody else's mistake")


# The relay thread dies of it, which pytest reports as an unhandled exception of a thread.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_another_output_that_raises_is_noticed_and_nothing_hangs(
    mmc: CMMCorePlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mmcore_plus, "_instance", weakref.ref(mmc))
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        mmc.run_mda(frames(30), output=[raw, Raising(), sr], block=True)
        report = sr.close()
    assert 0 < report.counts.acquired < 30
    assert any("stopped delivering frames" in alarm for alarm in report.alarms)
    assert report.runs[0].reason == "interrupted"
    assert report.runs[0].raw.verified == report.counts.acquired == report.counts.saved


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_attached_another_output_that_raises_costs_nothing(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(10), output=[raw, Raising(), sr], block=True)
    assert sr.report is not None
    assert_clean(sr.report, 10)


# --------------------------------------------------------------------------------- servers come and go


def test_a_server_killed_in_mid_run_and_restarted_loses_nothing(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    came = threading.Semaphore(0)
    with ServerProcess() as first, LiveSR(first.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        sr.events.frameReady.connect(lambda: came.release())
        run = mmc.run_mda(frames(60), output=raw)
        assert came.acquire(timeout=WAIT_S)
        first.kill()
        run.join()
        with ServerProcess(first.address):
            report = sr.close()
    assert_clean(report, 60)
    assert_restored(raw, sr_path)


def test_without_any_server_raw_is_complete_and_the_report_says_why(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    with LiveSR(nobody(), save=sr_path, give_up_s=0.2) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(10), output=raw, block=True)
        report = sr.close()
    assert (report.counts.failed, report.counts.acquired) == (10, 10)
    assert report.raw_complete
    assert report.runs[0].raw.verified == 10
    assert not report.sr_complete
    assert any("no server" in reason for reason in report.runs[0].failures)
    assert any("no server is ready" in text for text in report.warnings)
    assert not sr_path.exists()
    assert sr.close() is report


def test_without_server_and_raw_what_was_to_be_saved_is_rescued(mmc: CMMCorePlus, tmp_path: Path) -> None:
    with LiveSR(nobody(), save=tmp_path / "sr.ome.zarr", give_up_s=0.2) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(3), block=True)
    assert sr.report is not None
    assert sr.report.runs[0].raw.rescued == len(list((tmp_path / "sr.rescued").iterdir())) == 3


def test_a_server_that_comes_after_the_sequence_finishes_everything(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    address = nobody()
    with LiveSR(address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(SEQUENCES["t c z"], output=raw, block=True)
        with serving(address=address):
            report = sr.close()
    assert_clean(report, 12)
    assert_restored(raw, sr_path)


def test_a_server_restarted_with_another_model_is_refused(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    gate = Gated(permits=3)
    with LiveSR(address := nobody(), save=sr_path, give_up_s=2) as sr:
        came = threading.Semaphore(0)
        sr.events.frameReady.connect(lambda: came.release())
        sr.attach(mmc)
        with serving(gate, address):
            assert sr.wait_ready(WAIT_S)
            mmc.run_mda(frames(8), output=raw, block=True)
            for _ in range(3):
                assert came.acquire(timeout=WAIT_S)
            gate.permit(2)  # the engine must get out of its computation
        with serving(Gated(4, permits=100), address):
            report = sr.close()
    assert 3 <= report.counts.returned <= 5
    assert report.counts.failed == 8 - report.counts.returned
    assert any("never mixed" in alarm for alarm in report.alarms)
    assert not report.sr_complete
    assert report.raw_complete
    with VolumeReader(sr_path) as high, VolumeReader(raw) as low:
        assert high.layout.frame_shape == (SCALE * SHAPE[0], SCALE * SHAPE[1])
        present = [i for i in high.indices() if high.present(i)]
        assert len(present) == report.counts.returned
        for index in present:
            np.testing.assert_array_equal(high.read(index), bilinear(low.read(index), SCALE))


def test_frames_of_a_server_that_went_for_good_are_given_to_the_other(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    with serving() as good, ServerProcess() as other:
        with LiveSR([good.address, other.address], save=sr_path, give_up_s=0.2) as sr:
            assert all(link.wait_ready(WAIT_S) for link in sr._links)
            other.signal(signal.SIGSTOP)
            sr.attach(mmc)
            mmc.run_mda(frames(12), output=raw, block=True)
            report = sr.close()
        other.signal(signal.SIGCONT)
    assert_clean(report, 12)
    assert_restored(raw, sr_path)


def test_without_a_server_memory_does_not_grow_with_the_run(
    mmc: CMMCorePlus,
    tmp_path: Path,
) -> None:
    raw, sr_path = paths(tmp_path)
    address = nobody()
    with LiveSR(address, save=sr_path) as sr:
        sr._records.in_memory = 10
        sr._outbox._max_bytes = 10 * SHAPE[0] * SHAPE[1] * 2
        sr.attach(mmc)
        mmc.run_mda(frames(100), output=raw, block=True)
        counts = sr.counts
        assert counts.deferred >= 90
        assert len(sr._records._open) <= 20
        with serving(address=address):
            report = sr.close()
    assert_clean(report, 100)
    assert_restored(raw, sr_path)
    lines = journal.read(journal_path(sr_path)).frames.values()
    assert all(line.raw_crc32 is not None for line in lines)
    assert sum(line.deferred for line in lines) >= 90


# --------------------------------------------------------------------------------- how runs end


def test_a_cancelled_run_is_complete_as_far_as_it_went(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.mda.events.frameReady.connect(lambda img, event: event.index["t"] == 3 and mmc.mda.cancel())
        mmc.run_mda(iter(list(frames(1000))), output=raw, block=True)
    assert sr.report is not None
    n = sr.report.counts.acquired
    assert 4 <= n < 1000
    assert_clean(sr.report, n)
    assert sr.report.runs[0].reason == "canceled"
    assert_restored(raw, sr_path, frames=n)


def test_a_cancelled_sequence_leaves_the_rest_of_the_volume_empty(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.mda.events.frameReady.connect(lambda img, event: event.index["t"] == 3 and mmc.mda.cancel())
        mmc.run_mda(frames(10), output=raw, block=True)
    assert sr.report is not None
    assert_clean(sr.report, 4)
    with VolumeReader(sr_path) as high:
        assert high.shape()[0] == 10
        assert [high.present(i) for i in high.indices()] == [True] * 4 + [False] * 6


class Faulty(MDAEngine):
    """An engine that skips, fails or changes the camera at given events."""

    def __init__(self, mmc: CMMCorePlus, what: dict[int, Any]) -> None:
        super().__init__(mmc, use_hardware_sequencing=False)
        self.what = what

    def setup_event(self, event: useq.MDAEvent) -> None:
        action = self.what.get(event.index["t"])
        if isinstance(action, Exception):
            raise action
        if action is not None:
            action()
        super().setup_event(event)


@pytest.mark.parametrize("generator", [False, True], ids=["sequence", "generator"])
def test_skipped_events_leave_gaps_and_no_alarm(mmc: CMMCorePlus, tmp_path: Path, generator: bool) -> None:
    raw, sr_path = paths(tmp_path)
    mmc.register_mda_engine(Faulty(mmc, {2: SkipEvent(), 3: SkipEvent()}))
    events: Any = iter(list(frames(6))) if generator else frames(6)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(events, output=raw, block=True)
    assert sr.report is not None
    assert_clean(sr.report, 4)
    assert sr.report.counts.skipped == (0 if generator else 2)
    with VolumeReader(raw) as low, VolumeReader(sr_path) as high:
        kept = [0, 1, 4, 5]
        for n, t in enumerate(kept):
            restored = high.read({"t": n if generator else t})
            np.testing.assert_array_equal(restored, bilinear(low.read({"t": t}), SCALE))


# The thread of the run dies of it, as it does without us.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_that_fails_is_finished_as_far_as_it_went(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    mmc.register_mda_engine(Faulty(mmc, {3: RuntimeError("the stage is stuck")}))
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(6), output=raw, block=True)
    assert sr.report is not None
    assert sr.report.counts.saved == sr.report.runs[0].raw.verified == 3
    assert sr.report.runs[0].reason == "errored"
    assert sr.report.alarms == []
    assert "the acquisition ended with an error after 3 frames: see its log" in sr.report.warnings


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_that_cannot_begin_is_no_run(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    raw.mkdir()
    (raw / "zarr.json").write_text("{}")
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(6), output=raw, block=True)
    assert sr.report is not None
    assert sr.report.runs == []
    assert sr.report.counts == Counts()


@pytest.mark.parametrize("raw_too", [False, True], ids=["without raw", "with raw"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # raw refuses them, rightly
def test_frames_that_change_in_mid_run_fail_with_the_reason(
    mmc: CMMCorePlus,
    tmp_path: Path,
    raw_too: bool,
) -> None:
    raw, sr_path = paths(tmp_path)
    mmc.register_mda_engine(Faulty(mmc, {3: lambda: mmc.setProperty("Camera", "PixelType", "8bit")}))
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(6), output=raw if raw_too else None, block=True)
        with pytest.raises(StoreError, match="NOT complete") if raw_too else contextlib.nullcontext():
            sr.close()
    report = sr.report
    assert report is not None
    assert report.counts.returned == 3
    assert report.counts.failed == report.counts.acquired - 3 > 0
    assert not report.sr_complete
    assert any("uint8" in reason and "uint16" in reason for reason in report.runs[0].failures)
    assert report.runs[0].raw.rescued == report.counts.failed


def test_a_paused_run_goes_on(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    mmc.register_mda_engine(Faulty(mmc, {2: lambda: mmc.mda.set_paused(True)}))
    paused = threading.Event()
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.mda.events.sequencePauseToggled.connect(lambda on: on and paused.set())
        run = mmc.run_mda(frames(5), output=raw)
        assert paused.wait(WAIT_S)
        mmc.mda.set_paused(False)
        run.join()
    assert sr.report is not None
    assert_clean(sr.report, 5)


def test_an_error_of_the_program_cancels_the_run_and_ends_promptly(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    began = threading.Event()
    mmc.mda.events.frameReady.connect(began.set)
    mmc.setExposure(10)
    sr = LiveSR(nobody(), save=sr_path)
    sr.attach(mmc)
    run = mmc.run_mda(frames(2000), output=raw)
    assert began.wait(WAIT_S)
    before = time.monotonic()
    with pytest.raises(ZeroDivisionError), sr:
        _ = 1 / 0
    assert time.monotonic() - before < CANCEL_S
    run.join(WAIT_S)
    assert not run.is_alive()
    assert sr.report is not None
    assert sr.report.runs[0].reason == "canceled"
    assert sr.report.raw_complete
    assert 0 < sr.report.counts.acquired < 2000


def test_ctrl_c_while_the_run_is_awaited_cancels_it(tmp_path: Path) -> None:
    """In a process of its own, because the signal goes to the main thread."""
    program = textwrap.dedent(
        f"""
        import signal, sys, threading
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import useq
        from pymmcore_plus import CMMCorePlus
        from live_sr import LiveSR
        from rig import serving
        core = CMMCorePlus(); core.loadSystemConfiguration(); core.setROI(0, 0, 64, 48); core.setExposure(10)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits none
        n = 0
        def press(img):
            global n
            n += 1
            if n == 5:
                signal.raise_signal(signal.SIGINT)
        core.mda.events.frameReady.connect(press)
        try:
            with serving() as server, LiveSR(server.address, save={str(tmp_path / "sr.ome.zarr")!r}) as sr:
                sr.attach(core)
                run = core.run_mda(
                    useq.MDASequence(time_plan={{"interval": 0, "loops": 2000}}),
                    output={str(tmp_path / "raw.ome.zarr")!r},
                )
        except KeyboardInterrupt:
            run.join(20)
            report = sr.report
            print("interrupted", run.is_alive(), report.runs[0].reason, report.raw_complete, flush=True)
        core.unloadAllDevices()
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "interrupted False canceled True" in done.stdout, done.stdout + done.stderr


# --------------------------------------------------------------------------------- refused at once


def test_what_exists_is_never_overwritten(mmc: CMMCorePlus, tmp_path: Path) -> None:
    taken = tmp_path / "sr.ome.zarr"
    taken.mkdir()
    with pytest.raises(StoreError, match="exists"):
        LiveSR(nobody(), save=taken)
    journal_path(tmp_path / "b.ome.zarr").touch()
    with pytest.raises(StoreError, match=r"journal.*exists"):
        LiveSR(nobody(), save=tmp_path / "b.ome.zarr")
    with LiveSR(nobody(), give_up_s=0.1) as sr, pytest.raises(StoreError, match="exists"):
        sr.preflight(frames(3), mmc, raw=taken, timeout=0)


def test_arguments_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.ome\.zarr"):
        LiveSR(nobody(), save=tmp_path / "sr.tif")
    with pytest.raises(InputError, match=r"\.ome\.zarr"):
        LiveSR(nobody(), raw=tmp_path / "raw.h5")
    with pytest.raises(ConfigError, match="tcp://HOST:PORT"):
        LiveSR([nobody(), "here"])


def test_preflight_says_what_is_doubtful_before_anything_is_exposed(mmc: CMMCorePlus, tmp_path: Path) -> None:
    exposed = threading.Event()
    mmc.mda.events.frameReady.connect(exposed.set)
    with LiveSR(nobody(), give_up_s=0.1) as sr:
        doubts = sr.preflight(frames(3), mmc, raw=tmp_path / "raw.ome.zarr", timeout=0)
        assert [text for text in doubts if "no server is ready" in text] == doubts
        mmc.setProperty("Camera", "PixelType", "32bitRGB")
        with pytest.raises(InputError, match="colours"):
            sr.preflight(frames(3), mmc, timeout=0)
    assert not exposed.is_set()


def test_a_closed_session_takes_no_more_frames(mmc: CMMCorePlus, tmp_path: Path) -> None:
    with serving() as server:
        with LiveSR(server.address) as sr:
            sr.attach(mmc)
        report = sr.close()
        mmc.run_mda(frames(3), output=sr, block=True)
    assert sr.close() is report
    assert sr.counts.acquired == 0


# --------------------------------------------------------------------------------- the disk of the raw data


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Four megabytes of disk, to be filled."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount to make a small disk with")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if made.returncode != 0:
        pytest.skip(f"cannot mount a small disk (root only): {made.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_sequence_larger_than_the_disk_is_cancelled_before_its_first_exposure(
    mmc: CMMCorePlus,
    tmp_path: Path,
    small_disk: Path,
) -> None:
    raw = small_disk / "raw.ome.zarr"
    with serving() as server, LiveSR(server.address, save=tmp_path / "sr.ome.zarr") as sr:
        sr.attach(mmc)
        with pytest.raises(StoreError, match="free some space"):
            sr.preflight(frames(5000), mmc, raw=raw)
        mmc.run_mda(frames(5000), output=raw, block=True)
        report = sr.close()
    assert report.counts.acquired == 0
    assert len(report.alarms) == 1
    assert "MB left" in report.alarms[0]
    assert "was cancelled" in report.alarms[0]


@pytest.mark.parametrize("how", ["continue", "cancel"])
def test_when_the_disk_fills_in_mid_run_the_alarm_comes_at_once_and_no_pixel_is_lost(
    mmc: CMMCorePlus,
    tmp_path: Path,
    small_disk: Path,
    how: Any,
) -> None:
    raw, sr_path = small_disk / "raw.ome.zarr", tmp_path / "sr.ome.zarr"
    mmc.setExposure(10)
    got: dict[int, Any] = {}
    n = 150
    alarmed = threading.Event()

    def fill() -> None:
        free = shutil.disk_usage(small_disk).free
        (small_disk / "of somebody else").write_bytes(bytes(free - 3 * 8192))

    def take(img: Any, event: useq.MDAEvent) -> None:
        got[event.index["t"]] = img.copy()
        if sr.alarms:
            alarmed.set()

    mmc.register_mda_engine(Faulty(mmc, {10: fill}))
    with serving() as server:
        sr = LiveSR(server.address, save=sr_path, on_raw_failure=how)
        sr.attach(mmc)
        mmc.mda.events.frameReady.connect(take)
        mmc.run_mda(frames(n), output=raw, block=True)
        if how == "cancel":
            assert len(got) < n
            with contextlib.suppress(StoreError):
                sr.close()
        else:
            assert len(got) == n
            with pytest.raises(StoreError, match="NOT complete"):
                sr.close()
    report = sr.report
    assert report is not None
    assert alarmed.is_set() or how == "cancel"
    assert any("is full" in text for text in report.alarms)
    assert report.counts.acquired == report.counts.saved == len(got)
    assert report.sr_complete
    run = report.runs[0]
    assert run.raw.verified + run.raw.missing == len(got)
    assert run.raw.rescued == run.raw.missing
    if how == "continue":
        assert run.raw.missing > 0
        assert not report.raw_complete
        assert run.raw.rescued_to == (str(tmp_path / "sr.rescued"),)
    for file in (tmp_path / "sr.rescued").glob("*.tif"):
        np.testing.assert_array_equal(tifffile.imread(file), got[int(file.stem.rpartition("_t")[2])])
    with VolumeReader(sr_path) as high:
        for t, pixels in got.items():
            np.testing.assert_array_equal(high.read({"t": t}), bilinear(pixels, SCALE))


def test_a_full_disk_for_super_resolved_frames_costs_nothing_of_raw(
    mmc: CMMCorePlus,
    tmp_path: Path,
    small_disk: Path,
) -> None:
    raw = tmp_path / "raw.ome.zarr"
    with serving() as server, LiveSR(server.address, save=small_disk / "sr.ome.zarr") as sr:
        (small_disk / "of somebody else").write_bytes(bytes(shutil.disk_usage(small_disk).free - 20 * 4096))
        sr.attach(mmc)
        mmc.run_mda(frames(30), output=raw, block=True)
        report = sr.close()
    assert report.raw_complete
    assert report.runs[0].raw.verified == 30
    assert not report.sr_complete
    assert 0 < report.counts.failed == 30 - report.counts.saved
    assert sum("cannot be saved" in text for text in report.alarms) == 1


def test_on_a_disk_of_both_super_resolved_frames_leave_raw_its_room(
    mmc: CMMCorePlus,
    tmp_path: Path,
    small_disk: Path,
) -> None:
    raw, sr_path = paths(small_disk)
    (small_disk / "of somebody else").write_bytes(bytes(shutil.disk_usage(small_disk).free - 1_500_000))
    mmc.setExposure(5)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.run_mda(frames(120), output=raw, block=True)  # about 1 MB of raw, 2 MB of super-resolved frames
        report = sr.close()
    assert report.runs[0].raw.verified == 120
    assert report.raw_complete
    assert 0 < report.counts.saved < 120
    assert report.counts.failed == 120 - report.counts.saved
    assert len(report.alarms) == 1
    assert "kept for raw" in report.alarms[0]
    assert any("if super-resolved data do not compress" in text for text in report.warnings)
