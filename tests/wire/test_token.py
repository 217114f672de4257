"""The token: one for a user, made once, closed to others."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from live_sr.errors import ConfigError
from live_sr.wire.token import control_token, token_path

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows closes the folder instead")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("LIVE_SR_TOKEN", raising=False)
    for name in ("HOME", "XDG_CONFIG_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


def test_it_is_made_once_and_found_again_by_another_process(home: Path) -> None:
    token = control_token()
    assert len(token) >= 40
    assert control_token() == token
    program = "from live_sr.wire.token import control_token; print(control_token())"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == token
    assert [path.name for path in token_path().parent.iterdir()] == ["token"]
    assert home in token_path().parents


@posix
def test_only_the_user_can_read_it() -> None:
    control_token()
    assert token_path().stat().st_mode & 0o777 == 0o600
    assert token_path().parent.stat().st_mode & 0o777 == 0o700


def test_all_who_begin_at_once_get_the_same(home: Path) -> None:
    got: list[str] = []
    together = threading.Barrier(8)

    def begin() -> None:
        together.wait()
        got.append(control_token())

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got)) == 1
    assert len(got) == 8


@posix
def test_one_that_others_can_read_is_not_used() -> None:
    control_token()
    token_path().chmod(0o640)
    with pytest.raises(ConfigError, match="Delete it"):
        control_token()


@pytest.mark.parametrize("bad", ["short", "x" * 257, "with a tab\tin the middle", "ümlaut" * 4])
def test_the_environment_says_otherwise_within_limits(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVE_SR_TOKEN", "0123456789abcdef")
    assert control_token() == "0123456789abcdef"
    assert not token_path().exists()
    monkeypatch.setenv("LIVE_SR_TOKEN", bad)
    with pytest.raises(ConfigError, match="16 to 256"):
        control_token()


def test_a_file_that_was_emptied_is_told() -> None:
    control_token()
    token_path().write_text("")
    with pytest.raises(ConfigError, match="has 0 characters"):
        control_token()


def test_a_folder_that_cannot_be_made_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").touch()
    for name in ("XDG_CONFIG_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(home / "file"))
    with pytest.raises(ConfigError, match="LIVE_SR_TOKEN"):
        control_token()
