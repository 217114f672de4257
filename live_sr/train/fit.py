"""Trains one model from one settings file: same settings, data and machine, same steps.

Reads images through :mod:`live_sr.train.dataset`, degrades them with :mod:`live_sr.train.crappify`, ends with
a model file and a dated entry for its card. Runs on the CPU or on CUDA; knows no server.
"""

from __future__ import annotations

import copy
import datetime
import hashlib
import importlib.metadata
import math
import pickle
import subprocess
import time
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from live_sr.config import Settings
from live_sr.errors import ConfigError, InputError
from live_sr.model import artifact
from live_sr.model.unet import NetworkSettings, SuperResolver, count_kmac, measure_halo
from live_sr.train.crappify import CrappifySettings, crappify, expose
from live_sr.train.dataset import (
    Augment,
    Crops,
    File,
    Pool,
    Procedural,
    Source,
    load_files,
    render_pool,
    to_unit,
)
from live_sr.train.losses import restoration_loss, ssim

CHECKPOINT = "checkpoint.pt"
CLIP_NORM = 1.0  # gradient norm; a single black patch must not undo an hour
MEAN_JITTER = 0.3  # of a standard deviation: a patch's mean differs from its frame's by about this much
STD_JITTER = 0.2  # sigma of the logarithm, likewise
VALIDATION_EDGE = 512  # pixels of the truth: the middle of each validation image
LOSS_MEMORY = 0.98  # of the running mean that is shown


class TrainSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`live-sr train`: everything that decides what a model becomes.

    Attributes
    ----------
    id : str
        Name of the model and of the files written.
    patch : int
        Edge of a training crop in raw pixels, a multiple of the network's coarsest pixel.
    batch, steps : int
    minutes : float
        Wall-clock budget; the learning rate reaches zero after `steps` or `minutes`, whichever comes first.
        0 for no limit.
    learning_rate, weight_decay, ema : float
        AdamW with cosine decay, and the decay of the running mean of the weights that becomes the model.
    warmup : int
        Steps of linear warm-up.
    ssim_weight : float
        Of (1 - SSIM) beside L1.
    validation : tuple of str
        Patterns of files that are validated on and never trained on.
    validation_dose, validation_read_noise : float
        Electrons per raw pixel at full scale, and standard deviation as a fraction of full scale.
    warm_start : str
        Model whose trunk this one starts from (name or file); empty for none.
    pixel_size_um : (float, float) or None
        Raw pixel sizes that the data cover, for the model's record.
    threads : int
        CPU threads; 0 lets torch choose.
    """

    id: str
    network: NetworkSettings = NetworkSettings()
    sources: tuple[Source, ...] = ()
    procedural: Procedural = Procedural()
    augment: Augment = Augment()
    crappify: CrappifySettings = CrappifySettings()
    patch: int = 48
    batch: int = 12
    steps: int = 20_000
    minutes: float = 0.0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: int = 100
    ema: float = 0.999
    ssim_weight: float = 0.05
    validation: tuple[str, ...] = ()
    validation_dose: float = 40.0
    validation_read_noise: float = 4 / 255
    validate_every: int = 500
    warm_start: str = ""
    pixel_size_um: tuple[float, float] | None = None
    licence: str = ""
    seed: int = 0
    threads: int = 0


@dataclass
class Score:
    """Means over the validation images, data range 1."""

    psnr: float
    ssim: float


@dataclass
class State:
    """Everything that a stopped run needs to go on as if it had not stopped."""

    network: SuperResolver
    average: SuperResolver  # running mean of the weights
    optimiser: torch.optim.AdamW
    generator: torch.Generator
    step: int = 0
    elapsed_s: float = 0.0
    best: Score | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    trunk: str = ""  # SHA-256 of the model whose trunk it started from

    def save(self, path: Path, settings: TrainSettings) -> None:
        """Write a checkpoint; an interrupted write leaves the last one."""
        content = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "best": None if self.best is None else [self.best.psnr, self.best.ssim],
            "best_weights": self.best_weights,
            "trunk": self.trunk,
            "settings": msgspec.json.encode(settings).decode(),
        }
        partial = path.with_name(path.name + ".part")
        torch.save(content, partial)
        partial.replace(path)

    def restore(self, path: Path, settings: TrainSettings) -> None:
        """Go on from a checkpoint of the same settings, `minutes` and `threads` aside."""
        content = _read_checkpoint(path)
        written = msgspec.json.decode(content["settings"], type=TrainSettings)
        if _identity(written) != _identity(settings):
            raise ConfigError(
                f"{path} was written with other settings: resume with the settings file of that run, "
                "or start a new run in another folder"
            )
        self.network.load_state_dict(content["network"])
        self.average.load_state_dict(content["average"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.generator.set_state(content["generator"])
        self.step, self.elapsed_s = content["step"], content["elapsed_s"]
        self.best = None if content["best"] is None else Score(*content["best"])
        self.best_weights = content["best_weights"]
        self.trunk = content["trunk"]


def fit(
    settings: TrainSettings,
    data: Sequence[Path],
    out: Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    console: Console | None = None,
) -> Path:
    """Train a model and write ``<out>/<id>.pt`` and ``<out>/<id>.md``.

    Parameters
    ----------
    settings : TrainSettings
        As read by ``live_sr.config.load(path, TrainSettings)``.
    data : sequence of Path
        Folders that hold the images; may be empty when everything is procedural.
    out : Path
        Folder for the model, its dated entry and the checkpoint; created when missing.
    resume : bool
        Continue from ``<out>/checkpoint.pt``: steps, optimiser, running mean and random numbers
        go on where they were.
    stop_after : int, optional
        Stop at this step, leaving a checkpoint, as an interrupted run would.

    Returns
    -------
    Path
        The model file; the checkpoint when stopped before the end.

    Raises
    ------
    InputError
        When there are no usable images, or a checkpoint is in the way or missing.
    ConfigError
        When the settings contradict each other or the checkpoint's.
    ModelError
        When the model to start from cannot be read.
    """
    _check(settings)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise InputError(f"{checkpoint} exists: resume that run, or choose another output folder")
    if resume and not checkpoint.exists():
        raise InputError(f"no {checkpoint} to resume from: start without resume")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    pools, used = _pools(settings, data, out)
    crops = Crops(pools, settings.patch * settings.network.scale, settings.augment)
    pairs = validation_pairs(settings, data)
    state = _start(settings, device)
    if resume:
        state.restore(checkpoint, settings)

    console = console or Console()
    began = time.monotonic() - state.elapsed_s
    with _progress(console) as progress:
        task = progress.add_task(settings.id, total=1.0, rate="", loss="", score="", left="")
        first, mean_loss = state.step, math.nan
        started = time.monotonic()
        while (done := _done(settings, state)) < 1:
            if state.step == stop_after:
                state.save(checkpoint, settings)
                return checkpoint
            loss = _step(settings, state, crops, done, device)
            state.step += 1
            state.elapsed_s = time.monotonic() - began
            mean_loss = loss if math.isnan(mean_loss) else LOSS_MEMORY * mean_loss + (1 - LOSS_MEMORY) * loss
            if state.step % settings.validate_every == 0:
                score = _validate(settings, state, pairs, device)
                state.save(checkpoint, settings)
                progress.update(task, score=f"{score.psnr:.2f} dB {score.ssim:.3f}")
                console.print(
                    f"step {state.step} loss {mean_loss:.4f} val {score.psnr:.3f} dB {score.ssim:.4f}"
                )
            done = _done(settings, state)
            left = state.elapsed_s * (1 - done) / done
            rate = (state.step - first) / (time.monotonic() - started)
            progress.update(
                task, completed=done, rate=f"{rate:.1f}/s", loss=f"{mean_loss:.4f}", left=f"{left / 60:.0f} min"
            )
        _validate(settings, state, pairs, device)
        state.save(checkpoint, settings)
    return export(settings, checkpoint, used, out)


def export(settings: TrainSettings, checkpoint: Path, used: Iterable[File], out: Path) -> Path:
    """Write a checkpoint's best weights as a model file, with its dated entry; the run may still go on."""
    content = _read_checkpoint(checkpoint)
    if content["best"] is None:
        raise InputError(f"{checkpoint} stopped before its first validation: resume the run")
    network = SuperResolver(settings.network)
    network.load_state_dict(content["best_weights"])
    _channels_last(network)  # the file keeps it: measured up to twice as fast on a CPU
    score = Score(*content["best"])
    record = _record(settings, network, content, score, list(used))
    path = out / f"{settings.id}{artifact.SUFFIX}"
    artifact.save(network, record, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with (out / f"{settings.id}.md").open("a", encoding="utf-8") as card:
        card.write(_entry(settings, record, score, sha256))
    return path


def validation_pairs(settings: TrainSettings, data: Sequence[Path]) -> list[tuple[Tensor, Tensor]]:
    """(raw, truth) of every validation image's middle, (1, 1, Y, X) in [0, 1]; the same ones on every call.

    Without validation files, of four procedural images that training never sees.
    """
    scale = settings.network.scale
    if settings.validation:
        images = [i for f in load_files(data, settings.validation) for i in f.images]
    else:
        images = render_pool(msgspec.structs.replace(settings.procedural, images=4), settings.seed + 1).images
    generator = torch.Generator().manual_seed(settings.seed)
    pairs = []
    for image in images:
        edges = [min(n, VALIDATION_EDGE) // scale * scale for n in image.shape]
        y, x = ((n - edge) // 2 for n, edge in zip(image.shape, edges, strict=True))
        truth = torch.from_numpy(to_unit(image[y : y + edges[0], x : x + edges[1]]))[None, None]
        dose = torch.tensor([settings.validation_dose])
        noise = torch.tensor([settings.validation_read_noise])
        raw = expose(torch.nn.functional.avg_pool2d(truth, scale), dose, noise, generator)
        pairs.append((raw, truth))
    return pairs


def restore(network: nn.Module, raw: Tensor, jitter: torch.Generator | None = None) -> Tensor:
    """Normalise each image, run the network, undo: (B, 1, Y, X) to (B, 1, sY, sX), in `raw`'s units.

    With `jitter`, mean and standard deviation are varied, as those of a whole frame differ from a patch's.
    """
    mean = raw.mean(dim=(2, 3), keepdim=True)
    std = raw.std(dim=(2, 3), keepdim=True).clamp(min=1 / 255)
    if jitter is not None:
        n = raw.shape[0]
        shift = (2 * torch.rand((n, 1, 1, 1), generator=jitter) - 1) * MEAN_JITTER
        stretch = torch.exp(STD_JITTER * torch.randn((n, 1, 1, 1), generator=jitter))
        mean = mean + std * shift.to(raw.device)
        std = std * stretch.to(raw.device)
    restored: Tensor = network((raw - mean) / std) * std + mean
    return restored


def _identity(settings: TrainSettings) -> TrainSettings:
    """What must not change in a resumed run: all but the time and the threads it is given."""
    return msgspec.structs.replace(settings, minutes=0.0, threads=0)


def _check(settings: TrainSettings) -> None:
    network = settings.network
    if network.scale < 2 or not network.widths:
        raise ConfigError(
            f"network scale {network.scale}, widths {network.widths}: need scale 2 or more, one level"
        )
    multiple = 2 ** (len(network.widths) - 1)
    if settings.patch % multiple or settings.patch <= 0:
        raise ConfigError(
            f"patch = {settings.patch}: must be a multiple of {multiple}, the network's coarsest pixel"
        )
    if settings.steps < 1 or settings.batch < 1 or settings.validate_every < 1:
        raise ConfigError("steps, batch and validate_every must be 1 or more")
    if not settings.sources and settings.procedural.share <= 0:
        raise ConfigError("nothing to train on: name [[sources]], or give [procedural] a share")
    if settings.procedural.share > 0 and not settings.procedural.images:
        raise ConfigError("procedural.share is set, but procedural.images is 0: set both or none")


def _pools(settings: TrainSettings, data: Sequence[Path], cache: Path) -> tuple[list[Pool], list[File]]:
    pools, used = [], []
    for source in settings.sources:
        files = load_files(data, [source.files], exclude=settings.validation)
        used += files
        pools.append(Pool(source.name, source.share, [i for f in files for i in f.images]))
    if settings.procedural.share > 0:
        pools.append(render_pool(settings.procedural, settings.seed, cache))
    return pools, used


def _start(settings: TrainSettings, device: torch.device) -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = SuperResolver(settings.network)
    trunk = ""
    if settings.warm_start:
        trained = artifact.load(settings.warm_start)
        _take_trunk(network, trained.module)
        trunk = trained.sha256
    network = _channels_last(network.to(device))
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    generator = torch.Generator().manual_seed(settings.seed)
    average = copy.deepcopy(network).requires_grad_(False)
    return State(network, average, optimiser, generator, trunk=trunk)


def _channels_last(network: SuperResolver) -> SuperResolver:
    # torch's annotations lack the overload
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _take_trunk(network: nn.Module, trained: nn.Module) -> None:
    """Copy every weight but the head's that has the same name and shape."""
    own, theirs = network.state_dict(), trained.state_dict()
    shared = {k: v for k, v in theirs.items() if ".head." not in k and k in own and own[k].shape == v.shape}
    if not shared:
        raise ConfigError("warm_start: that model shares no layer with this network, give both the same widths")
    network.load_state_dict(shared, strict=False)


def _done(settings: TrainSettings, state: State) -> float:
    """How far the run is, 0 to 1, by steps or by the clock."""
    by_steps = state.step / settings.steps
    by_clock = state.elapsed_s / (60 * settings.minutes) if settings.minutes else 0.0
    return min(max(by_steps, by_clock), 1.0)


def _step(settings: TrainSettings, state: State, crops: Crops, done: float, device: torch.device) -> float:
    generator = state.generator
    truth = crops.batch(settings.batch, generator)
    raw = crappify(truth, settings.network.scale, settings.crappify, generator).to(device)
    truth = truth.to(device)
    rate = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    for group in state.optimiser.param_groups:
        group["lr"] = rate * min(1.0, (state.step + 1) / max(settings.warmup, 1))

    loss = restoration_loss(restore(state.network, raw, generator), truth, settings.ssim_weight)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(state.network.parameters(), CLIP_NORM)
    state.optimiser.step()
    # Early on the mean follows closely; a fixed decay would average the untrained network in.
    decay = min(settings.ema, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for mean, now in zip(state.average.parameters(), state.network.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
    return float(loss.detach())


def _validate(
    settings: TrainSettings, state: State, pairs: list[tuple[Tensor, Tensor]], device: torch.device
) -> Score:
    """Score the averaged weights, and keep them when they are the best so far."""
    psnrs, ssims = [], []
    with torch.inference_mode():
        for raw, truth in pairs:
            restored = restore(state.average, raw.to(device)).clamp(0, 1).cpu()
            psnrs.append(-10 * math.log10(float((restored - truth).square().mean()) + 1e-12))
            ssims.append(float(ssim(restored, truth)))
    score = Score(float(np.mean(psnrs)), float(np.mean(ssims)))
    if state.best is None or score.psnr > state.best.psnr:
        state.best = score
        state.best_weights = {k: v.detach().cpu().clone() for k, v in state.average.state_dict().items()}
    return score


def _record(
    settings: TrainSettings, network: nn.Module, content: dict[str, Any], score: Score, used: list[File]
) -> artifact.ModelRecord:
    return artifact.ModelRecord(
        id=settings.id,
        scale=settings.network.scale,
        normalisation="frame-mean-std",
        halo=measure_halo(settings.network),
        multiple=2 ** (len(settings.network.widths) - 1),
        parameters=sum(p.numel() for p in network.parameters()),
        kmac_per_output_pixel=round(count_kmac(settings.network), 3),
        widths=settings.network.widths,
        pixel_size_um=settings.pixel_size_um,
        attribution=[s.attribution for s in settings.sources if s.attribution],
        licence=settings.licence,
        training={
            "settings": msgspec.to_builtins(settings),
            "steps": content["step"],
            "minutes": round(content["elapsed_s"] / 60, 1),
            "seed": settings.seed,
            "warm_start_sha256": content["trunk"],
            "commit": _commit(),
            "torch": str(torch.__version__),
            "data": [{"file": f.name, "sha256": f.sha256, "images": len(f.images)} for f in used],
            "validation": {"psnr": round(score.psnr, 3), "ssim": round(score.ssim, 4)},
        },
        live_sr_version=importlib.metadata.version("live-sr"),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _entry(settings: TrainSettings, record: artifact.ModelRecord, score: Score, sha256: str) -> str:
    """One dated entry for the model's card."""
    training = record.training
    return (
        f"\n### {record.created[:10]}\n\n"
        f"{training['steps']} steps of {settings.batch} crops of {settings.patch} x {settings.patch} raw "
        f"pixels in {training['minutes']} min, seed {settings.seed}, commit {training['commit'] or 'none'}, "
        f"torch {training['torch']}; validation at {settings.validation_dose:g} electrons and read noise "
        f"{settings.validation_read_noise:.4f}: PSNR {score.psnr:.2f} dB, SSIM {score.ssim:.3f}. "
        f"SHA-256 `{sha256}`.\n"
    )


def _commit() -> str:
    """The commit of the source tree, with -dirty when it was changed; empty where it is no git checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _read_checkpoint(path: Path) -> dict[str, Any]:
    refusal = f"{path} is not a readable checkpoint: start a new run in another folder"
    if not zipfile.is_zipfile(path):  # torch would try older formats and fail in a dozen ways
        raise InputError(refusal)
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as e:
        raise InputError(refusal) from e
    if not isinstance(content, dict) or not {"settings", "network", "best_weights"} <= content.keys():
        raise InputError(refusal)
    return content


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[rate]}  loss {task.fields[loss]}"),
        TextColumn("val {task.fields[score]}"),
        TimeElapsedColumn(),
        TextColumn("left {task.fields[left]}"),
        console=console,
        refresh_per_second=1,
    )
