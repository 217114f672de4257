"""A model file says what it is, and a wrong one is refused in one sentence."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

from live_sr.errors import ModelError
from live_sr.model import artifact
from live_sr.model.artifact import ModelRecord, torchscript
from live_sr.model.unet import NetworkSettings, SuperResolver

SETTINGS = NetworkSettings(scale=2, widths=(4, 8))


def record() -> ModelRecord:
    return ModelRecord(
        id="tiny-x2",
        scale=2,
        normalisation="frame-mean-std",
        halo=16,
        multiple=2,
        parameters=100,
        kmac_per_output_pixel=0.5,
        widths=(4, 8),
        pixel_size_um=(0.01, 0.1),
        attribution=["someone"],
        training={"data": [{"file": "a.tif", "sha256": "0"}]},
    )


def network(settings: NetworkSettings = SETTINGS) -> SuperResolver:
    torch.manual_seed(0)
    net = SuperResolver(settings).eval()
    nn.init.normal_(net.body.head.weight, std=0.1)
    return net


def test_round_trip_keeps_the_network_and_its_record(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    net = network()
    artifact.save(net, record(), path)
    loaded = artifact.load(path)
    assert loaded.record == record()
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.path == path
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.pt"]
    x = torch.randn(1, 1, 13, 10)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.module(x), net(x), rtol=0, atol=1e-6)


def test_the_record_alone_rebuilds_the_network(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    artifact.save(network(), record(), path)
    loaded = artifact.load(path)
    again = SuperResolver(NetworkSettings(scale=loaded.record.scale, widths=loaded.record.widths))
    again.load_state_dict(loaded.module.state_dict())
    x = torch.randn(1, 1, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(again(x), loaded.module(x), rtol=0, atol=1e-6)


def test_a_record_from_before_there_were_several_frames_is_of_one(tmp_path: Path) -> None:
    old = {k: v for k, v in msgspec.to_builtins(record()).items() if k not in ("frames", "neighbours")}
    path = tmp_path / "old.pt"
    with torchscript():
        scripted = torch.jit.script(network())
        torch.jit.save(scripted, str(path), _extra_files={artifact.METADATA: msgspec.json.encode(old)})
    loaded = artifact.load(path)
    assert loaded.record == record()
    assert (loaded.record.frames, loaded.record.neighbours) == (1, "t or z")


def test_a_model_of_several_frames_says_so_and_is_rebuilt_from_its_record(tmp_path: Path) -> None:
    settings = NetworkSettings(scale=2, widths=(4, 8), frames=5)
    path = tmp_path / "five.pt"
    wanted = msgspec.structs.replace(record(), frames=5, neighbours="z")
    artifact.save(network(settings), wanted, path)
    loaded = artifact.load(path)
    assert loaded.record == wanted
    r = loaded.record
    again = SuperResolver(NetworkSettings(scale=r.scale, widths=r.widths, frames=r.frames))
    again.load_state_dict(loaded.module.state_dict())
    x = torch.randn(1, 5, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(again(x), loaded.module(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"frames": 2}, {"frames": 7}, {"neighbours": "c"}], ids=["even", "too many", "channels"]
)
def test_a_record_of_impossible_frames_is_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    path = tmp_path / "wrong.pt"
    written = msgspec.json.encode({**msgspec.to_builtins(record()), **wrong})
    with torchscript():
        torch.jit.save(torch.jit.script(network()), str(path), _extra_files={artifact.METADATA: written})
    with pytest.raises(ModelError, match="a record this live-sr cannot use"):
        artifact.load(path)


@pytest.mark.parametrize("frozen", [False, True], ids=["scripted", "frozen"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_body_of_a_loaded_file_casts_alone(tmp_path: Path, dtype: torch.dtype, frozen: bool) -> None:
    path = tmp_path / "tiny.pt"
    artifact.save(network(), record(), path)
    exact = artifact.load(path).module
    cast = artifact.load(path).module
    cast.body.to(dtype)
    if frozen:
        with torchscript():
            cast = torch.jit.freeze(cast)
    x = torch.randn(1, 1, 18, 22)
    with torch.inference_mode():
        a, b = exact(x), cast(x)
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)  # it did compute in the other precision
    assert float((a - b).abs().max()) < 0.1


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(path: Path) -> None:
    path.write_text("not a model")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    with torchscript():
        torch.jit.save(torch.jit.script(nn.Conv2d(1, 1, 1)), str(path))


def other_record(path: Path) -> None:
    wrong = msgspec.json.encode({**msgspec.to_builtins(record()), "scale": "four"})
    with torchscript():
        torch.jit.save(torch.jit.script(network()), str(path), _extra_files={artifact.METADATA: wrong})


def bare_weights(path: Path) -> None:
    torch.save(network().state_dict(), path)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (damaged, "not a readable TorchScript file"),
        (text, "not a readable TorchScript file"),
        (empty, "not a readable TorchScript file"),
        (bare_weights, "not a readable TorchScript file"),
        (foreign, "without a live-sr record"),
        (other_record, "a record this live-sr cannot use"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, spoil, says: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "tiny.pt"
    artifact.save(network(), record(), path)
    spoil(path)
    with pytest.raises(ModelError, match=says) as caught:
        artifact.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_shipped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "WEIGHTS", tmp_path)
    artifact.save(network(), record(), tmp_path / "tiny-x2.pt")
    assert artifact.shipped() == ["tiny-x2"]
    assert artifact.load("tiny-x2").record.id == "tiny-x2"
    with pytest.raises(ModelError, match=r"no model 'em-x9'.*tiny-x2"):
        artifact.find("em-x9")


@pytest.mark.parametrize("name", ["em-x4", "em-x2"])
def test_shipped_models_are_complete(name: str) -> None:
    """The record agrees with the weights, says whose data they come from, and the card stands beside them."""
    loaded = artifact.load(name)
    r = loaded.record
    assert r.id == name
    assert loaded.module.scale == r.scale
    assert loaded.module.multiple == r.multiple
    assert r.halo % r.multiple == 0
    assert sum(p.numel() for p in loaded.module.parameters()) == r.parameters
    said = " ".join(r.attribution)
    assert "FlyEM" in said
    assert "CC BY 3.0" in said
    trained_on_sem = any("spinal_cord" in file["file"] for file in r.training["data"])
    assert ("data_axondeepseg_sem" in said) == trained_on_sem
    card = (artifact.WEIGHTS / f"{name}.md").read_text(encoding="utf-8")
    assert loaded.sha256 in card
