"""bioimage.io model packages, spec 0.5: what they say about a network, and ours written as one.

Reads and writes the description, the test tensors and the processing around the network. Works offline: every
look-up that the spec library would make is switched off here. What a network itself may be is decided in
:mod:`live_sr.model.foreign`.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import imageio.v3 as iio
import msgspec
import numpy as np
import torch
from bioimageio.spec import InvalidDescr, ValidationContext, build_description, load_description
from bioimageio.spec.common import FileDescr, RelativeFilePath
from bioimageio.spec.model import v0_5
from numpy.typing import NDArray
from ruyaml import YAML
from ruyaml.error import YAMLError
from torch import nn

from live_sr.errors import ModelError
from live_sr.model.artifact import METADATA, Artifact, ModelRecord, torchscript
from live_sr.model.foreign import (
    GreyLevels,
    Sidecar,
    adopt,
    check,
    decode_record,
    open_zip,
    read_entry,
    read_torchscript,
    try_out,
)
from live_sr.model.precision import low_dose_frame

DESCRIPTIONS = ("rdf.yaml", "bioimageio.yaml")  # what a package's description may be called
MAX_DESCRIPTION = 1 << 20  # bytes of YAML; published ones have some 10 kB
AXES = ("batch", "channel", "space", "space")  # types of (B, 1, Y, X)
SMALLEST_CORE = 96  # raw pixels of the smallest tile that count, as its halo does not
OWN_SECTION = "## This package"  # what follows in the documentation is written anew at each export
COVER_EDGE = 384  # pixels along each half of the cover
TILE_STEP = 64  # raw pixels; a tile may be larger by any number of these
TEST_MEAN, TEST_SPREAD = 110.0, 35.0  # grey levels of the test frame: an 8-bit micrograph's

OFFLINE = ValidationContext(perform_io_checks=False, log_warnings=False, progressbar=False)
Read = Callable[[str], bytes]
Pixels = NDArray[np.float64]


class Processing(NamedTuple):
    """What happens to pixels around the network: `by_frame`, or else ``gain * raw + offset``.

    `undone` says that the package turns the network's output back into grey levels itself.
    """

    by_frame: bool
    gain: float
    offset: float
    undone: bool


# ------------------------------------------------------------------------------------------- reading


def read_package(source: Path, name: str = "") -> tuple[torch.jit.ScriptModule, ModelRecord, str]:
    """Read a package, run its test tensors, and fit its network to the engine.

    Parameters
    ----------
    source : Path
        A zip file, a folder, or the description (``rdf.yaml``) in a folder.
    name : str
        Id of the model here; by default the package's own id or name.

    Returns
    -------
    module, record, card
        For :func:`live_sr.model.foreign.install`; the card is the package's documentation.

    Raises
    ------
    ModelError
        When the package is damaged or hostile, holds no TorchScript network from one channel to one, or does
        not give its own test output.
    """
    with _opened(source) as (description, read):
        descr = _description(description, str(source))
        network, record = read_torchscript(_weights(descr, read, str(source)), f"{source}: the network")
        if record:  # ours: everything that was known about it is known again
            return _read_own(network, record, descr, read, str(source), name)
        sidecar, processing = _sidecar(descr, str(source), name)
        training: dict[str, object] = {"package": _origin(descr, source)}
        module, made = adopt(network, sidecar, where=str(source), training=training)
        _run_test(_with_processing(module, made, processing), descr, read, str(source))
        return module, made, _documentation(descr, read)


def _read_own(
    network: torch.jit.ScriptModule, data: bytes, descr: v0_5.ModelDescr, read: Read, where: str, name: str
) -> tuple[torch.jit.ScriptModule, ModelRecord, str]:
    record = decode_record(data, where)
    record = msgspec.structs.replace(record, id=name or record.id)
    check(record, where)
    inner = getattr(network, "network", None)
    if not isinstance(inner, torch.jit.ScriptModule) or not hasattr(inner, "body"):
        raise ModelError(f"{where} has a live-sr record, but no network of live-sr's: export it again")
    try_out(inner, record.scale, where)
    whole = GreyLevels(inner, record)
    _run_test(lambda raw: _call(whole, raw, where), descr, read, where)
    return inner, record, _documentation(descr, read).partition(OWN_SECTION)[0]


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[tuple[bytes, Read]]:
    """The description's bytes, and a function that reads one of the package's files."""
    if source.is_file() and source.suffix.lower() not in (".yaml", ".yml"):
        with open_zip(source, str(source)) as archive:

            def read(name: str) -> bytes:
                return read_entry(archive, name, str(source))

            yield read(_pick(archive.namelist(), source)), read
        return
    root = (source if source.is_dir() else source.parent).resolve()

    def read_file(name: str) -> bytes:
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise ModelError(f"{source} names {name!r}, which lies outside of it: it is not read")
        try:
            return path.read_bytes()
        except OSError as e:
            raise ModelError(f"{source}: cannot read {name!r} ({e.strerror})") from e

    name = _pick([p.name for p in root.iterdir()], source) if source.is_dir() else source.name
    yield read_file(name), read_file


def _pick(names: Sequence[str], source: Path) -> str:
    found = next((name for name in DESCRIPTIONS if name in names), None)
    if found is None:
        raise ModelError(f"{source} holds no {' or '.join(DESCRIPTIONS)}: it is not a bioimage.io package")
    return found


def _description(data: bytes, where: str) -> v0_5.ModelDescr:
    if len(data) > MAX_DESCRIPTION:
        raise ModelError(f"{where} has a description of {len(data)} bytes, more than {MAX_DESCRIPTION}")
    try:
        content = YAML(typ="safe").load(data.decode())
    except (YAMLError, UnicodeDecodeError, ValueError) as e:
        raise ModelError(f"{where} has a description that is no YAML ({str(e).splitlines()[0]})") from e
    if not isinstance(content, dict) or content.get("type") != "model":
        raise ModelError(f"{where} does not describe a model: give a bioimage.io package of type model")
    version = str(content.get("format_version"))
    if not version.startswith("0.5."):
        raise ModelError(
            f"{where} follows spec {version}, live-sr reads 0.5: convert it with `bioimageio update-format`"
        )
    if any(isinstance(t, dict) and t.get("output_of") for t in content.get("inputs") or ()):
        raise ModelError(f"{where} takes the output of another model: live-sr runs one model on raw frames")
    descr = build_description(content, context=OFFLINE)
    if isinstance(descr, InvalidDescr):
        raise ModelError(f"{where} is not valid: {(descr.get_reason() or 'no reason given').splitlines()[0]}")
    assert isinstance(descr, v0_5.ModelDescr)
    return descr


def _weights(descr: v0_5.ModelDescr, read: Read, where: str) -> bytes:
    entry = descr.weights.torchscript
    if entry is None:
        there = ", ".join(kind for kind, weights in descr.weights if weights is not None)
        raise ModelError(
            f"{where} has its weights as {there}: live-sr reads TorchScript only, because pickled weights and "
            "source files run code of their author; `bioimageio add-weights` converts them"
        )
    return _file(entry, read, where)


def _file(file: FileDescr, read: Read, where: str) -> bytes:
    if not isinstance(file.source, RelativeFilePath):
        raise ModelError(
            f"{where} names {file.source}, which is not in it: download the package as one zip file"
        )
    data = read(file.source.root.as_posix())
    if file.sha256 is not None and hashlib.sha256(data).hexdigest() != str(file.sha256):
        raise ModelError(f"{where}: {file.source.root} is not the file described (SHA-256): download it again")
    return data


def _sidecar(descr: v0_5.ModelDescr, where: str, name: str) -> tuple[Sidecar, Processing]:
    """What a sidecar would say, read from the description."""
    if len(descr.inputs) != 1 or len(descr.outputs) != 1:
        raise ModelError(
            f"{where} has {len(descr.inputs)} inputs and {len(descr.outputs)} outputs: live-sr runs networks "
            "from one frame to one frame"
        )
    source, target = descr.inputs[0], descr.outputs[0]
    for which, tensor in (("input", source), ("output", target)):
        types = tuple(axis.type for axis in tensor.axes)
        names = ", ".join(axis.id for axis in tensor.axes)
        if types != AXES:
            raise ModelError(f"{where} has an {which} of axes ({names}): live-sr runs (batch, channel, y, x)")
        if tensor.axes[1].size != 1:
            raise ModelError(
                f"{where} has an {which} of {tensor.axes[1].size} channels: live-sr restores single-channel "
                "frames; RGB and multi-channel models cannot be served"
            )
    scale, halo = _geometry(source, target, where)
    multiple, least = _sizes(source, where)
    processing = _processing(source, target, where)
    slug = re.sub(r"[^a-z0-9._-]+", "-", str(name or descr.id or descr.name).lower()).strip("-._")[:64]
    sidecar = Sidecar(
        id=slug,
        scale=scale,
        normalisation="frame-mean-std" if processing.by_frame else "linear",
        gain=processing.gain,
        offset=processing.offset,
        halo=halo,
        multiple=multiple,
        least=least,
        attribution=_attribution(descr),
        licence=str(descr.license) if isinstance(descr.license, str) else "see its documentation",
    )
    return sidecar, processing


def _geometry(source: v0_5.InputTensorDescr, target: v0_5.OutputTensorDescr, where: str) -> tuple[int, int]:
    """Scale, and halo in raw pixels."""
    scales, halos = set(), []
    for before, after in zip(source.axes[2:], target.axes[2:], strict=True):
        assert isinstance(before, v0_5.SpaceInputAxis)  # AXES was checked
        size = after.size
        if not isinstance(size, v0_5.SizeReference) or (size.tensor_id, size.axis_id) != (source.id, before.id):
            raise ModelError(f"{where}: output axis {after.id} does not refer to input axis {before.id}")
        if size.offset:
            raise ModelError(
                f"{where}: output axis {after.id} loses or gains {size.offset} pixels: live-sr runs networks "
                "that keep the frame's edges"
            )
        if not isinstance(after, v0_5.SpaceOutputAxisWithHalo):
            raise ModelError(
                f"{where}: output axis {after.id} states no halo, so nobody knows how to cut tiles: import its "
                "TorchScript file with a --sidecar that gives one"
            )
        scales.add(before.scale / after.scale)
        halos.append(math.ceil(after.halo * after.scale / before.scale))
    scale = scales.pop()
    if scales or scale < 1 or not math.isclose(scale, round(scale), rel_tol=1e-6):
        raise ModelError(
            f"{where} enlarges by {', '.join(f'{s:g}' for s in (scale, *scales))}: live-sr needs one whole "
            "factor of 1 or more along y and x"
        )
    return round(scale), max(halos)


def _sizes(source: v0_5.InputTensorDescr, where: str) -> tuple[int, int]:
    """What the sides of a frame must be multiples of, and their least."""
    sizes = [axis.size for axis in source.axes[2:]]
    if not all(isinstance(size, v0_5.ParameterizedSize) for size in sizes):
        raise ModelError(f"{where} takes frames of one size only: live-sr needs sides of min + n * step")
    parameterised = cast("list[v0_5.ParameterizedSize]", sizes)
    if any(size.min % size.step for size in parameterised):
        raise ModelError(
            f"{where} takes sides whose min is no multiple of their step: live-sr pads to multiples"
        )
    return math.lcm(*(s.step for s in parameterised)), max(s.min for s in parameterised)


def _processing(source: v0_5.InputTensorDescr, target: v0_5.OutputTensorDescr, where: str) -> Processing:
    gain, offset, by_frame = 1.0, 0.0, False
    for step in source.preprocessing:
        if isinstance(step, v0_5.ZeroMeanUnitVarianceDescr):
            axes = step.kwargs.axes
            if by_frame or (gain, offset) != (1.0, 0.0) or (axes is not None and not {"y", "x"} <= set(axes)):
                raise _odd_step(step.id, where)
            by_frame = True
        elif not by_frame or isinstance(step, v0_5.EnsureDtypeDescr):
            g, o = _affine(step, where)
            gain, offset = gain * g, offset * g + o
        else:
            raise _odd_step(step.id, where)
    back, added = 1.0, 0.0
    for after in target.postprocessing:
        g, o = _affine(after, where)
        back, added = back * g, added * g + o
    if (back, added) == (1.0, 0.0):
        return Processing(by_frame, gain, offset, undone=(gain, offset) == (1.0, 0.0) and not by_frame)
    if not by_frame and np.allclose((gain * back, gain * added), (1.0, -offset), rtol=1e-4, atol=1e-4):
        return Processing(by_frame, gain, offset, undone=True)
    raise ModelError(
        f"{where} ends with another scaling than it begins with: nobody could tell the camera's grey levels"
    )


def _affine(step: Any, where: str) -> tuple[float, float]:
    """Gain and offset of a step of processing."""
    match step:
        case v0_5.EnsureDtypeDescr():
            if not step.kwargs.dtype.startswith("float"):
                raise _odd_step(f"{step.id} {step.kwargs.dtype}", where)
            return 1.0, 0.0
        case v0_5.ScaleLinearDescr():
            gain, offset = np.ravel(step.kwargs.gain), np.ravel(step.kwargs.offset)
        case v0_5.FixedZeroMeanUnitVarianceDescr():
            std = np.ravel(step.kwargs.std)
            gain, offset = 1 / std, -np.ravel(step.kwargs.mean) / std
        case _:
            raise _odd_step(step.id, where)
    if len(gain) != 1 or len(offset) != 1:
        raise _odd_step(f"{step.id} of several channels", where)
    return float(gain[0]), float(offset[0])


def _odd_step(step: str, where: str) -> ModelError:
    return ModelError(
        f"{where} has a step of processing that live-sr cannot run on a live frame: {step}; it knows "
        "zero_mean_unit_variance over y and x, and scale_linear or fixed_zero_mean_unit_variance"
    )


def _attribution(descr: v0_5.ModelDescr) -> list[str]:
    people = ", ".join(author.name for author in descr.authors) or "unnamed authors"
    cited = [f"{entry.text} ({entry.doi or entry.url})" for entry in descr.cite]
    return [f"{descr.name}, bioimage.io model package by {people}", *cited]


def _origin(descr: v0_5.ModelDescr, source: Path) -> dict[str, object]:
    file = {"sha256": hashlib.sha256(source.read_bytes()).hexdigest()} if source.is_file() else {}
    return {
        "name": descr.name,
        "id": str(descr.id or ""),
        "version": str(descr.version or ""),
        "description": descr.description,
        "file": source.name,
        **file,
    }


def _documentation(descr: v0_5.ModelDescr, read: Read) -> str:
    file = descr.documentation
    if file is None or not isinstance(file.source, RelativeFilePath):
        return ""
    return read(file.source.root.as_posix()).decode("utf-8", errors="replace")


# ------------------------------------------------------------------------------------ the test tensors


def _with_processing(
    module: torch.jit.ScriptModule, record: ModelRecord, processing: Processing
) -> Callable[[Pixels], Pixels]:
    """The engine's arithmetic on float frames, up to the unit in which the package states its output."""

    def run(raw: Pixels) -> Pixels:
        if processing.by_frame:
            zero, unit = raw.mean((1, 2, 3), keepdims=True), raw.std((1, 2, 3), keepdims=True)
        else:
            zero, unit = np.float64(-record.offset / record.gain), np.float64(1 / record.gain)
        out = _call(module, (raw - zero) / unit, record.id)
        grey = out * unit + zero
        if abs(grey.mean() - raw.mean()) > raw.std():
            raise ModelError(
                f"{record.id} gives values around {grey.mean():.4g} for a frame around {raw.mean():.4g}: it is "
                "not a model that restores a frame's own grey levels"
            )
        return grey if processing.undone else out

    return run


