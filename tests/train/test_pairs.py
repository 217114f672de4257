"""Real pairs are laid over each other to a fraction of a pixel, or refused by name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from live_sr.errors import ConfigError, InputError
from live_sr.train.dataset import Augment
from live_sr.train.files import Shelf
from live_sr.train.pairs import PairCrops, PairSource, load_pairs, register, split_pairs
from live_sr.train.split import Split

AS_IT_IS = Augment(zoom_share=0.0, window_share=0.0, invert_share=0.0)
SOURCE = PairSource(name="pairs", low="low/*", high="high/*")
EDGE = 96  # of a raw frame


def texture(edge: int, scale: int, shift: tuple[float, float], seed: int = 0) -> NDArray[np.float64]:
    """A sum of waves, known between the pixels too: high-resolution pixels, moved by raw pixels exactly."""
    rng = np.random.default_rng(seed)
    y, x = (np.arange(edge * scale, dtype=np.float64) - scale * s for s in shift)
    total = np.zeros((edge * scale, edge * scale))
    for _ in range(40):
        angle, length, phase = rng.uniform(0, np.pi), scale * rng.uniform(4, 16), rng.uniform(0, 2 * np.pi)
        ky, kx = 2 * np.pi / length * np.array([np.sin(angle), np.cos(angle)])
        total += np.cos(ky * y[:, None] + kx * x[None] + phase)
    return 0.5 + total / 30


def frame(
    moved: NDArray[np.float64], scale: int, dose: float | None = None, seed: int = 0
) -> NDArray[np.uint16]:
    edge = moved.shape[0] // scale
    signal = moved.clip(0, 1).reshape(edge, scale, edge, scale).mean(axis=(1, 3))
    if dose:
        signal = np.random.default_rng(seed).poisson(signal * dose) / dose
    return np.rint(signal.clip(0, 1) * 65535).astype(np.uint16)


def to_16(image: NDArray[np.float64]) -> NDArray[np.uint16]:
    return np.rint(image.clip(0, 1) * 65535).astype(np.uint16)


def write(path: Path, pixels: NDArray[Any], **options: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, pixels, photometric="minisblack", **options)


def write_pair(
    folder: Path,
    name: str,
    scale: int,
    shift: tuple[float, float] = (0, 0),
    *,
    seed: int = 0,
    dose: float | None = None,
) -> None:
    write(folder / "low" / f"{name}.tif", frame(texture(EDGE, scale, shift, seed), scale, dose))
    write(folder / "high" / f"{name}.tif", to_16(texture(EDGE, scale, (0, 0), seed)))


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.0, -5.0), (-7.3, 2.61), (0.17, 11.5)], ids=str)
def test_a_planted_shift_is_found_under_noise(scale: int, shift: tuple[float, float]) -> None:
    low = frame(texture(EDGE, scale, shift), scale, dose=40)
    found, correlation = register(low, to_16(texture(EDGE, scale, (0, 0))), scale)
    assert found == pytest.approx(shift, abs=0.15)
    assert correlation > 0.7


@pytest.mark.parametrize("held", [True, False], ids=["held", "lazy"])
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.0, -5.0), (-7.3, 2.61), (0.17, 11.5)], ids=str)
def test_a_truths_mean_over_each_raw_pixel_is_the_raw_crop(
    tmp_path: Path, scale: int, shift: tuple[float, float], held: bool
) -> None:
    write_pair(tmp_path, "a", scale, shift)
    pairs, files = load_pairs([SOURCE], [tmp_path], scale, shelf=Shelf() if held else Shelf(0))
    assert [f.name for f in files] == ["low/a.tif", "high/a.tif"]
    varied = Augment(window_share=0.5, gain=(0.5, 0.9), offset=0.05, invert_share=0.5)
    raw, truth = PairCrops(pairs, 24, scale, varied).batch(12, torch.Generator().manual_seed(0))
    assert (raw.shape, truth.shape) == ((12, 1, 24, 24), (12, 1, 24 * scale, 24 * scale))
    assert float(raw.std()) > 0.1
    assert float((F.avg_pool2d(truth, scale) - raw).abs().max()) < 0.03


def test_whole_pixels_of_the_truth_are_not_interpolated(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", 4, (2.25, -3.5))
    ((pair,), _) = load_pairs([SOURCE], [tmp_path], 4)
    assert pair.shift_px == pytest.approx((2.25, -3.5), abs=0.011)
    y, x = pair.high.shape
    assert (y, x) == tuple(4 * n for n in pair.low.shape)
    high = tifffile.imread(tmp_path / "high" / "a.tif")
    low = tifffile.imread(tmp_path / "low" / "a.tif")
    np.testing.assert_array_equal(pair.low[0 : y // 4, 0 : x // 4], low[3:, :92])
    np.testing.assert_array_equal(pair.high[0:y, 0:x], high[3:375, 14:382])


def test_grey_levels_are_left_alone(tmp_path: Path) -> None:
    scale = 2
    low = 8000 + frame(texture(EDGE, scale, (0, 0)), scale) // 8
    write(tmp_path / "low" / "a.tif", low)
    write(tmp_path / "high" / "a.tif", (to_16(texture(EDGE, scale, (0, 0))) >> 8).astype(np.uint8))
    pairs, _ = load_pairs([SOURCE], [tmp_path], scale)
    raw, truth = PairCrops(pairs, EDGE, scale, AS_IT_IS).batch(1, torch.Generator().manual_seed(0))
    assert sorted((raw * 65535).round().int().flatten().tolist()) == sorted(low.flatten().tolist())
    assert float(truth.std()) > 5 * float(raw.std())


def test_floats_of_a_pair_share_one_range(tmp_path: Path) -> None:
    high = texture(EDGE, 2, (0, 0))
    low = high.reshape(EDGE, 2, EDGE, 2).mean(axis=(1, 3)) * 0.5 + 0.2
    write(tmp_path / "low" / "a.tif", low.astype(np.float32))
    write(tmp_path / "high" / "a.tif", high.astype(np.float32))
    _, (a, b) = load_pairs([SOURCE], [tmp_path], 2)
    assert a.range == b.range
    given = PairSource(name="pairs", low="low/*", high="high/*", range=(-1.0, 2.0))
    _, (a, b) = load_pairs([given], [tmp_path], 2)
    assert a.range == b.range == (-1.0, 2.0)


def test_every_plane_of_a_stack_is_a_pair(tmp_path: Path) -> None:
    shifts = [(0.0, 0.0), (2.0, 1.0), (-4.0, 3.0)]
    write(
        tmp_path / "low" / "a.tif", np.stack([frame(texture(EDGE, 2, s, n), 2) for n, s in enumerate(shifts)])
    )
    write(tmp_path / "high" / "a.tif", np.stack([to_16(texture(EDGE, 2, (0, 0), n)) for n in range(3)]))
    pairs, _ = load_pairs([SOURCE], [tmp_path], 2)
    assert [pair.shift_px for pair in pairs] == [pytest.approx(s, abs=0.03) for s in shifts]


# ------------------------------------------------------------------------------------------------ refusals


def another_place(folder: Path) -> None:
    write(folder / "low" / "bad.tif", frame(texture(EDGE, 2, (0, 0), seed=7), 2))
    write(folder / "high" / "bad.tif", to_16(texture(EDGE, 2, (0, 0), seed=8)))


def inverted(folder: Path) -> None:
    write(folder / "low" / "bad.tif", 65535 - frame(texture(EDGE, 2, (0, 0)), 2))
    write(folder / "high" / "bad.tif", to_16(texture(EDGE, 2, (0, 0))))


def flat(folder: Path) -> None:
    write(folder / "low" / "bad.tif", np.full((EDGE, EDGE), 9, np.uint8))
    write(folder / "high" / "bad.tif", np.full((2 * EDGE, 2 * EDGE), 9, np.uint8))


def other_scale(folder: Path) -> None:
    write(folder / "low" / "bad.tif", frame(texture(EDGE, 2, (0, 0)), 2))
    write(folder / "high" / "bad.tif", to_16(texture(EDGE, 4, (0, 0))))


def other_planes(folder: Path) -> None:
    write(folder / "low" / "bad.tif", np.stack([frame(texture(EDGE, 2, (0, 0)), 2)] * 2))
    write(folder / "high" / "bad.tif", to_16(texture(EDGE, 2, (0, 0))))


def far_away(folder: Path) -> None:
    write_pair(folder, "bad", 2, (20.0, 0.0))


def not_a_number(folder: Path) -> None:
    write_pair(folder, "bad", 2)
    write(folder / "high" / "bad.tif", np.full((2 * EDGE, 2 * EDGE), np.nan, np.float32))


REFUSED = {
    another_place: r"low/bad\.tif and high/bad\.tif do not show the same place: their correlation is 0\.\d\d",
    inverted: "do not show the same place: their correlation is",
    flat: r"correlation is 0\.00 at best",
    other_scale: r"have 96 x 96 and 384 x 384 pixels: the second must have exactly 2 times as many",
    other_planes: r"low/bad\.tif has 2 planes and high/bad\.tif 1",
    far_away: r"low/bad\.tif and high/bad\.tif are shifted by \(20\.0, -?0\.0\) raw pixels, more than .* = 16",
    not_a_number: "NaN or infinite",
}


@pytest.mark.parametrize(("spoil", "why"), REFUSED.items(), ids=[f.__name__ for f in REFUSED])
def test_a_wrong_pair_is_named_skipped_and_counted(
    tmp_path: Path, spoil: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = PairSource(name="pairs", low="low/*", high="high/*", max_shift_px=16)
    spoil(tmp_path)
    with pytest.raises(InputError, match=r"pairs: no usable pair of low/\* and high/\*.*1 could not be used"):
        load_pairs([source], [tmp_path], 2)
    assert len(caplog.records) == 2
    caplog.clear()
    write_pair(tmp_path, "good", 2)
    with caplog.at_level(logging.WARNING):
        pairs, files = load_pairs([source], [tmp_path], 2)
    assert (len(pairs), [f.name for f in files]) == (1, ["low/good.tif", "high/good.tif"])
    said, count = [r.getMessage() for r in caplog.records]
    assert count == "pairs: 1 of 2 pairs could not be used"
    with pytest.raises(InputError, match=why):
        raise InputError(said)


def test_crops_larger_than_the_overlap_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", 2, (10.0, 0.0))
    pairs, _ = load_pairs([SOURCE], [tmp_path], 2)
    assert PairCrops(pairs, EDGE - 10, 2, AS_IT_IS).batch(1, torch.Generator())[0].shape[-1] == EDGE - 10
    with pytest.raises(InputError, match="no pair overlaps by 87 x 87 raw pixels"):
        PairCrops(pairs, EDGE - 9, 2, AS_IT_IS)


# ------------------------------------------------------------------------------------------------ matching


@pytest.mark.parametrize(
    ("low", "high", "names"),
    [
        ("low/*", "high/*", ["low/a.tif", "high/a.ome.tif", "low/b.tif", "high/b.tif"]),
        ("*_lo.tif", "*_hi.tif", ["a_lo.tif", "a_hi.tif", "b_lo.tif", "b_hi.tif"]),
        ("d?/low/*.tif", "d?/high/*.tif", ["d1/low/a.tif", "d1/high/a.tif", "d2/low/a.tif", "d2/high/a.tif"]),
        ("l[ao]_*.tif", "h[ai]_*.tif", ["la_1.tif", "ha_1.tif"]),
    ],
    ids=["folders", "endings", "nested", "sets"],
)
def test_partners_have_the_same_text_for_the_wildcards(
    tmp_path: Path, low: str, high: str, names: list[str]
) -> None:
    for n, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        seed = n // 2
        image = to_16(texture(EDGE, 2, (0, 0), seed)) if n % 2 else frame(texture(EDGE, 2, (0, 0), seed), 2)
        tifffile.imwrite(tmp_path / name, image)
    pairs, files = load_pairs([PairSource(name="p", low=low, high=high)], [tmp_path], 2)
    assert [f.name for f in files] == names
    assert len(pairs) == len(names) // 2


def test_by_order_every_file_needs_a_partner(tmp_path: Path) -> None:
    for n in range(2):
        write(tmp_path / "low" / f"scan{n}.tif", frame(texture(EDGE, 2, (0, 0), n), 2))
        write(tmp_path / "high" / f"image{n + 5}.tif", to_16(texture(EDGE, 2, (0, 0), n)))
    source = PairSource(name="p", low="low/*", high="high/*", match="order")
    _, files = load_pairs([source], [tmp_path], 2)
    assert [f.name for f in files] == ["low/scan0.tif", "high/image5.tif", "low/scan1.tif", "high/image6.tif"]
    (tmp_path / "high" / "image5.tif").unlink()
    with pytest.raises(ConfigError, match=r"low/\* matches 2 files and high/\* 1"):
        load_pairs([source], [tmp_path], 2)


def test_files_without_a_partner_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pair(tmp_path, "a", 2)
    write_pair(tmp_path, "b", 2)
    (tmp_path / "high" / "b.tif").unlink()
    with caplog.at_level(logging.WARNING):
        pairs, _ = load_pairs([SOURCE], [tmp_path], 2)
    assert len(pairs) == 1
    assert "pairs: 1 files have no partner: low/b.tif" in caplog.text


def test_two_files_of_one_name_are_not_guessed_between(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", 2)
    write(tmp_path / "low" / "a.ome.tif", frame(texture(EDGE, 2, (0, 0)), 2))
    with pytest.raises(ConfigError, match="both match low"):
        load_pairs([SOURCE], [tmp_path], 2)


# --------------------------------------------------------------------------------------------------- split


def test_pairs_are_split_by_file_or_by_region(tmp_path: Path) -> None:
    for n, name in enumerate("abcd"):
        write_pair(tmp_path, name, 2, (1.5, -2.0), seed=n)
    pairs, _ = load_pairs([SOURCE], [tmp_path], 2)
    train, validation = split_pairs(pairs, Split(by="file"))
    assert (len(train), len(validation)) == (3, 1)
    assert not {p.place.file for p in train} & {p.place.file for p in validation}
    with pytest.raises(InputError, match="no image has room"):
        split_pairs(pairs, Split(by="region"))
    low = np.kron(frame(texture(EDGE, 2, (0, 0)), 2), np.ones((3, 1), np.uint16))
    write(tmp_path / "low" / "e.tif", low)
    write(tmp_path / "high" / "e.tif", np.kron(low, np.ones((2, 2), np.uint16)))
    pairs, _ = load_pairs([SOURCE], [tmp_path], 2)
    train, validation = split_pairs(pairs, Split(by="region"))
    assert len(train) == 5
    (held,) = validation
    assert (held.place.file, held.low.shape, held.high.shape) == ("low/e.tif", (64, 96), (128, 192))
    assert train[4].low.shape == (288 - 64 - 64, 96)
    np.testing.assert_array_equal(held.low[0:64, 0:96], low[-64:])
    np.testing.assert_array_equal(held.high[0:128, 0:192], np.kron(low, np.ones((2, 2), np.uint16))[-128:])


def test_low_dose_micrographs_are_laid_over_their_truth(tmp_path: Path, shared_data: Path) -> None:
    stack = tifffile.imread(shared_data / "fibsem_medulla" / "val_520px_every6th.ome.tif")
    rng = np.random.default_rng(0)
    for n, plane in enumerate(stack[:4]):
        y, x = rng.integers(0, 41, 2)  # the sample has moved by whole pixels of the truth
        seen = plane[y : y + 480, x : x + 480].reshape(120, 4, 120, 4).mean(axis=(1, 3)) / 255
        low = (rng.poisson(seen * 40) / 40 + rng.normal(0, 4 / 255, seen.shape)).clip(0, 1)
        found, correlation = register(to_16(low), plane[20:500, 20:500], 4)
        assert found == pytest.approx(((20 - y) / 4, (20 - x) / 4), abs=0.15)
        assert correlation > 0.8
        _, other = register(to_16(low), stack[n + 5][20:500, 20:500], 4)
        assert other < 0.3
