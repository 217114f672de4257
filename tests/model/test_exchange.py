"""Models go out and come in with the same pixels, offline, and what cannot be trusted is refused."""

from __future__ import annotations

import io
import json
import socket
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from typer.testing import CliRunner

from live_sr.cli import app
from live_sr.errors import ConfigError, InputError, ModelError
from live_sr.frame import Pixels
from live_sr.model import artifact
from live_sr.model.artifact import torchscript
from live_sr.model.engine import Engine, load_engine
from live_sr.model.exchange import export_model, import_model, list_models
from live_sr.model.foreign import MAX_UNPACKED
from live_sr.model.unet import NetworkSettings, SuperResolver, measure_halo
from tiny import one_thread, record_of  # noqa: F401  a fixture

SETTINGS = NetworkSettings(scale=2, widths=(4, 6))


@pytest.fixture(autouse=True, scope="module")
def no_network() -> Iterator[None]:
    """Everything here works offline: an attempt to look anything up fails the test."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a look-up on the network: {args}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture(autouse=True)
def user_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of models, and of remembered precisions: empty for each test."""
    monkeypatch.setenv("LIVE_SR_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    return tmp_path / "models"


def frame(shape: tuple[int, int] = (60, 52), top: int = 255, dtype: str = "uint8", seed: int = 0) -> Pixels:
    """Discs under shot noise, well away from black and white."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    scene = top * (0.4 + 0.2 * np.sign(np.sin(y / 5) * np.sin(x / 7)))
    noisy: Pixels = np.random.default_rng(seed).poisson(scene).clip(0, top).astype(dtype)
    return noisy


# ---------------------------------------------------------------------------------------- our own model


@pytest.fixture(scope="module")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of ours, which does more than interpolate."""
    torch.manual_seed(3)
    network = SuperResolver(SETTINGS).eval()
    nn.init.normal_(network.body.head.weight, std=0.1)
    record = record_of(
        network,
        SETTINGS,
        id="tiny-x2",
        parameters=sum(p.numel() for p in network.parameters()),
        kmac_per_output_pixel=1.5,
        pixel_size_um=(0.004, 0.02),
        attribution=["A. Scientist: images (https://example.org/images), CC BY 4.0"],
        licence="BSD-3-Clause; pass the attribution on",
        training={"steps": 7},
    )
    path = tmp_path_factory.mktemp("own") / "tiny-x2.pt"
    artifact.save(network, record, path)
    path.with_suffix(".md").write_text("# tiny-x2\n\nFor tests.\n")
    return path


@pytest.fixture(scope="module")
def package(own_model: Path) -> Path:
    out = own_model.with_name("tiny-x2.zip")
    run("export", own_model, out, "--author", "A. Scientist")
    return out


def test_a_model_file_of_our_own_is_imported_as_it_is(own_model: Path, tmp_path: Path) -> None:
    path = import_model(own_model)
    assert artifact.load("tiny-x2").sha256 == artifact.load(own_model).sha256
    assert path.with_suffix(".md").read_text() == "# tiny-x2\n\nFor tests.\n"
    renamed = import_model(own_model, name="mine")
    assert artifact.load(renamed).record.id == "mine"
    raw = frame((70, 45), 4000, "uint16")
    before, after = (Engine(artifact.load(f), device="cpu", precision="float32") for f in (own_model, renamed))
    np.testing.assert_array_equal(before.upscale([raw])[0], after.upscale([raw])[0])


def test_a_model_of_several_frames_is_imported_too(tmp_path: Path) -> None:
    settings = NetworkSettings(scale=2, widths=(8, 12), frames=3)
    net = SuperResolver(settings)
    artifact.save(net, record_of(net, settings, id="three"), tmp_path / "three.pt")
    import_model(tmp_path / "three.pt")
    assert artifact.load("three").record.frames == 3


def test_export_then_import_gives_equal_pixels_and_all_that_was_known(own_model: Path, package: Path) -> None:
    path = import_model(package)
    assert path == artifact.find("tiny-x2")
    before, after = artifact.load(own_model), artifact.load("tiny-x2")
    assert after.record == before.record
    assert path.with_suffix(".md").read_text().strip() == "# tiny-x2\n\nFor tests."
    raw = frame((70, 45), 4000, "uint16")
    for precision in ("float32", "bfloat16"):
        one, two = (Engine(m, device="cpu", precision=precision).upscale([raw])[0] for m in (before, after))
        np.testing.assert_array_equal(one, two)


def test_a_package_passes_bioimageio_and_gives_the_engines_pixels(own_model: Path, package: Path) -> None:
    from bioimageio.core import Sample, Tensor, create_prediction_pipeline, load_description_and_test
    from bioimageio.spec import ValidationContext, load_description
    from bioimageio.spec.model import v0_5

    links = {"https://example.org/images": None}
    raw = frame((200, 184), 3000, "uint16")
    member = Tensor(raw[None, None].astype(np.float32), dims=("batch", "channel", "y", "x"))
    with zipfile.ZipFile(package) as archive, torchscript(), ValidationContext(log_warnings=False):
        descr = load_description(archive, known_files=links)
        assert isinstance(descr, v0_5.ModelDescr), descr.validation_summary.display()
        assert load_description_and_test(descr, devices=["cpu"]).validation_summary.status == "passed"
        with create_prediction_pipeline(descr, devices=["cpu"]) as pipeline:
            given = Sample(members={"raw": member}, stat={}, id="frame")
            whole, padded = (
                pipeline.predict_sample_without_blocking(
                    given, skip_input_padding=exact, skip_output_cropping=exact
                )
                .members["restored"]
                .data.to_numpy()[0, 0]
                for exact in (True, False)
            )
    (ours,) = load_engine(str(own_model), device="cpu", precision="float32").upscale([raw])
    assert whole.shape == padded.shape == ours.shape
    assert np.abs(whole.clip(0) - ours).max() < 0.51  # the engine rounds, and clips to its data type
    off = np.abs(padded.clip(0) - ours)[
        100:-100, 100:-100
    ]  # padding adds mirrored pixels to a frame's mean and spread
    assert off.max() < 0.1 * raw.std()
    assert (descr.license, descr.cite[0].url is not None) == ("BSD-3-Clause", True)
    assert [a.halo * a.scale for a in descr.outputs[0].axes[2:]] == [measure_halo(SETTINGS)] * 2


def test_a_package_names_its_licence_attribution_and_use(package: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        assert "A. Scientist" in archive.read("LICENCE.txt").decode()
        readme = archive.read("README.md").decode()
    for said in (
        "# tiny-x2",
        "For tests.",
        "0.004 to 0.02 µm",
        "## Validation",
        "CC BY 4.0",
        "neither rounded",
    ):
        assert said in readme


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_graph_gives_the_engines_pixels(own_model: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"tiny.{kind}"
    export_model(str(own_model), out)
    raw = frame((32, 48), 3000, "uint16")
    x = raw[None, None].astype(np.float32)
    if kind == "pt2":
        extra = {artifact.METADATA: ""}
        program = torch.export.load(out, extra_files=extra)
        record = json.loads(extra[artifact.METADATA])
        got = program.module()(torch.from_numpy(x)).detach().numpy()
    else:
        onnx = pytest.importorskip("onnx")
        from onnx.reference import ReferenceEvaluator

        graph = onnx.load(out)
        record = json.loads({p.key: p.value for p in graph.metadata_props}[artifact.METADATA])
        (got,) = ReferenceEvaluator(graph).run(None, {"raw": x})
    (ours,) = load_engine(str(own_model), device="cpu", precision="float32").upscale([raw])
    assert record["id"] == "tiny-x2"
    assert np.abs(got[0, 0].clip(0) - ours).max() < 0.51
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [out.name]


# ---------------------------------------------------------------------------------- networks from elsewhere


class PlainUNet(nn.Module):
    """A U-Net as others write them: one pooling, frames of even sides only, in the unit it was trained in."""

    def __init__(self, scale: int, channels: int = 1) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.scale = scale
        self.enter = nn.Conv2d(channels, 4, 3, padding=1)
        self.deep = nn.Conv2d(4, 8, 3, padding=1)
        self.leave = nn.Conv2d(12, channels * scale**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Y, X) to (B, C, sY, sX)."""
        first = F.relu(self.enter(x))
        deep = F.relu(self.deep(F.max_pool2d(first, 2)))
        both = torch.cat([first, F.interpolate(deep, scale_factor=2.0)], 1)
        detail = F.pixel_shuffle(self.leave(both), self.scale)
        return F.interpolate(x, scale_factor=float(self.scale), mode="bilinear") + 0.05 * detail


HALO = 8  # raw pixels: four 3 x 3 convolutions, one of them at half the resolution, and interpolation
SIDECAR = {
    "id": "plain",
    "scale": 2,
    "normalisation": "unit-range",
    "halo": HALO,
    "multiple": 2,
    "attribution": ["B. Author: plain U-Net"],
    "licence": "MIT",
}


def traced(network: nn.Module, path: Path, channels: int = 1) -> Path:
    with torchscript(), torch.no_grad():
        torch.jit.save(torch.jit.trace(network.eval(), torch.rand(1, channels, 32, 24)), str(path))
    return path


def sidecar(path: Path, **changes: Any) -> Path:
    values = {**SIDECAR, **changes}
    path.write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in values.items() if v is not None))
    return path


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize(
    ("how", "gain", "offset", "dtype"),
    [
        ({"normalisation": "unit-range"}, 1 / 255, 0.0, "uint8"),
        ({"normalisation": "unit-range"}, 1 / 65535, 0.0, "uint16"),
        ({"normalisation": "linear", "gain": 1 / 128, "offset": -1.0}, 1 / 128, -1.0, "uint8"),
        ({"normalisation": "frame-mean-std"}, None, None, "uint16"),
    ],
    ids=["unit uint8", "unit uint16", "x/128-1", "frame"],
)
def test_a_plain_network_serves_with_the_right_scale_and_grey_levels(
    tmp_path: Path, scale: int, how: dict[str, Any], gain: float | None, offset: float | None, dtype: str
) -> None:
    network = PlainUNet(scale)
    settings = sidecar(tmp_path / "plain.toml", scale=scale, **how)
    import_model(traced(network, tmp_path / "net.pt"), sidecar=settings)
    raw = frame((38, 50), np.iinfo(dtype).max, dtype)
    by_frame = how["normalisation"] == "frame-mean-std"
    engine = load_engine("plain", device="cpu", precision="float32" if by_frame else "auto")
    (restored,) = engine.upscale([raw])
    if gain is None or offset is None:
        gain, offset = 1 / raw.std(), -raw.mean() / raw.std()
    with torch.inference_mode():
        out = network.double()(torch.from_numpy(raw * gain + offset)[None, None])[0, 0].numpy()
    expected = ((out - offset) / gain).clip(0, np.iinfo(dtype).max)
    assert engine.info.scale == scale
    assert (restored.dtype, restored.shape) == (raw.dtype, (38 * scale, 50 * scale))
    assert np.abs(restored - expected).max() < 0.51 + 1e-6 * np.iinfo(dtype).max
    assert engine.info.precision == "float32"


def test_a_network_that_takes_even_sides_only_restores_odd_ones(tmp_path: Path) -> None:
    settings = sidecar(tmp_path / "plain.toml", least=16)
    import_model(traced(PlainUNet(2), tmp_path / "net.pt"), sidecar=settings)
    engine = load_engine("plain", device="cpu")
    for shape in ((1, 1), (3, 40), (33, 17)):
        (restored,) = engine.upscale([frame(shape)])
        assert restored.shape == (2 * shape[0], 2 * shape[1])


def test_tiles_of_a_foreign_network_equal_the_whole(tmp_path: Path) -> None:
    import_model(traced(PlainUNet(2), tmp_path / "net.pt"), sidecar=sidecar(tmp_path / "plain.toml"))
    model, raw = artifact.load("plain"), frame((131, 120))
    whole, tiled = (Engine(model, device="cpu", tile=tile).upscale([raw])[0].astype(int) for tile in (512, 24))
    assert np.abs(whole - tiled).max() <= 1


def test_the_record_of_a_foreign_network_says_whose_it_is_and_what_it_costs(tmp_path: Path) -> None:
    network = PlainUNet(2)
    import_model(
        traced(network, tmp_path / "net.pt"), sidecar=sidecar(tmp_path / "p.toml", pixel_size_um=[0.1, 0.2])
    )
    record = artifact.load("plain").record
    assert (record.attribution, record.licence) == (["B. Author: plain U-Net"], "MIT")
    assert record.pixel_size_um == (0.1, 0.2)
    assert record.parameters == sum(p.numel() for p in network.parameters())
    by_hand = 9 * (1 * 4 + 4 * 8 / 4 + 12 * 4) / 4 / 1e3  # kMAC: the middle one runs on a quarter of the pixels
    assert record.kmac_per_output_pixel == pytest.approx(by_hand)


def test_a_foreign_network_goes_out_as_a_package_and_comes_back(tmp_path: Path) -> None:
    settings = sidecar(tmp_path / "plain.toml", normalisation="linear", gain=1 / 128, offset=-1.0)
    import_model(traced(PlainUNet(2), tmp_path / "net.pt"), sidecar=settings)
    export_model("plain", tmp_path / "plain.zip")
    import_model(tmp_path / "plain.zip", name="again")
    raw = frame()
    first, second = (load_engine(name, device="cpu").upscale([raw])[0] for name in ("plain", "again"))
    np.testing.assert_array_equal(first, second)
    with pytest.raises(ModelError, match=r"known as TorchScript only.*\.zip"):
        export_model("plain", tmp_path / "plain.onnx")


# ------------------------------------------------------------------------------- packages from elsewhere

Change = Callable[[dict[str, Any]], None]


def npy(array: NDArray[Any]) -> bytes:
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


def foreign_package(
    folder: Path,
    *,
    change: Change = lambda rdf: None,
    files: dict[str, bytes | None] | None = None,
    scale: int = 2,
) -> Path:
    """A package as another laboratory would write it, as a zip; `change` edits its description."""
    network = PlainUNet(scale)
    raw = np.random.default_rng(1).normal(1000, 200, (1, 1, 64, 64)).astype(np.float32)
    with torch.no_grad():
        seen = torch.from_numpy((raw - raw.mean()) / raw.std())
        out = network(seen).numpy()
    there: dict[str, bytes | None] = {
        "weights.pt": traced(network, folder / "w.pt").read_bytes(),
        "in.npy": npy(raw),
        "out.npy": npy(out),
        **(files or {}),
    }
    space = [{"type": "space", "id": a, "size": {"min": 32, "step": 2}} for a in "yx"]
    larger = [
        {
            "type": "space",
            "id": a,
            "size": {"tensor_id": "raw", "axis_id": a},
            "scale": 1 / scale,
            "halo": HALO * scale,
        }
        for a in "yx"
    ]
    rest = [{"type": "batch"}, {"type": "channel", "channel_names": ["em"]}]
    rdf = {
        "format_version": "0.5.3",
        "type": "model",
        "name": "Plain U-Net (EM)",
        "description": "sharper",
        "authors": [{"name": "B. Author"}],
        "cite": [{"text": "Author 2020", "doi": "10.1000/182"}],
        "license": "MIT",
        "inputs": [
            {
                "id": "raw",
                "axes": rest + space,
                "test_tensor": {"source": "in.npy"},
                "preprocessing": [{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["channel", "y", "x"]}}],
            }
        ],
        "outputs": [{"id": "out", "axes": rest + larger, "test_tensor": {"source": "out.npy"}}],
        "weights": {"torchscript": {"source": "weights.pt", "pytorch_version": "2.0"}},
    }
    change(rdf)
    path = folder / "package.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rdf.yaml", json.dumps(rdf))
        for name, data in there.items():
            if data is not None:
                archive.writestr(name, data)
    return path


@pytest.mark.parametrize("form", ["zip", "folder", "yaml"])
def test_a_package_from_elsewhere_serves(tmp_path: Path, form: str) -> None:
    source = foreign_package(tmp_path)
    if form != "zip":
        with zipfile.ZipFile(source) as archive:
            archive.extractall(tmp_path / "unpacked")
        source = tmp_path / "unpacked" / ("rdf.yaml" if form == "yaml" else ".")
    assert import_model(source).stem == "plain-u-net-em"
    record = artifact.load("plain-u-net-em").record
    assert record.attribution == [
        "Plain U-Net (EM), bioimage.io model package by B. Author",
        "Author 2020 (10.1000/182)",
    ]
    assert (record.licence, record.halo, record.multiple, record.scale) == ("MIT", HALO, 2, 2)
    raw = frame((40, 40), 4000, "uint16")
    (restored,) = load_engine("plain-u-net-em", device="cpu", precision="float32").upscale([raw])
    with torch.inference_mode():
        x = torch.from_numpy((raw - raw.mean()) / raw.std())[None, None]
        expected = PlainUNet(2).double()(x)[0, 0].numpy() * raw.std() + raw.mean()
    assert np.abs(restored - expected).max() < 0.51


def scaled(rdf: dict[str, Any]) -> None:
    """A fixed scaling, undone at the end."""
    rdf["inputs"][0]["preprocessing"] = [{"id": "scale_linear", "kwargs": {"gain": 0.005, "offset": -5.0}}]
    rdf["outputs"][0]["postprocessing"] = [{"id": "scale_linear", "kwargs": {"gain": 200.0, "offset": 1000.0}}]


def fixed(rdf: dict[str, Any]) -> None:
    """The same scaling by its other name."""
    scaled(rdf)
    rdf["inputs"][0]["preprocessing"] = [
        {"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 1000.0, "std": 200.0}}
    ]


@pytest.mark.parametrize("change", [scaled, fixed])
def test_a_fixed_scaling_is_understood(tmp_path: Path, change: Change) -> None:
    with zipfile.ZipFile(foreign_package(tmp_path)) as archive:
        raw = np.load(io.BytesIO(archive.read("in.npy")))
    with torch.no_grad():
        out = PlainUNet(2)(torch.from_numpy(raw * 0.005 - 5.0)).numpy() * 200 + 1000
    import_model(foreign_package(tmp_path, change=change, files={"out.npy": npy(out)}))
    record = artifact.load("plain-u-net-em").record
    assert record.normalisation == "linear"
    assert (record.gain, record.offset) == pytest.approx((0.005, -5.0))


def test_a_wrong_test_tensor_is_refused_with_the_difference(tmp_path: Path, user_models: Path) -> None:
    with zipfile.ZipFile(foreign_package(tmp_path)) as archive:
        out = np.load(io.BytesIO(archive.read("out.npy")))
    out[0, 0, 10:20] += 0.5
    with pytest.raises(ModelError, match=r"own test output: 7\.8% of the pixels differ, by up to 0\.5 where"):
        import_model(foreign_package(tmp_path, files={"out.npy": npy(out)}))
    assert not list(user_models.glob("*"))


def script(network: nn.Module) -> bytes:
    data = io.BytesIO()
    with torchscript():
        torch.jit.save(torch.jit.script(network), data)
    return data.getvalue()


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "stolen")
        return x


class Reads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_file("/etc/hostname", size=1)


def pickled() -> bytes:
    data = io.BytesIO()
    torch.save(PlainUNet(2).state_dict(), data)
    return data.getvalue()


def old_pickle() -> bytes:
    data = io.BytesIO()
    torch.save(PlainUNet(2).state_dict(), data, _use_new_zipfile_serialization=False)
    return data.getvalue()


def edit(*where: str | int, to: Any) -> Change:
    """Set one value of the description."""

    def change(rdf: dict[str, Any]) -> None:
        at: Any = rdf
        for key in where[:-1]:
            at = at[key]
        at[where[-1]] = to

    return change


def rgb(rdf: dict[str, Any]) -> None:
    for tensor in (rdf["inputs"][0], rdf["outputs"][0]):
        tensor["axes"][1] = {"type": "channel", "channel_names": ["r", "g", "b"]}


def no_halo(rdf: dict[str, Any]) -> None:
    for axis in rdf["outputs"][0]["axes"][2:]:
        del axis["halo"]


def one_and_a_half(rdf: dict[str, Any]) -> None:
    for axis in rdf["outputs"][0]["axes"][2:]:
        axis.update(scale=2 / 3, halo=12)


def volume(rdf: dict[str, Any]) -> None:
    rdf["inputs"][0]["axes"].insert(2, {"type": "space", "id": "z", "size": 8})


def state_dict(rdf: dict[str, Any]) -> None:
    rdf["weights"] = {
        "pytorch_state_dict": {
            "source": "weights.pt",
            "pytorch_version": "2.0",
            "architecture": {"import_from": "os", "callable": "system", "kwargs": {}},
        }
    }


KEEP: Change = edit("description", to="as it was")


@pytest.mark.parametrize(
    ("change", "files", "says"),
    [
        (rgb, {}, "3 channels: live-sr restores single-channel frames"),
        (volume, {}, r"axes \(batch, channel, z, y, x\)"),
        (one_and_a_half, {}, r"enlarges by 1\.5.*whole factor"),
        (no_halo, {}, "states no halo.*--sidecar"),
        (state_dict, {}, "weights as pytorch_state_dict: live-sr reads TorchScript only"),
        (KEEP, {"weights.pt": pickled()}, "pickled weights, which run code"),
        (KEEP, {"weights.pt": old_pickle()}, "pickled weights, which run code"),
        (KEEP, {"weights.pt": script(Writes())}, "refused: its program says 'save'"),
        (KEEP, {"weights.pt": script(Reads())}, "refused: its program says 'from_file'"),
        (KEEP, {"weights.pt": b"PK\x03\x04 no"}, "not a readable zip file"),
        (KEEP, {"weights.pt": None}, "holds no file 'weights.pt'"),
        (KEEP, {"in.npy": b"text"}, r"no \.npy array"),
        (KEEP, {"in.npy": npy(np.array([{"a": 1}], object))}, r"no \.npy array"),
        (edit("format_version", to="0.4.10"), {}, r"follows spec 0\.4\.10, live-sr reads 0\.5"),
        (edit("type", to="dataset"), {}, "does not describe a model"),
        (edit("name", to="x"), {}, "is not valid: .*name"),
        (edit("inputs", 0, "output_of", to="affable-shark"), {}, "output of another model"),
        (edit("inputs", 0, "test_tensor", to=None), {}, "no test tensors"),
        (edit("inputs", 0, "axes", 2, "size", to=64), {}, "one size only"),
        (
            edit("inputs", 0, "preprocessing", 0, "id", to="scale_range"),
            {},
            "cannot run on a live frame: scale_range",
        ),
        (edit("weights", "torchscript", "sha256", to="0" * 64), {}, "not the file described"),
        (edit("weights", "torchscript", "source", to="https://example.com/w.pt"), {}, "which is not in it"),
        (edit("outputs", 0, "axes", 2, "size", "offset", to=-4), {}, "loses or gains -4 pixels"),
        (
            edit(
                "outputs",
                0,
                "postprocessing",
                to=[{"id": "scale_mean_variance", "kwargs": {"reference_tensor": "raw"}}],
            ),
            {},
            "cannot run on a live frame: scale_mean_variance",
        ),
        (
            edit("outputs", 0, "postprocessing", to=[{"id": "scale_linear", "kwargs": {"gain": 2.0}}]),
            {},
            "another scaling",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_package_that_cannot_be_run_is_refused_in_one_sentence(
    tmp_path: Path, user_models: Path, change: Change, files: dict[str, bytes | None], says: str
) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        import_model(foreign_package(tmp_path, change=change, files=files))
    assert "\n" not in str(caught.value)
    assert not list(user_models.glob("*"))


def test_a_network_of_probabilities_is_not_taken_for_a_restoration(tmp_path: Path) -> None:
    class Segments(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(F.interpolate(x - 1000.0, scale_factor=2.0))

    raw = np.random.default_rng(1).normal(1000, 200, (1, 1, 64, 64)).astype(np.float32)
    out = Segments()(torch.from_numpy(raw)).numpy()
    files: dict[str, bytes | None] = {"in.npy": npy(raw), "out.npy": npy(out), "weights.pt": script(Segments())}
    with pytest.raises(ModelError, match="not a model that restores"):
        import_model(foreign_package(tmp_path, change=edit("inputs", 0, "preprocessing", to=[]), files=files))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(b"\x93NUMPY") + 200  # the test input
    data[at] ^= 0xFF
    path.write_bytes(bytes(data))


def climbing(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../escaped.txt", "x")


def absolute(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("C:\\escaped.txt", "x")


def link(path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/passwd")


def absurd(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("zeros", b"0")
        archive.infolist()[-1].file_size = MAX_UNPACKED + 1  # as a bomb's table of contents would say


def countless(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        for i in range(10_001):
            archive.writestr(f"{i}", b"")


def described_by_nothing(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (cut, "not a readable zip file"),
        (flipped, "is damaged at 'in.npy'"),
        (climbing, r"path that leads out of it \('\.\./\.\./escaped\.txt'\): it was not unpacked"),
        (absolute, "path that leads out of it"),
        (link, "holds a link"),
        (absurd, r"would unpack to 2\.1 GB, more than 2\.1 GB"),
        (countless, "files, more than 10000"),
        (described_by_nothing, r"not a bioimage\.io package"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_or_damaged_zip_is_refused(
    tmp_path: Path, user_models: Path, spoil: Callable[[Path], None], says: str
) -> None:
    path = foreign_package(tmp_path)
    spoil(path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelError, match=says) as caught:
        import_model(path)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before  # nothing was unpacked


def test_a_folder_cannot_name_files_outside_of_it(tmp_path: Path) -> None:
    (tmp_path / "secret.pt").write_bytes(b"secret")
    with zipfile.ZipFile(
        foreign_package(tmp_path, change=edit("weights", "torchscript", "source", to="../secret.pt"))
    ) as archive:
        archive.extractall(tmp_path / "unpacked")
    with pytest.raises(ModelError, match="lies outside of it"):
        import_model(tmp_path / "unpacked")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scale": 3}, r"gives shape \(1, 1, 192, 192\).*correct the scale"),
        ({"scale": 0}, "scale 0 must be"),
        ({"id": "../up"}, "id '../up' must be"),
        ({"halo": -1}, "halo -1"),
        ({"normalisation": "linear", "gain": 0.0}, "gain 0.0 must be"),
        ({"gain": 2.0}, "gain belongs to normalisation 'linear'"),
        ({"pixel_size_um": [0.2, 0.1]}, "must be a range"),
        ({"normalisation": "percentile"}, "normalisation"),
        ({"scale": 1.5}, "scale"),
        ({"licence": None}, "licence"),
        ({"colour": "red"}, "colour"),
    ],
    ids=str,
)
def test_a_wrong_sidecar_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    settings = sidecar(tmp_path / "plain.toml", **changes)
    with pytest.raises((ModelError, ConfigError), match=says):
        import_model(traced(PlainUNet(2), tmp_path / "net.pt"), sidecar=settings)


def test_wrong_networks_and_files_are_refused(tmp_path: Path, own_model: Path, package: Path) -> None:
    settings = sidecar(tmp_path / "plain.toml")
    net = traced(PlainUNet(2), tmp_path / "net.pt")
    three = traced(PlainUNet(2, channels=3), tmp_path / "rgb.pt", channels=3)
    with pytest.raises(ModelError, match=r"does not run on one single-channel frame \(RuntimeError"):
        import_model(three, sidecar=settings)
    with pytest.raises(InputError, match="give that as --sidecar"):
        import_model(net)
    with pytest.raises(InputError, match="leave --sidecar out"):
        import_model(package, sidecar=settings)
    with pytest.raises(InputError, match="leave --sidecar out"):
        import_model(own_model, sidecar=settings)
    with pytest.raises(ModelError, match="there is no"):
        import_model(tmp_path / "nothing.zip")
    with pytest.raises(InputError, match=r"end it with one of \.zip"):
        export_model(str(own_model), tmp_path / "out.h5")
    import_model(net, sidecar=settings)
    with pytest.raises(ModelError, match=r"there is a model 'plain' already.*--id"):
        import_model(net, sidecar=settings)


# --------------------------------------------------------------------------------------- the command line


def run(*args: object) -> str:
    done = CliRunner().invoke(app, ["models", *map(str, args)], terminal_width=200)
    assert done.exit_code == 0, done.output
    return done.output


def test_models_are_imported_listed_and_shown(package: Path, user_models: Path) -> None:
    assert "serve --model renamed" in run("import", package, "--id", "renamed")
    user_models.joinpath("broken.pt").write_bytes(b"no model")
    listed = run("list")
    row = next(line for line in listed.splitlines() if line.startswith("renamed"))
    sha = artifact.load("renamed").sha256
    parameters = f"{artifact.load('renamed').record.parameters:,}"
    for cell in ("yours", "x2", parameters, "1.5", "0.004-0.02", sha[:8], "BSD-3-Clause"):
        assert cell in row.split()
    assert any(line.startswith("em-x4 ") and "shipped" in line for line in listed.splitlines())
    assert [e.name for e in list_models() if e.problem] == ["broken"]
    shown = run("show", "renamed")
    for said in (sha, "A. Scientist: images", '"steps": 7', "normalisation: frame-mean-std", "For tests."):
        assert said in shown
