"""Trains PSSR2's network and scores it beside ours. Started by ``pssr2.py``, in the environment it makes.

Nothing of PSSR2 is copied: its network and its loss are imported from the installed package, unmodified.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import json
import math
import sys
import time
import types
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ground
import numpy as np
import pssr2
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

from live_sr.config import load
from live_sr.errors import InputError, LiveSRError
from live_sr.frame import Pixels
from live_sr.model import artifact
from live_sr.model.engine import load_engine
from live_sr.model.unet import kmac_on
from live_sr.train.rundir import commit
from live_sr.train.settings import TrainSettings
from live_sr.upscaler import UpscalerInfo

HIDDEN = (64, 128, 256, 512, 1024)  # PSSR2's defaults
DEPTH = 3
MULTIPLE = 2 ** (len(HIDDEN) - 1)  # raw pixels: it halves the frame four times
FULL_SCALE = 255.0  # its grey levels; it scales by x / 128 - 1 itself
LEARNING_RATE, GAMMA, EPOCHS = 1e-3, 0.7, 10  # the defaults of its command line
SSIM_SHARE, SSIM_WINDOW, SSIM_LEVELS = 0.8, 11, 5  # those of its loss
CLIP_NORM = 1.0  # gradient norm, as in our training
LOSS_MEMORY = 0.98  # of the running mean that is shown
TOLD = 10  # lines about a training
CLASSICAL = ("bilinear", "bicubic")


def main() -> int:
    """Train or load, score, print."""
    console = Console()
    try:
        contest(pssr2.options(), console)
    except LiveSRError as e:
        print(f"pssr2: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def contest(given: Namespace, console: Console) -> None:
    """The whole comparison."""
    settings = load(given.config, TrainSettings)
    ground.check_settings(settings, given.scale, MULTIPLE)
    torch.set_num_threads(given.threads)
    engines = {name: load_engine(name, device="cpu", threads=given.threads) for name in given.ours}
    for name, engine in engines.items():
        if engine.info.scale != given.scale:
            raise InputError(f"{name} is for scale {engine.info.scale}, not {given.scale}: give another --ours")

    weights = pssr2.PEERS / f"pssr2-x{given.scale}-{given.loss}-{given.minutes:g}min.pt"
    if given.evaluate_only:
        network, run = read(weights, given.scale)
        if run["config"] != given.config.read_text(encoding="utf-8"):
            raise InputError(
                f"{weights} was trained with other settings than {given.config}, perhaps on what it would be "
                "scored on: give that --config, or train again"
            )
    else:
        network, run = train(settings, given, console)
        torch.save({"network": network.state_dict(), "run": run}, weights)
        console.print(f"weights: {weights}")
    console.print(
        f"PSSR2 ({run['loss']} loss): {run['steps']} steps in {run['minutes']:.2f} min on {run['threads']} "
        f"threads, {run['steps_per_s']:.2f} steps/s, {run['arithmetic']}, {run['lost']} steps without finite "
        "gradients",
        highlight=False,
        soft_wrap=True,
    )

    network.eval()
    kmac = kmac_on(network, torch.zeros(1, 1, 4 * MULTIPLE, 4 * MULTIPLE))
    parameters = sum(p.numel() for p in network.parameters())
    peer_cost = {name: run[name] for name in ("steps", "minutes", "threads")}
    peer_cost |= {"parameters": parameters, "kmac": kmac}
    console.print("scoring PSSR2")
    rows, classical = [], {}
    for found in ground.score(Peer(network, given.scale, weights.stem), settings, given.data):
        classical[found.name] = {m: q for m, q in found.methods.items() if m in CLASSICAL}
        rows.append(row(found, f"PSSR2 {run['loss']}", found.methods[ground.MODEL], peer_cost))
    for name, engine in engines.items():
        console.print(f"scoring {name}", highlight=False)
        record = artifact.load(name).record
        cost = {name: record.training.get(name) for name in ("steps", "minutes")}
        cost["threads"] = record.training.get("settings", {}).get("threads") or None
        cost |= {"parameters": record.parameters, "kmac": record.kmac_per_output_pixel}
        cost["sha256"] = engine.info.sha256
        for found in ground.score(engine, settings, given.data):
            rows.append(row(found, name, found.methods[ground.MODEL], cost))
    for name, methods in classical.items():
        images = next(r["images"] for r in rows if r["set"] == name)
        rows += [row(ground.Score(name, images, {}), method, q, {}) for method, q in methods.items()]

    show(rows, console)
    if given.markdown:
        print("\n".join(markdown(rows)))
    if given.json is not None:
        report = {"scale": given.scale, "config": str(given.config), "commit": commit(), "run": run}
        report |= {"evaluation": ground.CONDITIONS, "rows": rows}
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------- PSSR2's parts


def part(name: str) -> types.ModuleType:
    """A module of the installed package.

    The ``__init__`` of ``pssr.models`` is passed by: it also imports networks that need timm and torchvision.
    """
    found = importlib.util.find_spec("pssr")
    assert found is not None
    assert found.submodule_search_locations is not None
    models = types.ModuleType("pssr.models")
    models.__path__ = [str(Path(found.submodule_search_locations[0]) / "models")]
    sys.modules.setdefault("pssr.models", models)
    return importlib.import_module(name)


def build(scale: int) -> nn.Module:
    """PSSR2's default network."""
    network: nn.Module = part("pssr.models.resunet").ResUNet(
        channels=1, hidden=list(HIDDEN), scale=scale, depth=DEPTH
    )
    # measured faster on CPUs, and done for ours too
    return network.to(memory_format=torch.channels_last)


