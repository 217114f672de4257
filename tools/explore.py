"""Trains variants of the network for the same number of steps on the same crops, and prints what each is worth.

    python tools/explore.py --data DIR [--steps 2000] [--only base gated ...] [--json F]

Each variant differs from ``base`` in one thing. Steps rather than minutes are equal, so that a busy machine
changes nothing; the cost stands beside the quality. What won is in ``live_sr/model/unet.py``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from live_sr.config import load
from live_sr.model.unet import Block, NetworkSettings, SuperResolver, kmac_on
from live_sr.train.batches import Batch
from live_sr.train.examples import Example, evaluation_crappifier, gather
from live_sr.train.fit import CLIP_NORM, restore
from live_sr.train.losses import LossSettings, masked_psnr, restoration_loss, ssim
from live_sr.train.procedural import Procedural, render_pool
from live_sr.train.settings import TrainSettings

CONFIG = Path(__file__).parent.parent / "configs" / "em-x4.toml"
TISSUES = 6  # procedural images that are judged on beside the real ones
BASE_LOSS = LossSettings()
UNSEEN_SEED = 20_000  # apart from that of the training images


class Gated(nn.Module):
    """Two gated halves without an activation, depthwise 3x3 (Chen et al. 2022, NAFNet)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.wide, self.back = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(width, width, 1)
        self.deep = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.wide2, self.back2 = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.deep(self.wide(self.norm(x))).chunk(2, 1)
        x = x + self.back(a * b)
        a, b = self.wide2(self.norm2(x)).chunk(2, 1)
        return x + self.back2(a * b)


class LargeKernel(nn.Module):
    """Depthwise 7x7 and two 1x1 (Liu et al. 2022, ConvNeXt)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.deep = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.wide, self.back = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(F.gelu(self.wide(self.deep(x))))


class Branched(nn.Module):
    """3x3, 1x1 and identity side by side, which fold into one 3x3 afterwards (Ding et al. 2021, RepVGG)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.point = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)
        self.second, self.point2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first(x) + self.point(x) + x)
        return x + self.second(inner) + self.point2(inner) + inner


class Attentive(nn.Module):
    """A residual block, then attention among all pixels of the coarsest level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block, self.norm = Block(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return x + mixed.transpose(1, 2).reshape(x.shape)


class AntiAliasedDown(nn.Module):
    """A convolution, then a small blur before every other pixel is dropped (Zhang 2019)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(x), 3, stride=2, padding=1, count_include_pad=False)


@dataclass(frozen=True)
class Variant:
    """One change to the base."""

    widths: tuple[int, ...] = (32, 64, 96)
    change: Callable[[SuperResolver], None] = lambda network: None
    loss: LossSettings = BASE_LOSS
    settings: Callable[[TrainSettings], TrainSettings] = lambda settings: settings


def blocks(kind: Callable[[int], nn.Module]) -> Callable[[SuperResolver], None]:
    """Exchange every block."""

    def change(network: SuperResolver) -> None:
        body = network.body
        for blocks_ in (body.encode, body.decode):
            for i, block in enumerate(blocks_):
                blocks_[i] = kind(block.first.out_channels)
        body.bottom = kind(body.bottom.first.out_channels)

    return change


def attention(network: SuperResolver) -> None:
    """Attention at the coarsest level."""
    network.body.bottom = Attentive(network.body.bottom.first.out_channels)


def anti_aliased(network: SuperResolver) -> None:
    """Blur before dropping pixels."""
    for i, down in enumerate(network.body.down):
        network.body.down[i] = AntiAliasedDown(down.in_channels, down.out_channels)


def icnr(network: SuperResolver) -> None:
    """The head starts as nearest-neighbour enlargement of random features (Aitken et al. 2017), not as zero."""
    head = network.body.head
    kernel = torch.empty(1, head.in_channels, 3, 3)
    nn.init.kaiming_normal_(kernel)
    with torch.no_grad():
        head.weight.copy_(0.1 * kernel.expand_as(head.weight))


def coarse(network: SuperResolver) -> None:
    """No block on the raw grid before the first halving; two on the next level."""
    body = network.body
    body.encode[0] = nn.Identity()
    body.encode[1] = nn.Sequential(Block(64), Block(64))


def plain_data(settings: TrainSettings) -> TrainSettings:
    """The real images alone, as they are."""
    augment = msgspec.structs.replace(settings.augment, zoom_share=0.0, window_share=0.0, invert_share=0.0)
    return msgspec.structs.replace(settings, augment=augment, procedural=Procedural())


