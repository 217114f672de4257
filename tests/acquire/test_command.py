"""``live-sr acquire`` with Micro-Manager's demo microscope and a real server."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import useq
import zmq

from live_sr.acquire.command import DEMO, INTERRUPTED, AcquireSettings, read_sequence, run_acquire
from live_sr.client.control import ControlClient, Start
from live_sr.client.feed import FeedStatus, decode
from live_sr.client.volume import VolumeReader
from live_sr.errors import InputError, LiveSRError, StoreError
from live_sr.frame import Pixels
from live_sr.wire.token import control_token
from rig import SCALE, WAIT_S, Failing, Gated, assert_restored, serving
from test_cli import live_sr
from test_end_to_end import nobody

SEQUENCE = """\
axis_order: tc
time_plan: {interval: 0, loops: 3}
channels:
  - {config: DAPI, exposure: 2}
  - {config: FITC, exposure: 2}
"""


@pytest.fixture
def settings(tmp_path: Path) -> AcquireSettings:
    (tmp_path / "s.yaml").write_text(SEQUENCE)
    return AcquireSettings(
        sequence=tmp_path / "s.yaml",
        config=DEMO,
        raw=tmp_path / "raw.ome.zarr",
        save=tmp_path / "sr.ome.zarr",
        servers=(),
        report=tmp_path / "r.json",
    )


def long(settings: AcquireSettings) -> AcquireSettings:
    path = settings.sequence.with_name("long.json")
    path.write_text(useq.MDASequence(time_plan={"interval": 0, "loops": 2000}).model_dump_json())
    return replace(settings, sequence=path)


def test_a_sequence_file_is_acquired_super_resolved_and_reported(
    settings: AcquireSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as server:
        assert run_acquire(replace(settings, servers=(server.address,))) == 0
    assert_restored(settings.raw, settings.save, frames=6)
    numbers = json.loads((settings.raw.parent / "r.json").read_text())
    assert numbers["acquired"] == numbers["returned"] == numbers["saved"] == numbers["raw_verified"] == 6
    assert (numbers["ended"], numbers["model"]["scale"], numbers["alarms"]) == ("completed", SCALE, [])
    said = capsys.readouterr()
    assert "6 of 6 frames read back and identical" in said.out
    assert re.search(r"acquired\s+│\s+6 ", said.out)
    assert re.search(r"super-resolved\s.*6/6.*deferred 0, failed 0", said.err)


def test_the_command_itself_gives_the_exit_code(settings: AcquireSettings) -> None:
    with serving(Failing(2)) as server:
        files = ("--raw", settings.raw, "--save", settings.save)
        done = live_sr("acquire", settings.sequence, "--config", "demo", "--server", server.address, *files)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "NOT complete" in done.stdout
    assert "Traceback" not in done.stderr


def start_when_awaited(address: str) -> FeedStatus:
    """Press Start as the page does; what the feed said just before."""
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.subscribe(b"")
        socket.connect(address)
        while socket.poll(int(WAIT_S * 1000)):
            said = decode(socket.recv())
            if isinstance(said, FeedStatus) and said.control.start_awaited:
                assert ControlClient(said.control.address, control_token()).request(Start()).ok
                return said
    raise AssertionError("nobody waited for Start")


def test_it_waits_for_start_when_told_to_hold(settings: AcquireSettings) -> None:
    address = nobody()
    with serving() as server, ThreadPoolExecutor(1) as pool:
        before = pool.submit(start_when_awaited, address)
        assert run_acquire(replace(settings, view=address, hold=True, servers=(server.address,))) == 0
        assert before.result(timeout=WAIT_S).counts["acquired"] == 0
    assert_restored(settings.raw, settings.save, frames=6)


@pytest.mark.parametrize("change", [{"view": None}, {"view": "tcp://127.0.0.1:*", "control": False}])
def test_holding_needs_a_page_that_may_start(settings: AcquireSettings, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--hold waits for Start on the page"):
        run_acquire(replace(settings, hold=True, **change))


def test_several_servers_share_the_work(settings: AcquireSettings) -> None:
    with serving() as one, serving() as other:
        assert run_acquire(replace(settings, servers=(one.address, other.address))) == 0
    assert_restored(settings.raw, settings.save, frames=6)


def test_frames_that_failed_give_exit_code_3_and_the_command_that_finishes_them(
    settings: AcquireSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Failing(2)) as server:
        assert run_acquire(replace(settings, servers=(server.address,))) == 3
    said = capsys.readouterr().out
    assert "NOT complete" in said
    assert f"live-sr enhance {settings.raw} {settings.save} --model bilinear-x{SCALE}" in said


# -------------------------------------------------------------------------------------------- Ctrl-C


class Pressing(Gated):
    """A server at which somebody presses Ctrl-C as a frame arrives; it has a gate besides."""

    def __init__(self, at: Sequence[int]) -> None:
        super().__init__()
        self._at = list(at)
        self.n = 0

    def upscale(self, frames: Sequence[Pixels]) -> list[Pixels]:
        self.n += 1
        for _ in range(self._at.count(self.n)):
            os.kill(os.getpid(), signal.SIGINT)
        return super().upscale(frames)


def test_ctrl_c_cancels_the_acquisition_and_finishes_its_frames(
    settings: AcquireSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    press = Pressing([2])
    press.open()
    with serving(press) as server:
        assert run_acquire(replace(long(settings), servers=(server.address,))) == INTERRUPTED
    numbers = json.loads((settings.raw.parent / "r.json").read_text())
    assert numbers["ended"] == "canceled"
    assert 2 <= numbers["acquired"] < 2000
    assert numbers["returned"] == numbers["saved"] == numbers["raw_verified"] == numbers["acquired"]
    assert "cancelling the acquisition" in capsys.readouterr().err
    with VolumeReader(settings.save) as high:
        assert all(high.present({"t": t}) for t in range(numbers["acquired"]))


def press_when_the_run_is_over(feed: str) -> None:
    """A second Ctrl-C, while frames of a cancelled run are still awaited."""
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.subscribe(b"")
        socket.connect(feed)
        while socket.poll(WAIT_S * 1000):
            said = decode(socket.recv())
            if isinstance(said, FeedStatus) and said.counts.get("acquired") and said.sequence.state == "idle":
                os.kill(os.getpid(), signal.SIGINT)
                return


def test_a_second_ctrl_c_leaves_the_rest_to_enhance(settings: AcquireSettings) -> None:
    press = Pressing([1])  # and computes nothing, so that frames are awaited
    feed = nobody()
    watcher = threading.Thread(target=press_when_the_run_is_over, args=(feed,))
    watcher.start()
    with serving(press) as server:
        assert run_acquire(replace(long(settings), servers=(server.address,), view=feed)) == INTERRUPTED
        press.open()
    watcher.join(WAIT_S)
    numbers = json.loads((settings.raw.parent / "r.json").read_text())
    assert numbers["ended"] == "canceled"
    assert numbers["failed"] == numbers["acquired"] == numbers["raw_verified"] > 0


def test_ctrl_c_before_the_first_exposure_ends_at_once(settings: AcquireSettings) -> None:
    press = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))  # while a server is looked for
    press.start()
    with pytest.raises(KeyboardInterrupt):
        run_acquire(replace(settings, servers=(nobody(),)))
    press.join()
    assert not settings.raw.exists()


# -------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("s.yaml", "channels: 5", "channels"),
        ("s.yaml", "time_plan: {interval: 0, loops: -1}", "loops"),
        ("s.yaml", "a: [", "cannot be read"),
        ("s.yaml", "- 1", "not a sequence"),
        ("s.json", "{", "not a sequence"),
        ("s.txt", SEQUENCE, ".yaml"),
        ("s.yaml", None, "No such file"),
    ],
)
def test_a_file_that_is_no_sequence_is_refused(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(says)):
        read_sequence(tmp_path / name)


def test_what_cannot_be_run_is_refused_before_anything_is_exposed(settings: AcquireSettings) -> None:
    with pytest.raises(InputError, match=r"no configuration .*my\.cfg"):
        run_acquire(replace(settings, config="my.cfg"))
    broken = settings.sequence.with_name("broken.cfg")
    broken.write_text("Device,Camera,NoSuchLibrary,DCam\n")
    with pytest.raises(InputError, match="cannot be loaded"):
        run_acquire(replace(settings, config=str(broken)))
    with pytest.raises(InputError, match="folder does not exist"):
        run_acquire(replace(settings, report=settings.raw / "no" / "r.json"))
    with pytest.raises(InputError, match=r"raw\.h5"):
        run_acquire(replace(settings, raw=settings.raw.with_name("raw.h5")))
    settings.raw.mkdir()
    with pytest.raises(StoreError, match="exists"):
        run_acquire(settings)
    assert not settings.save.exists()


def test_an_acquisition_that_fails_says_why(settings: AcquireSettings) -> None:
    settings.sequence.write_text("channels: [DAPI, Nope]")
    with serving() as server, pytest.raises(LiveSRError, match=r"errored: .*\"Nope\" does not exist"):
        run_acquire(replace(settings, servers=(server.address,)))
    numbers = json.loads((settings.raw.parent / "r.json").read_text())
    assert numbers["acquired"] == 0
    assert numbers["ended"] == "errored"