def own_loss(edge: int) -> nn.Module:
    """PSSR2's own loss, for crops of `edge` pixels; its window shrinks where five levels would not fit."""
    fitting = (edge - 1) // 2 ** (
        SSIM_LEVELS - 1
    ) + 1  # the coarsest level must be wider than the window less 1
    window = min(SSIM_WINDOW, fitting if fitting % 2 else fitting - 1)
    loss: nn.Module = part("pssr.util").SSIMLoss(channels=1, mix=SSIM_SHARE, win_size=window)
    return loss


class Peer:
    """The trained network as an :class:`live_sr.upscaler.Upscaler`, in float32.

    Frames are continued by reflection to the multiple it needs, and are neither cut into tiles nor into 8 bits.
    """

    def __init__(self, network: nn.Module, scale: int, name: str) -> None:
        self._network, self._scale = network, scale
        self._info = UpscalerInfo(
            id=name, sha256="", scale=scale, precision="float32", device="cpu", max_pixels=2**31
        )

    @property
    def info(self) -> UpscalerInfo:
        return self._info

    def warm(self, shapes: object) -> None:
        """Needs none."""

    def upscale(self, frames: list[Pixels]) -> list[Pixels]:
        with torch.inference_mode():
            return [self._restore(frame) for frame in frames]

    def _restore(self, frame: Pixels) -> Pixels:
        full = np.iinfo(frame.dtype).max
        y, x = frame.shape
        grey = torch.from_numpy(frame.astype(np.float32) * (FULL_SCALE / full))[None, None]
        padded = F.pad(grey, [0, -x % MULTIPLE, 0, -y % MULTIPLE], mode="reflect")
        restored = self._network(padded)[0, 0, : self._scale * y, : self._scale * x].numpy()
        return np.rint(np.clip(restored * (full / FULL_SCALE), 0, full)).astype(frame.dtype)


# ------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class Recipe:
    """How the network is trained, beside the examples."""

    loss: Callable[[Tensor, Tensor], Tensor]  # of restored and truth in [0, 1]
    rate: Callable[[int, float], float]  # learning rate, of the step and of the share of the time that is gone
    weight_decay: float
    clip_norm: float
    ema: float  # decay of the running mean of the weights that is kept; 0 keeps the last weights


def recipe(name: str, settings: TrainSettings) -> Recipe:
    """``own``: as PSSR2's command line trains, an epoch being a tenth of the time. ``l1``: as we train."""
    if name == "own":
        return Recipe(
            loss=own_loss(settings.patch * settings.network.scale),
            rate=lambda step, done: LEARNING_RATE * GAMMA ** int(EPOCHS * done),
            weight_decay=1e-2,  # AdamW's default in torch
            clip_norm=math.inf,
            ema=0.0,
        )

    def rate(step: int, done: float) -> float:
        return (
            LEARNING_RATE
            * 0.5
            * (1 + math.cos(math.pi * done))
            * min(1.0, (step + 1) / max(settings.warmup, 1))
        )

    return Recipe(F.l1_loss, rate, settings.weight_decay, CLIP_NORM, settings.ema)


