"""Networks across the border: one from elsewhere made to fit our engine, ours made to fit everyone else.

Takes TorchScript and nothing else, because pickled weights and source files run whatever their author wrote. A
TorchScript file is a program too, but of a small language; the few words of it that reach files are refused
before it is loaded. Knows no package format (see :mod:`live_sr.model.package`).
"""

from __future__ import annotations

import io
import math
import re
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import cast

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from live_sr import __version__
from live_sr.config import Settings
from live_sr.errors import ModelError
from live_sr.model import artifact
from live_sr.model.artifact import METADATA, SUFFIX, ModelRecord, Normalisation, torchscript
from live_sr.model.precision import CHECKED_EDGE, low_dose_frame
from live_sr.model.tiling import CORE

MAX_UNPACKED = 2 << 30  # bytes; the largest published restoration networks take some 300 MB
MAX_ENTRIES = 10_000  # files; a TorchScript archive holds one for each weight
MAX_SCALE = 16  # beyond it a frame's result no longer fits a message

IDS = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""What a model may be called: it becomes a file's name."""

REACHES_OUT = re.compile(
    rb"\b(?:save|from_file)\b"  # aten::save and aten::from_file, under whatever name they are called
    rb"|\bgetattr\s*\([^)]*\\"  # a spelling that hides a name behind escapes
    rb"|\bops\.(?!aten\.|prim\.)\w+"  # operators of other libraries: nothing is known of what they do
)


class Sidecar(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a plain TorchScript network does not say about itself; one TOML file beside it.

    Attributes
    ----------
    id : str
        Name by which clients will ask for it: lower case, digits, ``.``, ``_`` and ``-``.
    scale : int
        Output pixels per raw pixel along y and x.
    normalisation : {"frame-mean-std", "unit-range", "linear"}
        What the network takes and gives back, see :class:`~live_sr.model.artifact.ModelRecord`.
    gain, offset : float
        Of ``linear``: the network sees ``gain * raw + offset``. ``x / 128 - 1`` is 0.0078125 and -1.
    halo : int
        Raw pixels around a tile that its result depends on: half the network's receptive field.
    multiple : int
        The network takes frames whose sides are multiples of it; others are padded. 2 ** (number of poolings).
    least : int
        Smallest side that the network takes, in raw pixels; smaller frames are padded.
    attribution : list of str
        Whose network and data it is; passed on with the model.
    licence : str
    pixel_size_um : (float, float) or None
        Raw pixel sizes it was trained for, micrometres.
    """

    id: str
    scale: int
    normalisation: Normalisation
    halo: int
    attribution: list[str]
    licence: str
    multiple: int = 1
    least: int = 1
    gain: float = 1.0
    offset: float = 0.0
    pixel_size_um: tuple[float, float] | None = None


class Body(nn.Module):
    """A network from elsewhere, fed in whatever precision it was cast to."""

    def __init__(self, network: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.network = network
        self.like = nn.Buffer(torch.zeros(()))  # cast with the weights, whatever their names

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, Y, X) of a size that the network takes, to (B, 1, sY, sX)."""
        out: Tensor = self.network(x.to(self.like.dtype))
        return out


class Foreign(nn.Module):
    """Takes frames of any size to a network that takes only some, and may be cast as ours may.

    Attributes
    ----------
    body : Body
        May be cast on its own; what goes in and comes out stays float32.
    scale, multiple, least : int
        Enlargement; sides are padded to multiples of `multiple` and to at least `least` raw pixels.
    """

    def __init__(self, network: torch.jit.ScriptModule, *, scale: int, multiple: int, least: int) -> None:
        super().__init__()
        self.scale, self.multiple = scale, multiple
        self.least = -(-least // multiple) * multiple
        self.body = Body(network)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, Y, X) float32, in the network's unit, to (B, 1, scale * Y, scale * X) float32."""
        y, x_ = x.shape[-2], x.shape[-1]
        below = max(y + -y % self.multiple, self.least) - y
        right = max(x_ + -x_ % self.multiple, self.least) - x_
        out: Tensor = self.body(F.pad(x, [0, right, 0, below], mode="replicate")).float()
        return out[..., : self.scale * y, : self.scale * x_]


class GreyLevels(nn.Module):
    """A model as others run it: grey levels in, grey levels out, with the normalisation inside.

    Attributes
    ----------
    network : torch.jit.ScriptModule or nn.Module
        Of a model file; normalised to normalised.
    by_frame : bool
        Each frame of the batch is normalised by its own mean and standard deviation.
    zero, unit : float
        Otherwise, the grey level that the network sees as 0, and how many it sees as 1.
    """

    def __init__(self, network: nn.Module, record: ModelRecord) -> None:
        super().__init__()
        self.network = network
        self.by_frame = record.normalisation == "frame-mean-std"
        linear = record.normalisation == "linear"  # unit-range stays in 0 ... 1: floats have no largest value
        self.zero = -record.offset / record.gain if linear else 0.0
        self.unit = 1 / record.gain if linear else 1.0

    def forward(self, raw: Tensor) -> Tensor:
        """(B, 1, Y, X) float32 to (B, 1, scale * Y, scale * X) float32, not rounded and not clipped."""
        if self.by_frame:
            zero = raw.mean(dim=[1, 2, 3], keepdim=True)
            away = raw - zero
            unit = away.square().mean(dim=[1, 2, 3], keepdim=True).sqrt()
            unit = unit.clamp(min=1e-6)  # a constant frame divides by it
        else:
            zero = torch.full_like(raw[:, :1, :1, :1], self.zero)
            unit = torch.full_like(zero, self.unit)
            away = raw - zero
        out: Tensor = self.network(away / unit) * unit + zero
        return out


def read_torchscript(data: bytes, where: str) -> tuple[torch.jit.ScriptModule, bytes]:
    """Load a TorchScript archive from memory, and the live-sr record inside it, if there is one.

    Parameters
    ----------
    data : bytes
        The whole file.
    where : str
        Its name, for messages.

    Raises
    ------
    ModelError
        When it is no TorchScript, holds pickled weights instead, or names operators that reach files.
    """
    if data[:1] == b"\x80":
        raise _pickled(where)
    with open_zip(io.BytesIO(data), where) as archive:
        names = archive.namelist()
        if not any(name.endswith("/constants.pkl") for name in names):
            if any(name.endswith("/data.pkl") for name in names):
                raise _pickled(where)
            raise ModelError(
                f"{where} is a zip file without a TorchScript network: write it with torch.jit.save"
            )
        for name in names:
            found = REACHES_OUT.search(read_entry(archive, name, where)) if name.endswith(".py") else None
            if found:
                word = found[0].decode(errors="replace")
                raise ModelError(
                    f"{where} is refused: its program says {word!r}, which may reach files or other libraries; "
                    "export the network again from plain torch layers"
                )
    extra = {METADATA: b""}
    try:
        with torchscript():
            module = torch.jit.load(  # type: ignore[no-untyped-call]
                io.BytesIO(data), map_location="cpu", _extra_files=extra
            )
    except (RuntimeError, ValueError) as e:
        raise ModelError(
            f"{where} is not a readable TorchScript file ({_last_line(e)}): export it again"
        ) from e
    return module.eval(), extra[METADATA]


def decode_record(data: bytes, where: str) -> ModelRecord:
    """The live-sr record of a TorchScript file.

    Raises
    ------
    ModelError
        When this version cannot use it.
    """
    try:
        return msgspec.json.decode(data, type=ModelRecord)
    except msgspec.MsgspecError as e:
        raise ModelError(
            f"{where} has a record this live-sr cannot use ({e}): update live-sr or the model"
        ) from e


def open_zip(file: Path | io.BytesIO, where: str) -> zipfile.ZipFile:
    """Open a zip file whose table of contents is harmless; nothing is unpacked.

    Raises
    ------
    ModelError
        When it is damaged, has paths that lead out of it, links, encrypted parts, or unpacks to absurd sizes.
    """
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, NotImplementedError) as e:
        raise ModelError(f"{where} is not a readable zip file ({e}): copy or download it again") from e
    entries = archive.infolist()
    problem = next((p for p in map(_problem, entries) if p), "")
    if len(entries) > MAX_ENTRIES:
        problem = f"holds {len(entries)} files, more than {MAX_ENTRIES}"
    if (size := sum(entry.file_size for entry in entries)) > MAX_UNPACKED:
        problem = f"would unpack to {size / 1e9:.1f} GB, more than {MAX_UNPACKED / 1e9:.1f} GB"
    if problem:
        archive.close()
        raise ModelError(f"{where} {problem}: it was not unpacked; get it from a source that you trust")
    return archive


