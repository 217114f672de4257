"""Holes are drawn as they are described, hide what they should, and a network learns to fill them."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tifffile
import torch
from rich.console import Console

from live_sr.config import load
from live_sr.errors import ConfigError
from live_sr.model import artifact
from live_sr.model.engine import load_engine
from live_sr.model.unet import NetworkSettings, SuperResolver
from live_sr.sim.specimen import Neuropil
from live_sr.train.batches import AS_THEY_ARE, Degraded
from live_sr.train.crappify import load_crappifier
from live_sr.train.dataset import Crops
from live_sr.train.files import Place
from live_sr.train.fit import fit, interpolate, restore
from live_sr.train.holes import HoleSettings, draw_holes, parted, punch
from live_sr.train.pools import Pool, Source
from live_sr.train.rundir import CHECKPOINT
from live_sr.train.settings import TrainSettings, check
from live_sr.train.split import Split

QUIET = Console(quiet=True)
HOLES = HoleSettings()
EVERY = HoleSettings(share=1.0, neighbours=0.5)
TINY = TrainSettings(
    id="tiny-holes",
    network=NetworkSettings(scale=2, widths=(8, 16), frames=3, holes=True),
    holes=HOLES,
    sources=(Source(name="tissue", files="*.tif", stack=True),),
    split=Split(by="region", fraction=0.35, guard_px=8, guard_planes=1),
    crappify="em-low-dose",
    patch=24,
    batch=6,
    steps=6,
    validate_every=3,
    warmup=5,
    learning_rate=3e-3,
    neighbours="z",
    amp="off",
    threads=1,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def apart(n: int, frames: int) -> torch.Tensor:
    """No frame stands in for another."""
    return torch.arange(frames).expand(n, frames)


def alone(kind: str, **sizes: object) -> HoleSettings:
    shares = dict.fromkeys(("tiles", "bands", "lines"), 0.0) | {kind: 1.0}
    return msgspec.convert({"most": 1, **shares, **sizes}, HoleSettings)


# ---------------------------------------------------------------------------------------------- drawing


def test_every_example_has_holes_of_zeros_and_ones_and_the_generator_decides() -> None:
    masks = draw_holes(64, (40, 50), HOLES, generator())
    assert masks.shape == (64, 1, 40, 50)
    assert masks.dtype == torch.float32
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(masks, draw_holes(64, (40, 50), HOLES, generator()))
    assert not torch.equal(masks, draw_holes(64, (40, 50), HOLES, generator(1)))
    share = masks.mean(dim=(1, 2, 3))
    assert float(share.min()) < 0.1
    assert float(share.max()) > 0.9, "some are missing nearly whole"


def test_a_missing_tile_is_a_rectangle_of_its_size() -> None:
    masks = draw_holes(50, (60, 60), alone("tiles", tile_px=[6, 12]), generator())[:, 0] > 0
    for mask in masks:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None])
        assert 3 <= int(rows.sum()) <= 13
        assert 3 <= int(columns.sum()) <= 13


def test_dropped_lines_are_whole_rows_side_by_side() -> None:
    masks = draw_holes(50, (60, 30), alone("lines", lines_px=[1, 5]), generator())[:, 0] > 0
    for mask in masks:
        rows = mask.any(1)
        assert torch.equal(mask, rows[:, None].expand(60, 30))
        at = rows.nonzero()[:, 0]
        assert 1 <= len(at) <= 5
        assert int(at[-1] - at[0]) == len(at) - 1


def test_a_band_is_no_wider_and_no_longer_than_drawn() -> None:
    settings = alone("bands", band_px=[4, 6], band_length_px=[30, 40])
    masks = draw_holes(50, (100, 100), settings, generator())[:, 0] > 0
    angles = np.linspace(0, np.pi, 36, endpoint=False)
    for mask in masks.numpy():
        y, x = mask.nonzero()
        if not len(y):
            continue
        extents = [np.ptp(x * np.cos(a) + y * np.sin(a)) for a in angles]
        assert max(extents) <= 41
        assert mask.sum() <= 6 * 41, "thin: no more than width times length"
    assert masks.any(2).any(1).float().mean() > 0.9


def test_examples_have_holes_in_their_share() -> None:
    raw = torch.rand(400, 3, 8, 8)
    batch = punch(raw, apart(400, 3), HoleSettings(share=0.4), generator())
    assert float(batch[:, 3].flatten(1).any(1).float().mean()) == pytest.approx(0.4, abs=0.08)


# --------------------------------------------------------------------------------------------- punching


def test_a_hole_is_empty_and_neighbours_are_whole() -> None:
    raw = 0.5 + 0.5 * torch.rand(40, 5, 16, 16)
    shown, hole = parted(punch(raw, apart(40, 5), EVERY, generator()))
    assert hole is not None
    assert float(hole.mean()) > 0.05
    assert bool((shown[:, 2:3][hole > 0] == 0).all())
    assert torch.equal(shown[:, 2:3][hole == 0], raw[:, 2:3][hole == 0])
    others = shown[:, [0, 1, 3, 4]]
    assert float(others.min()) >= 0.5, "nothing but what a frame shows"
    assert float((others != raw[:, [0, 1, 3, 4]]).float().mean()) > 0.01, "bridged where they had holes"


def test_a_frame_that_stands_in_for_another_lacks_what_that_one_lacks() -> None:
    at = torch.tensor([0, 2, 2, 2, 0]).expand(60, 5)  # the planes on either side of the middle are lost
    raw = (0.2 + 0.1 * at)[:, :, None, None].expand(-1, -1, 16, 16)
    shown, hole = parted(punch(raw, at, EVERY, generator()))
    assert hole is not None
    inside = hole.expand(-1, 2, -1, -1) > 0
    assert float(inside.float().mean()) > 0.05
    assert bool((shown[:, [1, 3]][inside] == 0.2).all()), "the middle one itself does not show what it lacks"
    assert torch.equal(shown[:, 0], shown[:, 4])
    alone = torch.full((60, 5), 2)
    _, hole = parted(punch(raw, alone, EVERY, generator()))
    assert hole is not None
    assert not hole.any(), "nothing can fill what the only frame lacks"


def test_at_the_end_of_a_stack_both_sides_show_one_frame_and_lack_the_same() -> None:
    """Of two planes each is an end, and the other one its neighbour on either side."""
    levels = (60, 180)
    planes = [np.full((32, 32), level, np.uint8) for level in levels]
    pool = Pool("s", 1.0, [*planes], stack=True, places=[Place("s", "s", 0, z) for z in range(2)])
    crops = Crops([pool], 32, AS_THEY_ARE, frames=3)
    draw = Degraded(crops, load_crappifier("pssr2"), 2, EVERY)
    batch = draw(40, generator())
    shown, hole = parted(batch.raw)
    assert hole is not None
    assert float(hole.mean()) > 0.1
    assert torch.equal(shown[:, 0], shown[:, 2])
    own = batch.truth[:, :, ::2, ::2]
    other = sum(levels) / 255 - own
    is_own = (shown[:, :1] - own).abs() < (shown[:, :1] - other).abs()
    assert float(is_own[hole > 0].float().mean()) < 0.02
    assert 0.02 < float(is_own[hole == 0].float().mean()) < 0.5, "where the neighbour has holes"


def test_the_level_of_a_patch_is_that_of_its_measured_pixels() -> None:
    """Brightness inside the hole changes nothing: what the untrained network gives is in raw's own units."""
    net = SuperResolver(TINY.network).eval()
    raw = torch.full((2, 4, 24, 24), 0.25) + 0.05 * torch.rand(2, 4, 24, 24)
    raw[:, 3] = 0
    raw[0, 3, 4:14, 4:14] = 1
    raw[1, 3, :, :22] = 1  # too little is left
    other = raw.clone()
    other[:, 1:2][raw[:, 3:] > 0] = 0.9
    with torch.inference_mode():
        torch.testing.assert_close(restore(net, other), restore(net, raw), rtol=0, atol=1e-6)
        inside = restore(net, raw)[0, 0, 14:22, 14:22]
    torch.testing.assert_close(inside, interpolate(raw, 2)[0, 0, 14:22, 14:22], rtol=0, atol=0.02)


