"""Models in and out: what kind of file it is, and who reads or writes that kind.

Formats: bioimage.io packages (:mod:`live_sr.model.package`), plain TorchScript with a sidecar
(:mod:`live_sr.model.foreign`), and, out only, ``torch.export`` and ONNX.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch.export import Dim, ExportedProgram

from live_sr.config import load as load_settings
from live_sr.errors import InputError, ModelError
from live_sr.model import artifact
from live_sr.model.artifact import METADATA, Artifact
from live_sr.model.foreign import (
    GreyLevels,
    Sidecar,
    adopt,
    check,
    decode_record,
    install,
    read_torchscript,
    try_out,
)
from live_sr.model.unet import NetworkSettings, SuperResolver

PACKAGES = (".zip", ".yaml", ".yml")
FORMATS = (".zip", ".pt2", ".onnx")
LARGEST_EDGE = 16384  # raw pixels along a side that an exported graph is promised for
OURS = ("The live-sr developers",)  # authors of the shipped models


class Entry(NamedTuple):
    """One line of the list; `problem` says why a file there cannot be used."""

    name: str
    origin: str
    model: Artifact | None
    problem: str = ""


def list_models() -> list[Entry]:
    """The shipped models and those in the user's folder."""
    entries = []
    for origin, names in (("shipped", artifact.shipped()), ("yours", artifact.imported())):
        for name in names:
            try:
                entries.append(Entry(name, origin, artifact.load(name)))
            except ModelError as e:  # one bad file must not hide the others
                entries.append(Entry(name, origin, None, str(e)))
    return entries


def card(model: Artifact) -> str:
    """The model card beside the file; empty when there is none."""
    return _card(model.path)


def _card(model: Path) -> str:
    path = model.with_suffix(".md")
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def import_model(source: Path, *, sidecar: Path | None = None, name: str = "") -> Path:
    """Take a model from elsewhere into the user's folder; return its file there.

    Parameters
    ----------
    source : Path
        A bioimage.io package (zip, folder or its yaml), a model file of live-sr's own, or another TorchScript
        file.
    sidecar : Path, optional
        TOML settings of a TorchScript file, see :class:`~live_sr.model.foreign.Sidecar`.
    name : str
        Its id here; by default what the package or sidecar says.

    Raises
    ------
    ModelError
        When it is damaged or hostile, cannot be run here, fails its own test, or its id is taken.
    ConfigError
        When the sidecar is wrong.
    """
    if not source.exists():
        raise ModelError(f"there is no {source}: give a package, or a TorchScript file")
    if source.is_dir() or source.suffix.lower() in PACKAGES:
        if sidecar is not None:
            raise InputError(f"{source} describes itself: leave --sidecar out")
        from live_sr.model.package import read_package  # needs the extra `exchange`; a sidecar does not

        module, record, text = read_package(source, name)
        return install(module, record, card=text)
    data = source.read_bytes()
    network, own = read_torchscript(data, str(source))
    if own:
        if sidecar is not None:
            raise InputError(f"{source} describes itself: leave --sidecar out")
        record = decode_record(own, str(source))
        renamed = bool(name) and name != record.id
        record = msgspec.structs.replace(record, id=name or record.id)
        check(record, str(source))
        try_out(network, record.scale, str(source), frames=record.frames)
        return install(network, record, card=_card(source), file=None if renamed else data)
    if sidecar is None:
        raise InputError(
            f"{source} does not say what it is: describe it in a TOML file and give that as --sidecar"
        )
    settings = load_settings(sidecar, Sidecar)
    module, record = adopt(
        network,
        msgspec.structs.replace(settings, id=name or settings.id),
        where=str(source),
        training={"file": source.name},
    )
    return install(module, record)


def export_model(name: str, out: Path, *, authors: Sequence[str] = ()) -> None:
    """Write a model for other programs: ``.zip`` bioimage.io package, ``.pt2`` torch.export, ``.onnx`` ONNX.

    All of them take grey levels as (B, 1, Y, X) float32 and give grey levels, neither rounded nor clipped. A
    ``.pt2`` or ``.onnx`` takes sides that are multiples of the network's coarsest pixel.

    Raises
    ------
    ModelError
        When the model cannot be written in that format, or what was written does not give the same pixels.
    InputError
        When `out` is of no known format.
    """
    kind = out.suffix.lower()
    if kind not in FORMATS:
        raise InputError(f"{out} is of no known format: end it with one of {', '.join(FORMATS)}")
    model = artifact.load(name)
    frames = model.record.frames
    if frames > 1:
        raise ModelError(
            f"{model.record.id} takes {frames} frames at once: only one-frame models can be exported"
        )
    if kind == ".zip":
        from live_sr.model.package import write_package

        made = authors or (OURS if model.record.id in artifact.shipped() else ())
        write_package(model, out, card=card(model), authors=made)
        return
    program = trace(model)
    partial = out.with_name(f".{out.stem}.part{kind}")
    try:
        if kind == ".pt2":
            record = msgspec.json.encode(model.record).decode()
            torch.export.save(program, partial, extra_files={METADATA: record})
        else:
            _save_onnx(program, model, partial)
        partial.replace(out)
    except OSError as e:
        raise ModelError(f"cannot write {out} ({e.strerror})") from e
    finally:
        partial.unlink(missing_ok=True)


def trace(model: Artifact) -> ExportedProgram:
    """The model as a graph of torch's own operators, rebuilt from its record and weights.

    Raises
    ------
    ModelError
        When it is not one of our networks, or the graph does not give the same pixels.
    """
    record = model.record
    if not record.widths:
        raise ModelError(
            f"{record.id} is a network from elsewhere, known as TorchScript only: export it as a .zip"
        )
    network = SuperResolver(NetworkSettings(scale=record.scale, widths=record.widths))
    network.load_state_dict(model.module.state_dict())
    m = record.multiple
    batch = Dim("batch", min=1, max=64)
    y, x = (m * Dim(f"{name}_blocks", min=2, max=LARGEST_EDGE // m) for name in "yx")
    # Two frames of unequal sides: torch would take a size of 1, or one size twice, for a constant.
    example = torch.linspace(0, 255, 2 * 8 * m * 12 * m).reshape(2, 1, 8 * m, 12 * m)
    program = torch.export.export(
        GreyLevels(network, record).eval(), (example,), dynamic_shapes=({0: batch, 2: y, 3: x},)
    )
    other = (example[:1, :, : 6 * m, : 5 * m] * 7).sin() * 40 + 120
    with torch.inference_mode():
        wanted = torch.as_tensor(GreyLevels(model.module, record)(other))
        off = float((program.module()(other) - wanted).abs().max())
    if not off < 0.01:  # grey levels: a fiftieth of what rounding to whole ones does
        raise ModelError(
            f"the graph of {record.id} differs from the model by {off:.3g} grey levels: it was not written"
        )
    return program


def _save_onnx(program: ExportedProgram, model: Artifact, path: Path) -> None:
    import onnx
    import onnxscript  # noqa: F401  torch asks for it in the middle of its work

    # Of the four lines that it says about operators of another package, none concerns us.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torch's exporter calls a function of its own that torch deprecates.
        warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec", category=FutureWarning)
        made: Any = torch.onnx.export(
            program, (), dynamo=True, verbose=False, input_names=["raw"], output_names=["restored"]
        )
    made.model.metadata_props[METADATA] = msgspec.json.encode(model.record).decode()
    made.save(path)
    onnx.checker.check_model(path)
