"""Trains variants of the network for the same number of steps on the same crops, and prints what each is worth.

    python tools/explore.py --data DIR [--steps 2000] [--only base gated ...] [--json F]
    python tools/explore.py --json F --only --write docs/network.md

Each variant (``variants.py``) differs from ``base`` in one thing. Steps rather than minutes are equal, so that
a busy machine changes nothing; the cost stands beside the quality. What won is in ``live_sr/model/unet.py``.

With ``--json`` results are kept in a file after each variant: the next call trains what is not there yet for
the same number of steps, or again what ``--only`` names; ``--only`` without a name trains nothing. The table
shows all results of that number of steps.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import marked
import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn
from variants import NAMES, VARIANTS, Variant

from live_sr.config import load
from live_sr.errors import InputError, LiveSRError
from live_sr.model import artifact
from live_sr.model.unet import NetworkSettings, SuperResolver, kmac_on
from live_sr.train.batches import Batch
from live_sr.train.examples import Example, evaluation_crappifier, gather
from live_sr.train.fit import descend, follow, learning_rate, restore, step_generator
from live_sr.train.losses import masked_psnr, restoration_loss, ssim
from live_sr.train.procedural import Procedural, render_pool
from live_sr.train.rundir import commit
from live_sr.train.settings import TrainSettings

CONFIG = Path(__file__).parent.parent / "configs" / "em-x4.toml"
BLOCK = "exploration table"
TISSUE_PX = 384  # edge of each, in pixels of the truth
UNSEEN_SEED = 20_000  # apart from that of the training images


class Result(msgspec.Struct, frozen=True):
    """What a variant costs and what it is worth.

    Attributes
    ----------
    ms_per_step : float
        Of one core, forward, backward and the teacher included.
    quality : dict
        PSNR in dB and SSIM by validation set.
    teacher : str
        SHA-256 of the model that taught it.
    """

    name: str
    steps: int
    parameters: int
    kmac: float
    ms_per_step: float
    quality: dict[str, tuple[float, float]]
    teacher: str = ""
    commit: str = ""


def main() -> int:
    """Train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with fibsem_medulla and sem_spinal_cord")
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings of the base (configs/em-x4.toml)")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument(
        "--only", nargs="*", choices=list(VARIANTS), metavar="VARIANT", help=", ".join(VARIANTS)
    )
    parser.add_argument(
        "--teacher", help="model name or file; the largest shipped one of the same scale by default"
    )
    parser.add_argument(
        "--tissues", type=int, default=6, help="procedural images to judge on beside the real ones"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to keep results in")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--write", type=Path, help="Markdown file to put the table into")
    given = parser.parse_args()
    try:
        run(given)
    except LiveSRError as e:
        print(f"explore: {e}", file=sys.stderr)
        return 1
    return 0


def run(given: argparse.Namespace) -> None:
    """Train what is missing or asked for, and show everything."""
    if given.write:
        marked.around(given.write, BLOCK)  # before the hours of computing
    torch.set_num_threads(given.threads)
    results = read(given.json)
    there = {r.name for r in results if r.steps == given.steps}
    wanted = [name for name in VARIANTS if name not in there] if given.only is None else given.only
    if wanted and given.data is None:
        raise InputError(f"--data is needed to train {', '.join(wanted)}; --only without a name trains nothing")
    settings = load(given.config, TrainSettings)
    settings = msgspec.structs.replace(settings, steps=given.steps)
    taught = any(VARIANTS[name].taught for name in wanted)
    teacher = read_teacher(given.teacher or largest(settings.network.scale), settings) if taught else None
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as cache:
        for name in wanted:
            new = list(explore(name, settings, given, Path(cache), teacher))
            replaced = {(r.name, r.steps) for r in new}
            results = [r for r in results if (r.name, r.steps) not in replaced] + new
            if given.json:
                given.json.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
            show(results, given.steps)
    if given.markdown:
        print("\n".join(markdown(results, given.steps)))
    if given.write:
        marked.write(given.write, BLOCK, list(markdown(results, given.steps)))


def read(path: Path | None) -> list[Result]:
    """The results of earlier calls."""
    if path is None or not path.exists():
        return []
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Result])
    except msgspec.MsgspecError as e:
        raise InputError(f"{path} holds no results of this tool ({e}): choose another --json") from e


# ------------------------------------------------------------------------------------------------ training

Teacher = tuple[SuperResolver, str]
"""A trained network and the SHA-256 of its file."""


def explore(
    name: str, settings: TrainSettings, given: argparse.Namespace, cache: Path, teacher: Teacher | None
) -> Iterator[Result]:
    """Train one variant and score its averaged weights, as they are and after what is done to them then."""
    variant = VARIANTS[name]
    settings = variant.settings(settings)
    scale = settings.network.scale
    examples = gather(settings, [given.data], cache=cache)
    torch.manual_seed(settings.seed)
    network = SuperResolver(NetworkSettings(scale=scale, widths=variant.widths or settings.network.widths))
    variant.change(network)
    network = network.to(memory_format=torch.channels_last)
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    spent = 0.0
    for step in range(settings.steps):
        batch = examples.draw(settings.batch, step_generator(settings.seed, step, 0))
        began = time.thread_time()
        loss = loss_of(variant, network, batch, teacher, step_generator(settings.seed, step, 0, purpose=1))
        descend(optimiser, loss, network, learning_rate(settings, step, step / settings.steps))
        follow(average, network, step, settings.ema)
        spent += time.thread_time() - began

    judged = [*examples.validation, *_tissues(scale, given.tissues)]
    parameters, kmac = sum(p.numel() for p in network.parameters()), kmac_on(network, torch.zeros(1, 1, 64, 64))
    ms = 1000 * spent / settings.steps
    teacher_sha256 = teacher[1] if variant.taught and teacher else ""
    for title, change in {name: lambda network: None, **variant.afterwards}.items():
        changed = copy.deepcopy(average)
        change(changed)
        quality = score(changed, judged)
        yield Result(title, settings.steps, parameters, kmac, ms, quality, teacher_sha256, commit())


