"""`live-sr serve`: joins models and a server, and runs them until told to stop.

The one place where serving meets torch, and only when a model needs it.
"""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import msgspec

from live_sr import __version__
from live_sr.config import ServerSettings
from live_sr.errors import ConfigError
from live_sr.neighbours import FrameCount
from live_sr.serve.loop import Server
from live_sr.serve.metrics import Metrics
from live_sr.upscaler import Bilinear, Upscaler
from live_sr.wire.security import check_bind

STAND_INS: dict[str, tuple[int, FrameCount]] = {  # served without a model, by name: scale, frames seen at once
    "bilinear-x2": (2, 1),
    "bilinear-x2-f3": (2, 3),
    "bilinear-x2-f5": (2, 5),
    "bilinear-x4": (4, 1),
    "bilinear-x4-f3": (4, 3),
    "bilinear-x4-f5": (4, 5),
}
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGBREAK")  # Ctrl-C, a service manager, Ctrl-Break on Windows
LOOK_S = 0.5  # on Windows a signal is only noticed between two waits

# Flushed: whoever starts the server through a pipe waits for the line that begins with "ready: ".
_say = functools.partial(print, flush=True)


def serve(settings: ServerSettings, *, announce: Callable[[str], None] = _say) -> int:
    """Serve until SIGINT or SIGTERM; called in the main thread.

    Parameters
    ----------
    settings : ServerSettings
    announce : callable
        Told what happens, line by line; the line that begins with ``ready: `` comes when frames are accepted.

    Returns
    -------
    int
        0, after an orderly end.

    Raises
    ------
    ConfigError
        When the address must not or cannot be listened on, or the settings contradict each other.
    ModelError
        When a model cannot be loaded or warmed.
    """
    check_bind(settings.bind)
    each = [msgspec.structs.replace(settings, model=name) for name in settings.models]
    server = Server([load_upscaler(one) for one in each], settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_signals_call(server.stop))
        stack.enter_context(server)
        _introduce(server, settings, announce)
        if settings.metrics_port > 0:
            announce(f"metrics at {stack.enter_context(Metrics(server, settings.metrics_port)).address}")
        announce("warming up...")
        while server.state == "warming":
            server.wait_ready(LOOK_S)
        if server.state == "ready":
            names = ", ".join(model.id for model in server.models)
            announce(f"ready: {server.address} serves {names}. Stop with Ctrl-C.")
        _wait(server, announce)
    if server.error is not None:
        raise server.error
    _sum_up(server, announce)
    return 0


def load_upscaler(settings: ServerSettings) -> Upscaler:
    """The model that the settings name; of several the first.

    Raises
    ------
    ConfigError
        When torch, which the model needs, is not installed.
    ModelError
        When the model is missing, damaged, or fails its own check.
    """
    model = settings.models[0]
    if model in STAND_INS:
        scale, frames = STAND_INS[model]
        return Bilinear(scale, frames=frames, max_pixels=settings.max_pixels)
    try:
        from live_sr.model.engine import load_engine
    except ModuleNotFoundError as e:
        if e.name != "torch":
            raise
        raise ConfigError(
            f"model {model} needs torch, which is not installed: pip install 'live-sr[serve]', "
            "or try the link with --model bilinear-x4"
        ) from e
    return load_engine(
        model,
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
        max_pixels=settings.max_pixels,
    )


def _introduce(server: Server, settings: ServerSettings, announce: Callable[[str], None]) -> None:
    announce(f"live-sr {__version__} server at {server.address}")
    for model in server.models:
        announce(
            f"model {model.id} (sha256 {model.sha256[:12]}), {model.scale} times finer along y and x, "
            f"{model.precision} on {model.device}"
        )
        if model.look_ahead:
            announce(
                f"it sees {model.frames} frames at once, along {model.neighbours}: a frame comes out when the "
                f"{model.look_ahead} after it are in"
            )
    if len(server.models) > 1:
        announce(f"{server.model.id} restores frames that ask for no model")
    largest = max(model.max_pixels for model in server.models)
    announce(f"frames up to {largest} pixels; {settings.mailbox_mb} MB may wait")


def _wait(server: Server, announce: Callable[[str], None]) -> None:
    told = False
    while not server.wait_stopped(LOOK_S):
        if server.state == "stopping" and not told:
            announce("stopping: the frame being computed is finished first; Ctrl-C again ends at once")
            told = True


def _sum_up(server: Server, announce: Callable[[str], None]) -> None:
    stats = server.stats
    refused = ", ".join(f"{code} {n}" for code, n in stats.refused.items() if n) or "none"
    by_model = ", ".join(f"{name} {model.frames}" for name, model in stats.models.items())
    served = f"{stats.frames} frames served{f' ({by_model})' if len(stats.models) > 1 else ''}"
    announce(f"stopped: {served}; refused: {refused}")


@contextlib.contextmanager
def _signals_call(stop: Callable[[], None]) -> Iterator[None]:
    """While entered, the first stop signal calls `stop`; a second one ends the process at once."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop()
        for each in former:
            signal.signal(each, signal.SIG_DFL)

    numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
    former = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