def _call(module: nn.Module, x: Pixels, where: str) -> Pixels:
    try:
        with torch.inference_mode():
            out: Pixels = module(torch.from_numpy(x.astype(np.float32))).double().numpy()
    except RuntimeError as e:
        raise ModelError(f"{where} does not run on its own test input ({str(e).splitlines()[-1]})") from e
    return out


def _run_test(run: Callable[[Pixels], Pixels], descr: v0_5.ModelDescr, read: Read, where: str) -> None:
    """Compute the test output from the test input.

    Raises
    ------
    ModelError
        When there are none, or they differ by more than the package allows.
    """
    raw, expected = (_tensor(t.test_tensor, read, where) for t in (descr.inputs[0], descr.outputs[0]))
    got = run(raw)
    if got.shape != expected.shape:
        raise ModelError(
            f"{where} gives shape {got.shape} for its test input, its test output is {expected.shape}"
        )
    stated = descr.config.bioimageio.reproducibility_tolerance
    allowed = stated[0] if stated else v0_5.ReproducibilityTolerance()
    off = np.abs(got - expected)
    wrong = off > allowed.absolute_tolerance + allowed.relative_tolerance * np.abs(expected)
    if not off.max() < np.inf or wrong.mean() * 1e6 > allowed.mismatched_elements_per_million:
        raise ModelError(
            f"{where} does not give its own test output: {wrong.mean():.1%} of the pixels differ, by up to "
            f"{off.max():.4g} where the output spans {np.ptp(expected):.4g}; it was not imported"
        )