VARIANTS = {
    "base": Variant(),
    "narrow, one level more": Variant((16, 48, 64, 128)),
    "wide": Variant((64, 96, 128)),
    "nano": Variant((16, 32, 64)),
    "coarse": Variant(change=coarse),
    "gated": Variant(change=blocks(Gated)),
    "large kernels": Variant(change=blocks(LargeKernel)),
    "branched": Variant(change=blocks(Branched)),
    "attention": Variant(change=attention),
    "anti-aliased": Variant(change=anti_aliased),
    "icnr": Variant(change=icnr),
    "L1 alone": Variant(loss=LossSettings(ssim=0.0)),
    "MSE": Variant(loss=LossSettings(l1=0.0, mse=1.0, ssim=0.0)),
    "gradient term": Variant(loss=LossSettings(gradient=0.5)),
    "MS-SSIM mix": Variant(loss=LossSettings(l1=0.2, ssim=0.0, ms_ssim=0.8)),
    "no variety": Variant(settings=plain_data),
}


@dataclass
class Result:
    """What a variant costs and what it is worth."""

    name: str
    parameters: int
    kmac: float
    ms_per_step: float
    quality: dict[str, tuple[float, float]]


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with fibsem_medulla and sem_spinal_cord"
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results = []
    with tempfile.TemporaryDirectory() as cache:
        for name in given.only:
            results.append(explore(name, VARIANTS[name], given.data, given.steps, Path(cache)))
            print_table(results, given.steps)
    if given.json:
        given.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")


def explore(name: str, variant: Variant, data: Path, steps: int, cache: Path) -> Result:
    """Train one variant and score its averaged weights."""
    settings = variant.settings(load(CONFIG, TrainSettings))
    scale = settings.network.scale
    network_settings = NetworkSettings(scale=scale, widths=variant.widths)
    examples = gather(settings, [data], cache=cache)
    torch.manual_seed(0)
    network = SuperResolver(network_settings)
    variant.change(network)
    network = network.to(memory_format=torch.channels_last)
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    spent = 0.0
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        raw, truth, _ = examples.draw(settings.batch, generator)
        rate = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps)) * min(1, (step + 1) / 100)
        for group in optimiser.param_groups:
            group["lr"] = rate
        began = time.thread_time()
        with torch.autocast("cpu", torch.bfloat16):
            restored = restore(network, raw, generator)
        loss = restoration_loss(restored.float(), truth, variant.loss)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimiser.step()
        spent += time.thread_time() - began
        decay = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, now in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
    quality = score(average, [*examples.validation, *_tissues(scale)])
    parameters = sum(p.numel() for p in network.parameters())
    return Result(name, parameters, kmac_on(network, torch.zeros(1, 1, 64, 64)), 1000 * spent / steps, quality)


def score(network: nn.Module, examples: list[Example]) -> dict[str, tuple[float, float]]:
    """PSNR and SSIM by set."""
    found: dict[str, list[tuple[float, float]]] = {}
    with torch.inference_mode():
        for example in examples:
            restored = restore(network, example.batch.raw).clamp(0, 1)
            truth = example.batch.truth
            name = Path(example.name).stem.split(".")[0]
            found.setdefault(name, []).append(
                (masked_psnr(restored, truth, None), float(ssim(restored, truth)))
            )
    return {name: tuple(map(float, np.mean(values, axis=0))) for name, values in found.items()}


def _tissues(scale: int) -> list[Example]:
    settings = Procedural(images=TISSUES, size=384, pixel_size_um=(0.004, 0.004))
    judge, generator = evaluation_crappifier(40.0, 4 / 255), torch.Generator().manual_seed(0)
    found = []
    for image in render_pool(settings, UNSEEN_SEED).images:
        truth = torch.from_numpy(image[0:384, 0:384].astype(np.float32) / 65535)[None, None]
        found.append(Example("neuropil", Batch(judge(truth, scale, generator), truth), drawn=False))
    return found


def print_table(results: list[Result], steps: int) -> None:
    """All results so far."""
    table = Table(title=f"PSNR dB / SSIM after {steps} steps; milliseconds of one core a step")
    for heading in ("variant", "parameters", "kMAC/px", "ms", *results[0].quality):
        table.add_column(heading)
    for r in results:
        cells = (f"{p:.2f} / {s:.4f}" for p, s in r.quality.values())
        table.add_row(r.name, f"{r.parameters:,}", f"{r.kmac:.2f}", f"{r.ms_per_step:.0f}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
