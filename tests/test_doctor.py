"""What `live-sr doctor` says of machines that are well and of machines that are not."""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conftest import ServerProcess
from live_sr import doctor
from live_sr.cli import app
from live_sr.doctor import Finding, answering, disk, examine, packages
from live_sr.errors import ConfigError


@pytest.fixture(autouse=True)
def little_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_BLOCKS", 2)
    monkeypatch.setattr(doctor, "ASK_S", 0.5)


def of(topic: str, findings: list[Finding]) -> list[Finding]:
    return [f for f in findings if f.topic == topic]


def test_a_machine_that_is_well_has_nothing_bad_and_every_finding_says_something(tmp_path: Path) -> None:
    findings = list(examine(folder=tmp_path))
    assert [f for f in findings if f.state == "bad"] == []
    assert {f.topic for f in findings} >= {"python", "packages", "Micro-Manager", "processor", "models", "disk"}
    assert all(f.found for f in findings)
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_it_measures_a_server() -> None:
    with ServerProcess() as server:
        found = list(answering(server.address))
    assert found[0].state == "good"
    assert "bilinear-x2, ×2" in found[0].found
    assert "ms there and back" in found[1].found


def test_a_server_that_was_named_and_is_not_there_is_bad() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))  # bound, not listening: nobody answers
        address = f"tcp://127.0.0.1:{holder.getsockname()[1]}"
        (found,) = answering(address)
    assert found.state == "bad"
    assert address in found.found
    assert found.advice


def test_a_package_that_is_too_old_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    true = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0" if name == "pyzmq" else true(name))
    bad = [f for f in packages() if f.state == "bad"]
    assert len(bad) == 1
    assert "pyzmq 1.0, needs" in bad[0].found
    assert bad[0].advice == "pip install --upgrade 'live-sr'"


def test_an_extra_that_is_not_installed_is_only_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    true = importlib.metadata.version

    def version(name: str) -> str:
        if name == "uvicorn":
            raise importlib.metadata.PackageNotFoundError(name)
        return true(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (note,) = [f for f in packages() if f.state == "note"]
    assert "live-sr[view]: not installed (uvicorn)" in note.found


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_bad(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert list(disk(tmp_path))[-1].state == "bad"


def test_a_check_that_fails_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Finding]:
        raise RuntimeError("no such device")

    monkeypatch.setattr(doctor, "processor", broken)
    monkeypatch.setattr(doctor, "models", lambda: iter(()))  # the slow one
    findings = list(examine(folder=tmp_path))
    assert "no such device" in of("processor", findings)[0].found
    assert of("disk", findings)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        list(examine(folder=tmp_path / "nowhere"))


def test_the_command_prints_every_finding_and_writes_them_down(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--folder", str(tmp_path), "--json", str(tmp_path / "f.json")])
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "f.json").read_text())
    assert written[0]["topic"] == "python"
    assert "nothing hinders live-sr here" in result.output
    assert all(f["found"] in result.output for f in written)
