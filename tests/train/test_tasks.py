"""What else a run can learn from, and what it leaves behind: pairs, noisy frames alone, several processes."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from live_sr.cli import app
from live_sr.config import load
from live_sr.errors import ConfigError, InputError
from live_sr.model import artifact
from live_sr.model.engine import load_engine
from live_sr.model.unet import NetworkSettings
from live_sr.train.examples import gather
from live_sr.train.fit import fit
from live_sr.train.losses import LossSettings
from live_sr.train.pairs import PairSource
from live_sr.train.pools import Source
from live_sr.train.procedural import Procedural
from live_sr.train.rundir import CHECKPOINT
from live_sr.train.settings import TrainSettings
from live_sr.train.split import Split

QUIET = Console(quiet=True)
NOISE = 25.0  # grey levels
DISCS = Source(name="discs", files="*.tif", stack=True)
TINY = TrainSettings(
    id="tiny",
    network=NetworkSettings(scale=2, widths=(8, 12)),
    sources=(DISCS,),
    split=Split(by="region", fraction=0.3, guard_px=8, guard_planes=1),
    patch=16,
    batch=4,
    steps=6,
    validate_every=3,
    warmup=3,
    learning_rate=3e-3,
    amp="off",
    threads=1,
)
DENOISER = msgspec.structs.replace(
    TINY,
    network=NetworkSettings(scale=1, widths=(8, 12)),
    loss=LossSettings(l1=0.0, mse=1.0, ssim=0.0),
    steps=150,
    validate_every=50,
    learning_rate=5e-3,
)


def scene(seed: int, edge: int = 96) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:edge, :edge]
    image = np.full((edge, edge), 170.0)
    for cy, cx, r in rng.uniform((0, 0, 5), (edge, edge, 14), (14, 3)):
        image[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = 70
    return image


def noisy(image: NDArray[np.float64], seed: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, NOISE, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten noisy frames of one scene."""
    folder = tmp_path_factory.mktemp("stack")
    frames = np.stack([noisy(scene(0), n) for n in range(10)])
    tifffile.imwrite(folder / "frames.tif", frames, photometric="minisblack")
    return folder


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("task", ["noise2noise", "blind-spot"])
def test_noisy_frames_alone_make_a_denoiser_that_the_engine_runs(
    stack: Path, tmp_path: Path, task: str
) -> None:
    settings = msgspec.structs.replace(DENOISER, task=task)
    model = fit(settings, [stack], tmp_path, console=QUIET)
    engine = load_engine(str(model), precision="float32")
    assert engine.info.scale == 1
    card = (tmp_path / "tiny.md").read_text()
    judged = {
        "noise2noise": "neighbouring frames, noisy alike",
        "blind-spot": "hidden pixels, themselves noisy",
    }
    assert f"validation against {judged[task]}: PSNR" in card
    assert artifact.load(model).record.training["validation"]["against"] == f"against {judged[task]}"
    assert "electrons" not in card, "nothing was degraded"
    assert ("SSIM" in card) == (task == "noise2noise"), "blind spots are alone among known pixels"
    truth = scene(7)
    raw = noisy(truth, 99)
    (restored,) = engine.upscale([raw])
    assert restored.shape == raw.shape
    before, after = (np.square(image - truth).mean() for image in (raw.astype(float), restored.astype(float)))
    assert after < 0.5 * before


def test_several_frames_of_one_scene_restore_better_than_one(stack: Path, tmp_path: Path) -> None:
    truth = scene(7)
    raw = np.stack([noisy(truth.reshape(48, 2, 48, 2).mean(axis=(1, 3)), 90 + n) for n in range(5)])
    left = []
    for frames in (1, 5):
        network = NetworkSettings(scale=2, widths=(8, 12), frames=frames)
        settings = msgspec.structs.replace(
            TINY, network=network, neighbours="t", crappify="pssr2", steps=150, validate_every=75
        )
        model = fit(settings, [stack], tmp_path / str(frames), console=QUIET)
        record = artifact.load(model).record
        assert (record.frames, record.neighbours) == (frames, "t")
        (restored,) = load_engine(str(model), precision="float32").upscale([raw if frames > 1 else raw[2]])
        left.append(float(np.square(restored - truth).mean()))
    assert left[1] < 0.8 * left[0]