def _tensor(file: FileDescr | None, read: Read, where: str) -> Pixels:
    if file is None:
        raise ModelError(f"{where} brings no test tensors: there is nothing to check an import with")
    try:
        loaded = np.load(io.BytesIO(_file(file, read, where)), allow_pickle=False)
    except (ValueError, OSError, EOFError) as e:
        raise ModelError(f"{where} has a test tensor that is no .npy array of numbers ({e})") from e
    if loaded.ndim != 4 or loaded.dtype.kind not in "uif" or not loaded.size:
        raise ModelError(
            f"{where} has a test tensor of shape {loaded.shape}, {loaded.dtype}: expected (B, 1, Y, X)"
        )
    return np.asarray(loaded, np.float64)


# ------------------------------------------------------------------------------------------- writing


def write_package(model: Artifact, out: Path, *, card: str = "", authors: Sequence[str] = ()) -> None:
    """Write a model as a bioimage.io package, validate it, and let bioimageio.core run its test.

    The weights take and give grey levels: the normalisation is inside. The spec's own steps cannot say it: none
    turns an output back by the *input's* mean and standard deviation (``scale_mean_variance`` gives the output
    the input's contrast, noise included).

    Parameters
    ----------
    out : Path
        The zip file; replaced when it is there.
    card : str
        Markdown; goes into the documentation.
    authors : sequence of str
        Who made the model.

    Raises
    ------
    ModelError
        When the package does not pass, or cannot be written; no file is left then.
    """
    partial = out.with_name(f".{out.stem}.part.zip")
    files = _files(model, card)
    description = _describe(model.record, files, authors)
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(DESCRIPTIONS[0], description)
            for name, data in files.items():
                archive.writestr(name, data)
        _check_package(partial, links=[entry["url"] for entry in _citations(model.record) if "url" in entry])
        partial.replace(out)
    except OSError as e:
        raise ModelError(f"cannot write {out} ({e.strerror})") from e
    finally:
        partial.unlink(missing_ok=True)


