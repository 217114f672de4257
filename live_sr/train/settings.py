"""Everything that decides what a model becomes, as one settings file holds it. Reads no image, runs nothing."""

from __future__ import annotations

import math
from typing import Literal

from live_sr.config import Settings
from live_sr.errors import ConfigError
from live_sr.model.foreign import IDS
from live_sr.model.unet import NetworkSettings
from live_sr.neighbours import Neighbours
from live_sr.train.crappify import Crappifier, load_crappifier
from live_sr.train.dataset import Augment
from live_sr.train.holes import HoleSettings
from live_sr.train.losses import LossSettings
from live_sr.train.pairs import PairSource
from live_sr.train.pools import Source
from live_sr.train.procedural import Procedural
from live_sr.train.split import Split

Task = Literal["restore", "noise2noise", "blind-spot"]


class TrainSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`live-sr train`: one run.

    Attributes
    ----------
    id : str
        Name of the model and of the files written.
    task : {"restore", "noise2noise", "blind-spot"}
        ``restore`` learns from good images that are degraded, and from real pairs. The other two need no good
        image at all and remove noise only (network scale 1): ``noise2noise`` learns one frame of a stack from
        its neighbour (Lehtinen et al. 2018), ``blind-spot`` a pixel from those around it (Noise2Void, Krull et
        al. 2019); that one needs noise that is independent from pixel to pixel.
    sources : tuple of Source
        Good images; for the self-supervised tasks, the noisy frames themselves. Files that a pattern of `pairs`
        matches are left to them.
    pairs : tuple of PairSource
        Real low and high resolution images of the same places.
    pairs_share : float
        Fraction of the crops that come from pairs, where there are other images as well.
    crappify : str or Crappifier
        A preset's name, a TOML file, or the steps themselves.
    patch : int
        Edge of a training crop in raw pixels, a multiple of the network's coarsest pixel.
    batch, steps : int
        Crops a step, on each device.
    minutes : float
        Wall-clock budget; the learning rate reaches zero after `steps` or `minutes`, whichever comes first.
        0 for no limit. Only a run that is limited by steps can be repeated to the same weights.
    learning_rate, weight_decay, ema : float
        AdamW with cosine decay, and the decay of the running mean of the weights that becomes the model.
    warmup : int
        Steps of linear warm-up.
    patience : int
        End the run after this many validations without a better one; 0 never.
    amp : {"auto", "off"}
        bfloat16 arithmetic on CUDA and on processors with matrix units for it, or float32 throughout.
    validation : tuple of str
        Patterns of files that are validated on and never trained on. They are read as the first source is.
    split : Split or None
        Without `validation`: which part of each source is kept for it.
    validation_dose, validation_read_noise : float
        Electrons per raw pixel at full scale, and standard deviation as a fraction of full scale.
    start : str
        Model to start from (name or file): every weight that has the same shape is taken. The same scale is
        fine-tuning; another scale takes the trunk.
    pixel_size_um : (float, float) or None
        Raw pixel sizes that the data cover, for the model's record.
    neighbours : {"t", "z", "t or z"}
        Of a network of several frames: what the planes of the stacks are, time points or sections.
    holes : HoleSettings or None
        Exactly for a network with holes: what the examples miss, to be filled from their neighbours.
    threads : int
        CPU threads; 0 lets torch choose.
    """

    id: str
    task: Task = "restore"
    network: NetworkSettings = NetworkSettings()
    sources: tuple[Source, ...] = ()
    pairs: tuple[PairSource, ...] = ()
    pairs_share: float = 0.5
    procedural: Procedural = Procedural()
    augment: Augment = Augment()
    crappify: str | Crappifier = "em-low-dose"
    loss: LossSettings = LossSettings()
    patch: int = 48
    batch: int = 12
    steps: int = 20_000
    minutes: float = 0.0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: int = 100
    patience: int = 0
    ema: float = 0.999
    amp: Literal["auto", "off"] = "auto"
    validation: tuple[str, ...] = ()
    split: Split | None = None
    validation_dose: float = 40.0
    validation_read_noise: float = 4 / 255
    validate_every: int = 500
    start: str = ""
    pixel_size_um: tuple[float, float] | None = None
    neighbours: Neighbours = "t or z"
    holes: HoleSettings | None = None
    licence: str = ""
    seed: int = 0
    threads: int = 0

    @property
    def crappifier(self) -> Crappifier:
        """The degradation itself.

        Raises
        ------
        ConfigError
            When `crappify` names neither a preset nor a readable file.
        """
        return load_crappifier(self.crappify) if isinstance(self.crappify, str) else self.crappify


def check(settings: TrainSettings) -> None:
    """Refuse settings that contradict each other.

    Raises
    ------
    ConfigError
        With the values and what to change.
    """
    network = settings.network
    if IDS.fullmatch(settings.id) is None:  # it becomes a file's name, after hours
        raise ConfigError(f"id = {settings.id!r}: must be of lower-case letters, digits, . _ -")
    if settings.seed < 0:
        raise ConfigError(f"seed = {settings.seed}: must be 0 or more")
    if network.scale < 1 or not network.widths:
        raise ConfigError(
            f"network scale {network.scale}, widths {network.widths}: need scale 1 or more, one level"
        )
    multiple = 2 ** (len(network.widths) - 1)
    if settings.patch % multiple or settings.patch <= 0:
        raise ConfigError(
            f"patch = {settings.patch}: must be a multiple of {multiple}, the network's coarsest pixel"
        )
    if settings.steps < 1 or settings.batch < 1 or settings.validate_every < 1:
        raise ConfigError("steps, batch and validate_every must be 1 or more")
    ranges = {
        "learning_rate": (settings.learning_rate, 0.0, math.inf),
        "weight_decay": (settings.weight_decay, 0.0, math.inf),
        "minutes": (settings.minutes, 0.0, math.inf),
        "warmup": (settings.warmup, 0, math.inf),
        "patience": (settings.patience, 0, math.inf),
        "ema": (settings.ema, 0.0, 1.0),
    }
    for name, (value, low, below) in ranges.items():
        if not low <= value < below:
            upper = f" and below {below:g}" if below < math.inf else ""
            raise ConfigError(f"{name} = {value:g}: must be at least {low:g}{upper}")
    if settings.pixel_size_um is not None and not 0 < settings.pixel_size_um[0] <= settings.pixel_size_um[1]:
        raise ConfigError(f"pixel_size_um = {list(settings.pixel_size_um)}: must be a range above 0")
    if not settings.sources and not settings.pairs and settings.procedural.share <= 0:
        raise ConfigError("nothing to train on: name [[sources]] or [[pairs]], or give [procedural] a share")
    if settings.procedural.share > 0 and not settings.procedural.images:
        raise ConfigError("procedural.share is set, but procedural.images is 0: set both or none")
    alone = "pairs" if settings.pairs else "procedural" if settings.procedural.share > 0 else ""
    if alone and network.frames > 1:
        raise ConfigError(
            f"{alone}: their images have no neighbours, which network.frames = {network.frames} needs: "
            "leave them out, or set frames = 1"
        )
    if settings.pairs and not 0 < settings.pairs_share <= 1:
        raise ConfigError(f"pairs_share = {settings.pairs_share:g}: must be above 0 and at most 1")
    _check_holes(settings)
    if settings.task == "restore":
        settings.crappifier  # noqa: B018  refused now, not after the images were read
        return
    if network.scale != 1 or network.frames != 1:
        raise ConfigError(
            f"task {settings.task!r} removes noise only: set network.scale = 1 and network.frames = 1, "
            f"not {network.scale} and {network.frames}"
        )
    if settings.pairs or settings.procedural.share > 0:
        raise ConfigError(
            f"task {settings.task!r} learns from noisy frames alone: leave out pairs and procedural"
        )
    if settings.loss.adversarial:
        raise ConfigError(f"task {settings.task!r} has no truth to compare with: set loss.adversarial = 0")


def _check_holes(settings: TrainSettings) -> None:
    network, holes = settings.network, settings.holes
    if network.holes != (holes is not None):
        raise ConfigError(
            f"network.holes is {str(network.holes).lower()}, and there is {'a' if holes else 'no'} [holes]: "
            "a network learns to fill holes from examples that have them, set both or none"
        )
    if holes is None:
        return
    if network.frames == 1 or settings.pairs:
        raise ConfigError(
            f"network.frames = {network.frames} and {len(settings.pairs)} pairs: holes are filled from "
            "neighbours, set network.frames to 3 or 5 and leave out pairs"
        )
    kinds = (holes.tiles, holes.bands, holes.lines)
    ranges = (holes.tile_px, holes.band_px, holes.band_length_px, holes.lines_px)
    if holes.most < 1 or min(kinds) < 0 or sum(kinds) <= 0 or any(not 0 < low <= high for low, high in ranges):
        raise ConfigError(
            f"holes: most = {holes.most}, shares {kinds}, sizes {ranges}: need one hole or more, a kind with "
            "a share, and sizes above 0 with the smaller one first"
        )
