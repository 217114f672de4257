"""Trains one model from one settings file: same settings, data and machine, same steps.

Draws examples through :mod:`live_sr.train.batches`, ends with a model file and a dated entry for its card.
Runs on CPU or CUDA, on several devices under ``torchrun``; knows no server.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import hashlib
import importlib.metadata
import math
import os
import pickle
import signal
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from live_sr.errors import ConfigError, InputError
from live_sr.holes import LEAST_VALID
from live_sr.model import artifact
from live_sr.model.unet import SuperResolver, count_kmac, measure_halo
from live_sr.train.batches import Ahead, Batch
from live_sr.train.examples import Example, Examples, gather
from live_sr.train.holes import Shown, parted
from live_sr.train.losses import Adversary, critic_loss, fooling_loss, masked_psnr, restoration_loss, ssim
from live_sr.train.rundir import RunFolder, commit
from live_sr.train.settings import TrainSettings, check
from live_sr.train.sheet import Row, draw_sheet

CLIP_NORM = 1.0  # gradient norm; a single black patch must not undo an hour
MEAN_JITTER = 0.3  # of a standard deviation: a patch's mean differs from its frame's by about this much
STD_JITTER = 0.2  # sigma of the logarithm, likewise
LOSS_MEMORY = 0.98  # of the running mean that is shown
SHEET_ROWS = 4  # validation images drawn
SHEET_EDGE = 256  # pixels of the truth: the middle, where single pixels can still be seen


@dataclass
class Score:
    """Means over the validation images, data range 1; where there is no truth, against the noisy pixels.

    Of hidden pixels alone there is no SSIM, NaN: the others are known to the network.
    """

    psnr: float
    ssim: float


@dataclass
class State:
    """Everything that a stopped run needs to go on as if it had not stopped."""

    network: SuperResolver
    average: SuperResolver  # running mean of the weights
    optimiser: torch.optim.AdamW
    critic: Adversary | None = None
    critic_optimiser: torch.optim.AdamW | None = None
    step: int = 0
    elapsed_s: float = 0.0
    best: Score | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    best_step: int = 0
    mean_loss: float = math.nan  # running mean of the training loss, as it is shown
    start: str = ""  # SHA-256 of the model that it started from

    def save(self, path: Path, settings: TrainSettings) -> None:
        """Write a checkpoint; an interrupted write leaves the last one."""
        content = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "critic": self.critic and self.critic.state_dict(),
            "critic_optimiser": self.critic_optimiser and self.critic_optimiser.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "best": None if self.best is None else [self.best.psnr, self.best.ssim],
            "best_weights": self.best_weights,
            "best_step": self.best_step,
            "mean_loss": self.mean_loss,
            "start": self.start,
            "settings": msgspec.json.encode(_identity(settings)).decode(),
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
        if self.critic is not None and self.critic_optimiser is not None:
            self.critic.load_state_dict(content["critic"])
            self.critic_optimiser.load_state_dict(content["critic_optimiser"])
        self.step, self.elapsed_s = content["step"], content["elapsed_s"]
        self.best = None if content["best"] is None else Score(*content["best"])
        self.best_weights = content["best_weights"]
        self.best_step = content["best_step"]
        self.mean_loss = content.get("mean_loss", math.nan)  # not in those of the first days
        self.start = content["start"]


def fit(
    settings: TrainSettings,
    data: Sequence[Path],
    out: Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    console: Console | None = None,
) -> Path:
    """Train a model and write ``<out>/<id>.pt``; see :mod:`live_sr.train.rundir` for what else is written.

    Under ``torchrun`` each process trains on its own device with its own crops, and the first writes.

    Parameters
    ----------
    settings : TrainSettings
        As read by ``live_sr.config.load(path, TrainSettings)``.
    data : sequence of Path
        Folders that hold the images; may be empty when everything is procedural.
    out : Path
        Folder for the run; created when missing.
    resume : bool
        Continue from ``<out>/checkpoint.pt``. A run that is limited by steps ends with the weights that it
        would have had without the stop.
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
    check(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with _devices() as (device, rank):
        return _fit(settings, data, out, resume, stop_after, console or Console(quiet=rank > 0), device, rank)


def _fit(
    settings: TrainSettings,
    data: Sequence[Path],
    out: Path,
    resume: bool,
    stop_after: int | None,
    console: Console,
    device: torch.device,
    rank: int,
) -> Path:
    folder = RunFolder(out, resume=resume)
    examples = gather(settings, data, cache=out)
    state = _start(settings, device)
    if resume:
        state.restore(folder.checkpoint, settings)
    if rank == 0:
        folder.describe(settings, [*examples.files, *examples.judged])
    run = _Run(settings, examples, folder, state, device, rank, console)
    if run.train(stop_after):
        return folder.checkpoint
    if rank > 0:
        return out / f"{settings.id}{artifact.SUFFIX}"  # the first process is writing it
    model = export(settings, folder.checkpoint, examples, out)
    console.print(f"model: {model}. Serve it with: live-sr serve --model {model}", soft_wrap=True)
    return model


class _Run:
    """The loop, and what it shows."""

    def __init__(
        self,
        settings: TrainSettings,
        examples: Examples,
        folder: RunFolder,
        state: State,
        device: torch.device,
        rank: int,
        console: Console,
    ) -> None:
        self.settings, self.examples, self.folder = settings, examples, folder
        self.state, self.device, self.rank, self.console = state, device, rank, console
        self.amp = settings.amp == "auto" and has_bfloat16(device)
        several = dist.is_initialized()
        self.network: nn.Module = DistributedDataParallel(state.network) if several else state.network
        self.began = time.monotonic() - state.elapsed_s

    def train(self, stop_after: int | None) -> bool:
        """Whether it was stopped before its end."""
        settings, state = self.settings, self.state
        with (
            _progress(self.console) as progress,
            Ahead(self._draw, state.step) as batches,
            _ctrl_c() as wanted,
        ):
            task = progress.add_task(settings.id, total=1.0, rate="", loss="", score="", left="")
            first, started = state.step, time.monotonic()
            drawn = iter(batches)
            while (done := self._done()) < 1 and not self._gave_up():
                if state.step == stop_after or wanted.is_set():
                    self._save()
                    if not wanted.is_set():
                        return True
                    self.console.print(
                        f"stopped at step {state.step}: go on with --out {self.folder.path} --resume"
                    )
                    raise KeyboardInterrupt
                self._step(next(drawn), done)
                if state.step % settings.validate_every == 0:
                    score = self._validate()
                    self._save()
                    progress.update(task, score=f"{score.psnr:.2f} dB {score.ssim:.3f}")
                done = self._done()
                left = state.elapsed_s * (1 - done) / max(done, 1e-9)
                rate = (state.step - first) / (time.monotonic() - started)
                progress.update(
                    task,
                    completed=done,
                    rate=f"{rate:.1f}/s",
                    loss=f"{state.mean_loss:.4f}",
                    left=f"{left / 60:.0f} min",
                )
        if self._gave_up():
            self.console.print(f"no better validation since step {state.best_step}: this run ends here")
        if state.step % settings.validate_every:
            self._validate()
        self._save()
        return False

    def _draw(self, step: int) -> Batch:
        return self.examples.draw(self.settings.batch, step_generator(self.settings.seed, step, self.rank))

    def _done(self) -> float:
        """How far the run is, 0 to 1, by steps or by the clock."""
        settings, state = self.settings, self.state
        by_clock = state.elapsed_s / (60 * settings.minutes) if settings.minutes else 0.0
        if settings.minutes and dist.is_initialized():  # the first process's clock counts
            clock = torch.tensor([by_clock], device=self.device)
            dist.broadcast(clock, 0)
            by_clock = float(clock)
        return min(max(state.step / settings.steps, by_clock), 1.0)

    def _gave_up(self) -> bool:
        settings, state = self.settings, self.state
        since = (state.step - state.best_step) // settings.validate_every
        return bool(settings.patience) and since >= settings.patience

    def _step(self, batch: Batch, done: float) -> None:
        settings, state = self.settings, self.state
        raw, truth = batch.raw.to(self.device), batch.truth.to(self.device)
        where = batch.where.to(self.device) if batch.where is not None else None
        rate = learning_rate(settings, state.step, done)
        jitter = step_generator(settings.seed, state.step, self.rank, purpose=1)

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            restored = restore(self.network, raw, jitter)
        restored = restored.float()
        loss = restoration_loss(restored, truth, settings.loss, where)
        if state.critic is not None:
            loss = loss + settings.loss.adversarial * fooling_loss(state.critic, restored)
        descend(state.optimiser, loss, state.network, rate)
        if state.critic is not None and state.critic_optimiser is not None:
            descend(state.critic_optimiser, critic_loss(state.critic, restored, truth), state.critic, rate)

        follow(state.average, state.network, state.step, settings.ema)
        state.step += 1
        state.elapsed_s = time.monotonic() - self.began
        now_loss = float(loss.detach())
        if not math.isfinite(now_loss):
            raise InputError(
                f"the loss is {now_loss} at step {state.step}: lower learning_rate "
                f"({settings.learning_rate:g}), or look for damaged images"
            )
        before = now_loss if math.isnan(state.mean_loss) else state.mean_loss
        state.mean_loss = LOSS_MEMORY * before + (1 - LOSS_MEMORY) * now_loss

    def _validate(self) -> Score:
        """Score the averaged weights, draw them, and keep them when they are the best so far."""
        state = self.state
        scores: dict[str, list[tuple[float, float]]] = {}
        in_holes: list[tuple[float, float]] = []
        rows: list[Row] = []
        with torch.inference_mode():
            for example in self.examples.validation:
                raw, truth, where = example.batch
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                    restored = restore(state.average, raw.to(self.device))
                restored = restored.float().clamp(0, 1).cpu()
                similarity = float(ssim(restored, truth)) if where is None else math.nan
                quality = masked_psnr(restored, truth, where), similarity
                scores.setdefault(example.name, []).append(quality)
                in_holes += _quality_in_holes(example.batch, restored)
                if len(rows) < SHEET_ROWS and example.drawn:
                    rows.append(_pictures(example, restored))
        everything = np.array([q for qualities in scores.values() for q in qualities])
        score = Score(*(float(v) for v in everything.mean(axis=0)))
        if state.best is None or score.psnr > state.best.psnr:
            state.best, state.best_step = score, state.step
            state.best_weights = {k: v.detach().cpu().clone() for k, v in state.average.state_dict().items()}
        filled, between = np.mean(in_holes, axis=0) if in_holes else (math.nan, math.nan)
        self.console.print(
            f"step {state.step} loss {state.mean_loss:.4f} val {score.psnr:.3f} dB {score.ssim:.4f}"
            + (f", in holes {filled:.3f} dB, interpolated {between:.3f} dB" if in_holes else "")
        )
        if self.rank == 0:
            row: dict[str, float | int] = {"step": state.step, "seconds": round(state.elapsed_s, 1)}
            row |= {"loss": state.mean_loss, "psnr": score.psnr, "ssim": score.ssim}
            for name, qualities in scores.items():
                mean = np.mean(qualities, axis=0)
                row |= {f"psnr {name}": float(mean[0]), f"ssim {name}": float(mean[1])}
            if in_holes:
                row |= {"psnr in holes": float(filled), "psnr in holes, interpolated": float(between)}
            self.folder.log(row)
            self.folder.sheet(state.step, draw_sheet(("low", "bicubic", "restored", "truth"), rows))
        return score

    def _save(self) -> None:
        if self.rank == 0:
            self.state.save(self.folder.checkpoint, self.settings)


def export(settings: TrainSettings, checkpoint: Path, examples: Examples, out: Path) -> Path:
    """Write a checkpoint's best weights as a model file, with its dated entry; the run may still go on."""
    content = _read_checkpoint(checkpoint)
    if content["best"] is None:
        raise InputError(f"{checkpoint} stopped before its first validation: resume the run")
    network = SuperResolver(settings.network)
    network.load_state_dict(content["best_weights"])
    _channels_last(network)  # the file keeps it: measured up to twice as fast on a CPU
    score = Score(*content["best"])
    record = _record(settings, network, content, score, examples)
    path = out / f"{settings.id}{artifact.SUFFIX}"
    artifact.save(network, record, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with (out / f"{settings.id}.md").open("a", encoding="utf-8") as card:
        card.write(_entry(settings, record, score, sha256))
    return path


def restore(network: nn.Module, raw: Tensor, jitter: torch.Generator | None = None) -> Tensor:
    """Normalise, run the network, undo: (B, frames, Y, X) to (B, 1, sY, sX), in `raw`'s units.

    Mean and standard deviation are those of each example's middle frame. With `jitter` they are varied, as
    those of a whole frame differ from a patch's. A mask of holes may follow the frames.
    """
    shown = parted(raw)
    mean, std = _level(shown)
    if jitter is not None:
        n = raw.shape[0]
        shift = (2 * torch.rand((n, 1, 1, 1), generator=jitter) - 1) * MEAN_JITTER
        stretch = torch.exp(STD_JITTER * torch.randn((n, 1, 1, 1), generator=jitter))
        mean = mean + std * shift.to(raw.device)
        std = std * stretch.to(raw.device)
    x = (shown.frames - mean) / std
    if shown.hole is not None:
        x = torch.cat((x, shown.hole), 1)
    restored: Tensor = network(x) * std + mean
    return restored


def interpolate(raw: Tensor, scale: int) -> Tensor:
    """What hole filling is measured by: the mean of the nearest neighbours, enlarged bilinearly.

    (B, frames + 1, Y, X) to (B, 1, scale * Y, scale * X).
    """
    frames, middle = parted(raw).frames, parted(raw).middle
    between = (frames[:, middle - 1 : middle] + frames[:, middle + 1 : middle + 2]) / 2
    return nn.functional.interpolate(between, scale_factor=scale, mode="bilinear")


# ------------------------------------------------------------------------------------------------- parts


def _level(shown: Shown) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the middle frame, (B, 1, 1, 1) each, as far as it is there.

    Where too little of it is there they are the nearest neighbours', as in the engine.
    """
    middle = shown.frames[:, shown.middle : shown.middle + 1]
    if shown.hole is None:
        mean, std = middle.mean(dim=(2, 3), keepdim=True), middle.std(dim=(2, 3), keepdim=True)
    else:
        valid = 1 - shown.hole
        enough = valid.mean(dim=(2, 3), keepdim=True) >= LEAST_VALID
        around = 1 - enough.float().expand_as(valid)
        near = shown.frames[:, shown.middle - 1 : shown.middle + 2]
        weight = torch.cat((around, valid * enough, around), 1)  # (B, 3, Y, X)
        total = weight.sum(dim=(1, 2, 3), keepdim=True)
        mean = (weight * near).sum(dim=(1, 2, 3), keepdim=True) / total
        std = ((weight * (near - mean).square()).sum(dim=(1, 2, 3), keepdim=True) / (total - 1)).sqrt()
    return mean, std.clamp(min=1 / 255)


def _quality_in_holes(batch: Batch, restored: Tensor) -> list[tuple[float, float]]:
    """PSNR in dB inside the holes of one example, restored and interpolated; nothing where it has none."""
    hole = parted(batch.raw).hole
    if hole is None or not hole.any():
        return []
    scale = restored.shape[-1] // hole.shape[-1]
    where = nn.functional.interpolate(hole, scale_factor=scale, mode="nearest")
    between = interpolate(batch.raw, scale)
    return [(masked_psnr(restored, batch.truth, where), masked_psnr(between, batch.truth, where))]


def step_generator(seed: int, step: int, rank: int, purpose: int = 0) -> torch.Generator:
    """A step's own randomness: a resumed run needs nothing but the step's number."""
    state = np.random.SeedSequence([seed, step, rank, purpose]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def learning_rate(settings: TrainSettings, step: int, done: float) -> float:
    """Linear warm-up, then a cosine to zero where `done`, the share of the run that is behind, reaches 1."""
    rate = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return rate * min(1.0, (step + 1) / max(settings.warmup, 1))


def descend(optimiser: torch.optim.Optimizer, loss: Tensor, network: nn.Module, rate: float) -> None:
    """One step of the weights, along gradients of limited length."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
    optimiser.step()


def follow(average: nn.Module, network: nn.Module, step: int, ema: float) -> None:
    """Move the running mean of the weights towards those of `network` after `step` steps."""
    # Early on the mean follows closely; a fixed decay would average the untrained network in.
    decay = min(ema, (1 + step) / (10 + step))
    with torch.no_grad():
        for mean, now in zip(average.parameters(), network.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)


@contextlib.contextmanager
def _devices() -> Iterator[tuple[torch.device, int]]:
    """Device and number of this process; joins the others where ``torchrun`` started several."""
    cuda = torch.cuda.is_available()
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield torch.device("cuda" if cuda else "cpu"), 0
        return
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device, dist.get_rank()
        dist.barrier()  # the first is still writing the model
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """Set by Ctrl-C, to be looked at between steps: within one, weights and step would not belong together.

    A second Ctrl-C stops at once, and leaves the last checkpoint.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there are signals handled
        yield pressed
        return

    def press(number: int, frame: object) -> None:
        pressed.set()
        signal.signal(number, before)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is clearly faster than float32: GPUs, and processors with matrix units for it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def _identity(settings: TrainSettings) -> TrainSettings:
    """What must not change in a resumed run: all but the time and the threads it is given.

    With the crappifier itself, so that another one in a file of the same name is noticed, and the settings
    written into the run's folder are the same as those it was started with.
    """
    return msgspec.structs.replace(settings, crappify=settings.crappifier, minutes=0.0, threads=0)


def _start(settings: TrainSettings, device: torch.device) -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = SuperResolver(settings.network)
        critic = Adversary() if settings.loss.adversarial else None
    start = ""
    if settings.start:
        trained = artifact.load(settings.start)
        _check_start(settings, trained.record)
        _take_weights(network, trained.module)
        start = trained.sha256
    network = _channels_last(network.to(device))
    optimiser = _optimiser(settings, network)
    average = copy.deepcopy(network).requires_grad_(False)
    state = State(network, average, optimiser, start=start)
    if critic is not None:
        state.critic = critic.to(device)
        state.critic_optimiser = _optimiser(settings, state.critic)
    return state


def _optimiser(settings: TrainSettings, network: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )


def _channels_last(network: SuperResolver) -> SuperResolver:
    # torch's annotations lack the overload
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _check_start(settings: TrainSettings, record: artifact.ModelRecord) -> None:
    """Some layer fits by chance in almost any network; only the same widths make the same trunk."""
    widths = settings.network.widths
    if not record.widths:
        raise ConfigError(
            f"start: {record.id} is a network from elsewhere, no run can go on from it: leave start out"
        )
    if record.widths != widths:
        raise ConfigError(
            f"start: {record.id} has widths {list(record.widths)}, this network {list(widths)}: "
            "give both the same, or leave start out"
        )


def _take_weights(network: nn.Module, trained: nn.Module) -> None:
    """Copy every weight that has the same name and shape: all of them for the same scale, else the trunk."""
    own, theirs = network.state_dict(), trained.state_dict()
    shared = {k: v for k, v in theirs.items() if k in own and own[k].shape == v.shape}
    network.load_state_dict(shared, strict=False)


def _pictures(example: Example, restored: Tensor) -> Row:
    """The middle of one validation image: low, bicubic, restored, truth."""
    raw, truth, _ = example.batch
    shown = parted(raw)
    raw = shown.frames[:, shown.middle][:, None]
    bicubic = nn.functional.interpolate(raw, size=truth.shape[-2:], mode="bicubic")
    scale = truth.shape[-1] // raw.shape[-1]
    edge = min(SHEET_EDGE, *truth.shape[-2:]) // scale * scale
    y, x = ((n - edge) // 2 // scale * scale for n in truth.shape[-2:])
    low = raw[0, 0, y // scale : (y + edge) // scale, x // scale : (x + edge) // scale]
    large = [image[0, 0, y : y + edge, x : x + edge].numpy() for image in (bicubic, restored, truth)]
    return Row(example.name, [low.numpy(), *large])


def _record(
    settings: TrainSettings, network: nn.Module, content: dict[str, Any], score: Score, examples: Examples
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
        frames=settings.network.frames,
        neighbours=settings.neighbours,
        holes=settings.network.holes,
        pixel_size_um=settings.pixel_size_um,
        attribution=[
            *(s.attribution for s in settings.sources if s.attribution),
            *(s.attribution for s in settings.pairs if s.attribution),
        ],
        licence=settings.licence,
        training={
            "settings": msgspec.to_builtins(msgspec.structs.replace(settings, crappify=settings.crappifier)),
            "steps": content["step"],
            "minutes": round(content["elapsed_s"] / 60, 1),
            "seed": settings.seed,
            "start_sha256": content["start"],
            "commit": commit(),
            "torch": str(torch.__version__),
            "data": [{"file": f.name, "sha256": f.sha256, "images": len(f.images)} for f in examples.files],
            "validation": {
                "against": examples.against,
                "psnr": round(score.psnr, 3),
                **({} if math.isnan(score.ssim) else {"ssim": round(score.ssim, 4)}),
            },
        },
        live_sr_version=importlib.metadata.version("live-sr"),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _entry(settings: TrainSettings, record: artifact.ModelRecord, score: Score, sha256: str) -> str:
    """One dated entry for the model's card."""
    training = record.training
    similarity = "" if math.isnan(score.ssim) else f", SSIM {score.ssim:.3f}"
    return (
        f"\n### {record.created[:10]}\n\n"
        f"{training['steps']} steps of {settings.batch} crops of {settings.patch} x {settings.patch} raw "
        f"pixels in {training['minutes']} min, seed {settings.seed}, commit {training['commit'] or 'none'}, "
        f"torch {training['torch']}; validation {training['validation']['against']}: "
        f"PSNR {score.psnr:.2f} dB{similarity}. SHA-256 `{sha256}`.\n"
    )


def _read_checkpoint(path: Path) -> dict[str, Any]:
    refusal = f"{path} is not a readable checkpoint: start a new run in another folder"
    if not zipfile.is_zipfile(path):  # torch would try older formats and fail in a dozen ways
        raise InputError(refusal)
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as e:
        raise InputError(refusal) from e
    if not isinstance(content, dict) or not {"settings", "network", "best_weights", "start"} <= content.keys():
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