# --------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Neighbouring sections of procedural tissue, which move on smoothly from one to the next."""
    folder = tmp_path_factory.mktemp("tissue")
    specimen = Neuropil(5, grain=0.5)
    planes = [specimen.render((112, 112), pixel_size_um=0.01, z_um=0.01 * z) for z in range(18)]
    stack = np.rint(255 * np.stack(planes)).astype(np.uint8)
    tifffile.imwrite(folder / "tissue.tif", stack, photometric="minisblack")
    return folder


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_trained_network_beats_interpolation_inside_the_holes(tissue: Path, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(TINY, steps=150, validate_every=75)
    model = fit(settings, [tissue], tmp_path, console=QUIET)
    first, last = log(tmp_path)
    assert first["psnr in holes, interpolated"] == last["psnr in holes, interpolated"], "the same holes"
    assert float(last["psnr in holes"]) > float(last["psnr in holes, interpolated"]) + 0.4
    record = artifact.load(model).record
    assert record.holes
    assert record.training["settings"]["holes"]["share"] == HOLES.share
    assert load_engine(str(model), precision="float32", threads=1).info.holes


def test_a_resumed_run_draws_the_same_holes(tissue: Path, tmp_path: Path) -> None:
    fit(TINY, [tissue], tmp_path / "whole", console=QUIET)
    fit(TINY, [tissue], tmp_path / "parts", stop_after=2, console=QUIET)
    fit(TINY, [tissue], tmp_path / "parts", resume=True, console=QUIET)
    whole, parts = (torch.load(tmp_path / n / CHECKPOINT, weights_only=True) for n in ("whole", "parts"))
    for name, weight in whole["network"].items():
        torch.testing.assert_close(parts["network"][name], weight, rtol=0, atol=1e-6, msg=name)
    again = load(tmp_path / "whole" / "settings.toml", TrainSettings)
    assert again.holes == HOLES


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"holes": None}, r"network.holes is true, and there is no \[holes\]"),
        ({"network": NetworkSettings(frames=3)}, r"network.holes is false, and there is a \[holes\]"),
        ({"network": NetworkSettings(frames=1, holes=True)}, "set it to 3 or 5"),
        ({"holes": HoleSettings(most=0)}, "most = 0"),
        ({"holes": HoleSettings(tile_px=(9, 3))}, "smaller one first"),
        ({"holes": HoleSettings(tiles=0, bands=0, lines=0)}, "a kind with a share"),
    ],
    ids=["no holes", "no mask", "one frame", "none", "range", "kinds"],
)
def test_settings_that_contradict_each_other_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check(msgspec.structs.replace(TINY, **({"patch": 24} | change)))
