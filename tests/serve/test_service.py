"""`serve` as a real process: what it prints, how it ends."""

from __future__ import annotations

import queue
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest
from serve_peer import Peer, Repeat, frame

from live_sr import config
from live_sr.config import ServerSettings
from live_sr.errors import ConfigError
from live_sr.serve import service
from live_sr.serve.loop import Server
from live_sr.serve.metrics import Metrics
from live_sr.upscaler import Bilinear, bilinear

S = 30.0  # seconds; a cold import on a busy machine takes several
PROGRAM = """
import sys
sys.modules["torch"] = None  # as on a machine without torch
from live_sr.config import ServerSettings
from live_sr.errors import LiveSRError
from live_sr.serve.service import serve
try:
    sys.exit(serve(ServerSettings({settings})))
except LiveSRError as e:
    sys.exit(f"{{type(e).__name__}}: {{e}}")
"""


class Process:
    """A server process; its lines are read as they come."""

    def __init__(self, settings: str, *, program: str = PROGRAM) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program.format(settings=settings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.lines: list[str] = []
        self._new: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._new.put(line.rstrip("\n"))
        self._new.put(None)

    def until(self, beginning: str) -> str:
        while True:
            line = self._new.get(timeout=S)
            assert line is not None, (beginning, self.lines, self.ended())
            self.lines.append(line)
            if line.startswith(beginning):
                return line

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ended(self) -> tuple[int, str]:
        code = self._process.wait(timeout=S)
        assert self._process.stderr is not None
        return code, self._process.stderr.read()


def address_of(line: str) -> str:
    return line.removeprefix("ready: ").split(" ")[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_service_says_when_it_is_ready_serves_and_ends_in_order(number: signal.Signals) -> None:
    raw = np.random.default_rng(3).integers(0, 60_000, (20, 30), dtype=np.uint16)
    with Process("bind='tcp://127.0.0.1:*', model='bilinear-x4'") as process:
        ready = process.until("ready: ")
        with Peer(address_of(ready)) as peer:
            peer.hello()
            peer.offer(0, raw)
            np.testing.assert_array_equal(peer.restored()[1], bilinear(raw, 4))
            peer.offer(1, frame(1, (1, 20_000)))
            assert peer.refused().code == "too_large"
            process.signal(number)
            assert process.until("stopped: ") == "stopped: 1 frames served; refused: too_large 1"
        assert process.ended() == (0, "")
    text = "\n".join(process.lines)
    assert "bilinear-x4 (sha256 5ef53321690c), 4 times finer along y and x, float32 on cpu" in text
    assert text.index("warming up...") < text.index("ready: ")
    assert "Stop with Ctrl-C" in ready


def test_the_service_tells_of_each_of_several_models() -> None:
    with Process("bind='tcp://127.0.0.1:*', model=('bilinear-x2', 'bilinear-x4')") as process:
        ready = process.until("ready: ")
        assert ready.endswith("serves bilinear-x2, bilinear-x4. Stop with Ctrl-C.")
        with Peer(address_of(ready)) as peer:
            peer.hello()
            peer.offer(0, frame(1))
            peer.restored()
            peer.offer(1, frame(1), Bilinear(4).info.sha256)
            peer.restored()
        process.signal(signal.SIGTERM)
        assert process.until("stopped: ") == (
            "stopped: 2 frames served (bilinear-x2 1, bilinear-x4 1); refused: none"
        )
        assert process.ended() == (0, "")
    text = "\n".join(process.lines)
    assert "model bilinear-x2 (sha256" in text
    assert "model bilinear-x4 (sha256" in text
    assert "bilinear-x2 restores frames that ask for no model" in text


def test_settings_name_one_model_or_several(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    for text, models in (('"a"', ("a",)), ('["a", "b"]', ("a", "b"))):
        file.write_text(f"model = {text}\n")
        assert config.load(file, ServerSettings).models == models
    file.write_text("model = [1]\n")
    with pytest.raises(ConfigError, match="model"):
        config.load(file, ServerSettings)


def test_a_port_in_use_is_told_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with Process(f"bind='tcp://127.0.0.1:{port}', model='bilinear-x2'") as process:
            code, err = process.ended()
    assert code == 1
    assert err.startswith(f"ConfigError: tcp://127.0.0.1:{port} is in use")
    assert "Traceback" not in err


def test_a_model_without_torch_is_told_with_what_to_install() -> None:
    with Process("bind='tcp://127.0.0.1:*'") as process:
        code, err = process.ended()
    assert code == 1
    assert "pip install 'live-sr[serve]'" in err


def test_an_open_address_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="neither encrypted nor authenticated"):
        service.serve(ServerSettings(bind="tcp://0.0.0.0:5755", model="no such model"))


HANGING = """
import signal, sys, threading
from live_sr.serve import service
from live_sr.upscaler import Bilinear
from live_sr.config import ServerSettings
class Hangs(Bilinear):
    def warm(self, shapes):
        threading.Event().wait()
service.load_upscaler = lambda settings: Hangs()
service.serve(ServerSettings({settings}))
"""


def test_a_second_ctrl_c_ends_a_hanging_engine_at_once() -> None:
    with Process("bind='tcp://127.0.0.1:*'", program=HANGING) as process:
        process.until("warming up...")
        process.signal(signal.SIGINT)
        process.until("stopping: ")
        process.signal(signal.SIGINT)
        assert process.ended() == (-signal.SIGINT, "")


@pytest.mark.parametrize(("name", "scale"), [("bilinear-x2", 2), ("bilinear-x4", 4)])
def test_stand_ins_are_served_by_name(name: str, scale: int) -> None:
    upscaler = service.load_upscaler(ServerSettings(model=name, max_pixels=100))
    assert isinstance(upscaler, Bilinear)
    assert (upscaler.info.id, upscaler.info.scale, upscaler.info.max_pixels) == (name, scale, 100)


def test_the_settings_file_shows_every_key_with_its_default() -> None:
    path = Path(__file__).parents[2] / "configs" / "server.toml"
    assert config.load(path, ServerSettings) == ServerSettings()
    text = path.read_text(encoding="utf-8")
    assert all(f"\n{name} = " in text for name in ServerSettings.__struct_fields__)


# -------------------------------------------------------------------- metrics


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(Repeat(), ServerSettings(bind="tcp://127.0.0.1:*", max_pixels=1024)) as server:
        yield server


def scrape(metrics: Metrics) -> dict[str, float]:
    with urllib.request.urlopen(metrics.address, timeout=S) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_metrics_tell_what_the_server_did(server: Server) -> None:
    with Metrics(server, 0) as metrics, Peer(server.address) as peer:
        peer.hello()
        before = scrape(metrics)
        for seq in range(3):
            peer.offer(seq, frame(1))
            peer.restored()
        peer.offer(3, frame(1, (33, 32)))
        peer.refused()
        peer.socket.send(b"noise")
        peer.refused()
        after = scrape(metrics)
    assert before['live_sr_frames_served_total{model="repeat"}'] == 0
    assert after['live_sr_frames_served_total{model="repeat"}'] == 3
    assert after['live_sr_refused_total{code="too_large"}'] == 1
    assert after['live_sr_refused_total{code="busy"}'] == 0
    assert after["live_sr_malformed_total"] == 1
    assert after['live_sr_batch_seconds_count{model="repeat"}'] == 3
    assert after['live_sr_batch_seconds_sum{model="repeat"}'] == after["live_sr_busy_seconds_total"] > 0
    assert after['live_sr_compute_ms{model="repeat",percentile="p50"}'] > 0
    assert (after["live_sr_ready"], after["live_sr_sessions"]) == (1, 1)
    assert (after["live_sr_waiting_frames"], after["live_sr_waiting_bytes"]) == (0, 0)
    assert after["live_sr_waiting_bytes_limit"] == 1024e6


def test_a_metrics_port_in_use_is_told(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}.*Choose another"), Metrics(server, port):
            pass


def test_metrics_switched_on_without_prometheus_are_told(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match="prometheus-client is missing"), Metrics(server, 0):
        pass


def test_the_service_serves_metrics_when_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Process(f"bind='tcp://127.0.0.1:*', model='bilinear-x2', metrics_port={port}") as process:
        assert process.until("metrics at ") == f"metrics at http://127.0.0.1:{port}/metrics"
        process.until("ready: ")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=S) as answer:
            assert b"live_sr_ready 1.0" in answer.read()
        process.signal(signal.SIGTERM)
        assert process.ended() == (0, "")
