"""The common ground of a comparison: our training crops, their degradation, our evaluation. Knows no peer.

Everything that a peer shares with our own training and scoring is reached through here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import torch

from live_sr.errors import ConfigError, InputError
from live_sr.train import evaluate, fit
from live_sr.train.batches import Ahead, Batch
from live_sr.train.examples import gather
from live_sr.train.files import find_files
from live_sr.train.settings import TrainSettings, check
from live_sr.upscaler import Upscaler

MODEL = evaluate.MODEL  # what an evaluation calls the upscaler it was given
CONDITIONS = {"dose": evaluate.DOSE, "read_noise": evaluate.READ_NOISE, "seed": 0}
"""The defaults of the evaluation, by which it is called below."""


class Score(NamedTuple):
    """Means over the images of one set; `methods` maps a name to PSNR in dB and SSIM."""

    name: str
    images: int
    methods: dict[str, tuple[float, float]]


def check_settings(settings: TrainSettings, scale: int, multiple: int) -> None:
    """Refuse settings that a peer cannot be trained with.

    Raises
    ------
    ConfigError
        When they contradict each other, are for another scale, or cut crops that the peer cannot halve often
        enough.
    """
    check(settings)
    if settings.network.scale != scale:
        raise ConfigError(
            f"the settings are for scale {settings.network.scale}, not {scale}: give the other file"
        )
    if settings.task != "restore" or settings.network.frames != 1:
        raise ConfigError("the peer restores single frames: give settings of task 'restore' with one frame")
    if settings.patch % multiple:
        raise ConfigError(f"patch = {settings.patch}: the peer needs a multiple of {multiple}")
    if not settings.validation:
        raise ConfigError("the settings keep no validation files apart: there is nothing to compare on")


def batches(settings: TrainSettings, data: Sequence[Path], cache: Path) -> Ahead:
    """Degraded crops, drawn ahead as in our training: step n of any network sees the same ones."""
    draw = gather(settings, data, cache=cache).draw

    def of_step(step: int) -> Batch:
        return draw(settings.batch, fit.step_generator(settings.seed, step, 0))

    return Ahead(of_step, 0)


def has_bfloat16() -> bool:
    """Whether our training computes in bfloat16 on this processor."""
    return fit.has_bfloat16(torch.device("cpu"))


def score(upscaler: Upscaler, settings: TrainSettings, data: Sequence[Path]) -> list[Score]:
    """Evaluate on the files that no training saw, a set for each pattern, and on procedural images.

    Raises
    ------
    InputError
        When a pattern has no file.
    """
    sets = []
    for pattern in settings.validation:
        files = [path for path, name in find_files(data) if fnmatch(name, pattern)]
        if not files:
            raise InputError(f"no file below {', '.join(map(str, data))} matches {pattern}: check --data")
        name = ", ".join(path.name.split(".")[0] for path in files)
        sets.append((name, evaluate.evaluate(upscaler, files)))
    sets.append(("procedural", evaluate.evaluate_procedural(upscaler)))
    return [
        Score(name, found.mean.images, {m: (q.psnr, q.ssim) for m, q in found.mean.methods.items()})
        for name, found in sets
    ]
