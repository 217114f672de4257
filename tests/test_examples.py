"""The files of docs/examples run as a user would run them, with demo devices and a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zarr

from conftest import ServerProcess

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as running:
        yield running


def run(name: str, server: ServerProcess, folder: Path) -> str:
    """Run one example in a process of its own, in `folder`, at the server's address."""
    program = (
        f"import runpy; live = runpy.run_path({str(EXAMPLES / name)!r}, run_name='example'); "
        f"live['main']({server.address!r})"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    place = {"PYTHONPATH": str(EXAMPLES.parent.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **place}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_connect(server: ServerProcess, tmp_path: Path) -> None:
    said = run("connect.py", server, tmp_path)
    assert said.count("1024 x 1024 by bilinear-x2") == 3
    assert "3 of 3 frames super-resolved" in said


def test_time_lapse(server: ServerProcess, tmp_path: Path) -> None:
    said = run("time_lapse.py", server, tmp_path)
    assert "returned=10" in said
    assert "saved=10" in said
    assert zarr.open_array(tmp_path / "lapse.ome.zarr" / "0").shape == (10, 512, 512)
    assert zarr.open_array(tmp_path / "lapse.sr.ome.zarr" / "0").shape == (10, 1024, 1024)


def test_positions_z_stack(server: ServerProcess, tmp_path: Path) -> None:
    assert "12 frames, complete: True" in run("positions_z_stack.py", server, tmp_path)
    for position in ("left", "right"):
        volume = zarr.open_array(tmp_path / "stack.sr.ome.zarr" / position / "0")
        assert volume.shape[-4:] == (2, 3, 1024, 1024)


def test_live_mode(server: ServerProcess, tmp_path: Path) -> None:
    said = run("live_mode.py", server, tmp_path)
    assert said.count("live: 1024 x 1024") >= 5
    assert said.count("snap: 1024 x 1024") == 1
    assert "failed=0" in said


def test_analyse(server: ServerProcess, tmp_path: Path) -> None:
    run("analyse.py", server, tmp_path)
    lines = (tmp_path / "sharpness.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [[str(t), "bilinear-x2"] for t in range(5)]
    assert all(float(line.split(",")[3]) > 0 for line in lines[1:])


def test_feedback(server: ServerProcess, tmp_path: Path) -> None:
    assert run("feedback.py", server, tmp_path).count("for 100 ms") == 4


def test_every_example_is_listed_and_tested() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"[{name}]({name})" in listed for name in names)
    tested = {name.removeprefix("test_") + ".py" for name in globals() if name.startswith("test_")}
    assert names <= tested
