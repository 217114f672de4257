"""A run is a settings file: it learns, it can be stopped and resumed, and it leaves a model file."""

from __future__ import annotations

import csv
import hashlib
import itertools
import re
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tifffile
import torch
from rich.console import Console
from torch.optim.optimizer import register_optimizer_step_post_hook

from live_sr.config import load
from live_sr.errors import ConfigError, InputError
from live_sr.model import artifact
from live_sr.model.unet import NetworkSettings, SuperResolver
from live_sr.train.crappify import to_toml
from live_sr.train.fit import fit, restore
from live_sr.train.losses import LossSettings
from live_sr.train.pairs import PairSource
from live_sr.train.pools import Source
from live_sr.train.procedural import Procedural
from live_sr.train.rundir import CHECKPOINT
from live_sr.train.settings import TrainSettings

QUIET = Console(quiet=True)
TINY = TrainSettings(
    id="tiny-x2",
    network=NetworkSettings(scale=2, widths=(8, 12)),
    sources=(Source(name="discs", files="train*", share=1.0, attribution="made here"),),
    validation=("val*",),
    patch=12,
    batch=4,
    steps=20,
    validate_every=5,
    warmup=5,
    learning_rate=3e-3,
    threads=1,
)
THREE = NetworkSettings(scale=2, widths=(8, 12), frames=3)
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark discs on a bright ground: training and validation images of one kind."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for name in ("train_0", "train_1", "val_0"):
        image = np.full((64, 64), 190, np.uint8)
        for cy, cx, r in rng.uniform((0, 0, 3), (64, 64, 9), (12, 3)):
            image[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = 60
        tifffile.imwrite(folder / f"{name}.tif", image)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(folder / CHECKPOINT, weights_only=True)
    return {f"{part}.{k}": v for part in ("network", "average") for k, v in content[part].items()}


def test_resuming_equals_not_having_stopped(data: Path, tmp_path: Path) -> None:
    fit(TINY, [data], tmp_path / "whole", console=QUIET)
    stopped = fit(TINY, [data], tmp_path / "parts", stop_after=7, console=QUIET)
    assert stopped == tmp_path / "parts" / CHECKPOINT
    assert torch.load(stopped, weights_only=True)["step"] == 7
    fit(TINY, [data], tmp_path / "parts", resume=True, console=QUIET)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=0, atol=1e-6, msg=name)


def test_ctrl_c_in_the_middle_of_a_step_loses_nothing(data: Path, tmp_path: Path) -> None:
    fit(TINY, [data], tmp_path / "whole", console=QUIET)
    steps = itertools.count(1)

    def press(*_: object) -> None:
        if next(steps) == 7:
            signal.raise_signal(signal.SIGINT)

    hook = register_optimizer_step_post_hook(press)  # the weights have moved, the step is not counted yet
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(TINY, [data], tmp_path / "parts", console=QUIET)
    finally:
        hook.remove()
    fit(TINY, [data], tmp_path / "parts", resume=True, console=QUIET)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(parts[name], weight) for name, weight in whole.items())
    logs = [(tmp_path / n / "log.csv").read_text().splitlines() for n in ("whole", "parts")]
    one, two = ([row["loss"] for row in csv.DictReader(log)] for log in logs)
    assert one == two


def test_a_run_is_resumed_with_the_settings_in_its_folder(data: Path, tmp_path: Path) -> None:
    fit(TINY, [data], tmp_path / "run", stop_after=7, console=QUIET)
    fit(
        load(tmp_path / "run" / "settings.toml", TrainSettings),
        [data],
        tmp_path / "run",
        resume=True,
        console=QUIET,
    )