def test_real_pairs_are_learnt_from(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for n in range(3):
        truth = scene(n)
        low = truth.reshape(48, 2, 48, 2).mean(axis=(1, 3))
        for name, image in (("low", noisy(low, n)), ("high", np.rint(truth).astype(np.uint8))):
            (data / name).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(data / name / f"{n}.tif", image)
    pairs = (PairSource(name="real", low="low/*.tif", high="high/*.tif", attribution="made here"),)
    settings = msgspec.structs.replace(TINY, sources=(), pairs=pairs, split=None, steps=60, validate_every=20)
    record = artifact.load(fit(settings, [data], tmp_path / "run", console=QUIET)).record
    assert record.attribution == ["made here"]
    assert {f["file"] for f in record.training["data"]} == {
        f"{k}/{n}.tif" for k in ("low", "high") for n in range(3)
    }
    psnr = [float(row["psnr"]) for row in log(tmp_path / "run")]
    assert psnr[-1] > psnr[0], "it learns"
    assert "; validation on real pairs: PSNR" in (tmp_path / "run" / "tiny.md").read_text()


def test_pairs_of_a_12_bit_camera_are_given_their_range(tmp_path: Path) -> None:
    for n in range(2):
        truth = np.rint(scene(n) / 255 * 4095).astype(np.uint16)
        for name, image in (("low", truth[::2, ::2]), ("high", truth)):
            (tmp_path / "pairs" / name).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(tmp_path / "pairs" / name / f"{n}.tif", image)
    config = tmp_path / "run.toml"
    config.write_text(
        'id = "twelve"\nsteps = 1\npatch = 16\nbatch = 2\n[network]\nscale = 2\nwidths = [8, 12]\n'
    )
    options = ["--range", "0", "4095", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, ["train", str(config), "--pairs", str(tmp_path / "pairs"), *options])
    assert done.exit_code == 0, done.output
    (pairs,) = load(tmp_path / "run" / "settings.toml", TrainSettings).pairs
    assert pairs.range == (0, 4095)
    alone = CliRunner().invoke(app, ["train", str(config), "--data", str(tmp_path), *options])
    assert alone.exit_code == 1
    assert "--range is for --pairs" in alone.output


def test_files_of_pairs_are_no_good_images_and_validation_keeps_out_of_pairs(tmp_path: Path) -> None:
    for n in range(3):
        truth = scene(n)
        low = noisy(truth.reshape(48, 2, 48, 2).mean(axis=(1, 3)), n)
        images = {f"low/{n}": low, f"high/{n}": np.rint(truth).astype(np.uint8), f"good{n}": noisy(truth, 9)}
        for name, image in images.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / f"{name}.tif", image)
    settings = msgspec.structs.replace(
        TINY,
        sources=(Source(name="all", files="*.tif"),),
        pairs=(PairSource(name="real", low="low/*.tif", high="high/*.tif"),),
        validation=("*2.tif",),
        split=Split(by="file"),
    )
    examples = gather(settings, [tmp_path], cache=tmp_path)
    assert sorted(f.name for f in examples.files) == [
        *("good0.tif", "good1.tif"),
        *("high/0.tif", "high/1.tif", "low/0.tif", "low/1.tif"),
    ], "each file once, as what it is"
    assert [f.name for f in examples.judged] == ["good2.tif"]
    assert examples.against == "at 40 electrons and read noise 0.0157 and on real pairs"


def test_a_copy_under_another_name_is_on_one_side_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for n, name in enumerate(("a", "b", "judged")):
        tifffile.imwrite(tmp_path / f"{name}.tif", noisy(scene(n), n))
    shutil.copy(tmp_path / "judged.tif", tmp_path / "copy.tif")
    source = Source(name="all", files="*.tif")
    settings = msgspec.structs.replace(TINY, sources=(source,), validation=("judged.tif",), split=None)
    examples = gather(settings, [tmp_path], cache=tmp_path)
    assert [f.name for f in examples.files] == ["a.tif", "b.tif"]
    assert "validated on under another name: copy.tif" in caplog.text