def _check_package(package: Path, links: Sequence[str]) -> None:
    from bioimageio.core import load_description_and_test  # a second of imports that reading does not need

    known = dict.fromkeys(links)  # not looked up
    with (
        zipfile.ZipFile(package) as archive,
        ValidationContext(log_warnings=False, progressbar=False),
        torchscript(),
    ):
        descr = load_description(archive, perform_io_checks=True, known_files=known)
        tested = load_description_and_test(descr, weight_format="torchscript", devices=["cpu"])
    summary = tested.validation_summary
    if summary.status != "passed":
        reasons = [error.msg for detail in summary.details for error in detail.errors] or ["no reason given"]
        raise ModelError(f"the package did not pass bioimageio's own test: {reasons[0].splitlines()[0]}")


def _files(model: Artifact, card: str) -> dict[str, bytes]:
    """All that the package holds beside its description, by name."""
    record = model.record
    weights = io.BytesIO()
    with torchscript():
        whole = torch.jit.script(GreyLevels(model.module, record).eval())
        torch.jit.save(whole, weights, _extra_files={METADATA: msgspec.json.encode(record)})
    raw = np.rint(low_dose_frame(_smallest(record)).numpy() * TEST_SPREAD + TEST_MEAN).clip(0, 255)
    if record.normalisation == "unit-range":
        raw /= 255
    with torch.inference_mode():
        restored = whole(torch.from_numpy(raw.astype(np.float32))).numpy()
    licence = [record.licence, "", "Attribution, to be passed on:", *record.attribution, ""]
    return {
        "weights.pt": weights.getvalue(),
        "test_input.npy": _npy(raw.astype(np.float32)),
        "test_output.npy": _npy(restored),
        "cover.png": _cover(raw[0, 0], restored[0, 0]),
        "README.md": _readme(record, card).encode(),
        "LICENCE.txt": "\n".join(licence).encode(),
    }


