"""Images that are drawn from together, and which of them are neighbours. Knows no crop and no split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from live_sr.config import Settings
from live_sr.neighbours import Neighbours
from live_sr.train.files import File, Place, Plane, Range, Shelf, load_files


class Source(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Image files that are drawn from together.

    Attributes
    ----------
    name : str
    files : str
        Pattern for the path below the data folder, for example ``*/train_*.tif``; ``*`` also spans folders.
    share : float
        Relative share of the training crops.
    stack : bool
        The planes of a file are adjacent sections or time points: neighbours for models of several frames.
    channel : int or None
        Which channel of the files, from 0; needed where they have several.
    range : (float, float) or None
        Grey values that become black and white, for example ``[0, 4095]`` of a 12-bit camera. By default the
        range of the integer type; of float32 the 0.1 and 99.9 percentiles of each file.
    attribution, licence : str
        Whose images they are, as the model file and its card must say.
    """

    name: str
    files: str
    share: float = 1.0
    stack: bool = False
    channel: int | None = None
    range: Range | None = None
    attribution: str = ""
    licence: str = ""


@dataclass
class Pool:
    """Images with the share of the crops that comes from them.

    Attributes
    ----------
    name : str
    share : float
    images : list of Plane
    stack : bool
        Images of one stack are neighbours.
    places : list of Place
        One for each image. By default each image is a file of its own.
    """

    name: str
    share: float
    images: list[Plane]
    stack: bool = False
    places: list[Place] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if not self.places:
            names = (f"{self.name} {n}" for n in range(len(self.images)))
            self.places = [Place(name, name, 0, 0) for name in names]

    def take(self, chosen: Sequence[int]) -> Pool:
        """The pool of some of its images."""
        images, places = [self.images[i] for i in chosen], [self.places[i] for i in chosen]
        return Pool(self.name, self.share, images, self.stack, places)


def load_pools(
    sources: Sequence[Source],
    folders: Sequence[Path],
    exclude: Sequence[str] = (),
    shelf: Shelf | None = None,
    *,
    neighbours: Neighbours = "t or z",
) -> tuple[list[Pool], list[File]]:
    """One pool for each source, and the files that went into them.

    Parameters
    ----------
    folders : sequence of Path
        That hold the images.
    exclude : sequence of str
        Patterns of files that are left out, for example because they are validated on.
    shelf : Shelf, optional
        Memory for all of them together.
    neighbours : {"t", "z", "t or z"}
        Which planes of a file are neighbours.

    Raises
    ------
    InputError
        When a source has no usable file.
    """
    shelf = shelf or Shelf()
    pools, used = [], []
    for s in sources:
        files = load_files(
            folders,
            [s.files],
            exclude,
            channel=s.channel,
            value_range=s.range,
            neighbours=neighbours,
            shelf=shelf,
        )
        images = [image for file in files for image in file.images]
        places = [place for file in files for place in file.places]
        pools.append(Pool(s.name, s.share, images, s.stack, places))
        used += files
    return pools, used
