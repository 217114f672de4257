"""Settings: frozen, from one TOML file or the command line, unknown keys refused. Does no work at import."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from live_sr.errors import ConfigError

DEFAULT_PORT = 5755
DEFAULT_ADDRESS = f"tcp://127.0.0.1:{DEFAULT_PORT}"
DEFAULT_FEED = "tcp://127.0.0.1:5756"
DEFAULT_PAGE_PORT = 8765

S = TypeVar("S", bound=msgspec.Struct)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all settings."""


class ServerSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`live-sr serve`: the inference server.

    Attributes
    ----------
    bind : str
        ZeroMQ endpoint. Anything but loopback or ipc is refused: the link has no encryption of its own yet.
    model : str or tuple of str
        Shipped models' names (``em-x4``), or paths of model files. All are loaded and warmed; frames that ask
        for none get the first.
    device : str
        ``auto`` takes CUDA when there is one.
    precision : str
        ``auto`` takes the fastest that agrees with float32 at load.
    threads : int
        CPU threads for the network; 0 lets torch choose.
    warm_shapes : tuple of (Y, X)
        Frame shapes that are warmed before the server says that it is ready.
    max_pixels : int
        Largest frame accepted.
    mailbox_mb : int
        Memory for waiting frames, all clients together.
    max_batch : int
        Most frames computed in one call. 1 gives pixels that do not depend on the load.
    metrics_port : int
        Prometheus metrics on 127.0.0.1; 0 switches them off.
    """

    bind: str = DEFAULT_ADDRESS
    model: str | tuple[str, ...] = "em-x4"
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int = 0
    warm_shapes: tuple[tuple[int, int], ...] = ((256, 256),)
    max_pixels: int = 8192 * 8192
    mailbox_mb: int = 1024
    max_batch: int = 1
    metrics_port: int = 0

    @property
    def models(self) -> tuple[str, ...]:
        """The models named, one or several."""
        return (self.model,) if isinstance(self.model, str) else self.model


def load(path: Path | str, kind: type[S]) -> S:
    """Read one TOML file as settings of type `kind`.

    Raises
    ------
    ConfigError
        When the file is missing, is not TOML, has an unknown key, or a value of the wrong type.
    """
    path = Path(path)
    try:
        return msgspec.toml.decode(path.read_bytes(), type=kind)
    except OSError as e:
        raise ConfigError(f"cannot read settings file {path}: {e.strerror}") from e
    except msgspec.ValidationError as e:
        raise ConfigError(f"settings file {path}: {e}") from e
    except msgspec.DecodeError as e:
        raise ConfigError(f"settings file {path} is not valid TOML: {e}") from e
