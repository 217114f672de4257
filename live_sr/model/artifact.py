"""One file per model: the TorchScript network and, inside it, everything that must be known to use it.

Writes, finds and checks model files. Runs no frame and chooses no precision (see :mod:`live_sr.model.engine`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import nn

from live_sr.errors import ModelError
from live_sr.neighbours import FrameCount, Neighbours

WEIGHTS = Path(__file__).parent / "weights"
METADATA = "live_sr.json"  # name of the record inside the model file
SUFFIX = ".pt"
Normalisation = Literal["frame-mean-std", "unit-range", "linear"]


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a model file says about itself.

    Attributes
    ----------
    id : str
        Name by which clients ask for it, for example ``em-x4``.
    scale : int
        Output pixels per raw pixel along y and x.
    normalisation : str
        What the network sees, and gives back. ``frame-mean-std``: ``(raw - mean) / max(std, 1)`` of the whole
        raw frame, its neighbours shifted and scaled likewise; ``unit-range``: ``raw`` over the largest value of
        its type; ``linear``: ``gain * raw + offset``.
    gain, offset : float
        Of ``linear``; grey levels of the raw frame to the network's unit.
    halo : int
        Raw pixels a tile needs around it to equal the whole frame; a multiple of `multiple`.
    multiple : int
        Tiles start at multiples of it, in raw pixels.
    parameters : int
    kmac_per_output_pixel : float
        Thousand multiply-accumulates per output pixel.
    pixel_size_um : (float, float) or None
        Raw pixel sizes it was trained for, micrometres.
    widths : tuple of int
        Channels per level: with `scale`, `frames` and `holes`, all that is needed to build the network again.
        Empty for a network from elsewhere, which only its own file can build.
    frames : {1, 3, 5}
        Frames that it sees at once, of which it restores the middle one.
    neighbours : {"t", "z", "t or z"}
        What it was trained on: time points, adjacent sections, or both.
    holes : bool
        Whether it takes a mask of missing pixels beside the frames, and fills them from the neighbours.
    attribution : list of str
        Whose data the weights were trained on; must be passed on with the file.
    training : dict
        Settings, steps, wall time, seed, commit, data files with SHA-256, validation result.
    """

    id: str
    scale: int
    normalisation: Normalisation
    halo: int
    multiple: int
    parameters: int
    kmac_per_output_pixel: float
    widths: tuple[int, ...]
    gain: float = 1.0
    offset: float = 0.0
    frames: FrameCount = 1
    neighbours: Neighbours = "t or z"
    holes: bool = False
    pixel_size_um: tuple[float, float] | None = None
    attribution: list[str] = []
    licence: str = ""
    training: dict[str, Any] = {}
    live_sr_version: str = ""
    created: str = ""


@dataclass(frozen=True)
class Artifact:
    """A loaded model file.

    Attributes
    ----------
    module : torch.jit.ScriptModule
        :class:`live_sr.model.unet.SuperResolver`, or :class:`live_sr.model.foreign.Foreign` around a network
        from elsewhere; float32, on the CPU, in evaluation mode.
    sha256 : str
        Of the whole file.
    """

    module: torch.jit.ScriptModule
    record: ModelRecord
    sha256: str
    path: Path


@contextlib.contextmanager
def torchscript() -> Iterator[None]:
    """Use ``torch.jit`` without its deprecation notices.

    TorchScript is the contract for model files: it needs neither this package's classes nor a compiler to run,
    and every viewer and server of the field reads it. torch 2.13 marks ``torch.jit`` as deprecated on each
    call; those messages, and no others, are kept from the operator here.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning
        )
        yield


def save(network: nn.Module, record: ModelRecord, path: Path) -> None:
    """Script `network` and write it with its record as one file; an interrupted write leaves no file."""
    partial = path.with_name(path.name + ".part")
    with torchscript():
        scripted = torch.jit.script(network.eval())
        torch.jit.save(scripted, str(partial), _extra_files={METADATA: msgspec.json.encode(record)})
    partial.replace(path)


def load(name_or_path: str | Path) -> Artifact:
    """Load a shipped or imported model by name, or any model file by path.

    Raises
    ------
    ModelError
        When there is no such model, the file is damaged, or it carries no usable record.
    """
    path = find(name_or_path)
    extra = {METADATA: b""}
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        with torchscript():
            module = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location="cpu", _extra_files=extra
            )
    except (RuntimeError, OSError, ValueError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ModelError(f"{path} is not a readable TorchScript file ({reason}): copy or train it again") from e
    if not extra[METADATA]:
        raise ModelError(
            f"{path} is a TorchScript file without a live-sr record: use a file that `live-sr train` wrote"
        )
    try:
        record = msgspec.json.decode(extra[METADATA], type=ModelRecord)
    except msgspec.MsgspecError as e:
        raise ModelError(
            f"{path} has a record this live-sr cannot use ({e}): update live-sr or the model"
        ) from e
    return Artifact(module.eval(), record, sha256, path)


def find(name_or_path: str | Path) -> Path:
    """The file of a shipped or imported model's name, or the path itself.

    Raises
    ------
    ModelError
        When there is none, naming the models that there are.
    """
    for folder, names in ((WEIGHTS, shipped()), (user_folder(), imported())):
        if str(name_or_path) in names:
            return folder / f"{name_or_path}{SUFFIX}"
    path = Path(name_or_path)
    if path.is_file():
        return path
    known = ", ".join(shipped()) or "none"
    own = f" or imported models ({', '.join(imported())})" if imported() else ""
    raise ModelError(
        f"no model {str(name_or_path)!r}: give a file, or one of the shipped models ({known}){own}"
    )


def shipped() -> list[str]:
    """Names of the models that come with this package."""
    return sorted(p.stem for p in WEIGHTS.glob(f"*{SUFFIX}"))


def imported() -> list[str]:
    """Names of the models in the user's folder."""
    return sorted(p.stem for p in user_folder().glob(f"*{SUFFIX}"))


def user_folder() -> Path:
    """Where imported models live: ``LIVE_SR_MODELS``, or where this platform keeps a program's data."""
    if own := os.environ.get("LIVE_SR_MODELS"):
        return Path(own)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "live-sr" / "models"
