"""Each term of the loss against an independent calculation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from live_sr.train import metrics
from live_sr.train.losses import (
    Adversary,
    LossSettings,
    critic_loss,
    fooling_loss,
    masked_psnr,
    ms_ssim,
    restoration_loss,
    ssim,
)


def pair(edge: int = 48) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    truth = torch.rand((2, 1, edge, edge), generator=g)
    return (truth + 0.1 * torch.randn(truth.shape, generator=g)).clamp(0, 1), truth


def only(**weights: float) -> LossSettings:
    return LossSettings(**{"l1": 0.0, "ssim": 0.0, **weights})


def test_ssim_agrees_with_scikit_image() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((40, 52))
    b = np.clip(a + rng.normal(0, 0.2, a.shape), 0, 1)
    x, y = (torch.from_numpy(image)[None, None] for image in (a, b))
    # scikit-image crops half a window from each border, which are exactly the windows that fit
    expected = structural_similarity(a, b, data_range=1.0)  # type: ignore[no-untyped-call]
    assert float(ssim(x, y)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (only(l1=1.0), lambda a, b: np.abs(a - b).mean()),
        (only(mse=2.0), lambda a, b: 2 * np.square(a - b).mean()),
        (
            only(gradient=1.0),
            lambda a, b: np.abs(np.diff(a - b, axis=-2)).mean() + np.abs(np.diff(a - b, axis=-1)).mean(),
        ),
        (only(), lambda a, b: 0.0),
    ],
    ids=["l1", "mse", "gradient", "none"],
)
def test_terms_are_what_they_say(settings: LossSettings, expected: object) -> None:
    a, b = pair()
    assert callable(expected)
    assert float(restoration_loss(a, b, settings)) == pytest.approx(
        float(expected(a.numpy(), b.numpy())), rel=1e-5
    )


def test_terms_add_up() -> None:
    a, b = pair(192)
    parts = [restoration_loss(a, b, only(**{k: 0.5})) for k in ("l1", "mse", "ssim", "ms_ssim", "gradient")]
    together = restoration_loss(a, b, only(l1=0.5, mse=0.5, ssim=0.5, ms_ssim=0.5, gradient=0.5))
    assert float(together) == pytest.approx(float(sum(parts)), rel=1e-5)


@pytest.mark.parametrize("edge", [24, 96, 192])
def test_ms_ssim_takes_crops_of_any_size(edge: int) -> None:
    a, b = pair(edge)
    assert float(ms_ssim(b, b)) == pytest.approx(1.0, abs=1e-5)
    assert 0 < float(ms_ssim(a, b)) < 1


def test_training_and_cards_mean_the_same_by_ms_ssim() -> None:
    a, b = pair(192)
    of_images = [metrics.ms_ssim(x[0].numpy(), y[0].numpy()) for x, y in zip(a, b, strict=True)]
    assert float(ms_ssim(a, b)) == pytest.approx(np.mean(of_images), abs=1e-6)


def test_only_pixels_that_count_are_compared() -> None:
    a, b = pair()
    where = torch.zeros_like(a)
    where[..., 3, 5] = 1
    expected = float((a - b)[..., 3, 5].abs().mean())
    assert float(restoration_loss(a, b, LossSettings(), where)) == pytest.approx(expected, rel=1e-5)
    assert masked_psnr(a, b, where) == pytest.approx(
        -10 * np.log10(float((a - b)[..., 3, 5].square().mean())), rel=1e-4
    )


def test_a_critic_learns_to_tell_restored_from_true() -> None:
    torch.manual_seed(0)
    critic = Adversary()
    optimiser = torch.optim.AdamW(critic.parameters(), lr=2e-3)
    smooth, sharp = torch.full((4, 1, 32, 32), 0.5), torch.rand((4, 1, 32, 32))
    before = float(critic_loss(critic, smooth, sharp).detach())
    for _ in range(30):
        optimiser.zero_grad()
        critic_loss(critic, smooth, sharp).backward()
        optimiser.step()
    assert float(critic_loss(critic, smooth, sharp).detach()) < 0.5 * before
    assert float(fooling_loss(critic, sharp).detach()) < float(fooling_loss(critic, smooth).detach())