def test_a_crappifier_that_changed_in_its_file_is_not_resumed_with(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    settings = msgspec.structs.replace(TINY, crappify=str(file))
    file.write_text(to_toml(TINY.crappifier))
    fit(settings, [data], tmp_path / "run", stop_after=2, console=QUIET)
    file.write_text(to_toml(TINY.crappifier.at(1.0)))
    with pytest.raises(ConfigError, match="other settings"):
        fit(settings, [data], tmp_path / "run", resume=True, console=QUIET)


def test_a_run_learns_and_leaves_a_complete_model_file(data: Path, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(TINY, steps=120, loss=LossSettings(ssim=0.0))
    path = fit(settings, [data], tmp_path, console=QUIET)
    loaded = artifact.load(path)
    r = loaded.record
    assert (r.id, r.scale, r.multiple, r.widths) == ("tiny-x2", 2, 2, (8, 12))
    assert r.attribution == ["made here"]
    assert r.training["steps"] == 120
    assert [d["file"] for d in r.training["data"]] == ["train_0.tif", "train_1.tif"]
    digest = hashlib.sha256((data / "train_0.tif").read_bytes()).hexdigest()
    assert r.training["data"][0]["sha256"] == digest
    written_out = msgspec.structs.replace(settings, crappify=settings.crappifier)
    assert msgspec.convert(r.training["settings"], TrainSettings) == written_out
    assert loaded.sha256 in (tmp_path / "tiny-x2.md").read_text(encoding="utf-8")

    torch.manual_seed(0)
    untrained = SuperResolver(settings.network).eval()  # bilinear interpolation with the raw mean
    truth = torch.from_numpy(tifffile.imread(data / "val_0.tif").astype(np.float32) / 255)[None, None]
    raw = (torch.nn.functional.avg_pool2d(truth, 2) + 0.1 * torch.randn(1, 1, 32, 32)).clamp(0, 1)
    with torch.inference_mode():
        before, after = (
            float((restore(net, raw) - truth).square().mean()) for net in (untrained, loaded.module)
        )
    assert after < 0.8 * before


def test_the_clock_ends_a_run_too(data: Path, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(TINY, steps=10**9, minutes=0.01)
    path = fit(settings, [data], tmp_path, console=QUIET)
    assert 0 < artifact.load(path).record.training["steps"] < 10**5


def test_a_model_can_start_from_the_trunk_of_another_scale(data: Path, tmp_path: Path) -> None:
    first = fit(TINY, [data], tmp_path / "x2", console=QUIET)
    settings = msgspec.structs.replace(
        TINY, id="tiny-x4", network=NetworkSettings(scale=4, widths=(8, 12)), start=str(first), steps=1
    )
    second = fit(
        msgspec.structs.replace(settings, learning_rate=0.0, weight_decay=0.0),
        [data],
        tmp_path / "x4",
        console=QUIET,
    )
    assert artifact.load(second).record.training["start_sha256"] == artifact.load(first).sha256
    old, new = (artifact.load(p).module.state_dict() for p in (first, second))
    assert torch.equal(old["body.stem.weight"], new["body.stem.weight"])
    assert new["body.head.weight"].shape[0] == 16


def test_a_model_of_other_widths_is_no_start(data: Path, tmp_path: Path) -> None:
    first = fit(msgspec.structs.replace(TINY, steps=1), [data], tmp_path / "a", console=QUIET)
    for widths in ((6, 10), (8, 16), (8, 12, 16)):
        network = NetworkSettings(scale=2, widths=widths)
        other = msgspec.structs.replace(TINY, network=network, patch=16, start=str(first))
        says = re.escape(f"tiny-x2 has widths [8, 12], this network {list(widths)}")
        with pytest.raises(ConfigError, match=says):
            fit(other, [data], tmp_path / "b", console=QUIET)


def test_a_network_from_elsewhere_is_no_start(data: Path, tmp_path: Path) -> None:
    first = fit(msgspec.structs.replace(TINY, steps=1), [data], tmp_path / "a", console=QUIET)
    loaded = artifact.load(first)
    record = msgspec.structs.replace(loaded.record, id="theirs", widths=())
    artifact.save(loaded.module, record, tmp_path / "theirs.pt")
    settings = msgspec.structs.replace(TINY, start=str(tmp_path / "theirs.pt"))
    with pytest.raises(ConfigError, match="theirs is a network from elsewhere"):
        fit(settings, [data], tmp_path / "b", console=QUIET)


def test_procedural_training_needs_no_files(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(
        TINY, sources=(), validation=(), procedural=Procedural(images=2, size=48, share=1.0), steps=2
    )
    record = artifact.load(fit(settings, [], tmp_path, console=QUIET)).record
    assert record.training["data"] == []
    assert record.training["validation"]["psnr"] > 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patch": 13}, "patch = 13"),
        ({"steps": 0}, "steps, batch and validate_every"),
        ({"network": NetworkSettings(scale=0, widths=(8, 12))}, "scale 0"),
        ({"procedural": Procedural(share=1.0)}, "procedural.images is 0"),
        ({"sources": ()}, "nothing to train on"),
        ({"id": "mine/x2"}, "id = 'mine/x2'"),
        ({"seed": -1}, "seed = -1"),
        ({"learning_rate": -1.0}, "learning_rate = -1"),
        ({"ema": 1.0}, "ema = 1: must be at least 0 and below 1"),
        ({"pixel_size_um": (0.02, 0.01)}, "pixel_size_um"),
        ({"network": THREE, "pairs": (PairSource(name="p", low="l*", high="h*"),)}, "pairs: their images"),
        ({"network": THREE, "procedural": Procedural(images=2, share=1.0)}, "procedural: their images"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_settings_that_cannot_work_are_refused(
    data: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        fit(msgspec.structs.replace(TINY, **change), [data], tmp_path, console=QUIET)


def test_an_output_folder_that_cannot_be_one_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write into .*file .*choose another output folder"):
        fit(TINY, [data], tmp_path / "file", console=QUIET)


def test_a_checkpoint_is_neither_overwritten_nor_mixed_up(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="to resume from"):
        fit(TINY, [data], tmp_path, resume=True, console=QUIET)
    fit(TINY, [data], tmp_path, stop_after=1, console=QUIET)
    with pytest.raises(InputError, match="exists: resume that run"):
        fit(TINY, [data], tmp_path, console=QUIET)
    with pytest.raises(ConfigError, match="other settings"):
        fit(msgspec.structs.replace(TINY, seed=1), [data], tmp_path, resume=True, console=QUIET)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def foreign(path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, path)


@pytest.mark.parametrize(
    "spoil", [halve, foreign, lambda path: path.write_bytes(b"spoilt")], ids=["half", "foreign", "text"]
)
def test_a_spoilt_checkpoint_is_one_clear_error(
    data: Path, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(fit(TINY, [data], tmp_path, stop_after=1, console=QUIET))
    with pytest.raises(InputError, match="not a readable checkpoint"):
        fit(TINY, [data], tmp_path, resume=True, console=QUIET)


@pytest.mark.parametrize("name", sorted(p.name for p in CONFIGS.glob("em-*.toml")))
def test_the_shipped_settings_are_valid(name: str) -> None:
    settings = load(CONFIGS / name, TrainSettings)
    assert settings.id == name.removesuffix(".toml")
    assert all(s.attribution and s.licence for s in settings.sources)