def loss_of(
    variant: Variant, network: nn.Module, batch: Batch, teacher: Teacher | None, jitter: torch.Generator
) -> torch.Tensor:
    """Against the truth, and against what a teacher makes of the same frames."""
    with torch.autocast("cpu", torch.bfloat16):
        restored = restore(network, batch.raw, jitter).float()
    loss = restoration_loss(restored, batch.truth, variant.loss)
    if variant.taught:
        assert teacher is not None
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            shown = restore(teacher[0], batch.raw).float()
        loss = (1 - variant.taught) * loss + variant.taught * F.l1_loss(restored, shown)
    return loss


def largest(scale: int) -> str:
    """Name of the shipped model of single frames that computes most."""
    records = [artifact.load(name).record for name in artifact.shipped()]
    fitting = [r for r in records if (r.scale, r.frames) == (scale, 1)]
    if not fitting:
        raise InputError(f"no shipped model has scale {scale}: give a --teacher")
    return max(fitting, key=lambda r: r.kmac_per_output_pixel).id


def read_teacher(name: str, settings: TrainSettings) -> Teacher:
    """A trained network of this project, for the same frames."""
    trained = artifact.load(name)
    record = trained.record
    if (record.scale, record.frames) != (settings.network.scale, 1) or not record.widths:
        raise InputError(
            f"{name} (scale {record.scale}, {record.frames} frames, widths {list(record.widths)}) cannot "
            f"teach: give a model that live-sr trained for scale {settings.network.scale} and single frames"
        )
    network = SuperResolver(NetworkSettings(scale=record.scale, widths=record.widths))
    network.load_state_dict(trained.module.state_dict())
    return network.to(memory_format=torch.channels_last).requires_grad_(False), trained.sha256


# ------------------------------------------------------------------------------------------------- judging


def score(network: nn.Module, examples: Sequence[Example]) -> dict[str, tuple[float, float]]:
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


@functools.cache
def _tissues(scale: int, n: int) -> list[Example]:
    settings = Procedural(images=n, size=TISSUE_PX, pixel_size_um=(0.004, 0.004))
    judge, generator = evaluation_crappifier(40.0, 4 / 255), torch.Generator().manual_seed(0)
    found = []
    for image in render_pool(settings, UNSEEN_SEED).images:
        truth = torch.from_numpy(image[0:TISSUE_PX, 0:TISSUE_PX].astype(np.float32) / 65535)[None, None]
        found.append(Example("neuropil", Batch(judge(truth, scale, generator), truth), drawn=False))
    return found


# ------------------------------------------------------------------------------------------- what is shown


def rows(results: Sequence[Result], steps: int) -> Iterator[list[str]]:
    """Headings, then a row for each variant."""
    ours = sorted((r for r in results if r.steps == steps), key=lambda r: NAMES.index(r.name))
    if not ours:
        raise InputError(f"no results of {steps} steps: train some, or give their --steps")
    sets = list(dict.fromkeys(name for r in ours for name in r.quality))
    base = next((r.quality for r in ours if r.name == "base"), {})
    yield ["variant", "parameters", "kMAC/px", "ms a step", *sets, "dB against base"]
    for r in ours:
        shared = [r.quality[name][0] - base[name][0] for name in sets if name in base and name in r.quality]
        numbers = (r.quality.get(name) for name in sets)
        yield [
            r.name,
            f"{r.parameters:,}",
            f"{r.kmac:.1f}",
            f"{r.ms_per_step:.0f}",
            *("–" if n is None else f"{n[0]:.2f} / {n[1]:.4f}" for n in numbers),
            f"{np.mean(shared):+.2f}" if shared else "–",
        ]


def show(results: Sequence[Result], steps: int) -> None:
    """All results so far."""
    table = Table(title=f"PSNR dB / SSIM after {steps} steps; milliseconds of one core a step")
    headings, *others = rows(results, steps)
    for heading in headings:
        table.add_column(heading)
    for cells in others:
        table.add_row(*cells)
    Console(stderr=True, width=max(Console(stderr=True).width, 140)).print(table)


def markdown(results: Sequence[Result], steps: int) -> Iterator[str]:
    """The table for a page."""
    headings, *others = rows(results, steps)
    yield f"PSNR dB / SSIM after {steps} steps of training, at 40 electrons per raw pixel and read noise 4/255;"
    yield "kMAC: thousand multiply-accumulates of the convolutions per output pixel; milliseconds of one core"
    yield "for a step of training; last, the mean difference from base in PSNR. Printed by `tools/explore.py`."
    yield ""
    yield f"| {' | '.join(headings)} |"
    yield f"|---|{'--:|' * 3}{'---|' * (len(headings) - 5)}--:|"
    for cells in others:
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
