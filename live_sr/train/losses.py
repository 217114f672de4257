"""What training minimises: L1, with a little structural similarity. Works in [0, 1] grey values."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

WINDOW = 7  # pixels; the window of skimage.metrics.structural_similarity, by which results are compared
STRIDE = 4  # pixels from window to window: every pixel is still seen, at a sixteenth of the windows
C1, C2 = 0.01**2, 0.03**2  # Wang et al. 2004, for a data range of 1


def ssim(a: Tensor, b: Tensor, stride: int = 1) -> Tensor:
    """Mean structural similarity of two batches (B, 1, Y, X) with data range 1 and a uniform 7 x 7 window.

    Wang et al., IEEE Trans. Image Process. 13, 600 (2004), with the sample covariance as scikit-image takes it.
    """
    n = WINDOW**2
    mean_a, mean_b = (F.avg_pool2d(x, WINDOW, stride) for x in (a, b))
    to_sample = n / (n - 1)
    var_a, var_b, cov = (
        to_sample * (F.avg_pool2d(x * y, WINDOW, stride) - mx * my)
        for x, y, mx, my in ((a, a, mean_a, mean_a), (b, b, mean_b, mean_b), (a, b, mean_a, mean_b))
    )
    similarity = (2 * mean_a * mean_b + C1) * (2 * cov + C2)
    similarity = similarity / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))
    return similarity.mean()


def restoration_loss(restored: Tensor, truth: Tensor, ssim_weight: float) -> Tensor:
    """L1 plus `ssim_weight` times (1 - SSIM), both (B, 1, Y, X) in [0, 1] units; a scalar.

    L1 alone over-smooths sharp, high-contrast sections; the structural term is small enough to cost no PSNR.
    """
    loss = F.l1_loss(restored, truth)
    if ssim_weight > 0:
        loss = loss + ssim_weight * (1 - ssim(restored, truth, STRIDE))
    return loss