def read_entry(archive: zipfile.ZipFile, name: str, where: str) -> bytes:
    """One file of an archive.

    Raises
    ------
    ModelError
        When it is not there, or damaged.
    """
    try:
        return archive.read(name)
    except KeyError:
        raise ModelError(f"{where} holds no file {name!r}: it is incomplete") from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError) as e:
        raise ModelError(f"{where} is damaged at {name!r} ({e}): download it again") from e


def adopt(
    network: torch.jit.ScriptModule, sidecar: Sidecar, *, where: str, training: dict[str, object]
) -> tuple[torch.jit.ScriptModule, ModelRecord]:
    """Fit a network to the engine, and try it on a frame.

    Parameters
    ----------
    network : torch.jit.ScriptModule
        float32, (B, 1, Y, X) to (B, 1, scale * Y, scale * X).
    training : dict
        Where it comes from, for the record.

    Raises
    ------
    ModelError
        When a value of the sidecar cannot be, or the network does not do what the sidecar says.
    """
    check(sidecar, where)
    try:
        with torchscript():
            module = torch.jit.script(
                Foreign(network, scale=sidecar.scale, multiple=sidecar.multiple, least=sidecar.least).eval()
            )
    except (RuntimeError, ValueError) as e:
        raise ModelError(
            f"{where} does not give one tensor for one tensor ({_last_line(e)}): export a network with one "
            "of each"
        ) from e
    record = ModelRecord(
        id=sidecar.id,
        scale=sidecar.scale,
        normalisation=sidecar.normalisation,
        gain=sidecar.gain,
        offset=sidecar.offset,
        halo=-(-sidecar.halo // sidecar.multiple) * sidecar.multiple,
        multiple=sidecar.multiple,
        parameters=sum(p.numel() for p in network.parameters()),
        kmac_per_output_pixel=try_out(module, sidecar.scale, where),
        widths=(),
        pixel_size_um=sidecar.pixel_size_um,
        attribution=sidecar.attribution,
        licence=sidecar.licence,
        training=training,
        live_sr_version=__version__,
    )
    return module, record


def try_out(module: torch.jit.ScriptModule, scale: int, where: str, *, frames: int = 1) -> float:
    """Run one frame; return the thousand multiply-accumulates per output pixel.

    Parameters
    ----------
    frames : int
        That the network sees at once.

    Raises
    ------
    ModelError
        When the network does not take one channel, gives another size, or values that are not finite.
    """
    frame = low_dose_frame(CHECKED_EDGE, frames)
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            out = cast("Tensor", module(frame))
    except RuntimeError as e:
        raise ModelError(
            f"{where} does not run on one single-channel frame ({_last_line(e)}): live-sr restores (Y, X) "
            "frames; a multiple or least size may be wrong too"
        ) from e
    wanted = (1, 1, scale * CHECKED_EDGE, scale * CHECKED_EDGE)
    if tuple(out.shape) != wanted:
        raise ModelError(
            f"{where} gives shape {tuple(out.shape)} for a frame of {CHECKED_EDGE} x {CHECKED_EDGE}, where "
            f"scale {scale} means {wanted}: correct the scale, or pad inside the network"
        )
    if not bool(out.isfinite().all()):
        raise ModelError(f"{where} gives values that are not finite: its weights are damaged")
    return float(counter.get_total_flops()) / 2 / out.numel() / 1e3  # two operations each


def check(sidecar: Sidecar | ModelRecord, where: str) -> None:
    """Refuse what cannot be.

    Raises
    ------
    ModelError
        Naming the value.
    """
    low, high = sidecar.pixel_size_um or (1.0, 1.0)
    linear = sidecar.normalisation == "linear"
    problems = (
        (IDS.fullmatch(sidecar.id) is None, f"id {sidecar.id!r} must be of lower-case letters, digits, . _ -"),
        (not 1 <= sidecar.scale <= MAX_SCALE, f"scale {sidecar.scale} must be 1 to {MAX_SCALE}"),
        (not 0 <= sidecar.halo <= CORE, f"halo {sidecar.halo} must be 0 to {CORE} raw pixels"),
        (not 1 <= sidecar.multiple <= CORE, f"multiple {sidecar.multiple} must be 1 to {CORE} raw pixels"),
        (not math.isfinite(sidecar.gain) or sidecar.gain == 0, f"gain {sidecar.gain} must be finite and not 0"),
        (not math.isfinite(sidecar.offset), f"offset {sidecar.offset} must be finite"),
        (not linear and sidecar.gain != 1.0, "gain belongs to normalisation 'linear'"),
        (not linear and sidecar.offset != 0.0, "offset belongs to normalisation 'linear'"),
        (not 0 < low <= high, f"pixel_size_um ({low}, {high}) must be a range above 0"),
    )
    for found, problem in problems:
        if found:
            raise ModelError(f"{where} cannot be used: {problem}")


def install(
    module: torch.jit.ScriptModule, record: ModelRecord, *, card: str = "", file: bytes | None = None
) -> Path:
    """Write a model into the user's folder, where its id finds it; return the file.

    Parameters
    ----------
    file : bytes, optional
        The model file, where there is one already: its hash is what volumes and servers know it by.

    Raises
    ------
    ModelError
        When there is a model of that id already, or the folder cannot be written.
    """
    if record.id in artifact.shipped() or record.id in artifact.imported():
        raise ModelError(
            f"there is a model {record.id!r} already ({artifact.find(record.id)}): give this one another --id"
        )
    path = artifact.user_folder() / f"{record.id}{SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if card:
            path.with_suffix(".md").write_text(card, encoding="utf-8")
        if file is None:
            artifact.save(module, record, path)
        else:
            partial = path.with_name(path.name + ".part")
            partial.write_bytes(file)
            partial.replace(path)
    except OSError as e:
        raise ModelError(f"cannot write {path} ({e.strerror}): set LIVE_SR_MODELS to a folder you own") from e
    return path


def _problem(entry: zipfile.ZipInfo) -> str:
    name = entry.filename.replace("\\", "/")
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        return f"holds a path that leads out of it ({entry.filename!r})"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return f"holds a link ({entry.filename!r})"
    if entry.flag_bits & 1:
        return f"holds an encrypted file ({entry.filename!r})"
    return ""


def _pickled(where: str) -> ModelError:
    return ModelError(
        f"{where} holds pickled weights, which run code when they are loaded: live-sr reads TorchScript only; "
        "export the network with torch.jit.save"
    )


def _last_line(e: Exception) -> str:
    """TorchScript puts its reason last, after a trace of its own."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return lines[-1] if lines else type(e).__name__
