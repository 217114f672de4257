"""The secret by which commands to an acquisition are known to come from its own user. Opens no socket.

It lies in a file that only this user can read, made when it is first needed; so the view finds it without being
told, and other users of the machine do not.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from live_sr.errors import ConfigError

VARIABLE = "LIVE_SR_TOKEN"
LEAST = 16  # characters: a shorter secret could be guessed
MOST = 256  # characters; what a request holds


def control_token() -> str:
    """The user's token: the environment's ``LIVE_SR_TOKEN``, else that of :func:`token_path`, made if need be.

    Raises
    ------
    ConfigError
        When it is too short or too long, the file cannot be read or made, or others can read it.
    """
    if given := os.environ.get(VARIABLE):
        return _checked(given, f"the environment variable {VARIABLE}")
    path = token_path()
    try:
        if not path.exists():
            _make(path)
    except OSError as e:
        raise ConfigError(
            f"the token of the control channel cannot be made at {path}: {e.strerror}. "
            f"Set {VARIABLE} to a secret of your own instead"
        ) from e
    return read_token(path)


def read_token(path: Path) -> str:
    """The token in a file.

    Raises
    ------
    ConfigError
        When it is too short or too long, or the file cannot be read, or others can read it.
    """
    try:
        _refuse_open(path)
        return _checked(path.read_text(encoding="utf-8", errors="replace").strip(), str(path))
    except OSError as e:
        raise ConfigError(f"the token cannot be read at {path}: {e.strerror}") from e


def token_path() -> Path:
    """Where the token lies: the folder for this user's settings, as each system has it.

    Raises
    ------
    ConfigError
        When this user has no home folder.
    """
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Application Support"
        else:
            base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    except RuntimeError as e:
        raise ConfigError(f"this user has no home folder for a token: set {VARIABLE} instead") from e
    return Path(base) / "live-sr" / "token"


def _make(path: Path) -> None:
    """Whole or not at all, however many begin at once: the first one's file stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mine = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    # On Windows the mode does not matter: the folder of the user's settings is closed to others.
    fd = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        # Neither replaces a file that is there: a name on Windows, a link elsewhere.
        (os.rename if sys.platform == "win32" else os.link)(mine, path)
    except FileExistsError:
        pass
    finally:
        mine.unlink(missing_ok=True)


def _refuse_open(path: Path) -> None:
    if sys.platform == "win32":
        return
    status = path.stat()
    if status.st_mode & 0o077 or status.st_uid != os.getuid():
        raise ConfigError(
            f"{path} can be read by others, or is not yours: anyone could steer the microscope. Delete it and "
            "make a new one (the user's own is made by itself)"
        )


def _checked(token: str, where: str) -> str:
    if LEAST <= len(token) <= MOST and token.isascii() and token.isprintable():
        return token
    raise ConfigError(
        f"the token in {where} has {len(token)} characters: give {LEAST} to {MOST} plain ones, for example of "
        "`openssl rand -hex 32`"
    )
