"""What a step sees: the right truth for each task, and drawing ahead changes nothing."""

from __future__ import annotations

import threading
from itertools import islice

import numpy as np
import pytest
import torch

from live_sr.frame import Pixels
from live_sr.train.batches import AS_THEY_ARE, BLIND, Ahead, Batch, BlindSpot, Degraded, Mixed, NoiseToNoise
from live_sr.train.crappify import load_crappifier
from live_sr.train.dataset import Crops
from live_sr.train.files import Place
from live_sr.train.pools import Pool
from series import seen


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stack(planes: int = 5, edge: int = 48) -> Pool:
    """Neighbouring planes of a constant grey level each, which tells them apart."""
    images = [np.full((edge, edge), 10 * (z + 1), np.uint8) for z in range(planes)]
    return Pool("stack", 1.0, [*images], stack=True, places=[Place("s", "s", 0, z) for z in range(planes)])


def texture(edge: int = 96) -> Pixels:
    return np.random.default_rng(3).integers(0, 256, (edge, edge), dtype=np.uint8)


def test_a_degraded_batch_holds_raw_frames_and_their_truth() -> None:
    crops = Crops([Pool("one", 1.0, [texture()])], 32, AS_THEY_ARE)
    batch = Degraded(crops, load_crappifier("em-low-dose"), 4)(3, generator())
    assert batch.raw.shape == (3, 1, 8, 8)
    assert batch.truth.shape == (3, 1, 32, 32)
    again = Degraded(crops, load_crappifier("em-low-dose"), 4)(3, generator())
    assert torch.equal(batch.raw, again.raw)


def test_several_frames_have_the_middle_one_as_truth() -> None:
    crops = Crops([stack()], 32, AS_THEY_ARE, frames=3)
    batch = Degraded(crops, load_crappifier("pssr2"), 4)(6, generator())
    assert batch.raw.shape == (6, 3, 8, 8)
    levels = (batch.truth.mean(dim=(1, 2, 3)) * 255).round()
    assert set(levels.tolist()) <= {10.0, 20.0, 30.0, 40.0, 50.0}


def test_a_frame_that_stands_in_for_another_brings_its_own_noise_along() -> None:
    images = [np.roll(texture(48), z, axis=0) // 4 + 64 * z for z in range(3)]  # each darker than the next
    three = Pool("three", 1.0, [*images], stack=True, places=[Place("s", "s", 0, z) for z in range(3)])
    draw = Degraded(Crops([three], 32, AS_THEY_ARE, frames=5), load_crappifier("em-low-dose"), 4)
    raw, truth, _ = draw(12, generator())
    assert truth.shape == (12, 1, 32, 32)
    middles = (truth.mean(dim=(1, 2, 3)) * 255 / 64).int().tolist()
    assert {*middles} == {0, 1, 2}
    for frames, z in zip(raw, middles, strict=True):
        shown = seen(z, 5, range(3))
        alike = [[torch.equal(a, b) for b in frames] for a in frames]
        assert alike == [[a == b for b in shown] for a in shown]


def test_noise_to_noise_takes_a_neighbour_as_truth() -> None:
    crops = Crops([stack()], 16, AS_THEY_ARE, frames=3)
    batch = NoiseToNoise(crops)(64, generator())
    apart = ((batch.truth - batch.raw).mean(dim=(1, 2, 3)) * 255 / 10).round()
    assert set(apart.tolist()) == {-1.0, 1.0}, "never the frame itself, also at the ends of the stack"


def test_a_blind_spot_is_hidden_by_a_pixel_from_around_it() -> None:
    crops = Crops([Pool("one", 1.0, [texture()])], 64, AS_THEY_ARE)
    raw, truth, where = BlindSpot(crops)(8, generator())
    assert where is not None
    assert float(where.mean()) == pytest.approx(BLIND, rel=0.2)
    assert torch.equal(raw[where == 0], truth[where == 0]), "every other pixel stays"
    assert float((raw != truth)[where > 0].float().mean()) > 0.95, "never the pixel itself"
    for b, _, y, x in where.nonzero()[:50].tolist():
        around = truth[b, 0, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
        assert bool((around == raw[b, 0, y, x]).any())


def test_mixed_batches_come_in_their_shares() -> None:
    first = Batch(torch.zeros(1), torch.zeros(1))
    second = Batch(torch.ones(1), torch.ones(1))
    mixed = Mixed(lambda n, g: first, lambda n, g: second, 0.25)
    seconds = sum(float(mixed(1, generator(seed)).raw) for seed in range(400))
    assert seconds == pytest.approx(300, abs=30)


def test_batches_drawn_ahead_come_in_order() -> None:
    with Ahead(lambda step: Batch(torch.tensor(step), torch.tensor(step)), 5) as ahead:
        assert [int(b.raw) for b in islice(ahead, 6)] == [5, 6, 7, 8, 9, 10]
    assert not [t for t in threading.enumerate() if t.name == "live-sr batches"]


def test_an_error_while_drawing_is_raised_where_the_batch_is_asked_for() -> None:
    def draw(step: int) -> Batch:
        if step == 2:
            raise ValueError("a damaged image")
        return Batch(torch.tensor(step), torch.tensor(step))

    with Ahead(draw, 0) as ahead, pytest.raises(ValueError, match="a damaged image"):
        for _ in ahead:
            pass
