"""The structural term is scikit-image's SSIM, and both terms vanish on equal images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from live_sr.train.losses import restoration_loss, ssim


def test_ssim_agrees_with_scikit_image() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((40, 52))
    b = np.clip(a + rng.normal(0, 0.2, a.shape), 0, 1)
    x, y = (torch.from_numpy(image)[None, None] for image in (a, b))
    # scikit-image crops half a window from each border, which are exactly the windows that fit
    expected = structural_similarity(a, b, data_range=1.0)  # type: ignore[no-untyped-call]
    assert float(ssim(x, y)) == pytest.approx(expected, abs=1e-9)


def test_loss_is_l1_plus_the_structural_share() -> None:
    a, b = torch.rand(1, 1, 24, 24), torch.rand(1, 1, 24, 24)
    expected = float((a - b).abs().mean()) + 0.3 * (1 - float(ssim(a, b, stride=4)))
    assert float(restoration_loss(a, b, 0.3)) == pytest.approx(expected, abs=1e-6)
    assert float(restoration_loss(a, a, 0.3)) == pytest.approx(0.0, abs=1e-5)
