from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from recording import CHANNELS, Recording
from test_history import PATIENCE_S, Looking, look

from live_sr.client.feed import Feed
from live_sr.errors import InputError
from live_sr.view import movie
from live_sr.view.movie import Busy, MovieAsk, Movies, Progress

TIMES = 6


@dataclass
class Studio:
    movies: Movies
    looking: Looking
    recording: Recording
    feed: Feed

    def make(self, **ask: Any) -> tuple[Path, str]:
        started = self.movies.start(MovieAsk(**ask))
        assert self.wait().state == "done", self.movies.progress
        fetched = self.movies.fetch(started.number)
        assert fetched is not None
        return fetched

    def wait(self) -> Progress:
        thread = self.movies._thread
        assert thread is not None
        thread.join(PATIENCE_S)
        return self.movies.progress


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Recording, Looking, Feed]]:
    """Six times of two channels; the last one is not super-resolved, and raw of it not on disk."""
    with (
        Feed("tcp://127.0.0.1:*", max_rate_hz=500) as feed,
        look(feed.address) as looking,
        Recording(tmp_path_factory.mktemp("run"), feed, t=TIMES, shape=(90, 121)) as recording,
    ):
        for n in range((TIMES - 1) * len(CHANNELS)):
            recording.acquire()
            looking.wait(
                lambda n=n: looking.watcher.on_show.left and looking.watcher.on_show.left.frame.seq == n
            )
        place = {"t": TIMES - 1, "c": 0}
        recording.feed.show_raw(recording.info(99, place), np.zeros((90, 121), np.uint16))
        looking.wait(lambda: looking.last("t") == TIMES - 1)
        recording.status("idle")
        looking.wait(lambda: looking.watcher.status.state == "finished")  # type: ignore[union-attr]
        for t in range(TIMES - 1):
            looking.find_both(t=t, c=1)
        yield recording, looking, feed


@pytest.fixture
def studio(recorded: tuple[Recording, Looking, Feed]) -> Iterator[Studio]:
    recording, looking, feed = recorded
    movies = Movies(looking.history)
    yield Studio(movies, looking, recording, feed)
    movies.close()


def frames_of(file: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(file)) as container:
        return [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]


def grey(image: NDArray[np.uint8], x: int) -> float:
    """Of the background, free of labels."""
    return float(image[60:100, x : x + 40].mean())


def test_a_movie_has_every_frame_in_order_and_one_contrast(studio: Studio) -> None:
    file, name = studio.make(axis="t", at={"c": 0}, last=TIMES - 2, panel_px=242, frames_per_s=12.5)
    assert name == "live-sr_recordin_run1_c0_t0-4_raw-sr.mp4"
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width % 2, stream.height % 2) == (0, 0)
        assert float(stream.average_rate or 0) == pytest.approx(12.5)
        assert "Computed image" in container.metadata["comment"]
    frames = frames_of(file)
    assert len(frames) == TIMES - 1
    left, right = ([grey(f, x) for f in frames] for x in (150, 400))
    assert left == sorted(left)
    assert np.diff(left).min() > 3, "each time is 100 grey levels brighter, in one contrast"
    assert right == pytest.approx(left, abs=3)
    assert max(np.abs(f.astype(int) - f[0, 0].astype(int)).max() for f in frames) > 200, "labels are white"


def test_each_frame_may_have_a_contrast_of_its_own(studio: Studio) -> None:
    file, _ = studio.make(axis="t", at={"c": 0}, last=TIMES - 2, panel_px=242, contrast="each", show="sr")
    left = [grey(f, 150) for f in frames_of(file)]
    assert left == pytest.approx([left[0]] * len(left), abs=2)


def test_a_given_contrast_is_kept(studio: Studio) -> None:
    file, _ = studio.make(
        axis="t", at={"c": 0}, first=2, last=2, panel_px=242, contrast="given", low=1000, high=2000, show="raw"
    )
    frames = frames_of(file)
    assert len(frames) == 1
    assert grey(frames[0], 150) == pytest.approx(0.2 * 255, abs=2)


def test_a_gif_has_every_frame_and_loops(studio: Studio) -> None:
    file, name = studio.make(
        axis="t", at={"c": 1}, last=TIMES - 2, every=2, kind="gif", show="sr", panel_px=242
    )
    assert name.endswith("_c1_t0-4_sr.gif")
    with Image.open(file) as image:
        assert image.info["loop"] == 0
        assert image.info["duration"] == 100
        shown = [np.asarray(f.convert("L")) for f in ImageSequence.Iterator(image)]
    assert len(shown) == 3
    assert np.diff([grey(f, 150) for f in shown]).min() > 10


def test_along_another_axis(studio: Studio) -> None:
    file, name = studio.make(axis="c", at={"t": 1}, panel_px=242)
    assert name == "live-sr_recordin_run1_t1_c0-1_raw-sr.mp4"
    assert len(frames_of(file)) == 2