def _describe(record: ModelRecord, files: dict[str, bytes], authors: Sequence[str]) -> str:
    """The description as YAML."""

    def named(name: str) -> dict[str, str]:
        return {"source": name, "sha256": hashlib.sha256(files[name]).hexdigest()}

    spdx = record.licence.partition(";")[0].strip()
    size = {"min": _smallest(record), "step": _up(TILE_STEP, record.multiple)}
    halo = {"halo": record.halo * record.scale} if record.halo else {}
    batch_and_channel = [{"type": "batch"}, {"type": "channel", "channel_names": ["intensity"]}]
    description = {
        "format_version": "0.5.12",
        "type": "model",
        "name": f"live-sr {re.sub(r'[^A-Za-z0-9_-]', '-', record.id)}",
        "description": f"Restores single-channel microscopy frames to {record.scale} x {record.scale} times "
        "the pixels. Grey levels in, grey levels out. Made with live-sr.",
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "authors": [{"name": name} for name in authors],
        "license": spdx if _is_spdx(spdx) else named("LICENCE.txt"),
        "cite": _citations(record),
        "documentation": named("README.md"),
        "covers": [named("cover.png")],
        "attachments": [named("LICENCE.txt")],
        "tags": ["super-resolution", "denoising", "2d", "pytorch", "live-sr"],
        "inputs": [
            {
                "id": "raw",
                "description": _unit(record),
                "axes": [
                    *batch_and_channel,
                    *({"type": "space", "id": a, "size": size, "concatenable": True} for a in "yx"),
                ],
                "data": {"type": "float32"},
                "test_tensor": named("test_input.npy"),
            }
        ],
        "outputs": [
            {
                "id": "restored",
                "description": "as the input, neither rounded nor clipped",
                "axes": [
                    *batch_and_channel,
                    *(
                        {
                            "type": "space",
                            "id": a,
                            "size": {"tensor_id": "raw", "axis_id": a},
                            "scale": 1 / record.scale,
                            **halo,
                        }
                        for a in "yx"
                    ),
                ],
                "data": {"type": "float32"},
                "test_tensor": named("test_output.npy"),
            }
        ],
        "weights": {
            "torchscript": {
                **named("weights.pt"),
                "pytorch_version": str(torch.__version__).partition("+")[0],
            }
        },
        "config": {"bioimageio": {"model_parameter_count": record.parameters, "task": "super-resolution"}},
    }
    text = io.StringIO()
    YAML(typ="safe").dump(json.loads(json.dumps(description)), text)  # a copy that repeats nothing by reference
    return text.getvalue()


