from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymmcore_plus import CMMCorePlus
from recording import PIXEL_UM, SCALE, SHA256, Recording, planes

from live_sr import LiveSR
from live_sr.client.feed import Feed, FeedStatus, FrameInfo
from live_sr.client.images import write_image
from live_sr.client.volume import VolumeReader
from live_sr.upscaler import bilinear
from live_sr.view.history import LIVE_AXIS, Found, History
from live_sr.view.watcher import Watcher
from rig import SCALE as RIG_SCALE
from rig import WAIT_S, events_of, mmc, serving  # noqa: F401  mmc is a fixture

PATIENCE_S = 20.0  # for a loaded machine; nothing waits this long when it works

pytestmark = [
    pytest.mark.filterwarnings("ignore:Multi-camera acquisition combined:UserWarning"),
]


class Looking:
    """A history of what a feed shows, and a way to wait for it."""

    def __init__(self, watcher: Watcher, history: History) -> None:
        self.watcher = watcher
        self.history = history
        self._changed = threading.Condition()
        watcher.on_change = self._notify

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait(self, condition: Callable[[], Any]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_S), self.history.run()

    def find(self, **index: int) -> Found:
        found = self.history.find(index)
        assert found is not None
        return found

    def find_both(self, **index: int) -> Found:
        """Once the asynchronous writer of raw has got as far."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := self.find(**index)).missing and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not found.missing
        return found

    def last(self, axis: str) -> int:
        axes = self.history.run().axes
        return axes[axis].last if axis in axes else -1


@pytest.fixture
def feed() -> Iterator[Feed]:
    with Feed("tcp://127.0.0.1:*", max_rate_hz=500) as feed:
        yield feed


@pytest.fixture
def looking(feed: Feed) -> Iterator[Looking]:
    with look(feed.address) as looking:
        yield looking


@contextmanager
def look(address: str, **options: Any) -> Iterator[Looking]:
    watcher = Watcher(address)
    history = History(watcher, **options)
    with watcher:
        looking = Looking(watcher, history)
        yield looking
    history.close()


def wait_until_watched(feed: Feed) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not feed.watched and time.monotonic() < deadline:
        time.sleep(0.005)
    assert feed.watched


def show(looking: Looking, recording: Recording, n: int) -> None:
    """Acquire `n` frames, each seen by the watcher before the next."""
    for _ in range(n):
        recording.acquire()
        recording.status()
        seq = recording.n - 1
        looking.wait(
            lambda seq=seq: looking.watcher.on_show.left and looking.watcher.on_show.left.frame.seq == seq
        )


def test_an_earlier_frame_is_read_from_the_disk_while_the_run_goes_on(
    looking: Looking, feed: Feed, tmp_path: Path
) -> None:
    with Recording(tmp_path, feed) as recording:
        show(looking, recording, 7)
        looking.wait(lambda: looking.last("t") == 3)
        for n in range(7):
            place = recording.place(n)
            found = looking.find_both(**place)
            raw, sr = planes(place)
            np.testing.assert_array_equal(found.raw, raw)
            np.testing.assert_array_equal(found.sr, sr)
            assert (found.frame.seq, found.frame.index, found.frame.scale) == (n, place, SCALE)
            assert (found.frame.model, found.model_sha256) == ("em-x4", SHA256)
            assert found.frame.pixel_size_um == pytest.approx(PIXEL_UM)
            assert found.frame.channel == recording.channels[place["c"]]
            assert found.stored_at == pytest.approx(time.time(), abs=60)
        on_show = looking.history.show({"t": 1, "c": 1})
        assert on_show is not None
        assert on_show.left is not None
        assert on_show.right is not None
        assert on_show.left.frame.shape == planes({})[0].shape
        np.testing.assert_array_equal(on_show.right.pixels, planes({"t": 1, "c": 1})[1])
        assert 0 <= on_show.right.age_ms < 60_000


def test_one_can_look_back_as_far_as_frames_have_come(looking: Looking, feed: Feed, tmp_path: Path) -> None:
    with Recording(tmp_path, feed) as recording:
        show(looking, recording, 1)
        looking.wait(lambda: (looking.last("t"), looking.last("c")) == (0, 0))
        show(looking, recording, 4)
        looking.wait(lambda: (looking.last("t"), looking.last("c")) == (2, 1))
        run = looking.history.run()
        assert list(run.axes) == ["t", "c"]
        assert run.axes["t"].size == 8
        assert run.labels == {"c": ("BSE", "SE")}
        assert run.notes == ()


def test_a_run_without_a_known_end_grows(looking: Looking, feed: Feed, tmp_path: Path) -> None:
    with Recording(tmp_path, feed, t=None) as recording:
        show(looking, recording, 3)
        looking.wait(lambda: looking.last("t") == 1)
        show(looking, recording, 2)
        looking.wait(lambda: looking.last("t") == 2)
        np.testing.assert_array_equal(looking.find_both(t=2, c=0).sr, planes({"t": 2})[1])


def test_what_is_not_there_is_said_and_not_shown_black(looking: Looking, feed: Feed, tmp_path: Path) -> None:
    with Recording(tmp_path, feed) as recording:
        show(looking, recording, 2)
        recording.acquire(returned=False)
        recording.store.note_failure(3, {"t": 1, "c": 1}, "the camera settings changed")
        recording.status()
        looking.wait(lambda: looking.last("t") == 1)
        found = looking.find(t=1, c=0)
        assert found.sr is None
        assert found.missing["sr"] == "not super-resolved yet"
        assert looking.find(t=1, c=1).missing["sr"] == "failed: the camera settings changed"
        ahead = looking.find(t=5, c=0)
        assert (ahead.raw, ahead.missing["raw"]) == (None, "not on disk yet")
        assert looking.history.show({"t": 5, "c": 0}) is None

        recording.restore(2)
        found = looking.find_both(t=1, c=0)
        assert found.frame.deferred
        np.testing.assert_array_equal(found.sr, planes({"t": 1})[1])
        recording.status("idle")
        looking.wait(lambda: looking.watcher.status.state == "finished")  # type: ignore[union-attr]
        assert looking.find(t=5, c=0).missing == {
            "raw": "not on disk",
            "sr": "never super-resolved: `live-sr enhance` finishes it",
        }


def test_raw_that_is_not_what_the_camera_delivered_is_not_shown(
    looking: Looking, feed: Feed, tmp_path: Path
) -> None:
    with Recording(tmp_path, feed) as recording:
        show(looking, recording, 2)
        looking.find_both(t=0, c=0)
        recording.store.write(0, {"t": 0, "c": 0}, planes({})[1], {"raw_crc32": 1})
        found = looking.find(t=0, c=0)
        assert (found.raw, found.sr is not None) == (None, True)
        on_show = looking.history.show({"t": 0, "c": 0})
        assert on_show is not None
        assert on_show.left is None
        assert on_show.notes == {"left": "not on disk yet"}


def test_a_swapped_model_is_told_frame_by_frame(looking: Looking, feed: Feed, tmp_path: Path) -> None:
    with Recording(tmp_path, feed) as recording:
        show(looking, recording, 2)
        recording.store.write(1, {"t": 0, "c": 1}, planes({"c": 1})[1], {"model_sha256": "ab" * 32})
        assert looking.find(t=0, c=0).frame.model == "em-x4"
        swapped = looking.find(t=0, c=1)
        assert (swapped.frame.model, swapped.model_sha256) == ("model abababababab", "ab" * 32)


def test_where_nothing_is_saved_the_frames_seen_are_kept_as_far_as_memory_goes(
    feed: Feed, tmp_path: Path
) -> None:
    raw, sr = planes({})
    frame_bytes = raw.nbytes + sr.nbytes
    with (
        look(feed.address, memory_bytes=4 * frame_bytes) as looking,
        Recording(tmp_path, feed, raw=False, sr=False) as recording,
    ):
        show(looking, recording, 7)
        looking.wait(lambda: looking.last("t") == 3)
        for n in range(7):
            found = looking.history.find(recording.place(n))
            assert (found is not None) == (n >= 3), n
            if found is not None:
                np.testing.assert_array_equal(found.sr, planes(recording.place(n))[1])
                assert found.frame.age_ms >= 1000
        assert "nothing is saved" in looking.history.run().notes[0]
        assert looking.history.strip("t", {"c": 0}, 60) == [2, 3]


def test_super_resolved_frames_that_are_not_saved_come_from_memory_beside_raw_from_disk(
    looking: Looking, feed: Feed, tmp_path: Path
) -> None:
    with Recording(tmp_path, feed, sr=False) as recording:
        show(looking, recording, 4)
        found = looking.find_both(t=1, c=0)
        raw, sr = planes({"t": 1})
        np.testing.assert_array_equal(found.raw, raw)
        np.testing.assert_array_equal(found.sr, sr)
        assert (found.frame.model, found.frame.scale) == ("em-x4", SCALE)
        assert "super-resolved frames are not saved" in looking.history.run().notes[0]


def test_live_mode_is_looked_back_at_by_running_number(looking: Looking, feed: Feed) -> None:
    wait_until_watched(feed)
    feed.status(FeedStatus(session="live", state="acquiring"))
    for seq in (3, 5, 9):
        raw, sr = planes({"t": seq})
        captured_ns = time.monotonic_ns() - 10**9
        feed.show_pair(FrameInfo("live", seq, captured_ns, scale=SCALE, kind="live"), raw, sr)
        looking.wait(lambda seq=seq: looking.last(LIVE_AXIS) == seq)
    assert looking.history.run().axes[LIVE_AXIS].first == 3
    for asked, given in ((9, 9), (8, 5), (3, 3), (0, 3)):
        found = looking.find(**{LIVE_AXIS: asked})
        assert found.frame.seq == given
        np.testing.assert_array_equal(found.sr, planes({"t": given})[1])
    assert looking.history.strip(LIVE_AXIS, {}, 60) == [3, 5, 9]


def test_the_next_run_is_another(looking: Looking, feed: Feed, tmp_path: Path) -> None:
    with Recording(tmp_path, feed, session="one") as one:
        show(looking, one, 4)
        key = looking.history.run().key
        looking.find_both(t=1, c=0)
    with Recording(tmp_path, feed, session="two", channels=("BSE",)) as two:
        show(looking, two, 1)
        looking.wait(lambda: looking.history.run().key not in ("", key))
        assert looking.last("t") == 0
        assert looking.find(t=1, c=0).sr is None
        np.testing.assert_array_equal(looking.find_both(t=0, c=0).raw, planes({})[0])


def test_files_that_are_gone_are_an_answer(looking: Looking, feed: Feed, tmp_path: Path) -> None:
    with Recording(tmp_path, feed) as recording:
        show(looking, recording, 1)
        looking.find_both(t=0, c=0)
    shutil.rmtree(recording.sr_path)
    shutil.rmtree(recording.raw_path)
    found = looking.find(t=0, c=0)
    assert (found.raw, found.sr) == (None, None)
    assert set(found.missing) == {"raw", "sr"}


def test_raw_tiff_is_read_when_the_sequence_has_ended(looking: Looking, feed: Feed, tmp_path: Path) -> None:
    with Recording(tmp_path, feed, raw=tmp_path / "raw.ome.tiff") as recording:
        show(looking, recording, 2)
        assert looking.find(t=0, c=1).raw is not None, "kept in memory meanwhile"
        assert "go to TIFF" in looking.history.run().notes[0]
        with VolumeReader(recording.raw_path) as reader:
            stored = [planes(index)[0] for index in reader.indices()]
            write_image(tmp_path / "raw.ome.tiff", reader.layout, iter(stored), statement="raw")
        recording.status("idle")
        looking.wait(lambda: looking.watcher.status.state == "finished")  # type: ignore[union-attr]
        looking.history._memory._kept.clear()
        np.testing.assert_array_equal(looking.find_both(t=0, c=1).raw, planes({"c": 1})[0])


@pytest.mark.parametrize(
    ("n", "most", "expected"),
    [
        (5, 10, [0, 1, 2, 3, 4]),
        (11, 10, [0, 2, 4, 6, 8, 10]),
        (12, 10, [0, 2, 4, 6, 8, 10, 11]),
        (100, 10, [0, 16, 32, 48, 64, 80, 96, 99]),
    ],
)
def test_the_strip_thins_out_and_always_has_the_newest(
    looking: Looking, feed: Feed, n: int, most: int, expected: list[int]
) -> None:
    wait_until_watched(feed)
    feed.status(FeedStatus(session="strip", state="acquiring"))
    looking.wait(lambda: looking.watcher.status is not None)
    raw, sr = planes({})
    for seq in range(n):
        looking.history._memory.see(
            _shown(FrameInfo("strip", seq, time.monotonic_ns(), kind="live", scale=SCALE), raw, sr), keep=True
        )
    assert looking.history.strip("none", {}, most) == []
    feed.show_pair(FrameInfo("strip", n - 1, time.monotonic_ns() - 10**9, kind="live", scale=SCALE), raw, sr)
    looking.wait(lambda: looking.last(LIVE_AXIS) == n - 1)
    assert looking.history.strip(LIVE_AXIS, {}, most) == expected


def _shown(info: FrameInfo, raw: Any, sr: Any) -> Any:
    from live_sr.client.feed import decode, frame_message

    return decode(b"".join(frame_message(info, raw, sr)))


@pytest.mark.parametrize(
    "name",
    [
        "t c z",
        "positions",
        "positions with grid",
        "well plate",
        "not at every time",
        "generator",
        "two cameras",
    ],
)
def test_every_frame_of_a_real_run_is_found_again(
    mmc: CMMCorePlus,
    tmp_path: Path,
    name: str,
) -> None:
    events = events_of(name, mmc)
    raw_path = tmp_path / "raw.ome.zarr"
    with serving() as server:
        sr = LiveSR(server.address, save=tmp_path / "sr.ome.zarr", view="tcp://127.0.0.1:*")
        with sr:
            assert sr.wait_ready(WAIT_S)
            sr.attach(mmc)
            assert sr.view_address is not None
            with look(sr.view_address) as looking:
                mmc.run_mda(events, output=raw_path, block=True)
                n = sr.counts.acquired
                looking.wait(
                    lambda n=n: (
                        looking.watcher.on_show.left is not None
                        and looking.watcher.status is not None
                        and looking.watcher.status.counts.get("saved") == n
                    )
                )
                newest = looking.watcher.on_show.left
                assert newest is not None
                with VolumeReader(raw_path) as reader:
                    places = [i for i in reader.indices() if reader.present(i)]
                assert len(places) == n
                keys = places[-1].keys()
                assert {key: i for key, i in newest.frame.place.items() if key in keys} in places
                run = looking.history.run()
                for place in places:
                    assert all(place[axis] <= extent.last for axis, extent in run.axes.items() if axis in place)
                    found = looking.find_both(**place)
                    assert found.raw is not None
                    np.testing.assert_array_equal(found.sr, bilinear(found.raw, RIG_SCALE))
                    assert found.frame.seq in range(n)
                assert len({looking.find(**place).frame.seq for place in places}) == n