def test_frames_that_are_not_there_are_empty_fields_and_counted(studio: Studio) -> None:
    file, _ = studio.make(axis="t", at={"c": 0}, panel_px=242)
    frames = frames_of(file)
    assert len(frames) == TIMES
    assert grey(frames[-1], 150) < 3
    assert grey(frames[-2], 150) > 20
    assert studio.movies.progress.missing == 1
    assert studio.movies.progress.text == "1 of 6 frames lack an image: an empty field is drawn"


def test_a_second_movie_is_refused_while_the_first_is_made_and_the_first_can_be_cancelled(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, go_on = threading.Event(), threading.Event()
    find = studio.looking.history.find

    def waiting(*args: Any, **options: Any) -> Any:
        read.set()
        assert go_on.wait(PATIENCE_S)
        return find(*args, **options)

    monkeypatch.setattr(studio.looking.history, "find", waiting)
    studio.movies.start(MovieAsk(axis="t", at={"c": 0}))
    assert read.wait(PATIENCE_S)
    with pytest.raises(Busy, match=r"a movie is being made \(0 of 6 frames\): wait for it, or cancel it"):
        studio.movies.start(MovieAsk(axis="t", at={"c": 0}))
    studio.movies.cancel()
    go_on.set()
    assert studio.wait().state == "cancelled"
    assert studio.movies._folder is not None
    assert list(Path(studio.movies._folder.name).iterdir()) == []
    assert studio.movies.fetch(1) is None
    studio.make(axis="t", at={"c": 0}, last=0)


def test_a_movie_is_handed_out_once(studio: Studio) -> None:
    studio.make(axis="t", at={"c": 0}, last=0)
    number = studio.movies.progress.number
    assert studio.movies.progress.state == "fetched"
    assert studio.movies.fetch(number) is None


def test_a_movie_that_nobody_fetched_makes_room_for_the_next(studio: Studio) -> None:
    studio.movies.start(MovieAsk(axis="t", at={"c": 0}, last=0))
    studio.wait()
    studio.movies.start(MovieAsk(axis="t", at={"c": 0}, last=1))
    studio.wait()
    assert studio.movies._folder is not None
    folder = Path(studio.movies._folder.name)
    assert [f.name for f in folder.iterdir()] == ["movie2.mp4"]
    studio.movies.close()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"axis": "z"}, "no axis 'z', it has: t, c"),
        ({"axis": "t", "first": 9}, "no frame from t 9 to 5: the newest is 5"),
    ],
    ids=["axis", "range"],
)
def test_what_cannot_be_made_is_refused_at_once(studio: Studio, ask: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        studio.movies.start(MovieAsk(**ask))
    assert studio.movies.progress.state == "none"


def test_too_many_frames_are_refused_with_what_to_do(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movie, "MAX_FRAMES", 2)
    with pytest.raises(InputError, match="6 frames are more than 2: take every 3th"):
        studio.movies.start(MovieAsk(axis="t"))


@pytest.mark.parametrize(
    ("limit", "value", "ask", "message"),
    [
        ("MAX_BYTES", 100, {}, "larger than 0 MB: take fewer frames or less size"),
        ("MIN_FREE_BYTES", 2**60, {}, "has less than .* GB left: no movie"),
        ("MAX_GIF_PIXELS", 1000, {"kind": "gif"}, "too many for a GIF: choose MP4"),
    ],
    ids=["size", "disk", "gif"],
)
def test_limits_end_a_movie_and_leave_nothing(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, ask: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(movie, limit, value)
    studio.movies.start(MovieAsk(axis="t", at={"c": 0}, panel_px=242, **ask))
    progress = studio.wait()
    assert progress.state == "failed"
    assert re.search(message, progress.text), progress.text
    assert studio.movies._folder is not None
    assert list(Path(studio.movies._folder.name).iterdir()) == []


def test_without_h264_it_is_written_as_mpeg4(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movie, "ENCODERS", ("no-such-encoder", "mpeg4"))
    file, _ = studio.make(axis="t", at={"c": 0}, last=TIMES - 2, panel_px=242)
    with av.open(str(file)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert len(frames_of(file)) == TIMES - 1
    monkeypatch.setattr(movie, "ENCODERS", ("no-such-encoder",))
    with pytest.raises(InputError, match="has none of the encoders no-such-encoder: choose GIF"):
        studio.movies.start(MovieAsk(axis="t"))


def test_the_acquisition_is_left_half_of_the_disks_time(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = studio.looking.history
    assert history._volumes is not None
    find = history._volumes.find
    waited: list[float] = []

    def slow(*args: Any) -> Any:
        time.sleep(0.05)
        return find(*args)

    monkeypatch.setattr(history._volumes, "find", slow)
    monkeypatch.setattr(history._ended, "wait", waited.append)
    for state in ("idle", "running"):
        assert waited == []
        studio.recording.status(state)
        studio.looking.wait(lambda s=state: studio.looking.watcher.status.sequence.state == s)  # type: ignore[union-attr]
        history.find({"t": 0, "c": 0}, gently=True)
    assert waited[0] >= 0.05
    history.find({"t": 0, "c": 0})
    assert len(waited) == 1, "somebody waits for it"
    studio.recording.status("idle")
    studio.looking.wait(lambda: studio.looking.watcher.status.sequence.state == "idle")  # type: ignore[union-attr]