def _citations(record: ModelRecord) -> list[dict[str, str]]:
    """The attributions that name a DOI or an address: the spec takes no others. All are in LICENCE.txt."""
    entries = []
    for text in record.attribution:
        doi = re.search(r"\b10\.\d{4,9}/[^\s,;()]+", text)
        url = re.search(r"https?://[^\s,;()]+", text)
        if doi:
            entries.append({"text": text, "doi": doi[0].rstrip(".")})
        elif url:
            entries.append({"text": text, "url": url[0].rstrip(".")})
    return entries


def _is_spdx(licence: str) -> bool:
    try:
        v0_5.LicenseId(licence)
    except ValueError:
        return False
    return True


def _smallest(record: ModelRecord) -> int:
    """Side of the smallest frame that the package is promised for, which is also the test's."""
    return _up(2 * record.halo + SMALLEST_CORE, record.multiple)


def _cover(raw: Pixels, restored: NDArray[np.float32]) -> bytes:
    """The test's middle, raw beside restored, 2:1 as the spec asks; without one the library draws its own."""
    scale = len(restored) // len(raw)
    side = min(COVER_EDGE // scale, len(raw))
    first = (len(raw) - side) // 2
    before = raw[first : first + side, first : first + side].repeat(scale, 0).repeat(scale, 1)
    after = restored[scale * first : scale * (first + side), scale * first : scale * (first + side)]
    low, high = np.quantile(before, (0.01, 0.99))
    both = np.hstack([before, after])
    png: bytes = iio.imwrite(
        "<bytes>", ((both - low) / (high - low) * 255).clip(0, 255).astype(np.uint8), extension=".png"
    )
    return png


def _npy(array: NDArray[Any]) -> bytes:
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


def _unit(record: ModelRecord) -> str:
    if record.normalisation == "unit-range":
        return "raw frame, divided by the largest value of its data type"
    return "raw frame, in the camera's grey levels"


def _readme(record: ModelRecord, card: str) -> str:
    sizes = "any raw pixel size"
    if record.pixel_size_um is not None:
        sizes = "raw pixels of {:g} to {:g} µm".format(*record.pixel_size_um)
    normalised = (
        "The weights normalise each tensor they are given by its own mean and standard deviation and undo that "
        "at the end. Whole frames give what live-sr gives; a tile is normalised by itself."
        if record.normalisation == "frame-mean-std"
        else "The weights take each grey level by itself: tiles give what whole frames give."
    )
    parts = [
        card.strip() or f"# {record.id}",
        OWN_SECTION,
        f"Input: {_unit(record)}, (batch, 1, y, x) float32; {sizes}. Output: {record.scale} times as many "
        f"pixels along y and x, in the same grey levels, neither rounded nor clipped. {normalised} A tile "
        f"needs {record.halo} raw pixels around it.",
        "## Validation",
        f"Compare with sharp images of your own: `live-sr evaluate --model {record.id} --hr IMAGE`. "
        "Detail may be invented; do not measure in it what the raw frame cannot show.",
        "## Attribution",
        "\n".join(f"- {text}" for text in record.attribution) or "none",
    ]
    return "\n\n".join(parts) + "\n"


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
