"""Cuts holes into sections of a degraded stack and prints how well they are filled, in PSNR inside the holes.

    python tools/holes.py MODEL STACK [--dose 40] [--sections 8] [--picture sheet.png]

Beside the model: the nearest section, and the mean of the two sections around (linear interpolation), each
enlarged bilinearly; and the mean of what the model makes of these two themselves ("restored"), without what is
missing between them. Every section gets noise of its own, and is judged against its clean self.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from live_sr.errors import InputError, LiveSRError
from live_sr.frame import Pixels, stacked
from live_sr.holes import Missing, enlarged
from live_sr.model.engine import Engine, load_engine
from live_sr.train.baselines import BASELINES
from live_sr.train.evaluate import DOSE, READ_NOISE, crop_to_scale, simulate
from live_sr.train.files import Float, read_images, to_unit
from live_sr.train.holes import HoleSettings, draw_holes
from live_sr.train.sheet import Row, draw_sheet

METHODS = ("nearest", "interpolated", "restored", "model")
HOLES = 6  # at most, in each section: enough pixels to judge by, most of the section stays
CELL = 224  # pixels of truth that are drawn around a hole


@dataclass(frozen=True)
class Kind:
    """Holes of one kind and width, in raw pixels."""

    title: str
    settings: HoleSettings | None  # None: the whole section

    def draw(self, shape: tuple[int, int], seed: int) -> Missing:
        """(Y, X), True where a pixel is missing."""
        if self.settings is None:
            return np.ones(shape, bool)
        drawn = draw_holes(1, shape, self.settings, torch.Generator().manual_seed(seed))
        return np.asarray(drawn[0, 0].numpy() > 0)


def _tiles(px: float) -> Kind:
    return Kind(f"tile, {px:g} px", HoleSettings(most=HOLES, bands=0, lines=0, tile_px=(px, px)))


def _bands(px: float) -> Kind:
    settings = HoleSettings(most=HOLES, tiles=0, lines=0, band_px=(px, px), band_length_px=(64, 256))
    return Kind(f"tear or fold, {px:g} px", settings)


def _lines(px: float) -> Kind:
    return Kind(f"dropped lines, {px:g} px", HoleSettings(most=HOLES, tiles=0, bands=0, lines_px=(px, px)))


KINDS = (
    *(_tiles(px) for px in (16, 64)),
    *(_bands(px) for px in (4, 16, 32)),
    *(_lines(px) for px in (1, 4, 16)),
    Kind("whole section", None),
)


def main() -> int:
    """Print the table, and draw where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name or file of a model that fills holes")
    parser.add_argument("stack", type=Path, help="good adjacent sections: TIFF, OME-TIFF")
    parser.add_argument("--dose", type=float, default=DOSE, help="electrons per raw pixel at full scale")
    parser.add_argument("--sections", type=int, default=8, help="to cut holes into, evenly spread")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--picture", type=Path, help="PNG to draw one hole of each kind into")
    given = parser.parse_args()
    try:
        engine = load_engine(given.model, threads=given.threads)
        _report(engine, given)
    except LiveSRError as e:
        print(f"holes: {e}", file=sys.stderr)
        return 1
    return 0


def _report(engine: Engine, given: argparse.Namespace) -> None:
    scale, frames = engine.info.scale, engine.info.frames
    truths = [crop_to_scale(image, scale) for image in read_images(given.stack)]
    around = frames // 2 + 1  # the sections next to it are restored as well, from neighbours of their own
    if len(truths) <= 2 * around:
        raise InputError(f"{given.stack} has {len(truths)} sections, need {2 * around + 1} or more")
    rng = np.random.default_rng(given.seed)
    raw = [simulate(t, scale, dose=given.dose, read_noise=READ_NOISE, dtype="uint8", rng=rng) for t in truths]
    chosen = np.unique(np.linspace(around, len(truths) - 1 - around, given.sections).round().astype(int))

    errors: dict[str, dict[str, list[Float]]] = {k.title: {m: [] for m in METHODS} for k in KINDS}
    rows: list[Row] = []
    for z in chosen.tolist():
        large = {i: to_unit(BASELINES["bilinear"](raw[i], scale)) for i in (z - 1, z + 1)}
        for k, kind in enumerate(KINDS):
            hole = kind.draw(raw[z].shape, given.seed + 1000 * z + k)
            filled = {i: _filled(engine, raw, i, z, hole) for i in (z - 1, z, z + 1)}
            made: dict[str, Float] = {
                "nearest": large[z - 1],
                "interpolated": _mean(large[z - 1], large[z + 1]),
                "restored": _mean(filled[z - 1], filled[z + 1]),
                "model": filled[z],
            }
            where = enlarged(hole, scale)
            for method, image in made.items():
                errors[kind.title][method].append(np.square(image[where] - truths[z][where]))
            if z == chosen[0]:
                low = np.where(hole, 0, to_unit(raw[z]))
                rows.append(_row(kind.title, hole, scale, low, [*made.values(), truths[z]]))
    _print(
        errors,
        scale,
        f"{engine.info.id}, {len(chosen)} sections of {given.stack.name}, {given.dose:g} electrons",
    )
    if given.picture is not None:
        given.picture.write_bytes(draw_sheet(("raw", *METHODS, "truth"), rows, cell=CELL))


def _filled(engine: Engine, raw: Sequence[Pixels], middle: int, holed: int, hole: Missing) -> Float:
    """What the model makes of section `middle` when section `holed` has a hole."""
    sections = range(middle - engine.info.frames // 2, middle + engine.info.frames // 2 + 1)
    missing = np.stack([hole & (z == holed) for z in sections])
    (restored,) = engine.fill([stacked([raw[z] for z in sections])], [missing])
    return to_unit(restored)


def _mean(a: Float, b: Float) -> Float:
    return np.asarray((a + b) / 2, np.float32)


def _row(title: str, hole: Missing, scale: int, low: Float, large: list[Float]) -> Row:
    """What is around one pixel of the holes."""
    ys, xs = hole.nonzero()
    middle = len(ys) // 2
    edge = CELL // scale
    y, x = (
        int(np.clip(at[middle] - edge // 2, 0, max(n - edge, 0)))
        for at, n in zip((ys, xs), hole.shape, strict=True)
    )
    small = low[y : y + edge, x : x + edge]
    window = slice(scale * y, scale * (y + edge)), slice(scale * x, scale * (x + edge))
    return Row(title, [small, *(image[window] for image in large)])


def _print(errors: dict[str, dict[str, list[Float]]], scale: int, title: str) -> None:
    table = Table(title=f"PSNR in dB inside the holes: {title}")
    for heading in ("holes", "raw pixels", *METHODS):
        table.add_column(heading, justify="left" if heading == "holes" else "right")
    for kind, methods in errors.items():
        pooled = {method: np.concatenate(parts) for method, parts in methods.items()}
        psnr = [f"{-10 * np.log10(pooled[method].mean(dtype=np.float64)):.2f}" for method in METHODS]
        table.add_row(kind, f"{pooled[METHODS[0]].size // scale**2:,}", *psnr)
    Console(width=100).print(table)  # whole also where the output goes to a file


if __name__ == "__main__":
    sys.exit(main())
