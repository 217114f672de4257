"""Chooses the arithmetic of the network's trunk: the fastest that agrees with float32, the same at every load.

The choice is remembered per model, processor, torch and thread count, because two loads that chose differently
would restore the same frame to slightly different pixels. Knows no frame of the user's and no tile.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import msgspec
import numpy as np
import torch
from torch import Tensor

from live_sr.errors import InputError, ModelError
from live_sr.model.artifact import torchscript

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

MAX_RMS = 0.02
"""Root mean square difference from float32, in standard deviations of the test frame's noise: added to it, the
noise's variance rises by 0.04 %, which no measurement on one frame can tell."""

MAX_DIFFERENCE = 0.25
"""Largest difference of a single pixel, same unit: a quarter of what the noise does to every pixel."""

MAX_TIME = 0.8
"""A reduced precision must save a fifth of float32's time to be worth its rounding. Processors with matrix
units for it need a third of the time, those without need as much or more: neither is near this limit."""

ROUNDS = 3  # the fastest counts, candidates in turn: other programs only ever add time, to all of them alike
CHECKED_EDGE = 96  # raw pixels: more than twice a network's reach, and a second of loading on two cores
TIMED_EDGE = {"cpu": CHECKED_EDGE, "cuda": 1024}  # a GPU must be filled before precisions differ
NOISE = 0.4  # of the test frame's own standard deviation: a low-dose frame in which one can just work
RULE = 1  # raise when the candidates or limits change: what an older rule chose is then forgotten


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a network's output lies from float32, in standard deviations of the test frame's noise."""

    rms: float
    largest: float

    @property
    def agrees(self) -> bool:
        """Whether it is within :data:`MAX_RMS` and :data:`MAX_DIFFERENCE`; NaN never is."""
        return self.rms <= MAX_RMS and self.largest <= MAX_DIFFERENCE


def choose(
    module: torch.jit.ScriptModule,
    *,
    sha256: str,
    device: torch.device,
    wanted: str,
    frames: int = 1,
    holes: bool = False,
) -> tuple[torch.jit.ScriptModule, Precision]:
    """Make `module` ready to compute, in the precision `wanted` or, for "auto", in the best one.

    Parameters
    ----------
    module : torch.jit.ScriptModule
        float32, on the CPU, with a ``body`` that may be cast; stays as it is.
    sha256 : str
        Of the model file: a choice is remembered for this file only.
    wanted : {"auto", "float32", "bfloat16", "float16"}
        A named precision is taken, however far from float32, as long as its output is finite.
    frames : int
        That the network sees at once.
    holes : bool
        Whether it takes a mask beside them.

    Raises
    ------
    InputError
        When `wanted` is none of these.
    ModelError
        When the network's output on this device is not finite, or float32 itself differs from the CPU's.
    """
    if wanted == "auto":
        candidates = _candidates(device)
    elif wanted in PRECISIONS:
        candidates = (wanted,)
    else:
        raise InputError(f"precision must be auto or one of {', '.join(PRECISIONS)}, not {wanted!r}")
    with torch.inference_mode():
        frame = low_dose_frame(CHECKED_EDGE, frames, holes)
        expected = run(module, frame)
    if not bool(expected.isfinite().all()):
        raise ModelError("the model gives values that are not finite in float32: its weights are damaged")

    remembered = _recall(_key(sha256, device)) if len(candidates) > 1 else None
    if remembered in candidates:
        candidates = (remembered, *(p for p in candidates if p != remembered))
    ready: dict[Precision, torch.jit.ScriptModule] = {}
    for precision in candidates:
        network = prepare(module, precision, device)
        found = difference(network, device, frame, expected)
        if len(candidates) == 1 and not math.isfinite(found.largest):
            raise ModelError(f"the model gives values that are not finite in {precision}: use precision auto")
        if len(candidates) == 1 or (found.agrees and precision == remembered):
            return network, precision
        if found.agrees:
            ready[precision] = network
    if "float32" not in ready:
        raise ModelError(
            f"the model's float32 output on {device} differs from the CPU's: check its driver, or use the CPU"
        )
    precision = _fastest(ready, device, frames, holes)
    _remember(_key(sha256, device), precision)
    return ready[precision], precision


def prepare(
    module: torch.jit.ScriptModule, precision: Precision, device: torch.device
) -> torch.jit.ScriptModule:
    """Copy, cast the trunk, move, order the channels last and freeze.

    ``torch.jit.optimize_for_inference`` is left out: once the channels are last it gained nothing.
    """
    with torch.no_grad():
        network = copy.deepcopy(module)
        network.body.to(getattr(torch, precision))
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # in the docs
    with torchscript():
        frozen: torch.jit.ScriptModule = torch.jit.freeze(network.eval())
    return frozen


def run(network: torch.jit.ScriptModule, x: Tensor) -> Tensor:
    """Compute (B, channels, Y, X) to (B, 1, sY, sX) the same way at every call.

    The executor's own optimiser is off: it would specialise on the shapes of the first calls, and so round the
    first frames of a run differently from later ones.
    """
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        return cast("Tensor", network(x))


def difference(
    network: torch.jit.ScriptModule, device: torch.device, frame: Tensor, expected: Tensor
) -> Difference:
    """Compare `network` on `device` with what float32 on the CPU gave, inside the frame and at its edges."""
    with torch.inference_mode():
        try:
            off = (run(network, frame.to(device)).cpu() - expected) / NOISE
        except RuntimeError:  # no such kernel on this device
            return Difference(math.inf, math.inf)
    return Difference(float(off.square().mean().sqrt()), float(off.abs().max()))


@functools.cache
def low_dose_frame(edge: int, frames: int = 1, holes: bool = False) -> Tensor:
    """Low-dose frame that is always the same: membranes, discs and noise, (1, frames, edge, edge) float32.

    Normalised: mean 0, standard deviation 1, of which :data:`NOISE` is noise, in each frame another. With
    `holes` one more channel is the mask of a missing square.
    """
    rng = np.random.default_rng(edge)
    y, x = np.mgrid[:edge, :edge].astype(np.float64)
    scene = np.ones((edge, edge))
    for _ in range(12):
        cy, cx, radius = rng.uniform(0, edge), rng.uniform(0, edge), rng.uniform(edge / 20, edge / 6)
        from_edge = np.hypot(y - cy, x - cx) - radius
        scene[from_edge < 0] = rng.uniform(0.3, 1.2)
        scene[np.abs(from_edge) < 1.2] = 0.0
    scene = (scene - scene.mean()) / scene.std() * math.sqrt(1 - NOISE**2)
    noisy = scene + rng.normal(0, NOISE, (frames, *scene.shape))
    noisy = (noisy - noisy.mean()) / noisy.std()
    if holes:
        mask = np.zeros((1, edge, edge))
        mask[:, edge // 3 : edge // 2, edge // 3 : edge // 2] = 1
        noisy = np.concatenate([noisy, mask])
    return torch.from_numpy(noisy.astype(np.float32))[None]


def _candidates(device: torch.device) -> tuple[Precision, ...]:
    """In order of preference among equally fast ones; float16 rounds eight times finer than bfloat16."""
    return ("float16", "bfloat16", "float32") if device.type == "cuda" else ("bfloat16", "float32")


def _fastest(
    ready: dict[Precision, torch.jit.ScriptModule], device: torch.device, frames: int, holes: bool
) -> Precision:
    """The first candidate that is clearly faster than float32, or float32."""
    if len(ready) == 1:
        return "float32"
    frame = low_dose_frame(TIMED_EDGE[device.type], frames, holes).to(device)
    seconds = dict.fromkeys(ready, math.inf)
    with torch.inference_mode():
        for network in ready.values():
            run(network, frame)
        for _ in range(ROUNDS):
            for precision, network in ready.items():
                seconds[precision] = min(seconds[precision], _time(network, frame))
    return next((p for p in ready if seconds[p] <= MAX_TIME * seconds["float32"]), "float32")


def _time(network: torch.jit.ScriptModule, frame: Tensor) -> float:
    if frame.is_cuda:
        torch.cuda.synchronize(frame.device)
    started = time.perf_counter()
    run(network, frame)
    if frame.is_cuda:
        torch.cuda.synchronize(frame.device)
    return time.perf_counter() - started


# ------------------------------------------------------------------------------------ remembering


class _Choice(msgspec.Struct, frozen=True):
    """What is kept on disk: the key is there for people."""

    precision: Precision
    key: list[str]


def _key(sha256: str, device: torch.device) -> list[str]:
    """All that may change which precision is the fastest."""
    unit = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return [f"rule {RULE}", sha256, str(torch.__version__), unit, f"{torch.get_num_threads()} threads"]


@functools.cache
def _processor() -> str:
    """Name and instruction set. Virtual machines hide the model, so the name alone does not tell."""
    flags = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass  # not Linux: the name below tells more there
    digest = hashlib.sha256(flags.encode()).hexdigest()[:12]
    return f"{platform.machine()} {platform.processor()} {torch.backends.cpu.get_cpu_capability()} {digest}"


def _recall(key: list[str]) -> Precision | None:
    try:
        return msgspec.json.decode(_file(key).read_bytes(), type=_Choice).precision
    except (OSError, msgspec.MsgspecError):
        return None  # nothing there, or not readable: choose again


def _remember(key: list[str], precision: Precision) -> None:
    file = _file(key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as partial:
            partial.write(msgspec.json.encode(_Choice(precision, key)))
        Path(partial.name).replace(file)
    except OSError:
        return  # a read-only home: the choice is made again at the next load


def _file(key: list[str]) -> Path:
    return _cache_folder() / f"precision-{hashlib.sha256('|'.join(key).encode()).hexdigest()[:24]}.json"


def _cache_folder() -> Path:
    """Where this platform keeps what a program may lose."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "live-sr"