def train(settings: TrainSettings, given: Namespace, console: Console) -> tuple[nn.Module, dict[str, Any]]:
    """Train for the given wall time; the clock starts when the images are read, as ours does."""
    torch.manual_seed(settings.seed)
    network = build(given.scale)
    how = recipe(given.loss, settings)
    mean = copy.deepcopy(network) if how.ema else None
    bfloat16 = settings.amp == "auto" and ground.has_bfloat16()
    # fused: the same arithmetic in fewer passes, some 8 % more steps of a network this large
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=LEARNING_RATE, weight_decay=how.weight_decay, fused=True
    )
    examples = ground.batches(settings, given.data, pssr2.PEERS)
    network.train()

    seconds = 60 * given.minutes
    step, lost, mean_loss, done = 0, 0, math.nan, 0.0
    began = time.monotonic()
    with bar(console) as progress, examples:
        task = progress.add_task(f"PSSR2 {given.loss}", total=1.0, rate="", loss="", left="")
        drawn = iter(examples)
        while done < 1:
            raw, truth = next(drawn)[:2]
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                restored = network(raw.contiguous(memory_format=torch.channels_last) * FULL_SCALE)
            loss = how.loss(restored.float() / FULL_SCALE, truth)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), how.clip_norm)
            for group in optimiser.param_groups:
                group["lr"] = how.rate(step, done)
            if bool(norm.isfinite()):
                optimiser.step()
                if mean is not None:
                    follow(mean, network, min(how.ema, (1 + step) / (10 + step)))
            else:
                lost += 1
            step += 1
            now = float(loss.detach())
            mean_loss = now if math.isnan(mean_loss) else LOSS_MEMORY * mean_loss + (1 - LOSS_MEMORY) * now
            elapsed = time.monotonic() - began
            if int(TOLD * elapsed / seconds) > int(TOLD * done):  # lines for a log, where no bar is drawn
                console.print(
                    f"step {step} after {elapsed / 60:.1f} min, loss {mean_loss:.4f}", highlight=False
                )
            done = elapsed / seconds
            progress.update(
                task,
                completed=min(done, 1.0),
                rate=f"{step / elapsed:.2f} steps/s",
                loss=f"{mean_loss:.4f}",
                left=f"{max(seconds - elapsed, 0) / 60:.1f} min",
            )
    elapsed = time.monotonic() - began
    run = {
        "loss": given.loss,
        "steps": step,
        "lost": lost,
        "minutes": elapsed / 60,
        "steps_per_s": step / elapsed,
        "threads": given.threads,
        "arithmetic": "bfloat16 autocast" if bfloat16 else "float32",
        "training_loss": mean_loss,
        "seed": settings.seed,
        "config": given.config.read_text(encoding="utf-8"),
        "commit": commit(),
        "versions": {name: importlib.metadata.version(name) for name in ("pssr", "torch", "numpy")},
    }
    return (network if mean is None else mean), run


def follow(mean: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the running mean of the weights, and of the statistics of the batch normalisation, to `network`."""
    with torch.no_grad():
        for a, b in zip(mean.state_dict().values(), network.state_dict().values(), strict=True):
            if a.is_floating_point():
                a.lerp_(b, 1 - decay)
            else:
                a.copy_(b)


def read(weights: Path, scale: int) -> tuple[nn.Module, dict[str, Any]]:
    """The network and the run that an earlier training left."""
    if not weights.exists():
        raise InputError(f"no {weights}: train first, with the same --scale, --loss and --minutes")
    content = torch.load(weights, map_location="cpu", weights_only=True)
    network = build(scale)
    network.load_state_dict(content["network"])
    return network, content["run"]


# ----------------------------------------------------------------------------------------------- what is shown


def row(found: ground.Score, method: str, quality: tuple[float, float], cost: dict[str, Any]) -> dict[str, Any]:
    psnr, ssim = quality
    return {"set": found.name, "images": found.images, "method": method, "psnr": psnr, "ssim": ssim, **cost}


HEADS = ("set", "images", "method", "PSNR dB", "SSIM", "steps", "minutes", "threads", "parameters", "kMAC/px")
LEFT = ("set", "method")
FORMATS = {
    "set": "{}",
    "images": "{}",
    "method": "{}",
    "psnr": "{:.2f}",
    "ssim": "{:.3f}",
    "steps": "{}",
    "minutes": "{:.1f}",
    "threads": "{}",
    "parameters": "{:,}",
    "kmac": "{:.1f}",
}


def texts(rows: list[dict[str, Any]]) -> list[list[list[str]]]:
    """Cells of each row, set by set."""
    sets = dict.fromkeys(r["set"] for r in rows)
    written = [
        (r["set"], ["" if r.get(k) is None else f.format(r[k]) for k, f in FORMATS.items()]) for r in rows
    ]
    return [[cells for of, cells in written if of == name] for name in sets]


def conditions() -> str:
    dose, noise = ground.CONDITIONS["dose"], ground.CONDITIONS["read_noise"]
    return f"at {dose:g} electrons per raw pixel, read noise {noise:.4f} of full scale"


def show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=conditions())
    for head in HEADS:
        table.add_column(head, justify="left" if head in LEFT else "right", no_wrap=True)
    for group in texts(rows):
        for cells in group:
            table.add_row(*cells)
        table.add_section()
    Console(width=max(console.width, 120)).print(table)


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the table for a page."""
    lines = [f"{conditions()[0].upper()}{conditions()[1:]}:", "", f"| {' | '.join(HEADS)} |"]
    lines += [f"|{'|'.join('---' if head in LEFT else '--:' for head in HEADS)}|"]
    return lines + [f"| {' | '.join(cells)} |" for group in texts(rows) for cells in group]


def bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[rate]}  loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TextColumn("left {task.fields[left]}"),
        console=console,
        refresh_per_second=1,
    )


if __name__ == "__main__":
    sys.exit(main())