def test_a_critic_trains_along_and_resumes(stack: Path, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(TINY, loss=LossSettings(adversarial=0.01))
    fit(settings, [stack], tmp_path / "whole", console=QUIET)
    fit(settings, [stack], tmp_path / "parts", stop_after=3, console=QUIET)
    fit(settings, [stack], tmp_path / "parts", resume=True, console=QUIET)
    whole, parts = (torch.load(tmp_path / n / CHECKPOINT, weights_only=True) for n in ("whole", "parts"))
    for part in ("network", "critic"):
        for name, weight in whole[part].items():
            torch.testing.assert_close(parts[part][name], weight, rtol=0, atol=1e-6)


def test_a_run_stops_when_nothing_improves_any_more(stack: Path, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(TINY, learning_rate=0.0, steps=300, validate_every=2, patience=2)
    record = artifact.load(fit(settings, [stack], tmp_path, console=QUIET)).record
    assert record.training["steps"] == 6, "the first validation is the best, two more are waited for"


def test_a_run_folder_shows_and_repeats_the_run(stack: Path, tmp_path: Path) -> None:
    first = fit(TINY, [stack], tmp_path / "first", console=QUIET)
    rows = log(tmp_path / "first")
    assert [int(row["step"]) for row in rows] == [3, 6]
    assert float(rows[-1]["psnr"]) > 5
    sheet = Image.open(io.BytesIO((tmp_path / "first" / "sheets" / "step-0000006.png").read_bytes()))
    assert sheet.width > 4 * 200, "four pictures side by side"
    described = json.loads((tmp_path / "first" / "data.json").read_text())
    assert [f["file"] for f in described["files"]] == ["frames.tif"]
    assert described["versions"]["torch"] == torch.__version__

    again = load(tmp_path / "first" / "settings.toml", TrainSettings)
    assert again.crappifier == TINY.crappifier, "the preset is written out"
    second = fit(again, [stack], tmp_path / "second", console=QUIET)
    one, two = (artifact.load(path).module.state_dict() for path in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_images_that_changed_since_are_not_resumed_with(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    tifffile.imwrite(
        data / "a.tif", np.stack([noisy(scene(n), n) for n in range(10)]), photometric="minisblack"
    )
    fit(TINY, [data], tmp_path / "run", stop_after=1, console=QUIET)
    tifffile.imwrite(
        data / "a.tif", np.stack([noisy(scene(n), 50) for n in range(10)]), photometric="minisblack"
    )
    with pytest.raises(ConfigError, match=r"images of this run changed since it began \(a.tif\)"):
        fit(TINY, [data], tmp_path / "run", resume=True, console=QUIET)


def test_fine_tuning_starts_where_the_model_is(stack: Path, tmp_path: Path) -> None:
    first = fit(TINY, [stack], tmp_path / "first", console=QUIET)
    settings = msgspec.structs.replace(
        TINY, start=str(first), learning_rate=0.0, weight_decay=0.0, steps=1, validate_every=1
    )
    second = fit(settings, [stack], tmp_path / "second", console=QUIET)
    one, two = (artifact.load(path) for path in (first, second))
    assert two.record.training["start_sha256"] == one.sha256
    ours, theirs = one.module.state_dict(), two.module.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_several_processes_train_one_model(stack: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        'id = "several"\npatch = 16\nbatch = 2\nsteps = 4\nvalidate_every = 2\nthreads = 1\namp = "off"\n'
        '[network]\nscale = 2\nwidths = [8, 12]\n[[sources]]\nname = "discs"\nfiles = "*.tif"\n'
        'stack = true\n[split]\nby = "region"\nfraction = 0.3\nguard_planes = 1\n'
        "[procedural]\nimages = 2\nsize = 48\nshare = 0.5\n"  # which both render into one folder
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=127.0.0.1:0", "-m", "live_sr", "train", str(config)]
    done = subprocess.run(
        [*command, "--data", str(stack), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert artifact.load(tmp_path / "out" / "several.pt").record.training["steps"] == 4
    assert len(log(tmp_path / "out")) == 2, "one process writes"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": "blind-spot"}, "network.scale = 1"),
        (
            {"task": "noise2noise", "network": NetworkSettings(scale=1, widths=(8,)),
             "procedural": Procedural(images=1, share=1.0)},
            "leave out pairs and procedural",
        ),
        ({"crappify": "no-such-preset"}, "no-such-preset"),
        ({"pairs": (PairSource(name="a", low="*", high="*"),), "pairs_share": 0.0}, "pairs_share = 0"),
    ],
    ids=["scale", "procedural", "preset", "share"],
)  # fmt: skip
def test_tasks_that_contradict_themselves_are_refused(
    stack: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        fit(msgspec.structs.replace(TINY, **change), [stack], tmp_path, console=QUIET)


def test_without_anything_to_be_judged_on_a_run_does_not_begin(stack: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to validate on"):
        fit(msgspec.structs.replace(TINY, split=None), [stack], tmp_path, console=QUIET)
